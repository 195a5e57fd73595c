// SPDX-License-Identifier: GPL-2.0

//! A property-based test: random sequences of all operations, checked against an oracle that
//! derives what must be reported.

mod cache;
pub mod calls;
mod concurrent;
mod effect;
mod exact;
mod figures;
mod op;
mod oracle;
mod other;
mod world;

use std::{
    ops::Range,
    process::ExitCode,
    sync::atomic::Ordering,
    time::{
        Duration,
        Instant, //
    }, //
};

use proptest::strategy::ValueTree;
use ummunotify::cache::Fault;

use self::{
    exact::Session,
    figures::{
        get,
        Figures, //
    },
    op::{
        Sequence,
        Sequences, //
    },
};
use crate::{
    command,
    expect::{
        Failure,
        Outcome, //
    },
    process::{
        self,
        Child, //
    },
    report::{
        Format,
        Report, //
    },
    system::Setting,
};

/// Property-based test: do random operations, and compare what the device reports with what it must
/// report.
///
/// Results are printed to standard output, progress and statistics to standard error.
///
/// First, one thread does one operation after the other: it registers and unregisters regions,
/// reads in every way, and changes mappings in every way the kernel has, by itself and from another
/// process. After each operation, the counter and the events are compared with what follows from
/// the operation, the VMAs before it, and the page frames before and after it. So nothing may be
/// missed, and nothing may be reported without a cause.
///
/// Then several threads and processes do the same concurrently. What must be reported follows from
/// when each call began and ended.
///
/// Last, threads send messages from memory that a cache with all features keeps pinned, while its
/// mappings change in every way. Each message must carry the bytes that were written. Two caches
/// with a deliberate bug show that stale messages are noticed.
///
/// Operations come in sequences. A failing sequence is shortened as far as possible, and printed in
/// a form that --replay takes.
#[derive(clap::Args)]
#[command(verbatim_doc_comment, after_help = command::EXIT_STATUS)]
pub struct Args {
    /// Approximate number of operations, or of messages
    #[arg(long, default_value_t = 10_000)]
    ops: u64,

    /// Seed of the random sequences; 0 takes the process ID
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Run only one of the three parts
    #[arg(long)]
    mode: Option<Mode>,

    /// Threads of each process in the concurrent part
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=32))]
    threads: u64,

    /// Processes in the concurrent part
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=32))]
    processes: u64,

    /// Maximum number of operations in a sequence
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    length: u16,

    /// Run only the sequence with this number
    #[arg(long, value_name = "NUMBER")]
    only: Option<u64>,

    /// Run this sequence, given as a failure prints it
    #[arg(long, value_name = "SEQUENCE")]
    replay: Option<Sequence>,

    /// Do not shorten a failing sequence
    #[arg(long)]
    no_shrink: bool,

    /// Seconds without progress after which the process is considered hung
    #[arg(long, default_value_t = 60)]
    timeout: u64,

    /// How to print the results
    #[arg(long, value_enum, default_value_t = Format::Tap)]
    format: Format,

    /// Print how often each operation was done
    #[arg(short, long)]
    verbose: bool,
}

/// A part of the test.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// One thread; everything is checked at once.
    Exact,
    /// Several threads and processes.
    Concurrent,
    /// A cache of pinned memory, with all features.
    Cache,
}

/// How many sequences one process runs before a new process takes over.
const BATCH: u64 = 32;

/// Interval between progress messages.
const PROGRESS: Duration = Duration::from_secs(10);

/// Maximum number of attempts to shorten a sequence.
const SHRINK_TRIES: usize = 3000;

