// SPDX-License-Identifier: GPL-2.0

//! Several threads and processes that do random operations at the same time.
//!
//! # What can be claimed without an order of events
//!
//! Each process has one file, which its threads share; the files have different features. Each
//! thread has its own regions, an arena in which only it changes mappings, and a view of an arena
//! that all threads share. The file mapped there is common to all processes. One clock serves all of
//! them: a thread that takes a ticket gets a number, and later tickets have higher numbers. Each
//! call has a ticket from before it (B) and one from after it (E). It is only known that the call
//! happened between the two.
//!
//! A *claim* states: something in range X was invalidated, so anybody who looked it up before
//! ticket C must be notified after C. There are two ways to make a claim:
//!
//! - A thread made a call that invalidates X in its own arena. C is the B of the call. The driver
//!   is called between C and the E of the call, so by E an event is queued. The call has one cause,
//!   which the event must name, and the hint must enclose X as far as the region does.
//! - A thread saw a page frame mapped in X, in a look-up that began after C, and later saw that it
//!   was gone. It does not matter who removed it. The page was there after C, so a registration
//!   that was complete by C, and that pinned the page, is stale. The invalidation may have started
//!   before C, and its event may have been read before C; then the driver must report it again when
//!   the invalidation ends. When that happens is unknown, so the claim is due at the end of the
//!   round, when all calls have returned. The cause is UNMAP or CLEAR, and the hint must cover some
//!   of X.
//!
//! A region R was *registered* for a claim if its registration returned before C. Unless it ignores
//! the cause, it must report the claim as long as nobody begins to unregister it. If a read returned
//! an event of R and the read's E comes after C, the event may be the claimed one. If E comes before
//! C it cannot be, since it was dequeued before C.
//!
//! A read L that returned LAST found the queue empty at some time between its B and E. If its B
//! comes after the claim was due, the event had been dequeued by then, by L or by another read
//! whose B comes before the E of L. So:
//!
//! > For each claim (X, C, due), each region R that overlaps X and was registered by C, and the
//! > first read L to end with LAST among those that began after the claim was due and ended before R
//! > began to be unregistered, there is a read that ended after C, began before the end of L, and
//! > returned an event of R that names the cause and covers X.
//!
//! At the end of a round, when all threads have stopped, a final read drains the queue, so that
//! there is such an L for each region that is still registered.
//!
//! # What this does not see, and why bugs are found nevertheless
//!
//! An event of R for another reason, between C and the end of L, is taken for the claimed one.
//! So a missed event is noticed only if R was not hit otherwise in that time. Threads read up to
//! LAST all the time, which keeps it short, and most regions are in arenas that only one thread
//! changes. A driver that misses one hit in a thousand is found out within a few thousand
//! operations.
//!
//! Some properties need no clock. A thread's own call must move the counter if one of its own
//! regions in the range heeds it. The value in LAST must be between the counter before and after the
//! read. A read that began after a region was unregistered must not return its event. Hints must
//! lie inside their region. An event names causes if the file has the feature, but none that the
//! region ignores. With hulls, each event has a hint.
//!
//! Events without a reason are not detected here: anything another thread does may be the cause.

use std::{
    fs::File,
    io,
    ops::Range,
    sync::atomic::Ordering,
    thread, //
};

use ummunotify::{
    Causes,
    Features, //
};

use super::{
    calls::common,
    figures::{
        add,
        Figures, //
    },
    op::{
        Op,
        Sequences,
        What, //
    },
    world::World, //
};
use crate::{
    device::{
        Counter,
        Device, //
    },
    expect::{
        self,
        that,
        Failure,
        OrSkip,
        Outcome, //
    },
    mem::PAGE,
    process::Child,
    uapi::{
        Event,
        EVENT_CAUSES_SHIFT,
        EVENT_FLAG_HINT,
        EVENT_LAST, //
    },
};

/// Regions of a thread, apart from those that are registered many at a time, and how many those
/// are.
const REGIONS: usize = 8;
const MANY: usize = 150;

