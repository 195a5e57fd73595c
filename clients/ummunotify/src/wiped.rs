// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! A number that is 0 in a forked child.

use std::{
    io,
    ptr::{
        self,
        NonNull, //
    },
    sync::atomic::AtomicU64, //
};

use crate::device::check;

/// A number in a page of its own, which the kernel clears in a forked child.
///
/// Unlike a handler of `pthread_atfork`, this works for every way to fork, including bare `clone`
/// system calls, and checking it costs a reader nothing.
#[derive(Debug)]
pub(crate) struct Wiped {
    page: NonNull<AtomicU64>,
}

// SAFETY: It is an atomic, in memory that belongs to this object alone.
unsafe impl Send for Wiped {}
// SAFETY: As above.
unsafe impl Sync for Wiped {}

impl Wiped {
    /// Creates a number that is 0.
    pub(crate) fn new() -> io::Result<Self> {
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: A new mapping at an address that the kernel chooses.
        let page = unsafe { libc::mmap(ptr::null_mut(), size_of::<u64>(), access, kind, -1, 0) };
        let Some(page) = NonNull::new(page).filter(|page| page.as_ptr() != libc::MAP_FAILED) else {
            return Err(io::Error::last_os_error());
        };
        let wiped = Self { page: page.cast() };
        // SAFETY: The advice is for the new mapping, which belongs to `wiped`.
        check(unsafe { libc::madvise(page.as_ptr(), size_of::<u64>(), libc::MADV_WIPEONFORK) })?;
        Ok(wiped)
    }

    /// The number.
    #[inline]
    pub(crate) fn number(&self) -> &AtomicU64 {
        // SAFETY: The mapping lives as long as `self`, is page-aligned, and was zeroed at first.
        unsafe { self.page.as_ref() }
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        // SAFETY: Nothing refers to the mapping any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), size_of::<u64>()) };
    }
}
