// SPDX-License-Identifier: GPL-2.0

//! The regions of a file: which are hit, which events are queued, and the counter.
//!
//! `Documentation/userspace-api/ummunotify.rst` has a picture of the states of a region: armed;
//! queued, with a hint; queued, whole region. With `UMMUNOTIFY_FEATURE_HULL`, a second hit widens
//! the hint and does not discard it. A change whose cause the region ignores does not hit it.
//!
//! # Why no change of a mapping is missed
//!
//! The kernel calls the driver before it changes page tables, which leads to [`Regions::hit`], and
//! afterwards, which leads to [`Regions::hit_again`], with the same range. Either may be skipped if
//! [`Gate`] shows that it has nothing to do. All calls are made with the same spinlock held, so
//! they are ordered. Let a change happen between the calls S and E. Let P be a moment at which user
//! space looks up the page tables to pin pages, for a region that overlaps the range.
//!
//! - Registered before S, and not read between S and E: S queues an event, or finds a queued one
//!   and extends it. The event stays queued until after E. The counter moves at S, before the
//!   change. So a program that still uses the old pin is notified, and early enough.
//! - Registered, or its event read, between S and E: P may precede the change and pin the old page,
//!   although the event that S queued is gone or was never queued. So REGISTER or a read while a
//!   change is in flight rearms, and E then checks the regions again. At E, a region in the range
//!   without a queued event must be one of these: either it did not exist at S, or it was queued at
//!   S and read since. It is queued again. A region with a queued event may have been read after S
//!   and then hit by another change; its event is extended unless it already covers this range and
//!   has this cause.
//! - Registered, or its event read, after E: P finds the new page.
//!
//! If a region ignores the cause of the change, it is as if the region did not exist: S and E have
//! the same cause, and the causes that a region ignores never change.
//!
//! # Who does the work
//!
//! The watcher determines how many regions a change hits, and the task that makes the change must
//! not pay for that. So S and E visit at most [`MOST`] regions. If there are more, or if an earlier
//! change is still deferred, they record the change in [`Log`]; finding out whether it hits
//! anything takes one search. Reads and REGISTER do the rest, [`SOME`] regions at a time. If no
//! more than [`MOST`] regions are hit at once, the log stays empty.
//!
//! Why nothing is missed with the log:
//!
//! - A recorded change counts as queued. S and E record it and move the counter in one section of
//!   the lock, and [`Regions::is_readable`] depends on the counter. LAST is returned only if both
//!   the queue and the log are empty, in the section that finds them so. So a program that has seen
//!   the counter move cannot get LAST before the events, and a read that finds an empty queue
//!   applies the log.
//! - Events are in the order of the changes: while the log is not empty, later changes that hit a
//!   region are appended to it, and it is applied from its oldest entry on. The regions of one
//!   change are in the order of their addresses, class by class. The position in the oldest entry
//!   is kept in the map, which advances it if that very region is unregistered. A read first
//!   applies everything that was in the log when it began, and then takes events out of the queue,
//!   so that a region that was hit several times is reported once. Only a signal makes it return
//!   earlier, with what is queued by then.
//! - A region does not report changes from before it was registered: REGISTER applies the log as it
//!   was when REGISTER began, and inserts in the section of the lock that finds this done. Later
//!   changes may still be in the log; they are concurrent with REGISTER.
//! - UNREGISTER removes a region before or after it is queued; either way it is not reported.
//! - E looks for regions that were rearmed since S. If E is recorded, which regions it hits is
//!   decided when it is applied. A region that was hit at S and not read since is still queued
//!   then, or was read after E; in the latter case it is reported once more, unnecessarily. No
//!   region is left out: one that E must hit was in the map before E, and stays there until it is
//!   unregistered.
//! - Reading rearms even while entries are being applied: [`Regions::read`] records it in the
//!   section in which an event is taken out, however the event was queued.
//! - If the log is full, its two newest entries become one entry for the range that encloses both.
//!   That may hit more regions than necessary, and never fewer. They are reported as a whole or,
//!   with hulls, as far as they are in the range. Each is reported with all causes of the two that
//!   it heeds.
//! - Waits are bounded: a read and a REGISTER apply what was in the log when they began, which is
//!   limited, however fast others add to it. A read that has something to return ends then.

use core::mem::MaybeUninit;

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::abstractions::interval_map::{
    Class,
    Entry,
    IntervalMap,
    NodeCache,
    Queued,
    Removed,
    RemovedList,
    Reservation, //
};

use super::{
    cause::Causes,
    event::{
        self,
        Event,
        HINT, //
    },
    gate::Gate,
    hint::{
        Hint,
        Span, //
    },
    log::{
        Change,
        Kind,
        Log,
        Mark, //
    }, //
};

/// The most regions that a task visits when it changes a mapping, in one section of the lock.
pub(super) const MOST: usize = 128;

/// The most regions that are visited at a time when the log is applied.
///
/// If many other regions lie between one of these and the next in the tree, a step to the next
/// takes up to seven times as long.
const SOME: usize = 64;

/// The most regions that are removed in one section of the lock, which costs more.
pub(super) const FEW: usize = 48;

/// The event that is queued for a region.
///
/// Packed to 12 bytes, so that the class of the region fits into the same 16 bytes.
#[derive(Clone, Copy)]
#[repr(C, packed(4))]
pub(crate) struct Pending {
    /// The reported part of the region.
    hint: Hint,
    /// The causes of the reported changes; none without the feature.
    causes: Causes,
}

impl Pending {
    /// No event.
    const NONE: Self = Self {
        hint: Hint::WHOLE,
        causes: Causes::NONE,
    };
}

/// The class of regions that ignore no cause.
const IGNORING_NOTHING: Class = Class::new(0);

/// The slab cache for regions.
pub(crate) type RegionCache = NodeCache<u64, Pending>;

/// Memory for a region to be registered.
pub(super) type NewRegion<'c> = Reservation<'c, u64, Pending>;

/// A region that is no longer registered. Dropping it frees its memory.
pub(super) type OldRegion<'c> = Removed<'c, u64, Pending>;

/// All regions of a file. Dropping it frees their memory.
pub(super) type AllRegions = IntervalMap<u64, Pending>;

/// Several regions that are no longer registered.
pub(super) type OldRegions<'c> = RemovedList<'c, u64, Pending>;

