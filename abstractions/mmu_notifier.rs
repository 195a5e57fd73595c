// SPDX-License-Identifier: GPL-2.0

//! MMU notifiers: callbacks before and after page tables of an address space change.
//!
//! C header: [`include/linux/mmu_notifier.h`](srctree/include/linux/mmu_notifier.h)
//!
//! Reference: <https://docs.kernel.org/mm/mmu_notifier.html>

use core::ptr::NonNull;

use kernel::{
    bindings,
    container_of,
    error::to_result,
    mm::MmWithUser,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
    types::Opaque, //
};

/// The reason why mappings of a [`Range`] change: `enum mmu_notifier_event`.
///
/// Future kernels may have others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event(bindings::mmu_notifier_event);

impl Event {
    /// Creates an event as a future kernel may have it.
    #[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
    pub(crate) const fn of_number(number: u32) -> Self {
        Self(number)
    }

    /// The addresses are unmapped, or their mappings moved.
    pub(crate) const UNMAP: Self = Self(bindings::mmu_notifier_event_MMU_NOTIFY_UNMAP);
    /// Page table entries are cleared, for any other reason.
    pub(crate) const CLEAR: Self = Self(bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR);
    /// The protection of whole areas changes.
    pub(crate) const PROTECTION_AREA: Self =
        Self(bindings::mmu_notifier_event_MMU_NOTIFY_PROTECTION_VMA);
    /// The protection of pages changes.
    pub(crate) const PROTECTION_PAGE: Self =
        Self(bindings::mmu_notifier_event_MMU_NOTIFY_PROTECTION_PAGE);
    /// Page table entries are marked as not written to.
    pub(crate) const SOFT_DIRTY: Self = Self(bindings::mmu_notifier_event_MMU_NOTIFY_SOFT_DIRTY);
    /// The address space goes away. Not used for a [`Range`] today.
    pub(crate) const RELEASE: Self = Self(bindings::mmu_notifier_event_MMU_NOTIFY_RELEASE);
    /// Pages are moved to or from a device.
    pub(crate) const MIGRATE: Self = Self(bindings::mmu_notifier_event_MMU_NOTIFY_MIGRATE);
    /// Pages are made exclusive to a device.
    pub(crate) const EXCLUSIVE: Self = Self(bindings::mmu_notifier_event_MMU_NOTIFY_EXCLUSIVE);

    /// Returns the number of the event.
    #[inline]
    pub(crate) const fn number(self) -> u32 {
        self.0
    }
}

/// A range of addresses whose mappings are being changed.
///
/// # Invariants
///
/// `self.0` is a valid `struct mmu_notifier_range`.
#[repr(transparent)]
pub(crate) struct Range(Opaque<bindings::mmu_notifier_range>);

impl Range {
    /// Borrows a range that the kernel passed to a callback.
    ///
    /// # Safety
    ///
    /// `range` must point to a `struct mmu_notifier_range` that stays valid and is not written to
    /// for the duration of `'a`.
    unsafe fn from_raw<'a>(range: *const bindings::mmu_notifier_range) -> &'a Self {
        // INVARIANT: By the safety requirement.
        // SAFETY: By the safety requirement; `Self` is a transparent wrapper.
        unsafe { &*range.cast() }
    }

    /// Returns the first address of the range.
    #[inline]
    pub(crate) fn start(&self) -> usize {
        // SAFETY: By the type invariant.
        unsafe { (*self.0.get()).start }
    }

    /// Returns the first address after the range.
    #[inline]
    pub(crate) fn end(&self) -> usize {
        // SAFETY: By the type invariant.
        unsafe { (*self.0.get()).end }
    }

    /// Returns the last address of the range, which is not below [`Self::start`].
    #[inline]
    pub(crate) fn last(&self) -> usize {
        let end = self.end();
        // The kernel has no reason to invalidate an empty range. If it does, report too much.
        end.saturating_sub(1).max(self.start())
    }

