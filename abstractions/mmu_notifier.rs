// SPDX-License-Identifier: GPL-2.0

//! MMU notifiers: being told before and after the page tables of an address space change.
//!
//! C header: [`include/linux/mmu_notifier.h`](srctree/include/linux/mmu_notifier.h)
//!
//! Reference: <https://docs.kernel.org/mm/mmu_notifier.html>

use kernel::{
    bindings,
    container_of,
    error::to_result,
    mm::MmWithUser,
    prelude::*,
    types::Opaque, //
};

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
    /// `range` must point to a valid `struct mmu_notifier_range`, that stays so and is not written
    /// to for the duration of `'a`.
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

    /// Returns the first address behind the range.
    #[inline]
    pub(crate) fn end(&self) -> usize {
        // SAFETY: By the type invariant.
        unsafe { (*self.0.get()).end }
    }

    /// Returns the last address inside the range, which is not below [`Self::start`].
    #[inline]
    pub(crate) fn last(&self) -> usize {
        let end = self.end();
        // The kernel has no reason to invalidate an empty range; should it do so, too much is told.
        end.saturating_sub(1).max(self.start())
    }
}

/// The callbacks of an MMU notifier.
///
/// All of them may run at the same time as each other and on any CPU. All run in process context,
/// but in whichever task changes the mapping, which need not be one of the process that is mapped,
/// and may be a kernel thread; it may hold the mmap lock, a VMA lock, or only the rmap locks of a
/// page, and it may be reclaiming memory. So a callback must neither allocate memory that has to be
/// reclaimed nor take a lock that is held anywhere over such an allocation (lockdep knows of both
/// rules), nor touch user memory. The range callbacks must not sleep, as the out-of-memory reaper
/// calls them too (`MMU_NOTIFIER_RANGE_BLOCKABLE` is unset then).
///
/// All of them run in a read section of the SRCU domain that all MMU notifiers share, so none may
/// drop a [`Registration`], of whatever type: that waits for the end of these sections.
pub(crate) trait MmuNotifier: Send + Sync {
    /// Called before the mappings in `range` are changed.
    ///
    /// Until the matching [`invalidate_range_end`], page table walks may still find the old pages.
    ///
    /// [`invalidate_range_end`]: MmuNotifier::invalidate_range_end
    fn invalidate_range_start(&self, range: &Range);

    /// Called after the mappings in `range` have been changed.
    ///
    /// Each call to [`invalidate_range_start`] is followed by one call to this method with the same
    /// range, unless the address space or the registration goes away in between. There is no call
    /// without one to [`invalidate_range_start`] before.
    ///
    /// [`invalidate_range_start`]: MmuNotifier::invalidate_range_start
    fn invalidate_range_end(&self, range: &Range);

    /// Called when the address space goes away, before its mappings do.
    ///
    /// Also called when the [`Registration`] is dropped; it may be called twice and concurrently
    /// with itself.
    fn release(&self);
}

/// An MMU notifier that is registered with an address space.
///
/// It keeps the `struct mm_struct` allocated (`mm_count`), but the address space in it is free to
/// go away (`mm_users`).
///
/// # Invariants
///
/// `notifier` is registered with an address space, and was so with `OPS`.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: MmuNotifier> {
    #[pin]
    callbacks: T,
    #[pin]
    notifier: Opaque<bindings::mmu_notifier>,
}

// SAFETY: A notifier may be unregistered by a thread other than the one that registered it, and
// `T` is `Send`.
unsafe impl<T: MmuNotifier> Send for Registration<T> {}
// SAFETY: The only thing to do with a shared reference is to get at the `T`, which is `Sync`.
unsafe impl<T: MmuNotifier> Sync for Registration<T> {}

impl<T: MmuNotifier> Registration<T> {
    const OPS: bindings::mmu_notifier_ops = bindings::mmu_notifier_ops {
        release: Some(Self::release),
        invalidate_range_start: Some(Self::invalidate_range_start),
        invalidate_range_end: Some(Self::invalidate_range_end),
        ..pin_init::zeroed()
    };

