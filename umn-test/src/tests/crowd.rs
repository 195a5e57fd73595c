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

/// How the regions of a crowd lie to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All are the same page.
    Identical,
    /// Each begins and ends a byte after the one before.
    Overlapping,
    /// Each lies around the one before.
    Nested,
    /// Each is one byte, next to the one before.
    Disjoint,
    /// Every other one is a byte that is not hit; the others end together.
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

/// Regions with the cookies 0, 1, …, in a mapping that nothing else is in.
pub struct Crowd {
    /// The file, its counter, and the mapping.
    pub bench: Bench,
    layout: Layout,
    count: u64,
}

impl Crowd {
    /// Registers so many regions with a new file.
    pub fn new(layout: Layout, count: u64) -> Outcome<Self> {
        Self::with(open()?, layout, count)
    }

    /// Registers so many regions with a file.
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

    /// The pages that the regions have in common, or are in.
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

    /// Hits all regions with one call, [`Self::pages`].
    pub fn hit(&self) -> Outcome {
        self.populate();
        Ok(mem::advise(&self.pages(), libc::MADV_DONTNEED)?)
    }

    /// Has a page be there, so that the next change has something to change.
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

    /// The event of a region that one hit of [`Self::pages`] is reported by.
    pub fn event(&self, cookie: u64) -> Event {
        let (pages, region) = (self.pages(), self.region(cookie));
        let hint = region.start.max(pages.start)..region.end.min(pages.end);
        hit(cookie, &hint)
    }

    /// All that one hit of [`Self::pages`] is reported by, up to LAST with this counter.
    pub fn events(&self, counter: u64) -> Vec<Event> {
        let events = self.cookies().into_iter();
        let events = events.map(|cookie| self.event(cookie));
        events.chain([last(counter)]).collect()
    }

    /// Expects reads with room for so many records each to return these, up to LAST.
    #[track_caller]
    pub fn reads(&self, room: usize, expected: &[Event]) -> Outcome {
        let seen = read_up_to_last(&self.bench.device, room)?;
        expect::events("reads", &seen, expected)
    }
}

/// Reads with room for so many records each, until LAST has come.
pub fn read_up_to_last(device: &Device, room: usize) -> Outcome<Vec<Event>> {
    let mut seen: Vec<Event> = vec![];
    while seen.last().is_none_or(|event| event.kind != EVENT_LAST) {
        let events = expect::success("read", device.read_events(room))?;
        expect::that("read", !events.is_empty(), "records", "none")?;
        seen.extend(events);
    }
    Ok(seen)
}

/// How many changes a file has yet to look for regions in, as fdinfo tells.
pub fn deferred(device: &Device) -> Outcome<u64> {
    fdinfo(&fdinfo_text(device)?, "deferred")
}

/// How often two of these were merged.
pub fn merged(device: &Device) -> Outcome<u64> {
    fdinfo(&fdinfo_text(device)?, "merged")
}