    /// Returns the reason for the change.
    #[inline]
    pub(crate) fn event(&self) -> Event {
        // SAFETY: By the type invariant.
        Event(unsafe { (*self.0.get()).event })
    }
}

/// Waits for a grace period, after which notifiers that were put earlier are freed. Sleeps.
pub(crate) fn synchronize() {
    // SAFETY: This may be called anywhere except in callbacks, which must not sleep.
    unsafe { bindings::mmu_notifier_synchronize() };
}

/// Keeps the module loaded while it lives, and for an RCU grace period afterwards.
///
/// # Safety
///
/// The module must not be unloaded while there is a value of this type, nor before
/// `synchronize_rcu()` has returned after the last one was dropped.
pub(crate) unsafe trait HoldsModule {}

/// The callbacks of an MMU notifier.
///
/// All of them may run concurrently and on any CPU. They run in process context, in the task that
/// changes the mapping. This need not be a task of the mapped process and may be a kernel thread.
/// It may hold the mmap lock, a VMA lock, or only the rmap locks of a page, and it may be
/// reclaiming memory. So a callback must not allocate memory in a way that reclaims, must not take
/// a lock that is held anywhere during such an allocation (lockdep knows both rules), and must not
/// access user memory. The range callbacks must not sleep, since the OOM reaper calls them, too
/// (`MMU_NOTIFIER_RANGE_BLOCKABLE` is unset then).
///
/// Callbacks may be called from the registration of the notifier until it is freed, which is some
/// time after the [`Registration`] is dropped.
///
/// The kernel calls a callback object at any time, so it cannot borrow anything. The bound
/// `'static` ensures this:
///
/// ```compile_fail
/// struct Borrows<'a>(&'a Cell<u32>);
///
/// impl MmuNotifier for Borrows<'_> { /* ... */ }
///
/// fn watch(mm: &MmWithUser) -> Result {
///     let on_the_stack = Cell::new(0);
///     let borrows = Arc::new(Borrows(&on_the_stack), GFP_KERNEL)?;
///     // Without the bound, callbacks would use the stack after the function has returned.
///     core::mem::forget(Registration::new(mm, borrows)?);
///     Ok(())
/// }
/// ```
pub(crate) trait MmuNotifier: HoldsModule + Send + Sync + 'static {
    /// Called before the mappings in `range` are changed.
    ///
    /// Until the matching [`invalidate_range_end`], page table walks may still find the old pages.
    ///
    /// [`invalidate_range_end`]: MmuNotifier::invalidate_range_end
    fn invalidate_range_start(this: ArcBorrow<'_, Self>, range: &Range);

    /// Called after the mappings in `range` have been changed.
    ///
    /// Each call to [`invalidate_range_start`] is followed by one call to this method with the same
    /// range, unless the address space or the registration goes away in between. There is one
    /// exception: for a protection change of a range that starts at address 0, `mprotect()` makes
    /// no second call (`change_pud_range()` in `mm/mprotect.c`), although hugetlb does. This method
    /// is never called without an earlier call to [`invalidate_range_start`].
    ///
    /// [`invalidate_range_start`]: MmuNotifier::invalidate_range_start
    fn invalidate_range_end(this: ArcBorrow<'_, Self>, range: &Range);

    /// Called once when the address space goes away, before its mappings do.
    ///
    /// Not called if the registration is dropped before that.
    fn release(this: ArcBorrow<'_, Self>);
}

/// An MMU notifier that is registered with an address space.
///
/// It keeps the `struct mm_struct` allocated (`mm_count`), but does not keep the address space
/// alive (`mm_users`).
///
/// Dropping it does not wait. Callbacks may still be running or be called, and end within an SRCU
/// grace period. They keep the callback object alive, which keeps the module loaded.
///
/// # Invariants
///
/// The pointer is to a [`Subscription`] that is registered, came from [`KBox::into_raw`], and for
/// which `mmu_notifier_put()` has not been called.
pub(crate) struct Registration<T: MmuNotifier>(NonNull<Subscription<T>>);

/// The part of a [`Registration`] that the kernel refers to.
struct Subscription<T> {
    notifier: Opaque<bindings::mmu_notifier>,
    callbacks: Arc<T>,
}

// SAFETY: Another thread than the one that registered a notifier may put it, and `T` is `Send` and
// `Sync`.
unsafe impl<T: MmuNotifier> Send for Registration<T> {}
// SAFETY: A shared reference gives no access.
unsafe impl<T: MmuNotifier> Sync for Registration<T> {}

impl<T: MmuNotifier> Registration<T> {
    const OPS: bindings::mmu_notifier_ops = bindings::mmu_notifier_ops {
        release: Some(Self::release),
        invalidate_range_start: Some(Self::invalidate_range_start),
        invalidate_range_end: Some(Self::invalidate_range_end),
        free_notifier: Some(Self::free_notifier),
        ..pin_init::zeroed()
    };

    /// Registers `callbacks` with `mm`.
    ///
    /// No invalidation is in flight at the moment of registration: the kernel takes all locks of
    /// the address space for it (`mm_take_all_locks()`).
    ///
    /// Sleeps, and takes the mmap lock of `mm`. Fails with `EINTR` if a signal is pending.
    pub(crate) fn new(mm: &MmWithUser, callbacks: Arc<T>) -> Result<Self> {
        let subscription = KBox::new(
            Subscription {
                notifier: Opaque::new(bindings::mmu_notifier {
                    ops: &Self::OPS,
                    ..pin_init::zeroed()
                }),
                callbacks,
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        let raw = KBox::into_raw(subscription);
        // SAFETY: The notifier is initialised, and stays in place until `free_notifier` frees it.
        // Since `mm` is an `MmWithUser`, its `mm_users` cannot reach zero in the meantime.
        let result = to_result(unsafe {
            bindings::mmu_notifier_register((*raw).notifier.get(), mm.as_raw())
        });
        if let Err(error) = result {
            // SAFETY: It came from `into_raw`, and the kernel did not take it.
            drop(unsafe { KBox::from_raw(raw) });
            return Err(error);
        }
        // INVARIANT: It was just registered.
        // SAFETY: The pointer came from a box.
        Ok(Self(unsafe { NonNull::new_unchecked(raw) }))
    }

    /// # Safety
    ///
    /// `notifier` must be the field of a live [`Subscription`], for the duration of `'a`.
    #[inline]
    unsafe fn callbacks_of<'a>(notifier: *mut bindings::mmu_notifier) -> ArcBorrow<'a, T> {
        // SAFETY: By the safety requirement. Nothing writes to the field while the subscription
        // lives.
        unsafe {
            let this = container_of!(Opaque::cast_from(notifier), Subscription<T>, notifier);
            let callbacks: &'a Arc<T> = &(*this).callbacks;
            callbacks.as_arc_borrow()
        }
    }

    /// # Safety
    ///
    /// Only the MMU notifier core may call this, for a notifier registered by [`Self::new`].
    unsafe extern "C" fn invalidate_range_start(
        notifier: *mut bindings::mmu_notifier,
        range: *const bindings::mmu_notifier_range,
    ) -> c_int {
        // SAFETY: The core calls only registered notifiers, in an SRCU read section. The
        // subscription is freed after a grace period. The core passes a valid range and does not
        // change it during the call.
        let (callbacks, range) = unsafe { (Self::callbacks_of(notifier), Range::from_raw(range)) };
        T::invalidate_range_start(callbacks, range);
        0
    }

    /// # Safety
    ///
    /// Only the MMU notifier core may call this, for a notifier registered by [`Self::new`].
    unsafe extern "C" fn invalidate_range_end(
        notifier: *mut bindings::mmu_notifier,
        range: *const bindings::mmu_notifier_range,
    ) {
        // SAFETY: As for `invalidate_range_start`.
        let (callbacks, range) = unsafe { (Self::callbacks_of(notifier), Range::from_raw(range)) };
        T::invalidate_range_end(callbacks, range);
    }

    /// # Safety
    ///
    /// Only the MMU notifier core may call this, for a notifier registered by [`Self::new`].
    unsafe extern "C" fn release(
        notifier: *mut bindings::mmu_notifier,
        _mm: *mut bindings::mm_struct,
    ) {
        // SAFETY: As for `invalidate_range_start`.
        T::release(unsafe { Self::callbacks_of(notifier) });
    }

    /// Runs with bottom halves disabled, an SRCU grace period after the notifier was put.
    ///
    /// # Safety
    ///
    /// Only the MMU notifier core may call this, once, for a notifier registered by [`Self::new`].
    unsafe extern "C" fn free_notifier(notifier: *mut bindings::mmu_notifier) {
        // SAFETY: By the safety requirement the notifier is the field of a `Subscription` that came
        // from `KBox::into_raw`, and no callback runs any more.
        drop(unsafe {
            let this = container_of!(Opaque::cast_from(notifier), Subscription<T>, notifier);
            KBox::from_raw(this.cast_mut())
        });
    }
}

impl<T: MmuNotifier> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the notifier is registered. It is put only here.
        unsafe { bindings::mmu_notifier_put(self.0.as_ref().notifier.get()) };
    }
}

#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(ummunotify_mmu_notifier)]
mod tests {
    use super::*;

    use kernel::{
        current,
        page::PAGE_SIZE,
        sync::atomic::{
            Atomic,
            Relaxed, //
        },
    };

    use crate::abstractions::{
        compat::synchronize_rcu,
        kunit::expect_eq, //
    };

    struct Counts {
        starts: Atomic<i32>,
        ends: Atomic<i32>,
    }

    // SAFETY: The test waits for both grace periods before it returns.
    unsafe impl HoldsModule for Counts {}

    impl MmuNotifier for Counts {
        fn invalidate_range_start(this: ArcBorrow<'_, Self>, _: &Range) {
            this.starts.fetch_add(1, Relaxed);
        }

        fn invalidate_range_end(this: ArcBorrow<'_, Self>, _: &Range) {
            this.ends.fetch_add(1, Relaxed);
        }

        fn release(_: ArcBorrow<'_, Self>) {}
    }

    /// Maps a page in the address space of the current task, and unmaps it.
    fn map_and_unmap() -> Result {
        const PROT_READ: usize = 1;
        const MAP_PRIVATE_ANONYMOUS: usize = 0x22;
        // SAFETY: This is new memory, which nothing else refers to.
        unsafe {
            let page = bindings::vm_mmap(
                core::ptr::null_mut(),
                0,
                PAGE_SIZE,
                PROT_READ,
                MAP_PRIVATE_ANONYMOUS,
                0,
            );
            to_result(bindings::vm_munmap(page, PAGE_SIZE))
        }
    }

    /// An example of how to use a notifier.
    #[test]
    fn notifies_while_it_is_registered() -> Result {
        // SAFETY: This is the thread of a KUnit test.
        to_result(unsafe { bindings::kunit_attach_mm() })?;
        let counts = Arc::new(
            Counts {
                starts: Atomic::new(0),
                ends: Atomic::new(0),
            },
            GFP_KERNEL,
        )?;
        let seen = || (counts.starts.load(Relaxed), counts.ends.load(Relaxed));

        let registration = Registration::new(current!().mm().ok_or(ESRCH)?, counts.clone())?;
        expect_eq!(seen(), (0, 0));
        map_and_unmap()?;
        expect_eq!(seen(), (1, 1));

        drop(registration);
        synchronize();
        synchronize_rcu();
        map_and_unmap()?;
        expect_eq!(seen(), (1, 1));
        Ok(())
    }
}
