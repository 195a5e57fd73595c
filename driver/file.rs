// SPDX-License-Identifier: GPL-2.0

//! What an open file owns, and its operations.
//!
//! # Locking
//!
//! There is one lock, the spinlock around [`State`]. Nothing here runs in interrupt context, so
//! that interrupts stay enabled under it. This is what runs, and what the caller holds:
//!
//! - The callbacks for ranges, in any task, `kswapd` and the out-of-memory reaper among them: any
//!   of the mmap lock, a VMA lock and the rmap locks, in an SRCU read section that is common to all
//!   MMU notifiers, possibly while memory is being reclaimed. See [`MmuNotifier`].
//! - [`release`](MmuNotifier::release), when the address space is torn down or the file is closed,
//!   whichever comes first, or both at once: that SRCU read section, and nothing else.
//! - [`open`](CharFile::open): `misc_mtx`. It takes the mmap lock for writing and then all VMA and
//!   rmap locks of the address space.
//! - To close the file takes no lock, but waits for the end of all SRCU read sections.
//! - `mmap` and page faults of what is mapped: the mmap lock. They do not look at the state.
//! - All else: locks of whoever waits for the file or reads its `fdinfo`, which are never held when
//!   mappings are changed.
//!
//! So the order is: `misc_mtx`, mmap lock, VMA locks, rmap locks, the lock of the state, and the
//! lock of the wait queue, which a reader takes before it sleeps. Under the lock of the state
//! nothing is allocated, nothing is freed, nothing sleeps, user memory is only written where no
//! page fault is needed, and but for the one of the wait queue no lock is taken. Waiters and
//! `SIGIO` are seen to after it is released.
//!
//! # Order of what user space sees
//!
//! Under the lock first the event is queued, then the counter is stored with release semantics. Who
//! sees the new counter and reads therefore takes the lock later and finds the event. The callbacks
//! return before the kernel goes on with the system call that made the change, so when that returns
//! the counter has moved and the event is there.
//!
//! A read that must not block and finds nothing sets `quiet` under the lock, and whoever queues an
//! event unsets it under the lock, before the counter is stored with release semantics. So who sees
//! the new counter sees that too, and takes the lock. A read that finds it set was there before the
//! event was: it fails as if it had come first.
//!
//! A waiter puts itself on the wait queue first and looks at the state under the lock after that;
//! the callbacks change the state under the lock and then look for waiters. So none sleeps on.

use core::mem::MaybeUninit;

use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    c_str,
    fs::{
        file::flags::{
            O_ACCMODE,
            O_RDONLY, //
        },
        File, //
    },
    mm::Mm,
    new_spinlock,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    static_lock_class,
    sync::{
        aref::ARef,
        atomic::Release,
        poll::PollTable,
        Arc,
        SpinLock,
        SpinLockGuard, //
    },
    types::ForeignOwnable,
    uaccess::UserPtr, //
};

use crate::{
    abstractions::{
        char_file::{
            CharFile,
            PollMask,
            POLL_HUNG_UP,
            POLL_READABLE, //
        },
        compat::{
            parameter,
            PollCondVarBox, //
        },
        destination::Destination,
        fasync::FasyncList,
        marked::Marked,
        mmu_notifier::{
            MmuNotifier,
            Range,
            Registration, //
        },
        shared_page::SharedPage, //
    },
    module_parameters, //
};

use super::{
    event,
    gate::Gate,
    ioctl::{
        self,
        Command,
        Word, //
    },
    regions::{
        Batch,
        NewRegion,
        RegionCache,
        Regions, //
    }, //
};

/// The features that can be granted.
const FEATURES: u32 = 0;

/// The most events that are copied to user space without letting go of the lock in between.
const BATCH: usize = 48;

/// How often a read brings in its destination anew before it gives up with `EFAULT`.
///
/// Only when memory is so short that what was brought in is gone at once does it take more than one
/// time.
const FAULT_IN_TRIES: usize = 16;

/// An open file: what one opener watches in its address space.
#[pin_data]
pub(crate) struct WatchFile {
    /// The opener's address space.
    mm: ARef<Mm>,
    /// Where the memory of regions comes from.
    cache: Arc<RegionCache>,
    /// The most regions that may be registered.
    limit: usize,
    /// The page with the generation counter, at [`COUNTER`].
    page: SharedPage,
    /// Where reads and polls wait.
    waiters: PollCondVarBox,
    /// Who wants `SIGIO`.
    fasync: FasyncList,
    /// There is nothing to be read, as one has found out. Written with the lock held.
    quiet: Marked<bool>,
    gate: Gate,
    #[pin]
    state: SpinLock<State>,
}

/// Which word of the mapped page is the generation counter.
const COUNTER: usize = 0;

/// What may change while a file is open.
struct State {
    regions: Regions,
    /// The file was read, or a region registered, or features negotiated: too late for the latter.
    used: bool,
    /// The opener's address space is gone, so nothing will happen any more.
    dead: bool,
    /// The number of readers that sleep.
    sleepers: usize,
    /// The file was polled, so somebody may be waiting for it from now on.
    polled: bool,
}

