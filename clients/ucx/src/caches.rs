// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! The caches that were taken over, and how they learn what has changed.
//!
//! - What a cache registers with an adapter is watched first.
//! - Before each look-up the counter is compared with what it was when *this thread* last looked.
//!   If it has moved, everything that changed is told to UCX, and the look-up finds nothing, so that
//!   UCX looks again, with its lock held, after it has dropped that. It is not enough that another
//!   thread has told UCX: a look-up may have seen before that that there is nothing to drop.
//! - Memory that cannot be watched, for which there are limits, is dropped before each look-up.

use std::{
    cell::Cell,
    ffi::c_void,
    io,
    ops::Range,
    process, ptr,
    sync::{
        atomic::{
            AtomicBool,
            AtomicUsize,
            Ordering, //
        },
        Mutex,
        MutexGuard,
        OnceLock,
        PoisonError, //
    },
};

use ummunotify::{
    Checker,
    Counter,
    Watcher, //
};

use crate::{
    log::{
        self,
        Count, //
    },
    ucx::{
        MemDereg,
        MemReg,
        Ops,
        Region,
        Status,
        Ucx,
        OK,
        UNSUPPORTED, //
    },
};

/// A cache that was taken over. Free entries have the address 0.
struct Cache {
    start: AtomicUsize,
    end: AtomicUsize,
    mem_reg: AtomicUsize,
    mem_dereg: AtomicUsize,
}

/// UCX has one for each device or context.
static CACHES: [Cache; 64] = [const {
    Cache {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        mem_reg: AtomicUsize::new(0),
        mem_dereg: AtomicUsize::new(0),
    }
}; 64];

/// The one that an address is in.
fn find(address: *const c_void) -> Option<&'static Cache> {
    CACHES.iter().find(|it| {
        let start = it.start.load(Ordering::Acquire);
        start != 0 && (start..it.end.load(Ordering::Relaxed)).contains(&(address as usize))
    })
}

/// Makes a cache known, whose own functions are `ops`. Returns whether there is room.
pub fn add(cache: *mut c_void, ops: &Ops) -> bool {
    // SAFETY: UCX has allocated it; that says how long it is, whatever the version.
    let length = unsafe { libc::malloc_usable_size(cache) };
    let start = cache as usize;
    let guard = lock();
    let free = CACHES
        .iter()
        .find(|it| it.start.load(Ordering::Relaxed) == 0);
    let [mem_reg, mem_dereg, ..] = ops;
    let Some(free) = free else {
        return false;
    };
    free.end.store(start + length, Ordering::Relaxed);
    free.mem_reg.store(*mem_reg, Ordering::Relaxed);
    free.mem_dereg.store(*mem_dereg, Ordering::Relaxed);
    free.start.store(start, Ordering::Release);
    drop(guard);
    true
}

/// Forgets a cache that is gone.
pub fn remove(cache: *mut c_void) {
    if let Some(known) = find(cache) {
        known.start.store(0, Ordering::Release);
    }
}

/// What all caches share.
struct Shared {
    process: u32,
    checker: Checker,
    counter: Counter,
    reader: Mutex<Reader>,
    /// There is something that is dropped before each look-up.
    unwatched: AtomicBool,
}

struct Reader {
    watcher: Watcher,
    /// By cookie.
    unwatched: Vec<(u64, Range<u64>)>,
    /// The device failed, and what changes is not known any more.
    failed: bool,
}

static SHARED: OnceLock<io::Result<Shared>> = OnceLock::new();

/// Serializes who adds a cache.
fn lock() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the device, once.
pub fn open() -> Result<(), &'static io::Error> {
    SHARED
        .get_or_init(|| {
            let watcher = Watcher::open()?;
            Ok(Shared {
                process: process::id(),
                checker: watcher.checker(),
                counter: watcher.device().map_counter()?,
                reader: Mutex::new(Reader {
                    watcher,
                    unwatched: Vec::new(),
                    failed: false,
                }),
                unwatched: AtomicBool::new(false),
            })
        })
        .as_ref()
        .map(drop)
}

#[inline]
fn shared() -> Option<&'static Shared> {
    SHARED.get()?.as_ref().ok()
}

thread_local! {
    /// The counter when this thread last looked.
    static SEEN: Cell<u64> = const { Cell::new(0) };
}

static LOOK_UPS: Count = Count::new();
static CHANGES: Count = Count::new();
static REGISTRATIONS: Count = Count::new();
static UNWATCHED: Count = Count::new();

/// To be called before something is looked up in what is at `address`. Returns whether it may have
/// been dropped, if it is a cache that was taken over.
#[inline]
pub fn catch_up(ucx: &Ucx, address: *const c_void) -> bool {
    let Some(shared) = shared() else {
        return false;
    };
    LOOK_UPS.one_more();
    let now = shared.counter.get();
    if SEEN.get() == now && !shared.checker.changed() && !shared.unwatched.load(Ordering::Relaxed) {
        return false;
    }
    find(address).is_some_and(|_| shared.drop_changed(ucx))
}

