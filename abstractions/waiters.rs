// SPDX-License-Identifier: GPL-2.0

//! The waiters of a file: in reads, in polls, and for `SIGIO`.
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
    container_of,
    error::to_result,
    fs::File,
    prelude::*,
    static_lock_class,
    types::Opaque, //
};

use super::signals;

/// The result of `poll`: a combination of the `POLL*` constants of [`kernel::bindings`].
pub(crate) type PollMask = bindings::__poll_t;

/// There is something to read.
pub(crate) const POLL_READABLE: PollMask = bindings::POLLIN | bindings::POLLRDNORM;

/// No more events will come.
pub(crate) const POLL_HUNG_UP: PollMask = bindings::POLLHUP;

/// The most waiters to wake in one section of the lock of a queue.
const FEW: usize = 32;

/// Two wait queues, and the list of files whose owners want a signal (`O_ASYNC`).
///
/// Readers are tasks that sleep in a read; pollers are all others that wait for an event.
///
/// # Invariants
///
/// - `readers` and `pollers` are initialised wait queues.
/// - `fasync` is only accessed by `fasync_helper()` and `kill_fasync()`, which lock it, and read by
///   volatile loads.
/// - `shared` is only accessed with the lock of `pollers` held.
/// - `file` in it is null or points to a file that has not been released.
#[pin_data]
pub(crate) struct Waiters {
    #[pin]
    readers: Opaque<bindings::wait_queue_head>,
    #[pin]
    pollers: Opaque<bindings::wait_queue_head>,
    fasync: Opaque<*mut bindings::fasync_struct>,
    shared: Cell<Shared>,
}

#[derive(Clone, Copy)]
struct Shared {
    /// The file that may be in `fasync`.
    file: *mut bindings::file,
    /// The work left to [`Waiters::notify_rest`].
    rest: Rest,
}

