// SPDX-License-Identifier: GPL-2.0

//! Copying to user space where page faults cannot be served.
//!
//! C headers: [`include/linux/uio.h`](srctree/include/linux/uio.h),
//! [`include/linux/uaccess.h`](srctree/include/linux/uaccess.h)

use core::mem::MaybeUninit;

use kernel::{
    bindings,
    iov::IovIterDest, //
};
use zerocopy::{
    Immutable,
    IntoBytes, //
};

/// Up to `N` records of one size, which are put together before they are copied.
///
/// # Invariants
///
/// The first `len` of `records` are valid.
pub(crate) struct Records<T, const N: usize> {
    records: [MaybeUninit<T>; N],
    len: usize,
}

impl<T: IntoBytes + Immutable + Copy, const N: usize> Records<T, N> {
    /// There are none.
    #[inline]
    pub(crate) fn new() -> Self {
        // INVARIANT: There are none.
        Self {
            records: [const { MaybeUninit::uninit() }; N],
            len: 0,
        }
    }

    /// Adds a record, for which there must be room.
    #[inline]
    pub(crate) fn push(&mut self, record: T) {
        self.records[self.len].write(record);
        // INVARIANT: It was written above.
        self.len += 1;
    }

    /// Returns the records.
    #[inline]
    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: By the type invariant that many are valid.
        unsafe { core::slice::from_raw_parts(self.records.as_ptr().cast(), self.len) }
    }
}

/// Copies whole records to `iov`, as many as is possible without a page fault.
///
/// Returns how many were copied, and leaves `iov` right behind the last of them, though some bytes
/// of the next one may have been written. May be called in atomic context. Where it copies too few,
/// [`fault_in`] tells whether it is worth to try again.
#[inline]
pub(crate) fn copy_records_nofault<T: IntoBytes + Immutable>(
    iov: &mut IovIterDest<'_>,
    records: &[T],
) -> usize {
    let size = size_of::<T>();
    // What follows is `pagefault_disable()`, which is an inline function of C. The compiler cannot
    // move the writes across the copy, a call to a function from which the task can be reached.
    //
    // SAFETY: The current task is valid, and only it writes to this field.
    let pagefault_disabled = unsafe { &raw mut (*bindings::get_current()).pagefault_disabled };
    // SAFETY: As above.
    unsafe { *pagefault_disabled += 1 };
    let copied = iov.copy_to_iter(records.as_bytes());
    // SAFETY: As above.
    unsafe { *pagefault_disabled -= 1 };

    if copied % size != 0 {
        // SAFETY: At least so many bytes have just been copied.
        unsafe { iov.revert(copied % size) };
    }
    copied / size
}

/// Makes the next `bytes` bytes of `iov` present and writable; returns whether that worked.
///
/// May sleep. What was brought in may be gone again by the time it is written to.
pub(crate) fn fault_in(iov: &mut IovIterDest<'_>, bytes: usize) -> bool {
    // SAFETY: By its type invariants `iov` is valid.
    unsafe { bindings::fault_in_iov_iter_writeable(iov.as_raw(), bytes) == 0 }
}
