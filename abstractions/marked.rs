// SPDX-License-Identifier: GPL-2.0

//! Words that are read while others write them, by marked accesses.
//!
//! C header: [`include/asm-generic/rwonce.h`](srctree/include/asm-generic/rwonce.h)

use core::cell::UnsafeCell;

/// A word that any thread may read and write at any time.
///
/// It does the same as relaxed loads and stores of an [`Atomic`](kernel::sync::atomic::Atomic).
/// Those are calls of C functions, unless `CONFIG_RUST_INLINE_HELPERS` is set, which is too much
/// for what is done whenever any mapping changes.
#[repr(transparent)]
pub(crate) struct MarkedWord(UnsafeCell<usize>);

// SAFETY: All accesses are volatile and of a machine word, so that none is torn. By the kernel's
// memory model, if not by that of Rust, they may race with each other.
unsafe impl Sync for MarkedWord {}

impl MarkedWord {
    /// Creates a word with this value.
    pub(crate) const fn new(value: usize) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Reads the word, as `READ_ONCE()` does.
    #[inline(always)]
    pub(crate) fn read_once(&self) -> usize {
        // SAFETY: The pointer is valid and aligned; about races see above.
        unsafe { self.0.get().read_volatile() }
    }

    /// Writes the word, as `WRITE_ONCE()` does.
    #[inline(always)]
    pub(crate) fn write_once(&self, value: usize) {
        // SAFETY: As above.
        unsafe { self.0.get().write_volatile(value) };
    }
}