/// Rounds after which the memory is set up anew.
const RENEW: u64 = 8;

/// The features of the processes' files, in turn.
const FEATURES: [Features; 4] = [
    Features::ALL,
    Features::NONE,
    Features::CAUSE,
    Features::HULL,
];

/// A time, as a ticket number.
type Ticket = u64;

/// A region that was registered, possibly only briefly.
struct Region {
    cookie: u64,
    range: Range<u64>,
    /// The causes that the region ignores.
    ignored: Causes,
    registered: Ticket,
    /// When somebody began to unregister it, and when that was complete.
    leaving: Option<Ticket>,
    left: Option<Ticket>,
}

/// Something was invalidated; see the top of this file.
struct Claim {
    range: Range<u64>,
    /// The possible causes, of which the event must name one.
    causes: Causes,
    after: Ticket,
    due: Option<Ticket>,
    op: Op,
}

/// A read that returned something.
struct Read {
    began: Ticket,
    ended: Ticket,
    events: Vec<Event>,
}

impl Read {
    fn has_last(&self) -> bool {
        self.events
            .last()
            .is_some_and(|event| event.kind == EVENT_LAST)
    }
}

impl Claim {
    /// Whether an event of a region may be the claimed one, judging by its hint and its causes.
    fn is_met(&self, event: &Event, region: &Region, features: Features) -> bool {
        let causes = causes_of(event);
        if features.contains(Features::CAUSE) && !causes.intersects(self.causes) {
            return false;
        }
        let hint = event.hint_start..event.hint_end;
        let part = common(&region.range, &self.range);
        match self.due {
            Some(_) => part.is_none_or(|part| common(&hint, &part) == Some(part)),
            None => part.is_some_and(|part| common(&hint, &part).is_some()),
        }
    }
}

fn causes_of(event: &Event) -> Causes {
    Causes::from_bits(event.flags >> EVENT_CAUSES_SHIFT)
}

/// What a thread did in a round.
#[derive(Default)]
struct Log {
    gone: Vec<Region>,
    claims: Vec<Claim>,
    reads: Vec<Read>,
}

/// What the threads of a process share.
struct Watcher {
    figures: &'static Figures,
    device: Device,
    counter: Counter,
}

impl Watcher {
    fn ticket(&self) -> Ticket {
        self.figures.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Reads once, if there is anything to read.
    fn read(&self, most: usize) -> Outcome<Option<Read>> {
        let least = self.counter.get();
        let began = self.ticket();
        let events = match self.device.read_events(most) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => return Ok(None),
            result => expect::success("read", result)?,
        };
        let ended = self.ticket();
        if let Some(last) = events.last().filter(|event| event.kind == EVENT_LAST) {
            add(&self.figures.lasts, 1);
            let value = last.user_cookie_counter;
            let bounds = least..=self.counter.get();
            that(
                "the counter in LAST",
                bounds.contains(&value),
                format_args!("{bounds:?}"),
                value,
            )?;
        }
        Ok(Some(Read {
            began,
            ended,
            events,
        }))
    }
}

/// What belongs to one thread.
struct Lane {
    number: u64,
    sequences: Sequences,
    own: World,
    view: World,
    /// When each of its arenas was last looked at, or an earlier time.
    looked: [Ticket; 2],
    regions: Vec<Region>,
    next: u64,
    log: Log,
}

impl Lane {
    fn round(&mut self, watcher: &Watcher, round: u64) -> Outcome {
        if round % RENEW == 0 {
            self.own.reset(false)?;
        }
        for world in [&mut self.own, &mut self.view] {
            self.looked[usize::from(world.is_huge())] = watcher.ticket();
            world.look()?;
        }
        let sequence = self.sequences.next(round);
        for op in sequence {
            watcher.figures.count(op.what);
            match op.what {
                What::Register => self.register(watcher, op)?,
                What::Unregister => self.unregister(watcher, op)?,
                What::RegisterMany if self.regions.len() < 2 * MANY => {
                    for _ in 0..MANY {
                        self.register_one(watcher, op)?;
                    }
                }
                What::RegisterMany | What::UnregisterMany => {
                    for with in 0..MANY as u8 {
                        self.unregister(watcher, Op { with, ..op })?;
                    }
                }
                What::Read | What::Poll | What::Reopen | What::Merge => {
                    let most = [1, 2, 3, 17, 64][usize::from(op.with) % 5];
                    self.log.reads.extend(watcher.read(most)?);
                }
                _ => self.change(watcher, op)?,
            }
        }
        Ok(())
    }

