// SPDX-License-Identifier: GPL-2.0

//! What the callbacks find out without the lock: that there is nothing for them to do.
//!
//! A change of mappings is *in flight* from [`Gate::start`] to [`Gate::finish`]. Two questions
//! decide whether a callback needs the lock. At the start: can there be a region in the range? At
//! the end: was a region *rearmed*, that is registered or its event read, while a change was in
//! flight?
//!
//! # Why no answer is wrong
//!
//! - At the start. [`Gate::start`] writes `in_flight` and then reads `bounds`; who registers a
//!   region writes `bounds` and then, in [`Gate::note_rearmed`], reads `in_flight`. There is a full
//!   barrier between the two of each. So at least one of them sees what the other one wrote: the
//!   change is told to the lock and thus to the region, or else the region counts as rearmed, and
//!   the end of the change looks at it.
//! - At the end. [`Gate::is_rearmed`] reads `rearmed` after the page tables were changed, and
//!   before the change ceases to be in flight. Who rearms a region while the change is in flight
//!   writes `rearmed`, and looks up the page tables after that. There is a full barrier between the
//!   two of each. So if the end does not see that a region was rearmed, then whoever did that finds
//!   the new page.
//! - After the end. Who rearms a region and finds that the change is not in flight any more leaves
//!   `rearmed` alone, so it must find the new page too. That takes no full barrier, but that the
//!   page tables are looked up after `in_flight` was read: to read it acquires what the end of the
//!   change released.
//! - Forgetting. `rearmed` is reset, with the lock held, only when no change is in flight. A change
//!   that has yet to read it is in flight, and to set it again takes the lock.

use kernel::sync::{
    atomic::{
        Acquire,
        Atomic,
        Full,
        Relaxed,
        Release, //
    },
    barrier::smp_mb, //
};

/// The changes in flight, and what they have to look at.
pub(super) struct Gate {
    /// The number of changes in flight.
    in_flight: Atomic<usize>,
    /// A region was rearmed while a change was in flight.
    rearmed: Atomic<bool>,
    /// No region has an address below this one.
    first: Atomic<usize>,
    /// No region has an address above this one.
    last: Atomic<usize>,
}

impl Gate {
    /// Nothing is in flight, and there are no regions.
    pub(super) const fn new() -> Self {
        Self {
            in_flight: Atomic::new(0),
            rearmed: Atomic::new(false),
            first: Atomic::new(usize::MAX),
            last: Atomic::new(0),
        }
    }

    /// A change to `start ..= last` is in flight from now on; returns whether there may be a
    /// region.
    #[inline]
    pub(super) fn start(&self, start: usize, last: usize) -> bool {
        self.in_flight.fetch_add(1, Full);
        self.first.load(Relaxed) <= last && start <= self.last.load(Relaxed)
    }

    /// Returns whether the end of a change has to look for regions that were rearmed.
    #[inline]
    pub(super) fn is_rearmed(&self) -> bool {
        smp_mb(Full);
        self.rearmed.load(Relaxed)
    }

    /// A change is not in flight any more, after [`Self::is_rearmed`] was `false`.
    #[inline]
    pub(super) fn finish(&self) {
        let before = self.in_flight.fetch_sub(1, Release);
        debug_assert!(before > 0);
    }

    /// A change is not in flight any more, and has looked for regions that were rearmed.
    ///
    /// To be called with the lock held.
    pub(super) fn finish_locked(&self) {
        let before = self.in_flight.fetch_sub(1, Full);
        debug_assert!(before > 0);
        if before == 1 {
            self.rearmed.store(false, Relaxed);
        }
    }

    /// There is going to be a region at `start ..= last`. To be called with the lock held.
    #[inline]
    pub(super) fn widen(&self, start: usize, last: usize) {
        if start < self.first.load(Relaxed) {
            self.first.store(start, Relaxed);
        }
        if last > self.last.load(Relaxed) {
            self.last.store(last, Relaxed);
        }
    }

    /// There are no regions any more. To be called with the lock held.
    pub(super) fn close(&self) {
        self.first.store(usize::MAX, Relaxed);
        self.last.store(0, Relaxed);
    }

    /// A region was rearmed. To be called with the lock held.
    #[inline]
    pub(super) fn note_rearmed(&self) {
        smp_mb(Full);
        if self.in_flight.load(Acquire) > 0 {
            self.rearmed.xchg(true, Full);
        }
    }
}

#[kernel::prelude::kunit_tests(ummunotify_gate)]
mod tests {
    use super::*;

    #[test]
    fn opens_for_what_may_overlap() {
        let gate = Gate::new();
        assert!(!gate.start(0, usize::MAX - 1));
        gate.widen(10, 20);
        gate.widen(40, 40);
        for (start, last, open) in [
            (0, 9, false),
            (0, 10, true),
            (25, 26, true),
            (40, 50, true),
            (41, 50, false),
            (0, usize::MAX, true),
        ] {
            assert_eq!(gate.start(start, last), open);
        }
        gate.close();
        assert!(!gate.start(0, usize::MAX - 1));
    }

    #[test]
    fn rearms_only_in_a_change() {
        let gate = Gate::new();
        gate.note_rearmed();
        assert!(!gate.is_rearmed());
        gate.start(0, 0);
        assert!(!gate.is_rearmed());
        gate.note_rearmed();
        assert!(gate.is_rearmed());
        gate.finish_locked();
        assert!(!gate.is_rearmed());
    }

    #[test]
    fn forgets_when_the_last_change_ends() {
        let gate = Gate::new();
        gate.start(0, 0);
        gate.start(0, 0);
        gate.note_rearmed();
        gate.finish_locked();
        assert!(gate.is_rearmed());
        gate.start(0, 0);
        gate.finish_locked();
        assert!(gate.is_rearmed());
        gate.finish_locked();
        assert!(!gate.is_rearmed());
    }
}
