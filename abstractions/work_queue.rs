// SPDX-License-Identifier: GPL-2.0

//! Work queues of a module's own, so that it can wait for all of its work when it is unloaded.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use core::ptr::NonNull;

use kernel::{
    bindings,
    prelude::*,
    workqueue::Queue, //
};

/// A queue whose work may run on any CPU and may take long. It goes on when memory is short, since
/// it may be what frees some.
///
/// # Invariants
///
/// The pointer is to a work queue that was allocated by [`Self::new`].
pub(crate) struct WorkQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: The functions of work queues may be called by any thread, and at the same time.
unsafe impl Send for WorkQueue {}
// SAFETY: As above.
unsafe impl Sync for WorkQueue {}

impl WorkQueue {
    /// Allocates a queue. May sleep.
    pub(crate) fn new(name: &'static CStr) -> Result<Self> {
        // SAFETY: The name is static and has no conversions. 0 stands for the default number of
        // works that run at the same time.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(
                name.as_char_ptr(),
                bindings::wq_flags_WQ_UNBOUND | bindings::wq_flags_WQ_MEM_RECLAIM,
                0,
            )
        };
        // INVARIANT: It was just allocated.
        Ok(Self(NonNull::new(queue).ok_or(ENOMEM)?))
    }

    /// Returns the queue, to enqueue work.
    #[inline]
    pub(crate) fn queue(&self) -> &Queue {
        // SAFETY: The queue is valid by the type invariant.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }

    /// Waits until all work is done that is in the queue now. Sleeps.
    pub(crate) fn flush(&self) {
        // SAFETY: The queue is valid by the type invariant.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) };
    }

    /// Waits until all work in the queue is done, and what that work enqueues. Sleeps.
    ///
    /// Nothing may be enqueued meanwhile but by that work, or the kernel complains.
    pub(crate) fn drain(&self) {
        // SAFETY: The queue is valid by the type invariant.
        unsafe { bindings::drain_workqueue(self.0.as_ptr()) };
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        // SAFETY: The queue is valid by the type invariant, and nobody can enqueue any more.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
