// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! `libummunotify-fi.so`: makes libfabric use `/dev/ummunotify` to find out about changed mappings.
//!
//! libfabric keeps memory registered with network adapters. A *memory monitor* notifies it when
//! registered memory is no longer what is mapped. This library provides a monitor through the
//! interface that libfabric 1.13 and later have for that purpose (`rdma/fi_ext.h`).
//!
//! It is loaded into a process in one of these ways:
//!
//! - as a file in the directory where libfabric looks for providers;
//! - in a directory that `FI_PROVIDER_PATH` names, or in `/etc/libfabric.conf`;
//! - by `LD_PRELOAD`.
//!
//! If the device does not exist or may not be opened, the library does nothing, and libfabric works
//! as it does without it. With `UMMUNOTIFY_LOG=1` it logs its actions to standard error, and counts
//! at the end; otherwise it prints nothing.
//!
//! - [`regions`]: decides which registrations are valid. This is the file to read.
//! - [`monitor`]: the functions that libfabric calls, and the thread that notifies libfabric.
//! - [`import`]: finds libfabric in the process, and makes it use the monitor.
//! - [`abi`]: libfabric's structures.
//! - [`counts`]: what is counted.
//! - [`log`]: what is printed.

mod abi;
mod counts;
mod import;
#[path = "../../log.rs"]
mod log;
mod monitor;
mod regions;

use std::{
    ffi::{
        c_char,
        c_int,
        c_void, //
    },
    mem,
    ptr, //
};

/// libfabric calls this after it has loaded the library as a provider. It provides nothing.
#[no_mangle]
pub extern "C" fn fi_prov_ini() -> *const c_void {
    import::import();
    ptr::null()
}

/// For the case that the library is preloaded and libfabric is already loaded.
#[used]
#[link_section = ".init_array"]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    import::import();
}

type Scandir =
    unsafe extern "C" fn(*const c_char, *mut c_void, *const c_void, *const c_void) -> c_int;

/// For the case that the library is preloaded and libfabric is loaded later: on first use,
/// libfabric scans its provider directory, after its monitors are set up and before any domain
/// exists. Other callers are passed through.
///
/// # Safety
///
/// As for libc's function of the same name, which does the work.
#[no_mangle]
pub unsafe extern "C" fn scandir(
    directory: *const c_char,
    names: *mut c_void,
    filter: *const c_void,
    compare: *const c_void,
) -> c_int {
    import::import();
    // SAFETY: The name is a C string, and libc's function has this type.
    let real = unsafe {
        mem::transmute::<*mut c_void, Option<Scandir>>(libc::dlsym(
            libc::RTLD_NEXT,
            c"scandir".as_ptr(),
        ))
    };
    match real {
        // SAFETY: The caller vouches for it.
        Some(real) => unsafe { real(directory, names, filter, compare) },
        None => -1,
    }
}
