// SPDX-License-Identifier: GPL-2.0

//! Stamps against `/proc/self/pagemap`: they are equal if and only if the page frames are.

use std::{
    collections::HashMap,
    ops::Range, //
};

use super::{
    causes::{
        collapse,
        collapsible_on,
        hugetlb_page,
        migrate,
        move_page,
        other_node,
        page_out, //
    },
    causes_reported::merge,
    prelude::*, //
};
use crate::{
    harness,
    uapi::Stamp, //
};

table! {
    stamp_at_random: "random changes of 16 pages: stamps are equal if and only if the frames are",
    stamp_of_one_page: "the stamp of a page identifies its frame",
    stamp_rounds: "the range is rounded outwards to pages, and an empty range is one page",
    stamp_of_swapped_pages: "the same frames in another order have another stamp",
    stamp_of_another_address: "the same frames at other addresses have another stamp",
    stamp_of_another_file: "another file has another key",
    stamp_of_parts: "the stamp of a range is not a simple combination of those of its parts",
    stamp_leaves_all_alone: "STAMP needs no region, moves no counter, consumes no event, maps no page",
    stamp_after_protection: "changing protections back and forth does not change the stamp",
    stamp_after_fork: "fork does not change the stamp; the first write afterwards does",
    stamp_of_a_frame_that_comes_back: "a frame that was freed and reused counts as the same",
    stamp_after_migration: "a page that moves to another node",
    stamp_after_merge: "KSM merges a page, and a write unshares it",
    stamp_after_swap: "a swapped-out page is absent; afterwards its stamp is that of its new frame",
    stamp_after_split: "splitting a huge page does not change the stamp",
    stamp_after_collapse: "collapsing pages gives them other frames, and another stamp",
    stamp_of_files: "pages of files, shared and private",
    stamp_of_hugetlb: "hugetlb pages, and parts of them",
    stamp_of_many: "a range of 100,000 pages: one of them changes the stamp",
}

/// The stamp of a range, and the number of absent pages.
pub(super) fn stamp(device: &Device, range: &Range<u64>) -> Outcome<(u64, u32)> {
    let asked = Stamp {
        start: range.start,
        end: range.end,
        ..Stamp::default()
    };
    let result = expect::success("STAMP", device.stamp_with(asked))?;
    let (stamp, absent) = (result.stamp, result.absent);
    let unchanged = Stamp {
        stamp,
        absent,
        ..asked
    };
    expect::same("the other fields", result, unchanged)?;
    if absent > 0 {
        expect::same("a stamp with pages absent", stamp, 0)?;
    }
    Ok((stamp, absent))
}

/// The stamp of a range without absent pages.
///
/// If pages are absent although all are in memory, reads them and tries again, as clients do: NUMA
/// balancing may have made them inaccessible.
#[track_caller]
pub(super) fn stamp_of(device: &Device, range: &Range<u64>) -> Outcome<u64> {
    let (mut stamp, mut absent) = self::stamp(device, range)?;
    if absent > 0 && mem::page_states(range)?.iter().all(|page| page.present()) {
        for address in range.clone().step_by(PAGE as usize) {
            mem::peek(address)?;
        }
        (stamp, absent) = self::stamp(device, range)?;
    }
    expect::same("absent pages", absent, 0)?;
    Ok(stamp)
}

/// The page frames of a range whose pages are all present.
fn frames(range: &Range<u64>) -> Outcome<Vec<u64>> {
    let states = mem::page_states(range)?;
    let frames: Vec<u64> = states.iter().map(|state| state.frame()).collect();
    if frames.contains(&0) {
        return Err(Failure::Skipped("page frames need privilege".into()));
    }
    Ok(frames)
}

/// Checks the stamps of a range against its page frames.
struct Oracle {
    device: Device,
    range: Range<u64>,
    stamps: HashMap<Vec<u64>, u64>,
    frames: HashMap<u64, Vec<u64>>,
}

