// SPDX-License-Identifier: GPL-2.0

//! The state of an open file, and its operations.
//!
//! # Locking
//!
//! There is a spinlock around [`State`], and a mutex around [`Watch`], which records whether the
//! file has an MMU notifier. Nothing here runs in interrupt context, so interrupts stay enabled
//! under the spinlock. These are the callers, and what they hold:
//!
//! - The range callbacks, in any task, including `kswapd` and the OOM reaper: any of the mmap lock,
//!   a VMA lock and the rmap locks, in an SRCU read section that all MMU notifiers share, possibly
//!   during reclaim. See [`MmuNotifier`].
//! - [`release`](MmuNotifier::release), when the address space is torn down: only that SRCU read
//!   section.
//! - [`open`](CharFile::open): `misc_mtx`, which all miscellaneous devices share, so it only
//!   allocates. [`opened`](CharFile::opened) does what takes longer, and holds nothing.
//! - REGISTER and `opened`: nothing. They may take the mutex, and under it the mmap lock for
//!   writing and all VMA and rmap locks of the address space.
//! - [`closed`](CharFile::closed) and [`deferred`](CharFile::deferred): nothing.
//! - `mmap` and page faults of the mapping: the mmap lock. They do not access the state.
//! - Everything else: locks of a task that waits for the file or reads its `fdinfo`, which are
//!   never held while mappings change.
//!
//! So the lock order is: the mutex, mmap lock, VMA locks, rmap locks, the state lock. `misc_mtx` is
//! not held together with any of them. Under the state lock, nothing is allocated or freed, nothing
//! sleeps, no other lock is taken, and user memory is written only if that needs no page fault.
//! Waiters are woken and `SIGIO` is sent after it is dropped.
//!
//! The time for which the lock is held does not depend on the number of regions, events or waiters,
//! except for the depth of a tree: [`regions`](super::regions) visits a limited number of regions
//! at a time, and [`Waiters`](crate::abstractions::waiters::Waiters) leaves more than a few tasks
//! to a work item. The work item also frees the regions of a file that another process has closed,
//! or whose address space is gone.
//!
//! # Order of what user space sees
//!
//! Under the lock, the event is queued or recorded first, and then the counter is stored with
//! release semantics. A task that sees the new counter and then reads takes the lock later, so it
//! finds the event. The callbacks return before the kernel continues with the system call that
//! makes the change. So when that returns, the counter has moved and the event is there.
//!
//! A read that must not block and finds nothing sets `quiet` under the lock. A hit that queues an
//! event clears it under the lock, before the counter is stored with release semantics. A task that
//! has seen the new counter and then reads sees it cleared, since a read barrier precedes the load
//! of `quiet`, and takes the lock. A read that finds it set precedes the event, and fails as if it
//! had come first.
//!
//! # Who is woken
//!
//! `notified` is set if the waiters were notified and nobody has read since. A hit that finds it
//! clear, and waiters, sets it under the lock and notifies them afterwards. It is cleared in each
//! section of the lock in which a read takes or looks for something, and when a waiter is added. So
//! it is clear whenever there is nothing to read, and the next hit notifies.
//!
//! A waiter joins the wait queue first and checks the state under the lock afterwards. The
//! callbacks change the state under the lock and then look for waiters. So no waiter sleeps on.
//!
//! # Lifetimes
//!
//! The `struct file` holds a reference to the [`OpenFile`] until it is released, the MMU notifier
//! until a grace period after it was put, and the work item while it is queued. When the file is
//! released, the state becomes `dead` before the notifier is put, so that callbacks that are still
//! called find nothing to do.

use core::mem::MaybeUninit;

use kernel::{
    fs::{
        file::flags::{
            O_ACCMODE,
            O_RDONLY, //
        },
        File, //
    },
    mm::{
        Mm,
        MmWithUser, //
    },
    new_mutex,
    new_spinlock,
    page::PAGE_SHIFT,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::{
        aref::ARef,
        atomic::Release,
        Arc,
        ArcBorrow,
        Mutex,
        SpinLock,
        SpinLockGuard, //
    },
    uaccess::UserPtr, //
};

