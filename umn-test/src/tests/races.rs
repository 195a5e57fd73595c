// SPDX-License-Identifier: GPL-2.0

//! Several threads: nothing stale, nothing lost, nothing twice.

use std::{
    collections::HashSet,
    io,
    ops::Range,
    sync::atomic::{
        AtomicBool,
        AtomicU64,
        Ordering, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    }, //
};

use super::prelude::*;

table! {
    stale_check_after_munmap: "munmap has moved the counter on return, whatever other threads do",
    stale_event_after_munmap: "after munmap the event can be read, whatever other threads do",
    threads_count_exactly: "invalidations by four threads are all counted",
    threads_read_each_event_once: "four readers share the events; none is lost or read twice",
    threads_last_ends_a_read: "no record follows LAST in a read, whatever other threads do",
    threads_hammer: "registering, unregistering, reading and changing mappings at the same time",
    threads_open_and_close: "opening and closing while other threads change mappings",
    threads_do_not_wait_for_more: "a reader that has something to return does not sleep while others take the rest",
    threads_two_files: "two files, each notified of everything",
}

/// Runs `work` while other threads run each of `others` repeatedly.
fn beside(others: &[&(dyn Fn() -> Outcome + Sync)], work: impl FnOnce() -> Outcome) -> Outcome {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (done, others) = (&done, others.iter());
        let threads: Vec<_> = others
            .map(|other| {
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        other()?;
                    }
                    Ok(())
                })
            })
            .collect();
        let outcome = work();
        done.store(true, Ordering::Relaxed);
        let others = threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("the thread does not panic"));
        outcome.and(others)
    })
}

/// Registers and unregisters a region with this cookie that nothing hits.
fn busy(device: &Device, cookie: u64, area: &Guarded) -> Outcome {
    device.register(area.all().start, area.all().end, cookie)?;
    Ok(device.unregister(cookie)?)
}

/// Duration of the tests with several threads.
const WHILE: Duration = Duration::from_millis(800);

/// Maps a page of memory where one was unmapped.
fn renewed(bench: &Bench) -> Outcome<Range<u64>> {
    let page = bench.area.all();
    mem::map_over(&page)?;
    mem::write_byte(page.start, 1);
    Ok(page)
}

fn stale_check_after_munmap() -> Outcome {
    let bench = Bench::new(1)?;
    bench.watch_pages()?;
    let quiet = Guarded::new(1)?;
    let other_file = open()?;
    beside(
        &[&|| busy(&bench.device, 1000, &quiet), &|| {
            busy(&other_file, 1, &quiet)
        }],
        || {
            let end = Instant::now() + WHILE;
            while Instant::now() < end {
                let page = renewed(&bench)?;
                let before = bench.counter.get();
                mem::unmap(&page)?;
                let after = bench.counter.get();
                expect::at_least("the counter on return", after, before + 1)?;
            }
            Ok(())
        },
    )
}

fn stale_event_after_munmap() -> Outcome {
    let bench = Bench::new(1)?;
    let quiet = Guarded::new(1)?;
    beside(&[&|| busy(&bench.device, 1000, &quiet)], || {
        let end = Instant::now() + WHILE;
        let mut cookie = 1;
        while Instant::now() < end {
            let page = renewed(&bench)?;
            bench.watch(cookie, &page)?;
            mem::unmap(&page)?;
            let events = expect::success("read on return", bench.device.read_events(4))?;
            let found = events.iter().any(|e| e.user_cookie_counter == cookie);
            expect::that("the event on return", found, "the region's", "none")?;
            bench.device.unregister(cookie)?;
            cookie = cookie % 500 + 1;
        }
        Ok(())
    })
}

/// The number of threads in the following tests.
const THREADS: u64 = 4;

fn threads_count_exactly() -> Outcome {
    const ROUNDS: u64 = 200;
    let bench = Bench::new(2 * THREADS)?;
    for thread in 0..THREADS {
        bench.watch(thread, &bench.area.page(2 * thread))?;
    }
    thread::scope(|scope| {
        let bench = &bench;
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || (0..ROUNDS).try_for_each(|_| bench.hit(2 * thread))))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("the thread does not panic"))
    })?;
    // Nobody read or registered in between, so each counts once.
    bench.counts(THREADS * ROUNDS)?;
    expect::same("records", bench.drain()?.len() as u64, THREADS + 1)
}

fn threads_read_each_event_once() -> Outcome {
    const REGIONS: u64 = 2000;
    let bench = Bench::new(1)?;
    for cookie in 0..REGIONS {
        bench.watch(cookie, &bench.area.all())?;
    }
    mem::unmap(&bench.area.all())?;
    // Everything is queued before the first read.
    let read_all = || -> io::Result<Vec<Event>> {
        let mut seen = vec![];
        loop {
            let events = read_if_any(&bench.device, 7)?;
            if events.is_empty() {
                return Ok(seen);
            }
            seen.extend(events);
        }
    };
    let seen = thread::scope(|scope| -> Outcome<Vec<Event>> {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(read_all)).collect();
        let mut seen = vec![];
        for thread in threads {
            seen.extend(thread.join().expect("the thread does not panic")?);
        }
        Ok(seen)
    })?;
    let cookies = || seen.iter().filter(|e| e.kind == EVENT_INVAL);
    expect::same("events", cookies().count() as u64, REGIONS)?;
    let unique: HashSet<u64> = cookies().map(|e| e.user_cookie_counter).collect();
    expect::same("different cookies", unique.len() as u64, REGIONS)?;
    let lasts: Vec<_> = seen.iter().filter(|e| e.kind == EVENT_LAST).collect();
    expect::same("LAST records", lasts.len(), 1)
}

