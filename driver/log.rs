// SPDX-License-Identifier: GPL-2.0

//! Changes of mappings that have not been applied yet to all regions they hit.
//!
//! A task that changes a mapping visits a limited number of regions. If more are hit, the change is
//! recorded here, and the next read visits the rest. See [`super::regions`].

use super::{
    cause::Causes,
    hint::Span, //
};

/// The most changes in the log.
const ROOM: usize = 32;

/// How a change is reported to the regions that it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The change has started: report the part of the region that it hits.
    Start,
    /// The change has ended: do the same, unless a queued event covers it.
    End,
    /// Several changes, somewhere in the range: report the whole region. Files with hulls report
    /// the part of it that is in the range.
    Several,
}

/// Changes to `span`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) kind: Kind,
    /// The cause, or the causes of several changes, or none if the file does not use causes.
    pub(super) causes: Causes,
    pub(super) span: Span,
}

/// Changes in the order in which they were made.
///
/// If there are too many, the newest ones are merged: a region between them may then be reported
/// although nothing happened to it. The oldest one is never merged, since it may be half applied.
///
/// # Invariants
///
/// The changes are `len` entries of `ring` from `first` on.
pub(super) struct Log {
    ring: [Change; ROOM],
    first: usize,
    len: usize,
    /// The number of changes that were removed.
    done: u64,
    /// How often two changes to different ranges were merged.
    merged: u64,
}

/// A moment in the life of a [`Log`].
#[derive(Clone, Copy)]
pub(super) struct Mark(u64);

impl Log {
    pub(super) const fn new() -> Self {
        const NONE: Change = Change {
            kind: Kind::Start,
            causes: Causes::NONE,
            span: Span { start: 0, last: 0 },
        };
        Self {
            ring: [NONE; ROOM],
            first: 0,
            len: 0,
            done: 0,
            merged: 0,
        }
    }

    /// Removes all changes.
    pub(super) fn clear(&mut self) {
        self.done += self.len as u64;
        self.len = 0;
    }

    /// Returns the number of changes.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns how often two changes to different ranges were merged.
    pub(super) fn merged(&self) -> u64 {
        self.merged
    }

    /// Adds a change.
    #[cold]
    pub(super) fn push(&mut self, change: Change) {
        if self.len > 1 {
            let newest = self.at(self.len - 1);
            if newest.span == change.span && newest.causes == change.causes {
                // The end hits only regions without an event by then, of which there are none.
                if change.kind != Kind::End {
                    newest.kind = Kind::Several;
                }
                return;
            }
        }
        if self.len == ROOM {
            let newest = *self.at(ROOM - 1);
            let before = self.at(ROOM - 2);
            before.kind = Kind::Several;
            before.causes = before.causes.or(newest.causes);
            before.span.start = before.span.start.min(newest.span.start);
            before.span.last = before.span.last.max(newest.span.last);
            self.len -= 1;
            self.merged += 1;
        }
        self.len += 1;
        *self.at(self.len - 1) = change;
    }

    /// Returns the oldest change.
    #[inline]
    pub(super) fn oldest(&self) -> Option<Change> {
        (self.len > 0).then(|| self.ring[self.first])
    }

    /// Turns the oldest change, which must exist, into several changes.
    pub(super) fn repeat_oldest(&mut self) {
        self.at(0).kind = Kind::Several;
    }

    /// Removes the oldest change.
    pub(super) fn pop(&mut self) {
        if self.len > 0 {
            self.first = (self.first + 1) % ROOM;
            self.len -= 1;
            self.done += 1;
        }
    }

    /// Returns a mark that is reached when all changes that are now in the log have been removed.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.done + self.len as u64)
    }

    /// Returns whether all changes that were in the log at `mark` have been removed.
    ///
    /// If changes are merged meanwhile, as many later ones must be removed, too. There were no more
    /// to merge than the log had at `mark`, so the wait for this is bounded.
    pub(super) fn has_reached(&self, mark: Mark) -> bool {
        self.is_empty() || self.done >= mark.0
    }

    fn at(&mut self, index: usize) -> &mut Change {
        &mut self.ring[(self.first + index) % ROOM]
    }
}

#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(ummunotify_log)]
mod tests {
    use super::*;

    use crate::abstractions::kunit::expect_eq;

    fn change(kind: Kind, start: usize, last: usize) -> Change {
        caused(Causes::NONE, kind, start, last)
    }

