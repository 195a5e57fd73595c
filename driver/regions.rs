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
//!   the range with nothing queued can only be one of these: it was either not there at S, or queued
//!   at S and read since. It is queued again. One that has an event queued already was possibly read
//!   after S and then hit by another change; its event is extended unless it covers this range
//!   anyway.
//! - Registered, or its event read, after E: P finds the new page.

use kernel::prelude::*;

use crate::abstractions::{
    interval_map::{
        Entry,
        IntervalMap,
        NodeCache,
        Queued,
        Removed,
        Reservation, //
    },
    iov::Records, //
};

use super::{
    event::{
        self,
        Event, //
    },
    gate::Gate,
    hint::Hint, //
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
/// - `queued` is the number of regions in the queue of the map.
/// - `counter` is greater than `reported` where something is queued.
pub(super) struct Regions {
    map: IntervalMap<u64, Hint>,
    queued: usize,
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
            queued: 0,
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
        let (removed, was_queued) = self.map.remove(&cookie)?;
        self.queued -= usize::from(was_queued);
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
        self.for_each_hit(start, last, hit)
    }

    /// Takes note that the mappings of `start ..= last` have been changed, and that regions in it
    /// may have been rearmed during that.
    ///
    /// Returns whether a region was hit again, so that the counter has moved.
    pub(super) fn hit_again(&mut self, start: usize, last: usize) -> bool {
        self.for_each_hit(start, last, |entry, start, last| {
            if entry.is_queued() && entry.value().covers(start, last) {
                return Hit::Not;
            }
            hit(entry, start, last)
        })
    }

    /// Calls `hit` for all regions that overlap `start ..= last`, with what they have in common.
    #[inline]
    fn for_each_hit(
        &mut self,
        start: usize,
        last: usize,
        hit: impl Fn(&mut Entry<'_, u64, Hint>, usize, usize) -> Hit,
    ) -> bool {
        let mut any = false;
        let queued = &mut self.queued;
        self.map.for_each_overlap(start, last, |mut entry| {
            let (start, last) = (start.max(entry.start()), last.min(entry.last()));
            let hit = hit(&mut entry, start, last);
            any |= hit != Hit::Not;
            *queued += usize::from(hit == Hit::Queued);
        });
        self.counter += u64::from(any);
        any
    }

    /// Fills `records` with what is queued, and with LAST where that is all; takes nothing away.
    ///
    /// No more than `room` records are filled in. Those that are delivered are to be taken away with
    /// [`Self::take`].
    #[inline]
    pub(super) fn peek<const N: usize>(&self, records: &mut Records<Event, N>, room: usize) {
        let mut queued = self.map.queued();
        for _ in 0..room {
            let event = match queued.next() {
                Some(Queued {
                    key,
                    start,
                    last,
                    value,
                }) => match value.bounds() {
                    Some((first, end)) => {
                        event::invalidated(*key, first.max(start), end.min(last), true)
                    }
                    None => event::invalidated(*key, start, last, false),
                },
                None => {
                    if self.is_readable() {
                        records.push(event::last(self.counter));
                    }
                    return;
                }
            };
            records.push(event);
        }
    }

    /// Takes away the first `count` records that [`Self::peek`] has shown; returns whether LAST is
    /// among them.
    ///
    /// The lock must have been held since then.
    #[inline]
    pub(super) fn take(&mut self, gate: &Gate, count: usize) -> bool {
        let events = count.min(self.queued);
        for _ in 0..events {
            self.map.dequeue();
        }
        if events > 0 {
            self.queued -= events;
            gate.note_rearmed();
        }
        if events == count {
            return false;
        }
        self.reported = self.counter;
        true
    }
}

/// What a change did to a region.
#[derive(PartialEq, Eq)]
enum Hit {
    /// Nothing.
    Not,
    /// An event was queued.
    Queued,
    /// The event that was queued was extended.
    Extended,
}

/// A change to `start ..= last`, which is in the region, happens.
#[inline]
fn hit(region: &mut Entry<'_, u64, Hint>, start: usize, last: usize) -> Hit {
    if region.enqueue() {
        *region.value() = Hint::new(start, last);
        Hit::Queued
    } else {
        // One event cannot tell two ranges, so it tells them all.
        *region.value() = Hint::WHOLE;
        Hit::Extended
    }
}
