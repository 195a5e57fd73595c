// SPDX-License-Identifier: GPL-2.0

//! Memory that is charged to a user like memory locked by `mlock()`: `RLIMIT_MEMLOCK`.
//!
//! The kernel has [`__account_locked_vm()`](srctree/mm/util.c) for memory that is charged to an
//! address space. Memory that may outlive the address space is charged to the user instead, as
//! io_uring does.

use core::ptr::NonNull;

use kernel::{
    bindings,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

/// A number of pages charged to a user until they are given back or this is dropped.
///
/// # Invariants
///
/// `user` holds a reference for this, and `pages` are part of its `locked_vm`. Without a user,
/// nothing is charged.
pub(crate) struct LockedMemory {
    user: Option<NonNull<bindings::user_struct>>,
    pages: usize,
}

// SAFETY: The fields of a user are only changed atomically.
unsafe impl Send for LockedMemory {}

impl LockedMemory {
    /// Charges `pages` to the user of the current task. If the task has `CAP_IPC_LOCK`, there is no
    /// limit, and nothing is charged now or later.
    ///
    /// Fails with `ENOMEM` if the limit of the current task does not allow it.
    pub(crate) fn new(pages: usize) -> Result<Self> {
        // SAFETY: This may always be called.
        if unsafe { bindings::capable(bindings::CAP_IPC_LOCK as c_int) } {
            // INVARIANT: There is no user.
            return Ok(Self {
                user: None,
                pages: 0,
            });
        }
        // SAFETY: The credentials of the current task are valid, are changed only by the task
        // itself, and hold a reference to the user. What follows is `get_uid()`.
        let user = unsafe {
            let user = (*(*bindings::get_current()).cred).user;
            bindings::refcount_inc(&raw mut (*user).__count);
            user
        };
        // INVARIANT: The reference was just taken, and nothing is charged yet.
        let mut this = Self {
            user: NonNull::new(user),
            pages: 0,
        };
        this.charge(pages)?;
        Ok(this)
    }

    /// Returns the number of charged pages.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Charges `pages` more. Does not sleep.
    ///
    /// Fails with `ENOMEM` if the limit of the current task does not allow it.
    pub(crate) fn charge(&mut self, pages: usize) -> Result {
        let Some(locked) = self.locked() else {
            return Ok(());
        };
        // SAFETY: The current task and its `signal` are valid. Others may change the limit, so the
        // load is volatile.
        let limit = unsafe {
            let limits = &raw const (*(*bindings::get_current()).signal).rlim;
            (&raw const (*limits)[bindings::RLIMIT_MEMLOCK as usize].rlim_cur).read_volatile()
        };
        let limit = limit as usize >> kernel::page::PAGE_SHIFT;
        let mut now = locked.load(Relaxed);
        loop {
            let then = now as usize + pages;
            if then > limit {
                return Err(ENOMEM);
            }
            // This is only a count and orders nothing.
            match locked.cmpxchg(now, then as isize, Relaxed) {
                Ok(_) => break,
                Err(changed) => now = changed,
            }
        }
        // INVARIANT: They were just added to `locked_vm`.
        self.pages += pages;
        Ok(())
    }

    /// Gives `pages` back, or all that are left. Does not sleep.
    pub(crate) fn uncharge(&mut self, pages: usize) {
        let pages = pages.min(self.pages);
        if let Some(locked) = self.locked() {
            locked.fetch_sub(pages as isize, Relaxed);
        }
        // INVARIANT: They were just subtracted from `locked_vm`.
        self.pages -= pages;
    }

    fn locked(&self) -> Option<&Atomic<isize>> {
        let user = self.user?;
        // SAFETY: The user is valid by the type invariant. All accesses to the field are atomic,
        // and an `atomic_long_t` is a `long`.
        Some(unsafe { Atomic::from_ptr((&raw mut (*user.as_ptr()).locked_vm).cast()) })
    }
}

impl Drop for LockedMemory {
    fn drop(&mut self) {
        self.uncharge(self.pages);
        if let Some(user) = self.user {
            // SAFETY: There is a reference by the type invariant. This may be called in any
            // context.
            unsafe { bindings::free_uid(user.as_ptr()) };
        }
    }
}

#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(ummunotify_locked_memory)]
mod tests {
    use super::*;

    use crate::abstractions::kunit::expect_eq;

    /// An example of how to charge memory.
    ///
    /// The thread of a KUnit test has `CAP_IPC_LOCK`; the tests of `umn-test` called `locked_` have
    /// users without it.
    #[test]
    fn with_the_capability_nothing_is_charged() -> Result {
        let mut locked = LockedMemory::new(2)?;
        locked.charge(usize::MAX >> 1)?;
        expect_eq!(locked.pages(), 0);
        locked.uncharge(1);
        expect_eq!(locked.pages(), 0);
        Ok(())
    }
}
