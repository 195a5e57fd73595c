// SPDX-License-Identifier: GPL-2.0

//! No gap between the start and the end of an invalidation.
//!
//! The window lies between the kernel's two notifications, before it changes page tables and
//! afterwards. A thread that consumes an event or registers a region in the window may still find
//! the old pages, so it must be notified again. There are two ways into the window:
//!
//! - *By priority*, for any change, however small. The notification at the start wakes a waiter. If
//!   that is a real-time thread on the same processor, it preempts the change until it sleeps
//!   again.
//! - *On another processor*, which sees the counter move. The change must affect many pages, and it
//!   is a matter of luck which thread is faster.
//!
//! An attempt counts as inside the window only if, after the thread has acted, the page was still
//! seen as before the change, and the system call that makes the change had not returned.

use std::{
    hint,
    ops::Range,
    sync::{
        atomic::{
            AtomicBool,
            AtomicU64,
            Ordering, //
        },
        Barrier,
    },
    thread,
    time::Duration, //
};

use super::{
    causes::{
        move_page,
        other_node, //
    },
    prelude::*, //
};
use crate::harness;

table! {
    gap_munmap: "munmap: a thread that acts in its window is notified again",
    gap_map_fixed: "MAP_FIXED: a thread that acts in its window is notified again",
    gap_mprotect: "mprotect: a thread that acts in its window is notified again",
    gap_dontneed: "MADV_DONTNEED: a thread that acts in its window is notified again",
    gap_punch_hole: "a hole in the mapped file: a thread that acts in its window is notified again",
    gap_write_to_copy: "copy on write: a thread that acts in its window is notified again",
    gap_move_pages: "move_pages: a thread that acts in its window is notified again",
    gap_left_alone: "a thread that only waits in the window is not notified again",
    gap_overlapping: "two changes in flight: a thread that acts in both windows is notified by both ends",
    gap_of_many: "more regions than a change visits: each that acted in the window is reported again",
    gap_read_beside: "an event read before the last page is gone is followed by another",
    gap_registered_beside: "a region registered before the last page is gone is reported",
    gap_registered_again_beside: "so is one that is registered again, as a cache does",
    gap_copy_on_write: "a thread that writes to a copied page finds the counter moved",
}

/// The region whose event shows that the window is open.
const BELL: u64 = 1;

/// The region that is acted on, and its cookie if it gets a new one.
const REGION: u64 = 2;
const RENAMED: u64 = 3;

/// An action in the window.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Read what is queued.
    Read,
    /// The same, one record at a time, as programs written for V2 do.
    ReadOneByOne,
    /// Read it, then register the region anew, as a cache does.
    ReadAndRenew,
    /// Register the region anew, with its event still queued.
    Renew,
    /// The same, with a cookie that was not used yet.
    Rename,
    /// Register the region for the first time.
    Register,
}

impl Act {
    const ALL: [Self; 6] = [
        Self::Read,
        Self::ReadOneByOne,
        Self::ReadAndRenew,
        Self::Renew,
        Self::Rename,
        Self::Register,
    ];

    /// Performs the action; returns the cookie for which an event must follow.
    fn perform(self, bench: &Bench, region: &Range<u64>) -> Outcome<u64> {
        let (reads, room) = match self {
            Self::Read | Self::ReadAndRenew => (1, 4),
            Self::ReadOneByOne => (4, 1),
            _ => (0, 0),
        };
        let mut found = reads == 0;
        for _ in 0..reads {
            if !found {
                let events = bench.device.read_events(room)?;
                found = events.iter().any(|event| names(event, REGION));
            }
        }
        expect::that("the read in the window", found, "the event", "none")?;
        if matches!(self, Self::ReadAndRenew | Self::Renew | Self::Rename) {
            bench.device.unregister(REGION)?;
        }
        let cookie = match self {
            Self::Rename | Self::Register => RENAMED,
            _ => REGION,
        };
        if !matches!(self, Self::Read | Self::ReadOneByOne) {
            bench.watch(cookie, region)?;
        }
        Ok(cookie)
    }
}

