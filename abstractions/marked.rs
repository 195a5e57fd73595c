// SPDX-License-Identifier: GPL-2.0

//! Variables that are read while others write them, with marked accesses.
//!
//! C header: [`include/asm-generic/rwonce.h`](srctree/include/asm-generic/rwonce.h)

use core::cell::UnsafeCell;

/// A type that one instruction can read or write.
///
/// # Safety
///
/// The type must be a primitive one, no wider than a machine word.
///
/// `Marked` relies on this to be [`Sync`], so implementing it is `unsafe`:
///
/// ```compile_fail
/// impl Word for [u64; 32] {}
/// ```
pub(crate) unsafe trait Word: Copy {}

// SAFETY: It is primitive and one byte wide.
unsafe impl Word for bool {}
// SAFETY: It is primitive and half a machine word wide.
unsafe impl Word for u32 {}
// SAFETY: It is primitive and a machine word wide.
unsafe impl Word for usize {}

/// A variable that any thread may read and write at any time.
///
/// Its accesses are those of relaxed loads and stores of an
/// [`Atomic`](kernel::sync::atomic::Atomic). Without `CONFIG_RUST_INLINE_HELPERS`, the latter are
/// calls of C functions, which cost too much in code that runs on every change of a mapping.
#[repr(transparent)]
pub(crate) struct Marked<T>(UnsafeCell<T>);

// SAFETY: All accesses are volatile and of at most a word, so none is torn. They may race with each
// other under the kernel's memory model, if not under Rust's.
unsafe impl<T: Word + Send> Sync for Marked<T> {}

impl<T: Word> Marked<T> {
    /// Creates a variable with this value.
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Reads the variable, as `READ_ONCE()` does.
    #[inline(always)]
    pub(crate) fn read_once(&self) -> T {
        // SAFETY: The pointer is valid and aligned; see above for races.
        unsafe { self.0.get().read_volatile() }
    }

    /// Writes the variable, as `WRITE_ONCE()` does.
    #[inline(always)]
    pub(crate) fn write_once(&self, value: T) {
        // SAFETY: As above.
        unsafe { self.0.get().write_volatile(value) };
    }
}
