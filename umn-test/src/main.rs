// SPDX-License-Identifier: GPL-2.0

//! Tests, demonstration and event viewer for `/dev/ummunotify`.

mod absent;
#[cfg(target_pointer_width = "64")]
mod bench;
mod command;
#[cfg(target_pointer_width = "64")] // as the crate io-uring is
mod demo;
mod device;
mod expect;
#[cfg(target_pointer_width = "64")]
mod hammer;
mod harness;
mod mem;
#[cfg(target_pointer_width = "64")]
mod model;
mod module;
mod process;
mod tests;
mod userfault;
mod watch;

use std::{
    process::ExitCode,
    time::Duration, //
};

use clap::{
    Parser,
    Subcommand, //
};
use ummunotify::uapi;

/// Tests, demonstration and event viewer for /dev/ummunotify.
///
/// Without a command it runs the self-tests, each in a process of its own. The exit status is 0
/// where none failed. A test that needs something this machine lacks is skipped, with the reason.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// Run only these tests: the one of that name, or else all with that in their name
    names: Vec<String>,

    /// List the tests instead of running them
    #[arg(short, long)]
    list: bool,

    /// Say how long each test took
    #[arg(short, long)]
    verbose: bool,

    /// Seconds a test may take
    #[arg(long, default_value_t = 60)]
    limit: u32,

    /// Have the tests that repeat something do so this often, rather than as often as each does
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    rounds: u64,

    /// Run one test in this very process
    #[arg(long, hide = true, value_name = "NAME")]
    in_this_process: Option<String>,

    /// Be the program that a test executes
    #[arg(long, hide = true, value_name = "NAME", num_args = 2)]
    executed: Option<Vec<String>>,
}

#[derive(Subcommand)]
enum Command {
    #[cfg(target_pointer_width = "64")]
    Bench(bench::Args),
    #[cfg(target_pointer_width = "64")]
    Demo(demo::Args),
    #[cfg(target_pointer_width = "64")]
    Hammer(hammer::Args),
    #[cfg(target_pointer_width = "64")]
    Model(model::Args),
    Watch(watch::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(command) = cli.command {
        return match command {
            #[cfg(target_pointer_width = "64")]
            Command::Bench(args) => bench::run(&args),
            #[cfg(target_pointer_width = "64")]
            Command::Demo(args) => demo::run(&args),
            #[cfg(target_pointer_width = "64")]
            Command::Hammer(args) => hammer::run(&args),
            #[cfg(target_pointer_width = "64")]
            Command::Model(args) => model::run(&args),
            Command::Watch(args) => watch::run(&args),
        };
    }
    if let Some([name, argument]) = cli.executed.as_deref() {
        return harness::finish(tests::fork::executed(name, argument));
    }

    harness::set_rounds(cli.rounds);
    let all = tests::all();
    let names = cli.in_this_process.as_ref().map(std::slice::from_ref);
    let chosen = match harness::select(&all, names.unwrap_or(&cli.names)) {
        Ok(chosen) => chosen,
        Err(name) => {
            eprintln!("umn-test: no test has '{name}' in its name; --list shows what there is");
            return ExitCode::from(2);
        }
    };
    if cli.list {
        harness::list(&chosen);
        ExitCode::SUCCESS
    } else if cli.in_this_process.is_some() {
        harness::run_here(&chosen[0])
    } else {
        let options = harness::Options {
            verbose: cli.verbose,
            limit: Duration::from_secs(cli.limit.into()),
        };
        harness::run(&chosen, &options)
    }
}
