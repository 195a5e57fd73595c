// SPDX-License-Identifier: GPL-2.0

//! Where a read puts its records, to be copied there while page faults cannot be served.
//!
//! C headers: [`include/linux/uio.h`](srctree/include/linux/uio.h),
//! [`include/linux/uaccess.h`](srctree/include/linux/uaccess.h)

use kernel::{
    bindings,
    iov::IovIterDest,
    prelude::*,
    uaccess::UserPtr, //
};
use zerocopy::{
    Immutable,
    IntoBytes, //
};

/// Panics at compile time where records have no size, as they could not be counted.
const fn assert_sized<T>() {
    const { assert!(size_of::<T>() > 0) }
}

/// Memory of the caller of a read, of which some is left.
pub(crate) trait Destination {
    /// Returns how many bytes are left.
    fn len(&self) -> usize;

    /// Copies whole records, as many as is possible without a page fault; returns how many.
    ///
    /// What is left begins right behind the last of them, though some bytes of the next one may
    /// have been written there. May be called in atomic context. Where it copies too few,
    /// [`Self::fault_in`] tells whether it is worth to try again.
    fn copy_nofault<T: IntoBytes + Immutable>(&mut self, records: &[T]) -> usize;

    /// Makes the next `bytes` bytes present and writable; returns whether that worked.
    ///
    /// May sleep. What was brought in may be gone again by the time it is written to.
    fn fault_in(&mut self, bytes: usize) -> bool;
}

/// A part of user space.
pub(crate) struct UserBuffer {
    start: UserPtr,
    len: usize,
}

impl UserBuffer {
    /// The `len` bytes from `start` on, which may turn out not to be there.
    #[inline]
    pub(crate) fn new(start: UserPtr, len: usize) -> Self {
        Self { start, len }
    }
}

impl Destination for UserBuffer {
    #[inline]
    fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn copy_nofault<T: IntoBytes + Immutable>(&mut self, records: &[T]) -> usize {
        assert_sized::<T>();
        let bytes = &records.as_bytes()[..self.len.min(size_of_val(records))];
        let left = without_page_faults(|| {
            // SAFETY: The bytes are valid. Whether the destination is user space is looked at.
            unsafe {
                bindings::_copy_to_user(self.start.as_mut_ptr(), bytes.as_ptr().cast(), bytes.len())
            }
        });
        let copied = (bytes.len() - left) / size_of::<T>();
        self.start = self.start.wrapping_byte_add(copied * size_of::<T>());
        self.len -= copied * size_of::<T>();
        copied
    }

    fn fault_in(&mut self, bytes: usize) -> bool {
        let start = self.start.as_const_ptr();
        // SAFETY: Whether this is user space is looked at.
        unsafe { bindings::fault_in_safe_writeable(start.cast(), bytes.min(self.len)) == 0 }
    }
}

impl Destination for IovIterDest<'_> {
    #[inline]
    fn len(&self) -> usize {
        self.len()
    }

    #[inline]
    fn copy_nofault<T: IntoBytes + Immutable>(&mut self, records: &[T]) -> usize {
        assert_sized::<T>();
        let copied = without_page_faults(|| self.copy_to_iter(records.as_bytes()));
        let partial = copied % size_of::<T>();
        if partial != 0 {
            // SAFETY: At least so many bytes have just been copied.
            unsafe { self.revert(partial) };
        }
        copied / size_of::<T>()
    }

    fn fault_in(&mut self, bytes: usize) -> bool {
        // SAFETY: By its type invariants `self` is valid.
        unsafe { bindings::fault_in_iov_iter_writeable(self.as_raw(), bytes) == 0 }
    }
}

/// Calls `copy`, which does without what cannot be had without a page fault.
#[inline]
fn without_page_faults<R>(copy: impl FnOnce() -> R) -> R {
    // What follows is `pagefault_disable()`, which is an inline function of C, and looks for no
    // overflow either. The compiler cannot move the writes across the copy, a call to a function
    // from which the task can be reached.
    //
    // SAFETY: The current task is valid, and only it writes to this field.
    let pagefault_disabled = unsafe { &raw mut (*bindings::get_current()).pagefault_disabled };
    // SAFETY: As above.
    unsafe { *pagefault_disabled = (*pagefault_disabled).wrapping_add(1) };
    let result = copy();
    // SAFETY: As above.
    unsafe { *pagefault_disabled = (*pagefault_disabled).wrapping_sub(1) };
    result
}
