// SPDX-License-Identifier: GPL-2.0

//! The regions of a file: which are hit, what is queued for them, and what the counter says.
//!
//! # The states of a region
//!
//! ```text
//!                 hit                        hit
//!   register --> armed --> queued, with a hint --> queued, whole
//!                  ^               |                     |
//!                  +---------------+------ read ---------+
//! ```
//!
//! From each of them UNREGISTER leads out, and takes along what is queued.
//!
//! # Why no change of a mapping is missed
//!
//! The kernel calls into the driver before it changes page tables, which leads to
//! [`Regions::hit`], and after that, which leads to [`Regions::hit_again`], with the same range.
//! Either may be skipped where [`Gate`] says that there is nothing for it to do. All calls are made
//! with the same spinlock held, so they have an order. Let a change happen between the calls S and
//! E, and let P be a moment at which user space looks up the page tables, to pin what they map, for
//! a region that overlaps the range.
//!
//! - Registered before S, and not read between S and E: S queues an event, or finds one queued that
//!   it extends to the whole region. It stays queued until after E. The counter moves at S, before
//!   the change. So whoever still uses what was pinned before is told, and told early enough.
//! - Registered, or its event read, between S and E: P may come before the change and pin the old
//!   page, although the event that S queued is gone, or was never queued. So a register or a read
//!   while a change is in flight rearms, and E then looks at the regions again. At E, a region in
//!   the range with nothing queued can only be one of these: it was either not there at S, or
//!   queued at S and read since. It is queued again. One that has an event queued already was
//!   possibly read after S and then hit by another change; its event is extended unless it covers
//!   this range anyway.
//! - Registered, or its event read, after E: P finds the new page.

use core::mem::MaybeUninit;

use kernel::prelude::*;

use crate::abstractions::{
    interval_map::{
        Entry,
        IntervalMap,
        NodeCache,
        Queued,
        Removed,
        Reservation, //
    }, //
};

use super::{
    event::{
        self,
        Event, //
    },
    gate::Gate,
    hint::{
        Hint,
        Span, //
    }, //
};

/// Where the memory of regions comes from.
pub(crate) type RegionCache = NodeCache<u64, Hint>;

/// Memory for a region that is going to be registered.
pub(super) type NewRegion = Reservation<u64, Hint>;

/// A region that is not registered any more. Dropping it frees its memory.
pub(super) type OldRegion = Removed<u64, Hint>;

/// All regions of a file, and what happened to them.
///
/// Their keys in the map are the cookies. Their values are what the event is about that is queued
/// for them.
///
/// # Invariants
///
/// `counter` is greater than `reported` where something is queued.
pub(super) struct Regions {
    map: IntervalMap<u64, Hint>,
    /// The generation counter: the number of invalidations that hit at least one region.
    counter: u64,
    /// The counter in the last LAST record that was read.
    reported: u64,
}

impl Regions {
    /// Creates an empty set of regions, at generation 0.
    pub(super) fn new() -> Self {
        // INVARIANT: There are no regions.
        Self {
            map: IntervalMap::new(),
            counter: 0,
            reported: 0,
        }
    }

    /// Returns the number of registered regions.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// Returns the number of regions with an event queued.
    pub(super) fn queued(&self) -> usize {
        self.map.queue_len()
    }

    /// Returns the generation counter.
    #[inline]
    pub(super) fn counter(&self) -> u64 {
        self.counter
    }

    /// Returns whether a read returns something.
    ///
    /// A counter that was not reported yet is enough: then there is a LAST to be read.
    #[inline]
    pub(super) fn is_readable(&self) -> bool {
        self.counter != self.reported
    }

    /// Registers the region `start ..= last`.
    ///
    /// Where the cookie is taken, nothing changes and the memory is handed back.
    #[inline]
    pub(super) fn register(
        &mut self,
        gate: &Gate,
        new: NewRegion,
        start: usize,
        last: usize,
        cookie: u64,
    ) -> Result<(), OldRegion> {
        self.map.insert(new, cookie, start, last, Hint::WHOLE)?;
        gate.widen(start, last);
        gate.note_rearmed();
        Ok(())
    }

