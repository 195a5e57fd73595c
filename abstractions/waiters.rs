// SPDX-License-Identifier: GPL-2.0

//! The tasks that wait for a file: in reads, in polls, and for `SIGIO`.
//!
//! C headers: [`include/linux/wait.h`](srctree/include/linux/wait.h),
//! [`include/linux/fs.h`](srctree/include/linux/fs.h)

use core::{
    cell::Cell,
    mem::MaybeUninit,
    ptr::{
        null_mut,
        NonNull, //
    },
};

use kernel::{
    bindings,
    error::to_result,
    fs::File,
    prelude::*,
    static_lock_class,
    types::Opaque, //
};

use super::signals;

/// What `poll` finds: a combination of the `POLL*` constants of [`kernel::bindings`].
pub(crate) type PollMask = bindings::__poll_t;

/// There is something to read.
pub(crate) const POLL_READABLE: PollMask = bindings::POLLIN | bindings::POLLRDNORM;

/// Nothing will come any more.
pub(crate) const POLL_HUNG_UP: PollMask = bindings::POLLHUP;

/// The most waiters that [`Waiters::notify_readable`] wakes.
const FEW: usize = 32;

/// A wait queue, and the list of files whose owners want a signal (`O_ASYNC`).
///
/// # Invariants
///
/// - `queue` is an initialised wait queue.
/// - `fasync` is only accessed by `fasync_helper()` and `kill_fasync()`, which lock it, and read by
///   volatile loads.
/// - `shared` is only accessed with the lock of `queue` held.
/// - `file` in it is null or points to a file that has not been released.
#[pin_data]
pub(crate) struct Waiters {
    #[pin]
    queue: Opaque<bindings::wait_queue_head>,
    fasync: Opaque<*mut bindings::fasync_struct>,
    shared: Cell<Shared>,
}

#[derive(Clone, Copy)]
struct Shared {
    /// The file that can be in `fasync`.
    file: *mut bindings::file,
    /// What is left to [`Waiters::notify_rest`].
    rest: Rest,
}

/// What is too much to be done by whoever notifies.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Rest {
    /// There are many waiters to wake.
    wake: bool,
    /// There is a process group to signal.
    signal: bool,
}

const NO_REST: Rest = Rest {
    wake: false,
    signal: false,
};

// SAFETY: By the type invariants all accesses are synchronised.
unsafe impl Send for Waiters {}
// SAFETY: By the type invariants all accesses are synchronised.
unsafe impl Sync for Waiters {}

