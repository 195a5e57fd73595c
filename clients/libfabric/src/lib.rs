// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! `libummunotify-fi.so`: has libfabric learn of changed mappings from `/dev/ummunotify`.
//!
//! libfabric keeps memory registered with network adapters, and has a *memory monitor* tell it when
//! what is registered is not what is mapped any more. This library brings a monitor of its own, by
//! the interface that libfabric 1.13 and later have for it (`rdma/fi_ext.h`).
//!
//! It gets into a process in one of these ways:
//!
//! - as a file in the directory where libfabric looks for providers;
//! - in a directory that `FI_PROVIDER_PATH` names, or in `/etc/libfabric.conf`;
//! - by `LD_PRELOAD`.
//!
//! Without the device, or if it may not be opened, it does nothing, and libfabric uses what it would
//! use without it. With `UMMUNOTIFY_LOG=1` it says on standard error what it does, and at the end
//! how often; otherwise it prints nothing.
//!
//! - [`regions`]: which registrations are still true. This is the file to read.
//! - [`monitor`]: what libfabric calls, and the thread that tells libfabric what to unpin.
//! - [`import`]: finds libfabric in the process, and makes it use the monitor.
//! - [`abi`]: libfabric's structures.
//! - [`log`]: what is printed.

mod abi;
mod import;
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

/// What libfabric calls after it has loaded this library as a provider. It has none to offer.
#[no_mangle]
pub extern "C" fn fi_prov_ini() -> *const c_void {
    import::import();
    ptr::null()
}

/// Where the library is preloaded, and libfabric is loaded already.
#[used]
#[link_section = ".init_array"]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    import::import();
}

type Scandir =
    unsafe extern "C" fn(*const c_char, *mut c_void, *const c_void, *const c_void) -> c_int;

/// Where the library is preloaded, and libfabric comes later: it looks through its directory of
/// providers when it is used for the first time, after its monitors are there and before any
/// domain is. Elsewhere this symbol is nobody's business.
///
/// # Safety
///
/// As for the function of the same name in libc, which does the work.
#[no_mangle]
pub unsafe extern "C" fn scandir(
    directory: *const c_char,
    names: *mut c_void,
    filter: *const c_void,
    compare: *const c_void,
) -> c_int {
    import::import();
    // SAFETY: The name is a C string, and what has it in libc is of this type.
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