use crate::{
    abstractions::{
        address_space::{
            is_gone,
            untagged, //
        },
        char_file::{
            CharFile,
            OpenFile, //
        },
        compat::{
            parameter,
            smp_rmb, //
        },
        destination::Destination,
        interval_map::Classes,
        marked::Marked,
        mmu_notifier::{
            Event,
            MmuNotifier,
            Range,
            Registration, //
        },
        signals,
        waiters::{
            PollMask,
            POLL_HUNG_UP,
            POLL_READABLE, //
        },
    },
    module_parameters,
    uapi::{
        UMMUNOTIFY_FEATURE_CAUSE,
        UMMUNOTIFY_FEATURE_HULL,
        UMMUNOTIFY_FEATURE_STAMP, //
    }, //
};

use super::{
    account::Account,
    cause::Causes,
    event,
    gate::Gate,
    ioctl::{
        self,
        Bounds,
        Command,
        Word, //
    },
    regions::{
        AllRegions,
        Batch,
        NewRegion,
        RegionCache,
        Regions,
        FEW, //
    },
    stamp, //
};

/// The features that can be granted.
const FEATURES: u32 = UMMUNOTIFY_FEATURE_CAUSE
    | UMMUNOTIFY_FEATURE_HULL
    | if cfg!(CONFIG_HAVE_GUP_FAST) {
        UMMUNOTIFY_FEATURE_STAMP
    } else {
        0
    };

/// The most events that are copied to user space in one section of the lock.
const BATCH: usize = 48;

/// How often a read faults in its destination before it fails with `EFAULT`.
///
/// More than one attempt is needed only if memory is so short that the pages are gone again at
/// once.
const FAULT_IN_TRIES: usize = 16;

/// An open file: what its opener watches in its address space.
#[pin_data]
pub(crate) struct WatchFile {
    /// The opener's address space.
    mm: ARef<Mm>,
    /// The slab cache for regions.
    cache: Arc<RegionCache>,
    /// The most regions that may be registered.
    most_regions: usize,
    /// The features that were granted. Written once, with the lock held, before `used` is set.
    granted: Marked<u32>,
    /// Set when a non-blocking read found nothing; lets the next one fail without the lock. Written
    /// with the lock held.
    quiet: Marked<bool>,
    /// Protection changes that have a start and no end may be in flight below this address. Written
    /// with the lock held.
    endless: Marked<usize>,
    gate: Gate,
    #[pin]
    watch: Mutex<Watch>,
    #[pin]
    state: SpinLock<State>,
}

/// The index of the generation counter in the mapped page.
const COUNTER: usize = 0;

/// Whether the kernel calls back when mappings change.
enum Watch {
    /// Not yet registered.
    Idle,
    /// Registered until this is dropped.
    Registered {
        _notifier: Registration<OpenFile<WatchFile>>,
    },
    /// Closed.
    Closed,
}

/// The part of an open file that may change.
struct State {
    regions: Regions,
    account: Account,
    /// Whether the file was read, a region was registered, or features were negotiated. If so,
    /// features can no longer be negotiated.
    used: bool,
    /// The number of changes without an end so far.
    endless: usize,
    /// Whether the MMU notifier is registered.
    is_watching: bool,
    /// Whether the opener's address space is gone or the file is closed, so that there will be no
    /// more events.
    dead: bool,
    /// Whether the waiters were notified and nobody has read since.
    notified: bool,
    /// The key of stamps, if they were granted.
    stamp_key: Option<stamp::Key>,
    /// The regions of a closed file, which are to be freed.
    old: Option<AllRegions>,
}

