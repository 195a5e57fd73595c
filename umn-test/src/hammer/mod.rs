// SPDX-License-Identifier: GPL-2.0

//! A stress test: calls of all kinds from hostile callers, at the same time, while processes are
//! killed and the module is unloaded and loaded.
//!
//! - [`calls`]: the calls, and the results each may have. This is the file to read.
//! - [`caller`]: a thread that makes them, and the arguments it chooses.
//! - [`worker`]: a process of such threads.
//! - [`tally`]: the statistics.
//!
//! This file starts them, kills them, and checks that none is left.

mod caller;
mod calls;
mod tally;
mod worker;

use std::{
    ffi::{
        OsStr,
        OsString, //
    },
    fs,
    io,
    os::unix::net::UnixStream,
    process::ExitCode,
    thread,
    time::{
        Duration,
        Instant,
        SystemTime, //
    }, //
};

use fastrand::Rng;

use self::{
    caller::{
        LINE_FDS,
        MOST_THREADS, //
    },
    tally::{
        Tally,
        MOST_WORKERS, //
    }, //
};
use crate::{
    command::{
        self,
        failed, //
    },
    device::check,
    expect::{
        self,
        Failure,
        Outcome, //
    },
    mem::{
        self,
        Guarded, //
    },
    module::Module,
    process::Child,
    report::{
        Format,
        Report, //
    },
    system::{
        self,
        Cgroup, //
    },
};

/// Stress test: random hostile calls from many processes and threads.
///
/// The result is printed to standard output, statistics to standard error.
///
/// Multithreaded processes open the device and use it in valid and invalid ways, while their memory
/// changes, while files are closed, inherited, passed on and executed with, and while processes are
/// killed. With --reload, another process unloads the module whenever it can and loads it again.
///
/// The test passes if every result was one that the call may have, every killed process ended, and
/// the device works at the end. Damage to the kernel itself shows in its log.
///
/// With the same seed, each thread chooses the same calls. Which of them coincide is up to chance.
#[derive(clap::Args)]
#[command(after_help = command::EXIT_STATUS)]
pub struct Args {
    /// How long to run, in seconds
    #[arg(long, default_value_t = 10, value_name = "N")]
    seconds: u32,

    /// Seed of the random choices; by default the time
    #[arg(long)]
    seed: Option<u64>,

    /// Threads of each process
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=MOST_THREADS as i64))]
    threads: u8,

    /// Processes at a time
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=MOST_WORKERS as i64))]
    processes: u8,

    /// How to print the result
    #[arg(long, value_enum, default_value_t = Format::Tap)]
    format: Format,

    /// Unload the module and load it again, from this file or from $UMN_MODULE. Implies --system
    #[arg(long, num_args = 0..=1, value_name = "MODULE")]
    reload: Option<Option<OsString>>,

    /// Act as the program that a worker executes
    #[arg(long, hide = true, value_name = "SEED")]
    executed: Option<u64>,
}

/// Runs the stress test.
pub fn run(args: &Args) -> ExitCode {
    match args.executed {
        Some(seed) => worker::executed(seed),
        None => {
            let mut report = Report::new(args.format, false, 1);
            let began = Instant::now();
            let outcome = hammer(args);
            report.add("hammer", outcome.map(|()| String::new()), began.elapsed());
            report.end()
        }
    }
}

/// How long a killed process may take to end, even on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Signals that end a broken process, as opposed to an unlucky one.
const BROKEN: &[i32] = &[
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGABRT,
    libc::SIGFPE,
    libc::SIGSYS,
];

fn hammer(args: &Args) -> Outcome {
    if args.reload.is_some() {
        system::allow_changes();
    }
    drop(command::open_device()?);
    let seed = args.seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(0, |time| time.as_nanos() as u64 % 1_000_000_007)
    });
    eprintln!("seed {seed}");
    let tally = Tally::create().map_err(failed("making shared memory"))?;
    // Orphaned grandchildren are reaped here.
    // SAFETY: The call takes no pointer.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) })?;

    let reloader = args
        .reload
        .as_ref()
        .map(|path| Reloader::start(tally, path.as_deref(), seed))
        .transpose()?;
    let mut run = Run {
        tally,
        rng: Rng::with_seed(seed),
        seed,
        processes: args.processes.into(),
        threads: args.threads.into(),
        // Keeps the workers from using up the machine's memory, if it can be created.
        group: Cgroup::new("hammer").ok(),
        figures: Figures::default(),
    };
    if let Some(group) = &run.group {
        group.write("memory.max", "256M")?;
    }
    let end = Instant::now() + Duration::from_secs(args.seconds.into());
    while Instant::now() < end && tally.wrongs() == 0 {
        run.one_round()?;
    }
    let figures = run.figures;
    drop(run.group);
    reloader.map_or(Ok(()), |reloader| reloader.stop(tally))?;

    tally.print(calls::names());
    eprintln!("{} calls in {} rounds", tally.calls(), figures.rounds);
    eprintln!(
        "processes: {} started; {} ended, {} were killed",
        figures.started, figures.ended, figures.killed
    );
    eprintln!("and {} children that they left", figures.orphans);
    if args.reload.is_some() {
        eprintln!(
            "module: unloaded and loaded {} times, refused {} times",
            tally.unloads(),
            tally.refusals()
        );
    }
    expect::same("results that must not occur", tally.wrongs(), 0)?;
    one_cycle()
}