/// Whether a record is an event of the region with a cookie.
pub(super) fn names(event: &Event, cookie: u64) -> bool {
    event.kind == EVENT_INVAL && event.user_cookie_counter == cookie
}

/// The result of an attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Try {
    /// It was not in the window, so it shows nothing.
    Outside,
    /// It was in the window, and another event followed.
    Reported,
    /// It was in the window, and no event followed.
    Missed,
}

impl Try {
    pub(super) fn new(inside: bool, reported: bool) -> Self {
        match (inside, reported) {
            (false, _) => Self::Outside,
            (true, true) => Self::Reported,
            (true, false) => Self::Missed,
        }
    }
}

/// The number of attempts, of those in the window, and of those among them that were missed.
#[derive(Default)]
pub(super) struct Tries {
    all: u64,
    inside: u64,
    missed: u64,
}

impl Tries {
    pub(super) fn add(&mut self, result: Try) {
        self.all += 1;
        self.inside += u64::from(result != Try::Outside);
        self.missed += u64::from(result == Try::Missed);
    }

    /// Expects at least `wanted` in the window, none of them missed.
    #[track_caller]
    fn judge(&self, wanted: u64) -> Outcome {
        let Self {
            all,
            inside,
            missed,
        } = self;
        expect::at_least("attempts in the window", *inside, wanted)?;
        expect::that(
            "actions in the window",
            *missed == 0,
            format_args!("{inside} of {inside} reported again"),
            format_args!("{missed} not reported"),
        )?;
        harness::note(format_args!("inside {inside} of {all}"));
        Ok(())
    }

    /// The same, allowing for other load on the processors.
    #[track_caller]
    pub(super) fn judge_nearly_all(&self) -> Outcome {
        self.judge(self.all - self.all / 4)
    }
}

/// From now on this thread and those it starts stay on one processor, where this one takes
/// precedence.
pub(super) fn take_precedence() -> Outcome {
    process::stay_here()?;
    process::set_priority(0, 3).or_skip("real-time priority")
}

/// Waits until the start of a change wakes this thread.
fn woken(bench: &Bench) -> Outcome {
    let seen = bench.device.poll(libc::POLLIN, Duration::from_secs(10))?;
    expect::same(
        "poll while a change starts",
        seen & libc::POLLIN,
        libc::POLLIN,
    )
}

/// Performs each action in the window of a change to a page, by priority.
///
/// `make` creates the page, and anything else that `change` needs. `look` returns a property of the
/// page that the change modifies.
fn each_act<K: Sync>(
    make: impl Fn() -> Outcome<(Guarded, K)>,
    change: impl Fn(&Range<u64>, &K) -> Outcome + Sync,
    look: impl Fn(&Range<u64>) -> Outcome<u64>,
) -> Outcome {
    take_precedence()?;
    let mut tries = Tries::default();
    for _ in 0..harness::rounds(4) {
        for act in Act::ALL {
            let (area, kept) = make()?;
            let bench = Bench::over(open()?, area)?;
            tries.add(acts(&bench, act, |page| change(page, &kept), &look)?);
        }
    }
    tries.judge_nearly_all()
}

/// Performs an action in the window of a change; checks whether another event followed.
fn acts(
    bench: &Bench,
    act: Act,
    change: impl Fn(&Range<u64>) -> Outcome + Sync,
    look: impl Fn(&Range<u64>) -> Outcome<u64>,
) -> Outcome<Try> {
    let page = bench.area.page(0);
    let middle = page.start + PAGE / 2;
    let region = middle..page.end;
    bench.watch(BELL, &(page.start..middle))?;
    if act != Act::Register {
        bench.watch(REGION, &region)?;
    }
    let before = look(&page)?;
    let (go, returned) = (Barrier::new(2), AtomicBool::new(false));
    let (cookie, seen, inside) = thread::scope(|scope| -> Outcome<_> {
        let changer = scope.spawn(|| {
            go.wait();
            let changed = change(&page);
            returned.store(true, Ordering::Release);
            changed
        });
        // The change continues only while this thread sleeps.
        go.wait();
        let acted = woken(bench).and_then(|()| act.perform(bench, &region));
        let seen = bench.counter.get();
        let inside = look(&page)? == before && !returned.load(Ordering::Acquire);
        changer.join().expect("the thread does not panic")?;
        Ok((acted?, seen, inside))
    })?;
    expect::that("the page", look(&page)? != before, "a change", "none")?;
    let counted = bench.counter.get() > seen;
    let events = bench.drain()?;
    let reported = events
        .iter()
        .any(|event| names(event, cookie) && (event.hint_start..event.hint_end) == region);
    Ok(Try::new(inside, counted && reported))
}

