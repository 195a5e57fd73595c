// SPDX-License-Identifier: GPL-2.0

//! Variables that are read while others write them, by marked accesses.
//!
//! C header: [`include/asm-generic/rwonce.h`](srctree/include/asm-generic/rwonce.h)

use core::cell::UnsafeCell;

/// A type that is read and written by one instruction.
///
/// # Safety
///
/// The type must be a primitive one, no wider than a machine word.
///
/// `Marked` relies on this for being [`Sync`], so it cannot be promised without `unsafe`:
///
/// ```compile_fail
/// impl Word for [u64; 32] {}
/// ```
pub(crate) unsafe trait Word: Copy {}

// SAFETY: It is primitive and a byte wide.
unsafe impl Word for bool {}
// SAFETY: It is primitive and a machine word wide.
unsafe impl Word for usize {}

/// A variable that any thread may read and write at any time.
///
/// It does the same as relaxed loads and stores of an [`Atomic`](kernel::sync::atomic::Atomic).
/// Those are calls of C functions, unless `CONFIG_RUST_INLINE_HELPERS` is set, which is too much
/// for what is done whenever any mapping changes.
#[repr(transparent)]
pub(crate) struct Marked<T>(UnsafeCell<T>);

// SAFETY: All accesses are volatile and of a word, so that none is torn. By the kernel's memory
// model, if not by that of Rust, they may race with each other.
unsafe impl<T: Word + Send> Sync for Marked<T> {}

impl<T: Word> Marked<T> {
    /// Creates a variable with this value.
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Reads the variable, as `READ_ONCE()` does.
    #[inline(always)]
    pub(crate) fn read_once(&self) -> T {
        // SAFETY: The pointer is valid and aligned; about races see above.
        unsafe { self.0.get().read_volatile() }
    }

    /// Writes the variable, as `WRITE_ONCE()` does.
    #[inline(always)]
    pub(crate) fn write_once(&self, value: T) {
        // SAFETY: As above.
        unsafe { self.0.get().write_volatile(value) };
    }
}
