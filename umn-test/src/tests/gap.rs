// SPDX-License-Identifier: GPL-2.0

//! No gap between the start and the end of an invalidation.

use std::{
    hint,
    sync::{
        atomic::{
            AtomicU64,
            Ordering, //
        },
        Barrier,
    },
    thread, //
};

use super::prelude::*;

table! {
    gap_read_in_the_window: "an event read before the pages are gone is followed by another",
    gap_registered_in_the_window: "a region registered before the pages are gone is reported",
    gap_registered_again_in_the_window: "so is one that is registered again, as a cache does",
    gap_copy_on_write: "who writes to a copied page finds the counter moved",
}

/// How many pages an invalidation must have that is to take a while.
const LONG: u64 = 4096;

/// How often a test tries to get into the window.
const TRIES: usize = 400;

/// How often it must have been there.
const WANTED: usize = 3;

/// Invalidates a large region in one thread, and calls `act` in this one when that has begun.
///
/// The kernel empties page tables from low to high. So what `act` did was in the window between
/// start and end of the invalidation if after it the last page is still there: in the page table,
/// since a processor may go on to see a page that is not. Then `reported` is to find out after the
/// end whether there was another event. Where nothing at all was in the window, the test is worth
/// nothing and fails.
fn in_the_window(act: impl Fn(&Bench) -> Outcome, reported: impl Fn(&Bench) -> Outcome) -> Outcome {
    let bench = Bench::new(LONG)?;
    let end_page = bench.area.page(LONG - 1);
    let mut hits = 0;
    for _ in 0..TRIES {
        bench.area.fill();
        bench.watch(1, &bench.area.all())?;
        let before = bench.counter.get();
        let go = Barrier::new(2);
        let inside = thread::scope(|scope| -> Outcome<bool> {
            let change = scope.spawn(|| {
                go.wait();
                mem::advise(&bench.area.all(), libc::MADV_DONTNEED)
            });
            go.wait();
            while bench.counter.get() == before {
                hint::spin_loop();
            }
            let acted = act(&bench);
            let inside = mem::page_states(&end_page)?[0].present();
            change.join().expect("the thread does not panic")?;
            acted.map(|()| inside)
        })?;
        if inside {
            hits += 1;
            reported(&bench)?;
        }
        bench.drain()?;
        bench.device.unregister(1)?;
        if hits == WANTED {
            return Ok(());
        }
    }
    Err(Failure::new(
        "the window",
        format_args!("to be in it {WANTED} times in {TRIES}"),
        hits,
    ))
}

/// Expects an event that a region was hit, after it was taken or registered in the window.
#[track_caller]
fn reported_again(bench: &Bench, cookie: u64) -> Outcome {
    let events = bench.drain()?;
    let found = events
        .iter()
        .any(|event| event.kind == EVENT_INVAL && event.user_cookie_counter == cookie);
    expect::that(
        "the end of the invalidation",
        found,
        "another event",
        "none",
    )
}

fn gap_read_in_the_window() -> Outcome {
    let seen = AtomicU64::new(0);
    in_the_window(
        |bench| {
            let events = bench.device.read_events(2)?;
            let wanted = expect::hit(1, &bench.area.all());
            expect::events("the read in the window", &events[..1], &[wanted])?;
            seen.store(bench.counter.get(), Ordering::Relaxed);
            Ok(())
        },
        |bench| {
            let before = seen.load(Ordering::Relaxed);
            expect::at_least("the counter", bench.counter.get(), before + 1)?;
            reported_again(bench, 1)
        },
    )
}

fn gap_registered_in_the_window() -> Outcome {
    let seen = AtomicU64::new(0);
    let cookie = AtomicU64::new(100);
    in_the_window(
        |bench| {
            let cookie = cookie.fetch_add(1, Ordering::Relaxed) + 1;
            bench.watch(cookie, &bench.area.page(LONG - 1))?;
            seen.store(bench.counter.get(), Ordering::Relaxed);
            Ok(())
        },
        |bench| {
            let before = seen.load(Ordering::Relaxed);
            expect::at_least("the counter", bench.counter.get(), before + 1)?;
            reported_again(bench, cookie.load(Ordering::Relaxed))
        },
    )
}

fn gap_registered_again_in_the_window() -> Outcome {
    in_the_window(
        |bench| {
            bench.device.unregister(1)?;
            bench.watch(1, &bench.area.all())
        },
        |bench| reported_again(bench, 1),
    )
}

fn gap_copy_on_write() -> Outcome {
    const ROUNDS: u64 = 100;
    let bench = Bench::new(1)?;
    bench.watch_pages()?;
    let page = bench.area.all();
    for _ in 0..ROUNDS {
        let holder = Child::fork(|line| Ok(line.hear()?))?;
        bench.drain()?;
        let before = bench.counter.get();
        let go = Barrier::new(2);
        let write = |offset| {
            go.wait();
            mem::write_byte(page.start + offset, 1);
            // The write went to the copy, whoever made that.
            bench.counter.get()
        };
        let (one, two) = thread::scope(|scope| {
            let other = scope.spawn(|| write(64));
            (write(128), other.join().expect("the thread does not panic"))
        });
        expect::at_least("the counter after a write", one.min(two), before + 1)?;
        holder.tell()?;
        holder.join()?;
    }
    Ok(())
}
