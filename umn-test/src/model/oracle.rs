// SPDX-License-Identifier: GPL-2.0

//! What a file of the device must and may report, computed in the simplest way.
//!
//! For each region, the oracle counts how often it was certainly hit, and how often it may have
//! been, since its event was last read. From that follows what an event must look like:
//!
//! - certainly hit once, and no more than once: one event, whose hint is exactly the part that was
//!   hit;
//! - certainly hit more than once: one event, of the whole region;
//! - a page in it was lost: one event, whose hint, if it has one, covers that page;
//! - not hit, and could not have been: no event.
//!
//! If a file has more regions than a change visits at once, changes are deferred. A region that
//! several of them hit may then be reported several times instead of once: by no more events than
//! hits, which together cover all of them. If too many are deferred, two are merged into one range
//! that encloses both. Only then, and fdinfo shows it, may a region between the two be reported,
//! provided it was registered before them.
//!
//! With hulls, an event of several hits has a hint too, which encloses them. With causes, an event
//! carries those of what hit the region, and a region that ignores the cause of an operation is not
//! hit by it.

use std::{
    io,
    ops::Range, //
};

use ummunotify::{
    Causes,
    Features, //
};

use super::{
    calls::common,
    effect::{
        Effect,
        MANY, //
    },
    figures::{
        add,
        Figures, //
    },
    op::What, //
};
use crate::{
    expect::{
        self,
        that,
        Failure,
        Outcome, //
    },
    uapi::{
        Event,
        EVENT_CAUSES_SHIFT,
        EVENT_FLAG_HINT,
        EVENT_INVAL,
        EVENT_LAST, //
    },
};

/// A registered region.
struct Watch {
    cookie: u64,
    /// The addresses that are watched, at least one.
    region: Range<u64>,
    /// Whether the region extends beyond the memory that the model knows about.
    beyond: bool,
    /// The causes that the region ignores.
    ignored: Causes,
    /// What has happened to the region since its event was last read.
    pending: Pending,
}

/// What has happened to a region.
#[derive(Default)]
struct Pending {
    /// Certain hits, and how many more there may have been.
    sure: u64,
    maybe: u64,
    /// Whether a page was lost.
    lost: bool,
    /// Two hulls: of what was certainly hit or lost, and of what may have been hit.
    covered: Option<Range<u64>>,
    bounds: Option<Range<u64>>,
    /// The first step in which it may have been hit, and the first in which it certainly was.
    first: Option<u64>,
    since: Option<u64>,
    /// The operation that hit it first.
    what: Option<What>,
    /// Whether hits may be reported separately; the certain hits that no event has reported yet;
    /// the number of events; and the last step in which the region may have been hit.
    apart: bool,
    owed: Vec<Range<u64>>,
    reports: u64,
    latest: u64,
    /// The causes that an event may have, and those that it must have.
    causes: Causes,
    sure_causes: Causes,
}

impl Pending {
    fn must(&self) -> bool {
        if self.apart {
            return !self.owed.is_empty();
        }
        self.sure > 0 || self.lost
    }

    /// From now on, hits may be reported separately.
    fn be_apart(&mut self) {
        if !self.apart {
            self.apart = true;
            self.owed.extend(self.covered.clone());
        }
    }

    fn note(&mut self, part: &Range<u64>, sure: bool, step: u64, what: What) {
        extend(&mut self.bounds, part);
        match what.same_pages() {
            // A huge page may be split, too.
            Some(cause) => self.causes = self.causes | cause | Causes::CLEAR,
            None => self.causes = self.causes | Causes::CLEAR | Causes::UNMAP,
        }
        self.first.get_or_insert(step);
        self.what.get_or_insert(what);
        self.latest = step;
        if sure {
            if self.apart {
                self.owed.push(part.clone());
            }
            extend(&mut self.covered, part);
            self.since.get_or_insert(step);
        }
    }
}

fn extend(hull: &mut Option<Range<u64>>, part: &Range<u64>) {
    *hull = Some(match hull.take() {
        Some(hull) => hull.start.min(part.start)..hull.end.max(part.end),
        None => part.clone(),
    });
}

/// The buffer of a read.
#[derive(Clone, Copy)]
pub struct Asked {
    /// Size of the buffer in bytes.
    pub room: usize,
    /// How many bytes from its start are writable.
    pub writable: usize,
}

/// The oracle of one file.
pub struct Oracle {
    figures: &'static Figures,
    features: Features,
    watches: Vec<Watch>,
    counter: u64,
    /// Whether a region that extends beyond the known memory was just unregistered.
    was_disturbed: bool,
    /// The counter that the last LAST carried.
    reported: u64,
    step: u64,
    /// The latest of the earliest steps in which the events read so far may have been queued.
    order: u64,
    /// The changes that may be deferred, if any.
    deferred: Option<Deferred>,
    /// How often changes were merged.
    merged: u64,
}