    /// Unregisters the region with this cookie, and forgets what is queued for it.
    #[inline]
    pub(super) fn unregister(&mut self, gate: &Gate, cookie: u64) -> Option<OldRegion> {
        let removed = self.map.remove(&cookie)?;
        if self.map.len() == 0 {
            gate.close();
        }
        Some(removed)
    }

    /// Takes note that the mappings of `start ..= last` are going to be changed.
    ///
    /// Returns whether a region was hit, so that the counter has moved.
    #[inline]
    pub(super) fn hit(&mut self, start: usize, last: usize) -> bool {
        self.for_each_hit(start, last, |entry, region, part| {
            hit(entry, region, part);
            true
        })
    }

    /// Takes note that the mappings of `start ..= last` have been changed, and that regions in it
    /// may have been rearmed during that.
    ///
    /// Returns whether a region was hit again, so that the counter has moved.
    pub(super) fn hit_again(&mut self, start: usize, last: usize) -> bool {
        self.for_each_hit(start, last, |entry, region, part| {
            let is_told = entry.is_queued() && entry.value().covers(region, part);
            if !is_told {
                hit(entry, region, part);
            }
            !is_told
        })
    }

    /// Calls `hit` for all regions that overlap `start ..= last`, with where they are and the part
    /// that they have in common; it returns whether it told them something new.
    #[inline]
    fn for_each_hit(
        &mut self,
        start: usize,
        last: usize,
        hit: impl Fn(&mut Entry<'_, u64, Hint>, &Span, &Span) -> bool,
    ) -> bool {
        let mut any = false;
        self.map.for_each_overlap(start, last, |mut entry| {
            let region = Span {
                start: entry.start(),
                last: entry.last(),
            };
            let part = Span {
                start: start.max(region.start),
                last: last.min(region.last),
            };
            any |= hit(&mut entry, &region, &part);
        });
        self.counter += u64::from(any);
        any
    }

    /// Returns the record that a read returns first, which stays queued.
    #[inline]
    pub(super) fn front(&self) -> Option<Event> {
        match self.map.front() {
            Some(queued) => Some(record(queued)),
            None => self.is_readable().then(|| event::last(self.counter)),
        }
    }

    /// Takes away what [`Self::front`] returns.
    #[inline]
    pub(super) fn pop(&mut self, gate: &Gate) {
        if self.map.pop() {
            gate.note_rearmed();
        } else {
            self.reported = self.counter;
        }
    }

    /// Has `deliver` deliver what is queued, as far as there is room for the records, and LAST
    /// where that is all. It returns how many it has delivered; what the others tell stays queued.
    #[inline]
    pub(super) fn read(
        &mut self,
        gate: &Gate,
        room: &mut [MaybeUninit<Event>],
        mut deliver: impl FnMut(&[Event]) -> usize,
    ) -> Batch {
        let most = room.len();
        let (events, dequeued) = self.map.dequeue(room, usual_record, rare_record);
        let delivered = if events.is_empty() {
            0
        } else {
            deliver(events)
        };
        dequeued.put_back(delivered);
        if delivered > 0 {
            gate.note_rearmed();
        }
        if delivered < events.len() {
            return Batch::Faulted;
        }
        if events.len() == most || !self.is_readable() {
            return Batch::All;
        }
        if deliver(&[event::last(self.counter)]) == 0 {
            return Batch::Faulted;
        }
        self.reported = self.counter;
        Batch::Last
    }
}

/// The record about a region with an event queued.
#[inline]
fn record(queued: Queued<u64, Hint>) -> Event {
    let region = Span {
        start: queued.start,
        last: queued.last,
    };
    match queued.value.part_of(&region) {
        Some(part) => event::invalidated(queued.key, &part, true),
        None => event::invalidated(queued.key, &region, false),
    }
}

/// The same, where the hint tells bytes, as most do.
#[inline]
fn usual_record(queued: &Queued<u64, Hint>) -> Option<Event> {
    let part = queued.value.bytes_from(queued.start)?;
    Some(event::invalidated(queued.key, &part, true))
}

/// The same, where it does not.
#[cold]
#[inline(never)]
fn rare_record(queued: Queued<u64, Hint>) -> Event {
    record(queued)
}

/// What came of delivering records.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Batch {
    /// All were delivered, and LAST is the last of them.
    Last,
    /// All were delivered.
    All,
    /// Not all were delivered.
    Faulted,
}

