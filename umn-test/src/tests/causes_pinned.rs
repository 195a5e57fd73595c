// SPDX-License-Identifier: GPL-2.0

//! Causes of changes to memory that is pinned, and keeps its pages.

use ummunotify::cache::Pin;

use super::{
    causes::{
        move_page,
        other_node, //
    },
    causes_reported::{
        huge_page,
        reported, //
    },
    prelude::*,
    stamp_pages::stamp_of, //
};
use crate::demo::adapter::Adapter;

table! {
    causes_pinned_fork: "fork with a pinned huge page, which is split: CLEAR of the block; the same pages",
    causes_pinned_migration: "migration of a pinned page, which fails: CLEAR; the same page",
}

fn causes_pinned_fork() -> Outcome {
    let (bench, place) = huge_page()?;
    let mut adapter = Adapter::open(1).or_skip("io_uring")?;
    adapter.pin(&(place.start..place.start + PAGE))?;
    let stamps = open_with(Features::STAMP)?;
    let before = stamp_of(&stamps, &place)?;
    let child = Child::fork(|line| Ok(line.hear()?))?;
    let (clear, pages) = (Causes::CLEAR, Causes::PROTECT_PAGES);
    let mut seen = reported(&bench)?;
    seen.sort_by_key(|(cookie, _)| *cookie);
    let wanted = vec![
        (1, pages),
        (2, clear | pages),
        (3, clear | pages),
        (4, pages),
    ];
    expect::same("cookies and causes", seen, wanted)?;
    drop(child);
    expect::same("stamp", stamp_of(&stamps, &place)?, before)
}

fn causes_pinned_migration() -> Outcome {
    let device = open_with(Features::CAUSE | Features::STAMP)?;
    let bench = Bench::over(device, Guarded::new(1)?)?;
    let page = bench.area.all();
    let node = other_node(page.start)?;
    let mut adapter = Adapter::open(1).or_skip("io_uring")?;
    adapter.pin(&page)?;
    let before = stamp_of(&bench.device, &page)?;
    let ignored = Causes::SAME_PAGES;
    bench.device.watch_ignoring(page.clone(), 1, ignored)?;
    // Whether the call fails differs between kernels; the page does not move.
    let _ = move_page(0, page.start, Some(node));
    let seen = reported(&bench)?;
    expect::same("cookies and causes", seen, vec![(1, Causes::CLEAR)])?;
    expect::same("stamp", stamp_of(&bench.device, &page)?, before)
}