    fn caused(causes: Causes, kind: Kind, start: usize, last: usize) -> Change {
        Change {
            kind,
            causes,
            span: Span { start, last },
        }
    }

    fn starts(log: &mut Log, numbers: core::ops::Range<usize>) {
        for number in numbers {
            log.push(change(Kind::Start, number * 10, number * 10 + 5));
        }
    }

    #[test]
    fn keeps_order_as_long_as_there_is_room() {
        let mut log = Log::new();
        for round in 0..3 {
            starts(&mut log, 0..ROOM);
            expect_eq!(log.len(), ROOM);
            for number in 0..ROOM {
                let expected = change(Kind::Start, number * 10, number * 10 + 5);
                expect_eq!(log.oldest(), Some(expected));
                log.pop();
            }
            assert!(log.is_empty() && log.oldest().is_none());
            // So that the next round begins elsewhere in the ring.
            starts(&mut log, 0..round + 1);
            (0..=round).for_each(|_| log.pop());
        }
        expect_eq!(log.merged(), 0);
    }

    #[test]
    fn merges_the_newest_when_full() {
        let mut log = Log::new();
        starts(&mut log, 0..ROOM + 2);
        expect_eq!(log.len(), ROOM);
        expect_eq!(log.merged(), 2);
        for number in 0..ROOM - 2 {
            let expected = change(Kind::Start, number * 10, number * 10 + 5);
            expect_eq!(log.oldest(), Some(expected));
            log.pop();
        }
        let (first, last) = ((ROOM - 2) * 10, ROOM * 10 + 5);
        expect_eq!(log.oldest(), Some(change(Kind::Several, first, last)));
        log.pop();
        let newest = ROOM * 10 + 10;
        expect_eq!(log.oldest(), Some(change(Kind::Start, newest, newest + 5)));
    }

    #[test]
    fn folds_the_same_range() {
        let mut log = Log::new();
        // Never into the oldest.
        log.push(change(Kind::Start, 1, 2));
        log.push(change(Kind::Start, 1, 2));
        expect_eq!(log.len(), 2);
        log.push(change(Kind::End, 1, 2));
        expect_eq!(log.len(), 2);
        log.push(change(Kind::End, 1, 3));
        expect_eq!(log.len(), 3);
        expect_eq!(log.oldest(), Some(change(Kind::Start, 1, 2)));
        log.pop();
        expect_eq!(log.oldest(), Some(change(Kind::Start, 1, 2)));
        log.push(change(Kind::Start, 1, 3));
        log.pop();
        expect_eq!(log.oldest(), Some(change(Kind::Several, 1, 3)));
        expect_eq!(log.merged(), 0);
    }

    #[test]
    fn keeps_causes_apart_as_long_as_there_is_room() {
        let [one, two] = [1, 2].map(Causes::new);
        let mut log = Log::new();
        for causes in [one, one, two, two] {
            log.push(caused(causes, Kind::Start, 1, 2));
        }
        // Never into the oldest.
        expect_eq!(log.len(), 3);
        log.pop();
        expect_eq!(log.oldest(), Some(caused(one, Kind::Start, 1, 2)));
        log.pop();
        expect_eq!(log.oldest(), Some(caused(two, Kind::Several, 1, 2)));
        log.pop();
        starts(&mut log, 0..ROOM - 1);
        log.push(caused(one, Kind::Start, 1, 2));
        log.push(caused(two, Kind::End, 5, 6));
        log.push(caused(two, Kind::End, 7, 8));
        (0..ROOM - 2).for_each(|_| log.pop());
        let first = (ROOM - 2) * 10;
        expect_eq!(
            log.oldest(),
            Some(caused(one.or(two), Kind::Several, 1, first + 5))
        );
        log.pop();
        expect_eq!(log.oldest(), Some(caused(two, Kind::End, 7, 8)));
    }

    #[test]
    fn marks_are_reached() {
        let mut log = Log::new();
        assert!(log.has_reached(log.mark()));
        starts(&mut log, 0..3);
        let mark = log.mark();
        // Later ones do not matter, however many there are.
        for taken in 0..3 {
            assert!(!log.has_reached(mark));
            starts(&mut log, 100 * taken + 10..100 * taken + 10 + ROOM);
            log.pop();
        }
        assert!(log.has_reached(mark));
        assert!(!log.has_reached(log.mark()));
    }
}