impl WatchFile {
    fn new(mm: &Mm, cache: &Arc<RegionCache>) -> Result<impl PinInit<Self, Error> + use<>> {
        let mm = ARef::from(mm);
        let cache = cache.clone();
        let most_regions = parameter::<u32>(module_parameters::max_regions.value()) as usize;
        let regions = Regions::new(cache.clone());
        let account = Account::new()?;
        Ok(try_pin_init!(Self {
            mm,
            cache,
            most_regions,
            granted: Marked::new(0),
            quiet: Marked::new(false),
            endless: Marked::new(0),
            gate: Gate::new(),
            watch <- new_mutex!(Watch::Idle, "ummunotify_watch"),
            state <- new_spinlock!(
                State {
                    regions,
                    account,
                    used: false,
                    endless: 0,
                    is_watching: false,
                    dead: false,
                    notified: false,
                    stamp_key: None,
                    old: None,
                },
                "ummunotify"
            ),
        }))
    }

    /// Returns whether the caller shares the opener's mm, as its threads and its `vfork` children
    /// do.
    #[inline]
    fn is_ours(&self) -> bool {
        self.with_our_mm(|_| ()).is_some()
    }

    /// Calls `f` with the opener's mm, if it is the caller's.
    #[inline]
    fn with_our_mm<R>(&self, f: impl FnOnce(&MmWithUser) -> R) -> Option<R> {
        let task = kernel::current!();
        let mm = task.mm()?;
        (mm.as_raw() == self.mm.as_raw()).then(|| f(mm))
    }

    /// Returns `self` if the caller shares the opener's mm, else `EPERM`.
    #[inline]
    fn ours(&self) -> Result<&Self> {
        if self.is_ours() {
            Ok(self)
        } else {
            Err(EPERM)
        }
    }

    fn exchange_features(&self, mask: Word) -> Result {
        if self.state.lock().used {
            return Err(EINVAL);
        }
        let granted = mask.read()? & FEATURES;
        // A bad pointer must not prevent another attempt, so this comes before `used` is set.
        mask.write(granted)?;
        let has = |feature| granted & feature != 0;
        let stamp_key = has(UMMUNOTIFY_FEATURE_STAMP).then(stamp::Key::new);
        let mut state = self.state.lock();
        if core::mem::replace(&mut state.used, true) {
            return Err(EINVAL);
        }
        state.stamp_key = stamp_key;
        state
            .regions
            .set_features(has(UMMUNOTIFY_FEATURE_CAUSE), has(UMMUNOTIFY_FEATURE_HULL));
        self.granted.write_once(granted);
        Ok(())
    }

    /// Registers the MMU notifier, if it is not registered yet.
    ///
    /// Sleeps, and takes the mmap lock for writing.
    #[cold]
    fn watch(this: ArcBorrow<'_, OpenFile<Self>>) -> Result {
        let mut watch = this.watch.lock();
        match *watch {
            Watch::Idle => {}
            Watch::Registered { .. } => return Ok(()),
            Watch::Closed => return Err(ESRCH),
        }
        let _notifier = loop {
            // The kernel gives up if a signal is pending. The caller need not notice, since its
            // timer may be faster than every attempt.
            let result = this.with_our_mm(|mm| {
                signals::without_signals(|| Registration::new(mm, Arc::from(this)))
            });
            match result.ok_or(EPERM)? {
                Ok(notifier) => break notifier,
                Err(EINTR) if signals::is_pending() => return Err(ERESTARTNOINTR),
                // The task was stopped or frozen, and has continued.
                Err(EINTR) => {}
                Err(error) => return Err(error),
            }
        };
        *watch = Watch::Registered { _notifier };
        this.state.lock().is_watching = true;
        Ok(())
    }

    /// Waits for changes that have a start and no end, and that may concern a region that was just
    /// rearmed and starts at `start`.
    ///
    /// Such a change by `mprotect()` holds the mmap lock for writing all the time. Others hold it
    /// for reading, and cannot be waited for.
    #[inline]
    fn wait_for_endless(&self, start: usize) {
        if start < self.endless.read_once() {
            self.wait_for_mmap_lock();
        }
    }

    #[cold]
    fn wait_for_mmap_lock(&self) {
        self.with_our_mm(|mm| drop(mm.mmap_read_lock()));
    }

