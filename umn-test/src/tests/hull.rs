// SPDX-License-Identifier: GPL-2.0

//! Hulls: a further hit widens the hint of a queued event.

use std::ops::Range;

use super::prelude::*;

table! {
    hull_of_two: "a second hit gives the smallest range that encloses both",
    hull_in_all_orders: "four hits in all orders, with one or two reads in between",
    hull_of_one_page: "hits of the same page leave the hint as it is",
    hull_inside_the_region: "the hull of changes beyond the region stays inside it",
    hull_in_bytes: "the hull in a region of some bytes is exact to the byte",
    hull_after_read: "a read starts a new hull",
    hull_after_register: "so does registering the region again",
    hull_with_causes: "a hull has the causes of all its changes",
    hull_at_the_limits: "the hull of changes far apart in a large region encloses both",
    hull_of_everything: "the same in a region of all addresses",
    hull_deferred: "hulls of deferred changes enclose all of them",
    hull_at_random: "random hits of random regions: each hull encloses its hits, and no more",
}

/// Memory that is watched as one region, by a file with hulls.
fn bench(pages: u64) -> Outcome<Bench> {
    let bench = Bench::over(open_with(Features::HULL)?, Guarded::new(pages)?)?;
    bench.watch(1, &bench.area.all())?;
    Ok(bench)
}

/// Reads everything, and expects the event of region 1 to come first, with this hint.
#[track_caller]
fn reports(bench: &Bench, wanted: &Range<u64>) -> Outcome {
    let events = bench.drain()?;
    expect::events("read", &events[..1], &[inval(1, wanted)])
}

fn hull_of_two() -> Outcome {
    for (one, other) in [(1, 3), (3, 1), (0, 7), (7, 0), (4, 5)] {
        let bench = bench(8)?;
        bench.hit(one)?;
        bench.hit(other)?;
        bench.counts(2)?;
        let hull = one.min(other)..one.max(other) + 1;
        bench.reads(&[inval(1, &bench.area.span(hull)), last(2)])?;
    }
    Ok(())
}

/// All orders of some numbers.
fn orders(numbers: &[u64]) -> Vec<Vec<u64>> {
    if numbers.is_empty() {
        return vec![vec![]];
    }
    let mut all = vec![];
    for (index, first) in numbers.iter().enumerate() {
        let mut rest = numbers.to_vec();
        rest.remove(index);
        for mut order in orders(&rest) {
            order.insert(0, *first);
            all.push(order);
        }
    }
    all
}

fn hull_in_all_orders() -> Outcome {
    let bench = bench(10)?;
    let hull_of = |pages: &[u64]| {
        let (first, last) = (pages.iter().min(), pages.iter().max());
        let (first, last) = first.zip(last).expect("there is a page");
        bench.area.span(*first..*last + 1)
    };
    for order in orders(&[2, 3, 5, 9]) {
        // Read after this number of hits, and at the end.
        for read_after in 1..=4 {
            let (before, after) = order.split_at(read_after);
            for part in [before, after] {
                for page in part {
                    bench.hit(*page)?;
                }
                if !part.is_empty() {
                    reports(&bench, &hull_of(part))?;
                }
            }
        }
    }
    Ok(())
}

fn hull_of_one_page() -> Outcome {
    let bench = bench(4)?;
    for _ in 0..3 {
        bench.hit(2)?;
    }
    reports(&bench, &bench.area.page(2))?;
    // A range that is enclosed already.
    mem::advise(&bench.area.span(1..4), libc::MADV_DONTNEED)?;
    bench.hit(2)?;
    reports(&bench, &bench.area.span(1..4))
}

fn hull_inside_the_region() -> Outcome {
    let bench = Bench::over(open_with(Features::HULL)?, Guarded::new(8)?)?;
    let region = bench.area.span(2..6);
    bench.watch(1, &region)?;
    mem::advise(&bench.area.span(0..3), libc::MADV_DONTNEED)?;
    reports(&bench, &bench.area.page(2))?;
    mem::advise(&bench.area.span(0..3), libc::MADV_DONTNEED)?;
    mem::advise(&bench.area.span(5..8), libc::MADV_DONTNEED)?;
    reports(&bench, &region)?;
    mem::advise(&bench.area.all(), libc::MADV_DONTNEED)?;
    bench.hit(3)?;
    reports(&bench, &region)
}