impl WatchFile {
    fn new(mm: &Mm, cache: &Arc<RegionCache>) -> Result<impl PinInit<Self, Error> + use<>> {
        let mm = ARef::from(mm);
        let cache = cache.clone();
        let limit = parameter::<u32>(module_parameters::max_regions.value()) as usize;
        let page = SharedPage::new()?;
        let waiters = PollCondVarBox::new(c_str!("ummunotify"), static_lock_class!())?;
        Ok(try_pin_init!(Self {
            mm,
            cache,
            limit,
            page,
            waiters,
            fasync: FasyncList::new(),
            quiet: Marked::new(false),
            gate: Gate::new(),
            state <- new_spinlock!(
                State {
                    regions: Regions::new(),
                    used: false,
                    dead: false,
                    sleepers: 0,
                    polled: false,
                },
                "ummunotify"
            ),
        }))
    }

    /// Returns whether the caller lives in the opener's address space, as its threads and its
    /// `vfork` children do.
    #[inline]
    fn is_ours(&self) -> bool {
        kernel::current!()
            .mm()
            .is_some_and(|mm| mm.as_raw() == self.mm.as_raw())
    }

    /// Returns the file to who lives there, and `EPERM` to others.
    #[inline]
    fn ours(&self) -> Result<&Self> {
        if self.is_ours() {
            Ok(self)
        } else {
            Err(EPERM)
        }
    }

    /// Publishes what an invalidation has changed, then tells those who wait for it.
    #[inline]
    fn invalidate(&self, change: impl FnOnce(&mut Regions) -> bool) {
        let mut state = self.state.lock();
        if !change(&mut state.regions) {
            return;
        }
        self.quiet.write_once(false);
        let counter = state.regions.counter();
        self.page.word::<COUNTER>().store(counter, Release);
        let has_waiters = state.polled || state.sleepers > 0;
        drop(state);

        if has_waiters {
            self.waiters.notify_all();
        }
        self.fasync.notify_readable();
    }

    // These two are not inlined, so that the callbacks need not save the registers that they use
    // where there is nothing to do.

    #[inline(never)]
    fn hit(&self, range: &Range) {
        self.invalidate(|regions| regions.hit(range.start(), range.last()));
    }

    #[inline(never)]
    fn hit_again(&self, range: &Range) {
        self.invalidate(|regions| {
            let hit = regions.hit_again(range.start(), range.last());
            self.gate.forget_rearmed();
            hit
        });
    }

    fn exchange_features(&self, mask: Word) -> Result {
        if self.state.lock().used {
            return Err(EINVAL);
        }
        let granted = mask.read()? & FEATURES;
        // A bad pointer must not use up the only chance, so this comes before `used` is set.
        mask.write(granted)?;
        if core::mem::replace(&mut self.state.lock().used, true) {
            return Err(EINVAL);
        }
        Ok(())
    }

    #[inline]
    fn register(&self, arg: UserPtr) -> Result {
        let bounds = ioctl::read_bounds(arg)?;
        let new = NewRegion::new(&self.cache)?;
        let mut state = self.state.lock();
        state.used = true;
        if state.regions.len() >= self.limit {
            return Err(ENOSPC);
        }
        let result =
            state
                .regions
                .register(&self.gate, new, bounds.start, bounds.last, bounds.cookie);
        // What is handed back where the cookie is taken is freed after the lock is released.
        drop(state);
        result.map_err(|_| EINVAL)
    }

    #[inline]
    fn unregister(&self, arg: UserPtr) -> Result {
        let cookie = ioctl::read_cookie(arg)?;
        let old = self.state.lock().regions.unregister(&self.gate, cookie);
        // The region is freed here, after the lock is released.
        old.map(drop).ok_or(EINVAL)
    }

    /// Waits until there is something to be read; `false` stands for the end of what can be.
    ///
    /// That is where the address space is gone, or the caller has read something already and must
    /// not wait for more. Where it must not wait at all, this fails with `EAGAIN`.
    #[cold]
    fn wait(
        &self,
        state: &mut SpinLockGuard<'_, State>,
        nonblocking: bool,
        has_read: bool,
    ) -> Result<bool> {
        while !state.regions.is_readable() {
            if state.dead || has_read {
                return Ok(false);
            }
            if nonblocking {
                self.quiet.write_once(true);
                return Err(EAGAIN);
            }
            state.sleepers += 1;
            let interrupted = self.waiters.wait_interruptible(state);
            state.sleepers -= 1;
            if interrupted {
                return Err(ERESTARTSYS);
            }
        }
        Ok(true)
    }

    /// Copies one record to `destination`, which is smaller than two; returns `false` where that
    /// takes more than to copy it.
    ///
    /// Programs written for V2 read like that.
    #[inline]
    fn read_one(&self, destination: &mut impl Destination) -> bool {
        let mut state = self.state.lock();
        let Some(record) = state.regions.front() else {
            return false;
        };
        let copied = destination.copy_nofault(&[record]) == 1;
        if copied {
            // `used` is set: the record is about a region, and that was registered.
            state.regions.pop(&self.gate);
        }
        copied
    }