/// Changes that may be deferred.
struct Deferred {
    /// The hull of all of them.
    hull: Range<u64>,
    /// The step of the first one.
    since: u64,
}

/// How many regions a change visits at once.
const AT_ONCE: usize = 128;

impl Oracle {
    /// The oracle of a file with these features, this counter and nothing to read.
    pub fn new(figures: &'static Figures, features: Features, counter: u64) -> Self {
        Self {
            figures,
            features,
            watches: vec![],
            counter,
            was_disturbed: false,
            reported: counter,
            step: 0,
            order: 0,
            deferred: None,
            merged: 0,
        }
    }

    /// The number of registered regions.
    pub fn len(&self) -> usize {
        self.watches.len()
    }

    /// The cookie and the addresses of a region, selected by any number.
    pub fn pick(&self, number: usize) -> Option<(u64, Range<u64>)> {
        let count = self.watches.len().max(1);
        let watch = self.watches.get(number % count)?;
        Some((watch.cookie, watch.region.clone()))
    }

    /// Adds a region that ignores these causes.
    pub fn register(
        &mut self,
        cookie: u64,
        Range { start, end }: Range<u64>,
        ignored: Causes,
        known: &Range<u64>,
    ) {
        // An empty region watches one byte, and a region at the end of the address space stops
        // there.
        let region = start..end.max(start.saturating_add(1));
        // REGISTER has applied all deferred changes to the other regions.
        self.deferred = None;
        self.watches.push(Watch {
            cookie,
            beyond: region.start < known.start || region.end > known.end,
            region,
            ignored,
            pending: Pending::default(),
        });
    }

    /// Removes a region.
    pub fn unregister(&mut self, cookie: u64) {
        self.was_disturbed |= self.is_disturbed();
        self.watches.retain(|watch| watch.cookie != cookie);
    }

    /// Whether the counter may move without an operation.
    fn is_disturbed(&self) -> bool {
        self.was_disturbed || self.watches.iter().any(|watch| watch.beyond)
    }

    /// Whether a read returns something.
    pub fn is_readable(&self) -> bool {
        self.counter != self.reported
    }

    /// The counter, as last seen.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// Whether the file has so many regions that changes may be deferred.
    pub fn is_crowded(&self) -> bool {
        self.watches.len() > AT_ONCE || self.deferred.is_some()
    }

    /// Records the effect of an operation, and how often changes have been merged; expects the
    /// counter to have moved accordingly.
    pub fn apply(&mut self, what: What, effect: &Effect, counter: u64, merged: u64) -> Outcome {
        self.step += 1;
        let step = self.step;
        if self.is_crowded() {
            for watch in &mut self.watches {
                watch.pending.be_apart();
            }
        }
        let (mut least, mut most) = (0u64, 0u64);
        for range in &effect.sure {
            let mut hit = false;
            for (watch, part) in hits(&mut self.watches, range) {
                if let Some(cause) = what.same_pages() {
                    if watch.ignored.contains(cause) {
                        continue;
                    }
                    watch.pending.sure_causes = watch.pending.sure_causes | cause;
                }
                watch.pending.note(&part, true, step, what);
                watch.pending.sure += 1;
                hit = true;
            }
            least += u64::from(hit);
        }
        most += least;
        for (range, times) in &effect.maybe {
            let mut hit = false;
            for (watch, part) in hits(&mut self.watches, range) {
                watch.pending.note(&part, false, step, what);
                watch.pending.maybe = watch.pending.maybe.saturating_add(*times);
                hit = true;
            }
            most = most.saturating_add(if hit { *times } else { 0 });
        }
        let mut others = 0;
        for page in &effect.lost {
            let covers = |range: &Range<u64>| range.start <= page.start && page.end <= range.end;
            let sure = effect.sure.iter().any(covers);
            let asked = sure || effect.maybe.iter().any(|(range, _)| covers(range));
            if !asked {
                add(&self.figures.unasked, 1);
            }
            let mut hit = false;
            for (watch, part) in hits(&mut self.watches, page) {
                watch.pending.note(&part, true, step, what);
                watch.pending.lost = true;
                if !asked {
                    watch.pending.maybe += MANY;
                }
                add(&self.figures.claims, 1);
                hit = true;
            }
            others += u64::from(hit && !sure);
            most = most.saturating_add(if hit && !asked { MANY } else { 0 });
        }
        least += if effect.one_by_one {
            others
        } else {
            others.min(1)
        };

        self.defer(effect, what, merged);

        let moved = counter.wrapping_sub(self.counter);
        let most = if self.is_disturbed() { u64::MAX } else { most };
        that(
            "how far the counter moved",
            (least..=most).contains(&moved),
            format_args!("{least} or more, {most} at most"),
            format_args!("{} from {} to {counter}", moved as i64, self.counter),
        )?;
        self.counter = counter;
        self.was_disturbed = false;
        self.figures.count_invalidations(what, moved);
        Ok(())
    }