/// All regions of a file, and their events.
///
/// The keys in the map are the cookies, the values are the queued events, and the classes are the
/// causes that the regions ignore.
///
/// # Invariants
///
/// - `counter` is greater than `reported` if an event is queued, or a change is in `log`.
/// - While `is_walking`, the walk of `map` is that of the oldest change in `log`.
pub(super) struct Regions {
    map: IntervalMap<u64, Pending>,
    /// Changes that have not been applied yet.
    log: Log,
    /// Whether the oldest of them is partly applied.
    is_walking: bool,
    /// Whether only the callback of that change has applied it, and nothing was read or registered
    /// since.
    is_fresh: bool,
    /// The generation counter: the number of invalidations that hit at least one region.
    counter: u64,
    /// The counter in the last LAST record that was read.
    reported: u64,
    /// Whether the file has features that concern events.
    has_features: bool,
    /// The causes that are reported: all or none.
    causes: Causes,
    /// Whether a second hit widens a hint instead of discarding it.
    has_hulls: bool,
}

impl Regions {
    /// Creates an empty set of regions at generation 0, whose memory comes from `cache`.
    pub(super) fn new(cache: Arc<RegionCache>) -> Self {
        // INVARIANT: There are no regions.
        Self {
            map: IntervalMap::new(cache),
            log: Log::new(),
            is_walking: false,
            is_fresh: false,
            counter: 0,
            reported: 0,
            has_features: false,
            causes: Causes::NONE,
            has_hulls: false,
        }
    }

    /// From now on, events have causes, or hints are widened. There must be no regions yet.
    pub(super) fn set_features(&mut self, has_causes: bool, has_hulls: bool) {
        self.causes = if has_causes {
            Causes::ALL
        } else {
            Causes::NONE
        };
        self.has_hulls = has_hulls;
        self.has_features = has_causes || has_hulls;
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
    /// If the counter was not reported yet, there is at least a LAST to read.
    #[inline]
    pub(super) fn is_readable(&self) -> bool {
        self.counter != self.reported
    }

    /// Returns the number of changes that have not been applied yet.
    pub(super) fn deferred(&self) -> usize {
        self.log.len()
    }

    /// Returns how often changes were merged, so that a region may be reported unnecessarily.
    pub(super) fn merged(&self) -> u64 {
        self.log.merged()
    }

    /// Returns whether there is nothing to apply.
    #[inline]
    pub(super) fn is_applied(&self) -> bool {
        self.log.is_empty()
    }

    /// Returns the mark that is reached when all changes until now have been applied.
    pub(super) fn mark(&self) -> Mark {
        self.log.mark()
    }

    /// Returns whether all changes before `mark` have been applied.
    pub(super) fn has_reached(&self, mark: Mark) -> bool {
        self.log.has_reached(mark)
    }

    /// Applies deferred changes to at most [`SOME`] regions.
    #[cold]
    pub(super) fn apply(&mut self) {
        let Some(change) = self.log.oldest() else {
            return;
        };
        self.is_fresh = false;
        let is_done = match change.kind {
            Kind::Start if !self.has_features => self.apply_to_some(change, hit),
            Kind::End if !self.has_features => self.apply_to_some(change, hit_unless_reported),
            Kind::Several if !self.has_features => self.apply_to_some(change, hit_whole),
            Kind::Start => self.apply_to_some(change, report),
            Kind::End => self.apply_to_some(change, report_unless_reported),
            Kind::Several => self.apply_to_some(change, report_several),
        };
        // INVARIANT: If the walk is not complete, the change stays.
        self.is_walking = !is_done;
        if is_done {
            self.log.pop();
        }
    }

    /// Begins or continues the walk of the oldest change; returns whether it is complete.
    fn apply_to_some(&mut self, change: Change, hit: impl Hit) -> bool {
        let report = self.report_of(&change);
        let visit = |mut entry: Entry<'_, u64, Pending>| {
            hit_part(&mut entry, report, &hit);
        };
        if self.is_walking {
            self.map.go_on(SOME, visit)
        } else {
            let Span { start, last } = change.span;
            self.map
                .walk_in(change.causes.heeding(), start, last, SOME, visit)
        }
    }

    /// Returns how a change is reported.
    #[inline]
    fn report_of(&self, change: &Change) -> Report {
        Report {
            span: change.span,
            causes: change.causes,
            has_hulls: self.has_hulls,
        }
    }