fn hull_in_bytes() -> Outcome {
    let bench = Bench::over(open_with(Features::HULL)?, Guarded::new(4)?)?;
    let start = bench.area.all().start;
    let region = start + 100..start + 3 * PAGE + 9;
    bench.watch(1, &region)?;
    bench.hit(0)?;
    bench.hit(1)?;
    reports(&bench, &(region.start..start + 2 * PAGE))?;
    bench.hit(3)?;
    bench.hit(2)?;
    reports(&bench, &(start + 2 * PAGE..region.end))?;
    bench.hit(0)?;
    bench.hit(3)?;
    reports(&bench, &region)
}

fn hull_after_read() -> Outcome {
    let bench = bench(8)?;
    bench.hit(0)?;
    bench.hit(7)?;
    reports(&bench, &bench.area.all())?;
    bench.hit(4)?;
    reports(&bench, &bench.area.page(4))?;
    bench.hit(5)?;
    bench.hit(6)?;
    reports(&bench, &bench.area.span(5..7))
}

fn hull_after_register() -> Outcome {
    let bench = bench(8)?;
    bench.hit(0)?;
    bench.hit(7)?;
    bench.device.unregister(1)?;
    bench.watch(1, &bench.area.all())?;
    bench.hit(3)?;
    reports(&bench, &bench.area.page(3))
}

fn hull_with_causes() -> Outcome {
    let device = open_with(Features::HULL | Features::CAUSE)?;
    let bench = Bench::over(device, Guarded::new(8)?)?;
    bench.watch(1, &bench.area.all())?;
    let ignored = Causes::SAME_PAGES;
    bench.device.watch_ignoring(bench.area.all(), 2, ignored)?;
    bench.hit(3)?;
    mem::protect(&bench.area.page(1), libc::PROT_READ)?;
    bench.hit(4)?;
    mem::unmap(&bench.area.page(5))?;
    let flags = |causes: Causes| 1 | (causes.bits() << 16);
    let (clear, unmap, area) = (Causes::CLEAR, Causes::UNMAP, Causes::PROTECT_AREA);
    let mut seen: Vec<_> = bench
        .drain()?
        .iter()
        .filter(|event| event.kind == EVENT_INVAL)
        .map(|it| (it.user_cookie_counter, it.flags, it.hint_start..it.hint_end))
        .collect();
    seen.sort_by_key(|(cookie, ..)| *cookie);
    let wanted = vec![
        (1, flags(clear | unmap | area), bench.area.span(1..6)),
        (2, flags(clear | unmap), bench.area.span(3..6)),
    ];
    expect::same("cookies, flags and hints", seen, wanted)
}

/// Skips tests that need more addresses than 32 bits have.
fn large_addresses() -> Outcome {
    if cfg!(target_pointer_width = "32") {
        return Err(Failure::Skipped("too few addresses".into()));
    }
    Ok(())
}

/// Two pages, far from the start of a large region and far from each other.
fn far_apart(region: &Range<u64>, one: u64, other: u64) -> Outcome {
    let device = open_with(Features::HULL)?;
    device.watch(region.clone(), 1)?;
    let pages = [one, other].map(|at| at..at + PAGE);
    for page in &pages {
        mem::map_over(page)?;
        mem::write_byte(page.start, 1);
    }
    // Mapping them may have been a change.
    let mut rest = read_if_any(&device, 64)?;
    rest.clear();
    // Hit the first page again, since the second hit may have widened the hint to the whole region.
    for page in [&pages[0], &pages[1], &pages[0]] {
        mem::advise(page, libc::MADV_DONTNEED)?;
        mem::write_byte(page.start, 1);
    }
    let events = read_if_any(&device, 2)?;
    let event = events.first().copied().unwrap_or_default();
    let hint = event.hint_start..event.hint_end;
    let hull = one.min(other)..one.max(other) + PAGE;
    let encloses = hint.start <= hull.start && hull.end <= hint.end;
    let inside = region.start <= hint.start && hint.end <= region.end;
    expect::that(
        "the hint",
        encloses && inside,
        format_args!("{hull:#x?} or more, inside {region:#x?}"),
        format_args!("{hint:#x?}"),
    )?;
    // A hint is exact if it can be stored in bytes from the start of the region.
    if hull.end - region.start < 1 << 31 {
        expect::same("the hint", hint, hull)?;
    }
    for page in &pages {
        mem::unmap(page)?;
    }
    Ok(())
}

