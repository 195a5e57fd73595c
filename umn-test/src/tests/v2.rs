// SPDX-License-Identifier: GPL-2.0

//! The test that came with the V2 patch, and how existing programs use the device.

use std::{
    collections::{
        HashMap,
        HashSet, //
    },
    os::fd::AsRawFd,
    ptr,
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
    thread, //
};

use super::prelude::*;
use crate::harness;

table! {
    v2_self_test: "the self-test that came with the V2 patch",
    client_reads_one_event_at_a_time: "a client that reads one event at a time, blocking",
    client_reads_128_events_at_a_time: "a client that reads 128 events at a time",
    client_passes_inclusive_ends: "a client that passes the last address as end",
    client_reuses_cookies_at_once: "a client that registers a cookie again right after it is free",
    client_unregisters_in_a_batch: "a client that unregisters while it processes a batch of events",
    client_has_heap_pointers_as_cookies: "a client whose cookies are pointers to its own records",
    client_counts_its_cookies_up: "a client that never uses a cookie twice",
    client_finds_by_hint: "a client that drops what overlaps the hint range",
    client_spins_until_last: "a client that reads until LAST equals the mapped counter",
    client_waits_until_last: "the same with reads that block and return one event each",
    client_checks_the_counter_first: "a client that reads only when the counter has moved",
    client_never_negotiates: "a client that opens, registers and reads, and nothing else",
    client_splices: "splice from the device is refused, and consumes nothing",
}

/// Follows the published description of V2 literally, without any of our helpers.
fn v2_self_test() -> Outcome {
    let device = Device::open().or_skip("no /dev/ummunotify to open")?;
    expect::success("EXCHANGE_FEATURES", device.exchange_features(0xa5a5_5a5a))?;
    let counter = device.map_counter()?;
    expect::same("the counter at first", counter.get(), 0)?;

    let area = Guarded::new(3)?;
    device.register(area.all().start, area.all().end, 123)?;
    mem::unmap(&area.page(1))?;
    expect::same("the counter after munmap", counter.get(), 1)?;
    let first = device.read_events(1)?;
    expect::events("the first read", &first, &[inval(123, &area.page(1))])?;
    expect::events("the second read", &device.read_events(1)?, &[last(1)])?;

    device.unregister(123)?;
    mem::unmap(&area.page(0))?;
    mem::unmap(&area.page(2))?;
    expect::same("the counter at last", counter.get(), 1)
}

fn client_reads_one_event_at_a_time() -> Outcome {
    let bench = Bench::blocking(5)?;
    bench.watch_pages()?;
    for round in 1..=3 {
        for page in 0..5 {
            bench.hit(page)?;
        }
        let counter = round * 5;
        for page in 0..5 {
            let event = bench.device.read_events(1)?;
            expect::events("a read", &event, &[inval(page + 1, &bench.area.page(page))])?;
        }
        expect::events("the sixth", &bench.device.read_events(1)?, &[last(counter)])?;
    }
    Ok(())
}

fn client_reads_128_events_at_a_time() -> Outcome {
    const BATCH: usize = 128;
    const PAGES: u64 = 300;
    let bench = Bench::new(PAGES)?;
    bench.watch_pages()?;
    mem::unmap(&bench.area.all())?;
    bench.counts(1)?;
    let mut page = 0;
    for expected in [BATCH, BATCH, PAGES as usize - 2 * BATCH + 1] {
        let events = bench.device.read_events(BATCH)?;
        expect::same("records in a batch", events.len(), expected)?;
        for event in events {
            let wanted = match page {
                PAGES => last(1),
                _ => inval(page + 1, &bench.area.page(page)),
            };
            expect::events("a record of a batch", &[event], &[wanted])?;
            page += 1;
        }
    }
    bench.is_silent()
}

