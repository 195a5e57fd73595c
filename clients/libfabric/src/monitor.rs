// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! The functions that libfabric calls, and the thread that notifies libfabric.
//!
//! Before each use, libfabric asks whether a registration is valid, and holds a lock of its own.
//! The answer is computed at once from the mapped counter and [`regions`](crate::regions), so no
//! change that was complete is missed. Notifying libfabric to drop something takes the same lock,
//! so a thread does it. Its timing matters only for how long unused memory stays pinned.
//!
//! In a forked child nothing is valid and subscriptions fail, so libfabric does not cache what it
//! registers.

use std::{
    ffi::{
        c_int,
        c_void, //
    },
    fs::File,
    io::{
        self,
        Read,
        Write, //
    },
    mem::MaybeUninit,
    ops::Range,
    os::fd::{
        AsRawFd,
        FromRawFd, //
    },
    ptr,
    sync::{
        atomic::{
            AtomicBool,
            AtomicPtr,
            AtomicU64,
            AtomicUsize,
            Ordering, //
        },
        Arc,
        Mutex,
        MutexGuard,
        Once,
        PoisonError, //
    },
    thread::{
        self,
        JoinHandle, //
    },
};

use ummunotify::{
    Checker,
    Features,
    Options,
    Watcher, //
};

use crate::{
    abi::{
        ExportOps,
        MemMonitor, //
    },
    counts::COUNTS,
    import,
    log::say,
    regions::{
        Answer,
        Regions, //
    },
};

/// What is exported to libfabric.
pub static EXPORT_OPS: ExportOps = ExportOps {
    size: size_of::<ExportOps>(),
    start,
    stop,
    subscribe,
    unsubscribe,
    valid,
};

/// Milliseconds to wait before notifying libfabric. Memory that is looked up again in that time is
/// registered again at once, which leaves less to do for the thread.
const DELAY: c_int = 50;

/// The state while libfabric has a domain with a cache.
struct Active {
    checker: Checker,
    doubtful: Arc<AtomicUsize>,
    regions: Mutex<Regions<Watcher>>,
    /// Wakes the thread.
    bell: File,
    /// Whether the thread is awake, or about to be.
    awake: AtomicBool,
    /// Whether it must do its work without delay.
    urgent: AtomicBool,
    /// Whether it must end.
    ending: AtomicBool,
}

/// The only instance, from [`Arc::into_raw`].
static ACTIVE: AtomicPtr<Active> = AtomicPtr::new(ptr::null_mut());

/// The number of started monitors, and the thread. There are several monitors if there are several
/// copies of libfabric.
static STARTED: Mutex<(usize, Option<JoinHandle<()>>)> = Mutex::new((0, None));

/// The last moment of the previous [`Regions`].
static LAST_MOMENT: AtomicU64 = AtomicU64::new(0);

/// Whether the process is exiting.
static AT_EXIT: AtomicBool = AtomicBool::new(false);

/// Stops notifying libfabric. Returns whether it has no domain with a cache.
pub fn end() -> bool {
    AT_EXIT.store(true, Ordering::Release);
    ACTIVE.load(Ordering::Acquire).is_null()
}

fn active() -> Option<&'static Active> {
    // SAFETY: It is valid until `stop`, which libfabric never calls concurrently with other
    // functions.
    unsafe { ACTIVE.load(Ordering::Acquire).as_ref() }
}

unsafe extern "C" fn start(_: *mut MemMonitor) -> c_int {
    let mut started = lock(&STARTED);
    if started.0 > 0 {
        if active().is_some_and(|it| it.checker.is_inherited()) {
            return -libc::EPERM;
        }
        started.0 += 1;
        return 0;
    }
    match Active::start() {
        Ok((active, thread)) => {
            ACTIVE.store(Arc::into_raw(active).cast_mut(), Ordering::Release);
            *started = (1, Some(thread));
            0
        }
        Err(error) => {
            say!("cannot start: {error}; libfabric does not keep registrations");
            -error.raw_os_error().unwrap_or(libc::EIO)
        }
    }
}

unsafe extern "C" fn stop(_: *mut MemMonitor) {
    let mut started = lock(&STARTED);
    started.0 = started.0.saturating_sub(1);
    if started.0 > 0 {
        return;
    }
    let thread = started.1.take();
    let active = ACTIVE.swap(ptr::null_mut(), Ordering::AcqRel);
    if active.is_null() {
        return;
    }
    // SAFETY: `start` has stored it there, and nobody else has taken it.
    let active = unsafe { Arc::from_raw(active) };
    if active.checker.is_inherited() {
        // The thread is not in this process, and may have held the lock during the fork.
        std::mem::forget((active, thread));
        return;
    }
    active.ending.store(true, Ordering::Release);
    active.ring();
    if let Some(thread) = thread {
        let _ = thread.join();
    }
    let now = lock(&active.regions).now();
    LAST_MOMENT.store(now, Ordering::Relaxed);
}

