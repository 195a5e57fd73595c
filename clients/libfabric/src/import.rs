// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! Finds libfabric in the process, and makes it use the monitor.
//!
//! This library is not linked to libfabric, since that would load a copy that the program does not
//! use: some MPI libraries bring one of their own, under another name. Any loaded library that has
//! `fi_open` is a libfabric. Its providers may be libraries that each have a copy of the cache.

use std::{
    cell::UnsafeCell,
    ffi::{
        c_int,
        c_void,
        CStr,
        CString, //
    },
    io, mem,
    ops::Range,
    process, ptr,
    sync::{
        atomic::{
            AtomicBool,
            AtomicU32,
            Ordering, //
        },
        Mutex,
        Once, //
    },
};

use ummunotify::Watcher;

use crate::{
    abi::{
        self,
        FiOpen,
        Fid,
        MemMonitor,
        MonitorImport, //
    },
    counts::COUNTS,
    log::say,
    monitor, //
};

/// A monitor for one copy of libfabric's cache.
struct Monitor {
    /// libfabric writes to it during the import, and only reads it afterwards.
    fid: UnsafeCell<MemMonitor>,
    imported: AtomicBool,
}

// SAFETY: Before the import it belongs to the thread that holds `LOADED`, afterwards to libfabric.
unsafe impl Sync for Monitor {}

impl Monitor {
    const fn new() -> Self {
        Self {
            fid: UnsafeCell::new(MemMonitor {
                fid: Fid {
                    class: abi::CLASS_MEM_MONITOR,
                    context: ptr::null_mut(),
                    ops: ptr::null(),
                },
                export_ops: &monitor::EXPORT_OPS,
                import_ops: ptr::null(),
            }),
            imported: AtomicBool::new(false),
        }
    }
}

/// Enough for libfabric and those of its providers that have a cache.
static MONITORS: [Monitor; 8] = [const { Monitor::new() }; 8];

/// The libraries that have a monitor or do not accept one.
static LOADED: Mutex<Vec<CString>> = Mutex::new(Vec::new());

/// Makes each loaded libfabric use the monitor, if the device can be opened.
pub fn import() {
    // Another thread is doing this already.
    let Ok(mut known) = LOADED.try_lock() else {
        return;
    };
    let mut device_is_there = false;
    let loaded = loaded();
    for name in &loaded {
        if known.contains(name) {
            continue;
        }
        let Some(copy) = Copy::find(name, &loaded) else {
            continue;
        };
        if !device_is_there {
            if let Err(error) = may_be_used() {
                static ONCE: Once = Once::new();
                ONCE.call_once(|| say!("{error}; libfabric keeps its own memory monitor"));
                return;
            }
            device_is_there = true;
        }
        let Some(monitor) = MONITORS
            .iter()
            .find(|it| !it.imported.load(Ordering::Relaxed))
        else {
            return;
        };
        match copy.import(monitor.fid.get().cast()) {
            0 => {
                monitor.imported.store(true, Ordering::Release);
                at_exit();
                say!("{} uses {}", name.to_string_lossy(), ummunotify::PATH);
            }
            error => say!(
                "{} does not accept a memory monitor: {}",
                name.to_string_lossy(),
                io::Error::from_raw_os_error(-error)
            ),
        }
        known.push(name.clone());
    }
}

/// Makes libfabric drop whatever overlaps a range. Must not be called from libfabric's callbacks.
pub fn notify(range: &Range<u64>) {
    for monitor in &MONITORS {
        if !monitor.imported.load(Ordering::Acquire) {
            continue;
        }
        let fid = monitor.fid.get();
        // SAFETY: It was imported, and libfabric does not change it after that.
        let notify = unsafe { (*fid).import_ops.as_ref() }.and_then(|ops| ops.notify);
        if let Some(notify) = notify {
            let length = (range.end - range.start).max(1);
            // SAFETY: This is the intended use, from a thread that holds no lock.
            unsafe { notify(fid, range.start as *const c_void, length as usize) };
        }
    }
}

/// Whether the monitor may be used.
fn may_be_used() -> io::Result<()> {
    if std::env::var_os("FI_MR_CACHE_MONITOR").is_some_and(|value| value == "disabled") {
        return Err(io::Error::other("FI_MR_CACHE_MONITOR=disabled"));
    }
    match Watcher::open() {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::other(format!(
            "cannot open {}: {error}",
            ummunotify::PATH
        ))),
    }
}

/// A copy of libfabric's cache, and how to import a monitor into it.
enum Copy {
    /// By the public interface.
    Public(FiOpen),
    /// In a provider.
    Private(MonitorImport),
}