    #[inline]
    fn register(this: ArcBorrow<'_, OpenFile<Self>>, arg: UserPtr) -> Result {
        let granted = this.granted.read_once();
        let bounds = ioctl::read_bounds(arg, granted, |address| untagged(&this.mm, address))?;
        let new = NewRegion::new(&this.cache)?;
        let mut state = this.state.lock();
        if !state.is_watching || !state.regions.is_applied() {
            drop(state);
            state = Self::prepare_to_register(&this, this)?;
        }
        state.used = true;
        let len = state.regions.len();
        if len >= this.most_regions {
            return Err(ENOSPC);
        }
        if state.account.add(len).is_err() {
            drop(state);
            // A file that was just closed may still be charged.
            this.wait_for_closed();
            state = Self::prepare_to_register(&this, this)?;
            let len = state.regions.len();
            state.account.add(len)?;
        }
        let Bounds {
            start,
            last,
            cookie,
            class,
        } = bounds;
        let result = state
            .regions
            .register(&this.gate, new, class, start, last, cookie);
        // If the cookie is taken, the memory is freed after the lock is dropped.
        drop(state);
        result.map_err(|_| EINVAL)?;
        this.wait_for_endless(start);
        Ok(())
    }

    /// Registers the MMU notifier, and applies all earlier changes.
    ///
    /// Returns with the lock held under which both were found done.
    #[cold]
    fn prepare_to_register<'a>(
        file: &'a OpenFile<Self>,
        this: ArcBorrow<'_, OpenFile<Self>>,
    ) -> Result<SpinLockGuard<'a, State>> {
        let mut mark = None;
        loop {
            let mut state = file.state.lock();
            if state.dead {
                return Err(ESRCH);
            }
            if !state.is_watching {
                drop(state);
                Self::watch(this)?;
                continue;
            }
            let before = state.regions.mark();
            if state.regions.has_reached(*mark.get_or_insert(before)) {
                return Ok(state);
            }
            state.regions.apply();
            drop(state);
            if signals::is_killed() {
                return Err(EINTR);
            }
        }
    }

    #[inline]
    fn unregister(&self, arg: UserPtr) -> Result {
        let cookie = ioctl::read_cookie(arg)?;
        let mut state = self.state.lock();
        let old = state.regions.unregister(&self.gate, &self.cache, cookie);
        let len = state.regions.len();
        state.account.shrink(len);
        drop(state);
        // The region is freed here, after the lock was dropped.
        old.map(drop).ok_or(EINVAL)
    }

    /// Computes a stamp. For a file without the feature, the command is unknown and has no effect.
    fn stamp(&self, arg: UserPtr) -> Result {
        let key = self.state.lock().stamp_key.ok_or(ENOTTY)?;
        let mm = &self.ours()?.mm;
        stamp::stamp(&key, arg, |address| untagged(mm, address))
    }

    /// Returns whether there will be no more events.
    ///
    /// The address space may be gone before the notifier was registered, which would report it.
    fn is_dead(&self, state: &State) -> bool {
        state.dead || !state.is_watching && is_gone(&self.mm)
    }

    /// Publishes the effect of an invalidation, and then notifies waiters.
    #[inline]
    fn invalidate(this: ArcBorrow<'_, OpenFile<Self>>, change: impl FnOnce(&mut Regions) -> bool) {
        let mut state = this.state.lock();
        if state.dead || !change(&mut state.regions) {
            return;
        }
        this.quiet.write_once(false);
        let counter = state.regions.counter();
        // Release: pairs with the acquire load of the counter by user space, and with the barrier
        // in `is_quiet`. See "Order of what user space sees".
        this.page().word::<COUNTER>().store(counter, Release);
        let is_due = !state.notified && !this.waiters().is_empty();
        if is_due {
            state.notified = true;
        }
        drop(state);

        if is_due && this.waiters().notify_readable() {
            OpenFile::defer(this);
        }
    }

    // These are not inlined, so that callbacks with nothing to do need not save the registers that
    // they use.

    #[inline(never)]
    fn hit(this: ArcBorrow<'_, OpenFile<Self>>, range: &Range) {
        let causes = || Causes::of(range.event());
        Self::invalidate(this, |regions| {
            regions.hit(range.start(), range.last(), causes)
        });
    }

    #[inline(never)]
    fn hit_again(this: ArcBorrow<'_, OpenFile<Self>>, range: &Range) {
        let causes = || Causes::of(range.event());
        Self::invalidate(this, |regions| {
            let hit = regions.hit_again(range.start(), range.last(), causes);
            this.gate.forget_rearmed();
            hit
        });
    }

    /// Handles the start of a change that may have no end, and so is not counted as in flight.
    ///
    /// A region in its range may be rearmed before the change is complete. Either that happens
    /// before this takes the lock for the last time, so that the region is hit; or `endless` is
    /// found set afterwards, and the rearming task waits for the mmap lock.
    #[cold]
    #[inline(never)]
    fn start_endless(this: ArcBorrow<'_, OpenFile<Self>>, range: &Range) {
        let mut state = this.state.lock();
        state.endless += 1;
        let below = this.endless.read_once().max(range.end());
        this.endless.write_once(below);
        drop(state);
        Self::hit(this, range);
    }

    /// Handles the end of such a change, in case it has one.
    #[cold]
    #[inline(never)]
    fn end_endless(this: ArcBorrow<'_, OpenFile<Self>>, range: &Range) {
        let causes = || Causes::of(range.event());
        Self::invalidate(this, |regions| {
            regions.hit_again(range.start(), range.last(), causes)
        });
        let mut state = this.state.lock();
        state.endless = state.endless.saturating_sub(1);
        if state.endless == 0 {
            this.endless.write_once(0);
        }
    }

    /// Copies one record to `destination`, which has no room for two; returns `false` if that takes
    /// more than a copy.
    ///
    /// Programs written for V2 read one record at a time.
    #[inline]
    fn read_one(&self, destination: &mut impl Destination) -> bool {
        let mut state = self.state.lock();
        state.notified = false;
        let Some(record) = state.regions.front() else {
            return false;
        };
        let copied = destination.copy_nofault(&[record]) == 1;
        if copied {
            // `used` is set already: the record is about a region, which was registered.
            state.regions.pop(&self.gate);
        }
        copied
    }

    /// Waits until there is something to read, and returns with the lock held.
    ///
    /// Returns `None` if there will be no more events, or if the caller has already read something
    /// and so must not wait. Fails with `EAGAIN` if it must not wait at all.
    #[inline]
    fn lock_to_read(
        this: &OpenFile<Self>,
        nonblocking: bool,
        has_read: bool,
    ) -> Result<Option<SpinLockGuard<'_, State>>> {
        loop {
            let mut state = this.state.lock();
            state.used = true;
            state.notified = false;
            if state.regions.is_readable() {
                return Ok(Some(state));
            }
            if has_read || this.is_dead(&state) {
                return Ok(None);
            }
            if nonblocking {
                this.quiet.write_once(true);
                return Err(EAGAIN);
            }
            drop(state);
            this.waiters().wait_interruptible(|| {
                let state = this.state.lock();
                state.regions.is_readable() || this.is_dead(&state)
            })?;
        }
    }

    /// Copies as many records to `destination` as there are and fit.
    ///
    /// If there are none, waits for them if allowed, and otherwise fails with `EAGAIN`.
    #[inline(never)]
    fn read_all(
        this: &OpenFile<Self>,
        destination: &mut impl Destination,
        nonblocking: bool,
    ) -> Result<usize> {
        let room = destination.len();
        let mut left = room;
        let mut tries = FAULT_IN_TRIES;
        let mut mark = None;
        while destination.len() >= event::SIZE {
            let has_read = destination.len() < room;
            let Some(mut state) = Self::lock_to_read(this, nonblocking, has_read)? else {
                break;
            };
            if !state.regions.is_applied() {
                let now = state.regions.mark();
                let is_reached = state.regions.has_reached(*mark.get_or_insert(now));
                // Apply all changes that precede this read first, so that a region that was hit
                // more than once is reported once.
                let is_interrupted = state.regions.queued() > 0 && signals::is_pending();
                if !is_reached && !is_interrupted {
                    state.regions.apply();
                    let found = state.regions.queued() > 0;
                    drop(state);
                    if !found && signals::is_pending() {
                        if has_read {
                            break;
                        }
                        return Err(ERESTARTSYS);
                    }
                    continue;
                }
                if state.regions.queued() == 0 {
                    // Later changes are for the next read, or this one might never end. But if it
                    // has nothing yet, everything that it has applied was unregistered in the
                    // meantime.
                    if has_read {
                        break;
                    }
                    mark = None;
                    continue;
                }
            }
            let mut memory = [const { MaybeUninit::uninit() }; BATCH];
            let most = destination.len().min(BATCH * event::SIZE) / event::SIZE;
            let batch = state
                .regions
                .read(&this.gate, &mut memory[..most], |records| {
                    destination.copy_nofault(records)
                });
            drop(state);

            match batch {
                // A reader may stop at LAST, so no later record may follow it in the same read.
                Batch::Last => break,
                Batch::All => {
                    if signals::is_pending() {
                        break;
                    }
                }
                Batch::Faulted => {
                    if destination.len() < left {
                        left = destination.len();
                        tries = FAULT_IN_TRIES;
                    } else {
                        tries -= 1;
                    }
                    if tries == 0 || !destination.fault_in(event::SIZE) {
                        if destination.len() == room {
                            return Err(EFAULT);
                        }
                        break;
                    }
                }
            }
        }
        Ok(room - destination.len())
    }

    /// Returns whether everything was read, and regions are left that nobody needs.
    fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.dead && state.regions.len() > 0 && !state.regions.is_readable()
    }

    /// Frees the regions of an address space that is gone, except those with an event to read.
    fn free_idle(&self) {
        loop {
            let mut state = self.state.lock();
            if !state.dead {
                return;
            }
            if state.regions.is_applied() {
                break;
            }
            state.regions.apply();
            drop(state);
        }
        let mut next = Some(0);
        while let Some(cookie) = next {
            let mut state = self.state.lock();
            let old;
            (old, next) = state.regions.take_idle(&self.cache, cookie);
            let len = state.regions.len();
            state.account.shrink_to(len);
            drop(state);
            drop(old);
        }
    }
}

