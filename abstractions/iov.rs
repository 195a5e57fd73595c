// SPDX-License-Identifier: GPL-2.0

//! Copying to user space where page faults cannot be served.
//!
//! C headers: [`include/linux/uio.h`](srctree/include/linux/uio.h),
//! [`include/linux/uaccess.h`](srctree/include/linux/uaccess.h)

use kernel::{
    bindings,
    iov::IovIterDest, //
};

/// Copies whole records to `iov`, as many as is possible without a page fault.
///
/// `records` holds the records one after the other, each of `size` bytes. Returns how many were
/// copied, and leaves `iov` right behind the last of them, though some bytes of the next one may
/// have been written. May be called in atomic context. Where it copies too few, [`fault_in`] tells
/// whether it is worth to try again.
pub(crate) fn copy_records_nofault(
    iov: &mut IovIterDest<'_>,
    records: &[u8],
    size: usize,
) -> usize {
    // What follows is `pagefault_disable()`, which is an inline function of C. The compiler cannot
    // move the writes across the copy, a call to a function from which the task can be reached.
    //
    // SAFETY: The current task is valid, and only it writes to this field.
    let pagefault_disabled = unsafe { &raw mut (*bindings::get_current()).pagefault_disabled };
    // SAFETY: As above.
    unsafe { *pagefault_disabled += 1 };
    let copied = iov.copy_to_iter(records);
    // SAFETY: As above.
    unsafe { *pagefault_disabled -= 1 };

    // SAFETY: At least so many bytes have just been copied.
    unsafe { iov.revert(copied % size) };
    copied / size
}

/// Makes the next `bytes` bytes of `iov` present and writable; returns whether that worked.
///
/// May sleep. What was brought in may be gone again by the time it is written to.
pub(crate) fn fault_in(iov: &mut IovIterDest<'_>, bytes: usize) -> bool {
    // SAFETY: By its type invariants `iov` is valid.
    unsafe { bindings::fault_in_iov_iter_writeable(iov.as_raw(), bytes) == 0 }
}