    /// Registers the region `start ..= last`. All earlier changes must have been applied.
    ///
    /// If the cookie is in use, nothing changes and the memory is returned.
    #[inline]
    pub(super) fn register<'c>(
        &mut self,
        gate: &Gate,
        new: NewRegion<'c>,
        class: Class,
        start: usize,
        last: usize,
        cookie: u64,
    ) -> Result<(), OldRegion<'c>> {
        let is_only = self
            .map
            .insert(new, class, cookie, start, last, Pending::NONE)?;
        // The oldest change, which may be later than the beginning of this REGISTER, has not hit
        // it.
        self.is_fresh = false;
        gate.widen(start, last);
        if is_only {
            gate.set_classes(self.map.populated());
        }
        gate.note_rearmed();
        Ok(())
    }

    /// Unregisters the region with this cookie, and discards its event.
    #[inline]
    pub(super) fn unregister<'c>(
        &mut self,
        gate: &Gate,
        cache: &'c RegionCache,
        cookie: u64,
    ) -> Option<OldRegion<'c>> {
        let classes = self.map.populated();
        let removed = self.map.remove(cache, &cookie)?;
        if self.map.populated() != classes {
            gate.narrow(self.map.populated());
        }
        Some(removed)
    }

    /// Removes all regions, and everything that is queued or deferred.
    pub(super) fn take(&mut self) -> AllRegions {
        self.log.clear();
        self.is_walking = false;
        self.is_fresh = false;
        self.reported = self.counter;
        self.map.take()
    }

    /// Looks at some regions, beginning with the cookie `from`, and removes those without a queued
    /// event. Returns them, and where to continue.
    pub(super) fn take_idle<'c>(
        &mut self,
        cache: &'c RegionCache,
        from: u64,
    ) -> (OldRegions<'c>, Option<u64>) {
        self.map.remove_idle(cache, &from, FEW)
    }

    /// The mappings of `start ..= last` are about to change, because of what `causes` returns.
    ///
    /// Returns whether a region was hit, so that the counter has moved.
    #[inline]
    pub(super) fn hit(
        &mut self,
        start: usize,
        last: usize,
        causes: impl FnOnce() -> Causes,
    ) -> bool {
        let span = Span { start, last };
        if self.has_features {
            return self.hit_with_features(Kind::Start, causes(), span);
        }
        self.hit_some::<false>(Kind::Start, Causes::NONE, span, hit)
    }

    /// The mappings of `start ..= last` have changed, because of what `causes` returns. Regions in
    /// that range may have been rearmed in the meantime.
    ///
    /// Returns whether a region was hit again, so that the counter has moved.
    pub(super) fn hit_again(
        &mut self,
        start: usize,
        last: usize,
        causes: impl FnOnce() -> Causes,
    ) -> bool {
        let span = Span { start, last };
        if self.has_features {
            return self.hit_with_features(Kind::End, causes(), span);
        }
        self.hit_some::<false>(Kind::End, Causes::NONE, span, hit_unless_reported)
    }

    /// The same for files with features. It is separate, so that V2 pays nothing for them.
    #[cold]
    #[inline(never)]
    fn hit_with_features(&mut self, kind: Kind, causes: Causes, span: Span) -> bool {
        let causes = causes.and(self.causes);
        match kind {
            Kind::Start => self.hit_some::<true>(kind, causes, span, report),
            Kind::End => self.hit_some::<true>(kind, causes, span, report_unless_reported),
            Kind::Several => self.hit_some::<true>(kind, causes, span, report_several),
        }
    }

    /// Calls `hit` for the regions that overlap `span`, if there are no more than [`MOST`].
    /// Otherwise leaves the rest, or all of them, to [`Self::apply`].
    ///
    /// V2 has only regions that ignore nothing.
    #[inline]
    fn hit_some<const FEATURES: bool>(
        &mut self,
        kind: Kind,
        causes: Causes,
        span: Span,
        hit: impl Hit,
    ) -> bool {
        let change = Change { kind, causes, span };
        if !self.log.is_empty() {
            return self.defer(change);
        }
        let mut any = false;
        let report = self.report_of(&change);
        let Span { start, last } = span;
        let visit = |mut entry: Entry<'_, u64, Pending>| {
            any |= hit_part(&mut entry, report, &hit);
        };
        let is_done = if FEATURES {
            self.map.walk_in(causes.heeding(), start, last, MOST, visit)
        } else {
            self.map.walk(IGNORING_NOTHING, start, last, MOST, visit)
        };
        if !is_done {
            // The rest may turn out to be reported already. The counter then moves unnecessarily.
            any = true;
            self.defer_rest(change);
        }
        if any {
            self.counter += 1;
        }
        any
    }

    /// Leaves the regions that the walk has not visited to [`Self::apply`].
    #[cold]
    fn defer_rest(&mut self, change: Change) {
        // INVARIANT: The log was empty, so this is its oldest entry.
        self.is_walking = true;
        self.is_fresh = true;
        self.log.push(change);
    }

    /// Leaves all regions to [`Self::apply`].
    #[cold]
    fn defer(&mut self, change: Change) -> bool {
        let Span { start, last } = change.span;
        let any = if self.has_features {
            let heeding = change.causes.heeding();
            self.map.has_overlap_in(heeding, start, last)
        } else {
            self.map.has_overlap(IGNORING_NOTHING, start, last)
        };
        if any {
            if !self.repeats_oldest(change) {
                self.log.push(change);
            }
            self.counter += 1;
        }
        any
    }

    /// Returns whether it was sufficient to record that the oldest change happened once more.
    ///
    /// So a page that changes repeatedly is applied once. The regions that the first change has
    /// visited are all still queued, and are the first ones of the walk.
    fn repeats_oldest(&mut self, change: Change) -> bool {
        let Some(oldest) = self.log.oldest() else {
            return false;
        };
        if oldest.span != change.span || !self.is_fresh || self.log.len() > 1 {
            return false;
        }
        // Other regions heed another cause, and all of them must report it.
        if oldest.causes != change.causes {
            return false;
        }
        // All visited regions are still queued, so the end of a change has nothing more to do, and
        // neither has its start if they need not report the whole region.
        if change.kind == Kind::End || self.has_hulls {
            return true;
        }
        // An end reports a part of each region. A second change turns that into the whole region.
        if oldest.kind == Kind::End {
            return false;
        }
        if oldest.kind == Kind::Start {
            self.log.repeat_oldest();
            let report = self.report_of(&change);
            let Span { start, last } = change.span;
            let heeding = change.causes.heeding();
            let is_done = self.map.walk_in(heeding, start, last, MOST, |mut entry| {
                hit_part(&mut entry, report, &report_several);
            });
            if is_done {
                // INVARIANT: The others were unregistered in the meantime, so nothing is left.
                self.is_walking = false;
                self.log.pop();
            }
        }
        true
    }

    /// Returns the record that a read returns first; it stays queued.
    ///
    /// Returns nothing while there are changes to apply first.
    // Two callers would share one function, and copy the record from it.
    #[inline(always)]
    pub(super) fn front(&self) -> Option<Event> {
        if !self.log.is_empty() {
            return None;
        }
        match self.map.front() {
            Some(queued) if self.has_features => Some(record_with_causes(queued)),
            Some(queued) => Some(record(queued)),
            None => self.is_readable().then(|| event::last(self.counter)),
        }
    }

    /// Removes the record that [`Self::front`] returns.
    #[inline]
    pub(super) fn pop(&mut self, gate: &Gate) {
        self.is_fresh = false;
        if self.map.pop() {
            gate.note_rearmed();
        } else {
            self.reported = self.counter;
        }
    }

    /// Passes queued records to `deliver`, at most `room.len()`, and then LAST if nothing is queued
    /// or deferred any more. It returns how many it has delivered; the others stay queued.
    #[inline]
    pub(super) fn read(
        &mut self,
        gate: &Gate,
        room: &mut [MaybeUninit<Event>],
        mut deliver: impl FnMut(&[Event]) -> usize,
    ) -> Batch {
        let most = room.len();
        self.is_fresh = false;
        let (events, dequeued) = if self.has_features {
            self.map.dequeue(room, |_| None, record_with_causes)
        } else {
            self.map.dequeue(room, usual_record, rare_record)
        };
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
        if events.len() == most || !self.is_readable() || !self.log.is_empty() {
            return Batch::All;
        }
        if deliver(&[event::last(self.counter)]) == 0 {
            return Batch::Faulted;
        }
        self.reported = self.counter;
        Batch::Last
    }
}

