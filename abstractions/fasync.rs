// SPDX-License-Identifier: GPL-2.0

//! Lists of files whose owners want a signal when something happens (`O_ASYNC`).
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use kernel::{
    bindings,
    error::to_result,
    fs::File,
    prelude::*,
    types::Opaque, //
};

/// A list of files to send `SIGIO` for.
///
/// # Invariants
///
/// The pointer in it is accessed only by `fasync_helper()` and `kill_fasync()`, which do their own
/// locking.
pub(crate) struct FasyncList(Opaque<*mut bindings::fasync_struct>);

// SAFETY: By the type invariant all accesses are synchronised.
unsafe impl Send for FasyncList {}
// SAFETY: By the type invariant all accesses are synchronised.
unsafe impl Sync for FasyncList {}

impl FasyncList {
    /// Creates an empty list.
    pub(crate) const fn new() -> Self {
        Self(Opaque::new(core::ptr::null_mut()))
    }

    /// Sends `SIGIO`, or the signal chosen with `F_SETSIG`, with `POLL_IN` to the files' owners.
    ///
    /// Does not sleep. Costs one load where the list is empty.
    #[inline]
    pub(crate) fn notify_readable(&self) {
        // SAFETY: The list is valid by the type invariant.
        unsafe {
            bindings::kill_fasync(
                self.0.get(),
                bindings::SIGIO as c_int,
                bindings::POLL_IN as c_int,
            )
        };
    }

    /// Adds a file to the list, or takes it out: the `fasync` file operation.
    ///
    /// # Safety
    ///
    /// A file that was added must be taken out before the list is dropped.
    pub(super) unsafe fn update(&self, fd: c_int, file: &File, on: c_int) -> Result {
        // SAFETY: The file and the list are valid. What stays in the list does not outlive it, by
        // the safety requirement.
        to_result(unsafe { bindings::fasync_helper(fd, file.as_ptr(), on, self.0.get()) }.min(0))
    }
}