/// Runs the test.
pub fn run(args: &Args) -> ExitCode {
    let _settings = quieten();
    let seed = match args.seed {
        0 => std::process::id().into(),
        seed => seed,
    };
    let alone = args.replay.is_some() || args.only.is_some();
    let modes = [
        ("model_exact", Mode::Exact, Model::exact as fn(&_) -> _),
        ("model_concurrent", Mode::Concurrent, Model::concurrent),
        ("model_cache", Mode::Cache, Model::cache),
        ("model_cache_ignores_clear", Mode::Cache, |model| {
            model.faulty_cache(Fault::IgnoresClear)
        }),
        ("model_cache_stamps_first", Mode::Cache, |model| {
            model.faulty_cache(Fault::StampsFirst)
        }),
    ];
    let wanted = modes.into_iter().filter(|(_, mode, _)| match args.mode {
        Some(wanted) => *mode == wanted,
        None => !alone || *mode == Mode::Exact,
    });
    let wanted: Vec<_> = wanted.collect();
    let mut report = Report::new(args.format, args.verbose, wanted.len());
    for (name, mode, run) in wanted {
        let began = Instant::now();
        let outcome = Figures::shared()
            .map_err(Failure::from)
            .and_then(|figures| {
                let model = Model {
                    args,
                    figures,
                    seed,
                    began,
                };
                eprintln!("{name}: seed {seed}");
                let outcome = run(&model);
                model.report(mode, &outcome);
                outcome
            });
        report.add(name, outcome.map(|()| String::new()), began.elapsed());
    }
    report.end()
}

/// Keeps the kernel from changing mappings by itself, as far as possible.
fn quieten() -> Vec<Setting> {
    // If this fails, the kernel has no NUMA balancing.
    let _ = process::balance_numa(false);
    let huge = "/sys/kernel/mm/transparent_hugepage/khugepaged";
    let settings = [
        (format!("{huge}/scan_sleep_millisecs"), "4000000000"),
        (format!("{huge}/alloc_sleep_millisecs"), "4000000000"),
        ("/proc/sys/vm/compaction_proactiveness".into(), "0"),
        ("/sys/kernel/mm/ksm/run".into(), "0"),
    ];
    let changed = settings
        .into_iter()
        .map(|(path, value)| Setting::change(path, value));
    changed.flatten().collect()
}

struct Model<'a> {
    args: &'a Args,
    figures: &'static Figures,
    seed: u64,
    began: Instant,
}