fn client_passes_inclusive_ends() -> Outcome {
    let bench = Bench::new(3)?;
    let page = bench.area.page(1);
    bench.watch(1, &(page.start..page.end - 1))?;
    bench.watch(2, &(page.start..page.start))?;
    mem::unmap(&bench.area.page(0))?;
    mem::unmap(&bench.area.page(2))?;
    bench.counts(0)?;
    mem::unmap(&page)?;
    bench.counts(1)?;
    let events = bench.device.read_events(3)?;
    let cookies: HashSet<_> = events[..2].iter().map(|e| e.user_cookie_counter).collect();
    expect::same("cookies of both regions", cookies, HashSet::from([1, 2]))?;
    expect::events("after them", &events[2..], &[last(1)])
}

fn client_reuses_cookies_at_once() -> Outcome {
    let bench = Bench::new(2)?;
    for round in 0..100 {
        let page = bench.area.page(round % 2);
        bench.watch(7, &page)?;
        bench.hit(round % 2)?;
        bench.counts(round + 1)?;
        if round % 3 == 0 {
            bench.reads(&[inval(7, &page), last(round + 1)])?;
        }
        bench.device.unregister(7)?;
    }
    bench.is_silent()
}

fn client_unregisters_in_a_batch() -> Outcome {
    let bench = Bench::new(6)?;
    bench.watch_pages()?;
    mem::advise(&bench.area.all(), libc::MADV_DONTNEED)?;
    let page = |index: u64| inval(index + 1, &bench.area.page(index));
    expect::events(
        "the first batch",
        &bench.device.read_events(3)?,
        &[page(0), page(1), page(2)],
    )?;
    // One whose event was read, and two whose events were not.
    for cookie in [2, 4, 6] {
        bench.device.unregister(cookie)?;
    }
    bench.reads(&[page(4), last(1)])?;
    // The first stays armed, the second is gone.
    mem::write_byte(bench.area.page(1).start, 1);
    mem::advise(&bench.area.page(1), libc::MADV_DONTNEED)?;
    bench.counts(1)?;
    bench.hit(0)?;
    bench.reads(&[page(0), last(2)])
}

fn client_has_heap_pointers_as_cookies() -> Outcome {
    struct Registration {
        page: u64,
        valid: bool,
    }
    let bench = Bench::new(8)?;
    let mut cache: HashMap<u64, Box<Registration>> = HashMap::new();
    for page in 0..8 {
        let entry = Box::new(Registration { page, valid: true });
        let cookie = (&raw const *entry) as u64;
        bench.watch(cookie, &bench.area.page(page))?;
        cache.insert(cookie, entry);
    }
    mem::advise(&bench.area.span(2..5), libc::MADV_DONTNEED)?;
    for event in bench.device.read_events(16)? {
        if event.kind == EVENT_INVAL {
            let entry = cache.get_mut(&event.user_cookie_counter);
            entry.ok_or_else(lost_cookie)?.valid = false;
        }
    }
    for entry in cache.values() {
        let hit = (2..5).contains(&entry.page);
        expect::same("validity of a cache entry", entry.valid, !hit)?;
    }
    Ok(())
}

fn lost_cookie() -> expect::Failure {
    expect::Failure::new("an event's cookie", "one that was registered", "another")
}

fn client_counts_its_cookies_up() -> Outcome {
    let bench = Bench::new(1)?;
    let page = bench.area.all();
    // A cookie has 64 bits, even if a client's counter has fewer at first.
    let first = u64::from(u32::MAX) - 20;
    bench.watch(first, &page)?;
    for (round, cookie) in (1..=40).zip(first..) {
        bench.hit(0)?;
        // A queued event is discarded with its region.
        if round % 2 == 0 {
            bench.reads(&[inval(cookie, &page), last(round)])?;
        }
        bench.device.unregister(cookie)?;
        bench.watch(cookie + 1, &page)?;
        let again = bench.device.unregister(cookie);
        expect::error("UNREGISTER_REGION of an old cookie", again, libc::EINVAL)?;
    }
    bench.is_silent()
}

