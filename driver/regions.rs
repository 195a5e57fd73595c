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
//! The kernel calls [`Regions::invalidate_start`] before it changes page tables and
//! [`Regions::invalidate_end`] after that, with the same range. Whoever calls into here holds the
//! same spinlock, so all calls have an order. Let a change happen between the calls S and E, and
//! let P be a moment at which user space looks up the page tables, to pin what they map, for a
//! region that overlaps the range.
//!
//! - Registered before S, and not read between S and E: S queues an event, or finds one queued that
//!   it extends to the whole region. It stays queued until after E. The counter moves at S, before
//!   the change. So whoever still uses what was pinned before is told, and told early enough.
//! - Registered, or its event read, between S and E: P may come before the change and pin the old
//!   page, although the event that S queued is gone, or was never queued. So a register or a read
//!   while a change is in flight sets `rearmed`, and E then looks at the regions again. At E, a
//!   region in the range with nothing queued can only be one of these: it was either not there at
//!   S, or queued at S and read since. It is queued again. One that has an event queued already was
//!   possibly read after S and then hit by another change; its event is extended unless it covers
//!   this range anyway.
//! - Registered, or its event read, after E: P finds the new page.
//!
//! `rearmed` is reset only when no change is in flight, at which time no E is due that could need
//! it. Where it is not set E costs O(1).

use kernel::{
    prelude::*,
    warn_on, //
};

use crate::{
    abstractions::interval_map::{
        Entry,
        IntervalMap,
        Queued,
        Removed,
        Reservation, //
    },
    uapi::ummunotify_event, //
};

use super::event;

/// What is queued for a region.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pending {
    /// Nothing.
    Nothing,
    /// One event, for addresses of the region from the first to the last one given.
    Part(usize, usize),
    /// One event, for the whole region.
    Whole,
}

/// A region, besides its addresses.
pub(super) struct Region {
    cookie: u64,
    pending: Pending,
}

/// Memory for a region that is going to be registered.
pub(super) type NewRegion = Reservation<u64, Region>;

/// A region that is not registered any more. Dropping it frees its memory.
pub(super) type OldRegion = Removed<u64, Region>;

/// All regions of a file, and what happened to them.
///
/// # Invariants
///
/// - A region is in the queue of the map where, and only where, something is pending for it; and
///   `queued` is the number of these.
/// - `counter` is greater than `reported` where something is queued.
pub(super) struct Regions {
    map: IntervalMap<u64, Region>,
    queued: usize,
    /// The generation counter: the number of invalidations that hit at least one region.
    counter: u64,
    /// The counter in the last LAST record that was read.
    reported: u64,
    /// The number of invalidations that have started and not ended.
    in_flight: usize,
    /// A region was registered, or an event read, while an invalidation was in flight.
    rearmed: bool,
}

impl Regions {
    /// Creates an empty set of regions, at generation 0.
    pub(super) fn new() -> Self {
        // INVARIANT: There are no regions.
        Self {
            map: IntervalMap::new(),
            queued: 0,
            counter: 0,
            reported: 0,
            in_flight: 0,
            rearmed: false,
        }
    }

    /// Returns the number of registered regions.
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// Returns the number of regions with an event queued.
    pub(super) fn queued(&self) -> usize {
        self.queued
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
    pub(super) fn register(
        &mut self,
        new: NewRegion,
        start: usize,
        last: usize,
        cookie: u64,
    ) -> Result<(), NewRegion> {
        let region = Region {
            cookie,
            pending: Pending::Nothing,
        };
        self.map.insert(new, cookie, start, last, region)?;
        self.note_rearmed();
        Ok(())
    }

    /// Unregisters the region with this cookie, and forgets what is queued for it.
    pub(super) fn unregister(&mut self, cookie: u64) -> Option<OldRegion> {
        let (removed, was_queued) = self.map.remove(&cookie)?;
        self.queued -= usize::from(was_queued);
        Some(removed)
    }

    /// Takes note that the mappings of `start ..= last` are going to be changed.
    ///
    /// Returns whether a region was hit, so that the counter has moved.
    #[inline]
    pub(super) fn invalidate_start(&mut self, start: usize, last: usize) -> bool {
        self.in_flight += 1;
        self.hit(start, last, Region::hit)
    }

    /// Takes note that the mappings of `start ..= last` have been changed.
    ///
    /// Returns whether a region was hit again, so that the counter has moved.
    #[inline]
    pub(super) fn invalidate_end(&mut self, start: usize, last: usize) -> bool {
        // The file was opened while none was in flight, so each end has had its start.
        if warn_on!(self.in_flight == 0) {
            return false;
        }
        let rearmed = self.rearmed;
        self.in_flight -= 1;
        self.rearmed &= self.in_flight > 0;
        rearmed && self.hit(start, last, Region::hit_again)
    }

    /// Calls `hit` for all regions that overlap `start ..= last`, with what they have in common.
    fn hit(
        &mut self,
        start: usize,
        last: usize,
        hit: fn(&mut Region, usize, usize) -> bool,
    ) -> bool {
        let mut any = false;
        let queued = &mut self.queued;
        self.map
            .for_each_overlap(start, last, |mut entry: Entry<'_, Region>| {
                let (start, last) = (start.max(entry.start()), last.min(entry.last()));
                if hit(entry.value(), start, last) {
                    any = true;
                    *queued += usize::from(entry.enqueue());
                }
            });
        self.counter += u64::from(any);
        any
    }

    /// Fills `events` with what is queued, and with LAST where that is all; takes nothing away.
    ///
    /// Returns the number of records. Those that are delivered are to be taken away with
    /// [`Self::take`].
    pub(super) fn peek(&self, events: &mut [ummunotify_event]) -> usize {
        let mut queued = self.map.queued();
        let mut filled = 0;
        for slot in events {
            *slot = match queued.next() {
                Some(Queued { start, last, value }) => match value.pending {
                    Pending::Part(start, last) => {
                        event::invalidated(value.cookie, start, last, true)
                    }
                    _ => event::invalidated(value.cookie, start, last, false),
                },
                None => {
                    if self.is_readable() {
                        *slot = event::last(self.counter);
                        filled += 1;
                    }
                    break;
                }
            };
            filled += 1;
        }
        filled
    }

    /// Takes away the first `count` records that [`Self::peek`] has shown; returns whether LAST is
    /// among them.
    ///
    /// The lock must have been held since then.
    pub(super) fn take(&mut self, count: usize) -> bool {
        for _ in 0..count {
            match self.map.dequeue() {
                Some(region) => {
                    region.pending = Pending::Nothing;
                    self.queued -= 1;
                    self.note_rearmed();
                }
                None => {
                    self.reported = self.counter;
                    return true;
                }
            }
        }
        false
    }

    fn note_rearmed(&mut self) {
        self.rearmed |= self.in_flight > 0;
    }
}

impl Region {
    /// A change to `start ..= last`, which is in the region, is going to happen.
    fn hit(&mut self, start: usize, last: usize) -> bool {
        self.pending = match self.pending {
            Pending::Nothing => Pending::Part(start, last),
            // One event cannot tell two ranges, so it tells them all.
            Pending::Part(..) | Pending::Whole => Pending::Whole,
        };
        true
    }

    /// A change to `start ..= last` has happened, and the region may have been rearmed during it.
    ///
    /// Returns whether what is pending did not cover that already.
    fn hit_again(&mut self, start: usize, last: usize) -> bool {
        match self.pending {
            Pending::Whole => false,
            Pending::Part(first, end) if first <= start && last <= end => false,
            Pending::Part(..) | Pending::Nothing => self.hit(start, last),
        }
    }
}