    /// Records changes that may be deferred, and that some may have been merged.
    fn defer(&mut self, effect: &Effect, what: What, merged: u64) {
        if !self.is_crowded() {
            return;
        }
        let maybe = effect.maybe.iter().map(|(range, _)| range);
        let mut hull = self.deferred.as_ref().map(|deferred| deferred.hull.clone());
        for range in effect.sure.iter().chain(maybe).chain(&effect.lost) {
            extend(&mut hull, range);
        }
        let Some(hull) = hull else { return };
        let since = self
            .deferred
            .as_ref()
            .map_or(self.step, |deferred| deferred.since);
        if merged != self.merged {
            for (watch, part) in hits(&mut self.watches, &hull) {
                watch.pending.note(&part, false, self.step, what);
                // A merged entry has the causes of both changes.
                watch.pending.causes = watch.pending.causes | Causes::SAME_PAGES;
                watch.pending.causes = watch.pending.causes | Causes::CLEAR | Causes::UNMAP;
                watch.pending.first = watch.pending.first.min(Some(since));
                watch.pending.maybe = watch.pending.maybe.saturating_add(MANY);
            }
            add(&self.figures.merged, merged - self.merged);
            self.merged = merged;
        }
        self.deferred = Some(Deferred { hull, since });
    }

    /// Checks the result of a read.
    pub fn read(&mut self, asked: Asked, result: &io::Result<Vec<Event>>, counter: u64) -> Outcome {
        let Asked { room, writable } = asked;
        let most = writable / size_of::<Event>();
        let disturbed = self.is_disturbed();
        let error = match room {
            0 => return expect::same("read of nothing", as_count(result), Ok(0)),
            1..32 => Some(libc::EINVAL),
            _ if !self.is_readable() => Some(libc::EAGAIN),
            _ if most == 0 => Some(libc::EFAULT),
            _ => None,
        };
        let events = match (error, result) {
            (Some(error), Err(seen)) if seen.raw_os_error() == Some(error) => return Ok(()),
            (None, Ok(events)) => events,
            // Memory beyond the arena may change after the counter was loaded.
            (Some(libc::EAGAIN), Ok(events)) if disturbed && most > 0 => events,
            (Some(libc::EAGAIN), Err(seen))
                if disturbed && most == 0 && seen.raw_os_error() == Some(libc::EFAULT) =>
            {
                return Ok(());
            }
            (error, _) => {
                let expected = error.map_or("records".into(), expect::errno_name);
                let seen = as_count(result)
                    .map_or_else(expect::errno_name, |count| format!("{count} records"));
                return Err(Failure::new("read", expected, seen));
            }
        };
        that(
            "number of records",
            (1..=most).contains(&events.len()),
            format_args!("1 to {most}"),
            events.len(),
        )?;
        let (last, before) = events.split_last().expect("there is a record");
        for event in before {
            self.deliver(event)?;
        }
        if last.kind != EVENT_LAST {
            that(
                "the end of a read with room left",
                events.len() == most,
                "LAST",
                "none",
            )?;
            return self.deliver(last);
        }
        self.deliver_last(last, counter)
    }

    fn deliver_last(&mut self, last: &Event, counter: u64) -> Outcome {
        add(&self.figures.lasts, 1);
        let value = last.user_cookie_counter;
        expect::same("fields of LAST", *last, expect::last(value))?;
        let least = if self.is_disturbed() {
            self.counter
        } else {
            counter
        };
        that(
            "the counter in LAST",
            (least..=counter).contains(&value),
            format_args!("{least} to {counter}"),
            value,
        )?;
        self.reported = value;
        self.counter = value;
        self.deferred = None;
        for watch in &mut self.watches {
            if watch.pending.must() {
                return Err(Failure::new(
                    "what was read up to LAST",
                    format_args!(
                        "an event of region {:#x}, {:#x?}",
                        watch.cookie, watch.region
                    ),
                    "none: MISSED",
                ));
            }
            watch.pending = Pending::default();
        }
        Ok(())
    }