/// The record about a region with a queued event.
#[inline]
fn record(queued: Queued<u64, Pending>) -> Event {
    record_with_flags(&queued, HINT)
}

/// The same, with causes.
#[cold]
#[inline(never)]
fn record_with_causes(queued: Queued<u64, Pending>) -> Event {
    let causes = queued.value.causes;
    record_with_flags(&queued, HINT | causes.event_flags())
}

/// The same with these flags, except for [`HINT`] if it is about the whole region.
#[inline]
fn record_with_flags(queued: &Queued<u64, Pending>, flags: u32) -> Event {
    let region = Span {
        start: queued.start,
        last: queued.last,
    };
    let hint = queued.value.hint;
    match hint.part_of(&region) {
        Some(part) => event::invalidated(queued.key, &part, flags),
        None => event::invalidated(queued.key, &region, flags & !HINT),
    }
}

/// The same without causes, if the unit of the hint is bytes, as usual.
#[inline]
fn usual_record(queued: &Queued<u64, Pending>) -> Option<Event> {
    let hint = queued.value.hint;
    let part = hint.bytes_from(queued.start)?;
    Some(event::invalidated(queued.key, &part, HINT))
}

/// The same for other hints.
#[cold]
#[inline(never)]
fn rare_record(queued: Queued<u64, Pending>) -> Event {
    record(queued)
}

/// The result of delivering records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Batch {
    /// All were delivered, including LAST.
    Last,
    /// All were delivered.
    All,
    /// Not all were delivered.
    Faulted,
}

/// How a change is reported.
#[derive(Clone, Copy)]
struct Report {
    span: Span,
    causes: Causes,
    /// Whether the file has hulls.
    has_hulls: bool,
}