impl Waiters {
    /// Creates a queue that nobody waits in.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            queue <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid, and pinned.
                unsafe {
                    bindings::__init_waitqueue_head(
                        slot,
                        c"ummunotify".as_char_ptr(),
                        static_lock_class!().as_ptr(),
                    )
                }
            }),
            fasync: Opaque::new(null_mut()),
            shared: Cell::new(Shared {
                file: null_mut(),
                rest: NO_REST,
            }),
        })
    }

    /// Says which file's owner [`Self::update_fasync`] is about.
    ///
    /// # Safety
    ///
    /// `file` must stay valid until [`Self::close`] is called.
    pub(super) unsafe fn open(&self, file: &File) {
        self.with_lock(|this| {
            this.shared.set(Shared {
                file: file.as_ptr(),
                ..this.shared.get()
            })
        });
    }

    /// The file is about to go away.
    pub(super) fn close(&self) {
        self.with_lock(|this| {
            this.shared.set(Shared {
                file: null_mut(),
                ..this.shared.get()
            })
        });
    }

    /// Adds the caller of `poll` to those who are woken, if it wants that; returns whether it did.
    ///
    /// # Safety
    ///
    /// `table` must be null or valid. `self` must stay valid until `file` is released.
    #[inline]
    pub(super) unsafe fn poll_wait(&self, file: &File, table: *mut bindings::poll_table) -> bool {
        // SAFETY: By the safety requirements and the type invariants. Whoever is in the queue has a
        // reference to the file, or is taken out before the file is released.
        unsafe {
            bindings::poll_wait(file.as_ptr(), self.queue.get(), table);
            // Without these the caller only looks.
            !table.is_null() && (*table)._qproc.is_some()
        }
    }

    /// Adds a file to those whose owner gets a signal, or takes it out: the `fasync` operation.
    ///
    /// # Safety
    ///
    /// `file` must be that of [`Self::open`], and be taken out before [`Self::close`].
    pub(super) unsafe fn update_fasync(&self, fd: c_int, file: &File, on: c_int) -> Result {
        // SAFETY: The file and the list are valid. What stays in the list does not outlive it, by
        // the safety requirement.
        let result = unsafe { bindings::fasync_helper(fd, file.as_ptr(), on, self.fasync.get()) };
        to_result(result.min(0))
    }

    /// Tells those who wait that there is something to read.
    ///
    /// They must check for it after they have joined the queue, under a lock, and the caller must
    /// have held that lock for the change that they wait for. So it finds them in the queue, or
    /// they find the change.
    ///
    /// Does not sleep. Costs two loads if nobody waits, and otherwise at most a constant: many
    /// waiters are left alone, and so are the processes of a group that are to get a signal.
    /// Returns `true` then, and [`Self::notify_rest`] must be called from elsewhere.
    #[inline]
    #[must_use = "the rest must be notified"]
    pub(crate) fn notify_readable(&self) -> bool {
        if self.is_empty() && !self.has_fasync() {
            return false;
        }
        self.notify_few(POLL_READABLE, true)
    }

    /// Returns whether nobody is in the queue, as `waitqueue_active()` does.
    #[inline]
    fn is_empty(&self) -> bool {
        let head = self.head();
        // SAFETY: The queue is initialised by the type invariants. Others may change the pointer,
        // so the load is volatile.
        unsafe { (&raw const (*head).next).read_volatile() == head }
    }

    #[inline]
    fn has_fasync(&self) -> bool {
        // SAFETY: The pointer is valid for reads; it is only compared.
        !unsafe { self.fasync.get().read_volatile() }.is_null()
    }

    #[inline]
    fn head(&self) -> *mut bindings::list_head {
        // SAFETY: The field is in bounds.
        unsafe { &raw mut (*self.queue.get()).head }
    }

    /// Tells those who wait that nothing will come any more, likewise. There is no signal for that.
    #[must_use = "the rest must be notified"]
    pub(crate) fn notify_hung_up(&self) -> bool {
        !self.is_empty() && self.notify_few(POLL_READABLE | POLL_HUNG_UP, false)
    }

    #[cold]
    fn notify_few(&self, events: PollMask, wants_signal: bool) -> bool {
        let (found, has_fasync) = self.with_lock(|this| {
            let has_fasync = wants_signal && this.has_fasync();
            let found = Rest {
                wake: !this.has_at_most(FEW),
                signal: has_fasync && this.owner_is_group(),
            };
            let shared = this.shared.get();
            let rest = Rest {
                wake: shared.rest.wake || found.wake,
                signal: shared.rest.signal || found.signal,
            };
            this.shared.set(Shared { rest, ..shared });
            (found, has_fasync)
        });
        if !found.wake {
            self.wake_all(events);
        }
        if has_fasync && !found.signal {
            self.signal();
        }
        found != NO_REST
    }

    /// Does what [`Self::notify_readable`] has left over.
    pub(crate) fn notify_rest(&self) {
        let rest = self.with_lock(|this| {
            let shared = this.shared.get();
            this.shared.set(Shared {
                rest: NO_REST,
                ..shared
            });
            shared.rest
        });
        if rest.wake {
            self.wake_all(POLL_READABLE | POLL_HUNG_UP);
        }
        if rest.signal {
            self.signal();
        }
    }

    /// Wakes all who wait for one of `events`.
    ///
    /// Those who asked to be woken one at a time (`EPOLLEXCLUSIVE`) too: there is no further wake-up
    /// until somebody reads, and the one need not be the one who does.
    fn wake_all(&self, events: PollMask) {
        // SAFETY: The queue is initialised by the type invariants.
        unsafe {
            bindings::__wake_up(self.queue.get(), bindings::TASK_NORMAL, 0, key(events));
        }
    }

    /// Sends `SIGIO`, or the signal chosen with `F_SETSIG`, with `POLL_IN` to the file's owner.
    fn signal(&self) {
        // SAFETY: The list is valid by the type invariants.
        unsafe {
            bindings::kill_fasync(
                self.fasync.get(),
                bindings::SIGIO as c_int,
                bindings::POLL_IN as c_int,
            )
        };
    }

    /// Waits until `ready` returns something; fails with `ERESTARTSYS` when a signal is pending.
    ///
    /// `ready` is called with the task in the queue, and not running by name: it must not sleep.
    pub(crate) fn wait_interruptible<R>(&self, mut ready: impl FnMut() -> Option<R>) -> Result<R> {
        let mut entry = MaybeUninit::<bindings::wait_queue_entry>::uninit();
        let entry = entry.as_mut_ptr();
        // SAFETY: The entry is valid for writes, and stays where it is until `finish_wait()` has
        // taken it out of the queue.
        unsafe { bindings::init_wait_entry(entry, 0) };
        let result = loop {
            // SAFETY: The queue and the entry are initialised.
            unsafe {
                bindings::prepare_to_wait(
                    self.queue.get(),
                    entry,
                    bindings::TASK_INTERRUPTIBLE as c_int,
                )
            };
            if let Some(found) = ready() {
                break Ok(found);
            }
            if signals::is_pending() {
                break Err(ERESTARTSYS);
            }
            // SAFETY: This is a task that may sleep.
            unsafe { bindings::schedule() };
        };
        // SAFETY: As above.
        unsafe { bindings::finish_wait(self.queue.get(), entry) };
        result
    }

    /// The lock of the queue must be held.
    fn has_at_most(&self, most: usize) -> bool {
        let head = self.head();
        let mut next = head;
        for _ in 0..=most {
            // SAFETY: The list is valid, and does not change while its lock is held.
            next = unsafe { (*next).next };
            if next == head {
                return true;
            }
        }
        false
    }

    /// The lock of the queue must be held.
    fn owner_is_group(&self) -> bool {
        let Some(file) = NonNull::new(self.shared.get().file) else {
            return false;
        };
        // SAFETY: By the type invariants the file has not been released. What says who owns it is
        // allocated once and freed after that. Others may change it, so the loads are volatile.
        unsafe {
            let owner = (&raw const (*file.as_ptr()).f_owner).read_volatile();
            !owner.is_null()
                && (&raw const (*owner).pid_type).read_volatile() > bindings::pid_type_PIDTYPE_TGID
        }
    }

    fn with_lock<R>(&self, f: impl FnOnce(&Self) -> R) -> R {
        let queue = self.queue.get();
        // SAFETY: The queue is initialised by the type invariants. Wake-up functions expect
        // interrupts to be disabled, except where spinlocks sleep.
        #[cfg(not(CONFIG_PREEMPT_RT))]
        unsafe {
            // CAST: A spinlock begins with its raw spinlock.
            let lock = (&raw mut (*queue).lock).cast::<bindings::raw_spinlock_t>();
            let flags = bindings::_raw_spin_lock_irqsave(lock);
            let result = f(self);
            bindings::_raw_spin_unlock_irqrestore(lock, flags);
            result
        }
        // SAFETY: As above.
        #[cfg(CONFIG_PREEMPT_RT)]
        unsafe {
            bindings::spin_lock(&raw mut (*queue).lock);
            let result = f(self);
            bindings::spin_unlock(&raw mut (*queue).lock);
            result
        }
    }
}

/// `poll_to_key()`: which events a wake-up is for.
fn key(events: PollMask) -> *mut c_void {
    core::ptr::without_provenance_mut(events as usize)
}