unsafe extern "C" fn subscribe(_: *mut MemMonitor, start: *const c_void, length: usize) -> c_int {
    let Some(active) = active().filter(|it| it.works()) else {
        return -libc::EPERM;
    };
    let result = lock(&active.regions).subscribe(range(start, length));
    match result {
        Ok(()) => 0,
        Err(error) => {
            // There may be more, but one line is enough.
            static ONCE: Once = Once::new();
            ONCE.call_once(|| {
                say!("cannot watch {length} bytes at {start:?}: {error}; memory that cannot be watched is not cached");
            });
            -error.raw_os_error().unwrap_or(libc::EIO)
        }
    }
}

unsafe extern "C" fn unsubscribe(_: *mut MemMonitor, start: *const c_void, length: usize) {
    if let Some(active) = active().filter(|it| it.works()) {
        lock(&active.regions).unsubscribe(range(start, length));
    }
}

unsafe extern "C" fn valid(_: *mut MemMonitor, start: *const c_void, length: usize) -> bool {
    let Some(active) = active() else {
        return false;
    };
    // Nothing has changed, and nothing is doubtful. The order matters: regions whose events were
    // read up to this value of the counter are among the doubtful ones.
    if !active.checker.changed() && active.doubtful.load(Ordering::Acquire) == 0 {
        COUNTS.hits.add_one();
        return true;
    }
    active.works() && active.is_valid(range(start, length))
}

/// The range that libfabric describes by start and length.
fn range(start: *const c_void, length: usize) -> Range<u64> {
    let start = start as u64;
    start..start.saturating_add(length as u64)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Active {
    fn start() -> io::Result<(Arc<Self>, JoinHandle<()>)> {
        let watcher = Watcher::new(Options::new().features(Features::ALL).open()?)?;
        // SAFETY: The call creates a descriptor or returns -1.
        let bell = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if bell < 0 {
            return Err(io::Error::last_os_error());
        }
        let doubtful = Arc::new(AtomicUsize::new(0));
        let active = Arc::new(Self {
            checker: watcher.checker(),
            doubtful: doubtful.clone(),
            regions: Mutex::new(Regions::new(
                watcher,
                doubtful,
                LAST_MOMENT.load(Ordering::Relaxed),
            )),
            // SAFETY: The descriptor is new, and belongs to nobody else.
            bell: unsafe { File::from_raw_fd(bell) },
            awake: AtomicBool::new(false),
            urgent: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        });
        let thread = spawn_without_signals({
            let active = active.clone();
            move || active.run()
        })?;
        Ok((active, thread))
    }

    /// Whether this is the process that opened the device. In a forked child nothing is known, and
    /// a thread that does not exist there may hold a lock.
    fn works(&self) -> bool {
        !self.checker.is_inherited()
    }

    fn is_valid(&self, range: Range<u64>) -> bool {
        let mut regions = lock(&self.regions);
        let answer = regions.is_valid(range);
        let has_to_drop = regions.has_to_drop();
        drop(regions);
        if has_to_drop {
            self.wake(answer == Answer::InvalidForSeveral);
        }
        answer == Answer::Valid
    }

    /// Makes the thread do its work, soon or at once.
    fn wake(&self, urgent: bool) {
        let was_awake = self.awake.swap(true, Ordering::AcqRel);
        let more_urgent = urgent && !self.urgent.swap(true, Ordering::AcqRel);
        if !was_awake || more_urgent {
            self.ring();
        }
    }

    fn ring(&self) {
        // This fails only if the counter would overflow.
        let _ = (&self.bell).write(&1u64.to_ne_bytes());
    }

    /// The body of the thread.
    fn run(&self) {
        let device = lock(&self.regions).device();
        while !self.ending.load(Ordering::Acquire) {
            self.wait(Some(device), -1);
            self.awake.store(true, Ordering::Release);
            if !self.urgent.load(Ordering::Acquire) && !self.ending.load(Ordering::Acquire) {
                self.wait(None, DELAY);
            }
            self.awake.store(false, Ordering::Release);
            self.urgent.store(false, Ordering::Release);

            let mut regions = lock(&self.regions);
            regions.catch_up();
            let (to_drop, has_failed) = (regions.take_to_drop(), regions.has_failed());
            drop(regions);
            if has_failed {
                return;
            }
            for range in to_drop {
                if AT_EXIT.load(Ordering::Acquire) || self.ending.load(Ordering::Acquire) {
                    return;
                }
                COUNTS.evictions.add_one();
                import::notify(&range);
            }
        }
    }

    /// Waits for the bell, or for events of the device.
    fn wait(&self, device: Option<c_int>, limit: c_int) {
        let mut files = [self.bell.as_raw_fd(), device.unwrap_or(-1)].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: These are two valid `pollfd`; one with a negative descriptor is ignored.
        unsafe { libc::poll(files.as_mut_ptr(), files.len() as libc::nfds_t, limit) };
        // It does not matter whether the bell was rung.
        let _ = (&self.bell).read(&mut [0; size_of::<u64>()]);
    }
}

/// Starts a thread that never handles the program's signals.
fn spawn_without_signals(main: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: The first call fills the set that the second one uses, which fills the other.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let thread = thread::Builder::new()
        .name("ummunotify".into())
        .stack_size(128 << 10)
        .spawn(main);
    // SAFETY: The set was filled above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    thread
}