/// A page of private memory, and nothing else.
fn private() -> Outcome<(Guarded, ())> {
    Ok((Guarded::new(1)?, ()))
}

/// The first byte of a page, or that there is none.
pub(super) fn content(page: &Range<u64>) -> Outcome<u64> {
    Ok(mem::peek(page.start)?.map_or(u64::MAX, u64::from))
}

fn gap_munmap() -> Outcome {
    each_act(private, |page, ()| Ok(mem::unmap(page)?), content)
}

fn gap_map_fixed() -> Outcome {
    each_act(private, |page, ()| Ok(mem::map_over(page)?), content)
}

fn gap_mprotect() -> Outcome {
    let change = |page: &Range<u64>, (): &()| Ok(mem::protect(page, libc::PROT_NONE)?);
    each_act(private, change, content)
}

fn gap_dontneed() -> Outcome {
    let change = |page: &Range<u64>, (): &()| Ok(mem::advise(page, libc::MADV_DONTNEED)?);
    each_act(private, change, content)
}

fn gap_punch_hole() -> Outcome {
    let make = || {
        let file = mem::memory_file(1)?;
        Ok((Guarded::of_file(&file, 1)?, file))
    };
    each_act(make, |_, file| Ok(mem::punch_hole(file, 0..1)?), content)
}

fn gap_write_to_copy() -> Outcome {
    let make = || {
        let area = Guarded::new(1)?;
        // Another process that has the page makes a write copy it.
        let holder = Child::fork(|line| Ok(line.hear()?))?;
        Ok((area, holder))
    };
    let change = |page: &Range<u64>, _: &Child| {
        mem::write_byte(page.start, 0xee);
        Ok(())
    };
    each_act(make, change, content)
}

fn gap_move_pages() -> Outcome {
    let make = || {
        let area = Guarded::new(1)?;
        let node = other_node(area.all().start)?;
        Ok((area, node))
    };
    let change = |page: &Range<u64>, node: &i32| {
        move_page(0, page.start, Some(*node)).or_skip("page migration")?;
        Ok(())
    };
    let frame = |page: &Range<u64>| Ok(mem::page_states(page)?[0].frame());
    each_act(make, change, frame)
}

/// An action in the window of a change to a page that many regions cover.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CrowdAct {
    /// Read everything.
    Read,
    /// Read some events.
    ReadSome,
    /// Register a region.
    Register,
    /// Read everything, and register all regions anew.
    Renew,
}