fn threads_last_ends_a_read() -> Outcome {
    const PAGES: u64 = 128;
    let bench = Bench::new(PAGES)?;
    bench.watch_pages()?;
    let turn = AtomicU64::new(0);
    let change = || Ok(bench.hit(turn.fetch_add(1, Ordering::Relaxed) % PAGES)?);
    beside(&[&change, &change], || {
        let end = Instant::now() + WHILE;
        while Instant::now() < end {
            // Long reads, and short ones that leave something for the next.
            for most in [64, 256, 20, 17] {
                let events = read_if_any(&bench.device, most)?;
                let at = events.iter().position(|event| event.kind == EVENT_LAST);
                let following = at.map_or(0, |at| events.len() - at - 1);
                expect::same("records after LAST in a read", following, 0)?;
            }
        }
        Ok(())
    })
}

fn threads_do_not_wait_for_more() -> Outcome {
    /// Several times as many as the driver copies at once, so that two readers share them.
    const REGIONS: u64 = 400;
    const ROUNDS: usize = 30;
    let bench = Bench::blocking(2)?;
    for cookie in 0..REGIONS {
        bench.watch(cookie, &bench.area.page(0))?;
    }
    bench.watch(REGIONS, &bench.area.page(1))?;
    for _ in 0..ROUNDS {
        bench.hit(0)?;
        thread::scope(|scope| -> Outcome {
            let read_all = || bench.device.read_events(REGIONS as usize + 2);
            let readers = [scope.spawn(read_all), scope.spawn(read_all)];
            while bench.device.poll(libc::POLLIN, Duration::ZERO)? != 0 {
                thread::yield_now();
            }
            // Nothing is left. A thread that still sleeps came too late for anything.
            thread::sleep(Duration::from_millis(20));
            while !readers.iter().all(|reader| reader.is_finished()) {
                bench.hit(1)?;
                thread::sleep(Duration::from_millis(1));
            }
            for reader in readers {
                let events = reader.join().expect("the thread does not panic")?;
                let later = |event: &&Event| {
                    event.kind == EVENT_INVAL && event.user_cookie_counter == REGIONS
                };
                let slept = events.len() > 2 && events.iter().any(|event| later(&event));
                expect::same("sleeping readers with records", slept, false)?;
            }
            Ok(())
        })?;
        bench.drain()?;
    }
    Ok(())
}

fn threads_hammer() -> Outcome {
    let bench = Bench::new(16)?;
    bench.watch_pages()?;
    let turn = AtomicU64::new(0);
    let next = || turn.fetch_add(1, Ordering::Relaxed);
    let ignore = |result: io::Result<()>| match result {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => Ok(result?),
    };
    let change = || Ok(bench.hit(next() % 16)?);
    let register = || {
        let at = next();
        let page = bench.area.page(at % 16);
        ignore(bench.device.register(page.start, page.end, 100 + at % 8))
    };
    let unregister = || ignore(bench.device.unregister(100 + next() % 8));
    let read = || {
        read_if_any(&bench.device, 1 + (next() % 5) as usize)?;
        Ok(())
    };
    beside(&[&change, &change, &register, &unregister, &read], || {
        thread::sleep(WHILE);
        Ok(())
    })?;
    // The other threads have ended; everything must work as before.
    bench.drain()?;
    for cookie in 100..108 {
        let _ = bench.device.unregister(cookie);
    }
    let before = bench.counter.get();
    bench.hit(3)?;
    let page = bench.area.page(3);
    bench.reads(&[expect::inval(4, &page), expect::last(before + 1)])
}

fn threads_open_and_close() -> Outcome {
    let area = Guarded::new(8)?;
    let turn = AtomicU64::new(0);
    let change = || {
        let page = area.page(turn.fetch_add(1, Ordering::Relaxed) % 8);
        mem::advise(&page, libc::MADV_DONTNEED)?;
        mem::write_byte(page.start, 1);
        Ok(())
    };
    beside(&[&change, &change], || {
        let end = Instant::now() + WHILE;
        while Instant::now() < end {
            let device = open()?;
            let counter = device.map_counter()?;
            for page in 0..8 {
                device.register(area.page(page).start, area.page(page).end, page)?;
            }
            let late = Instant::now() + Duration::from_secs(5);
            while counter.get() == 0 {
                expect::that("the counter", Instant::now() < late, "it to move", "0")?;
                thread::yield_now();
            }
        }
        Ok(())
    })
}

fn threads_two_files() -> Outcome {
    const ROUNDS: u64 = 1000;
    let area = Guarded::new(1)?;
    let page = area.all();
    let files = [open()?, open()?];
    let counters = [files[0].map_counter()?, files[1].map_counter()?];
    for file in &files {
        file.register(page.start, page.end, PAGE)?;
    }
    let read = || {
        read_if_any(&files[1], 2)?;
        Ok(())
    };
    beside(&[&read], || {
        for round in 1..=ROUNDS {
            mem::advise(&page, libc::MADV_DONTNEED)?;
            expect::same(
                "the counter of the file nobody reads",
                counters[0].get(),
                round,
            )?;
            expect::at_least("the other counter", counters[1].get(), round)?;
        }
        Ok(())
    })
}
