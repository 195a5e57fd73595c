// SPDX-License-Identifier: GPL-2.0

//! The lockless fast path of the callbacks: is there anything for them to do?
//!
//! A change of mappings is *in flight* from [`Gate::start`] to [`Gate::finish`]. A region is
//! *rearmed* when it is registered or its event is read. Two questions decide whether a callback
//! needs the lock. At the start: may there be a region in the range that heeds the cause of the
//! change? At the end: was a region rearmed while a change was in flight, and may there be one that
//! heeds the cause?
//!
//! # Why no answer is wrong
//!
//! One word holds the number of changes in flight and a bit, [`REARMED`]. So all writes to the two
//! are ordered, and each sees the earlier ones. The bit is written with the lock held.
//!
//! - At the start: [`Gate::start`] writes the word and then reads `first`, `last` and `events`.
//!   Registering writes these ([`Gate::widen`]) and then reads the word ([`Gate::note_rearmed`]).
//!   Both access the word with a full barrier, so at least one of them sees what the other wrote.
//!   Either the start takes the lock and finds the region, or the region counts as rearmed and the
//!   end of the change checks it.
//! - At the end: [`Gate::finish`] writes the word after the page tables were changed. Rearming
//!   while the change is in flight writes the word, too, and the client looks up the page tables
//!   afterwards. If rearming comes first, the end sees the bit and checks the regions. If the end
//!   comes first, rearming acquires the word from it, and the client finds the new page.
//! - If the end sees the bit, it reads `events` afterwards. A region that was registered before the
//!   end, in the order of the word, had its events added before that. So if the event of the change
//!   is not among them, no region heeds it except those whose pages are looked up after the end.
//!   The bit is left to the end of another change.
//! - If the bit is set already, rearming does not write the word. Changes in flight find the bit
//!   when they end, or have found it and wait for the lock, which the rearming task holds.
//! - After the end: rearming finds no change in flight and does not write the word. The client
//!   finds the new page: reading the word acquires what the end released.
//! - Clearing: the bit is cleared with the lock held, and only while no change is in flight. Until
//!   then, each change that ends checks the regions, at worst for nothing.

use kernel::sync::atomic::{
    Atomic,
    Full, //
};

use crate::abstractions::{
    interval_map::Classes,
    marked::Marked,
    mmu_notifier::Event, //
};

use super::cause::Events;

/// Set in [`Gate::word`] if a region was rearmed while a change was in flight.
const REARMED: usize = 1 << (usize::BITS - 1);

/// The changes in flight, and what they need to check.
pub(super) struct Gate {
    /// The number of changes in flight, and [`REARMED`].
    word: Atomic<usize>,
    /// No region has an address below this one.
    first: Marked<usize>,
    /// No region has an address above this one.
    last: Marked<usize>,
    /// The events that at least one region heeds: [`Events::bits`].
    events: Marked<usize>,
}

impl Gate {
    /// Creates a gate without changes in flight and without regions.
    pub(super) const fn new() -> Self {
        Self {
            word: Atomic::new(0),
            first: Marked::new(usize::MAX),
            last: Marked::new(0),
            events: Marked::new(Events::NONE.bits()),
        }
    }

    /// Counts a change to `start .. end` as in flight. Returns whether there may be a region in
    /// that range that heeds `event`.
    #[inline]
    pub(super) fn start(&self, start: usize, end: usize, event: impl FnOnce() -> Event) -> bool {
        // Full: pairs with that of `note_rearmed`: write the word, then read the bounds.
        self.word.fetch_add(1, Full);
        self.first.read_once() < end && start <= self.last.read_once() && self.is_heeded(event())
    }

    /// Counts a change as no longer in flight. Returns whether a region was rearmed while a change
    /// was in flight, and there may be a region that heeds `event`.
    ///
    /// If so, the caller must rescan the range and then call [`Self::forget_rearmed`].
    #[inline]
    pub(super) fn finish(&self, event: impl FnOnce() -> Event) -> bool {
        // Full: pairs with that of `note_rearmed`, which either acquires the changed page tables
        // from here or is seen here.
        let before = self.word.fetch_sub(1, Full);
        debug_assert!(before & !REARMED > 0);
        before & REARMED != 0 && self.is_heeded(event())
    }

    /// Returns whether there may be a region that heeds `event`.
    #[inline]
    fn is_heeded(&self, event: Event) -> bool {
        Events::from_bits(self.events.read_once()).contains(event)
    }

    /// Clears the rearmed bit after a rescan, unless another change is in flight. The caller must
    /// hold the state lock, and must have held it during the rescan.
    pub(super) fn forget_rearmed(&self) {
        // If another change is in flight, this fails, and the end of that change clears the bit.
        let _ = self.word.cmpxchg(REARMED, 0, Full);
    }