impl Oracle {
    fn new(range: Range<u64>) -> Outcome<Self> {
        Ok(Self {
            device: open_with(Features::STAMP)?,
            range,
            stamps: HashMap::new(),
            frames: HashMap::new(),
        })
    }

    /// Expects a stamp that was seen before exactly if the page frames were. Returns the stamp.
    #[track_caller]
    fn check(&mut self) -> Outcome<u64> {
        let before = frames(&self.range)?;
        let stamp = stamp_of(&self.device, &self.range)?;
        if frames(&self.range)? != before {
            // The kernel has moved a page in the meantime.
            return Ok(stamp);
        }
        let known = *self.stamps.entry(before.clone()).or_insert(stamp);
        expect::same("stamp of the same frames", stamp, known)?;
        let of = self.frames.entry(stamp).or_insert(before.clone());
        expect::same("frames with the same stamp", &before, &*of)?;
        Ok(stamp)
    }
}

fn stamp_at_random() -> Outcome {
    const PAGES: u64 = 16;
    let area = Guarded::new(PAGES)?;
    let elsewhere = Guarded::new(1)?.all();
    let mut oracle = Oracle::new(area.all())?;
    let mut random = fastrand::Rng::with_seed(1);
    let mut children: Vec<Child> = vec![];
    for _ in harness::rounds_soon(3000) {
        let (one, other) = (random.u64(..PAGES), random.u64(..PAGES));
        let (one, other) = (area.page(one), area.page(other));
        match random.u8(..10) {
            0 => mem::advise(&one, libc::MADV_DONTNEED)?,
            1 => mem::map_over(&one)?,
            // Swap two pages.
            2..5 if one != other => {
                mem::map_over(&elsewhere)?;
                mem::move_to(&one, &elsewhere)?;
                mem::move_to(&other, &one)?;
                mem::move_to(&elsewhere, &other)?;
            }
            5 => mem::protect(&one, libc::PROT_READ | libc::PROT_WRITE)?,
            6 if children.len() < 2 => children.push(Child::fork(|line| Ok(line.hear()?))?),
            7 => drop(children.pop()),
            _ => {}
        }
        for page in [&one, &other] {
            mem::write_byte(page.start, 1);
        }
        oracle.check()?;
    }
    expect::at_least("different stamps", oracle.frames.len() as u64, 100)?;
    harness::note(format_args!("{} different stamps", oracle.frames.len()));
    Ok(())
}

fn stamp_of_one_page() -> Outcome {
    let area = Guarded::new(1)?;
    let mut oracle = Oracle::new(area.all())?;
    for _ in 0..200 {
        oracle.check()?;
        mem::advise(&area.all(), libc::MADV_DONTNEED)?;
        mem::write_byte(area.all().start, 1);
    }
    Ok(())
}

fn stamp_rounds() -> Outcome {
    let device = open_with(Features::STAMP)?;
    let area = Guarded::new(4)?;
    let of = |range: Range<u64>| stamp_of(&device, &range);
    let start = area.all().start;
    let two = of(area.span(1..3))?;
    for (from, to) in [
        (0, 2 * PAGE),
        (1, 2 * PAGE - 1),
        (PAGE - 1, PAGE + 1),
        (7, 2 * PAGE),
    ] {
        expect::same("rounded", of(start + PAGE + from..start + PAGE + to)?, two)?;
    }
    let one = of(area.page(1))?;
    for at in [0, 1, PAGE / 2, PAGE - 1] {
        expect::same("empty", of(start + PAGE + at..start + PAGE + at)?, one)?;
    }
    expect::same("one byte", of(start + 2 * PAGE - 1..start + 2 * PAGE)?, one)?;
    let differ = one != two && one != of(area.page(2))?;
    expect::that("other ranges", differ, "other stamps", "the same")
}

