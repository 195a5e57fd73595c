// SPDX-License-Identifier: GPL-2.0

//! The cost of a change that hits many regions of a file, and who bears it.

use std::{
    fs::File,
    ops::Range, //
};

use super::{
    costs::{
        dontneed,
        Watch, //
    },
    count::{
        self,
        now,
        Stopwatch, //
    },
    figures::{
        Figures,
        Operation,
        Peer,
        CROWDS, //
    },
};
use crate::{
    device::check,
    expect::{
        self,
        Outcome, //
    },
    mem::{
        self,
        PAGE, //
    },
    process::{
        self,
        Child, //
    },
    uapi::Event,
};

/// A private page that all regions cover. They also cover the next page, which is of a file.
const PRIVATE: Range<u64> = 3 << 40..(3 << 40) + PAGE;
const SHARED: Range<u64> = PRIVATE.end..PRIVATE.end + PAGE;

/// The number of events that a read has room for.
const ROOM: usize = 128;

/// Measures all changes with each number of regions.
pub fn measure() -> Outcome<Figures> {
    count::require()?;
    let file = mem::memory_file(1)?;
    let other = puncher(&file)?;
    // With a real-time priority, so that the child does not run before the fork is complete.
    process::set_priority(0, 1)?;
    mem::map_over(&PRIVATE)?;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    mem::map(
        Some(SHARED.start),
        PAGE,
        access,
        libc::MAP_SHARED,
        Some(&file),
    )?;

    let mut figures = Figures::default();
    let changes: [(Operation, Change<'_>); 3] = [
        (Operation::CrowdFirst, &timed_dontneed),
        (Operation::CrowdOther, &|| timed_hole(&other)),
        (Operation::CrowdFork, &timed_fork),
    ];
    // The first measurement does not count: how mappings are stored also depends on earlier ones.
    let bare = |change: Change<'_>| {
        median(101, change)?;
        median(101, change)
    };
    let bare = changes.each_ref().map(|(_, change)| bare(change));
    let mut scale = [0.0; 3];
    for (scale, bare) in scale.iter_mut().zip(bare) {
        *scale = bare?;
    }

    for regions in CROWDS {
        let rounds = ((1 << 22) / regions).clamp(5, 101) | 1;
        let mut add = |operation, value| figures.add(operation, Peer::Ummunotify, regions, value);
        let watch = Watch::open()?;
        for cookie in 0..regions {
            let start = PRIVATE.start - regions + cookie;
            watch.register(start..SHARED.start + 1 + cookie % PAGE, cookie)?;
        }
        let mut reading = vec![];
        for ((operation, change), bare) in changes.iter().zip(scale) {
            let mut times = vec![];
            for _ in 0..rounds {
                times.push(change()?);
                let (events, time) = drain(&watch)?;
                expect::same("events", events, regions)?;
                reading.push(time);
            }
            add(*operation, middle(times) - bare);
        }
        add(Operation::CrowdRead, middle(reading) / regions as f64);
        let again = median(rounds, &timed_dontneed)?;
        add(Operation::CrowdAgain, again - scale[0]);
        drop(watch);

        // A change then hits more regions than it visits at once, and steps over many to the next.
        let apart = (regions / 256).max(2);
        let watch = Watch::open()?;
        for cookie in 0..regions {
            let start = PRIVATE.start - regions + cookie;
            let end = if cookie % apart == 0 {
                PRIVATE.end
            } else {
                start + 1
            };
            watch.register(start..end, cookie)?;
        }
        let mut times = vec![];
        for _ in 0..rounds {
            times.push(timed_dontneed()?);
            expect::same("events", drain(&watch)?.0, regions / apart)?;
        }
        add(Operation::CrowdApart, middle(times) - scale[0]);
    }
    other.tell_number(0)?;
    other.join()?;
    Ok(figures)
}

/// Makes a change; returns its cost.
type Change<'a> = &'a dyn Fn() -> Outcome<u64>;

/// The median cost of a change.
fn median(rounds: u64, change: Change<'_>) -> Outcome<f64> {
    let times = (0..rounds).map(|_| change());
    Ok(middle(times.collect::<Outcome<Vec<_>>>()?))
}

fn middle(mut times: Vec<u64>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2] as f64
}

fn timed_dontneed() -> Outcome<u64> {
    mem::write_byte(PRIVATE.start, 1);
    let start = now();
    dontneed(&PRIVATE);
    Ok(now() - start)
}

fn timed_fork() -> Outcome<u64> {
    mem::write_byte(PRIVATE.start, 1);
    let start = now();
    let pid = count::call(libc::SYS_fork, [0; 3]);
    if pid == 0 {
        count::call(libc::SYS_exit_group, [0; 3]);
    }
    let time = now() - start;
    // SAFETY: The status is of no interest.
    check(unsafe { libc::waitpid(pid as i32, std::ptr::null_mut(), 0) })?;
    Ok(time)
}

fn timed_hole(other: &Child) -> Outcome<u64> {
    mem::write_byte(SHARED.start, 1);
    other.tell_number(1)?;
    other.hear_number()
}

/// A process that punches a hole on request and reports the cost, until the request is 0.
fn puncher(file: &File) -> Outcome<Child> {
    Ok(Child::fork(|line| {
        while line.hear_number()? != 0 {
            let mut stopwatch = Stopwatch::new();
            stopwatch.time(|| mem::punch_hole(file, 0..1))?;
            line.tell_number(stopwatch.median())?;
        }
        Ok(())
    })?)
}

/// Reads everything; returns the number of events, and the cost of the reads.
fn drain(watch: &Watch) -> Outcome<(u64, u64)> {
    let mut events = [Event::default(); ROOM];
    let mut count = 0;
    let mut cost = 0;
    loop {
        let start = now();
        let bytes = watch.read(&mut events);
        let time = now() - start;
        if bytes <= 0 {
            return Ok((count, cost));
        }
        cost += time;
        let read = &events[..bytes as usize / size_of::<Event>()];
        count += read
            .iter()
            .filter(|event| event.kind == crate::uapi::EVENT_INVAL)
            .count() as u64;
    }
}