    /// Copies records to `destination`, as many as there are and it has room for.
    ///
    /// Where there are none, it waits for them if it may, or else fails with `EAGAIN`.
    #[inline(never)]
    fn read_all(&self, destination: &mut impl Destination, nonblocking: bool) -> Result<usize> {
        let room = destination.len();
        let mut left = room;
        let mut tries = FAULT_IN_TRIES;
        while destination.len() >= event::SIZE {
            let mut state = self.state.lock();
            state.used = true;
            let has_read = destination.len() < room;
            if !state.regions.is_readable() && !self.wait(&mut state, nonblocking, has_read)? {
                break;
            }
            let mut memory = [const { MaybeUninit::uninit() }; BATCH];
            let most = destination.len().min(BATCH * event::SIZE) / event::SIZE;
            let batch = state
                .regions
                .read(&self.gate, &mut memory[..most], |records| {
                    destination.copy_nofault(records)
                });
            drop(state);

            match batch {
                // Who has read LAST may look no further, so nothing must follow it that came
                // meanwhile.
                Batch::Last => break,
                Batch::All => {}
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
}

#[vtable]
impl CharFile for WatchFile {
    type Common = Arc<RegionCache>;
    type Ptr = Pin<KBox<Registration<Self>>>;

    fn open(cache: &Arc<RegionCache>, file: &File) -> Result<Self::Ptr> {
        if file.flags() & O_ACCMODE != O_RDONLY {
            return Err(EINVAL);
        }
        let task = kernel::current!();
        let mm = task.mm().ok_or(ESRCH)?;
        KBox::pin_init(
            Registration::new(mm, Self::new(mm, cache)?),
            GFP_KERNEL_ACCOUNT,
        )
        .map_err(|error| {
            match error {
                // The kernel does not register a notifier while a signal is pending. That is not
                // the opener's concern: let it handle the signal and come back.
                EINTR => ERESTARTNOINTR,
                error => error,
            }
        })
    }

    fn of(data: <Self::Ptr as ForeignOwnable>::Borrowed<'_>) -> &Self {
        data.get_ref().callbacks()
    }

    #[inline]
    fn is_quiet(&self) -> bool {
        self.quiet.read_once()
    }

    #[inline]
    fn would_block(&self, len: usize) -> bool {
        self.is_quiet() && len >= event::SIZE && self.is_ours()
    }

    fn read(&self, destination: &mut impl Destination, nonblocking: bool) -> Result<usize> {
        if destination.len() == 0 {
            return Ok(0);
        }
        if destination.len() < event::SIZE {
            return Err(EINVAL);
        }
        if !self.is_ours() && !self.state.lock().dead {
            return Err(EPERM);
        }
        if destination.len() < 2 * event::SIZE && self.read_one(destination) {
            return Ok(event::SIZE);
        }
        self.read_all(destination, nonblocking)
    }

    #[inline]
    fn ioctl(&self, cmd: u32, arg: usize) -> Result {
        match Command::new(cmd, arg)? {
            Command::ExchangeFeatures(mask) => self.ours()?.exchange_features(mask),
            Command::Register(arg) => self.ours()?.register(arg),
            Command::Unregister(arg) => self.ours()?.unregister(arg),
        }
    }

    fn poll(&self, file: &File, table: PollTable<'_>) -> PollMask {
        table.register_wait(file, &self.waiters);
        let mut state = self.state.lock();
        state.polled = true;
        let mut mask = 0;
        if state.regions.is_readable() {
            mask |= POLL_READABLE;
        }
        if state.dead {
            mask |= POLL_READABLE | POLL_HUNG_UP;
        }
        mask
    }

    fn fasync(&self) -> &FasyncList {
        &self.fasync
    }

    fn shared_page(&self) -> &SharedPage {
        &self.page
    }

    fn show_fdinfo(&self, out: &SeqFile) {
        let state = self.state.lock();
        let (regions, queued, counter) = (
            state.regions.len(),
            state.regions.queued(),
            state.regions.counter(),
        );
        drop(state);
        seq_print!(out, "regions:\t{}\n", regions);
        seq_print!(out, "queued:\t{}\n", queued);
        seq_print!(out, "counter:\t{}\n", counter);
        seq_print!(out, "limit:\t{}\n", self.limit);
    }
}

impl MmuNotifier for WatchFile {
    #[inline]
    fn invalidate_range_start(&self, range: &Range) {
        if self.gate.start(range.start(), range.end()) {
            self.hit(range);
        }
    }

    #[inline]
    fn invalidate_range_end(&self, range: &Range) {
        if self.gate.finish() {
            self.hit_again(range);
        }
    }

    fn release(&self) {
        // `quiet` may stay set: it is for who lives in the address space, and nobody does.
        self.state.lock().dead = true;
        self.waiters.notify_all();
    }
}