    fn register(&mut self, watcher: &Watcher, op: Op) -> Outcome {
        if self.regions.len() >= REGIONS {
            return self.unregister(watcher, op);
        }
        self.register_one(watcher, op)
    }

    fn register_one(&mut self, watcher: &Watcher, op: Op) -> Outcome {
        let world = if op.with % 4 == 0 {
            &self.view
        } else {
            &self.own
        };
        let range = world.range(op);
        let odd = u64::from(op.with) * 16 % PAGE;
        let range = range.start + odd..range.end;
        // No two regions of a process ever have the same cookie, so that their events can be told
        // apart.
        self.next += 1;
        let cookie = (self.next << 8) | self.number;
        let ignored = match watcher.device.features().contains(Features::CAUSE) {
            true => Causes::from_bits(u32::from(op.with) & Causes::SAME_PAGES.bits()),
            false => Causes::NONE,
        };
        watcher
            .device
            .watch_ignoring(range.clone(), cookie, ignored)?;
        self.regions.push(Region {
            cookie,
            range,
            ignored,
            registered: watcher.ticket(),
            leaving: None,
            left: None,
        });
        Ok(())
    }

    fn unregister(&mut self, watcher: &Watcher, op: Op) -> Outcome {
        if self.regions.is_empty() {
            return Ok(());
        }
        let mut region = self
            .regions
            .swap_remove(usize::from(op.with) % self.regions.len());
        region.leaving = Some(watcher.ticket());
        watcher.device.unregister(region.cookie)?;
        region.left = Some(watcher.ticket());
        self.log.gone.push(region);
        Ok(())
    }

    fn change(&mut self, watcher: &Watcher, op: Op) -> Outcome {
        // A view does not know which markers other threads have left; see `World::act` on guards.
        let alone = matches!(op.what, What::UffdProtect | What::UffdMove);
        let shared = op.with % 4 == 0 && !alone;
        let world = if shared {
            &mut self.view
        } else {
            &mut self.own
        };

        let counter = watcher.counter.get();
        let after = watcher.ticket();
        let effect = world.perform(op)?;
        let moved = watcher.counter.get() - counter;
        let due = watcher.ticket();
        if !shared {
            let causes = op.what.cause();
            let hits = |range: &&Range<u64>| {
                let mut regions = self.regions.iter();
                regions.any(|region| {
                    !region.ignored.contains(causes) && common(&region.range, range).is_some()
                })
            };
            let least = effect.sure.iter().filter(hits).count() as u64;
            expect::at_least(
                "how far a thread's own call moved the counter",
                moved,
                least,
            )?;
            self.log
                .claims
                .extend(effect.sure.into_iter().map(|range| Claim {
                    range,
                    causes,
                    after,
                    due: Some(due),
                    op,
                }));
        }
        let looked = &mut self.looked[usize::from(shared)];
        let before = std::mem::replace(looked, watcher.ticket());
        for page in world.look()? {
            match self.log.claims.last_mut() {
                // It is usually several consecutive pages.
                Some(claim) if claim.due.is_none() && claim.range.end == page.start => {
                    claim.range.end = page.end;
                }
                _ => self.log.claims.push(Claim {
                    range: page,
                    causes: Causes::UNMAP | Causes::CLEAR,
                    after: before,
                    due: None,
                    op,
                }),
            }
        }
        Ok(())
    }
}

impl Sequences {
    /// The operations of a round.
    fn next(&self, round: u64) -> Vec<Op> {
        use proptest::strategy::ValueTree;
        self.tree(round).current().ops
    }
}