impl Model<'_> {
    fn exact(&self) -> Outcome {
        if let Some(sequence) = &self.args.replay {
            return self.apart(std::slice::from_ref(sequence));
        }
        let sequences = Sequences::new(self.seed, self.args.length.into());
        if let Some(number) = self.args.only {
            return self.one(&sequences, number);
        }
        self.batches(|batch| {
            let outcome = self.watched(|figures| {
                let mut session = Session::new(figures)?;
                for number in batch {
                    if get(&figures.done) >= self.args.ops {
                        break;
                    }
                    figures.current.store(number, Ordering::Relaxed);
                    session.run(&sequences.tree(number).current())?;
                }
                session.end()
            });
            let Err(Failure::Failed(why)) = outcome else {
                return outcome;
            };
            eprintln!("failed after {} operations: {why}", get(&self.figures.done));
            self.one(&sequences, get(&self.figures.current))?;
            Err(Failure::Failed(format!(
                "{why}; but this sequence does not fail on its own"
            )))
        })
    }

    fn concurrent(&self) -> Outcome {
        let plan = concurrent::Plan {
            seed: self.seed,
            threads: self.args.threads,
            processes: self.args.processes,
            length: self.args.length.into(),
        };
        if let Some(round) = self.args.only {
            return self.watched(|figures| concurrent::run(figures, plan, round..round + 1));
        }
        // A batch cannot be cut short, so it must not be long.
        self.batches(|batch| self.watched(|figures| concurrent::run(figures, plan, batch)))
    }

    fn cache(&self) -> Outcome {
        self.cache_with(None)
    }

    /// Expects a cache with a bug to send a stale message, sooner or later.
    fn faulty_cache(&self, fault: Fault) -> Outcome {
        match self.cache_with(Some(fault)) {
            Err(Failure::Failed(why)) if why.contains("STALE") => {
                eprintln!("caught: {why}");
                Ok(())
            }
            Ok(()) => Err(Failure::new("a buggy cache", "a stale message", "none")),
            failure => failure,
        }
    }

    fn cache_with(&self, fault: Option<Fault>) -> Outcome {
        /// When a bug shows depends on timing.
        const PATIENCE: u64 = 20;
        let patience = if fault.is_some() { PATIENCE } else { 1 };
        let plan = cache::Plan {
            seed: self.seed,
            messages: self.args.ops * patience,
            fault,
        };
        self.watched(|figures| cache::run(figures, plan))
    }

    /// Runs batches until enough operations have been done.
    fn batches(&self, mut run: impl FnMut(Range<u64>) -> Outcome) -> Outcome {
        let mut said = self.began;
        let mut next = 0;
        while get(&self.figures.done) < self.args.ops {
            run(next..next + BATCH)?;
            next += BATCH;
            if said.elapsed() >= PROGRESS {
                said = Instant::now();
                eprintln!(
                    "{} operations, {} s",
                    get(&self.figures.done),
                    self.began.elapsed().as_secs()
                );
            }
        }
        Ok(())
    }

    /// Runs the sequence with this number, and shortens it if it fails.
    fn one(&self, sequences: &Sequences, number: u64) -> Outcome {
        let mut tree = sequences.tree(number);
        eprintln!(
            "sequence {number} of seed {}: {}",
            self.seed,
            tree.current()
        );
        let mut outcome = self.apart(&[tree.current()]);
        if outcome.is_ok() || self.args.no_shrink {
            return outcome;
        }
        let mut shortest = tree.current();
        let mut going = tree.simplify();
        for _ in 0..SHRINK_TRIES {
            if !going {
                break;
            }
            let now = tree.current();
            match self.apart(std::slice::from_ref(&now)) {
                Err(failure) => {
                    (shortest, outcome) = (now, Err(failure));
                    going = tree.simplify();
                }
                Ok(()) => going = tree.complicate(),
            }
        }
        // Leaving out operations comes first, and simplifying them second.
        let mut index = shortest.ops.len();
        while index > 0 {
            index -= 1;
            let mut now = shortest.clone();
            now.ops.remove(index);
            if let Err(failure) = self.apart(std::slice::from_ref(&now)) {
                (shortest, outcome) = (now, Err(failure));
            }
        }
        eprintln!(
            "{} operations suffice: --replay '{shortest}'",
            shortest.ops.len()
        );
        outcome
    }

    /// Runs sequences in a separate process.
    fn apart(&self, sequences: &[Sequence]) -> Outcome {
        self.watched(|figures| {
            let mut session = Session::new(figures)?;
            for sequence in sequences {
                session.run(sequence)?;
            }
            session.end()
        })
    }

    /// Runs something in a separate process as long as it makes progress.
    fn watched(&self, body: impl FnOnce(&'static Figures) -> Outcome) -> Outcome {
        let figures = self.figures;
        let child = Child::fork(|_| body(figures))?;
        let mut done = get(&figures.done);
        while !process::wait_for_exit(child.pid(), Duration::from_secs(self.args.timeout))? {
            let now = get(&figures.done);
            if now == done {
                return Err(Failure::new("the process", "progress", "none"));
            }
            done = now;
        }
        child.join()
    }

    fn report(&self, mode: Mode, outcome: &Outcome) {
        let figures = self.figures;
        if mode == Mode::Cache {
            let (messages, time) = (get(&figures.done), self.began.elapsed());
            eprintln!("{messages} messages in {:.1} s", time.as_secs_f64());
            return;
        }
        if self.args.verbose {
            figures.print();
        }
        eprintln!(
            "{} operations in {:.1} s; {} events and {} LAST",
            get(&figures.done),
            self.began.elapsed().as_secs_f64(),
            figures.events(),
            get(&figures.lasts),
        );
        if mode == Mode::Exact {
            eprintln!(
                "counters moved {} times; events: {} of a region with a page that was lost, {} of \
                 another region that the call affected, {} of one beyond the arena; \
                 {} pages taken by the kernel on its own",
                figures.invalidations(),
                get(&figures.changed),
                figures.events() - get(&figures.changed) - get(&figures.beyond),
                get(&figures.beyond),
                get(&figures.unasked),
            );
            eprintln!(
                "changes seen deferred: {}, and merged: {}",
                get(&figures.deferred),
                get(&figures.merged),
            );
        }
        if outcome.is_ok() {
            let unexplained = match mode {
                Mode::Exact => ", 0 unexplained",
                Mode::Concurrent | Mode::Cache => "",
            };
            eprintln!(
                "{} reports were due: 0 missed{unexplained}",
                get(&figures.claims)
            );
        }
    }
}
