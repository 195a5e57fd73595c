// SPDX-License-Identifier: GPL-2.0

//! Memory that makes who accesses it wait: `userfaultfd`.

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

/// A page that is not there until it is provided.
///
/// Who accesses it before that waits, even where it is the kernel that does so in a system call. So
/// a test can do things in the middle of the call.
pub struct Absent {
    page: Guarded,
    faults: UserFault,
}

impl Absent {
    /// A page that nobody waits for yet.
    pub fn new() -> Outcome<Self> {
        let page = Guarded::unpopulated(1)?;
        // Only one that does not block can be polled.
        let faults = UserFault::nonblocking(0)?;
        faults.register(&page.all(), MODE_MISSING)?;
        Ok(Self { page, faults })
    }

    /// Where it is.
    pub fn pointer(&self) -> *mut c_void {
        self.page.all().start as *mut c_void
    }

    /// Waits until somebody waits for it.
    pub fn is_awaited(&self) -> Outcome {
        self.faults.wait_for_access()
    }

    /// Lets who waits for it go on, and find these bytes at its start.
    pub fn provide(&self, bytes: &[u8]) -> io::Result<()> {
        let mut content = [0; PAGE as usize];
        content[..bytes.len()].copy_from_slice(bytes);
        self.faults.provide(&self.page.all(), &content)
    }
}
