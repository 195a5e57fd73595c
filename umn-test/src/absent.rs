// SPDX-License-Identifier: GPL-2.0

//! Memory whose first access blocks until the test provides the page.

use std::{
    ffi::c_void,
    io, //
};

use crate::{
    expect::Outcome,
    mem::{
        Guarded,
        PAGE, //
    },
    userfault::{
        UserFault,
        MODE_MISSING, //
    },
};

/// A page that is missing until the test provides it.
///
/// Until then, every access blocks, including the kernel's own in a system call. This lets a test
/// act in the middle of a call.
pub struct Absent {
    page: Guarded,
    faults: UserFault,
}

impl Absent {
    /// Maps the page without providing it.
    pub fn new() -> Outcome<Self> {
        let page = Guarded::unpopulated(1)?;
        // A userfaultfd can only be polled if it is non-blocking.
        let faults = UserFault::nonblocking(0)?;
        faults.register(&page.all(), MODE_MISSING)?;
        Ok(Self { page, faults })
    }

    /// The address of the page.
    pub fn pointer(&self) -> *mut c_void {
        self.page.all().start as *mut c_void
    }

    /// Waits until an access blocks on the page.
    pub fn is_awaited(&self) -> Outcome {
        self.faults.wait_for_access()
    }

    /// Provides the page, with these bytes at its start, which unblocks the access.
    pub fn provide(&self, bytes: &[u8]) -> io::Result<()> {
        let mut content = [0; PAGE as usize];
        content[..bytes.len()].copy_from_slice(bytes);
        self.faults.provide(&self.page.all(), &content)
    }
}
