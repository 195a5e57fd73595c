// SPDX-License-Identifier: GPL-2.0

//! A file with many regions, all of which one change hits.

use std::ops::Range;

use super::{
    limits::{
        fdinfo,
        fdinfo_text, //
    },
    prelude::*, //
};

/// How the regions of a crowd are arranged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All cover the same page.
    Identical,
    /// Each begins and ends one byte after the previous one.
    Overlapping,
    /// Each encloses the previous one.
    Nested,
    /// Each is one byte, next to the previous one.
    Disjoint,
    /// Every other one is a byte that is not hit; the others have the same end.
    Interleaved,
}

impl Layout {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Identical,
        Self::Overlapping,
        Self::Nested,
        Self::Disjoint,
        Self::Interleaved,
    ];
}

/// Regions with the cookies 0, 1, …, in a mapping of their own.
pub struct Crowd {
    /// The file, its counter, and the mapping.
    pub bench: Bench,
    layout: Layout,
    count: u64,
}

impl Crowd {
    /// Registers `count` regions with a new file.
    pub fn new(layout: Layout, count: u64) -> Outcome<Self> {
        Self::with(open()?, layout, count)
    }

    /// Registers `count` regions with a file.
    pub fn with(device: Device, layout: Layout, count: u64) -> Outcome<Self> {
        let margin = count.div_ceil(PAGE);
        let hit = if layout == Layout::Disjoint {
            margin
        } else {
            1
        };
        let area = Guarded::unpopulated(2 * margin + hit)?;
        let crowd = Self {
            bench: Bench::over(device, area)?,
            layout,
            count,
        };
        for cookie in 0..count {
            crowd.bench.watch(cookie, &crowd.region(cookie))?;
        }
        Ok(crowd)
    }

    /// The pages that the regions share or lie in.
    pub fn pages(&self) -> Range<u64> {
        let margin = self.count.div_ceil(PAGE);
        self.bench
            .area
            .span(margin..self.bench.area.pages() - margin)
    }

    /// The region with a cookie.
    pub fn region(&self, cookie: u64) -> Range<u64> {
        let Range { start, end } = self.pages();
        let rising = start - self.count + cookie;
        match self.layout {
            Layout::Identical => start..end,
            Layout::Overlapping => rising..start + 1 + cookie,
            Layout::Nested => start - cookie..end + cookie,
            Layout::Disjoint => start + cookie..start + cookie + 1,
            Layout::Interleaved if cookie % 2 == 0 => rising..end,
            Layout::Interleaved => rising..rising + 1,
        }
    }

    /// Hits all regions with one change, to [`Self::pages`].
    pub fn hit(&self) -> Outcome {
        self.populate();
        Ok(mem::advise(&self.pages(), libc::MADV_DONTNEED)?)
    }

    /// Populates a page, so that the next change has something to change.
    pub fn populate(&self) {
        mem::write_byte(self.pages().start, 1);
    }

    /// The cookies that a hit of [`Self::pages`] reports, in the order of the events.
    pub fn cookies(&self) -> Vec<u64> {
        let pages = self.pages();
        let mut hit: Vec<_> = (0..self.count)
            .map(|cookie| (self.region(cookie), cookie))
            .filter(|(region, _)| region.start < pages.end && pages.start < region.end)
            .map(|(region, cookie)| (region.start, cookie))
            .collect();
        hit.sort_unstable();
        hit.into_iter().map(|(_, cookie)| cookie).collect()
    }

    /// The event by which one hit of [`Self::pages`] is reported for a region.
    pub fn event(&self, cookie: u64) -> Event {
        let (pages, region) = (self.pages(), self.region(cookie));
        let hint = region.start.max(pages.start)..region.end.min(pages.end);
        inval(cookie, &hint)
    }

    /// Everything that is read after one hit of [`Self::pages`], up to LAST with this counter.
    pub fn events(&self, counter: u64) -> Vec<Event> {
        let events = self.cookies().into_iter();
        let events = events.map(|cookie| self.event(cookie));
        events.chain([last(counter)]).collect()
    }

    /// Expects reads of up to `room` records each to return these, up to LAST.
    #[track_caller]
    pub fn reads(&self, room: usize, expected: &[Event]) -> Outcome {
        let seen = read_up_to_last(&self.bench.device, room)?;
        expect::events("reads", &seen, expected)
    }
}

/// Reads up to `room` records at a time until LAST.
pub fn read_up_to_last(device: &Device, room: usize) -> Outcome<Vec<Event>> {
    let mut seen: Vec<Event> = vec![];
    while seen.last().is_none_or(|event| event.kind != EVENT_LAST) {
        let events = expect::success("read", device.read_events(room))?;
        expect::that("read", !events.is_empty(), "records", "none")?;
        seen.extend(events);
    }
    Ok(seen)
}

/// How many changes have been deferred and not yet applied, according to fdinfo.
pub fn deferred(device: &Device) -> Outcome<u64> {
    fdinfo(&fdinfo_text(device)?, "deferred")
}

/// How often two deferred changes were merged.
pub fn merged(device: &Device) -> Outcome<u64> {
    fdinfo(&fdinfo_text(device)?, "merged")
}
