// SPDX-License-Identifier: GPL-2.0

//! The mapped counter, seen by several threads and processes at once.

use std::{
    hint,
    sync::atomic::{
        AtomicBool,
        AtomicU64,
        Ordering, //
    },
    thread,
};

use super::prelude::*;
use crate::harness;

table! {
    counter_seen_then_read_one: "a thread that sees the counter move finds the event; one thread makes changes",
    counter_seen_then_read_two: "the same; two threads make changes",
    counter_seen_then_read_three: "the same; three threads make changes",
    counter_moved_for_each_thread: "each of three threads finds the counter moved when its own call returns",
    counter_never_goes_back: "the counter never goes back, in either of two mappings",
    counter_in_a_forked_child: "a forked child sees no older value than its parent saw",
    counter_and_last_agree: "LAST is no older than the counter before the read, and no newer than after it",
}

/// Changes by each thread, unless `--rounds` overrides it.
const ROUNDS: u64 = 300;

/// Runs `look` repeatedly while some threads each invalidate a page of their own, and once more at
/// the end. `after` is called after each change, with the counter before and after it.
///
/// The page of thread N is watched with cookie N + 1, and nothing else is watched.
fn while_changing(
    threads: u64,
    after: impl Fn(u64, u64) -> Outcome + Sync,
    mut look: impl FnMut(&Bench) -> Outcome,
) -> Outcome {
    let bench = Bench::new(threads)?;
    bench.watch_pages()?;
    let rounds = harness::rounds(ROUNDS);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (bench, after, stop) = (&bench, &after, &stop);
        let change = move |page| -> Outcome {
            for _ in 0..rounds {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let before = bench.counter.get();
                bench.hit(page)?;
                after(before, bench.counter.get())?;
            }
            Ok(())
        };
        let changers: Vec<_> = (0..threads)
            .map(|page| scope.spawn(move || change(page)))
            .collect();
        let mut looked = Ok(());
        while looked.is_ok() && !changers.iter().all(|changer| changer.is_finished()) {
            looked = look(bench);
        }
        // After a failure, the rest is not needed.
        stop.store(true, Ordering::Relaxed);
        for changer in changers {
            changer.join().expect("the thread does not panic")?;
        }
        looked.and_then(|()| look(bench))?;
        expect::at_least("the counter", bench.counter.get(), threads * rounds)
    })
}

/// Checks nothing after a change.
fn whatever(_: u64, _: u64) -> Outcome {
    Ok(())
}

/// Spins on the counter; whenever it has moved, expects a read to return events and LAST.
fn seen_then_read(threads: u64) -> Outcome {
    let (mut reported, mut reads) = (0, 0);
    while_changing(threads, whatever, |bench| {
        let seen = bench.counter.get();
        if seen == reported {
            hint::spin_loop();
            return Ok(());
        }
        reads += 1;
        let events = expect::success("the read", bench.device.read_events(8))?;
        let invalidated = events.iter().filter(|event| event.kind == EVENT_INVAL);
        expect::at_least("events in the read", invalidated.count() as u64, 1)?;
        reported = last_of(&events)?;
        expect::at_least("the counter in LAST", reported, seen)
    })?;
    harness::note(format_args!("{reads} reads"));
    Ok(())
}

/// The counter in the LAST record that ends a read.
#[track_caller]
fn last_of(events: &[Event]) -> Outcome<u64> {
    match events.last() {
        Some(event) if event.kind == EVENT_LAST => Ok(event.user_cookie_counter),
        _ => Err(Failure::new("the end of the read", "LAST", "none")),
    }
}

fn counter_seen_then_read_one() -> Outcome {
    seen_then_read(1)
}

fn counter_seen_then_read_two() -> Outcome {
    seen_then_read(2)
}

fn counter_seen_then_read_three() -> Outcome {
    seen_then_read(3)
}

fn counter_moved_for_each_thread() -> Outcome {
    let moved = |before, after| expect::at_least("the counter on return", after, before + 1);
    while_changing(3, moved, |bench| {
        read_if_any(&bench.device, 8)?;
        Ok(())
    })
}

fn counter_never_goes_back() -> Outcome {
    let mut other = None;
    let mut newest = 0;
    while_changing(2, whatever, |bench| {
        let other = match &mut other {
            Some(other) => other,
            empty => empty.insert(bench.device.map_counter()?),
        };
        for mapping in [&bench.counter, other] {
            let seen = mapping.get();
            expect::at_least("the counter in one of two mappings", seen, newest)?;
            newest = seen;
        }
        Ok(())
    })
}

/// A number that is shared with children.
fn shared_number() -> Outcome<&'static AtomicU64> {
    let page = Guarded::shared(1)?.all();
    // SAFETY: The memory is aligned, and stays mapped while the process runs.
    let number = unsafe { &*(page.start as *const AtomicU64) };
    number.store(0, Ordering::Relaxed);
    Ok(number)
}

fn counter_in_a_forked_child() -> Outcome {
    let bench = Bench::one_page()?;
    let (parent_saw, done) = (shared_number()?, shared_number()?);
    let child = Child::fork(|_| {
        let mut newest = 0;
        while done.load(Ordering::Acquire) == 0 {
            let parents = parent_saw.load(Ordering::Acquire);
            let seen = bench.counter.get();
            expect::at_least("the counter in the child", seen, newest.max(parents))?;
            newest = seen;
        }
        expect::same(
            "the counter at last",
            bench.counter.get(),
            parent_saw.load(Ordering::Acquire),
        )
    })?;
    // Without other threads, a change takes much less time.
    let rounds = harness::rounds(30 * ROUNDS);
    for _ in 0..rounds {
        bench.hit(0)?;
        parent_saw.store(bench.counter.get(), Ordering::Release);
    }
    done.store(1, Ordering::Release);
    child.join()?;
    expect::at_least("the counter", bench.counter.get(), rounds)
}

fn counter_and_last_agree() -> Outcome {
    let mut newest = 0;
    while_changing(3, whatever, |bench| {
        let before = bench.counter.get();
        let events = read_if_any(&bench.device, 8)?;
        if events.is_empty() {
            return Ok(());
        }
        let reported = last_of(&events)?;
        let after = bench.counter.get();
        expect::at_least("the counter in LAST", reported, before.max(newest + 1))?;
        expect::at_least("the counter after LAST", after, reported)?;
        newest = reported;
        Ok(())
    })
}