fn stamp_of_swapped_pages() -> Outcome {
    let (area, elsewhere) = (Guarded::new(2)?, Guarded::new(1)?.all());
    let mut oracle = Oracle::new(area.all())?;
    let swap = || -> Outcome {
        mem::map_over(&elsewhere)?;
        mem::move_to(&area.page(0), &elsewhere)?;
        mem::move_to(&area.page(1), &area.page(0))?;
        Ok(mem::move_to(&elsewhere, &area.page(1))?)
    };
    let before = oracle.check()?;
    swap()?;
    let swapped = oracle.check()?;
    expect::that("stamp", swapped != before, "another", "the same")?;
    swap()?;
    expect::same("stamp", oracle.check()?, before)
}

fn stamp_of_another_address() -> Outcome {
    let device = open_with(Features::STAMP)?;
    let file = mem::memory_file(2)?;
    let (one, other) = (Guarded::of_file(&file, 2)?, Guarded::of_file(&file, 2)?);
    expect::same("frames", frames(&one.all())?, frames(&other.all())?)?;
    let stamps = (
        stamp_of(&device, &one.all())?,
        stamp_of(&device, &other.all())?,
    );
    expect::that("stamps", stamps.0 != stamps.1, "two", "the same")
}

fn stamp_of_another_file() -> Outcome {
    let area = Guarded::new(2)?;
    let mut stamps = vec![];
    for _ in 0..50 {
        let device = open_with(Features::STAMP)?;
        stamps.push(stamp_of(&device, &area.all())?);
        let again = stamp_of(&device, &area.all())?;
        expect::same("stamp, again", again, stamps[stamps.len() - 1])?;
    }
    stamps.sort_unstable();
    stamps.dedup();
    expect::same("different stamps", stamps.len(), 50)
}

fn stamp_of_parts() -> Outcome {
    let device = open_with(Features::STAMP)?;
    let area = Guarded::new(2)?;
    let of = |pages| stamp_of(&device, &area.span(pages));
    let (first, second, both) = (of(0..1)?, of(1..2)?, of(0..2)?);
    let simple = [
        first.wrapping_add(second),
        first ^ second,
        first.wrapping_sub(second),
        second.wrapping_sub(first),
    ];
    let made = simple.contains(&both);
    expect::same("a combination of its parts", made, false)
}

fn stamp_leaves_all_alone() -> Outcome {
    let bench = Bench::over(open_with(Features::ALL)?, Guarded::unpopulated(4)?)?;
    mem::write_byte(bench.area.page(0).start, 1);
    expect::same("absent", stamp(&bench.device, &bench.area.all())?.1, 3)?;
    bench.watch(1, &bench.area.all())?;
    expect::same("absent", stamp(&bench.device, &bench.area.all())?.1, 3)?;
    let present = mem::page_states(&bench.area.all())?;
    let present = present.iter().filter(|page| page.present()).count();
    expect::same("present pages", present, 1)?;
    bench.counts(0)?;
    bench.is_silent()?;

    mem::advise(&bench.area.page(0), libc::MADV_DONTNEED)?;
    stamp(&bench.device, &bench.area.all())?;
    bench.counts(1)?;
    let seen = bench.device.poll(libc::POLLIN, std::time::Duration::ZERO)?;
    expect::same("poll", seen & libc::POLLIN, libc::POLLIN)?;
    expect::same("records", bench.drain()?.len(), 2)
}

fn stamp_after_protection() -> Outcome {
    let area = Guarded::new(3)?;
    let mut oracle = Oracle::new(area.all())?;
    let before = oracle.check()?;
    mem::protect(&area.page(1), libc::PROT_READ)?;
    expect::same("stamp, read-only", oracle.check()?, before)?;
    mem::protect(&area.page(1), libc::PROT_NONE)?;
    expect::same(
        "absent, PROT_NONE",
        stamp(&oracle.device, &area.all())?,
        (0, 1),
    )?;
    mem::protect(&area.page(1), libc::PROT_READ | libc::PROT_WRITE)?;
    expect::same("stamp, writable again", oracle.check()?, before)
}