    /// Expects an event to be due; what it does not cover stays pending if hits may be reported
    /// separately.
    fn deliver(&mut self, event: &Event) -> Outcome {
        expect::same("type of a record before the last", event.kind, EVENT_INVAL)?;
        let cookie = event.user_cookie_counter;
        let Some(watch) = self.watches.iter_mut().find(|watch| watch.cookie == cookie) else {
            return Err(Failure::new(
                "cookie of an event",
                "one that is registered",
                format_args!("{cookie:#x}"),
            ));
        };
        let mut pending = std::mem::take(&mut watch.pending);
        let hint = event.hint_start..event.hint_end;
        let region = &watch.region;
        let inside = region.start <= hint.start && hint.start < hint.end && hint.end <= region.end;
        that(
            "hint of an event",
            inside,
            format_args!("inside {region:#x?}"),
            format_args!("{hint:#x?}"),
        )?;
        let hits = pending.sure.saturating_add(pending.maybe);
        pending.reports += 1;
        that(
            "events of a region",
            watch.beyond || pending.reports <= hits.max(1),
            format_args!("{hits} at most"),
            pending.reports,
        )?;
        let causes = Causes::from_bits(event.flags >> EVENT_CAUSES_SHIFT);
        let apart = pending.apart;
        that(
            "causes of an event",
            if !self.features.contains(Features::CAUSE) {
                causes == Causes::NONE
            } else {
                !causes.is_empty()
                    && !causes.intersects(watch.ignored)
                    && (watch.beyond || pending.causes.contains(causes))
                    && (apart || causes.contains(pending.sure_causes))
            },
            format_args!(
                "some of {}, and {}, but none of {}",
                pending.causes, pending.sure_causes, watch.ignored
            ),
            causes,
        )?;
        let has_hulls = self.features.contains(Features::HULL);
        match event.flags & ((1 << EVENT_CAUSES_SHIFT) - 1) {
            EVENT_FLAG_HINT => {
                let covers = |part: &Range<u64>| hint.start <= part.start && part.end <= hint.end;
                that(
                    "hint, hit more than once",
                    has_hulls || pending.apart || pending.sure < 2,
                    "none",
                    format_args!("{hint:#x?}"),
                )?;
                that(
                    "hint, of what was hit",
                    pending.apart || pending.covered.as_ref().is_none_or(covers),
                    format_args!("{:#x?} or more", pending.covered),
                    format_args!("{hint:#x?}"),
                )?;
                let within = |hull: &Range<u64>| common(hull, &hint).as_ref() == Some(&hint);
                that(
                    "hint, of what can have been hit",
                    watch.beyond || pending.bounds.as_ref().is_some_and(within),
                    format_args!("{:#x?} or less: UNEXPLAINED", pending.bounds),
                    format_args!("{hint:#x?}"),
                )?;
                let is_known = pending.sure == 1 || has_hulls && pending.sure > 1 && !apart;
                if is_known && pending.maybe == 0 && !watch.beyond {
                    expect::same("the hint", Some(hint.clone()), pending.covered.clone())?;
                }
            }
            0 => {
                expect::same("range of an event without hint", &hint, region)?;
                that(
                    "event without hint",
                    watch.beyond || hits > 1 && !has_hulls,
                    format_args!("a hint, of {:#x?}", pending.bounds),
                    "none",
                )?;
            }
            other => return Err(Failure::new("flags of an event", "0 or HINT", other)),
        }
        // Events must be in the order in which they were queued, as far as that order is certain.
        let since = match pending.apart {
            true => pending.latest,
            false => pending.since.unwrap_or(u64::MAX),
        };
        that(
            "order of events",
            watch.beyond || self.order <= since,
            format_args!("region {cookie:#x}, hit in step {since} at the latest, first"),
            format_args!("one hit no earlier than in step {}", self.order),
        )?;
        if !watch.beyond {
            self.order = self.order.max(pending.first.unwrap_or(0));
        }
        match pending.what {
            _ if pending.lost => add(&self.figures.changed, 1),
            Some(what) if pending.first.is_some() => self.figures.count_reached(what),
            _ => add(&self.figures.beyond, 1),
        }
        if pending.apart {
            let is_owed = |part: &Range<u64>| part.start < hint.start || hint.end < part.end;
            pending.owed.retain(is_owed);
            watch.pending = pending;
        }
        Ok(())
    }

    /// Checks the result of `poll`.
    pub fn poll(&self, seen: i16) -> Outcome {
        let readable = libc::POLLIN | libc::POLLRDNORM;
        let expected = if self.is_readable() { readable } else { 0 };
        let noise = self.is_disturbed() && seen == readable;
        that("poll", seen == expected || noise, expected, seen)
    }
}

/// The regions that an invalidation of a range hits, each with the part that is hit.
fn hits<'a>(
    watches: &'a mut [Watch],
    range: &'a Range<u64>,
) -> impl Iterator<Item = (&'a mut Watch, Range<u64>)> {
    watches
        .iter_mut()
        .filter_map(|watch| common(&watch.region, range).map(|part| (watch, part)))
}

fn as_count(result: &io::Result<Vec<Event>>) -> Result<usize, i32> {
    match result {
        Ok(events) => Ok(events.len()),
        Err(error) => Err(error.raw_os_error().unwrap_or(0)),
    }
}