#[vtable]
impl CharFile for WatchFile {
    type Common = Arc<RegionCache>;

    fn open(cache: &Arc<RegionCache>, file: &File) -> Result<impl PinInit<Self, Error>> {
        if file.flags() & O_ACCMODE != O_RDONLY {
            return Err(EINVAL);
        }
        Self::new(kernel::current!().mm().ok_or(ESRCH)?, cache)
    }

    fn opened(this: ArcBorrow<'_, OpenFile<Self>>) {
        // If this fails, the first REGISTER tries again and returns the error.
        let _ = Self::watch(this);
    }

    fn closed(this: ArcBorrow<'_, OpenFile<Self>>) {
        let mut state = this.state.lock();
        state.dead = true;
        let is_large = state.regions.len() > FEW;
        let old = state.regions.take();
        this.gate.narrow(Classes::NONE);
        // The process that registered them frees them. Other processes, and tasks that exit, do not
        // wait for that.
        if is_large && !this.is_ours() {
            state.old = Some(old);
            drop(state);
            OpenFile::defer(this);
        } else {
            drop(state);
            drop(old);
            this.state.lock().account.shrink_to(0);
        }
        *this.watch.lock() = Watch::Closed;
    }

    fn deferred(this: &OpenFile<Self>) {
        this.waiters().notify_rest();
        this.free_idle();
        let old = this.state.lock().old.take();
        if old.is_some() {
            drop(old);
            this.state.lock().account.shrink_to(0);
        }
    }

