// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! The part of libfabric's binary interface that a memory monitor needs, as of version 1.13; it has
//! not changed since.

use std::{
    ffi::{
        c_char,
        c_int,
        c_void, //
    },
    mem::offset_of, //
};

/// `FI_VERSION(1, 13)`: the version that asks for nothing newer.
pub const VERSION: u32 = (1 << 16) | 13;

/// `FI_CLASS_MEM_MONITOR`.
pub const CLASS_MEM_MONITOR: usize = 23;

/// `struct fi_ops`: what can be done with any object.
#[repr(C)]
pub struct FiOps {
    /// Bytes of the structure.
    pub size: usize,
    /// Ends the object.
    pub close: Option<unsafe extern "C" fn(*mut Fid) -> c_int>,
    /// Ties another object to it.
    pub bind: Option<unsafe extern "C" fn(*mut Fid, *mut Fid, u64) -> c_int>,
}

/// `struct fid`: what each object starts with.
#[repr(C)]
pub struct Fid {
    /// One of `FI_CLASS_*`.
    pub class: usize,
    /// Belongs to libfabric once the monitor is imported.
    pub context: *mut c_void,
    /// Likewise.
    pub ops: *const FiOps,
}

/// `struct fi_ops_mem_monitor`: what libfabric calls. Errors are negative.
#[repr(C)]
pub struct ExportOps {
    /// Bytes of the structure.
    pub size: usize,
    /// Before anything is subscribed to.
    pub start: unsafe extern "C" fn(*mut MemMonitor) -> c_int,
    /// When nothing is any more.
    pub stop: unsafe extern "C" fn(*mut MemMonitor),
    /// Something was pinned. With an error it is not cached, but unsubscribed from all the same.
    pub subscribe: unsafe extern "C" fn(*mut MemMonitor, *const c_void, usize) -> c_int,
    /// What was subscribed to leaves the cache.
    pub unsubscribe: unsafe extern "C" fn(*mut MemMonitor, *const c_void, usize),
    /// Whether what was subscribed to may be used.
    pub valid: unsafe extern "C" fn(*mut MemMonitor, *const c_void, usize) -> bool,
}

/// `struct fi_ops_mem_notify`: what libfabric offers.
#[repr(C)]
pub struct ImportOps {
    /// Bytes of the structure.
    pub size: usize,
    /// Has libfabric drop all that overlaps the range.
    pub notify: Option<unsafe extern "C" fn(*mut MemMonitor, *const c_void, usize)>,
}

/// `struct fid_mem_monitor`.
#[repr(C)]
pub struct MemMonitor {
    /// The object.
    pub fid: Fid,
    /// What libfabric calls.
    pub export_ops: *const ExportOps,
    /// What it offers, once the monitor is imported.
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

/// `ofi_monitor_import`, which is libfabric's own, and visible only in providers that carry a copy
/// of its cache.
pub type MonitorImport = unsafe extern "C" fn(*mut Fid) -> c_int;

const _: () = {
    const WORD: usize = size_of::<usize>();
    assert!(size_of::<Fid>() == 3 * WORD && offset_of!(Fid, ops) == 2 * WORD);
    assert!(size_of::<ExportOps>() == 6 * WORD && size_of::<ImportOps>() == 2 * WORD);
    assert!(size_of::<MemMonitor>() == 5 * WORD);
    assert!(offset_of!(FiOps, bind) == 2 * WORD);
};