/// The parameters of a run.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Chooses the operations.
    pub seed: u64,
    /// Threads of each process.
    pub threads: u64,
    /// Processes.
    pub processes: u64,
    /// The most operations of a thread in a round.
    pub length: usize,
}

/// Runs some rounds, in this process and in others that it starts.
///
/// The process must have only one thread, and must end afterwards.
pub fn run(figures: &'static Figures, plan: Plan, rounds: Range<u64>) -> Outcome {
    let shared = crate::mem::memory_file(0)?;
    let others = (1..plan.processes).map(|number| {
        let (shared, rounds) = (&shared, rounds.clone());
        Child::fork(move |_| {
            // SAFETY: The call takes no pointer.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            run_here(figures, plan, number, shared, rounds)
        })
    });
    let others = others.collect::<io::Result<Vec<_>>>()?;
    run_here(figures, plan, 0, &shared, rounds)?;
    others.into_iter().try_for_each(Child::join)
}

fn run_here(
    figures: &'static Figures,
    plan: Plan,
    process: u64,
    shared: &File,
    rounds: Range<u64>,
) -> Outcome {
    let mut lanes = vec![];
    for number in 0..plan.threads {
        let mut view = World::with_file(plan.threads, shared.try_clone()?)?;
        view.choose(true);
        let lane = process * plan.threads + number;
        lanes.push(Lane {
            number,
            sequences: Sequences::new(plan.seed ^ (lane + 1).rotate_right(16), plan.length),
            own: World::with_file(number, crate::mem::memory_file(0)?)?,
            view,
            looked: [0; 2],
            regions: vec![],
            next: 0,
            log: Log::default(),
        });
    }
    let features = FEATURES[process as usize % FEATURES.len()];
    let device = Device::open_with(features).or_skip("no /dev/ummunotify to open")?;
    let counter = device.map_counter()?;
    let watcher = Watcher {
        figures,
        device,
        counter,
    };
    for round in rounds {
        figures.current.store(round, Ordering::Relaxed);
        if round % RENEW == 0 {
            lanes[0].view.reset(true)?;
        }
        thread::scope(|scope| {
            let run = |lane| scope.spawn(|| Lane::round(lane, &watcher, round));
            let threads: Vec<_> = lanes.iter_mut().map(run).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("the thread does not panic"))
        })
        .and_then(|()| check(&watcher, &mut lanes))
        .map_err(|failure| in_round(failure, process, round))?;
    }
    lanes.into_iter().try_for_each(|lane| {
        lane.own.end()?;
        lane.view.end()
    })
}