    #[inline]
    fn is_quiet(&self) -> bool {
        // Pairs with the release store of the counter: a task that has seen the counter sees that
        // `quiet` was cleared before.
        smp_rmb();
        self.quiet.read_once()
    }

    #[inline]
    fn would_block(&self, len: usize) -> bool {
        self.is_quiet() && len >= event::SIZE && self.is_ours()
    }

    fn read(
        this: ArcBorrow<'_, OpenFile<Self>>,
        destination: &mut impl Destination,
        nonblocking: bool,
    ) -> Result<usize> {
        if destination.len() == 0 {
            return Ok(0);
        }
        if destination.len() < event::SIZE {
            return Err(EINVAL);
        }
        let is_ours = this.is_ours();
        if !is_ours && !this.is_dead(&this.state.lock()) {
            return Err(EPERM);
        }
        let bytes = if destination.len() < 2 * event::SIZE && this.read_one(destination) {
            event::SIZE
        } else {
            Self::read_all(&this, destination, nonblocking)?
        };
        if is_ours {
            this.wait_for_endless(0);
        } else if this.is_idle() {
            OpenFile::defer(this);
        }
        Ok(bytes)
    }

    #[inline]
    fn ioctl(this: ArcBorrow<'_, OpenFile<Self>>, cmd: u32, arg: usize) -> Result {
        match Command::new(cmd, arg)? {
            Command::ExchangeFeatures(mask) => this.ours()?.exchange_features(mask),
            Command::Register(arg) => {
                this.ours()?;
                Self::register(this, arg)
            }
            Command::Unregister(arg) => this.ours()?.unregister(arg),
            Command::Stamp(arg) => this.stamp(arg),
        }
    }