/// Checks that the device works.
fn one_cycle() -> Outcome {
    let device = command::open_device()?;
    let counter = device.map_counter()?;
    let area = Guarded::new(1)?;
    let page = area.all();
    device.register(page.start, page.end, 7)?;
    mem::unmap(&page)?;
    expect::same("the counter", counter.get(), 1)?;
    let wanted = [expect::inval(7, &page), expect::last(1)];
    expect::events("read", &device.read_events(3)?, &wanted)
}

/// What became of the processes.
#[derive(Default)]
struct Figures {
    rounds: u64,
    started: u64,
    ended: u64,
    killed: u64,
    orphans: u64,
}

/// What is needed to start workers.
struct Run {
    tally: &'static Tally,
    rng: Rng,
    seed: u64,
    processes: usize,
    threads: usize,
    group: Option<Cgroup>,
    figures: Figures,
}

/// How long something continues: until a number of calls were made, since machines differ in speed,
/// or until a time limit, since all threads may sleep.
#[derive(Clone, Copy)]
struct Term {
    calls: u64,
    latest: Instant,
}

impl Term {
    fn new(tally: &Tally, calls: u64) -> Self {
        Self {
            calls: tally.calls() + calls,
            latest: Instant::now() + Duration::from_secs(10),
        }
    }

    fn is_over(&self, tally: &Tally) -> bool {
        tally.calls() >= self.calls || Instant::now() > self.latest
    }
}

/// A process that was started.
#[derive(Clone, Copy)]
struct Started {
    pid: i32,
    /// When to kill it.
    term: Term,
}

impl Run {
    /// Starts workers, replaces those that end for a while, and then kills the rest.
    ///
    /// Afterwards nothing has the device open, so that the module can be unloaded.
    fn one_round(&mut self) -> Outcome {
        let lines = self.lay_lines().map_err(failed("making a socket"))?;
        let leader = fork(|| loop {
            // SAFETY: The call takes no arguments.
            unsafe { libc::pause() };
        })?;
        join_group(leader, leader);
        let term = Term::new(self.tally, self.rng.u64(300..4000));
        let mut workers = vec![None; self.processes];
        while !term.is_over(self.tally) && self.tally.wrongs() == 0 {
            for (place, worker) in workers.iter_mut().enumerate() {
                match *worker {
                    None => *worker = Some(self.start(place, leader)?),
                    Some(started) if self.has_ended(started.pid)? => {
                        self.tally.set_worker(place, 0);
                        *worker = None;
                    }
                    Some(Started { pid, term }) if term.is_over(self.tally) => {
                        if Instant::now() > term.latest + PATIENCE {
                            return Err(stuck(leader));
                        }
                        kill(pid);
                    }
                    Some(_) => (),
                }
            }
            thread::sleep(Duration::from_millis(2));
        }
        drop(lines);
        kill(-leader);
        let late = Instant::now() + PATIENCE;
        let known: Vec<i32> = workers.iter().flatten().map(|worker| worker.pid).collect();
        while self.reap_group(leader, &known)? {
            if Instant::now() > late {
                return Err(stuck(leader));
            }
            thread::sleep(Duration::from_millis(1));
        }
        for place in 0..MOST_WORKERS {
            self.tally.set_worker(place, 0);
        }
        self.figures.rounds += 1;
        // Sometimes the next workers start while the module is being unloaded.
        thread::sleep(Duration::from_micros(self.rng.u64(0..5000)));
        Ok(())
    }

    /// Creates the channel over which all workers of a round pass files.
    fn lay_lines(&self) -> io::Result<Lines> {
        let (one, two) = UnixStream::pair()?;
        for (end, fd) in [one, two].iter().zip(LINE_FDS) {
            end.set_nonblocking(true)?;
            tally::place_at(end, fd)?;
        }
        Ok(Lines)
    }