/// A function that reports a change to a region, given the bounds of the region and of the part
/// that is hit. Returns whether there was anything new to report.
trait Hit: Fn(&mut Entry<'_, u64, Pending>, &Span, &Span, Report) -> bool {}

impl<F: Fn(&mut Entry<'_, u64, Pending>, &Span, &Span, Report) -> bool> Hit for F {}

/// Calls `hit` for a region that overlaps the range of the change.
#[inline(always)]
fn hit_part(entry: &mut Entry<'_, u64, Pending>, report: Report, hit: &impl Hit) -> bool {
    let region = Span {
        start: entry.start(),
        last: entry.last(),
    };
    let part = Span {
        start: report.span.start.max(region.start),
        last: report.span.last.min(region.last),
    };
    hit(entry, &region, &part, report)
}

/// Reports a change to `part` of a region, as in V2.
#[inline]
fn hit(entry: &mut Entry<'_, u64, Pending>, region: &Span, part: &Span, _: Report) -> bool {
    // One event cannot hold two ranges, so a second one makes it report the whole region.
    entry.value().hint = if entry.enqueue() {
        Hint::new(region, part)
    } else {
        Hint::WHOLE
    };
    true
}

/// The same, unless a queued event covers it.
#[inline]
fn hit_unless_reported(
    entry: &mut Entry<'_, u64, Pending>,
    region: &Span,
    part: &Span,
    report: Report,
) -> bool {
    let hint = entry.value().hint;
    if entry.is_queued() && hint.covers(region, part) {
        return false;
    }
    hit(entry, region, part, report)
}

/// Reports several changes to a region, as in V2, wherever in it they were.
fn hit_whole(entry: &mut Entry<'_, u64, Pending>, _: &Span, _: &Span, _: Report) -> bool {
    entry.enqueue();
    entry.value().hint = Hint::WHOLE;
    true
}

/// Reports a change to `part` of a region, according to the features of its file.
fn report(entry: &mut Entry<'_, u64, Pending>, region: &Span, part: &Span, report: Report) -> bool {
    let is_new = entry.enqueue();
    let Pending { hint, causes } = *entry.value();
    *entry.value() = if is_new {
        Pending {
            hint: Hint::new(region, part),
            causes: report.causes,
        }
    } else {
        Pending {
            hint: if report.has_hulls {
                hint.widened(region, part)
            } else {
                Hint::WHOLE
            },
            causes: causes.or(report.causes),
        }
    };
    true
}

/// The same, unless a queued event covers it and has its cause.
fn report_unless_reported(
    entry: &mut Entry<'_, u64, Pending>,
    region: &Span,
    part: &Span,
    change: Report,
) -> bool {
    let Pending { hint, causes } = *entry.value();
    let has_causes = causes.and(change.causes) == change.causes;
    if entry.is_queued() && hint.covers(region, part) && has_causes {
        return false;
    }
    report(entry, region, part, change)
}

/// Reports several changes to a region, wherever in `part` they were.
fn report_several(
    entry: &mut Entry<'_, u64, Pending>,
    region: &Span,
    part: &Span,
    mut change: Report,
) -> bool {
    change.causes = change.causes.heeded_by(entry.class());
    report(entry, region, part, change);
    if !change.has_hulls {
        entry.value().hint = Hint::WHOLE;
    }
    true
}

#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(ummunotify_regions)]
mod tests {
    use super::*;

    use crate::{
        abstractions::{
            kunit::{
                agree,
                expect_eq, //
            },
            mmu_notifier, //
        },
        driver::cause::class_ignoring,
        uapi::{
            UMMUNOTIFY_CAUSES_SAME_PAGES as SAME_PAGES,
            UMMUNOTIFY_CAUSE_CLEAR as CLEAR,
            UMMUNOTIFY_CAUSE_PROTECT_AREA as PROTECT,
            UMMUNOTIFY_CAUSE_PROTECT_PAGES as FORK,
            UMMUNOTIFY_CAUSE_UNMAP as UNMAP, //
        }, //
    };
    use kernel::page::PAGE_SIZE as P;

    /// An operation on the regions of a file, and its expected result.
    ///
    /// Ranges are the first and the last address.
    #[derive(Clone, Copy)]
    enum Step {
        /// The file is granted causes, and hulls.
        Grant(bool, bool),
        /// A region with this cookie is registered; whether that succeeds.
        Register(u64, usize, usize, bool),
        /// A region that ignores these causes is registered.
        Ignoring(u32, u64, usize, usize),
        /// A region is unregistered; whether it exists.
        Unregister(u64, bool),
        /// A change starts; the counter afterwards.
        Start(usize, usize, u64),
        /// A change ends; the counter afterwards.
        End(usize, usize, u64),
        /// A change with this cause starts; the counter afterwards.
        StartBy(u32, usize, usize, u64),
        /// A change with this cause ends; the counter afterwards.
        EndBy(u32, usize, usize, u64),
        /// Deferred changes are applied to some regions; how many changes are left.
        Apply(usize),
        /// This many regions at `start ..= last` are registered, with consecutive cookies from the
        /// first number on.
        RegisterMany(u64, u64, usize, usize),
        /// The same, for regions that ignore these causes.
        IgnoringMany(u32, u64, u64, usize, usize),
        /// This many regions are unregistered.
        UnregisterMany(u64, u64),
        /// This many regions are read, with consecutive cookies, and with this hint or without one.
        ReadMany(u64, u64, usize, usize, bool),
        /// A read with room for this many records, and its result.
        Read(usize, &'static [Record]),
        /// The result of [`Read`](Self::Read) if only this many records can be copied.
        Fault(usize, &'static [Record], usize),
    }
    use Step::*;

    /// An expected record. Ranges are the first address and the end.
    #[derive(Clone, Copy)]
    enum Record {
        /// INVAL with a hint.
        Part(u64, usize, usize),
        /// INVAL without one.
        Whole(u64, usize, usize),
        /// INVAL with these causes, with a hint.
        PartBy(u32, u64, usize, usize),
        /// INVAL with these causes, without one.
        WholeBy(u32, u64, usize, usize),
        /// LAST.
        Last(u64),
    }
    use Record::*;

    fn inval(causes: u32, cookie: u64, start: usize, end: usize, hint: bool) -> Event {
        let last = end - 1;
        let flags = causes << 16 | if hint { HINT } else { 0 };
        event::invalidated(cookie, &Span { start, last }, flags)
    }

    /// A record that can be compared and printed.
    fn words(event: Event) -> [u64; 4] {
        zerocopy::transmute!(event)
    }

    impl Record {
        fn event(self) -> Event {
            match self {
                Part(cookie, start, end) => inval(0, cookie, start, end, true),
                Whole(cookie, start, end) => inval(0, cookie, start, end, false),
                PartBy(causes, cookie, start, end) => inval(causes, cookie, start, end, true),
                WholeBy(causes, cookie, start, end) => inval(causes, cookie, start, end, false),
                Last(counter) => event::last(counter),
            }
        }
    }

    /// The most records that a step reads.
    const ROOM: usize = 8;

    /// The regions of a file.
    struct Watched {
        // The order in which they are dropped.
        regions: Regions,
        gate: Gate,
        cache: Arc<RegionCache>,
    }

    impl Watched {
        fn new() -> Result<Self> {
            let cache = Arc::new(RegionCache::new(c"ummunotify_test")?, GFP_KERNEL)?;
            Ok(Self {
                regions: Regions::new(cache.clone()),
                gate: Gate::new(),
                cache,
            })
        }

        /// Reads with room for `room` records, of which `count` are delivered.
        fn read(&mut self, room: usize, expected: &[Record], count: usize) -> bool {
            let mut memory = [const { MaybeUninit::uninit() }; ROOM];
            let mut records = expected.iter();
            let (mut right, mut left) = (true, count);
            let batch = self.regions.read(&self.gate, &mut memory[..room], |found| {
                right &= found.iter().all(|found| {
                    let expected = records.next().map(|record| words(record.event()));
                    agree("record", Some(words(*found)), expected)
                });
                let delivered = left.min(found.len());
                left -= delivered;
                delivered
            });
            let end = match expected[..count].last() {
                _ if count < expected.len() => Batch::Faulted,
                Some(Last(_)) => Batch::Last,
                _ => Batch::All,
            };
            right
                && agree("records to deliver", left, 0)
                && agree("missing records", records.count(), 0)
                && agree("the end", batch, end)
        }

        /// Registers a region that ignores these causes; returns whether that succeeds.
        fn register(
            &mut self,
            ignored: u32,
            cookie: u64,
            start: usize,
            last: usize,
        ) -> Result<bool> {
            let new = NewRegion::new(&self.cache)?;
            let class = class_ignoring(ignored).ok_or(EINVAL)?;
            let result = self
                .regions
                .register(&self.gate, new, class, start, last, cookie);
            Ok(result.is_ok())
        }

        /// A change starts; returns whether the counter is right afterwards.
        fn start(&mut self, cause: u32, start: usize, last: usize, counter: u64) -> bool {
            let before = self.regions.counter();
            let event = event_of(cause);
            let hit = self.gate.start(start, last.saturating_add(1), || event)
                && self.regions.hit(start, last, || Causes::of(event));
            agree("the counter", self.regions.counter(), counter)
                && agree("hit", hit, counter != before)
        }

        /// A change ends; returns whether the counter is right afterwards.
        fn end(&mut self, cause: u32, start: usize, last: usize, counter: u64) -> bool {
            let before = self.regions.counter();
            let event = event_of(cause);
            let mut hit = false;
            if self.gate.finish(|| event) {
                hit = self.regions.hit_again(start, last, || Causes::of(event));
                self.gate.forget_rearmed();
            }
            agree("the counter", self.regions.counter(), counter)
                && agree("hit", hit, counter != before)
        }

        /// Does a step like `driver::file`; returns whether the result is as expected.
        fn step(&mut self, step: Step) -> Result<bool> {
            Ok(match step {
                Grant(causes, hulls) => {
                    self.regions.set_features(causes, hulls);
                    true
                }
                Register(cookie, start, last, works) => {
                    agree("registered", self.register(0, cookie, start, last)?, works)
                }
                Ignoring(causes, cookie, start, last) => {
                    self.register(causes, cookie, start, last)?
                }
                Unregister(cookie, works) => {
                    let cache = &*self.cache;
                    let old = self.regions.unregister(&self.gate, cache, cookie);
                    agree("unregistered", old.is_some(), works)
                }
                Apply(left) => {
                    self.regions.apply();
                    agree("deferred changes", self.regions.deferred(), left)
                }
                RegisterMany(first, count, start, last) => {
                    let mut works = true;
                    for cookie in first..first + count {
                        works &= self.step(Register(cookie, start, last, true))?;
                    }
                    works
                }
                IgnoringMany(causes, first, count, start, last) => {
                    let mut works = true;
                    for cookie in first..first + count {
                        works &= self.register(causes, cookie, start, last)?;
                    }
                    works
                }
                UnregisterMany(first, count) => {
                    let mut works = true;
                    for cookie in first..first + count {
                        works &= self.step(Unregister(cookie, true))?;
                    }
                    works
                }
                ReadMany(first, count, start, end, hint) => (first..first + count).all(|cookie| {
                    let mut memory = [const { MaybeUninit::uninit() }; 1];
                    let mut right = false;
                    self.regions.read(&self.gate, &mut memory, |found| {
                        let expected = inval(0, cookie, start, end, hint);
                        right = agree("record", words(found[0]), words(expected));
                        found.len()
                    });
                    right
                }),
                Start(start, last, counter) => self.start(CLEAR, start, last, counter),
                End(start, last, counter) => self.end(CLEAR, start, last, counter),
                StartBy(cause, start, last, counter) => self.start(cause, start, last, counter),
                EndBy(cause, start, last, counter) => self.end(cause, start, last, counter),
                Read(room, expected) => self.read(room, expected, expected.len()),
                Fault(room, expected, count) => self.read(room, expected, count),
            })
        }
    }

    /// Returns the event that has this cause.
    fn event_of(cause: u32) -> mmu_notifier::Event {
        match cause {
            UNMAP => mmu_notifier::Event::UNMAP,
            PROTECT => mmu_notifier::Event::PROTECTION_AREA,
            FORK => mmu_notifier::Event::PROTECTION_PAGE,
            _ => mmu_notifier::Event::CLEAR,
        }
    }

    /// Does all steps on an empty set of regions; returns whether all results are as expected.
    fn runs(steps: &[Step]) -> Result<bool> {
        let mut watched = Watched::new()?;
        for (number, step) in steps.iter().enumerate() {
            if !watched.step(*step)? {
                pr_err!("the result of step {number}, counted from 0, is wrong\n");
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
            // In parts, with more records than there is room for.
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
    fn read_in_a_change_is_reported_again() -> Result {
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
    fn registered_in_a_change_is_reported() -> Result {
        assert!(runs(&[
            // The first region.
            Start(0, 9 * P - 1, 0),
            Register(1, P, 2 * P - 1, true),
            End(0, 9 * P - 1, 1),
            Read(8, &[Part(1, P, 2 * P), Last(1)]),
            // One outside all regions, and one that is not in the range.
            Start(20 * P, 30 * P - 1, 1),
            Register(2, 25 * P, 26 * P - 1, true),
            Register(3, 40 * P, 41 * P - 1, true),
            End(20 * P, 30 * P - 1, 2),
            Read(8, &[Part(2, 25 * P, 26 * P), Last(2)]),
        ])?);
        Ok(())
    }

    #[test]
    fn registered_anew_in_a_change_is_reported() -> Result {
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
    fn unregistered_in_a_change_is_not_reported() -> Result {
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
            // Each must be reported again by the change that it is in.
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
            // This one has nothing to report, and must not clear the bit for the other one.
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
            // Read, then hit elsewhere: the queued event does not cover the first change.
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

    const MANY: u64 = MOST as u64;

    #[test]
    fn up_to_most_are_hit_at_once() -> Result {
        assert!(runs(&[
            RegisterMany(1, MANY, 0, P - 1),
            Start(0, P - 1, 1),
            End(0, P - 1, 1),
            Apply(0),
            ReadMany(1, MANY, 0, P, true),
            Read(8, &[Last(1)]),
            Start(0, P - 1, 2),
            Start(0, P - 1, 3),
            ReadMany(1, MANY, 0, P, false),
            End(0, P - 1, 4),
            End(0, P - 1, 4),
            ReadMany(1, MANY, 0, P, true),
            Read(8, &[Last(4)]),
        ])?);
        Ok(())
    }

    #[test]
    fn more_are_left_to_the_reader() -> Result {
        assert!(runs(&[
            RegisterMany(1, 2 * MANY + 1, 0, P - 1),
            Register(9999, 5 * P, 6 * P - 1, true),
            Start(0, P - 1, 1),
            End(0, P - 1, 1),
            // In the order of the changes.
            Start(5 * P, 6 * P - 1, 2),
            End(5 * P, 6 * P - 1, 2),
            // Hits nothing.
            Start(8 * P, 9 * P - 1, 2),
            End(8 * P, 9 * P - 1, 2),
            ReadMany(1, MANY, 0, P, true),
            // No LAST while a change is deferred.
            Read(8, &[]),
            Apply(2),
            Apply(2),
            ReadMany(MANY + 1, MANY, 0, P, true),
            Read(8, &[]),
            Apply(1),
            Read(8, &[Part(2 * MANY + 1, 0, P)]),
            Apply(0),
            Read(8, &[Part(9999, 5 * P, 6 * P), Last(2)]),
            Read(8, &[]),
        ])?);
        Ok(())
    }

    #[test]
    fn what_is_unregistered_is_not_applied() -> Result {
        assert!(runs(&[
            RegisterMany(1, MANY + 3, 0, P - 1),
            Start(0, P - 1, 1),
            End(0, P - 1, 1),
            // The next one, and the one after that.
            Unregister(MANY + 1, true),
            Unregister(MANY + 2, true),
            ReadMany(1, MANY, 0, P, true),
            Apply(0),
            Read(8, &[Part(MANY + 3, 0, P), Last(1)]),
            Start(0, P - 1, 2),
            End(0, P - 1, 2),
            Unregister(MANY + 3, true),
            // Nothing is left of it.
            ReadMany(1, MANY, 0, P, true),
            Apply(0),
            Read(8, &[Last(2)]),
        ])?);
        Ok(())
    }

    #[test]
    fn second_hits_are_deferred_too() -> Result {
        assert!(runs(&[
            RegisterMany(1, MANY + 1, 0, 4 * P - 1),
            Start(0, P - 1, 1),
            End(0, P - 1, 1),
            Start(2 * P, 3 * P - 1, 2),
            End(2 * P, 3 * P - 1, 2),
            Apply(1),
            Apply(1),
            Apply(1),
            Apply(0),
            ReadMany(1, MANY + 1, 0, 4 * P, false),
            Read(8, &[Last(2)]),
        ])?);
        Ok(())
    }

    #[test]
    fn the_same_change_is_applied_once() -> Result {
        assert!(runs(&[
            RegisterMany(1, 2 * MANY, 0, P - 1),
            Start(0, P - 1, 1),
            Start(0, P - 1, 2),
            Start(0, P - 1, 3),
            Apply(1),
            Apply(0),
            ReadMany(1, 2 * MANY, 0, P, false),
            Read(8, &[Last(3)]),
            // Not after something was read: then it is reported again.
            Start(0, P - 1, 4),
            Read(1, &[Part(1, 0, P)]),
            Start(0, P - 1, 5),
            Apply(2),
            Apply(1),
            Apply(1),
            Apply(1),
            Apply(1),
            Apply(0),
            ReadMany(2, 2 * MANY - 1, 0, P, false),
            Read(8, &[Part(1, 0, P), Last(5)]),
        ])?);
        Ok(())
    }

    #[test]
    fn registered_in_the_middle_of_the_same_change() -> Result {
        assert!(runs(&[
            RegisterMany(1, 2 * MANY, 0, P - 1),
            Start(0, P - 1, 1),
            Start(0, P - 1, 2),
            // By a REGISTER that began before these changes.
            Register(0, 0, P - 1, true),
            Start(0, P - 1, 3),
            End(0, P - 1, 4),
            Apply(2),
            Apply(2),
            // All of the first two changes, and then the third one.
            Apply(1),
            Apply(1),
            Apply(1),
            Apply(1),
            Apply(1),
            Apply(0),
            ReadMany(1, 2 * MANY, 0, P, false),
            Read(8, &[Whole(0, 0, P), Last(4)]),
        ])?);
        Ok(())
    }

    #[test]
    fn rearmed_in_a_change_that_is_deferred() -> Result {
        assert!(runs(&[
            RegisterMany(1, MANY + 1, 0, P - 1),
            Start(0, P - 1, 1),
            Read(1, &[Part(1, 0, P)]),
            // The log is not empty, so this is deferred, and the counter moves.
            End(0, P - 1, 2),
            Apply(1),
            Apply(1),
            Apply(1),
            Apply(0),
            // Region 1 is reported again, and the others once.
            ReadMany(2, MANY, 0, P, true),
            Read(8, &[Part(1, 0, P), Last(2)]),
        ])?);
        Ok(())
    }

    #[test]
    fn an_end_that_hits_too_many_is_deferred() -> Result {
        assert!(runs(&[
            Start(0, P - 1, 0),
            RegisterMany(1, MANY + 1, 0, P - 1),
            End(0, P - 1, 1),
            ReadMany(1, MANY, 0, P, true),
            Apply(0),
            Read(8, &[Part(MANY + 1, 0, P), Last(1)]),
        ])?);
        Ok(())
    }

    #[test]
    fn the_same_range_changes_after_an_end_that_is_deferred() -> Result {
        assert!(runs(&[
            Start(0, P - 1, 0),
            Start(0, P - 1, 0),
            RegisterMany(1, MANY + 1, 0, 4 * P - 1),
            End(0, P - 1, 1),
            // Another change of the same range ends, which makes no difference.
            End(0, P - 1, 2),
            Start(0, P - 1, 3),
            Apply(1),
            Apply(1),
            Apply(1),
            Apply(0),
            ReadMany(1, MANY + 1, 0, 4 * P, false),
            Read(8, &[Last(3)]),
        ])?);
        Ok(())
    }

    #[test]
    fn causes_are_reported_where_they_were_granted() -> Result {
        assert!(runs(&[
            Grant(true, false),
            Register(1, 0, 9 * P - 1, true),
            StartBy(FORK, 0, P - 1, 1),
            EndBy(FORK, 0, P - 1, 1),
            Read(8, &[PartBy(FORK, 1, 0, P), Last(1)]),
            // Causes of an event that was read are not reported again.
            StartBy(UNMAP, 0, P - 1, 2),
            StartBy(PROTECT, 0, P - 1, 3),
            EndBy(UNMAP, 0, P - 1, 3),
            EndBy(PROTECT, 0, P - 1, 3),
            Read(8, &[WholeBy(UNMAP | PROTECT, 1, 0, 9 * P), Last(3)]),
        ])?);
        assert!(runs(&[
            Register(1, 0, 9 * P - 1, true),
            StartBy(FORK, 0, P - 1, 1),
            EndBy(FORK, 0, P - 1, 1),
            Read(8, &[Part(1, 0, P), Last(1)]),
        ])?);
        Ok(())
    }

    #[test]
    fn ignored_causes_leave_a_region_alone() -> Result {
        assert!(runs(&[
            Grant(true, false),
            Ignoring(SAME_PAGES, 1, 0, 9 * P - 1),
            Ignoring(FORK, 2, 0, 9 * P - 1),
            Register(3, 0, 9 * P - 1, true),
            StartBy(FORK, 0, P - 1, 1),
            EndBy(FORK, 0, P - 1, 1),
            Read(8, &[PartBy(FORK, 3, 0, P), Last(1)]),
            // The queued event of region 2 has the same hint and cause.
            StartBy(PROTECT, 0, P - 1, 2),
            StartBy(FORK, P, 2 * P - 1, 3),
            EndBy(FORK, P, 2 * P - 1, 3),
            EndBy(PROTECT, 0, P - 1, 3),
            Read(
                8,
                &[
                    WholeBy(PROTECT | FORK, 3, 0, 9 * P),
                    PartBy(PROTECT, 2, 0, P),
                    Last(3),
                ],
            ),
            // No region heeds it.
            Unregister(3, true),
            StartBy(FORK, 0, P - 1, 3),
            EndBy(FORK, 0, P - 1, 3),
            Read(8, &[]),
            StartBy(CLEAR, 0, P - 1, 4),
            EndBy(CLEAR, 0, P - 1, 4),
            Read(
                8,
                &[PartBy(CLEAR, 2, 0, P), PartBy(CLEAR, 1, 0, P), Last(4)]
            ),
        ])?);
        Ok(())
    }

    #[test]
    fn registered_in_a_change_that_only_it_heeds() -> Result {
        assert!(runs(&[
            Grant(true, true),
            Ignoring(SAME_PAGES, 1, 0, P - 1),
            StartBy(FORK, 0, P - 1, 0),
            Register(2, 0, P - 1, true),
            // A region that ignores it is not reported.
            Ignoring(FORK, 3, 0, P - 1),
            EndBy(FORK, 0, P - 1, 1),
            Read(8, &[PartBy(FORK, 2, 0, P), Last(1)]),
            // The end of a change that no region heeds leaves the rearmed region to the other end.
            Unregister(2, true),
            StartBy(CLEAR, 0, P - 1, 2),
            StartBy(FORK, 0, P - 1, 2),
            Read(
                8,
                &[PartBy(CLEAR, 3, 0, P), PartBy(CLEAR, 1, 0, P), Last(2)]
            ),
            EndBy(FORK, 0, P - 1, 2),
            EndBy(CLEAR, 0, P - 1, 3),
            Read(
                8,
                &[PartBy(CLEAR, 3, 0, P), PartBy(CLEAR, 1, 0, P), Last(3)]
            ),
        ])?);
        Ok(())
    }

    #[test]
    fn an_end_adds_its_cause_to_an_event_that_lacks_it() -> Result {
        assert!(runs(&[
            Grant(true, true),
            Register(1, 0, 9 * P - 1, true),
            StartBy(CLEAR, P, 2 * P - 1, 1),
            Read(8, &[PartBy(CLEAR, 1, P, 2 * P), Last(1)]),
            // This encloses the first change, and leaves the pages as they are.
            StartBy(FORK, 0, 3 * P - 1, 2),
            EndBy(FORK, 0, 3 * P - 1, 2),
            EndBy(CLEAR, P, 2 * P - 1, 3),
            Read(8, &[PartBy(CLEAR | FORK, 1, 0, 3 * P), Last(3)]),
        ])?);
        Ok(())
    }

    #[test]
    fn hulls_enclose_all_hits() -> Result {
        assert!(runs(&[
            Grant(false, true),
            Register(1, P, 9 * P - 1, true),
            Start(5 * P, 6 * P - 1, 1),
            End(5 * P, 6 * P - 1, 1),
            Start(2 * P, 3 * P - 1, 2),
            End(2 * P, 3 * P - 1, 2),
            Start(3 * P, 4 * P - 1, 3),
            End(3 * P, 4 * P - 1, 3),
            Read(8, &[Part(1, 2 * P, 6 * P), Last(3)]),
            // A read starts a new hull, which stays inside the region.
            Start(0, 2 * P - 1, 4),
            Read(8, &[Part(1, P, 2 * P), Last(4)]),
            Start(8 * P, 20 * P - 1, 5),
            End(8 * P, 20 * P - 1, 5),
            End(0, 2 * P - 1, 6),
            Read(8, &[Part(1, P, 9 * P), Last(6)]),
        ])?);
        Ok(())
    }

    #[test]
    fn deferred_changes_have_causes_and_hulls() -> Result {
        assert!(runs(&[
            Grant(true, true),
            RegisterMany(1, MANY, 0, 9 * P - 1),
            Register(1000, 0, 9 * P - 1, true),
            Ignoring(FORK, 1001, 0, 9 * P - 1),
            StartBy(CLEAR, P, 2 * P - 1, 1),
            EndBy(CLEAR, P, 2 * P - 1, 1),
            // The same with another cause, repeated, and another one.
            StartBy(FORK, P, 2 * P - 1, 2),
            EndBy(FORK, P, 2 * P - 1, 2),
            StartBy(FORK, P, 2 * P - 1, 3),
            EndBy(FORK, P, 2 * P - 1, 3),
            StartBy(UNMAP, 4 * P, 5 * P - 1, 4),
            EndBy(UNMAP, 4 * P, 5 * P - 1, 4),
            Apply(2),
            Apply(2),
            Apply(2),
            Apply(1),
            Apply(1),
            Apply(1),
            Apply(0),
            UnregisterMany(1, MANY),
            Read(
                8,
                &[
                    PartBy(CLEAR | FORK | UNMAP, 1000, P, 5 * P),
                    PartBy(CLEAR | UNMAP, 1001, P, 5 * P),
                    Last(4),
                ],
            ),
        ])?);
        Ok(())
    }

    #[test]
    fn many_that_ignore_a_change_do_not_defer_it() -> Result {
        assert!(runs(&[
            Grant(true, false),
            IgnoringMany(FORK, 1, 3 * MANY, 0, P - 1),
            StartBy(FORK, 0, P - 1, 0),
            EndBy(FORK, 0, P - 1, 0),
            Register(1000, 0, P - 1, true),
            StartBy(FORK, 0, P - 1, 1),
            EndBy(FORK, 0, P - 1, 1),
            Apply(0),
            Read(8, &[PartBy(FORK, 1000, 0, P), Last(1)]),
        ])?);
        Ok(())
    }

    #[test]
    fn only_idle_regions_are_taken_out() -> Result {
        let mut watched = Watched::new()?;
        let few = FEW as u64;
        assert!(watched.step(RegisterMany(1, few + 5, P, 2 * P - 1))?);
        assert!(watched.step(Register(0, 5 * P, 6 * P - 1, true))?);
        assert!(watched.step(Start(5 * P, 6 * P - 1, 1))?);
        let cache = watched.cache.clone();
        // All of the first few except the queued one.
        let (_, next) = watched.regions.take_idle(&cache, 0);
        expect_eq!(watched.regions.len(), 7);
        let (_, next) = watched.regions.take_idle(&cache, next.ok_or(EINVAL)?);
        expect_eq!((watched.regions.len(), next), (1, None));
        assert!(watched.step(Read(8, &[Part(0, 5 * P, 6 * P), Last(1)]))?);
        drop(watched.regions.take());
        expect_eq!(watched.regions.len(), 0);
        Ok(())
    }
}