    fn waiter_added(&self) {
        self.state.lock().notified = false;
    }

    fn poll(&self) -> PollMask {
        let state = self.state.lock();
        let mut mask = 0;
        if state.regions.is_readable() {
            mask |= POLL_READABLE;
        }
        if self.is_dead(&state) {
            mask |= POLL_READABLE | POLL_HUNG_UP;
        }
        mask
    }

    fn may_map(&self) -> Result {
        self.ours().map(|_| ())
    }

    fn show_fdinfo(&self, out: &SeqFile) {
        let state = self.state.lock();
        let (regions, queued, counter) = (
            state.regions.len(),
            state.regions.queued(),
            state.regions.counter(),
        );
        let (deferred, merged) = (state.regions.deferred(), state.regions.merged());
        let locked = state.account.pages() << (PAGE_SHIFT - 10);
        let granted = self.granted.read_once();
        drop(state);
        seq_print!(out, "regions:\t{}\n", regions);
        seq_print!(out, "queued:\t{}\n", queued);
        seq_print!(out, "counter:\t{}\n", counter);
        seq_print!(out, "limit:\t{}\n", self.most_regions);
        seq_print!(out, "deferred:\t{}\n", deferred);
        seq_print!(out, "merged:\t{}\n", merged);
        seq_print!(out, "locked:\t{} kB\n", locked);
        seq_print!(out, "features:\t0x{:x} granted 0x{:x}\n", FEATURES, granted);
    }
}

impl MmuNotifier for OpenFile<WatchFile> {
    #[inline]
    fn invalidate_range_start(this: ArcBorrow<'_, Self>, range: &Range) {
        let event = || range.event();
        if range.start() == 0 && range.event() == Event::PROTECTION_AREA {
            WatchFile::start_endless(this, range);
        } else if this.gate.start(range.start(), range.end(), event) {
            WatchFile::hit(this, range);
        }
    }

    #[inline]
    fn invalidate_range_end(this: ArcBorrow<'_, Self>, range: &Range) {
        let event = || range.event();
        if range.start() == 0 && range.event() == Event::PROTECTION_AREA {
            WatchFile::end_endless(this, range);
        } else if this.gate.finish(event) {
            WatchFile::hit_again(this, range);
        }
    }

    fn release(this: ArcBorrow<'_, Self>) {
        // `quiet` may stay set: only tasks that share this mm check it, and none are left.
        let mut state = this.state.lock();
        state.dead = true;
        let has_regions = state.regions.len() > 0;
        drop(state);
        if this.waiters().notify_hung_up() || has_regions {
            OpenFile::defer(this);
        }
    }
}
