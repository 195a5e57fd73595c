// SPDX-License-Identifier: GPL-2.0

//! Tests, demonstration and event viewer for `/dev/ummunotify`.

mod absent;
#[cfg(target_pointer_width = "64")]
mod bench;
mod command;
#[cfg(target_pointer_width = "64")] // as the crate io-uring is
mod demo;
mod device;
mod doctor;
mod exit;
mod expect;
#[cfg(target_pointer_width = "64")]
mod hammer;
mod harness;
mod mem;
#[cfg(target_pointer_width = "64")]
mod model;
mod module;
mod process;
mod report;
mod signals;
mod system;
mod tests;
mod userfault;
mod watch;

use std::{
    env,
    process::ExitCode,
    time::Duration, //
};

use clap::{
    Parser,
    Subcommand, //
};
use ummunotify::uapi;

use crate::{
    harness::Selection,
    report::{
        Format,
        Report, //
    }, //
};

/// Tests, demonstration and event viewer for /dev/ummunotify.
///
/// Without a command, runs the tests, each in a separate process. A test that needs something this
/// machine lacks is skipped, and the reason is printed.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    selection: Selection,

    /// List the tests instead of running them
    #[arg(short, long)]
    list: bool,

    /// How to print the results
    #[arg(long, value_enum, default_value_t = Format::Tap)]
    format: Format,

    /// Print how long each test took
    #[arg(short, long)]
    verbose: bool,

    /// Also run tests that change settings of the whole machine or unload the module; both are
    /// restored afterwards. The same as UMN_SYSTEM=1 in the environment
    #[arg(long, global = true)]
    system: bool,

    /// Time limit of a test, in seconds
    #[arg(long, default_value_t = 60)]
    timeout: u32,

    /// Override the iteration count of tests that repeat something
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    rounds: u64,

    /// For cargo-nextest: no effect, since tests print nothing but their results
    #[arg(long, hide = true)]
    nocapture: bool,

    /// Run one test in this process
    #[arg(long, hide = true, value_name = "NAME")]
    in_this_process: Option<String>,

    /// Act as the program that a test executes
    #[arg(long, hide = true, value_name = "NAME", num_args = 2)]
    executed: Option<Vec<String>>,
}

#[derive(Subcommand)]
enum Command {
    #[cfg(target_pointer_width = "64")]
    Bench(bench::Args),
    #[cfg(target_pointer_width = "64")]
    Demo(demo::Args),
    Doctor(doctor::Args),
    #[cfg(target_pointer_width = "64")]
    Hammer(hammer::Args),
    #[cfg(target_pointer_width = "64")]
    Model(model::Args),
    Watch(watch::Args),
}

/// The exit status of a run of the tests.
const EXIT_STATUS: &str =
    "Exit status: 0 no test failed, 1 a test failed, 2 wrong usage, 4 all tests were skipped.";

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.system {
        env::set_var(system::VARIABLE, "1");
    }
    if env::var_os(system::VARIABLE).is_some_and(|value| value == "1") {
        system::allow_changes();
    }
    if let Some(command) = cli.command {
        return match command {
            #[cfg(target_pointer_width = "64")]
            Command::Bench(args) => bench::run(&args),
            #[cfg(target_pointer_width = "64")]
            Command::Demo(args) => demo::run(&args),
            Command::Doctor(args) => doctor::run(&args),
            #[cfg(target_pointer_width = "64")]
            Command::Hammer(args) => hammer::run(&args),
            #[cfg(target_pointer_width = "64")]
            Command::Model(args) => model::run(&args),
            Command::Watch(args) => watch::run(&args),
        };
    }
    if let Some([name, argument]) = cli.executed.as_deref() {
        return exit::finish(tests::fork::executed(name, argument));
    }

    harness::set_rounds(cli.rounds);
    let all = tests::all();
    if let Some(name) = cli.in_this_process {
        let test = all.iter().find(|test| test.name == name);
        return harness::run_here(test.expect("the name is one of a test"));
    }
    let chosen = match cli.selection.of(&all) {
        Ok(chosen) => chosen,
        Err(name) => {
            eprintln!("umn-test: no test has '{name}' in its name; --list lists all tests");
            return ExitCode::from(2);
        }
    };
    if cli.list {
        harness::list(&chosen, cli.format);
        return ExitCode::SUCCESS;
    }
    let report = Report::new(cli.format, cli.verbose, chosen.len());
    harness::run(&chosen, Duration::from_secs(cli.timeout.into()), report)
}
