// SPDX-License-Identifier: GPL-2.0

//! Changes that hit more regions than they visit: the rest is left to the next read.

use std::{
    env,
    os::{
        fd::AsRawFd,
        unix::process::CommandExt, //
    },
    process::{
        Command,
        Stdio, //
    },
    sync::atomic::{
        AtomicBool,
        AtomicU64,
        Ordering, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

use super::{
    crowd::{
        deferred,
        merged,
        read_up_to_last,
        Crowd,
        Layout, //
    },
    exhaustion::possible_in,
    limits::{
        fdinfo,
        fdinfo_text, //
    },
    prelude::*, //
};

table! {
    deferred_not_up_to_128: "a change that hits 128 regions queues all of them",
    deferred_regions_are_read: "regions in every arrangement: all are read, in order, each once",
    deferred_million: "a million regions hit by one munmap: all are read, in order, each once",
    deferred_counts_once: "the counter moves once for each change, deferred or not",
    deferred_and_hit_again: "two changes before the read are reported together or one after the other",
    deferred_and_hit_again_half_way: "regions that were read before the second change are reported again",
    deferred_before_later_changes: "events of a later change are read after the deferred ones",
    deferred_misses_do_not_count: "a change that hits nothing does not count, even if others are deferred",
    deferred_is_readable: "poll and read find a deferred change if no event is queued",
    deferred_without_memory: "a read that cannot copy loses no deferred change",
    deferred_log_is_full: "more changes than the log holds: none is missed, and none reported elsewhere",
    deferred_merged_in_any_order: "changes that are merged, from the bottom or the top: all are reported, without hints",
    deferred_and_interrupted: "reads that a signal ends, and more changes: what was read is reported again",
    deferred_and_registered: "a deferred change is not reported for a region that is registered later",
    deferred_and_registered_again: "nor for one that is registered anew with the same cookie",
    deferred_and_unregistered: "regions that are unregistered before the read, at every position",
    deferred_and_read_in_part: "alternating reads and UNREGISTER",
    deferred_in_fdinfo: "fdinfo shows the number of deferred changes and does not apply them",
    deferred_and_forked: "a forked child gets EPERM, and consumes nothing",
    deferred_and_exit: "the opener exits: a holder reads all deferred events, LAST, then end of file",
    deferred_and_killed: "the same if the opener is killed",
    deferred_and_exec: "the same after exec",
    deferred_before_last: "a thread makes changes, some of which are deferred: LAST follows all that it counts",
    deferred_starves_nobody: "a thread that makes changes all the time does not starve REGISTER or read",
    deferred_read_by_several: "several readers share the deferred events, each event once",
}

/// A change visits up to this many regions.
const AT_ONCE: u64 = 128;

/// Several times as many.
const MANY: u64 = 1000;

fn queued(device: &Device) -> Outcome<u64> {
    fdinfo(&fdinfo_text(device)?, "queued")
}

/// Expects that some changes are deferred, or none.
#[track_caller]
fn is_deferred(crowd: &Crowd, expected: bool) -> Outcome {
    let changes = deferred(&crowd.bench.device)?;
    expect::same("changes that are deferred", changes > 0, expected)
}

/// A crowd that was hit once, so that most of it is deferred.
fn hit_crowd(layout: Layout, count: u64) -> Outcome<Crowd> {
    let crowd = Crowd::new(layout, count)?;
    crowd.hit()?;
    is_deferred(&crowd, true)?;
    Ok(crowd)
}

fn deferred_not_up_to_128() -> Outcome {
    for layout in [
        Layout::Identical,
        Layout::Overlapping,
        Layout::Nested,
        Layout::Disjoint,
    ] {
        let crowd = Crowd::new(layout, AT_ONCE)?;
        for change in 1..=3 {
            crowd.hit()?;
            is_deferred(&crowd, false)?;
            expect::same("queued", queued(&crowd.bench.device)?, AT_ONCE)?;
            crowd.bench.counts(change)?;
            crowd.reads(AT_ONCE as usize + 1, &crowd.events(change))?;
            crowd.bench.is_silent()?;
        }
    }
    Ok(())
}

fn deferred_regions_are_read() -> Outcome {
    for layout in Layout::ALL {
        let crowd = Crowd::new(layout, MANY)?;
        for (change, room) in (1..).zip([1, 7, 48, 128, 129, 2000]) {
            crowd.hit()?;
            is_deferred(&crowd, true)?;
            crowd.bench.counts(change)?;
            crowd.reads(room, &crowd.events(change))?;
            is_deferred(&crowd, false)?;
            crowd.bench.counts(change)?;
            crowd.bench.is_silent()?;
        }
    }
    Ok(())
}

fn deferred_million() -> Outcome {
    let count = possible_in(Duration::from_secs(2))?.clamp(1 << 12, 1 << 20);
    let crowd = Crowd::new(Layout::Interleaved, count)?;
    crowd.populate();
    mem::unmap(&crowd.pages())?;
    is_deferred(&crowd, true)?;
    crowd.bench.counts(1)?;
    crowd.reads(count as usize, &crowd.events(1))?;
    crate::harness::note(format_args!("{count} regions"));
    Ok(())
}

fn deferred_counts_once() -> Outcome {
    let crowd = Crowd::new(Layout::Overlapping, MANY)?;
    for change in 1..=200 {
        crowd.hit()?;
        crowd.bench.counts(change)?;
    }
    let events = read_up_to_last(&crowd.bench.device, 64)?;
    expect::events("the last record", &events[events.len() - 1..], &[last(200)])
}

/// Adjacent pages with `count` regions each; the page is the upper half of the cookie.
fn pages_of(count: u64, pages: u64) -> Outcome<Bench> {
    let bench = Bench::new(pages)?;
    for page in 0..pages {
        for number in 0..count {
            bench.watch((page << 32) | number, &bench.area.page(page))?;
        }
    }
    Ok(bench)
}

/// Expects two hits to be read either together, as whole events, or one after the other.
#[track_caller]
fn reads_two_hits(crowd: &Crowd, counter: u64) -> Outcome {
    let seen = read_up_to_last(&crowd.bench.device, 100)?;
    let cookies = crowd.cookies().into_iter();
    let events = cookies.map(|cookie| whole(cookie, &crowd.region(cookie)));
    let at_once: Vec<_> = events.chain([last(counter)]).collect();
    if seen == at_once {
        return Ok(());
    }
    let mut each = crowd.events(counter);
    each.pop();
    each.extend(crowd.events(counter));
    expect::events("reads after two hits", &seen, &each)
}

fn deferred_and_hit_again() -> Outcome {
    for layout in [Layout::Identical, Layout::Nested, Layout::Interleaved] {
        let crowd = hit_crowd(layout, MANY)?;
        crowd.hit()?;
        crowd.bench.counts(2)?;
        reads_two_hits(&crowd, 2)?;
        crowd.hit()?;
        crowd.reads(100, &crowd.events(3))?;
    }
    Ok(())
}

fn deferred_and_hit_again_half_way() -> Outcome {
    let crowd = Crowd::new(Layout::Overlapping, MANY)?;
    let mut counter = 0;
    for read in [1, 50, 128, 129, 400, MANY as usize] {
        crowd.hit()?;
        let first = crowd.bench.device.read_events(read)?;
        expect::events("reads", &first, &crowd.events(0)[..read])?;
        // The same range twice, so that the second hit may be mistaken for the first.
        crowd.hit()?;
        crowd.hit()?;
        counter += 3;
        let mut times = vec![0; MANY as usize];
        let events = read_up_to_last(&crowd.bench.device, 100)?;
        for event in &events[..events.len() - 1] {
            times[event.user_cookie_counter as usize] += 1;
        }
        let wrong = times.iter().filter(|times| !(1..=3).contains(*times));
        expect::same("regions that were not reported again", wrong.count(), 0)?;
        // The last report for each region is no older than the last change.
        expect::events(
            "the last record",
            &events[events.len() - 1..],
            &[last(counter)],
        )?;
        crowd.bench.is_silent()?;
    }
    Ok(())
}

fn deferred_before_later_changes() -> Outcome {
    let bench = pages_of(300, 3)?;
    let events = |page: u64| {
        let region = bench.area.page(page);
        (0..300).map(move |number| inval((page << 32) | number, &region))
    };
    for room in [1, 50, 4096] {
        let before = bench.counter.get();
        // In reverse order of addresses, and with one page that few regions cover.
        bench.watch(!0, &bench.area.page(1))?;
        for page in [2, 0, 1] {
            bench.hit(page)?;
        }
        bench.counts(before + 3)?;
        let wanted: Vec<_> = events(2)
            .chain(events(0))
            .chain(events(1))
            .chain([inval(!0, &bench.area.page(1)), last(before + 3)])
            .collect();
        expect::events("reads", &read_up_to_last(&bench.device, room)?, &wanted)?;
        bench.device.unregister(!0)?;
    }
    Ok(())
}

fn deferred_misses_do_not_count() -> Outcome {
    let crowd = Crowd::new(Layout::Disjoint, MANY)?;
    let elsewhere = Guarded::new(3)?;
    crowd.bench.watch(MANY, &elsewhere.page(0))?;
    crowd.bench.watch(MANY + 1, &elsewhere.page(2))?;
    crowd.hit()?;
    is_deferred(&crowd, true)?;
    for _ in 0..100 {
        // Between two regions.
        mem::advise(&elsewhere.page(1), libc::MADV_DONTNEED)?;
        // In the same mapping, above all regions.
        let above = crowd.pages().end..crowd.pages().end + PAGE;
        mem::advise(&above, libc::MADV_DONTNEED)?;
    }
    crowd.bench.counts(1)?;
    crowd.reads(64, &crowd.events(1))
}

fn deferred_is_readable() -> Outcome {
    let crowd = hit_crowd(Layout::Overlapping, MANY)?;
    let device = &crowd.bench.device;
    let poll = || device.poll(libc::POLLIN, Duration::ZERO);
    // Remove everything that the change itself has queued.
    let mut gone = vec![];
    for cookie in 0..MANY {
        if queued(device)? == 0 {
            break;
        }
        device.unregister(cookie)?;
        gone.push(cookie);
    }
    expect::same("queued", queued(device)?, 0)?;
    is_deferred(&crowd, true)?;
    expect::same("poll", poll()?, libc::POLLIN)?;
    let mut wanted = crowd.events(1);
    wanted
        .retain(|event| event.kind == EVENT_LAST || event.user_cookie_counter >= gone.len() as u64);
    crowd.reads(16, &wanted)?;
    expect::same("poll", poll()?, 0)?;

    // No region is left that it could concern.
    let crowd = hit_crowd(Layout::Overlapping, MANY)?;
    for cookie in 0..MANY {
        crowd.bench.device.unregister(cookie)?;
    }
    crowd.reads(16, &[last(1)])?;
    is_deferred(&crowd, false)
}

fn deferred_without_memory() -> Outcome {
    let crowd = hit_crowd(Layout::Nested, MANY)?;
    let hole = Guarded::new(2)?;
    mem::unmap(&hole.page(1))?;
    let device = &crowd.bench.device;
    for _ in 0..3 {
        let result = device.read_raw(hole.page(1).start as *mut _, 4096);
        expect::error("read into nothing", result, libc::EFAULT)?;
    }
    // Room for two records and part of a third.
    let at = hole.page(1).start - 80;
    let bytes = device.read_raw(at as *mut _, 4096)?;
    expect::same("bytes read", bytes, 64)?;
    let event = |number: u64| {
        // SAFETY: The records were written there.
        unsafe { ((at + 32 * number) as *const Event).read_unaligned() }
    };
    let wanted = crowd.events(1);
    expect::events("the first two", &[event(0), event(1)], &wanted[..2])?;
    crowd.reads(100, &wanted[2..])
}

fn deferred_log_is_full() -> Outcome {
    /// Pages with many regions; only every other one is changed.
    const PAGES: u64 = 200;
    const EACH: u64 = AT_ONCE + 10;
    /// Regions on the pages in between.
    const BETWEEN: u64 = 1 << 40;
    let bench = Bench::new(2 * PAGES + 3)?;
    let page = |number: u64| 2 * number + 2;
    for number in 0..PAGES {
        for region in 0..EACH {
            let place = bench.area.page(page(number));
            bench.watch(number * EACH + region, &place)?;
        }
        let place = bench.area.page(page(number) + 1);
        bench.watch(BETWEEN + number, &place)?;
    }
    // All changes hit this region. No hint can distinguish two of them.
    const LONG: u64 = 4 * BETWEEN;
    bench.watch(LONG, &bench.area.span(1..2 * PAGES + 2))?;
    let is_one = |hint: &Event| {
        let mut pages = (0..PAGES).map(|number| bench.area.page(page(number)));
        pages.any(|page| *hint == inval(LONG, &page))
    };
    let outside = [bench.area.page(0), bench.area.page(2 * PAGES + 2)];
    for (cookie, place) in (2 * BETWEEN..).zip(&outside) {
        bench.watch(cookie, place)?;
    }

    for (rounds, registers) in [(1, false), (1, true), (5, false)] {
        let before = bench.counter.get();
        let mut most = 0;
        for _ in 0..rounds {
            // From the top, so that the order of the changes is not that of the addresses.
            for number in (0..PAGES).rev() {
                bench.hit(page(number))?;
                most = most.max(deferred(&bench.device)?);
            }
        }
        let counter = before + rounds * PAGES;
        bench.counts(counter)?;
        expect::at_least("changes that were merged", merged(&bench.device)?, 1)?;
        expect::that(
            "changes in the log at once",
            most < PAGES,
            format_args!("less than {PAGES}"),
            most,
        )?;

        if registers {
            // It is not part of what was hit.
            bench.watch(3 * BETWEEN, &bench.area.all())?;
        }
        let events = read_up_to_last(&bench.device, 100)?;
        if registers {
            bench.device.unregister(3 * BETWEEN)?;
        }
        let mut reported = vec![0; (PAGES * EACH) as usize];
        let mut vain = vec![0; PAGES as usize];
        for event in &events[..events.len() - 1] {
            match event.user_cookie_counter {
                cookie @ ..BETWEEN => reported[cookie as usize] += 1,
                cookie if cookie < 2 * BETWEEN => vain[(cookie - BETWEEN) as usize] += 1,
                LONG => {
                    let right = event.flags == 0 || is_one(event);
                    expect::that(
                        "hint",
                        right,
                        "a page that was hit, or none",
                        format_args!("{event:?}"),
                    )?;
                }
                cookie => return Err(Failure::new("cookie", "one that was hit", cookie)),
            }
        }
        // No more often than they were hit.
        let wrong = reported
            .iter()
            .filter(|times| !(1..=rounds).contains(*times));
        expect::same(
            "regions that were hit and not reported once",
            wrong.count(),
            0,
        )?;
        let wrong = vain.iter().filter(|times| **times > rounds);
        expect::same(
            "regions in between that were reported too often",
            wrong.count(),
            0,
        )?;
        // The oldest change is never merged.
        let mut events_of_pages = events
            .iter()
            .filter(|event| event.user_cookie_counter < BETWEEN);
        let first = events_of_pages
            .next()
            .map_or(0, |event| event.user_cookie_counter / EACH);
        expect::same("page of the first event", first, PAGES - 1)?;
        expect::events(
            "the last record",
            &events[events.len() - 1..],
            &[last(counter)],
        )?;
        bench.is_silent()?;
    }
    Ok(())
}

fn deferred_merged_in_any_order() -> Outcome {
    /// Several times as many as the log has room for.
    const CHANGES: u64 = 80;
    /// The region on the pages of some changes that are merged, and the crowd on another page.
    const LONG: u64 = CHANGES;
    const CROWD: u64 = CHANGES + 1;
    let case = |features, pages: Vec<u64>| -> Outcome {
        let bench = Bench::over(open_with(features)?, Guarded::new(CHANGES + 1)?)?;
        for cookie in CROWD..=CROWD + AT_ONCE {
            bench.watch(cookie, &bench.area.page(CHANGES))?;
        }
        for page in 0..CHANGES {
            bench.watch(page, &bench.area.page(page))?;
        }
        let long = bench.area.span(CHANGES / 2..CHANGES / 2 + 9);
        bench.watch(LONG, &long)?;
        bench.hit(CHANGES)?;
        for page in &pages {
            bench.hit(*page)?;
        }
        bench.counts(CHANGES + 1)?;
        let merges = merged(&bench.device)?;
        expect::at_least("changes that were merged", merges, CHANGES / 2)?;

        // These are the newest ones, except for the last one.
        let are_merged = CHANGES - 2 - merges..CHANGES - 1;
        let with_hulls = features.contains(Features::HULL);
        let event = |cookie, region, has_hint| match has_hint || with_hulls {
            true => inval(cookie, &region),
            false => whole(cookie, &region),
        };
        let mut wanted: Vec<_> = (0..)
            .zip(pages)
            .map(|(number, page)| event(page, bench.area.page(page), !are_merged.contains(&number)))
            .collect();
        wanted.push(event(LONG, long, false));
        for cookie in CROWD..=CROWD + AT_ONCE {
            wanted.push(inval(cookie, &bench.area.page(CHANGES)));
        }
        wanted.sort_unstable_by_key(|event| event.user_cookie_counter);
        let mut seen = bench.drain()?;
        seen.pop();
        seen.sort_unstable_by_key(|event| event.user_cookie_counter);
        for event in &mut seen {
            // Without causes.
            event.flags &= 0xffff;
        }
        expect::events("reads", &seen, &wanted)
    };
    for features in [Features::NONE, Features::CAUSE, Features::HULL] {
        case(features, (0..CHANGES).collect())?;
        case(features, (0..CHANGES).rev().collect())?;
    }
    Ok(())
}

fn deferred_and_interrupted() -> Outcome {
    /// So many that signals arrive while a read looks for them.
    const COUNT: u64 = 1 << 12;
    const INTERVAL: Duration = Duration::from_micros(100);
    let crowd = Crowd::new(Layout::Overlapping, COUNT)?;
    signals::catch_signal(libc::SIGALRM, 0)?;
    let mut shorter = 0;
    for _ in 0..crate::harness::rounds(3) {
        // Whether a region was not reported since the last change.
        let mut due = vec![true; COUNT as usize];
        let note = |due: &mut Vec<bool>, events: &[Event]| {
            for event in events.iter().filter(|event| event.kind == EVENT_INVAL) {
                due[event.user_cookie_counter as usize] = false;
            }
        };
        for _ in 0..3 {
            crowd.hit()?;
            due.fill(true);
            signals::set_timer(INTERVAL)?;
            let result = crowd.bench.device.read_events(COUNT as usize + 1);
            signals::set_timer(Duration::ZERO)?;
            match result {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                result => {
                    let events = result?;
                    shorter += u64::from(events.len() < COUNT as usize);
                    note(&mut due, &events);
                }
            }
        }
        crowd.hit()?;
        due.fill(true);
        note(&mut due, &read_up_to_last(&crowd.bench.device, 1000)?);
        let missed = due.iter().filter(|due| **due).count();
        expect::same("regions not reported since the last change", missed, 0)?;
    }
    expect::at_least("reads that a signal ended", shorter, 1)
}

fn deferred_and_registered() -> Outcome {
    for layout in Layout::ALL {
        let crowd = hit_crowd(layout, MANY)?;
        let pages = crowd.pages();
        // Before all others, behind them, and among them.
        let regions = [
            0..u64::MAX,
            pages.clone(),
            pages.start + 1..pages.start + 2,
            pages.end - 1..pages.end,
        ];
        for (cookie, region) in (MANY..).zip(&regions) {
            crowd.bench.watch(cookie, region)?;
        }
        crowd.reads(77, &crowd.events(1))?;
        for cookie in (MANY..).take(regions.len()) {
            crowd.bench.device.unregister(cookie)?;
        }
    }
    Ok(())
}

fn deferred_and_registered_again() -> Outcome {
    let crowd = hit_crowd(Layout::Overlapping, MANY)?;
    let mut wanted = crowd.events(1);
    for cookie in [0, 127, 128, 129, 500, MANY - 1] {
        crowd.bench.device.unregister(cookie)?;
        crowd.bench.watch(cookie, &crowd.region(cookie))?;
        wanted.retain(|event| event.kind == EVENT_LAST || event.user_cookie_counter != cookie);
    }
    crowd.reads(77, &wanted)?;
    // They are hit like any other from now on.
    crowd.hit()?;
    crowd.reads(77, &crowd.events(2))
}

fn deferred_and_unregistered() -> Outcome {
    /// Where a change may have stopped; a step may visit something less than a region.
    const NEAR: std::ops::Range<usize> = 1..140;
    const COUNT: u64 = 144;
    let case = |layout, unregistered: &dyn Fn(usize) -> bool| -> Outcome {
        // A change hits only half of the interleaved ones.
        let times = 1 + u64::from(layout == Layout::Interleaved);
        let crowd = hit_crowd(layout, times * COUNT)?;
        let mut wanted = vec![];
        for (index, cookie) in crowd.cookies().into_iter().enumerate() {
            if unregistered(index) {
                crowd.bench.device.unregister(cookie)?;
            } else {
                wanted.push(crowd.event(cookie));
            }
        }
        wanted.push(last(1));
        crowd.reads(64, &wanted)?;
        crowd.bench.is_silent()
    };
    let layouts = [Layout::Identical, Layout::Overlapping, Layout::Interleaved];
    // One layout for each place: on the debug kernel, every case takes long.
    for (number, layout) in layouts.into_iter().enumerate() {
        for one in NEAR.skip(number).step_by(layouts.len()) {
            case(layout, &|index| index == one)?;
        }
        for from in NEAR.step_by(20) {
            case(layout, &|index| index >= from)?;
            case(layout, &|index| index < from)?;
            case(layout, &|index| index % 2 == from % 2)?;
        }
    }
    Ok(())
}

fn deferred_and_read_in_part() -> Outcome {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..20 {
        let crowd = hit_crowd(Layout::Identical, MANY)?;
        let mut left: std::collections::VecDeque<u64> = crowd.cookies().into();
        while !left.is_empty() {
            for _ in 0..random.usize(0..60).min(left.len()) {
                let cookie = left.remove(random.usize(0..left.len()));
                let cookie = cookie.expect("there is one");
                crowd.bench.device.unregister(cookie)?;
            }
            let room = random.usize(1..100);
            let mut wanted: Vec<_> = left
                .drain(..room.min(left.len()))
                .map(|cookie| crowd.event(cookie))
                .collect();
            if wanted.len() < room {
                wanted.push(last(1));
            }
            let seen = crowd.bench.device.read_events(room)?;
            expect::events("read", &seen, &wanted)?;
        }
        read_if_any(&crowd.bench.device, 1)?;
        crowd.bench.is_silent()?;
    }
    Ok(())
}

fn deferred_in_fdinfo() -> Outcome {
    let crowd = hit_crowd(Layout::Nested, MANY)?;
    let device = &crowd.bench.device;
    let before = fdinfo_text(device)?;
    for _ in 0..50 {
        expect::same("fdinfo", fdinfo_text(device)?, before.clone())?;
    }
    expect::same("regions", fdinfo(&before, "regions")?, MANY)?;
    let most = queued(device)?;
    expect::that("queued", most <= MANY / 2, "a part of all", most)?;
    expect::same("merged", merged(device)?, 0)?;
    crowd.reads(512, &crowd.events(1))
}

fn deferred_and_forked() -> Outcome {
    let crowd = hit_crowd(Layout::Disjoint, MANY)?;
    Child::fork(|_| {
        for room in [1, 100] {
            let result = crowd.bench.device.read_events(room);
            expect::error("read in a child", result, libc::EPERM)?;
        }
        is_deferred(&crowd, true)
    })?
    .join()?;
    // The fork hit all of them once more.
    reads_two_hits(&crowd, crowd.bench.counter.get())
}

/// Expects the file of an address space that is gone to report everything it had deferred.
fn reads_to_the_end(device: &Device, wanted: &[Event]) -> Outcome {
    const HUNG_UP: i16 = libc::POLLIN | libc::POLLHUP;
    let poll = || device.poll(libc::POLLIN, Duration::ZERO);
    expect::same("poll", poll()?, HUNG_UP)?;
    expect::events("reads", &read_up_to_last(device, 100)?, wanted)?;
    expect::events("read at the end", &device.read_events(4)?, &[])?;
    expect::same("poll at the end", poll()?, HUNG_UP)
}

/// What a process with deferred changes leaves behind when it exits or is killed.
fn after_its_end(end: impl Fn(&Child) -> Outcome) -> Outcome {
    open()?;
    for layout in Layout::ALL {
        let child = Child::fork(|line| {
            let crowd = hit_crowd(layout, MANY)?;
            line.pass(&crowd.bench.device)?;
            line.tell_number(crowd.pages().start)?;
            Ok(line.hear()?)
        })?;
        let device = Device::from(child.receive()?);
        let start = child.hear_number()?;
        end(&child)?;
        child.ended_by()?;
        // The same regions in this process, where nothing was hit.
        let crowd = Crowd::new(layout, MANY)?;
        let moved = |address: u64| {
            let offset = start.wrapping_sub(crowd.pages().start);
            address.wrapping_add(offset)
        };
        let mut wanted = crowd.events(1);
        for event in wanted.iter_mut().filter(|event| event.kind == EVENT_INVAL) {
            event.hint_start = moved(event.hint_start);
            event.hint_end = moved(event.hint_end);
        }
        reads_to_the_end(&device, &wanted)?;
    }
    Ok(())
}

fn deferred_and_exit() -> Outcome {
    after_its_end(|child| child.tell())
}

fn deferred_and_killed() -> Outcome {
    after_its_end(|child| Ok(child.signal(libc::SIGKILL)?))
}

fn deferred_and_exec() -> Outcome {
    open()?;
    let child = Child::fork(|line| {
        let crowd = hit_crowd(Layout::Identical, MANY)?;
        line.pass(&crowd.bench.device)?;
        // SAFETY: The call takes no pointer.
        check(unsafe { libc::fcntl(crowd.bench.device.as_raw_fd(), libc::F_SETFD, 0) })?;
        let error = Command::new(env::current_exe()?)
            .arg("--version")
            .stdout(Stdio::null())
            .exec();
        Err(error.into())
    })?;
    let device = Device::from(child.receive()?);
    child.join()?;
    let events = read_up_to_last(&device, 100)?;
    let cookies: Vec<u64> = events
        .iter()
        .map(|event| event.user_cookie_counter)
        .collect();
    let wanted: Vec<u64> = (0..MANY).chain([1]).collect();
    expect::that(
        "cookies",
        cookies == wanted,
        "all, in order",
        format_args!("{cookies:?}"),
    )?;
    expect::events("read at the end", &device.read_events(4)?, &[])
}

fn deferred_before_last() -> Outcome {
    const CHANGES: u64 = 500;
    /// The cookies of a crowd on another page.
    const CROWD: u64 = 1 << 32;
    let bench = Bench::new(CHANGES + 1)?;
    for page in 0..CHANGES {
        bench.watch(page, &bench.area.page(page))?;
    }
    for cookie in CROWD..CROWD + 3 * AT_ONCE {
        bench.watch(cookie, &bench.area.page(CHANGES))?;
    }
    // The counter after the change of each page, which happens once.
    let counted: Vec<_> = (0..CHANGES).map(|_| AtomicU64::new(u64::MAX)).collect();
    let mut seen = vec![false; CHANGES as usize];
    thread::scope(|scope| {
        let changer = scope.spawn(|| {
            for (page, counted) in (0..).zip(&counted) {
                // Until this was read, the changes of other pages are deferred.
                if page % 8 == 0 {
                    bench.hit(CHANGES)?;
                }
                bench.hit(page)?;
                counted.store(bench.counter.get(), Ordering::Release);
            }
            Outcome::Ok(())
        });
        let mut read_all = || -> Outcome {
            let mut is_done = false;
            while !is_done {
                is_done = changer.is_finished();
                for event in read_if_any(&bench.device, 4096)? {
                    let number = event.user_cookie_counter;
                    if event.kind == EVENT_LAST {
                        let missing = counted
                            .iter()
                            .zip(&seen)
                            .filter(|(counted, seen)| {
                                counted.load(Ordering::Acquire) <= number && !**seen
                            })
                            .count();
                        expect::same("changes that LAST counts, to be read after it", missing, 0)?;
                    } else if number < CHANGES {
                        seen[number as usize] = true;
                    }
                }
            }
            Ok(())
        };
        let outcome = read_all();
        changer.join().expect("the thread does not panic")?;
        outcome
    })?;
    bench.drain().map(drop)
}

fn deferred_starves_nobody() -> Outcome {
    /// No call may take longer than this.
    const LONG: Duration = Duration::from_secs(5);
    let crowd = Crowd::new(Layout::Overlapping, 2 * MANY)?;
    let device = &crowd.bench.device;
    let done = AtomicBool::new(false);
    let region = crowd.pages();
    thread::scope(|scope| {
        let changers = [(); 2].map(|()| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    crowd.hit()?;
                }
                Outcome::Ok(())
            })
        });
        let work = || -> Outcome {
            let timed = |what: &str, call: &dyn Fn() -> Outcome| -> Outcome {
                let began = Instant::now();
                call()?;
                let took = began.elapsed();
                expect::that(
                    what,
                    took < LONG,
                    format_args!("less than {LONG:?}"),
                    format_args!("{took:?}"),
                )
            };
            for round in 0..crate::harness::rounds(50) {
                let room = [1, 64, 8192][round as usize % 3];
                timed("read", &|| {
                    read_if_any(device, room)?;
                    Ok(())
                })?;
                let cookie = u64::MAX - round;
                timed("REGISTER_REGION", &|| crowd.bench.watch(cookie, &region))?;
                timed("UNREGISTER_REGION", &|| Ok(device.unregister(cookie)?))?;
                timed("fdinfo", &|| deferred(device).map(drop))?;
            }
            Ok(())
        };
        let outcome = work();
        done.store(true, Ordering::Relaxed);
        for changer in changers {
            changer.join().expect("the thread does not panic")?;
        }
        outcome
    })?;
    // No change is in flight any more, so reading comes to an end.
    crowd.bench.drain()?;
    let counter = crowd.bench.counter.get();
    crowd.hit()?;
    crowd.reads(4096, &crowd.events(counter + 1))
}

fn deferred_read_by_several() -> Outcome {
    const THREADS: usize = 4;
    for _ in 0..10 {
        let crowd = hit_crowd(Layout::Identical, 2 * MANY)?;
        let read_all = || -> Outcome<Vec<Event>> {
            let mut seen = vec![];
            loop {
                match read_if_any(&crowd.bench.device, 7)? {
                    events if events.is_empty() => return Ok(seen),
                    events => seen.extend(events),
                }
            }
        };
        let mut seen = thread::scope(|scope| -> Outcome<Vec<Event>> {
            let threads = [(); THREADS].map(|()| scope.spawn(read_all));
            let mut seen = vec![];
            for thread in threads {
                seen.extend(thread.join().expect("the thread does not panic")?);
            }
            Ok(seen)
        })?;
        seen.sort_unstable_by_key(|event| (event.kind, event.user_cookie_counter));
        expect::events("what all readers got", &seen, &crowd.events(1))?;
    }
    Ok(())
}
