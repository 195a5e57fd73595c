// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! The part of libfabric's binary interface that a memory monitor needs. It has not changed since
//! version 1.13.

use std::{
    ffi::{
        c_char,
        c_int,
        c_void, //
    },
    mem::offset_of, //
};

/// `FI_VERSION(1, 13)`: the oldest version with everything that is needed.
pub const VERSION: u32 = (1 << 16) | 13;

/// `FI_CLASS_MEM_MONITOR`.
pub const CLASS_MEM_MONITOR: usize = 23;

/// `struct fi_ops`: the operations of any object.
#[repr(C)]
pub struct FiOps {
    /// Size of the structure in bytes.
    pub size: usize,
    /// Closes the object.
    pub close: Option<unsafe extern "C" fn(*mut Fid) -> c_int>,
    /// Binds another object to it.
    pub bind: Option<unsafe extern "C" fn(*mut Fid, *mut Fid, u64) -> c_int>,
}

/// `struct fid`: the start of every object.
#[repr(C)]
pub struct Fid {
    /// One of `FI_CLASS_*`.
    pub class: usize,
    /// Owned by libfabric once the monitor is imported.
    pub context: *mut c_void,
    /// Likewise.
    pub ops: *const FiOps,
}

/// `struct fi_ops_mem_monitor`: the functions that libfabric calls. Errors are negative.
#[repr(C)]
pub struct ExportOps {
    /// Size of the structure in bytes.
    pub size: usize,
    /// Called before the first subscription.
    pub start: unsafe extern "C" fn(*mut MemMonitor) -> c_int,
    /// Called after the last subscription has ended.
    pub stop: unsafe extern "C" fn(*mut MemMonitor),
    /// Called after memory was pinned. On error the memory is not cached, but `unsubscribe` is
    /// still called.
    pub subscribe: unsafe extern "C" fn(*mut MemMonitor, *const c_void, usize) -> c_int,
    /// Called when subscribed memory leaves the cache.
    pub unsubscribe: unsafe extern "C" fn(*mut MemMonitor, *const c_void, usize),
    /// Returns whether subscribed memory may be used.
    pub valid: unsafe extern "C" fn(*mut MemMonitor, *const c_void, usize) -> bool,
}

/// `struct fi_ops_mem_notify`: the functions that libfabric provides.
#[repr(C)]
pub struct ImportOps {
    /// Size of the structure in bytes.
    pub size: usize,
    /// Makes libfabric drop everything that overlaps the range.
    pub notify: Option<unsafe extern "C" fn(*mut MemMonitor, *const c_void, usize)>,
}

/// `struct fid_mem_monitor`.
#[repr(C)]
pub struct MemMonitor {
    /// The object.
    pub fid: Fid,
    /// The functions that libfabric calls.
    pub export_ops: *const ExportOps,
    /// The functions that it provides, once the monitor is imported.
    pub import_ops: *const ImportOps,
}

/// `fi_open`: opens an object by name.
pub type FiOpen = unsafe extern "C" fn(
    version: u32,
    name: *const c_char,
    attr: *mut c_void,
    attr_len: usize,
    flags: u64,
    fid: *mut *mut Fid,
    context: *mut c_void,
) -> c_int;

/// `ofi_monitor_import`: internal to libfabric, and visible only in providers that have their own
/// copy of its cache.
pub type MonitorImport = unsafe extern "C" fn(*mut Fid) -> c_int;

const _: () = {
    const WORD: usize = size_of::<usize>();
    assert!(size_of::<Fid>() == 3 * WORD && offset_of!(Fid, ops) == 2 * WORD);
    assert!(size_of::<ExportOps>() == 6 * WORD && size_of::<ImportOps>() == 2 * WORD);
    assert!(size_of::<MemMonitor>() == 5 * WORD);
    assert!(offset_of!(FiOps, bind) == 2 * WORD);
};