/// Work that is too much for the notifying task.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Rest {
    /// There are many tasks to wake.
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
    /// Creates empty queues.
    pub(super) fn new() -> impl PinInit<Self> {
        let queue = || {
            Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is valid, and pinned.
                unsafe {
                    bindings::__init_waitqueue_head(
                        slot,
                        c"ummunotify".as_char_ptr(),
                        static_lock_class!().as_ptr(),
                    )
                }
            })
        };
        pin_init!(Self {
            readers <- queue(),
            pollers <- queue(),
            fasync: Opaque::new(null_mut()),
            shared: Cell::new(Shared {
                file: null_mut(),
                rest: NO_REST,
            }),
        })
    }

    /// Sets the file for [`Self::update_fasync`].
    ///
    /// # Safety
    ///
    /// `file` must stay valid until [`Self::close`] is called.
    pub(super) unsafe fn open(&self, file: &File) {
        self.with_shared(|shared| shared.file = file.as_ptr());
    }

    /// Clears the file, which is about to go away.
    pub(super) fn close(&self) {
        self.with_shared(|shared| shared.file = null_mut());
    }

    /// Adds the caller of `poll` to the pollers, if it wants to wait; returns whether it did.
    ///
    /// # Safety
    ///
    /// `table` must be null or valid. `self` must stay valid until `file` is released.
    #[inline]
    pub(super) unsafe fn poll_wait(&self, file: &File, table: *mut bindings::poll_table) -> bool {
        // SAFETY: By the safety requirements and the type invariants. An entry of the queue has a
        // reference to the file, or is removed before the file is released.
        unsafe {
            bindings::poll_wait(file.as_ptr(), self.pollers.get(), table);
            // Otherwise the caller only queries.
            !table.is_null() && (*table)._qproc.is_some()
        }
    }

    /// Adds a file to those whose owner gets a signal, or removes it: the `fasync` operation.
    ///
    /// # Safety
    ///
    /// `file` must be that of [`Self::open`], and must be removed before [`Self::close`].
    pub(super) unsafe fn update_fasync(&self, fd: c_int, file: &File, on: c_int) -> Result {
        // SAFETY: The file and the list are valid. By the safety requirement, an entry in the list
        // does not outlive the file.
        let result = unsafe { bindings::fasync_helper(fd, file.as_ptr(), on, self.fasync.get()) };
        to_result(result.min(0))
    }

    /// Returns whether there are no waiters.
    ///
    /// Waiters must check their condition after they have joined, under a lock. If the caller holds
    /// that lock while it changes the condition, either the caller finds the waiters here, or they
    /// find the change. Costs three loads.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        !Self::is_active(&self.readers) && !Self::is_active(&self.pollers) && !self.has_fasync()
    }

    #[inline]
    fn has_fasync(&self) -> bool {
        // SAFETY: The pointer is valid for reads; it is only compared.
        !unsafe { self.fasync.get().read_volatile() }.is_null()
    }

    /// `waitqueue_active()`.
    #[inline]
    fn is_active(queue: &Opaque<bindings::wait_queue_head>) -> bool {
        // SAFETY: The queue is initialised. Others may change the pointer, so the load is volatile.
        unsafe {
            let head = &raw mut (*queue.get()).head;
            (&raw const (*head).next).read_volatile() != head
        }
    }

    /// Notifies waiters that there is something to read.
    ///
    /// Does not sleep. The caller need not pay for others: this wakes at most a few readers and a
    /// few pollers, and signals at most one process. Returns whether some are left; then
    /// [`Self::notify_rest`] must be called elsewhere.
    ///
    /// One poller may be an epoll instance that many others wait for. Writers to eventfds and pipes
    /// pay for these, too.
    #[cold]
    #[must_use = "the rest must be notified"]
    pub(crate) fn notify_readable(&self) -> bool {
        self.notify_few(POLL_READABLE, true)
    }

    /// Notifies waiters that no more events will come, likewise. There is no signal for this.
    #[must_use = "the rest must be notified"]
    pub(crate) fn notify_hung_up(&self) -> bool {
        self.notify_few(POLL_READABLE | POLL_HUNG_UP, false)
    }

    fn notify_few(&self, events: PollMask, wants_signal: bool) -> bool {
        // SAFETY: The queue is initialised by the type invariants. Readers are exclusive waiters,
        // so only this number of them is woken.
        unsafe {
            let few = FEW as c_int;
            bindings::__wake_up(self.readers.get(), bindings::TASK_NORMAL, few, key(events));
        }
        let has_many_readers = Self::is_active(&self.readers);
        let has_fasync = wants_signal && self.has_fasync();
        let rest = self.with_shared(|shared| {
            let rest = Rest {
                // SAFETY: The queue is valid, and its lock is held.
                wake: !unsafe { wake_if_few(self.pollers.get(), events) } || has_many_readers,
                signal: has_fasync && shared.owner_is_group(),
            };
            shared.rest.wake |= rest.wake;
            shared.rest.signal |= rest.signal;
            rest
        });
        if has_fasync && !rest.signal {
            self.signal();
        }
        rest != NO_REST
    }

    /// Does what [`Self::notify_readable`] and [`Self::notify_hung_up`] have left over. May sleep.
    ///
    /// Must not be called concurrently with itself.
    pub(crate) fn notify_rest(&self) {
        let rest = self.with_shared(|shared| core::mem::replace(&mut shared.rest, NO_REST));
        if rest.wake {
            wake_in_pieces(&self.readers);
            wake_in_pieces(&self.pollers);
        }
        if rest.signal {
            self.signal();
        }
    }

    /// Sends `SIGIO`, or the signal chosen with `F_SETSIG`, to the file's owner. `si_code` is
    /// `POLL_IN` if `F_SETSIG` was used, otherwise `SI_KERNEL`.
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

    fn with_shared<R>(&self, f: impl FnOnce(&mut Shared) -> R) -> R {
        // SAFETY: The queue is initialised by the type invariants.
        unsafe {
            with_lock(self.pollers.get(), || {
                let mut shared = self.shared.get();
                let result = f(&mut shared);
                self.shared.set(shared);
                result
            })
        }
    }

    /// Waits until `is_ready` returns true; fails with `ERESTARTSYS` if a signal is pending.
    ///
    /// `is_ready` is called with the task in the queue and its state set, so it must not sleep.
    pub(crate) fn wait_interruptible(&self, mut is_ready: impl FnMut() -> bool) -> Result {
        let mut entry = MaybeUninit::<bindings::wait_queue_entry>::uninit();
        let entry = entry.as_mut_ptr();
        // SAFETY: The entry is valid for writes, and stays in place until `finish_wait()` has
        // removed it from the queue.
        unsafe { bindings::init_wait_entry(entry, bindings::WQ_FLAG_EXCLUSIVE as c_int) };
        let result = loop {
            // SAFETY: The queue and the entry are initialised.
            unsafe {
                bindings::prepare_to_wait_exclusive(
                    self.readers.get(),
                    entry,
                    bindings::TASK_INTERRUPTIBLE as c_int,
                )
            };
            if is_ready() {
                break Ok(());
            }
            if signals::is_pending() {
                break Err(ERESTARTSYS);
            }
            // SAFETY: This task may sleep.
            unsafe { bindings::schedule() };
        };
        // SAFETY: As above.
        unsafe { bindings::finish_wait(self.readers.get(), entry) };
        result
    }
}

impl Shared {
    fn owner_is_group(&self) -> bool {
        let Some(file) = NonNull::new(self.file) else {
            return false;
        };
        // SAFETY: By the type invariants of `Waiters`, the file has not been released. The owner
        // structure is allocated once and freed after that. Others may change it, so the loads are
        // volatile.
        unsafe {
            let owner = (&raw const (*file.as_ptr()).f_owner).read_volatile();
            !owner.is_null()
                && (&raw const (*owner).pid_type).read_volatile() > bindings::pid_type_PIDTYPE_TGID
        }
    }
}

