// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! `libummunotify-ucx.so`, for `LD_PRELOAD`: makes UCX use `/dev/ummunotify` to find out about
//! changed mappings.
//!
//! UCX keeps memory registered with network adapters. To find out what is unmapped, it overwrites
//! the first instructions of `munmap` and others. That misses bare system calls, and changes that
//! other processes make to mapped files. UCX has no interface for another source of events, but its
//! libraries call each other through symbols that a preloaded library can override.
//!
//! UCX overwrites functions of libc when it is loaded, before there is a cache, and still does so
//! with this library. But the caches do not depend on it. This library takes over the caches of UCX
//! versions whose structures it knows ([`ucx::Layout`]). It leaves other versions alone, and does
//! nothing if the device does not exist or may not be opened. With `UMMUNOTIFY_LOG=1` it logs to
//! standard error what it does, and counts at the end; otherwise it prints nothing.
//!
//! - [`caches`]: decides which registrations are valid. This is the file to read.
//! - [`ucx`]: UCX's functions and structures.
//! - [`log`]: the log.
//!
//! Processes with two copies of UCX are not supported: the library knows only the first one.

mod caches;
#[path = "../../log.rs"]
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

use crate::{
    log::say,
    ucx::{
        Layout,
        Ops,
        Params,
        Status,
        Ucx,
        OK,
        UNSUPPORTED,
        VM_UNMAPPED, //
    },
};

/// Replaces UCX's function of this name, which creates a cache.
///
/// # Safety
///
/// As for UCX's own function, which is called with nearly the same arguments.
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
    // SAFETY: The caller passes valid parameters and a valid name.
    let (taken, name_text) = unsafe { (may_take(ucx, params), name_of(name)) };
    let (layout, own_params, ops) = match taken {
        Ok(taken) => taken,
        Err(why) => {
            say!("did not take over the cache \"{name_text}\": {why}");
            // SAFETY: These are the caller's arguments.
            return unsafe { (ucx.create)(params, name, statistics, cache) };
        }
    };
    let mut new_params = own_params;
    if let Some(word) = new_params.get_mut(layout.ops) {
        *word = caches::functions(&ops) as usize;
    }
    if caches::ignores_forks() && ucx.parent_keeps_pages() {
        layout.keep_on_fork(&mut new_params);
    }
    // SAFETY: The parameters are the caller's, except for the functions, which are never freed. UCX
    // writes the cache to the caller's variable.
    let status = unsafe {
        (ucx.set_external_event)(VM_UNMAPPED);
        let status = (ucx.create)(new_params.as_ptr(), name, statistics, cache);
        (ucx.unset_external_event)(VM_UNMAPPED);
        status
    };
    if status != OK {
        return status;
    }
    // SAFETY: It was just written.
    let new = unsafe { *cache };
    // SAFETY: The cache begins with a copy of the parameters.
    let copy = unsafe { slice::from_raw_parts(new.cast::<usize>(), layout.ops + 2) };
    let is_as_known = copy.iter().eq(new_params.iter().take(layout.ops + 2));
    if is_as_known && caches::add(new, &ops) {
        say!("took over the cache \"{name_text}\"");
        caches::print_at_exit();
        return OK;
    }
    say!("the cache \"{name_text}\" has an unexpected layout and is not used");
    // SAFETY: It was just created, nobody uses it, and UCX works without it.
    unsafe { (ucx.destroy)(new) };
    UNSUPPORTED
}

/// Whether a cache with these parameters may be taken over; returns the parameters and functions.
///
/// # Safety
///
/// `params` points to a `ucs_rcache_params_t`.
unsafe fn may_take(
    ucx: &Ucx,
    params: *const usize,
) -> Result<(&'static Layout, Params, Ops), String> {
    let Some((major, minor, release)) = ucx.version() else {
        return Err("the version of UCX is unknown".into());
    };
    let Some(layout) = Layout::of(major, minor) else {
        return Err(format!("UCX {major}.{minor}.{release} is not supported"));
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

/// Replaces UCX's function of this name, which destroys a cache.
///
/// # Safety
///
/// As for UCX's own function, which is called with the same argument.
#[no_mangle]
pub unsafe extern "C" fn ucs_rcache_destroy(cache: *mut c_void) {
    if let Some(ucx) = Ucx::get() {
        // SAFETY: The caller vouches for it.
        unsafe { (ucx.destroy)(cache) };
        caches::remove(cache);
    }
}

/// Replaces UCX's function of this name, for versions that do not use [`ucs_pgtable_lookup`] alone.
///
/// The number of arguments depends on the version. The last one may be a word of the caller's
/// stack, which is passed on unchanged.
///
/// # Safety
///
/// As for UCX's own function, which is called with the same arguments.
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

/// Replaces UCX's function of this name, which is used for look-ups in caches, among others. If it
/// finds nothing, UCX looks up again with its lock held.
///
/// # Safety
///
/// As for UCX's own function, which is called with the same arguments.
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