impl Copy {
    /// Finds a copy in one of the loaded libraries, which stays loaded from then on.
    fn find(name: &CStr, loaded: &[CString]) -> Option<Self> {
        // The program itself has no name.
        let path = if name.is_empty() {
            ptr::null()
        } else {
            name.as_ptr()
        };
        // SAFETY: The name is a C string, or null for the program.
        let handle = unsafe { libc::dlopen(path, libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
        if handle.is_null() {
            return None;
        }
        let copy = if let Some(symbol) = own_symbol(handle, name, loaded, c"fi_open") {
            // SAFETY: The function of this name has this type.
            Some(Self::Public(unsafe {
                mem::transmute::<*mut c_void, FiOpen>(symbol)
            }))
        } else {
            own_symbol(handle, name, loaded, c"ofi_monitor_import").map(|symbol| {
                // SAFETY: As above.
                Self::Private(unsafe { mem::transmute::<*mut c_void, MonitorImport>(symbol) })
            })
        };
        if copy.is_none() {
            // SAFETY: It was opened above.
            unsafe { libc::dlclose(handle) };
        }
        copy
    }

    /// Imports the monitor; returns 0, or a negative error.
    fn import(&self, monitor: *mut Fid) -> c_int {
        let open = match self {
            // SAFETY: The monitor is a valid one, and lives for ever.
            Self::Private(import) => return unsafe { import(monitor) },
            Self::Public(open) => open,
        };
        let mut cache: *mut Fid = ptr::null_mut();
        // SAFETY: The arguments are as the function requires.
        let error = unsafe {
            open(
                abi::VERSION,
                c"mr_cache".as_ptr(),
                ptr::null_mut(),
                0,
                0,
                &mut cache,
                ptr::null_mut(),
            )
        };
        if error != 0 {
            return error;
        }
        // SAFETY: libfabric has made the object, and both functions are called as intended. The
        // monitor is valid and never freed.
        unsafe {
            let Some(ops) = cache.as_ref().and_then(|cache| cache.ops.as_ref()) else {
                return -libc::ENOSYS;
            };
            let result = ops
                .bind
                .map_or(-libc::ENOSYS, |bind| bind(cache, monitor, 0));
            ops.close.map(|close| close(cache));
            result
        }
    }
}

/// Finds a symbol of a library itself, not of one that it is linked to.
fn own_symbol(
    handle: *mut c_void,
    library: &CStr,
    loaded: &[CString],
    name: &CStr,
) -> Option<*mut c_void> {
    // SAFETY: The handle is open, and the name a C string.
    let symbol = unsafe { libc::dlsym(handle, name.as_ptr()) };
    if symbol.is_null() {
        return None;
    }
    let mut info = mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: The first call fills the structure, for which zeroes are valid, too. The name in it
    // is a C string or null.
    let owner = unsafe {
        libc::dladdr(symbol, info.as_mut_ptr());
        let info = info.assume_init();
        (!info.dli_fname.is_null()).then(|| CStr::from_ptr(info.dli_fname))
    };
    let is_own = if library.is_empty() {
        // The name of the program itself depends on how it was started.
        !loaded.iter().any(|it| owner == Some(it))
    } else {
        owner == Some(library)
    };
    is_own.then_some(symbol)
}

/// The names of the loaded objects. That of the program itself is empty.
fn loaded() -> Vec<CString> {
    unsafe extern "C" fn add(
        info: *mut libc::dl_phdr_info,
        _: libc::size_t,
        names: *mut c_void,
    ) -> c_int {
        // SAFETY: `names` is the vector passed below, and the caller passes a valid `info`.
        let (names, name) = unsafe { (&mut *names.cast::<Vec<CString>>(), (*info).dlpi_name) };
        if !name.is_null() {
            // SAFETY: It is a C string.
            names.push(unsafe { CStr::from_ptr(name) }.to_owned());
        }
        0
    }
    let mut names = Vec::new();
    // SAFETY: `add` expects the vector that is passed to it.
    unsafe { libc::dl_iterate_phdr(Some(add), (&raw mut names).cast()) };
    names
}

/// At exit, prints the counts and detaches from libfabric.
fn at_exit() {
    static ONCE: Once = Once::new();
    static PROCESS: AtomicU32 = AtomicU32::new(0);

    extern "C" fn end() {
        if PROCESS.load(Ordering::Relaxed) != process::id() {
            return;
        }
        COUNTS.print();
        if !monitor::end() {
            // A domain is still open; it is closed later or not at all.
            return;
        }
        for monitor in &MONITORS {
            if monitor.imported.swap(false, Ordering::AcqRel) {
                let fid = monitor.fid.get().cast::<Fid>();
                // SAFETY: It was imported, so these are libfabric's own functions.
                unsafe {
                    (*fid)
                        .ops
                        .as_ref()
                        .and_then(|ops| ops.close)
                        .map(|close| close(fid))
                };
            }
        }
    }
    ONCE.call_once(|| {
        PROCESS.store(process::id(), Ordering::Relaxed);
        // SAFETY: The function may be called at any time, and the library stays loaded.
        unsafe { libc::atexit(end) };
    });
}