fn hull_at_the_limits() -> Outcome {
    large_addresses()?;
    const G: u64 = 1 << 30;
    const T: u64 = 1 << 40;
    // Below the addresses that the kernel chooses by itself.
    let start = T;
    let region = start..start + 70 * T;
    for (one, other) in [
        (0, 2 * G - PAGE),
        (0, 2 * G - 2 * PAGE),
        (0, 2 * G),
        (4 * G - PAGE, 4 * G),
        (4 * G, 4 * G + PAGE),
        (PAGE, 5 * G),
        (G, 511 * G),
        (0, T / 2 - 2 * PAGE),
        (0, T / 2 - PAGE),
        (0, T / 2),
        (T, 2 * T),
        (3 * T, 69 * T),
    ] {
        for (one, other) in [(one, other), (other, one)] {
            far_apart(&region, start + one, start + other)?;
            // The same if the region does not start at a page boundary.
            far_apart(&(start - 7..region.end), start + one, start + other)?;
        }
    }
    Ok(())
}

fn hull_of_everything() -> Outcome {
    large_addresses()?;
    const T: u64 = 1 << 40;
    for region in [0..u64::MAX, PAGE + 1..u64::MAX, 0..1 << 47] {
        for (one, other) in [(T, T + PAGE), (T + PAGE, T), (T, 60 * T), (60 * T, T)] {
            far_apart(&region, one, other)?;
        }
    }
    Ok(())
}

fn hull_deferred() -> Outcome {
    /// More regions than a change visits.
    const REGIONS: u64 = 500;
    let bench = Bench::over(open_with(Features::HULL)?, Guarded::new(8)?)?;
    for cookie in 0..REGIONS {
        bench.watch(cookie, &bench.area.all())?;
    }
    // Page 2 twice in a row, which is recorded once.
    for page in [4, 2, 2, 5] {
        bench.hit(page)?;
    }
    let wanted = bench.area.span(2..6);
    let mut seen = 0;
    for event in bench.drain()? {
        if event.kind == EVENT_INVAL {
            let cookie = event.user_cookie_counter;
            expect::events("read", &[event], &[inval(cookie, &wanted)])?;
            seen += 1;
        }
    }
    expect::same("events", seen, REGIONS)
}

fn hull_at_random() -> Outcome {
    const PAGES: u64 = 64;
    let bench = Bench::over(open_with(Features::HULL)?, Guarded::new(PAGES)?)?;
    let mut random = fastrand::Rng::with_seed(3);
    let regions: Vec<_> = (0..20)
        .map(|_| {
            let start = random.u64(..PAGES);
            start..random.u64(start..PAGES) + 1
        })
        .collect();
    for (cookie, region) in regions.iter().enumerate() {
        bench.watch(cookie as u64, &bench.area.span(region.clone()))?;
    }
    let mut hulls = vec![None::<Range<u64>>; regions.len()];
    for _ in 0..crate::harness::rounds(2000) {
        let start = random.u64(..PAGES);
        let pages = start..random.u64(start..PAGES.min(start + 9)) + 1;
        mem::advise(&bench.area.span(pages.clone()), libc::MADV_DONTNEED)?;
        for (hull, region) in hulls.iter_mut().zip(&regions) {
            let part = pages.start.max(region.start)..pages.end.min(region.end);
            if part.is_empty() {
                continue;
            }
            *hull = Some(hull.take().map_or(part.clone(), |hull| {
                hull.start.min(part.start)..hull.end.max(part.end)
            }));
        }
        if random.u8(..4) != 0 {
            continue;
        }
        for event in bench.drain()? {
            if event.kind != EVENT_INVAL {
                continue;
            }
            let cookie = event.user_cookie_counter;
            let wanted = hulls[cookie as usize].take();
            let wanted = wanted.map(|pages| inval(cookie, &bench.area.span(pages)));
            expect::same("an event", Some(event), wanted)?;
        }
        let left = hulls.iter().flatten().count();
        expect::same("regions that were not reported", left, 0)?;
    }
    Ok(())
}
