// SPDX-License-Identifier: GPL-2.0

//! Work queues for one module, which can wait for all of its work before it is unloaded.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use core::ptr::NonNull;

use kernel::{
    bindings,
    prelude::*,
    workqueue::Queue, //
};

/// A queue whose work may run on any CPU and may take long. It makes progress when memory is short,
/// since its work may free some.
///
/// # Invariants
///
/// The pointer refers to a work queue that was allocated by [`Self::new`].
pub(crate) struct WorkQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: Any thread may call the functions of work queues, concurrently.
unsafe impl Send for WorkQueue {}
// SAFETY: As above.
unsafe impl Sync for WorkQueue {}

impl WorkQueue {
    /// Allocates a queue. May sleep.
    pub(crate) fn new(name: &'static CStr) -> Result<Self> {
        // SAFETY: The name is static and has no conversions. 0 stands for the default number of
        // concurrent works.
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

    /// Waits until all work that is now in the queue is done. Sleeps.
    pub(crate) fn flush(&self) {
        // SAFETY: The queue is valid by the type invariant.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) };
    }

    /// Waits until all work in the queue is done, including work that it enqueues. Sleeps.
    ///
    /// Only that work may enqueue anything in the meantime; otherwise the kernel warns.
    pub(crate) fn drain(&self) {
        // SAFETY: The queue is valid by the type invariant.
        unsafe { bindings::drain_workqueue(self.0.as_ptr()) };
    }
}

impl Drop for WorkQueue {
    fn drop(&mut self) {
        // SAFETY: The queue is valid by the type invariant, and nobody can enqueue work any more.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}

#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(ummunotify_work_queue)]
mod tests {
    use super::*;

    use kernel::{
        impl_has_work, new_work,
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            Arc, //
        },
        workqueue::{
            Work,
            WorkItem, //
        },
    };

    use crate::abstractions::kunit::expect_eq;

    #[pin_data]
    struct Counter {
        runs: Atomic<i32>,
        #[pin]
        work: Work<Counter>,
    }

    impl_has_work! {
        impl HasWork<Self> for Counter { self.work }
    }

    impl WorkItem for Counter {
        type Pointer = Arc<Self>;

        fn run(this: Arc<Self>) {
            this.runs.fetch_add(1, Relaxed);
        }
    }

    /// An example of how to use a queue.
    #[test]
    fn waits_for_its_work() -> Result {
        let queue = WorkQueue::new(c"ummunotify_work_queue_test")?;
        let counter = Arc::pin_init(
            pin_init!(Counter {
                runs: Atomic::new(0),
                work <- new_work!("Counter::work"),
            }),
            GFP_KERNEL,
        )?;
        for runs in 1..=3 {
            let is_enqueued = queue.queue().enqueue(counter.clone()).is_ok();
            expect_eq!(is_enqueued, true);
            queue.flush();
            expect_eq!(counter.runs.load(Relaxed), runs);
        }
        queue.drain();
        Ok(())
    }
}
