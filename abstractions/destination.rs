// SPDX-License-Identifier: GPL-2.0

//! The destination of a read, and copying to it where page faults cannot be handled.
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

/// Fails to compile if `T` has size 0: the number of such records could not be determined.
const fn assert_sized<T>() {
    const { assert!(size_of::<T>() > 0) }
}

/// The part of a reader's buffer that has not been written yet.
pub(crate) trait Destination {
    /// Returns the number of bytes that are left.
    fn len(&self) -> usize;

    /// Copies as many whole records as possible without a page fault. Returns their number.
    ///
    /// The rest of the buffer then begins right after the last of them, though a part of the next
    /// record may have been written there. May be called in atomic context. If it copies fewer than
    /// there is room for, call [`Self::fault_in`] and try again.
    fn copy_nofault<T: IntoBytes + Immutable>(&mut self, records: &[T]) -> usize;

    /// Makes the next `bytes` bytes present and writable. Returns whether that worked.
    ///
    /// May sleep. The pages may be gone again by the time they are written.
    fn fault_in(&mut self, bytes: usize) -> bool;
}

/// A buffer in user space.
pub(crate) struct UserBuffer {
    start: UserPtr,
    len: usize,
}

impl UserBuffer {
    /// Creates a buffer of `len` bytes at `start`, which need not be valid addresses.
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
            // SAFETY: The bytes are valid. `_copy_to_user()` checks that it is a user address.
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
        // SAFETY: `fault_in_safe_writeable()` accepts any address, and looks up its VMA.
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
            // SAFETY: At least this many bytes have just been copied.
            unsafe { self.revert(partial) };
        }
        copied / size_of::<T>()
    }

    fn fault_in(&mut self, bytes: usize) -> bool {
        // SAFETY: By its type invariants, `self` is valid.
        unsafe { bindings::fault_in_iov_iter_writeable(self.as_raw(), bytes) == 0 }
    }
}

/// Calls `copy` with page faults disabled; non-resident pages are not copied.
#[inline]
fn without_page_faults<R>(copy: impl FnOnce() -> R) -> R {
    // This is `pagefault_disable()`, an inline function of C, which does not check for overflow
    // either. The compiler cannot move the writes across the copy, since the copying function could
    // access the task.
    //
    // SAFETY: The current task is valid, and only the task itself writes to this field.
    let pagefault_disabled = unsafe { &raw mut (*bindings::get_current()).pagefault_disabled };
    // SAFETY: As above.
    unsafe { *pagefault_disabled = (*pagefault_disabled).wrapping_add(1) };
    let result = copy();
    // SAFETY: As above.
    unsafe { *pagefault_disabled = (*pagefault_disabled).wrapping_sub(1) };
    result
}
