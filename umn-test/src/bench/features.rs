// SPDX-License-Identifier: GPL-2.0

//! The cost of changes that regions ignore, and of stamps.

use std::ops::Range;

use ummunotify::Features;

use super::{
    costs::{
        page,
        populate, //
    },
    count::{
        self,
        Stopwatch,
        ROUNDS, //
    },
    figures::{
        Figures,
        Operation,
        Peer,
        REGIONS, //
    },
};
use crate::{
    device::Device,
    expect::{
        self,
        OrSkip,
        Outcome, //
    },
    mem::{
        self,
        PAGE, //
    },
    uapi::{
        Register,
        Stamp,
        CAUSES_SAME_PAGES, //
    },
};

/// The number of pages of the large range of which a stamp is taken.
const PAGES: u64 = 1024;

/// Where these pages are. Nothing else is mapped there.
const STAMPED: u64 = 3 << 40;

/// Measures everything.
pub fn measure() -> Outcome<Figures> {
    count::require()?;
    let mut figures = Figures::default();
    ignored(&mut figures)?;
    stamps(&mut figures)?;
    Ok(figures)
}

/// `mprotect` of a page to read-only; the median. Making it writable again costs another number.
fn mprotect(page: &Range<u64>) -> Outcome<f64> {
    populate(page)?;
    let mut stopwatch = Stopwatch::new();
    let arguments = [page.start, page.end - page.start, libc::PROT_READ as u64];
    for _ in 0..ROUNDS {
        let result = stopwatch.time(|| count::call(libc::SYS_mprotect, arguments));
        expect::same("mprotect", result, 0)?;
        mem::protect(page, libc::PROT_READ | libc::PROT_WRITE)?;
    }
    mem::unmap(page)?;
    Ok(stopwatch.median() as f64)
}

/// Measures changes that all regions of a file ignore.
fn ignored(figures: &mut Figures) -> Outcome {
    let changed = page(0);
    mprotect(&changed)?;
    let bare = mprotect(&changed)?;
    let device = Device::open_with(Features::CAUSE).or_skip("the feature CAUSE")?;
    let mut have = 0;
    for regions in REGIONS {
        for index in have..regions {
            let region = page(index);
            device.register_with(Register {
                start: region.start,
                end: region.end,
                user_cookie: index,
                flags: CAUSES_SAME_PAGES,
                reserved: 0,
            })?;
        }
        have = regions;
        let cost = mprotect(&changed)? - bare;
        figures.add(Operation::Ignored, Peer::Ummunotify, regions, cost);
    }
    Ok(())
}

/// Measures stamps of present pages, and of absent ones.
fn stamps(figures: &mut Figures) -> Outcome {
    let device = Device::open_with(Features::STAMP).or_skip("the feature STAMP")?;
    let range = STAMPED..STAMPED + PAGES * PAGE;
    let time = |pages: u64, absent: u64| -> Outcome<f64> {
        let asked = Stamp {
            start: range.start,
            end: range.start + pages * PAGE,
            ..Stamp::default()
        };
        let mut stopwatch = Stopwatch::new();
        for _ in 0..ROUNDS {
            let stamp = stopwatch.time(|| device.stamp_with(asked))?;
            expect::same("absent pages", u64::from(stamp.absent), absent)?;
        }
        Ok(stopwatch.median() as f64)
    };
    let others = (PAGES - 1) as f64;
    mem::map_over(&range)?;
    mem::advise(&range, libc::MADV_POPULATE_WRITE)?;
    let (one, all) = (time(1, 0)?, time(PAGES, 0)?);
    mem::advise(&range, libc::MADV_DONTNEED)?;
    let (none, nothing) = (time(1, 1)?, time(PAGES, PAGES)?);
    mem::unmap(&range)?;
    let mut add = |operation, value| figures.add(operation, Peer::Ummunotify, 1, value);
    add(Operation::StampOne, one);
    add(Operation::StampPage, (all - one) / others);
    add(Operation::StampAbsent, (nothing - none) / others);
    Ok(())
}