fn stamp_after_fork() -> Outcome {
    let area = Guarded::new(3)?;
    let mut oracle = Oracle::new(area.all())?;
    let before = oracle.check()?;
    let child = Child::fork(|line| Ok(line.hear()?))?;
    expect::same("stamp after fork", oracle.check()?, before)?;
    mem::write_byte(area.page(1).start, 1);
    let copied = oracle.check()?;
    expect::that("stamp of a copy", copied != before, "another", "the same")?;
    drop(child);
    expect::same("stamp after the child", oracle.check()?, copied)
}

fn stamp_of_a_frame_that_comes_back() -> Outcome {
    let area = Guarded::new(1)?;
    let mut oracle = Oracle::new(area.all())?;
    let (before, frame) = (oracle.check()?, frames(&area.all())?);
    for _ in 0..10_000 {
        mem::advise(&area.all(), libc::MADV_DONTNEED)?;
        mem::write_byte(area.all().start, 1);
        if frames(&area.all())? == frame {
            return expect::same("stamp", oracle.check()?, before);
        }
        oracle.check()?;
    }
    Err(Failure::Skipped("the frame did not come back".into()))
}

fn stamp_after_migration() -> Outcome {
    let area = Guarded::new(3)?;
    let mut oracle = Oracle::new(area.all())?;
    let before = oracle.check()?;
    let page = area.page(1).start;
    let home = move_page(0, page, None).or_skip("move_pages")?;
    let node = other_node(page)?;
    for node in [node, home] {
        migrate(page, node, || {
            // That a page is busy at the moment is not an error.
            let _ = move_page(0, page, Some(node));
            Ok(())
        })?;
        let now = oracle.check()?;
        expect::that(
            "stamp",
            node == home || now != before,
            "another",
            "the same",
        )?;
    }
    Ok(())
}

fn stamp_after_merge() -> Outcome {
    let _settings = Setting::run_ksm().or_skip("KSM")?;
    let (area, twin) = (Guarded::new(3)?, Guarded::new(1)?);
    // The contents differ, so that the pages are not merged yet.
    let mut oracle = Oracle::new(area.all())?;
    let mut twins = Oracle::new(twin.all())?;
    let before = (oracle.check()?, twins.check()?);
    merge(&area.page(1), &twin.all())?;
    let merged = (oracle.check()?, twins.check()?);
    let one_differs = before.0 != merged.0 || before.1 != merged.1;
    expect::that("stamps", one_differs, "another of one", "the same")?;
    mem::write_byte(area.page(1).start, 99);
    let apart = oracle.check()?;
    expect::that("stamp of a copy", apart != merged.0, "another", "the same")?;
    expect::same("stamp of the other", twins.check()?, merged.1)
}

fn stamp_after_swap() -> Outcome {
    let area = Guarded::new(3)?;
    let mut oracle = Oracle::new(area.all())?;
    let before = oracle.check()?;
    let page = area.page(1);
    page_out(&page, || mem::advise(&page, libc::MADV_PAGEOUT))?;
    expect::same("absent", stamp(&oracle.device, &area.all())?, (0, 1))?;
    expect::same("a byte", mem::read_byte(page.start), Guarded::content(1))?;
    // The page may have got the same frame again.
    let after = oracle.check()?;
    let _ = after == before;
    mem::write_byte(page.start, 1);
    oracle.check().map(drop)
}

/// A huge page, and an oracle for its stamps.
fn huge_page() -> Outcome<(Bench, Range<u64>, Oracle)> {
    let (bench, place) = collapsible_on(open_with(Features::CAUSE)?)?;
    mem::advise(&place, libc::MADV_HUGEPAGE).or_skip("huge pages")?;
    let mut oracle = Oracle::new(place.clone())?;
    let first = oracle.check()?;
    // The kernel may have collapsed it already.
    let was_huge = mem::is_huge(place.start)?;
    collapse(place.start, || mem::advise(&place, libc::MADV_COLLAPSE))?;
    let huge = oracle.check()?;
    if !was_huge {
        expect::that("stamp of a huge page", huge != first, "another", "the same")?;
    }
    Ok((bench, place, oracle))
}