fn client_finds_by_hint() -> Outcome {
    let bench = Bench::new(8)?;
    // One region for everything; the client finds its entries by address.
    bench.watch(1, &bench.area.all())?;
    let mut cached: Vec<u64> = (0..8).map(|page| bench.area.page(page).start).collect();
    mem::unmap(&bench.area.span(3..5))?;
    for event in bench.device.read_events(2)? {
        cached.retain(|start| *start + PAGE <= event.hint_start || event.hint_end <= *start);
    }
    let expected: Vec<u64> = [0, 1, 2, 5, 6, 7]
        .iter()
        .map(|page| bench.area.page(*page).start)
        .collect();
    expect::same("what is still cached", cached, expected)
}

fn client_spins_until_last() -> Outcome {
    let bench = Bench::new(4)?;
    bench.watch_pages()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| -> Outcome {
            let mut reported = 0;
            // V2 could leave the client waiting here for ever.
            while reported != bench.counter.get() || !done.load(Ordering::Acquire) {
                match read_if_any(&bench.device, 1)?.first() {
                    Some(event) if event.kind == EVENT_LAST => reported = event.user_cookie_counter,
                    Some(_) => {}
                    None => thread::yield_now(),
                }
            }
            Ok(())
        });
        let changed = (0..harness::rounds(300)).try_for_each(|round| -> Outcome {
            let page = round % 4;
            bench.hit(page)?;
            // The only queued event may be discarded this way.
            bench.device.unregister(page + 1)?;
            bench.watch(page + 1, &bench.area.page(page))
        });
        done.store(true, Ordering::Release);
        reader.join().expect("the reader does not panic")?;
        changed
    })
}

fn client_waits_until_last() -> Outcome {
    let bench = Bench::blocking(2)?;
    bench.watch_pages()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| -> Outcome {
            while !done.load(Ordering::Acquire) {
                bench.hit(1)?;
                thread::yield_now();
            }
            Ok(())
        });
        let read = (0..harness::rounds(100)).try_for_each(|_| -> Outcome {
            bench.hit(0)?;
            bench.device.unregister(1)?;
            bench.watch(1, &bench.area.page(0))?;
            // There is something to read until the counter was reported.
            let wanted = bench.counter.get();
            loop {
                let event = bench.device.read_events(1)?[0];
                if event.kind == EVENT_LAST && event.user_cookie_counter >= wanted {
                    return Ok(());
                }
            }
        });
        done.store(true, Ordering::Release);
        other.join().expect("the thread does not panic")?;
        read
    })
}

fn client_checks_the_counter_first() -> Outcome {
    let bench = Bench::new(4)?;
    bench.watch_pages()?;
    let (mut seen, mut reads) = (bench.counter.get(), 0);
    for look_up in 0..1000u64 {
        if look_up % 100 == 50 {
            bench.hit(look_up / 100 % 4)?;
        }
        let now = bench.counter.get();
        if now == seen {
            continue;
        }
        reads += 1;
        let events = bench.device.read_events(128)?;
        expect::same("records in a read", events.len(), 2)?;
        expect::events("the last of them", &events[1..], &[last(now)])?;
        seen = now;
    }
    expect::same("reads that were needed", reads, 10)
}

fn client_never_negotiates() -> Outcome {
    let device = open_blocking()?;
    let area = Guarded::new(1)?;
    device.register_with(Register {
        start: area.all().start,
        end: area.all().end,
        user_cookie: 1,
        flags: 0xdead_beef,
        reserved: 0x5555_aaaa,
    })?;
    mem::unmap(&area.all())?;
    let events = device.read_events(2)?;
    expect::events("the read", &events, &[inval(1, &area.all()), last(1)])?;
    drop(device);
    open().map(drop)
}

fn client_splices() -> Outcome {
    let bench = Bench::one_page()?;
    bench.hit(0)?;
    let (from, into) = mem::pipe()?;
    // SAFETY: There are no offsets.
    let spliced = check(unsafe {
        libc::splice(
            bench.device.as_raw_fd(),
            ptr::null_mut(),
            into.as_raw_fd(),
            ptr::null_mut(),
            64,
            0,
        )
    });
    expect::error("splice", spliced, libc::EINVAL)?;
    drop(from);
    bench.reads(&[inval(1, &bench.area.all()), last(1)])
}