    /// Starts a worker.
    fn start(&mut self, place: usize, leader: i32) -> Outcome<Started> {
        let plan = worker::Plan {
            // Seeds that differ by one produce unrelated sequences.
            seed: Rng::with_seed(self.seed ^ self.figures.started).u64(..),
            threads: self.threads,
            group: self.group.as_ref(),
        };
        let tally = self.tally;
        let pid = fork(|| worker::run(&plan, tally, leader))?;
        join_group(pid, leader);
        self.tally.set_worker(place, pid);
        self.figures.started += 1;
        let term = Term::new(self.tally, self.rng.u64(50..3000));
        Ok(Started { pid, term })
    }

    /// Reaps a worker if it has ended, and records how.
    fn has_ended(&mut self, pid: i32) -> Outcome<bool> {
        let mut status = 0;
        // SAFETY: `status` may be written to.
        let reaped = check(unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) })?;
        if reaped != 0 {
            self.take_note(status, true);
        }
        Ok(reaped != 0)
    }

    /// Reaps the ended processes of a group; returns whether there may be more.
    fn reap_group(&mut self, leader: i32, known: &[i32]) -> Outcome<bool> {
        loop {
            let mut status = 0;
            // SAFETY: `status` may be written to.
            match check(unsafe { libc::waitpid(-leader, &mut status, libc::WNOHANG) }) {
                Ok(0) => return Ok(true),
                Ok(pid) if pid == leader => (),
                Ok(pid) => self.take_note(status, known.contains(&pid)),
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take_note(&mut self, status: i32, is_worker: bool) {
        let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
        match (is_worker, signal) {
            (false, _) => self.figures.orphans += 1,
            (true, None) => self.figures.ended += 1,
            (true, Some(_)) => self.figures.killed += 1,
        }
        let failed = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) != 0;
        if failed || signal.is_some_and(|signal| BROKEN.contains(&signal)) {
            self.tally
                .wrong(&format!("a process ended with status {status:#x}"));
        }
    }
}

/// The channel of a round. Closing it also drops the files that nobody received.
struct Lines;

impl Drop for Lines {
    fn drop(&mut self) {
        for fd in LINE_FDS {
            // SAFETY: The descriptor was opened for this purpose.
            unsafe { libc::close(fd) };
        }
    }
}

/// Forks a child that runs `body` and never returns.
fn fork<T>(body: impl FnOnce() -> T) -> io::Result<i32> {
    // SAFETY: There is only this thread, so the child may do whatever the parent may.
    match check(unsafe { libc::fork() })? {
        0 => {
            body();
            // SAFETY: Ends the process, without the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        pid => Ok(pid),
    }
}

/// Puts a child into a process group, unless it has already exited.
fn join_group(pid: i32, leader: i32) {
    // SAFETY: The call takes no pointer.
    unsafe { libc::setpgid(pid, leader) };
}

/// Kills a process or, if `pid` is negative, a group, unless it has already exited.
fn kill(pid: i32) {
    // SAFETY: The call takes no pointer.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Describes the remaining processes of a killed group, and where in the kernel they are.
fn stuck(leader: i32) -> Failure {
    kill(-leader);
    let mut seen = String::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let of = |file| fs::read_to_string(path.join(file)).unwrap_or_default();
        let stat = of("stat");
        // After the name: state, parent, group.
        let group = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(2)?.parse().ok());
        if group == Some(leader) {
            seen += &format!("{stat}{}{}\n", of("stack"), of("wchan"));
        }
    }
    Failure::new("killed processes", "their end", seen)
}

/// A process that unloads and loads the module as often as it can.
struct Reloader(Child);

impl Reloader {
    fn start(tally: &'static Tally, path: Option<&OsStr>, seed: u64) -> Outcome<Self> {
        let module = Module::find(path)?;
        Child::fork(|_| {
            let mut rng = Rng::with_seed(!seed);
            while !tally.is_over() {
                match Module::remove() {
                    Ok(()) => {
                        expect::success("loading the module", module.insert(c""))?;
                        tally.count_unload();
                        // Leave time to use it.
                        thread::sleep(Duration::from_millis(rng.u64(0..2000)));
                    }
                    error => {
                        in_use(error)?;
                        tally.count_refusal();
                    }
                }
                thread::sleep(Duration::from_micros(500));
            }
            // Files may stay open for a moment, since io_uring releases them asynchronously.
            let late = Instant::now() + PATIENCE;
            while let error @ Err(_) = Module::remove() {
                in_use(error)?;
                expect::that("the module", Instant::now() < late, "no users", "some")?;
                thread::sleep(Duration::from_millis(10));
            }
            expect::success("loading the module", module.load(""))
        })
        .map(Self)
        .map_err(Failure::from)
    }

    fn stop(self, tally: &Tally) -> Outcome {
        tally.set_over();
        self.0.join()
    }
}

/// Expects the module to be in use.
fn in_use(result: io::Result<()>) -> Outcome {
    let errors = [libc::EWOULDBLOCK, libc::EBUSY];
    expect::one_of("unloading the module", result, &errors)
}