/// A change to `part` of a region happens.
#[inline]
fn hit(entry: &mut Entry<'_, u64, Hint>, region: &Span, part: &Span) {
    // One event cannot tell two ranges, so a second one has it tell them all.
    *entry.value() = if entry.enqueue() {
        Hint::new(region, part)
    } else {
        Hint::WHOLE
    };
}

#[kernel::prelude::kunit_tests(ummunotify_regions)]
mod tests {
    use super::*;

    use kernel::page::PAGE_SIZE as P;
    use zerocopy::IntoBytes;

    /// Something that happens to the regions of a file, and what is to come of it.
    ///
    /// Ranges are given as the first and the last address.
    #[derive(Clone, Copy)]
    enum Step {
        /// A region with this cookie is registered; whether that works.
        Register(u64, usize, usize, bool),
        /// A region is unregistered; whether there is one.
        Unregister(u64, bool),
        /// A change starts; the counter after that.
        Start(usize, usize, u64),
        /// A change ends; the counter after that.
        End(usize, usize, u64),
        /// A read with room for so many records; what it finds.
        Read(usize, &'static [Record]),
        /// What [`Read`](Self::Read) finds, when only so many can be copied.
        Fault(usize, &'static [Record], usize),
    }
    use Step::*;

    /// A record that is expected. Ranges are given as the first address and the end.
    #[derive(Clone, Copy)]
    enum Record {
        /// INVAL with a hint.
        Part(u64, usize, usize),
        /// INVAL without one.
        Whole(u64, usize, usize),
        /// LAST.
        Last(u64),
    }
    use Record::*;

    fn inval(cookie: u64, start: usize, end: usize, hint: bool) -> Event {
        let last = end - 1;
        event::invalidated(cookie, &Span { start, last }, hint)
    }

    impl Record {
        fn event(self) -> Event {
            match self {
                Part(cookie, start, end) => inval(cookie, start, end, true),
                Whole(cookie, start, end) => inval(cookie, start, end, false),
                Last(counter) => event::last(counter),
            }
        }
    }

    /// The most records that a step reads.
    const ROOM: usize = 8;

    /// What a file has of regions.
    struct Watched {
        // The order in which they are dropped.
        regions: Regions,
        gate: Gate,
        cache: RegionCache,
    }

    impl Watched {
        fn new() -> Result<Self> {
            Ok(Self {
                regions: Regions::new(),
                gate: Gate::new(),
                cache: RegionCache::new(c"ummunotify_test")?,
            })
        }

        /// Reads with room for so many records, of which `count` are delivered.
        fn read(&mut self, room: usize, expected: &[Record], count: usize) -> bool {
            let mut memory = [const { MaybeUninit::uninit() }; ROOM];
            let mut records = expected.iter();
            let (mut right, mut left) = (true, count);
            let batch = self.regions.read(&self.gate, &mut memory[..room], |found| {
                right &= found.iter().all(|found| {
                    records
                        .next()
                        .is_some_and(|record| record.event().as_bytes() == found.as_bytes())
                });
                let delivered = left.min(found.len());
                left -= delivered;
                delivered
            });
            right
                && left == 0
                && records.next().is_none()
                && batch
                    == match expected[..count].last() {
                        _ if count < expected.len() => Batch::Faulted,
                        Some(Last(_)) => Batch::Last,
                        _ => Batch::All,
                    }
        }

        /// Does a step as `driver::file` does; returns whether what is expected came of it.
        fn step(&mut self, step: Step) -> Result<bool> {
            Ok(match step {
                Register(cookie, start, last, works) => {
                    let new = NewRegion::new(&self.cache)?;
                    self.regions
                        .register(&self.gate, new, start, last, cookie)
                        .is_ok()
                        == works
                }
                Unregister(cookie, works) => {
                    self.regions.unregister(&self.gate, cookie).is_some() == works
                }
                Start(start, last, counter) => {
                    let before = self.regions.counter();
                    let hit = self.gate.start(start, last.saturating_add(1))
                        && self.regions.hit(start, last);
                    self.regions.counter() == counter && hit == (counter != before)
                }
                End(start, last, counter) => {
                    let before = self.regions.counter();
                    let hit = self.gate.finish() && self.regions.hit_again(start, last);
                    self.gate.forget_rearmed();
                    self.regions.counter() == counter && hit == (counter != before)
                }
                Read(room, expected) => self.read(room, expected, expected.len()),
                Fault(room, expected, count) => self.read(room, expected, count),
            })
        }
    }

    /// Does all the steps, on an empty set of regions; returns whether what is expected came of
    /// all.
    fn runs(steps: &[Step]) -> Result<bool> {
        let mut watched = Watched::new()?;
        for (number, step) in steps.iter().enumerate() {
            if !watched.step(*step)? {
                pr_err!("step {} (from 0) has another outcome\n", number);
                return Ok(false);
            }
        }
        Ok(watched.regions.queued() <= watched.regions.len())
    }

    #[test]
    fn a_hit_has_a_hint_and_is_followed_by_last() -> Result {
        assert!(runs(&[
            Register(7, P, 4 * P - 1, true),
            Start(2 * P, 3 * P - 1, 1),
            End(2 * P, 3 * P - 1, 1),
            Read(8, &[Part(7, 2 * P, 3 * P), Last(1)]),
            Read(8, &[]),
        ])?);
        Ok(())
    }

    #[test]
    fn hints_are_clamped_to_the_region() -> Result {
        assert!(runs(&[
            Register(1, P + 5, P + 9, true),
            Register(2, 0, usize::MAX - 1, true),
            Start(P, 2 * P - 1, 1),
            End(P, 2 * P - 1, 1),
            Read(8, &[Part(2, P, 2 * P), Part(1, P + 5, P + 10), Last(1)]),
        ])?);
        Ok(())
    }

    #[test]
    fn a_second_hit_makes_it_whole() -> Result {
        assert!(runs(&[
            Register(1, 0, 9 * P - 1, true),
            Start(0, P - 1, 1),
            End(0, P - 1, 1),
            Start(5 * P, 6 * P - 1, 2),
            End(5 * P, 6 * P - 1, 2),
            Read(8, &[Whole(1, 0, 9 * P), Last(2)]),
            Start(0, P - 1, 3),
            End(0, P - 1, 3),
            Read(8, &[Part(1, 0, P), Last(3)]),
        ])?);
        Ok(())
    }

    #[test]
    fn neighbours_are_not_hit() -> Result {
        assert!(runs(&[
            Register(1, 0, P - 1, true),
            Register(2, 2 * P, 3 * P - 1, true),
            Start(P, 2 * P - 1, 0),
            End(P, 2 * P - 1, 0),
            Start(3 * P, 9 * P - 1, 0),
            End(3 * P, 9 * P - 1, 0),
            Read(8, &[]),
            Start(P - 1, 2 * P, 1),
            End(P - 1, 2 * P, 1),
            Read(8, &[Part(1, P - 1, P), Part(2, 2 * P, 2 * P + 1), Last(1)]),
        ])?);
        Ok(())
    }

    #[test]
    fn an_empty_region_watches_one_byte() -> Result {
        assert!(runs(&[
            Register(1, 2 * P, 2 * P, true),
            Start(P, 2 * P - 1, 0),
            End(P, 2 * P - 1, 0),
            Start(2 * P, 3 * P - 1, 1),
            End(2 * P, 3 * P - 1, 1),
            Read(8, &[Part(1, 2 * P, 2 * P + 1), Last(1)]),
        ])?);
        Ok(())
    }

    #[test]
    fn all_that_overlap_are_hit_and_count_once() -> Result {
        assert!(runs(&[
            Register(1, 0, 9 * P - 1, true),
            Register(2, 3 * P, 6 * P - 1, true),
            Register(3, 3 * P, 6 * P - 1, true),
            Register(4, 5 * P, 20 * P - 1, true),
            Register(5, 7 * P, 8 * P - 1, true),
            Start(5 * P, 6 * P - 1, 1),
            End(5 * P, 6 * P - 1, 1),
            Unregister(2, true),
            Unregister(3, true),
            Read(8, &[Part(1, 5 * P, 6 * P), Part(4, 5 * P, 6 * P), Last(1)]),
        ])?);
        Ok(())
    }

    #[test]
    fn a_cookie_is_taken_until_it_is_unregistered() -> Result {
        assert!(runs(&[
            Register(0, 0, P - 1, true),
            Register(0, P, 2 * P - 1, false),
            Start(P, 2 * P - 1, 0),
            End(P, 2 * P - 1, 0),
            Unregister(1, false),
            Unregister(0, true),
            Unregister(0, false),
            Register(0, P, 2 * P - 1, true),
            Start(P, 2 * P - 1, 1),
            End(P, 2 * P - 1, 1),
            Read(8, &[Part(0, P, 2 * P), Last(1)]),
        ])?);
        Ok(())
    }

    #[test]
    fn unregister_drops_the_event_but_not_last() -> Result {
        assert!(runs(&[
            Register(1, 0, P - 1, true),
            Register(2, 0, P - 1, true),
            Register(3, 0, P - 1, true),
            Start(0, P - 1, 1),
            End(0, P - 1, 1),
            Unregister(2, true),
            Read(8, &[Part(1, 0, P), Part(3, 0, P), Last(1)]),
            Start(0, P - 1, 2),
            End(0, P - 1, 2),
            Unregister(1, true),
            Unregister(3, true),
            Read(8, &[Last(2)]),
            Read(8, &[]),
        ])?);
        Ok(())
    }

    #[test]
    fn order_is_that_of_the_first_hits() -> Result {
        assert!(runs(&[
            Register(1, 0, P - 1, true),
            Register(2, P, 2 * P - 1, true),
            Register(3, 2 * P, 3 * P - 1, true),
            Start(2 * P, 3 * P - 1, 1),
            End(2 * P, 3 * P - 1, 1),
            Start(0, P - 1, 2),
            End(0, P - 1, 2),
            Start(2 * P, 3 * P - 1, 3),
            End(2 * P, 3 * P - 1, 3),
            Start(P, 2 * P - 1, 4),
            End(P, 2 * P - 1, 4),
            Read(
                8,
                &[
                    Whole(3, 2 * P, 3 * P),
                    Part(1, 0, P),
                    Part(2, P, 2 * P),
                    Last(4),
                ],
            ),
        ])?);
        Ok(())
    }

    #[test]
    fn what_does_not_fit_stays() -> Result {
        assert!(runs(&[
            Register(1, 0, P - 1, true),
            Register(2, 0, P - 1, true),
            Start(0, P - 1, 1),
            End(0, P - 1, 1),
            Fault(8, &[Part(1, 0, P), Part(2, 0, P)], 0),
            Read(1, &[Part(1, 0, P)]),
            Fault(8, &[Part(2, 0, P)], 0),
            Fault(8, &[Part(2, 0, P), Last(1)], 1),
            Start(0, P - 1, 2),
            End(0, P - 1, 2),
            Read(1, &[Part(1, 0, P)]),
            Read(1, &[Part(2, 0, P)]),
            Fault(8, &[Last(2)], 0),
            Read(1, &[Last(2)]),
            Read(1, &[]),
            // In parts, with more behind what there is room for.
            Register(3, 0, P - 1, true),
            Register(4, 0, P - 1, true),
            Start(0, P - 1, 3),
            End(0, P - 1, 3),
            Fault(3, &[Part(1, 0, P), Part(2, 0, P), Part(3, 0, P)], 1),
            Unregister(3, true),
            Fault(8, &[Part(2, 0, P), Part(4, 0, P)], 0),
            Fault(8, &[Part(2, 0, P), Part(4, 0, P), Last(3)], 2),
            Start(0, P - 1, 4),
            End(0, P - 1, 4),
            Read(8, &[Part(1, 0, P), Part(2, 0, P), Part(4, 0, P), Last(4)]),
        ])?);
        Ok(())
    }

    #[test]
    fn read_in_a_change_is_told_again() -> Result {
        assert!(runs(&[
            Register(1, 0, 9 * P - 1, true),
            Start(P, 2 * P - 1, 1),
            Read(8, &[Part(1, P, 2 * P), Last(1)]),
            End(P, 2 * P - 1, 2),
            Read(8, &[Part(1, P, 2 * P), Last(2)]),
            Start(P, 2 * P - 1, 3),
            End(P, 2 * P - 1, 3),
        ])?);
        Ok(())
    }

    #[test]
    fn registered_in_a_change_is_told() -> Result {
        assert!(runs(&[
            // The first region, where there was none.
            Start(0, 9 * P - 1, 0),
            Register(1, P, 2 * P - 1, true),
            End(0, 9 * P - 1, 1),
            Read(8, &[Part(1, P, 2 * P), Last(1)]),
            // One outside what was watched, and one that is not in the range.
            Start(20 * P, 30 * P - 1, 1),
            Register(2, 25 * P, 26 * P - 1, true),
            Register(3, 40 * P, 41 * P - 1, true),
            End(20 * P, 30 * P - 1, 2),
            Read(8, &[Part(2, 25 * P, 26 * P), Last(2)]),
        ])?);
        Ok(())
    }

    #[test]
    fn registered_anew_in_a_change_is_told() -> Result {
        assert!(runs(&[
            Register(1, 0, P - 1, true),
            Start(0, P - 1, 1),
            Read(8, &[Part(1, 0, P), Last(1)]),
            Unregister(1, true),
            Register(1, 0, P - 1, true),
            End(0, P - 1, 2),
            Read(8, &[Part(1, 0, P), Last(2)]),
        ])?);
        Ok(())
    }

    #[test]
    fn unregistered_in_a_change_is_not_told() -> Result {
        assert!(runs(&[
            Register(1, 0, P - 1, true),
            Register(2, 5 * P, 6 * P - 1, true),
            Start(0, P - 1, 1),
            Read(8, &[Part(1, 0, P), Last(1)]),
            Unregister(1, true),
            End(0, P - 1, 1),
            Read(8, &[]),
        ])?);
        Ok(())
    }

    #[test]
    fn changes_that_overlap_in_time() -> Result {
        assert!(runs(&[
            Register(1, 0, 9 * P - 1, true),
            Register(2, 5 * P, 9 * P - 1, true),
            Start(0, P - 1, 1),
            Start(5 * P, 6 * P - 1, 2),
            Read(8, &[Whole(1, 0, 9 * P), Part(2, 5 * P, 6 * P), Last(2)]),
            // Both have to be told again by whichever change they are in.
            End(5 * P, 6 * P - 1, 3),
            End(0, P - 1, 4),
            Read(8, &[Whole(1, 0, 9 * P), Part(2, 5 * P, 6 * P), Last(4)]),
            Start(0, P - 1, 5),
            End(0, P - 1, 5),
        ])?);
        Ok(())
    }

    #[test]
    fn rearmed_is_kept_while_any_change_is_in_flight() -> Result {
        assert!(runs(&[
            Register(1, 0, P - 1, true),
            Register(2, 5 * P, 6 * P - 1, true),
            Start(0, P - 1, 1),
            Start(5 * P, 6 * P - 1, 2),
            Read(1, &[Part(1, 0, P)]),
            // This one has nothing to tell, and must not forget that the other one does.
            End(5 * P, 6 * P - 1, 2),
            End(0, P - 1, 3),
            Read(8, &[Part(2, 5 * P, 6 * P), Part(1, 0, P), Last(3)]),
        ])?);
        Ok(())
    }

    #[test]
    fn an_event_that_covers_the_change_is_left_alone() -> Result {
        assert!(runs(&[
            Register(1, 0, 9 * P - 1, true),
            Register(2, 20 * P, 21 * P - 1, true),
            Start(P, 4 * P - 1, 1),
            // Rearms, although nothing of region 1 is read.
            Register(3, 30 * P, 31 * P - 1, true),
            End(P, 4 * P - 1, 1),
            Read(8, &[Part(1, P, 4 * P), Last(1)]),
            // Read, then hit elsewhere: what is queued does not cover the first change.
            Start(P, 4 * P - 1, 2),
            Read(8, &[Part(1, P, 4 * P), Last(2)]),
            Start(6 * P, 7 * P - 1, 3),
            End(6 * P, 7 * P - 1, 3),
            End(P, 4 * P - 1, 4),
            Read(8, &[Whole(1, 0, 9 * P), Last(4)]),
        ])?);
        Ok(())
    }

    #[test]
    fn nothing_is_hit_when_all_are_gone() -> Result {
        assert!(runs(&[
            Register(1, 0, P - 1, true),
            Unregister(1, true),
            Start(0, usize::MAX, 0),
            End(0, usize::MAX, 0),
            Register(2, 3 * P, 4 * P - 1, true),
            Start(0, usize::MAX, 1),
            End(0, usize::MAX, 1),
            Read(8, &[Part(2, 3 * P, 4 * P), Last(1)]),
        ])?);
        Ok(())
    }
}
