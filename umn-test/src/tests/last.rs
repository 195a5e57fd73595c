// SPDX-License-Identifier: GPL-2.0

//! The generation counter and the LAST record.

use super::prelude::*;

table! {
    counter_starts_at_zero: "the counter starts at 0, and neither read nor REGISTER_REGION moves it",
    counter_once_for_several_regions: "an invalidation of several regions counts once",
    counter_when_all_are_queued: "an invalidation counts even if every region it hits is queued already",
    counter_only_for_hits: "an invalidation that hits no region does not count",
    counter_moved_on_return: "each of 1000 invalidations has moved the counter on return",
    last_after_the_queue: "LAST follows the events if there is room",
    last_after_a_full_buffer: "if the events fill the buffer exactly, the next read returns LAST",
    last_comes_once: "LAST is not repeated for the same counter",
    last_carries_the_counter_at_that_instant: "LAST carries the counter at the time of the read",
    last_after_unregister: "LAST follows if UNREGISTER removed the only event",
    last_alone_is_readable: "poll reports a pending LAST",
    last_for_every_counter: "every counter value is followed by a LAST with that value or a later one",
}

fn counter_starts_at_zero() -> Outcome {
    let bench = Bench::new(1)?;
    bench.counts(0)?;
    bench.is_silent()?;
    bench.watch_pages()?;
    bench.counts(0)?;
    bench.device.unregister(1)?;
    bench.counts(0)?;
    bench.is_silent()
}

fn counter_once_for_several_regions() -> Outcome {
    let bench = Bench::new(4)?;
    bench.watch_pages()?;
    bench.watch(9, &bench.area.all())?;
    mem::unmap(&bench.area.all())?;
    bench.counts(1)
}

fn counter_when_all_are_queued() -> Outcome {
    let bench = Bench::one_page()?;
    for round in 1..=10 {
        bench.hit(0)?;
        bench.counts(round)?;
    }
    bench.reads(&[whole(1, &bench.area.all()), last(10)])
}

fn counter_only_for_hits() -> Outcome {
    let bench = Bench::new(3)?;
    bench.watch(1, &bench.area.page(1))?;
    for _ in 0..10 {
        bench.hit(0)?;
        bench.hit(2)?;
    }
    bench.counts(0)?;
    bench.device.unregister(1)?;
    bench.hit(1)?;
    bench.counts(0)?;
    bench.is_silent()
}

fn counter_moved_on_return() -> Outcome {
    let bench = Bench::one_page()?;
    for round in 1..=1000 {
        bench.hit(0)?;
        bench.counts(round)?;
        if round % 2 == 0 {
            bench.reads(&[whole(1, &bench.area.all()), last(round)])?;
        }
    }
    Ok(())
}

fn last_after_the_queue() -> Outcome {
    let bench = Bench::new(2)?;
    bench.watch_pages()?;
    bench.hit(0)?;
    bench.hit(1)?;
    let (first, second) = (inval(1, &bench.area.page(0)), inval(2, &bench.area.page(1)));
    expect::events(
        "a read with room for three",
        &bench.device.read_events(3)?,
        &[first, second, last(2)],
    )
}

fn last_after_a_full_buffer() -> Outcome {
    for (size, regions) in [(1, 1), (2, 2), (16, 16), (17, 17), (32, 32), (128, 128)] {
        let bench = Bench::new(regions)?;
        bench.watch_pages()?;
        mem::unmap(&bench.area.all())?;
        let events = bench.device.read_events(size)?;
        expect::same("records in the first read", events.len(), size)?;
        let kind = events[size - 1].kind;
        expect::same("type of the last of them", kind, EVENT_INVAL)?;
        bench.reads(&[last(1)])?;
    }
    Ok(())
}

fn last_comes_once() -> Outcome {
    let bench = Bench::one_page()?;
    bench.hit(0)?;
    bench.reads(&[inval(1, &bench.area.all()), last(1)])?;
    bench.is_silent()?;
    bench.watch(2, &bench.area.all())?;
    bench.is_silent()?;
    bench.device.unregister(2)?;

    // The same if a read has room for nothing else.
    bench.hit(0)?;
    for record in [inval(1, &bench.area.all()), last(2)] {
        let events = bench.device.read_events(1)?;
        expect::events("a read of one record", &events, &[record])?;
    }
    bench.is_silent()
}

fn last_carries_the_counter_at_that_instant() -> Outcome {
    let bench = Bench::one_page()?;
    bench.hit(0)?;
    let page = bench.area.all();
    let events = bench.device.read_events(1)?;
    expect::events("the first read", &events, &[inval(1, &page)])?;
    // LAST 1 is pending now.
    bench.hit(0)?;
    bench.reads(&[inval(1, &page), last(2)])?;
    bench.is_silent()
}

fn last_after_unregister() -> Outcome {
    let bench = Bench::one_page()?;
    bench.hit(0)?;
    bench.device.unregister(1)?;
    bench.counts(1)?;
    bench.reads(&[last(1)])?;
    bench.is_silent()?;
    bench.watch(1, &bench.area.all())?;
    bench.hit(0)?;
    bench.hit(0)?;
    bench.device.unregister(1)?;
    bench.reads(&[last(3)])
}

fn last_alone_is_readable() -> Outcome {
    let bench = Bench::one_page()?;
    let readable = || bench.device.poll(libc::POLLIN, std::time::Duration::ZERO);
    bench.hit(0)?;
    bench.device.read_events(1)?;
    expect::same("poll after a read that filled", readable()?, libc::POLLIN)?;
    bench.reads(&[last(1)])?;
    expect::same("poll after LAST", readable()?, 0)?;
    bench.hit(0)?;
    bench.device.unregister(1)?;
    expect::same("poll after UNREGISTER", readable()?, libc::POLLIN)?;
    bench.reads(&[last(2)])?;
    expect::same("poll after LAST", readable()?, 0)
}

fn last_for_every_counter() -> Outcome {
    let bench = Bench::new(3)?;
    bench.watch_pages()?;
    let mut reported = 0;
    for round in 0..300u64 {
        bench.hit(round % 3)?;
        if round % 7 == 0 {
            bench.device.unregister(round % 3 + 1)?;
            bench.watch(round % 3 + 1, &bench.area.page(round % 3))?;
        }
        let seen = bench.counter.get();
        // A few reads of one record each must return it.
        for _ in 0..4 {
            if reported < seen {
                let event = bench.device.read_events(1)?[0];
                if event.kind == EVENT_LAST {
                    reported = event.user_cookie_counter;
                }
            }
        }
        expect::at_least("the counter in LAST", reported, seen)?;
    }
    Ok(())
}