fn gap_of_many() -> Outcome {
    use super::crowd::{
        read_up_to_last,
        Crowd,
        Layout, //
    };
    use CrowdAct::{
        Read,
        ReadSome,
        Register,
        Renew, //
    };
    const COUNT: u64 = 200;
    const SOME: usize = 150;
    take_precedence()?;
    let mut tries = Tries::default();
    for act in [Read, ReadSome, Register, Renew].repeat(harness::rounds(3) as usize) {
        let crowd = Crowd::new(Layout::Overlapping, COUNT)?;
        let bench = &crowd.bench;
        crowd.populate();
        let before = content(&crowd.pages())?;
        let (go, returned) = (Barrier::new(2), AtomicBool::new(false));
        let inside = thread::scope(|scope| -> Outcome<_> {
            let changer = scope.spawn(|| {
                go.wait();
                let changed = mem::unmap(&crowd.pages());
                returned.store(true, Ordering::Release);
                changed
            });
            go.wait();
            let acted = woken(bench).and_then(|()| {
                match act {
                    Read => expect::events(
                        "the read in the window",
                        &read_up_to_last(&bench.device, 4 * SOME)?,
                        &crowd.events(1),
                    )?,
                    ReadSome => expect::events(
                        "the read in the window",
                        &bench.device.read_events(SOME)?,
                        &crowd.events(1)[..SOME],
                    )?,
                    Register => bench.watch(COUNT, &crowd.pages())?,
                    Renew => {
                        read_up_to_last(&bench.device, 4 * SOME)?;
                        for cookie in 0..COUNT {
                            bench.device.unregister(cookie)?;
                            bench.watch(cookie, &crowd.region(cookie))?;
                        }
                    }
                }
                Ok(())
            });
            let inside = content(&crowd.pages())? == before && !returned.load(Ordering::Acquire);
            changer.join().expect("the thread does not panic")?;
            acted.map(|()| inside)
        })?;
        let mut reported: Vec<_> = bench.drain()?;
        reported.pop();
        reported.sort_unstable_by_key(|event| event.user_cookie_counter);
        reported.dedup();
        let mut wanted: Vec<_> = (0..COUNT).map(|cookie| crowd.event(cookie)).collect();
        if act == Register {
            wanted.push(inval(COUNT, &crowd.pages()));
        }
        // It was a single change, so each event has a hint.
        tries.add(Try::new(inside, reported == wanted));
    }
    tries.judge_nearly_all()
}

fn gap_left_alone() -> Outcome {
    take_precedence()?;
    let elsewhere = Guarded::new(1)?;
    for _ in 0..harness::rounds(4) {
        let bench = Bench::one_page()?;
        let go = Barrier::new(2);
        thread::scope(|scope| -> Outcome {
            let changer = scope.spawn(|| {
                go.wait();
                mem::unmap(&bench.area.all())
            });
            go.wait();
            let acted = woken(&bench).and_then(|()| bench.watch(2, &elsewhere.all()));
            changer.join().expect("the thread does not panic")?;
            acted
        })?;
        bench.counts(1)?;
        bench.reads(&[inval(1, &bench.area.all()), last(1)])?;
    }
    Ok(())
}

/// Two changes, each to a page of its own and both to a common region. The second starts while the
/// first is in flight. The reader consumes what both starts have queued. Then one of the changes
/// ends first.
fn gap_overlapping() -> Outcome {
    take_precedence()?;
    let mut tries = Tries::default();
    for _ in 0..harness::rounds(4) {
        for second_ends_first in [true, false] {
            tries.add(overlapping(second_ends_first)?);
        }
    }
    tries.judge_nearly_all()
}

fn overlapping(second_ends_first: bool) -> Outcome<Try> {
    let bench = Bench::new(2)?;
    bench.watch_pages()?;
    bench.watch(3, &bench.area.all())?;
    let gos = [Barrier::new(2), Barrier::new(2)];
    let returned = [AtomicBool::new(false), AtomicBool::new(false)];
    let tids = [Tid::default(), Tid::default()];
    let change = |index: usize| {
        tids[index].set();
        gos[index].wait();
        let changed = mem::advise(&bench.area.page(index as u64), libc::MADV_DONTNEED);
        returned[index].store(true, Ordering::Release);
        changed
    };
    let inside = thread::scope(|scope| -> Outcome<bool> {
        let change = &change;
        let changers = [0, 1].map(|index| scope.spawn(move || change(index)));
        // The second has precedence over the first, which is in flight already.
        for (tid, priority) in tids.iter().zip(1..) {
            process::set_priority(tid.get(), priority)?;
        }
        let mut acted = Ok(());
        for (index, go) in gos.iter().enumerate() {
            go.wait();
            acted = acted.and_then(|()| {
                woken(&bench)?;
                let events = bench.device.read_events(4)?;
                let found = events.iter().any(|event| names(event, index as u64 + 1));
                expect::that("the read in the window", found, "the event", "none")
            });
        }
        let mut inside = true;
        for (index, returned) in returned.iter().enumerate() {
            let index = index as u64;
            let before = mem::peek(bench.area.page(index).start)?;
            inside &= before == Some(Guarded::content(index)) && !returned.load(Ordering::Acquire);
        }
        if !second_ends_first {
            process::set_priority(tids[0].get(), 3)?;
        }
        for changer in changers {
            changer.join().expect("the thread does not panic")?;
        }
        acted.map(|()| inside)
    })?;
    let events = bench.drain()?;
    let reported = |cookie, range: Range<u64>| {
        events.iter().any(|event| {
            names(event, cookie) && event.hint_start <= range.start && range.end <= event.hint_end
        })
    };
    // The event of the third region must cover both changes.
    let all_reported = reported(1, bench.area.page(0))
        && reported(2, bench.area.page(1))
        && reported(3, bench.area.all());
    Ok(Try::new(inside, all_reported))
}

