// SPDX-License-Identifier: GPL-2.0

//! No gap between the start and the end of a change that regions ignore.
//!
//! At the start of such a change, every region may ignore it. The end must check again: a region
//! that was registered in between may not ignore it. A second file, which ignores nothing, shows
//! when the window is open. It is opened first, so that the kernel calls its start last.

use std::{
    ops::Range,
    sync::{
        atomic::{
            AtomicBool,
            Ordering, //
        },
        Barrier,
    },
    thread,
    time::Duration, //
};

use super::{
    gap::{
        content,
        names,
        take_precedence,
        Tries,
        Try, //
    },
    prelude::*, //
};
use crate::harness;

table! {
    causes_gap_registered: "a region registered during a change that all others ignore is hit",
    causes_gap_renewed: "so is a region that is registered again and no longer ignores the change",
    causes_gap_first: "so is the first region of a file",
    causes_gap_read: "an event that is read during the change is followed by another, with its cause",
    causes_gap_still_ignored: "a region registered during the change that ignores it is not hit",
    causes_gap_now_ignored: "nor is a region that is registered again and now ignores the change",
    causes_gap_added: "the end of a change adds its cause to an event that another change has queued meanwhile",
    causes_gap_left_alone: "the end of a change leaves an event that has its range and cause as it is",
}

/// The region on which the test acts, and one that ignores all causes that can be ignored.
const REGION: u64 = 2;
const IGNORING: u64 = 3;

/// What was seen after an action in the window.
struct Seen {
    inside: bool,
    /// Whether the counter has moved since the action.
    counted: bool,
    events: Vec<Event>,
}

/// Calls `act` in the window of a change of a page.
fn in_the_window(
    area: Guarded,
    change: impl Fn(&Range<u64>) -> std::io::Result<()> + Sync,
    prepare: impl FnOnce(&Device, &Range<u64>) -> Outcome,
    act: impl FnOnce(&Device, &Range<u64>) -> Outcome,
) -> Outcome<Seen> {
    let bell = open()?;
    let bench = Bench::over(open_with(Features::CAUSE)?, area)?;
    let page = bench.area.all();
    bell.watch(page.clone(), 1)?;
    prepare(&bench.device, &page)?;
    let before = content(&page)?;
    let (go, returned) = (Barrier::new(2), AtomicBool::new(false));
    let (inside, at_act) = thread::scope(|scope| -> Outcome<_> {
        let changer = scope.spawn(|| {
            go.wait();
            let changed = change(&page);
            returned.store(true, Ordering::Release);
            changed
        });
        // The change continues only while this thread sleeps.
        go.wait();
        let woken = bell.poll(libc::POLLIN, Duration::from_secs(10))?;
        let acted = expect::same("poll", woken & libc::POLLIN, libc::POLLIN);
        let acted = acted.and_then(|()| act(&bench.device, &page));
        let at_act = bench.counter.get();
        let inside = content(&page)? == before && !returned.load(Ordering::Acquire);
        changer.join().expect("the thread does not panic")?;
        acted?;
        Ok((inside, at_act))
    })?;
    let counted = bench.counter.get() > at_act;
    let events = bench.drain()?;
    Ok(Seen {
        inside,
        counted,
        events,
    })
}

/// A change for one cause, which can be ignored.
fn protect(page: &Range<u64>) -> std::io::Result<()> {
    mem::protect(page, libc::PROT_NONE)
}

/// Registers the region on which the test acts, with ignored causes.
fn watch(device: &Device, page: &Range<u64>, ignored: Causes) -> Outcome {
    let result = device.watch_ignoring(page.clone(), REGION, ignored);
    expect::success("REGISTER_REGION", result)
}