    /// Registers `callbacks` with `mm`.
    ///
    /// No invalidation is in flight at the moment of registration: the kernel takes all locks of
    /// the address space for it (`mm_take_all_locks()`).
    ///
    /// Sleeps, and takes the mmap lock of `mm`. Fails with `EINTR` when a signal is pending.
    pub(crate) fn new<'a, I>(
        mm: &'a MmWithUser,
        callbacks: I,
    ) -> impl PinInit<Self, Error> + use<'a, T, I>
    where
        I: PinInit<T, Error>,
    {
        // The notifier comes last: it can be called from the moment it is registered, so all else
        // must be there by then, and nothing may fail after it.
        try_pin_init!(Self {
            callbacks <- callbacks,
            // INVARIANT: If this succeeds, then the notifier is registered.
            notifier <- Opaque::try_ffi_init(|slot: *mut bindings::mmu_notifier| {
                // SAFETY: `slot` is valid for writes, and all zeroes are a valid `mmu_notifier`.
                unsafe { slot.write(pin_init::zeroed()) };
                // SAFETY: As above.
                unsafe { (*slot).ops = &Self::OPS };
                // SAFETY: `slot` is pinned until `Self` is dropped, which unregisters it first. As
                // `mm` is an `MmWithUser`, its `mm_users` cannot reach zero meanwhile.
                to_result(unsafe { bindings::mmu_notifier_register(slot, mm.as_raw()) })
            }),
        })
    }

    /// Returns the registered callbacks.
    #[inline]
    pub(crate) fn callbacks(&self) -> &T {
        &self.callbacks
    }

    /// # Safety
    ///
    /// `notifier` must be the field of a live `Self`, for the duration of `'a`.
    #[inline]
    unsafe fn callbacks_of<'a>(notifier: *mut bindings::mmu_notifier) -> &'a T {
        // SAFETY: By the safety requirement.
        let this = unsafe { container_of!(Opaque::cast_from(notifier), Self, notifier) };
        // SAFETY: `callbacks` was initialised before the notifier was registered. This borrows it
        // alone, since `notifier` is still being initialised while it is registered.
        unsafe { &(*this).callbacks }
    }

    /// # Safety
    ///
    /// Only to be called by the MMU notifier core, for a notifier registered by [`Self::new`].
    unsafe extern "C" fn invalidate_range_start(
        notifier: *mut bindings::mmu_notifier,
        range: *const bindings::mmu_notifier_range,
    ) -> c_int {
        // SAFETY: The core calls only registered notifiers, which are fields of a `Self` that is
        // live, or, while it is being registered, about to be: dropping it waits for running
        // callbacks.
        let callbacks = unsafe { Self::callbacks_of(notifier) };
        // SAFETY: The core passes a valid range and does not change it during the call.
        callbacks.invalidate_range_start(unsafe { Range::from_raw(range) });
        0
    }

    /// # Safety
    ///
    /// Only to be called by the MMU notifier core, for a notifier registered by [`Self::new`].
    unsafe extern "C" fn invalidate_range_end(
        notifier: *mut bindings::mmu_notifier,
        range: *const bindings::mmu_notifier_range,
    ) {
        // SAFETY: As for `invalidate_range_start`.
        let callbacks = unsafe { Self::callbacks_of(notifier) };
        // SAFETY: As for `invalidate_range_start`.
        callbacks.invalidate_range_end(unsafe { Range::from_raw(range) });
    }

    /// # Safety
    ///
    /// Only to be called by the MMU notifier core, for a notifier registered by [`Self::new`].
    unsafe extern "C" fn release(
        notifier: *mut bindings::mmu_notifier,
        _mm: *mut bindings::mm_struct,
    ) {
        // SAFETY: As for `invalidate_range_start`.
        unsafe { Self::callbacks_of(notifier) }.release();
    }
}

#[pinned_drop]
impl<T: MmuNotifier> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant the notifier is registered, and this happens once. When it
        // returns, no callback runs and none will (it waits for an SRCU grace period), so that the
        // fields may be dropped. The notifier's `mm` is the address space that it is registered
        // with, to which it has a reference until then.
        unsafe {
            let notifier = self.notifier.get();
            bindings::mmu_notifier_unregister(notifier, (*notifier).mm);
        }
    }
}