/// How many pages an invalidation needs to take a while.
const LONG: u64 = 4096;

/// How many attempts must have been in the window, and the most attempts to make.
const WANTED: u64 = 3;
const TRIES_EACH: u64 = 100;

/// Invalidates a large region in one thread, and acts in this one when that has begun.
///
/// The kernel clears page tables in ascending order. So the action was in the window if the last
/// page is still in the page table afterwards; a processor may still see a page that no longer is.
/// `act` returns the cookie for which an event must follow after the window.
fn beside(act: impl Fn(&Bench) -> Outcome<u64>) -> Outcome {
    let bench = Bench::new(LONG)?;
    let end_page = bench.area.page(LONG - 1);
    let wanted = harness::rounds(WANTED);
    let mut tries = Tries::default();
    while tries.inside < wanted && tries.all < wanted * TRIES_EACH {
        bench.area.fill();
        bench.watch(REGION, &bench.area.all())?;
        let before = bench.counter.get();
        let go = Barrier::new(2);
        let (cookie, seen, inside) = thread::scope(|scope| -> Outcome<_> {
            let change = scope.spawn(|| {
                go.wait();
                mem::advise(&bench.area.all(), libc::MADV_DONTNEED)
            });
            go.wait();
            while bench.counter.get() == before {
                hint::spin_loop();
            }
            let acted = act(&bench);
            let seen = bench.counter.get();
            let inside = mem::page_states(&end_page)?[0].present();
            change.join().expect("the thread does not panic")?;
            Ok((acted?, seen, inside))
        })?;
        let counted = bench.counter.get() > seen;
        let reported = bench.drain()?.iter().any(|event| names(event, cookie));
        tries.add(Try::new(inside, counted && reported));
        bench.device.unregister(REGION)?;
    }
    tries.judge(wanted)
}

fn gap_read_beside() -> Outcome {
    beside(|bench| {
        let events = bench.device.read_events(2)?;
        let wanted = inval(REGION, &bench.area.all());
        expect::events("the read in the window", &events[..1], &[wanted])?;
        Ok(REGION)
    })
}

fn gap_registered_beside() -> Outcome {
    let cookie = AtomicU64::new(100);
    beside(|bench| {
        let cookie = cookie.fetch_add(1, Ordering::Relaxed);
        bench.watch(cookie, &bench.area.page(LONG - 1))?;
        Ok(cookie)
    })
}

fn gap_registered_again_beside() -> Outcome {
    beside(|bench| {
        bench.device.unregister(REGION)?;
        bench.watch(REGION, &bench.area.all())?;
        Ok(REGION)
    })
}

fn gap_copy_on_write() -> Outcome {
    let bench = Bench::new(1)?;
    bench.watch_pages()?;
    let page = bench.area.all();
    for _ in 0..harness::rounds(100) {
        let holder = Child::fork(|line| Ok(line.hear()?))?;
        bench.drain()?;
        let before = bench.counter.get();
        let go = Barrier::new(2);
        let write = |offset| {
            go.wait();
            mem::write_byte(page.start + offset, 1);
            // The write went to the copy, whichever thread made it.
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