/// Reads what is left after a round, compares the claims with what was read, and discards both.
fn check(watcher: &Watcher, lanes: &mut [Lane]) -> Outcome {
    let stopped = watcher.ticket();
    let mut rest = vec![];
    while let Some(read) = watcher.read(64)? {
        rest.push(read);
    }
    let logs: Vec<Log> = lanes
        .iter_mut()
        .map(|lane| std::mem::take(&mut lane.log))
        .collect();
    let regions: Vec<&Region> = lanes
        .iter()
        .flat_map(|lane| &lane.regions)
        .chain(logs.iter().flat_map(|log| &log.gone))
        .collect();
    let reads: Vec<&Read> = logs
        .iter()
        .flat_map(|log| &log.reads)
        .chain(&rest)
        .collect();
    let mut lasts: Vec<&Read> = reads
        .iter()
        .copied()
        .filter(|read| read.has_last())
        .collect();
    lasts.sort_unstable_by_key(|read| read.began);
    let end = watcher.ticket();

    // The events of each region, and the reads that returned them.
    let mut reported: Vec<Vec<(&Read, &Event)>> = regions.iter().map(|_| vec![]).collect();
    let features = watcher.device.features();
    for read in &reads {
        let records = read.events.len() - usize::from(read.has_last());
        for event in &read.events[..records] {
            let cookie = event.user_cookie_counter;
            let index = regions.iter().position(|region| region.cookie == cookie);
            let index =
                index.ok_or_else(|| unknown(cookie, "none that was there in this round"))?;
            let region = regions[index];
            if region.left.is_some_and(|left| left < read.began) {
                return Err(unknown(cookie, "one that was unregistered before the read"));
            }
            let hint = event.hint_start..event.hint_end;
            that(
                "hint of an event",
                common(&hint, &region.range).as_ref() == Some(&hint),
                format_args!("inside {:#x?}", region.range),
                format_args!("{hint:#x?}"),
            )?;
            check_flags(event, region, features)?;
            reported[index].push((read, event));
            add(&watcher.figures.changed, 1);
        }
    }

    for claim in logs.iter().flat_map(|log| &log.claims) {
        let due = claim.due.unwrap_or(stopped);
        let from = lasts.partition_point(|read| read.began <= due);
        for (region, reported) in regions.iter().zip(&reported) {
            let overlaps = common(&region.range, &claim.range).is_some();
            let heeds = !region.ignored.contains(claim.causes);
            if !overlaps || !heeds || region.registered >= claim.after {
                continue;
            }
            let stays = |ended: Ticket| region.leaving.is_none_or(|leaving| leaving > ended);
            let until = lasts[from..]
                .iter()
                .map(|read| read.ended)
                .filter(|at| stays(*at))
                .min();
            let until = match until {
                Some(until) => until,
                None if region.leaving.is_none() => end,
                None => continue,
            };
            add(&watcher.figures.claims, 1);
            let is_in_time = |read: &Read| read.ended > claim.after && read.began < until;
            if !reported
                .iter()
                .any(|(read, event)| is_in_time(read) && claim.is_met(event, region, features))
            {
                let reported: Vec<_> = reported
                    .iter()
                    .map(|(read, event)| (read.began..read.ended, event))
                    .collect();
                return Err(Failure::new(
                    "what was read up to LAST",
                    format_args!(
                        "an event of region {:#x}, {:#x?}, registered at {}, after {} and before \
                         {until}, since {:#x?} was lost by {}: {}",
                        region.cookie,
                        region.range,
                        region.registered,
                        claim.after,
                        claim.range,
                        claim.op,
                        claim.causes
                    ),
                    format_args!("events at {reported:?}: MISSED"),
                ));
            }
        }
    }
    Ok(())
}

/// Expects the flags of an event to be possible for its region.
fn check_flags(event: &Event, region: &Region, features: Features) -> Outcome {
    const POSSIBLE: Causes =
        Causes::from_bits(Causes::UNMAP.bits() | Causes::CLEAR.bits() | Causes::SAME_PAGES.bits());
    let causes = causes_of(event);
    let possible = match features.contains(Features::CAUSE) {
        true => {
            !causes.is_empty() && !causes.intersects(region.ignored) && POSSIBLE.contains(causes)
        }
        false => causes.is_empty(),
    };
    that(
        "causes of an event",
        possible,
        format_args!(
            "known ones, with the feature, but none of {}",
            region.ignored
        ),
        causes,
    )?;
    let has_hint = event.flags & EVENT_FLAG_HINT != 0;
    let other = event.flags & ((1 << EVENT_CAUSES_SHIFT) - 1) & !EVENT_FLAG_HINT;
    that(
        "flags of an event",
        other == 0 && (has_hint || !features.contains(Features::HULL)),
        "HINT, which is always set with hulls",
        format_args!("{:#x}", event.flags),
    )?;
    let hint = event.hint_start..event.hint_end;
    that(
        "range of an event without hint",
        has_hint || hint == region.range,
        format_args!("{:#x?}", region.range),
        format_args!("{hint:#x?}"),
    )
}

fn unknown(cookie: u64, which: &str) -> Failure {
    Failure::new(
        "region of an event",
        "one that is registered",
        format_args!("{which}: {cookie:#x}"),
    )
}

fn in_round(failure: Failure, process: u64, round: u64) -> Failure {
    match failure {
        Failure::Failed(why) => Failure::Failed(format!("process {process}, round {round}: {why}")),
        skipped => skipped,
    }
}
