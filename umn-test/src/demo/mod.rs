// SPDX-License-Identifier: GPL-2.0

//! Shows that a cache of pinned memory goes stale, and that ummunotify prevents it.
//!
//! - [`adapter`]: sends from pinned memory.
//! - [`ummunotify::cache`]: keeps memory pinned. This is the file to read.
//! - [`application`]: changes its memory, sends from it, and checks what arrives.
//! - [`vain`]: changes that leave pinned pages in place, and how they affect a cache.

pub mod adapter;
pub mod application;
mod region;
mod vain;

use std::{
    fmt::Display,
    io,
    process::ExitCode,
    sync::{
        Mutex,
        PoisonError, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

use ummunotify::{
    cache::{
        Counts,
        RegistrationCache, //
    },
    Features,
    Options,
    Watcher, //
};

use self::{
    adapter::Adapter,
    application::{
        Change,
        Fates, //
    },
    vain::{
        Lost,
        CASES, //
    },
};
use crate::{
    command::{
        self,
        failed, //
    },
    expect::{
        Failure,
        Outcome, //
    },
};

/// Show a pin cache going stale, and the fix.
///
/// Threads send messages from memory that a cache keeps pinned, here with io_uring, which pins as
/// an RDMA adapter does. Between two messages, a thread may change the mapping at the buffer's
/// address. The program runs twice, without and with ummunotify. A message is stale if its checksum
/// is not that of the bytes that were written.
///
/// A second table shows how often memory must be pinned again although its pages are still the
/// same, with version 2 of the interface and with the features that the driver offers.
///
/// The demonstration succeeds if there are stale messages without ummunotify and none with it.
#[derive(clap::Args)]
#[command(after_help = command::EXIT_STATUS)]
pub struct Args {
    /// Messages that each thread sends
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Threads
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
}

/// Runs the demonstration.
pub fn run(args: &Args) -> ExitCode {
    command::exit(show(args))
}

fn show(args: &Args) -> Outcome {
    command::open_device()?;
    // The driver grants those that it has.
    let device = Options::new().features(Features::ALL).open();
    let device = device.map_err(failed("opening the device"))?;
    let features = device.features();
    let without = run_once(args, None)?;
    let with = run_once(args, Some(device))?;
    print(args, &without, &with);
    judge(&without, &with)?;
    if features == Features::NONE {
        println!("\nThis driver offers no features beyond version 2.");
        return Ok(());
    }
    compare()
}

/// Prints how many registrations are lost needlessly; fails if features do not reduce their number,
/// or if a message is stale.
fn compare() -> Outcome {
    println!();
    row("REGISTRATIONS LOST NEEDLESSLY", "version 2", "features");
    let (mut before, mut now) = (Lost::default(), Lost::default());
    for case in &CASES {
        let results = (case.run(Features::NONE)?, case.run(Features::ALL)?);
        let (Some(version_2), Some(features)) = results else {
            row(&format!("  {}", case.name), "not here", "not here");
            continue;
        };
        row(&format!("  {}", case.name), version_2, features);
        before.add(version_2);
        now.add(features);
    }
    row("  stale messages", before.stale, now.stale);
    judge_lost(before, now)
}

/// Fails if the second table does not show what it should.
fn judge_lost(before: Lost, now: Lost) -> Outcome {
    let stale = before.stale + now.stale;
    if stale > 0 {
        return Err(Failure::Failed(format!(
            "{stale} messages were stale although ummunotify was used"
        )));
    }
    if before.in_vain == 0 || now.in_vain * 10 > before.in_vain {
        return Err(Failure::Failed(format!(
            "{} registrations were lost needlessly with features, and {} without",
            now.in_vain, before.in_vain
        )));
    }
    Ok(())
}

/// Results of one run of the program.
struct Run {
    fates: Fates,
    counts: Counts,
    time: Duration,
}

fn run_once(args: &Args, device: Option<ummunotify::Device>) -> Outcome<Run> {
    // Fewer than there are buffers, so that some have to be evicted.
    let keys = args.threads * (application::BUFFERS as u16 * 3 / 4);
    let adapter = Adapter::open(keys + 2).map_err(|error| {
        Failure::Skipped(format!(
            "io_uring with sparse buffer tables (Linux 5.19) is not available: {error}"
        ))
    })?;
    let watcher = device
        .map(Watcher::new)
        .transpose()
        .map_err(failed("mapping the counter"))?;
    let cache = Mutex::new(RegistrationCache::new(adapter, keys.into(), watcher));

    let began = Instant::now();
    let fates = run_threads(args, &cache).map_err(explain)?;
    let time = began.elapsed();
    let cache = cache.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Run {
        fates,
        counts: cache.counts(),
        time,
    })
}

fn run_threads(args: &Args, cache: &Mutex<RegistrationCache<Adapter>>) -> io::Result<Fates> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads.into())
            .map(|thread| {
                scope.spawn(move || application::run_thread(thread, args.rounds.into(), cache))
            })
            .collect();
        let mut all = Fates::default();
        for thread in threads {
            all.add(
                thread
                    .join()
                    .unwrap_or_else(|why| std::panic::resume_unwind(why))?,
            );
        }
        Ok(all)
    })
}

