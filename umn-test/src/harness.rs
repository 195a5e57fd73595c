// SPDX-License-Identifier: GPL-2.0

//! Chooses tests, runs each in a process of its own, and counts what comes of it.

use std::{
    collections::BTreeMap,
    env,
    fmt::Display,
    io::{
        self,
        IsTerminal,
        Read,
        Write, //
    },
    os::{
        fd::{
            AsRawFd,
            FromRawFd,
            OwnedFd, //
        },
        unix::process::{
            CommandExt,
            ExitStatusExt, //
        },
    },
    panic,
    process::{
        Command,
        ExitCode,
        ExitStatus,
        Stdio, //
    },
    sync::atomic::{
        AtomicU64,
        Ordering, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    }, //
};

use crate::{
    device::check,
    expect::{
        Failure,
        Outcome, //
    },
    process, //
};

/// A test.
#[derive(Clone, Copy)]
pub struct Test {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it shows, in a line.
    pub about: &'static str,
    /// Runs it, in a process that does nothing else.
    pub run: fn() -> Outcome,
}

/// How often a test repeats what it does, where it was told so with `--rounds`; else 0.
static ROUNDS: AtomicU64 = AtomicU64::new(0);

/// Has all tests that repeat something do so this often.
pub fn set_rounds(rounds: u64) {
    ROUNDS.store(rounds, Ordering::Relaxed);
}

/// How often a test is to repeat what it does, which usually is `usual` times.
pub fn rounds(usual: u64) -> u64 {
    match ROUNDS.load(Ordering::Relaxed) {
        0 => usual,
        told => told,
    }
}

/// Has a figure printed beside the test's name, where it passes.
pub fn note(figure: impl Display) {
    print!("{figure}");
}

/// Makes the table of a file's tests: `function: "what it shows",` for each.
macro_rules! table {
    ($($name:ident: $about:literal,)+) => {
        /// The tests of this file.
        pub const TESTS: &[crate::harness::Test] = &[
            $(crate::harness::Test {
                name: stringify!($name),
                about: $about,
                run: $name,
            },)+
        ];
    };
}
pub(crate) use table;

/// How tests are run.
pub struct Options {
    /// Say how long each test took.
    pub verbose: bool,
    /// How long a test may take.
    pub limit: Duration,
}

/// Exit status of a test's process when the test cannot run on this machine.
const EXIT_SKIPPED: u8 = 77;

/// The tests with one of these names or, where a name is none's, with that in their name.
///
/// Fails with the first of `names` that is in no test's name.
pub fn select(all: &[Test], names: &[String]) -> Result<Vec<Test>, String> {
    if names.is_empty() {
        return Ok(all.to_vec());
    }
    let mut chosen = BTreeMap::new();
    for name in names {
        let exact = all.iter().any(|test| test.name == name);
        let mut found = false;
        for (index, test) in all.iter().enumerate() {
            if test.name == name || (!exact && test.name.contains(name.as_str())) {
                chosen.insert(index, *test);
                found = true;
            }
        }
        if !found {
            return Err(name.clone());
        }
    }
    Ok(chosen.into_values().collect())
}

/// Prints the names of tests and what they show.
pub fn list(tests: &[Test]) {
    let width = tests.iter().map(|test| test.name.len()).max().unwrap_or(0);
    for test in tests {
        println!("{:width$}  {}", test.name, test.about);
    }
}