impl Shared {
    #[cold]
    fn drop_changed(&self, ucx: &Ucx) -> bool {
        // SAFETY: UCX takes any range.
        let tell = |range: &Range<u64>| unsafe {
            let length = range.end.saturating_sub(range.start).max(1);
            (ucx.vm_munmap)(range.start as *mut c_void, length as usize);
        };
        // In a forked child somebody who is not there may hold the lock.
        if process::id() != self.process {
            tell(&(0..u64::MAX));
            return true;
        }
        let now = self.counter.get();
        let mut reader = self.reader();
        // With the lock held, so that whoever finds nothing to tell knows that it was told.
        loop {
            match reader.watcher.next_change() {
                Ok(Some(change)) => {
                    CHANGES.one_more();
                    tell(&change.addresses());
                }
                Ok(None) => break,
                Err(error) => {
                    reader.fail(&error);
                    break;
                }
            }
        }
        for (_, range) in &reader.unwatched {
            tell(range);
        }
        if reader.failed {
            tell(&(0..u64::MAX));
        }
        SEEN.set(now);
        true
    }

    fn reader(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, range: Range<u64>, cookie: u64) {
        let mut reader = self.reader();
        if let Err(error) = reader.watcher.watch(range.clone(), cookie) {
            if UNWATCHED.get() == 0 {
                log::say(format_args!(
                    "{range:#x?} and perhaps more cannot be watched, and is not cached: {error}"
                ));
            }
            UNWATCHED.one_more();
            reader.unwatched.push((cookie, range));
            self.unwatched.store(true, Ordering::Relaxed);
        }
    }

    fn unwatch(&self, cookie: u64) {
        let mut reader = self.reader();
        let position = reader.unwatched.iter().position(|(it, _)| *it == cookie);
        if let Some(position) = position {
            reader.unwatched.swap_remove(position);
            let any = reader.failed || !reader.unwatched.is_empty();
            self.unwatched.store(any, Ordering::Relaxed);
        } else if let Err(error) = reader.watcher.unwatch(cookie) {
            reader.fail(&error);
        }
        if reader.failed {
            self.unwatched.store(true, Ordering::Relaxed);
        }
    }
}

impl Reader {
    fn fail(&mut self, error: &io::Error) {
        if !self.failed {
            log::say(format_args!(
                "{} fails, and nothing is cached any more: {error}",
                ummunotify::PATH
            ));
        }
        self.failed = true;
    }
}

/// Takes the place of a cache's own `mem_reg`.
///
/// # Safety
///
/// To be called by UCX only.
pub unsafe extern "C" fn mem_reg(
    context: *mut c_void,
    cache: *mut c_void,
    argument: *mut c_void,
    region: *const Region,
    flags: u16,
) -> Status {
    let Some((known, shared)) = find(cache).zip(shared()) else {
        return UNSUPPORTED;
    };
    // SAFETY: UCX says what is to be registered.
    let range = unsafe { (*region).start..(*region).end };
    let cookie = region as u64;
    let is_parent = process::id() == shared.process;
    if is_parent {
        shared.watch(range, cookie);
    }
    REGISTRATIONS.one_more();
    // SAFETY: It is what UCX would have called, with what it has given.
    let status = unsafe {
        let own: Option<MemReg> =
            std::mem::transmute(known.mem_reg.load(Ordering::Relaxed) as *const c_void);
        own.map_or(UNSUPPORTED, |own| {
            own(context, cache, argument, region, flags)
        })
    };
    if status != OK && is_parent {
        shared.unwatch(cookie);
    }
    status
}

/// Takes the place of a cache's own `mem_dereg`.
///
/// # Safety
///
/// To be called by UCX only.
pub unsafe extern "C" fn mem_dereg(
    context: *mut c_void,
    cache: *mut c_void,
    region: *const Region,
) {
    let Some((known, shared)) = find(cache).zip(shared()) else {
        return;
    };
    // SAFETY: As for `mem_reg`.
    unsafe {
        let own: Option<MemDereg> =
            std::mem::transmute(known.mem_dereg.load(Ordering::Relaxed) as *const c_void);
        if let Some(own) = own {
            own(context, cache, region);
        }
    }
    if process::id() == shared.process {
        shared.unwatch(region as u64);
    }
}

/// Has the counts printed when the process ends, if they are wanted.
pub fn print_at_exit() {
    extern "C" fn print() {
        if shared().is_some_and(|it| it.process == process::id()) {
            log::say(format_args!(
                "{} look-ups, {} changes, {} registrations, {} of memory that could not be watched",
                LOOK_UPS.get(),
                CHANGES.get(),
                REGISTRATIONS.get(),
                UNWATCHED.get()
            ));
        }
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    if log::is_on() {
        ONCE.call_once(|| {
            // SAFETY: The function may be called at any time, and the library stays loaded.
            unsafe { libc::atexit(print) };
        });
    }
}

/// The functions for a cache whose own are `ops`. They live as long as the process, since UCX
/// keeps the address.
pub fn functions(ops: &Ops) -> *const usize {
    let mut functions = *ops;
    let [reg, dereg, ..] = &mut functions;
    *reg = mem_reg as usize;
    *dereg = mem_dereg as usize;
    ptr::from_ref(Box::leak(Box::new(functions))).cast()
}