/// `poll_to_key()`: the events of a wake-up.
fn key(events: PollMask) -> *mut c_void {
    core::ptr::without_provenance_mut(events as usize)
}

/// Wakes all entries of `queue` that wait for one of `events`, if there are no more than [`FEW`];
/// returns whether that was so.
///
/// This includes exclusive ones (`EPOLLEXCLUSIVE`): there is no other wake-up until somebody reads,
/// and a single woken task might not.
///
/// # Safety
///
/// `queue` must be initialised, and its lock be held.
unsafe fn wake_if_few(queue: *mut bindings::wait_queue_head, events: PollMask) -> bool {
    // SAFETY: By the safety requirement, the list is valid, and does not change, except that an
    // entry may remove itself when it is woken.
    unsafe {
        let head = &raw mut (*queue).head;
        let mut next = (*head).next;
        for _ in 0..FEW {
            if next == head {
                break;
            }
            next = (*next).next;
        }
        if next != head {
            return false;
        }
        next = (*head).next;
        while next != head {
            let entry = container_of!(next, bindings::wait_queue_entry, entry);
            next = (*next).next;
            wake(entry, events);
        }
    }
    true
}

/// # Safety
///
/// `entry` must be in a wait queue whose lock is held.
unsafe fn wake(entry: *mut bindings::wait_queue_entry, events: PollMask) {
    // SAFETY: By the safety requirement.
    unsafe {
        if let Some(function) = (*entry).func {
            function(entry, bindings::TASK_NORMAL, 0, key(events));
        }
    }
}

/// Wakes all entries of `queue`, [`FEW`] in each section of its lock.
///
/// A bookmark in the queue marks how far it has come.
fn wake_in_pieces(queue: &Opaque<bindings::wait_queue_head>) {
    /// # Safety
    ///
    /// May always be called.
    unsafe extern "C" fn pass(
        _entry: *mut bindings::wait_queue_entry,
        _mode: c_uint,
        _flags: c_int,
        _key: *mut c_void,
    ) -> c_int {
        0
    }
    let mut bookmark = bindings::wait_queue_entry {
        func: Some(pass),
        ..pin_init::zeroed()
    };
    let bookmark = &raw mut bookmark.entry;
    let queue = queue.get();
    // SAFETY: The queue is initialised and, whenever its lock is held, is a valid list of valid
    // entries. The bookmark stays in it until this returns. It is moved behind an entry before that
    // is woken, since waking may remove the entry.
    unsafe {
        let head = &raw mut (*queue).head;
        with_lock(queue, || insert(bookmark, head));
        let mut is_done = false;
        while !is_done {
            is_done = with_lock(queue, || {
                for _ in 0..FEW {
                    let next = (*bookmark).next;
                    take_out(bookmark);
                    if next == head {
                        return true;
                    }
                    insert(bookmark, next);
                    let entry = container_of!(next, bindings::wait_queue_entry, entry);
                    wake(entry, POLL_READABLE | POLL_HUNG_UP);
                }
                false
            });
        }
    }
}

/// `list_add()`: inserts `entry` after `previous`.
///
/// # Safety
///
/// `previous` must be in a valid list, and `entry` be valid and in none.
unsafe fn insert(entry: *mut bindings::list_head, previous: *mut bindings::list_head) {
    // SAFETY: By the safety requirement.
    unsafe {
        let next = (*previous).next;
        entry.write(bindings::list_head {
            next,
            prev: previous,
        });
        (*next).prev = entry;
        // Others look at it without the lock.
        (&raw mut (*previous).next).write_volatile(entry);
    }
}

/// `__list_del_entry()`.
///
/// # Safety
///
/// `entry` must be in a valid list.
unsafe fn take_out(entry: *mut bindings::list_head) {
    // SAFETY: By the safety requirement.
    unsafe {
        let bindings::list_head { next, prev } = *entry;
        (*next).prev = prev;
        // As above.
        (&raw mut (*prev).next).write_volatile(next);
    }
}

/// Calls `f` with the lock of `queue` held. Wake-up functions expect interrupts to be disabled,
/// except where spinlocks sleep.
///
/// # Safety
///
/// `queue` must be initialised.
unsafe fn with_lock<R>(queue: *mut bindings::wait_queue_head, f: impl FnOnce() -> R) -> R {
    // SAFETY: By the safety requirement.
    #[cfg(not(CONFIG_PREEMPT_RT))]
    unsafe {
        // CAST: A spinlock begins with its raw spinlock.
        let lock = (&raw mut (*queue).lock).cast::<bindings::raw_spinlock_t>();
        let flags = bindings::_raw_spin_lock_irqsave(lock);
        let result = f();
        bindings::_raw_spin_unlock_irqrestore(lock, flags);
        result
    }
    // SAFETY: By the safety requirement.
    #[cfg(CONFIG_PREEMPT_RT)]
    unsafe {
        bindings::spin_lock(&raw mut (*queue).lock);
        let result = f();
        bindings::spin_unlock(&raw mut (*queue).lock);
        result
    }
}
