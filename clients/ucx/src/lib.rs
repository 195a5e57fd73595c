// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! `libummunotify-ucx.so`, for `LD_PRELOAD`: has UCX learn of changed mappings from
//! `/dev/ummunotify`.
//!
//! UCX keeps memory registered with network adapters. To find out what is unmapped, it overwrites
//! the first instructions of `munmap` and others, which does not catch what programs do by system
//! calls of their own or what others do to their files. UCX has no interface for somebody who knows
//! better, but its libraries call each other in a way that lets a preloaded library in between.
//!
//! Where this library has taken over all caches, UCX overwrites nothing. It takes over caches of
//! versions whose structures it knows ([`ucx::Layout`]) and leaves all others as they are; so it does
//! without the device, or if it may not be opened. With `UMMUNOTIFY_LOG=1` it says on standard error
//! which of these is the case, and at the end how often it did what; otherwise it prints nothing.
//!
//! - [`caches`]: which registrations are still true. This is the file to read.
//! - [`ucx`]: UCX's functions and structures.
//! - [`log`]: what is printed.
//!
//! A process with two copies of UCX in it is beyond this library: it knows the first one only.

mod caches;
mod log;
mod ucx;

use std::{
    ffi::{
        c_char,
        c_void,
        CStr, //
    },
    ptr,
    slice, //
};

use crate::ucx::{
    Layout,
    Ops,
    Params,
    Status,
    Ucx,
    OK,
    UNSUPPORTED,
    VM_UNMAPPED, //
};

/// Called in place of UCX's function of that name, whenever it makes a cache.
///
/// # Safety
///
/// As for UCX's own, which is called with the same, or nearly so.
#[no_mangle]
pub unsafe extern "C" fn ucs_rcache_create(
    params: *const usize,
    name: *const c_char,
    statistics: *mut c_void,
    cache: *mut *mut c_void,
) -> Status {
    let Some(ucx) = Ucx::get() else {
        return UNSUPPORTED;
    };
    // SAFETY: The caller has a valid one, and a name.
    let (taken, name_text) = unsafe { (may_take(ucx, params), name_of(name)) };
    let (layout, own_params, ops) = match taken {
        Ok(taken) => taken,
        Err(why) => {
            log::say(format_args!(
                "the cache \"{name_text}\" stays as it is: {why}"
            ));
            // SAFETY: This is what the caller has asked for.
            return unsafe { (ucx.create)(params, name, statistics, cache) };
        }
    };
    let mut new_params = own_params;
    if let Some(word) = new_params.get_mut(layout.ops) {
        *word = caches::functions(&ops) as usize;
    }
    // SAFETY: The parameters are those of the caller, save the functions, which live for ever. UCX
    // writes the cache to where the caller wants it.
    let status = unsafe {
        (ucx.set_external_event)(VM_UNMAPPED);
        let status = (ucx.create)(new_params.as_ptr(), name, statistics, cache);
        (ucx.unset_external_event)(VM_UNMAPPED);
        status
    };
    if status != OK {
        return status;
    }
    // SAFETY: It was written just now.
    let new = unsafe { *cache };
    // SAFETY: It begins with a copy of the parameters.
    let copy = unsafe { slice::from_raw_parts(new.cast::<usize>(), layout.ops + 2) };
    let is_as_known = copy.iter().eq(new_params.iter().take(layout.ops + 2));
    if is_as_known && caches::add(new, &ops) {
        log::say(format_args!("took over the cache \"{name_text}\""));
        caches::print_at_exit();
        return OK;
    }
    log::say(format_args!(
        "the cache \"{name_text}\" is not as it should be, and is not used"
    ));
    // SAFETY: It was made just now, nobody uses it, and UCX can do without it.
    unsafe { (ucx.destroy)(new) };
    UNSUPPORTED
}

/// Whether a cache with these parameters may be taken over, and what is in them.
///
/// # Safety
///
/// `params` points to a `ucs_rcache_params_t`.
unsafe fn may_take(
    ucx: &Ucx,
    params: *const usize,
) -> Result<(&'static Layout, Params, Ops), String> {
    let Some((major, minor, release)) = ucx.version() else {
        return Err("nobody tells the version of UCX".into());
    };
    let Some(layout) = Layout::of(major, minor) else {
        return Err(format!("UCX {major}.{minor}.{release} is not known"));
    };
    // SAFETY: The caller vouches for it.
    let Some((params, ops)) = (unsafe { layout.read(params) }) else {
        return Err(format!("it is not one of UCX {major}.{minor}.{release}"));
    };
    if layout.events(&params) & VM_UNMAPPED == 0 {
        return Err("it does not depend on mappings".into());
    }
    match caches::open() {
        Ok(()) => Ok((layout, params, ops)),
        Err(error) => Err(format!("cannot open {}: {error}", ummunotify::PATH)),
    }
}

/// # Safety
///
/// `name` is a C string or null.
unsafe fn name_of(name: *const c_char) -> String {
    if name.is_null() {
        return String::new();
    }
    // SAFETY: The caller vouches for it.
    unsafe { CStr::from_ptr(name) }
        .to_string_lossy()
        .into_owned()
}

/// Called in place of UCX's function of that name, whenever a cache goes.
///
/// # Safety
///
/// As for UCX's own, which is called with the same.
#[no_mangle]
pub unsafe extern "C" fn ucs_rcache_destroy(cache: *mut c_void) {
    if let Some(ucx) = Ucx::get() {
        // SAFETY: The caller vouches for it.
        unsafe { (ucx.destroy)(cache) };
        caches::remove(cache);
    }
}

/// Called in place of UCX's function of that name, unless [`ucs_pgtable_lookup`] was enough.
///
/// The number of arguments depends on the version. The last one is a word of the caller's stack, at
/// worst, and passed on as it is.
///
/// # Safety
///
/// As for UCX's own, which is called with the same.
#[no_mangle]
pub unsafe extern "C" fn ucs_rcache_get(
    cache: *mut c_void,
    address: *mut c_void,
    length: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
) -> Status {
    let Some(ucx) = Ucx::get() else {
        return UNSUPPORTED;
    };
    caches::catch_up(ucx, cache);
    // SAFETY: The caller vouches for it.
    unsafe { (ucx.get)(cache, address, length, a, b, c, d) }
}

/// Called in place of UCX's function of that name, whenever something is looked up in a cache, among
/// others. Where it finds nothing, UCX looks again in a safer way.
///
/// # Safety
///
/// As for UCX's own, which is called with the same.
#[no_mangle]
pub unsafe extern "C" fn ucs_pgtable_lookup(table: *const c_void, address: usize) -> *mut c_void {
    let Some(ucx) = Ucx::get() else {
        return ptr::null_mut();
    };
    if caches::catch_up(ucx, table) {
        return ptr::null_mut();
    }
    // SAFETY: The caller vouches for it.
    unsafe { (ucx.lookup)(table, address) }
}
