// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! The caches that were taken over, and how they find out about changed mappings.
//!
//! - Memory is watched before a cache registers it with an adapter.
//! - Before each look-up, the counter is compared with its value when *this thread* last checked.
//!   If it has moved, UCX is notified of everything that changed, and the look-up fails. UCX then
//!   looks up again with its lock held, after it has dropped the changed memory. A notification by
//!   another thread is not enough: the look-up may have seen the queue of changes before that.
//! - Changes that leave the pages mapped are ignored. If other changes may have left them, the
//!   stamp of the pages decides; [`ummunotify::cache`] explains the order. So memory is stamped
//!   before and after it is registered with an adapter.
//! - Memory that cannot be watched, because of a limit, is dropped before each look-up.
//! - After a fork, the device stays with the parent. The child's own caches drop everything before
//!   each look-up. Those of its parent are left alone: parent and child share the adapter's
//!   registrations, so what one of them drops is gone for the other.

use std::{
    cell::Cell,
    collections::HashMap,
    ffi::c_void,
    io,
    ops::Range,
    process, ptr,
    sync::{
        atomic::{
            AtomicBool,
            AtomicU32,
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
    Causes,
    Change,
    Checker,
    Counter,
    Features,
    Options,
    Stamp,
    Watcher, //
};

use crate::{
    log::{
        self,
        say,
        Count, //
    },
    ucx::{
        Events,
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

/// A cache that was taken over. The address is 0 if the entry is free.
struct Cache {
    start: AtomicUsize,
    end: AtomicUsize,
    mem_reg: AtomicUsize,
    mem_dereg: AtomicUsize,
    /// The process that created it.
    process: AtomicU32,
}

/// UCX has one for each device or context.
static CACHES: [Cache; 64] = [const {
    Cache {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        mem_reg: AtomicUsize::new(0),
        mem_dereg: AtomicUsize::new(0),
        process: AtomicU32::new(0),
    }
}; 64];

/// The cache that contains an address.
fn find(address: *const c_void) -> Option<&'static Cache> {
    CACHES.iter().find(|it| {
        let start = it.start.load(Ordering::Acquire);
        start != 0 && (start..it.end.load(Ordering::Relaxed)).contains(&(address as usize))
    })
}

/// Adds a cache whose own functions are `ops`. Returns whether there was room.
pub fn add(cache: *mut c_void, ops: &Ops) -> bool {
    // SAFETY: UCX has allocated it. This returns its length, whatever the version.
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
    free.process.store(process::id(), Ordering::Relaxed);
    free.start.store(start, Ordering::Release);
    drop(guard);
    true
}

/// Removes a cache.
pub fn remove(cache: *mut c_void) {
    if let Some(known) = find(cache) {
        known.start.store(0, Ordering::Release);
    }
}

/// All addresses that a process may have. UCX adds up the lengths of the ranges in its queue, and
/// aborts if the sum overflows.
const EVERYTHING: Range<u64> = 0..1 << 56;

/// State shared by all caches.
struct Shared {
    process: u32,
    checker: Checker,
    counter: Counter,
    reader: Mutex<Reader>,
    /// Whether there is memory that is dropped before each look-up.
    unwatched: AtomicBool,
}

struct Reader {
    watcher: Watcher,
    /// Memory that is not watched, by cookie.
    unwatched: Vec<(u64, Range<u64>)>,
    /// The stamps of registered memory that has one, by cookie.
    stamps: HashMap<u64, (Range<u64>, Stamp)>,
    /// Whether the device has failed, so that nothing is known any more.
    failed: bool,
}

static SHARED: OnceLock<io::Result<Shared>> = OnceLock::new();

/// Serializes adding caches.
fn lock() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

fn options() -> Options {
    Options::new().features(Features::ALL)
}

/// Whether the device can be opened. It is not kept open: a program may fork before it uses UCX.
pub fn can_open() -> bool {
    options().open().is_ok()
}

/// Opens the device on the first call.
pub fn open() -> Result<(), &'static io::Error> {
    SHARED
        .get_or_init(|| {
            let watcher = Watcher::new(options().open()?)?;
            Ok(Shared {
                process: process::id(),
                checker: watcher.checker(),
                counter: watcher.device().map_counter()?,
                reader: Mutex::new(Reader {
                    watcher,
                    unwatched: Vec::new(),
                    stamps: HashMap::new(),
                    failed: false,
                }),
                unwatched: AtomicBool::new(false),
            })
        })
        .as_ref()
        .map(drop)
}

/// Whether the device distinguishes a fork from a change of the mapped pages.
pub fn ignores_forks() -> bool {
    shared().is_some_and(|it| {
        it.reader()
            .watcher
            .device()
            .features()
            .contains(Features::CAUSE)
    })
}

#[inline]
fn shared() -> Option<&'static Shared> {
    SHARED.get()?.as_ref().ok()
}

thread_local! {
    /// The counter when this thread last checked.
    static SEEN: Cell<u64> = const { Cell::new(0) };
}

static LOOK_UPS: Count = Count::new();
static CHANGES: Count = Count::new();
static KEPT: Count = Count::new();
static REGISTRATIONS: Count = Count::new();
static UNWATCHED: Count = Count::new();

/// Must be called before a look-up in the structure at `address`. Returns whether something may
/// have been dropped, if it belongs to a cache that was taken over.
#[inline]
pub fn catch_up(ucx: &Ucx, address: *const c_void) -> bool {
    let Some(shared) = shared() else {
        return false;
    };
    LOOK_UPS.add_one();
    let now = shared.counter.get();
    if SEEN.get() == now && !shared.checker.changed() && !shared.unwatched.load(Ordering::Relaxed) {
        return false;
    }
    find(address)
        .zip(ucx.events.as_ref())
        .is_some_and(|(cache, events)| shared.drop_changed(cache, events))
}

impl Shared {
    #[cold]
    fn drop_changed(&self, cache: &Cache, events: &Events) -> bool {
        // SAFETY: UCX accepts any range.
        let report = |range: &Range<u64>| unsafe {
            let length = range.end.saturating_sub(range.start).max(1);
            (events.vm_munmap)(range.start as *mut c_void, length as usize);
        };
        // In a forked child, a thread that does not exist may hold the lock.
        if process::id() != self.process {
            let is_own = cache.process.load(Ordering::Relaxed) == process::id();
            if is_own {
                report(&EVERYTHING);
            }
            return is_own;
        }
        let now = self.counter.get();
        let mut reader = self.reader();
        // With the lock held, so that a thread that finds nothing to report knows that it was
        // reported.
        loop {
            match reader.watcher.next_change() {
                Ok(Some(change)) => {
                    CHANGES.add_one();
                    if reader.keeps_pages(&change) {
                        KEPT.add_one();
                    } else {
                        reader.stamps.remove(&change.cookie());
                        report(&change.addresses());
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    reader.fail(&error);
                    break;
                }
            }
        }
        for (_, range) in &reader.unwatched {
            report(range);
        }
        if reader.failed {
            report(&EVERYTHING);
        }
        SEEN.set(now);
        true
    }

    fn reader(&self) -> MutexGuard<'_, Reader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches memory that is to be registered. Returns its stamp and the counter before that.
    fn watch(&self, range: Range<u64>, cookie: u64) -> Option<(u64, Stamp)> {
        let mut reader = self.reader();
        // Load it before watching, since only the first change of a region is sure to move it.
        let counter = self.counter.get();
        let watched = reader
            .watcher
            .watch_ignoring(range.clone(), cookie, Causes::SAME_PAGES);
        if let Err(error) = watched {
            if UNWATCHED.get() == 0 {
                say!("{range:#x?} and maybe others cannot be watched and are not cached: {error}");
            }
            UNWATCHED.add_one();
            reader.unwatched.push((cookie, range));
            self.unwatched.store(true, Ordering::Relaxed);
            return None;
        }
        let stamp = reader.watcher.stamp_in_memory(range).ok()??;
        Some((counter, stamp))
    }

    /// Stamps memory that was registered, and keeps the stamp if it is that of the registered pages.
    fn keep_stamp(&self, range: Range<u64>, cookie: u64, (counter, before): (u64, Stamp)) {
        let mut reader = self.reader();
        let Ok(Some(after)) = reader.watcher.stamp_in_memory(range.clone()) else {
            return;
        };
        if before.is_same(after) && self.counter.get() == counter {
            reader.stamps.insert(cookie, (range, after));
        }
    }

    fn unwatch(&self, cookie: u64) {
        let mut reader = self.reader();
        reader.stamps.remove(&cookie);
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
    /// Whether the registered pages are those that are mapped, after a change whose event was read.
    fn keeps_pages(&self, change: &Change) -> bool {
        let Some((range, before)) = self.stamps.get(&change.cookie()) else {
            return false;
        };
        change.may_keep_pages()
            && matches!(self.watcher.stamp_in_memory(range.clone()), Ok(Some(now)) if before.is_same(now))
    }

    fn fail(&mut self, error: &io::Error) {
        if !self.failed {
            say!(
                "{} failed; nothing is cached any more: {error}",
                ummunotify::PATH
            );
        }
        self.failed = true;
    }
}

/// Replaces a cache's own `mem_reg`.
///
/// # Safety
///
/// Only UCX may call this.
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
    // SAFETY: UCX passes the region to register.
    let range = unsafe { (*region).start..(*region).end };
    let cookie = region as u64;
    let is_parent = process::id() == shared.process;
    let stamp = is_parent
        .then(|| shared.watch(range.clone(), cookie))
        .flatten();
    REGISTRATIONS.add_one();
    // SAFETY: This is the function that UCX would have called, with UCX's arguments.
    let status = unsafe {
        let own: Option<MemReg> =
            std::mem::transmute(known.mem_reg.load(Ordering::Relaxed) as *const c_void);
        own.map_or(UNSUPPORTED, |own| {
            own(context, cache, argument, region, flags)
        })
    };
    match (status, stamp) {
        (OK, Some(stamp)) => shared.keep_stamp(range, cookie, stamp),
        (OK, None) => {}
        _ if is_parent => shared.unwatch(cookie),
        _ => {}
    }
    status
}

/// Replaces a cache's own `mem_dereg`.
///
/// # Safety
///
/// Only UCX may call this.
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

/// Prints the counts when the process ends, if the log is on.
pub fn print_at_exit() {
    extern "C" fn print() {
        if shared().is_some_and(|it| it.process == process::id()) {
            say!(
                "{} look-ups, {} changes, {} of them with the same pages, {} registrations, {} of \
                 memory that could not be watched",
                LOOK_UPS.get(),
                CHANGES.get(),
                KEPT.get(),
                REGISTRATIONS.get(),
                UNWATCHED.get()
            );
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

/// The functions for a cache whose own are `ops`. They are never freed, since UCX keeps the
/// address.
pub fn functions(ops: &Ops) -> *const usize {
    let mut functions = *ops;
    let [reg, dereg, ..] = &mut functions;
    *reg = mem_reg as usize;
    *dereg = mem_dereg as usize;
    ptr::from_ref(Box::leak(Box::new(functions))).cast()
}
