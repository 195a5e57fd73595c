// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! `libummunotify-ucx.so`, for `LD_PRELOAD`: makes UCX use `/dev/ummunotify` to find out about
//! changed mappings.
//!
//! UCX keeps memory registered with network adapters. To find out what is unmapped, it overwrites
//! the first instructions of `munmap` and others. That misses bare system calls, and changes that
//! other processes make to mapped files. UCX has no interface for another source of events, but its
//! libraries call each other through symbols that a preloaded library can override.
//!
//! This library takes over the caches of UCX versions whose structures it knows ([`ucx::Layout`]). It
//! leaves other versions alone, and does nothing if the device does not exist or may not be opened.
//! With `UMMUNOTIFY_LOG=1` it logs to standard error what it does, and counts at the end; otherwise it
//! prints nothing.
//!
//! UCX overwrites functions of libc as soon as it is loaded, before there is a cache. So this library
//! must decide at that time whether it will take over caches. If so, it changes UCX's option for the
//! way to notice changes, unless the user has set it. Caches that are not taken over after all then
//! make UCX change the tables through which libraries call libc, which is its other way.
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
        Events,
        GlobalOptions,
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

/// Replaces UCX's function of this name, which receives UCX's options when it is loaded.
///
/// # Safety
///
/// As for UCX's own function, which is called with the same argument. No other thread uses the
/// options, and they can be written to, as is the case when UCX itself calls this.
#[no_mangle]
pub unsafe extern "C" fn ucm_set_global_opts(options: *mut GlobalOptions) {
    let Some((ucx, own)) = Ucx::get().and_then(|it| Some((it, it.set_global_opts?))) else {
        return;
    };
    let is_default = std::env::var_os("UCX_MEM_MMAP_HOOK_MODE").is_none();
    if is_default && layout_of(ucx).is_ok() && caches::can_open() {
        // SAFETY: The caller vouches for it, and all known layouts begin like this.
        if unsafe { options.as_mut() }.is_some_and(GlobalOptions::keep_text) {
            say!("UCX does not overwrite functions");
        }
    }
    // SAFETY: The caller vouches for it.
    unsafe { own(options) }
}

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
    let Some((ucx, create)) = Ucx::get().and_then(|it| Some((it, it.create?))) else {
        return UNSUPPORTED;
    };
    // SAFETY: The caller passes valid parameters and a valid name.
    let (taken, name_text) = unsafe { (may_take(ucx, params), name_of(name)) };
    let Taken {
        layout,
        params: own_params,
        ops,
        events,
        destroy,
    } = match taken {
        Ok(taken) => taken,
        Err(why) => {
            say!("did not take over the cache \"{name_text}\": {why}");
            // SAFETY: These are the caller's arguments.
            return unsafe { create(params, name, statistics, cache) };
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
        (events.set_external)(VM_UNMAPPED);
        let status = create(new_params.as_ptr(), name, statistics, cache);
        (events.unset_external)(VM_UNMAPPED);
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
    unsafe { destroy(new) };
    UNSUPPORTED
}

/// The layout of the version that is loaded.
fn layout_of(ucx: &Ucx) -> Result<&'static Layout, String> {
    let Some((major, minor, release)) = ucx.version() else {
        return Err("the version of UCX is unknown".into());
    };
    Layout::of(major, minor).ok_or(format!("UCX {major}.{minor}.{release} is not supported"))
}

/// What it takes to take over a cache.
struct Taken<'a> {
    layout: &'static Layout,
    params: Params,
    ops: Ops,
    events: &'a Events,
    destroy: unsafe extern "C" fn(*mut c_void),
}

/// Whether a cache with these parameters may be taken over.
///
/// # Safety
///
/// `params` points to a `ucs_rcache_params_t`.
unsafe fn may_take(ucx: &Ucx, params: *const usize) -> Result<Taken<'_>, String> {
    let layout = layout_of(ucx)?;
    let (Some(events), Some(destroy)) = (&ucx.events, ucx.destroy) else {
        return Err("UCX lacks a function".into());
    };
    // SAFETY: The caller vouches for it.
    let Some((params, ops)) = (unsafe { layout.read(params) }) else {
        return Err("its parameters are not as expected".into());
    };
    if layout.events(&params) & VM_UNMAPPED == 0 {
        return Err("it does not depend on mappings".into());
    }
    match caches::open() {
        Ok(()) => Ok(Taken {
            layout,
            params,
            ops,
            events,
            destroy,
        }),
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
    if let Some(destroy) = Ucx::get().and_then(|it| it.destroy) {
        // SAFETY: The caller vouches for it.
        unsafe { destroy(cache) };
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
    let Some((ucx, get)) = Ucx::get().and_then(|it| Some((it, it.get?))) else {
        return UNSUPPORTED;
    };
    caches::catch_up(ucx, cache);
    // SAFETY: The caller vouches for it.
    unsafe { get(cache, address, length, a, b, c, d) }
}

/// Replaces UCX's function of this name, which is used for look-ups in caches, among others. If it
/// finds nothing, UCX looks up again with its lock held.
///
/// # Safety
///
/// As for UCX's own function, which is called with the same arguments.
#[no_mangle]
pub unsafe extern "C" fn ucs_pgtable_lookup(table: *const c_void, address: usize) -> *mut c_void {
    let Some((ucx, lookup)) = Ucx::get().and_then(|it| Some((it, it.lookup?))) else {
        return ptr::null_mut();
    };
    if caches::catch_up(ucx, table) {
        return ptr::null_mut();
    }
    // SAFETY: The caller vouches for it.
    unsafe { lookup(table, address) }
}