/// Expects the region to be hit after the action, or not.
fn judge(
    is_hit: bool,
    prepare: impl Fn(&Device, &Range<u64>) -> Outcome,
    act: impl Fn(&Device, &Range<u64>) -> Outcome,
) -> Outcome {
    take_precedence()?;
    let mut tries = Tries::default();
    for _ in 0..harness::rounds(12) {
        let seen = in_the_window(
            Guarded::new(1)?,
            protect,
            |device, page| {
                device.watch_ignoring(page.clone(), IGNORING, Causes::SAME_PAGES)?;
                prepare(device, page)
            },
            &act,
        )?;
        let event = seen.events.iter().find(|event| names(event, REGION));
        if let Some(event) = event {
            expect::same("causes", causes_of(event), Causes::PROTECT_AREA)?;
        }
        let ignoring = seen.events.iter().any(|event| names(event, IGNORING));
        expect::same("hit of the region that ignores it", ignoring, false)?;
        let right = event.is_some() == is_hit && seen.counted == is_hit;
        tries.add(Try::new(seen.inside, right));
    }
    tries.judge_nearly_all()
}

fn causes_gap_registered() -> Outcome {
    judge(
        true,
        |_, _| Ok(()),
        |device, page| watch(device, page, Causes::NONE),
    )
}

fn causes_gap_renewed() -> Outcome {
    judge(
        true,
        |device, page| watch(device, page, Causes::SAME_PAGES),
        |device, page| {
            device.unregister(REGION)?;
            watch(device, page, Causes::SOFT_DIRTY)
        },
    )
}

fn causes_gap_first() -> Outcome {
    judge(
        true,
        |device, _| Ok(device.unregister(IGNORING)?),
        |device, page| watch(device, page, Causes::PROTECT_PAGES),
    )
}

fn causes_gap_read() -> Outcome {
    judge(
        true,
        |device, page| watch(device, page, Causes::NONE),
        |device, _| read(device),
    )
}

/// Reads the event of the region.
fn read(device: &Device) -> Outcome {
    let events = device.read_events(4)?;
    let found = events.iter().any(|event| names(event, REGION));
    expect::that("the read in the window", found, "the event", "none")
}

fn causes_gap_still_ignored() -> Outcome {
    judge(
        false,
        |_, _| Ok(()),
        |device, page| watch(device, page, Causes::PROTECT_AREA),
    )
}

fn causes_gap_now_ignored() -> Outcome {
    judge(
        false,
        |device, page| watch(device, page, Causes::NONE),
        |device, page| {
            device.unregister(REGION)?;
            watch(device, page, Causes::SAME_PAGES)
        },
    )
}

fn causes_gap_added() -> Outcome {
    take_precedence()?;
    let mut tries = Tries::default();
    for _ in 0..harness::rounds(6) {
        let file = mem::memory_file(1)?;
        let seen = in_the_window(
            Guarded::of_file(&file, 1)?,
            |_| mem::punch_hole(&file, 0..1),
            |device, page| watch(device, page, Causes::NONE),
            |device, page| {
                read(device)?;
                // The hole does not lock the address space.
                Ok(mem::protect(page, libc::PROT_READ)?)
            },
        )?;
        let event = seen.events.iter().find(|event| names(event, REGION));
        let both = Causes::PROTECT_AREA | Causes::CLEAR;
        tries.add(Try::new(seen.inside, event.map(causes_of) == Some(both)));
    }
    tries.judge_nearly_all()
}

fn causes_gap_left_alone() -> Outcome {
    take_precedence()?;
    let elsewhere = Guarded::new(1)?;
    for _ in 0..harness::rounds(4) {
        let seen = in_the_window(
            Guarded::new(1)?,
            protect,
            |device, page| watch(device, page, Causes::NONE),
            |device, _| Ok(device.watch(elsewhere.all(), IGNORING)?),
        )?;
        expect::same("whether it counts again", seen.counted, false)?;
        let event = seen.events.iter().find(|event| names(event, REGION));
        let flags = event.map(|event| event.flags);
        let wanted = 1 | (Causes::PROTECT_AREA.bits() << 16);
        expect::same("flags", flags, Some(wanted))?;
    }
    Ok(())
}