    /// Extends the bounds to a new region at `start ..= last`. The caller must hold the state lock,
    /// and must call [`Self::note_rearmed`] before dropping it, which orders these stores.
    #[inline]
    pub(super) fn widen(&self, start: usize, last: usize) {
        if start < self.first.read_once() {
            self.first.write_once(start);
        }
        if last > self.last.read_once() {
            self.last.write_once(last);
        }
    }

    /// Sets the classes that have regions. To add a class, the caller must meet the conditions of
    /// [`Self::widen`].
    #[cold]
    #[inline(never)]
    pub(super) fn set_classes(&self, classes: Classes) {
        self.events.write_once(Events::heeded_by(classes).bits());
    }

    /// Sets the classes that still have regions, when some were removed. The caller must hold the
    /// state lock.
    #[inline]
    pub(super) fn narrow(&self, classes: Classes) {
        if classes == Classes::NONE {
            self.first.write_once(usize::MAX);
            self.last.write_once(0);
            self.events.write_once(Events::NONE.bits());
        } else {
            self.set_classes(classes);
        }
    }

    /// Sets the rearmed bit if a change is in flight. The caller must hold the state lock.
    #[inline]
    pub(super) fn note_rearmed(&self) {
        // Adding nothing reads the word with full barriers before and after. Full: pairs with those
        // of `start` and of `finish`.
        let word = self.word.fetch_add(0, Full);
        if word > 0 && word & REARMED == 0 {
            // Full: a later `finish` sees it. Only this function sets it, with the lock held.
            self.word.fetch_add(REARMED, Full);
        }
    }
}

#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(ummunotify_gate)]
mod tests {
    use super::*;

    use crate::abstractions::kunit::expect_eq;

    const ANY: fn() -> Event = || Event::UNMAP;

    /// A gate with regions that heed everything.
    fn opened(start: usize, last: usize) -> Gate {
        let gate = Gate::new();
        gate.widen(start, last);
        gate.set_classes(Classes::ALL);
        gate
    }

    #[test]
    fn opens_for_what_may_overlap() {
        let gate = Gate::new();
        assert!(!gate.start(0, usize::MAX, ANY));
        gate.widen(10, 20);
        gate.set_classes(Classes::ALL);
        gate.widen(40, 40);
        for (start, end, open) in [
            (0, 10, false),
            (0, 11, true),
            (25, 26, true),
            (40, 50, true),
            (41, 50, false),
            (0, usize::MAX, true),
        ] {
            expect_eq!(gate.start(start, end, ANY), open);
        }
        gate.narrow(Classes::NONE);
        assert!(!gate.start(0, usize::MAX, ANY));
    }

    #[test]
    fn opens_for_causes_that_are_heeded() {
        let ignoring = Classes::from_bits(0b10);
        let (all, some) = (ANY, || Event::PROTECTION_AREA);
        let gate = opened(10, 20);
        gate.narrow(ignoring);
        assert!(gate.start(10, 20, all));
        assert!(!gate.start(10, 20, some));
        gate.note_rearmed();
        // The end of a change that no region heeds leaves it to other ends.
        assert!(!gate.finish(some));
        assert!(!gate.start(10, 20, some));
        gate.set_classes(Classes::ALL);
        gate.note_rearmed();
        assert!(gate.finish(some) && gate.finish(all));
        gate.forget_rearmed();
        gate.set_classes(ignoring);
        assert!(!gate.start(10, 20, some));
        assert!(gate.start(10, 20, all));
    }

    #[test]
    fn rearms_only_in_a_change() {
        let gate = opened(10, 20);
        gate.note_rearmed();
        gate.start(0, 1, ANY);
        assert!(!gate.finish(ANY));
        gate.start(0, 1, ANY);
        gate.note_rearmed();
        gate.note_rearmed();
        assert!(gate.finish(ANY));
        gate.forget_rearmed();
        gate.start(0, 1, ANY);
        assert!(!gate.finish(ANY));
    }

    #[test]
    fn forgets_when_the_last_change_ends() {
        let gate = opened(10, 20);
        gate.start(0, 1, ANY);
        gate.start(0, 1, ANY);
        gate.note_rearmed();
        assert!(gate.finish(ANY));
        gate.forget_rearmed();
        gate.start(0, 1, ANY);
        assert!(gate.finish(ANY));
        gate.forget_rearmed();
        assert!(gate.finish(ANY));
        gate.forget_rearmed();
        gate.start(0, 1, ANY);
        assert!(!gate.finish(ANY));
    }
}