fn stamp_after_split() -> Outcome {
    let (_bench, place, mut oracle) = huge_page()?;
    let before = oracle.check()?;
    let part = place.start + 40 * PAGE..place.start + 42 * PAGE;
    let in_part = stamp_of(&oracle.device, &part)?;
    mem::protect(&part, libc::PROT_READ)?;
    expect::same("a huge page", mem::is_huge(place.start)?, false)?;
    expect::same("stamp", oracle.check()?, before)?;
    expect::same("stamp of a part", stamp_of(&oracle.device, &part)?, in_part)?;
    mem::lock(&(place.start + 90 * PAGE..place.start + 91 * PAGE))?;
    expect::same("stamp", oracle.check()?, before)?;
    // One page is replaced.
    mem::advise(&(place.start..place.start + PAGE), libc::MADV_DONTNEED)?;
    expect::same("absent", stamp(&oracle.device, &place)?.1, 1)?;
    mem::write_byte(place.start, 1);
    oracle.check().map(drop)
}

fn stamp_after_collapse() -> Outcome {
    let (_bench, place, mut oracle) = huge_page()?;
    let before = oracle.check()?;
    // Collapsing a huge page changes nothing.
    mem::advise(&place, libc::MADV_COLLAPSE).or_skip("MADV_COLLAPSE")?;
    expect::same("stamp", oracle.check()?, before)
}

fn stamp_of_files() -> Outcome {
    let file = mem::memory_file(3)?;
    let shared = Guarded::of_file(&file, 3)?;
    let mut oracle = Oracle::new(shared.all())?;
    let before = oracle.check()?;
    // Other mappings of the file, and changes to them, do not matter.
    let other = Guarded::of_file(&file, 3)?;
    mem::advise(&other.all(), libc::MADV_DONTNEED)?;
    mem::advise(&shared.page(1), libc::MADV_DONTNEED)?;
    expect::same("absent", stamp(&oracle.device, &shared.all())?.1, 1)?;
    mem::read_byte(shared.page(1).start);
    expect::same("stamp of the same page", oracle.check()?, before)?;
    mem::punch_hole(&file, 1..2)?;
    mem::write_byte(shared.page(1).start, 1);
    oracle.check()?;

    let copy = Guarded::copy_of_file(&file, 3)?;
    let mut oracle = Oracle::new(copy.all())?;
    let before = oracle.check()?;
    mem::write_byte(copy.page(1).start, 1);
    let after = oracle.check()?;
    expect::that("stamp of a copy", after != before, "another", "the same")
}

fn stamp_of_hugetlb() -> Outcome {
    let (_pool, at) = hugetlb_page()?;
    let mut oracle = Oracle::new(at..at + HUGE)?;
    let absent = stamp(&oracle.device, &oracle.range)?.1;
    expect::same("absent", u64::from(absent), HUGE / PAGE)?;
    mem::write_byte(at, 1);
    let before = oracle.check()?;
    expect::same("stamp, again", oracle.check()?, before)?;
    let part = stamp_of(&oracle.device, &(at + 5 * PAGE..at + 6 * PAGE))?;
    expect::that("stamp of a part", part != before, "another", "the same")?;
    Ok(mem::unmap(&(at..at + HUGE))?)
}

fn stamp_of_many() -> Outcome {
    const PAGES: u64 = 70_000;
    let device = open_with(Features::STAMP)?;
    let area = Guarded::new(PAGES)?;
    let before = stamp_of(&device, &area.all())?;
    expect::same("stamp, again", stamp_of(&device, &area.all())?, before)?;
    for page in [0, 1, 65_535, 65_536, PAGES - 1] {
        let frame = frames(&area.page(page))?;
        mem::advise(&area.page(page), libc::MADV_DONTNEED)?;
        expect::same("absent", stamp(&device, &area.all())?, (0, 1))?;
        // This allocates the freed frame, so that the page does not get it again.
        Guarded::new(1)?;
        mem::write_byte(area.page(page).start, 1);
        if frames(&area.page(page))? != frame {
            let after = stamp_of(&device, &area.all())?;
            expect::that("stamp", after != before, "another", "the same")?;
        }
    }
    Ok(())
}