/// Explains why the program failed.
fn explain(error: io::Error) -> Failure {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => Failure::Skipped(
            "memory cannot be pinned; allow more (ulimit -l), or use fewer --threads".into(),
        ),
        _ => failed("running the program")(error),
    }
}

fn print(args: &Args, without: &Run, with: &Run) {
    println!(
        "{} threads send {} messages each, from memory that a cache keeps pinned.\n",
        args.threads, args.rounds
    );
    row("ummunotify", "without", "with");
    let count = |what: &str, of: fn(&Counts) -> u64| {
        row(what, of(&without.counts), of(&with.counts));
    };
    row(
        "messages sent",
        without.fates.sum().sent,
        with.fates.sum().sent,
    );
    count("  found pinned (cache hits)", |it| it.hits);
    count("memory pinned", |it| it.pins);
    count("  unpinned to make room", |it| it.evictions);
    count("checks: loads of the counter", |it| it.loads);
    count("  with no system call", |it| it.loads - it.moved);
    count("  with read()", |it| it.moved);
    count("    changes read", |it| it.changes);
    row(
        "seconds",
        format!("{:.1}", without.time.as_secs_f64()),
        format!("{:.1}", with.time.as_secs_f64()),
    );
    println!();

    row(
        "STALE MESSAGES",
        without.fates.sum().stale,
        with.fates.sum().stale,
    );
    for change in Change::ALL {
        let stale = |run: &Run| {
            let fate = run.fates.after[change as usize];
            format!("{} of {}", fate.stale, fate.sent)
        };
        row(
            &format!("  after {}", change.name()),
            stale(without),
            stale(with),
        );
    }
    println!();
    if let Some(example) = &without.fates.example {
        println!("For example, without ummunotify {example}.");
    }
}

fn row(what: &str, without: impl Display, with: impl Display) {
    println!("{what:40} {without:>14} {with:>14}");
}

/// Prints the conclusion; fails if the run does not show what it should.
fn judge(without: &Run, with: &Run) -> Outcome {
    let (without, with, counts) = (without.fates.sum(), with.fates.sum(), with.counts);
    if with.stale > 0 {
        return Err(Failure::Failed(format!(
            "{} of {} messages were stale although ummunotify was used",
            with.stale, with.sent
        )));
    }
    if without.stale == 0 {
        return Err(Failure::Failed(
            "no message was stale without ummunotify, so nothing was shown; try more --rounds"
                .into(),
        ));
    }
    println!(
        "Without ummunotify {} of {} messages carried old bytes, and no call failed.\n\
         With it none did, and {} of {} checks took no system call.",
        without.stale,
        without.sent,
        counts.loads - counts.moved,
        counts.loads
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stale: u64) -> Run {
        let mut fates = Fates::default();
        fates.after[Change::Free as usize] = application::Fate { sent: 5, stale };
        Run {
            fates,
            counts: Counts::default(),
            time: Duration::ZERO,
        }
    }

    #[test]
    fn only_stale_messages_without_and_none_with_are_a_success() {
        assert!(judge(&run(1), &run(0)).is_ok());
        assert!(judge(&run(0), &run(0)).is_err());
        assert!(judge(&run(1), &run(1)).is_err());
        assert!(judge(&run(0), &run(1)).is_err());
    }

    #[test]
    fn fewer_losses_in_vain_and_none_stale_are_a_success() {
        let lost = |in_vain, stale| Lost {
            looked_up: 1000,
            in_vain,
            stale,
        };
        assert!(judge_lost(lost(1000, 0), lost(0, 0)).is_ok());
        assert!(judge_lost(lost(1000, 0), lost(200, 0)).is_err());
        assert!(judge_lost(lost(0, 0), lost(0, 0)).is_err());
        assert!(judge_lost(lost(1000, 1), lost(0, 0)).is_err());
        assert!(judge_lost(lost(1000, 0), lost(0, 1)).is_err());
    }

    #[test]
    fn each_change_is_at_its_index() {
        for (index, change) in Change::ALL.into_iter().enumerate() {
            assert_eq!(change as usize, index);
        }
    }
}
