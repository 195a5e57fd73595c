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
//! How many changes are in flight, and that a region was rearmed, is in one word, so that all
//! writes to it have an order, and each sees those before it. That a region was rearmed is written
//! with the lock held.
//!
//! - At the start. [`Gate::start`] writes the word and then reads `first` and `last`; who registers
//!   a region writes these two and then, in [`Gate::note_rearmed`], reads the word. There is a full
//!   barrier between the two of each: both access the word with an operation that is one. So at
//!   least one of them sees what the other one wrote: the change is told to the lock and thus to
//!   the region, or else the region counts as rearmed, and the end of the change looks at it.
//! - At the end. [`Gate::finish`] writes the word, after the page tables were changed. Who rearms a
//!   region while the change is in flight writes the word too, and looks up the page tables after
//!   that. If that comes first, the end of the change sees it, and looks at the regions. If the end
//!   comes first, it is acquired with the word, so that the new page is found.
//! - It may be in the word already that a region was rearmed. Then whoever rearms another one, and
//!   holds the lock, leaves the word alone: changes that are in flight find it there when they end,
//!   or have found it and wait for the lock.
//! - After the end. Who rearms a region and finds that the change is not in flight any more leaves
//!   the word as it is, too, and finds the new page: to read the word acquires what the end of the
//!   change released.
//! - Forgetting. It is forgotten that a region was rearmed, with the lock held, only when no change
//!   is in flight. Until then each change that ends looks at the regions, once more than it had to
//!   at worst.

use kernel::sync::atomic::{
    Atomic,
    Full, //
};

use crate::abstractions::marked::Marked;

/// The bit of [`Gate::word`] that says that a region was rearmed while a change was in flight.
const REARMED: usize = 1 << (usize::BITS - 1);

/// The changes in flight, and what they have to look at.
pub(super) struct Gate {
    /// The number of changes in flight, and [`REARMED`].
    word: Atomic<usize>,
    /// No region has an address below this one.
    first: Marked<usize>,
    /// No region has an address above this one.
    last: Marked<usize>,
}

impl Gate {
    /// Nothing is in flight, and there are no regions.
    pub(super) const fn new() -> Self {
        Self {
            word: Atomic::new(0),
            first: Marked::new(usize::MAX),
            last: Marked::new(0),
        }
    }

    /// A change to `start .. end` is in flight from now on; returns whether there may be a region.
    #[inline]
    pub(super) fn start(&self, start: usize, end: usize) -> bool {
        self.word.fetch_add(1, Full);
        self.first.read_once() < end && start <= self.last.read_once()
    }

    /// A change is not in flight any more; returns whether a region was rearmed while it was.
    ///
    /// If so, that has to be looked for, and then [`Self::forget_rearmed`] to be called.
    #[inline]
    pub(super) fn finish(&self) -> bool {
        let before = self.word.fetch_sub(1, Full);
        debug_assert!(before & !REARMED > 0);
        before & REARMED != 0
    }

    /// The end of a change has looked for regions that were rearmed. To be called with the lock
    /// held, under which it did so.
    pub(super) fn forget_rearmed(&self) {
        // Where another change is in flight, that is left to its end.
        let _ = self.word.cmpxchg(REARMED, 0, Full);
    }

    /// There is going to be a region at `start ..= last`. To be called with the lock held.
    #[inline]
    pub(super) fn widen(&self, start: usize, last: usize) {
        if start < self.first.read_once() {
            self.first.write_once(start);
        }
        if last > self.last.read_once() {
            self.last.write_once(last);
        }
    }

    /// There are no regions any more. To be called with the lock held.
    pub(super) fn close(&self) {
        self.first.write_once(usize::MAX);
        self.last.write_once(0);
    }

    /// A region was rearmed. To be called with the lock held.
    #[inline]
    pub(super) fn note_rearmed(&self) {
        // To add nothing reads the word, with a full barrier before and after that.
        let word = self.word.fetch_add(0, Full);
        if word > 0 && word & REARMED == 0 {
            // Only who holds the lock adds this.
            self.word.fetch_add(REARMED, Full);
        }
    }
}

#[kernel::prelude::kunit_tests(ummunotify_gate)]
mod tests {
    use super::*;

    #[test]
    fn opens_for_what_may_overlap() {
        let gate = Gate::new();
        assert!(!gate.start(0, usize::MAX));
        gate.widen(10, 20);
        gate.widen(40, 40);
        for (start, end, open) in [
            (0, 10, false),
            (0, 11, true),
            (25, 26, true),
            (40, 50, true),
            (41, 50, false),
            (0, usize::MAX, true),
        ] {
            assert_eq!(gate.start(start, end), open);
        }
        gate.close();
        assert!(!gate.start(0, usize::MAX));
    }

    #[test]
    fn rearms_only_in_a_change() {
        let gate = Gate::new();
        gate.note_rearmed();
        gate.start(0, 1);
        assert!(!gate.finish());
        gate.start(0, 1);
        gate.note_rearmed();
        gate.note_rearmed();
        assert!(gate.finish());
        gate.forget_rearmed();
        gate.start(0, 1);
        assert!(!gate.finish());
    }

    #[test]
    fn forgets_when_the_last_change_ends() {
        let gate = Gate::new();
        gate.start(0, 1);
        gate.start(0, 1);
        gate.note_rearmed();
        assert!(gate.finish());
        gate.forget_rearmed();
        gate.start(0, 1);
        assert!(gate.finish());
        gate.forget_rearmed();
        assert!(gate.finish());
        gate.forget_rearmed();
        gate.start(0, 1);
        assert!(!gate.finish());
    }
}