/// Runs tests one after the other. The last line it prints has the numbers.
pub fn run(tests: &[Test], options: &Options) -> ExitCode {
    let colours = io::stdout().is_terminal();
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let began = Instant::now();
    for test in tests {
        let started = Instant::now();
        let result = run_apart(test, options.limit)
            .unwrap_or_else(|error| Err(Failure::new("starting the test", "success", error)));
        let (word, colour, detail) = match result {
            Ok(note) => {
                passed += 1;
                let separator = if note.is_empty() { "" } else { ": " };
                ("ok", 32, format!("{separator}{note}"))
            }
            Err(Failure::Failed(why)) => {
                failed += 1;
                ("FAIL", 31, format!(": {why}"))
            }
            Err(Failure::Skipped(why)) => {
                skipped += 1;
                ("SKIP", 33, format!(": {why}"))
            }
        };
        let time = if options.verbose {
            format!(" [{} ms]", started.elapsed().as_millis())
        } else {
            String::new()
        };
        if colours {
            println!("\x1b[{colour}m{word}\x1b[m {}{detail}{time}", test.name);
        } else {
            println!("{word} {}{detail}{time}", test.name);
        }
    }
    if options.verbose {
        println!("{:.1} s", began.elapsed().as_secs_f64());
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    ExitCode::from(u8::from(failed > 0))
}

/// Runs a test in a process group of its own, which is killed when the time is over or the test is.
///
/// Returns what the test has noted, where it passed.
fn run_apart(test: &Test, limit: Duration) -> io::Result<Outcome<String>> {
    let mut child = Command::new(env::current_exe()?)
        .args(["--in-this-process", test.name])
        .args(["--rounds", &rounds(0).to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = child.id() as i32;
    let mut stdout = child.stdout.take().expect("stdout is a pipe");
    let report = thread::spawn(move || {
        let mut report = String::new();
        stdout.read_to_string(&mut report).map(|_| report)
    });

    let in_time = wait_for_exit(group, limit)?;
    // The test's own children go too, so that the pipe ends. A zombie still holds the number.
    // SAFETY: Only affects the process group that was made above.
    unsafe { libc::kill(-group, libc::SIGKILL) };
    let status = child.wait()?;
    let report = report.join().expect("the reader does not panic")?;
    if in_time {
        let report = report.trim_end();
        Ok(judge(status, report).map(|()| report.to_string()))
    } else {
        Ok(Err(Failure::Failed(format!(
            "expected an end, saw none within {} s; killed",
            limit.as_secs()
        ))))
    }
}

/// Waits until a child has ended, but does not reap it; returns whether it did in time.
pub fn wait_for_exit(pid: i32, limit: Duration) -> io::Result<bool> {
    // SAFETY: The call takes no pointer.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })? as i32;
    // SAFETY: The file was just opened and is nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `poll` is one valid `pollfd`.
    let ready = check(unsafe { libc::poll(&mut poll, 1, limit.as_millis() as i32) })?;
    Ok(ready == 1)
}

/// The outcome of a process that ended with `status`, after it wrote `report`.
pub fn judge(status: ExitStatus, report: &str) -> Outcome {
    match status.code() {
        Some(0) => Ok(()),
        Some(code) if code == i32::from(EXIT_SKIPPED) => Err(Failure::Skipped(report.into())),
        Some(1) => Err(Failure::Failed(report.into())),
        _ => Err(Failure::Failed(match status.signal() {
            Some(signal) => format!("expected an orderly end, saw death by signal {signal}"),
            None => format!("expected an orderly end, saw {status}"),
        })),
    }
}

/// Runs a test in this process.
pub fn run_here(test: &Test) -> ExitCode {
    // Where that is not possible, there is no balancing either.
    let _ = process::balance_numa(false);
    finish(catch(test.run))
}

/// Makes a panic a failure.
pub fn catch(run: impl FnOnce() -> Outcome) -> Outcome {
    panic::catch_unwind(panic::AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(Failure::Failed(
            "expected an orderly end, saw a panic".into(),
        ))
    })
}

/// Tells an outcome to the process that waits for this one: by the exit status and on stdout.
pub fn finish(outcome: Outcome) -> ExitCode {
    let (code, text) = encode(outcome);
    // A test that changes what stdout is has no use for the line either.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::from(code)
}

/// An outcome as an exit status and a text.
pub fn encode(outcome: Outcome) -> (u8, String) {
    match outcome {
        Ok(()) => (0, String::new()),
        Err(Failure::Failed(why)) => (1, why),
        Err(Failure::Skipped(why)) => (EXIT_SKIPPED, why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests;
    use std::collections::HashSet;

    fn names(chosen: &[Test]) -> Vec<&'static str> {
        chosen.iter().map(|test| test.name).collect()
    }

    #[test]
    fn names_are_unique() {
        let all = tests::all();
        let unique: HashSet<_> = all.iter().map(|test| test.name).collect();
        assert_eq!(unique.len(), all.len());
    }

    #[test]
    fn a_full_name_selects_one_test_and_a_part_several() {
        let test = |name| Test {
            name,
            about: "",
            run: || Ok(()),
        };
        let all = [test("read"), test("read_twice"), test("poll")];
        let select = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|name| name.to_string()).collect();
            select(&all, &wanted).map(|chosen| names(&chosen))
        };
        assert_eq!(select(&[]), Ok(vec!["read", "read_twice", "poll"]));
        assert_eq!(select(&["read"]), Ok(vec!["read"]));
        assert_eq!(select(&["rea"]), Ok(vec!["read", "read_twice"]));
        assert_eq!(select(&["poll", "twice"]), Ok(vec!["read_twice", "poll"]));
        assert_eq!(select(&["poll", "no"]), Err("no".to_string()));
    }

    #[test]
    fn a_process_tells_its_outcome() {
        for outcome in [
            Ok(()),
            Err(Failure::Failed("f".into())),
            Err(Failure::Skipped("s".into())),
        ] {
            let shown = format!("{outcome:?}");
            let (code, text) = encode(outcome);
            let status = ExitStatus::from_raw(i32::from(code) << 8);
            assert_eq!(format!("{:?}", judge(status, &text)), shown);
        }
    }
}
