// SPDX-License-Identifier: GPL-2.0

//! Selects tests, and runs each in a separate process.

use std::{
    env,
    fmt::Display,
    io::{
        self,
        Read, //
    },
    os::unix::process::CommandExt,
    process::{
        Command,
        ExitCode,
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
    exit,
    expect::{
        Failure,
        Outcome, //
    },
    process,
    report::{
        Format,
        Report, //
    }, //
};

/// A test.
#[derive(Clone, Copy)]
pub struct Test {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it tests, in one line.
    pub about: &'static str,
    /// The function, which runs in a process of its own.
    pub run: fn() -> Outcome,
}

/// The value of `--rounds`, or 0.
static ROUNDS: AtomicU64 = AtomicU64::new(0);

/// Overrides the iteration count of all tests that repeat something.
pub fn set_rounds(rounds: u64) {
    ROUNDS.store(rounds, Ordering::Relaxed);
}

/// The iteration count of a test: `usual`, unless it is overridden.
pub fn rounds(usual: u64) -> u64 {
    match ROUNDS.load(Ordering::Relaxed) {
        0 => usual,
        overridden => overridden,
    }
}

/// The rounds of a test that repeats something: `usual`, unless that is overridden. A slow machine does
/// fewer, but at least a tenth and at least two.
pub fn rounds_soon(usual: u64) -> impl Iterator<Item = u64> {
    const SOON: Duration = Duration::from_secs(3);
    let (began, all, least) = (Instant::now(), rounds(usual), (usual / 10).max(2));
    (0..all).take_while(move |&round| all != usual || round < least || began.elapsed() < SOON)
}

/// Adds a note to the test's result, printed if the test passes.
pub fn note(figure: impl Display) {
    print!("{figure}");
}

/// Defines the table of tests in a file: `function: "what it tests",` for each.
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

/// The selection of tests.
#[derive(clap::Args)]
pub struct Selection {
    /// Run the test named NAME, or else all tests whose name contains it
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// NAME must be the whole name of a test
    #[arg(long)]
    exact: bool,

    /// Skip tests whose name contains NAME or, with --exact, is NAME; may be repeated
    #[arg(long, value_name = "NAME")]
    skip: Vec<String>,

    /// For cargo-nextest: select the tests that are ignored by default, of which there are none
    #[arg(long, hide = true)]
    ignored: bool,
}

impl Selection {
    /// Selects tests, in the order of `all`.
    ///
    /// Fails with the first name that matches no test.
    pub fn of(&self, all: &[Test]) -> Result<Vec<Test>, String> {
        let is_meant = |name: &String, test: &Test| {
            let exact = self.exact || all.iter().any(|test| test.name == name);
            test.name == name || (!exact && test.name.contains(name.as_str()))
        };
        let is_skipped = |test: &Test| {
            self.skip
                .iter()
                .any(|name| test.name == name || (!self.exact && test.name.contains(name.as_str())))
        };
        let is_none = |name: &&String| !all.iter().any(|test| is_meant(name, test));
        if let Some(name) = self.names.iter().find(is_none) {
            return Err(name.clone());
        }
        let is_chosen = |test: &&Test| {
            let named = self.names.is_empty() || self.names.iter().any(|name| is_meant(name, test));
            named && !is_skipped(test) && !self.ignored
        };
        Ok(all.iter().filter(is_chosen).copied().collect())
    }
}

/// Prints the names of tests and what they test.
pub fn list(tests: &[Test], format: Format) {
    if format == Format::Terse {
        // The format of libtest, which cargo-nextest reads.
        for test in tests {
            println!("{}: test", test.name);
        }
        return;
    }
    let width = tests.iter().map(|test| test.name.len()).max().unwrap_or(0);
    for test in tests {
        println!("{:width$}  {}", test.name, test.about);
    }
}

/// Runs tests one after the other, each for at most `timeout`.
pub fn run(tests: &[Test], timeout: Duration, mut report: Report) -> ExitCode {
    for test in tests {
        let started = Instant::now();
        let result = run_apart(test, timeout)
            .unwrap_or_else(|error| Err(Failure::new("starting the test", "success", error)));
        report.add(test.name, result, started.elapsed());
    }
    report.end()
}

/// Runs a test in its own process group, which is killed when the test ends or exceeds its time
/// limit.
///
/// Returns the test's note if it passed.
fn run_apart(test: &Test, timeout: Duration) -> io::Result<Outcome<String>> {
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

    let in_time = process::wait_for_exit(group, timeout)?;
    // The test's children hold the pipe and are killed, too. The zombie still holds the process ID.
    // SAFETY: The signal goes only to the process group that was created above.
    unsafe { libc::kill(-group, libc::SIGKILL) };
    let status = child.wait()?;
    let report = report.join().expect("the reader does not panic")?;
    if in_time {
        let report = report.trim_end();
        Ok(exit::judge(status, report).map(|()| report.to_string()))
    } else {
        Ok(Err(Failure::Failed(format!(
            "expected the test to end, killed it after {} s",
            timeout.as_secs()
        ))))
    }
}

/// Runs a test in this process.
pub fn run_here(test: &Test) -> ExitCode {
    // If this fails, the kernel has no NUMA balancing.
    let _ = process::balance_numa(false);
    exit::finish(exit::catch(test.run))
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
        let strings = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        let select_with = |exact, wanted, skip| {
            let selection = Selection {
                names: strings(wanted),
                exact,
                skip: strings(skip),
                ignored: false,
            };
            selection.of(&all).map(|chosen| names(&chosen))
        };
        let select = |wanted| select_with(false, wanted, &[]);
        assert_eq!(select(&[]), Ok(vec!["read", "read_twice", "poll"]));
        assert_eq!(select(&["read"]), Ok(vec!["read"]));
        assert_eq!(select(&["rea"]), Ok(vec!["read", "read_twice"]));
        assert_eq!(select(&["poll", "twice"]), Ok(vec!["read_twice", "poll"]));
        assert_eq!(select(&["poll", "no"]), Err("no".to_string()));
        assert_eq!(select_with(true, &["read"], &[]), Ok(vec!["read"]));
        assert_eq!(select_with(true, &["rea"], &[]), Err("rea".to_string()));
        assert_eq!(select_with(false, &[], &["read"]), Ok(vec!["poll"]));
        assert_eq!(
            select_with(true, &[], &["read"]),
            Ok(vec!["read_twice", "poll"])
        );
        assert_eq!(select_with(false, &["rea"], &["twice"]), Ok(vec!["read"]));
    }
}
