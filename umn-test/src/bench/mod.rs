// SPDX-License-Identifier: GPL-2.0

//! The cost of the device in instructions, compared with that of the alternatives.
//!
//! On one processor whose clock counts instructions (`scripts/vm --icount`), results are
//! repeatable. The effects of several processors on each other are reported as ratios of times.

mod costs;
mod count;
mod crowd;
mod features;
mod figures;
mod files;
mod latency;
mod memory;
mod plot;
mod processors;
mod table;
mod userfault;

use std::{
    fs,
    path::{
        Path,
        PathBuf, //
    },
    process::ExitCode,
};

use clap::Subcommand;

use crate::{
    command,
    expect::{
        Failure,
        Outcome, //
    },
    system::Setting,
};
use figures::Figures;

/// Measure what the device costs, and show the results.
///
/// `make bench` runs all of this. The commands that measure print results as JSON; `report` makes a
/// table and a plot of them.
#[derive(clap::Args)]
#[command(after_help = command::EXIT_STATUS)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Count the instructions of each call, with increasing numbers of regions
    Costs,
    /// Count the same for userfaultfd
    Userfaultfd,
    /// Count the cost of a change that hits many regions, and of many open files
    Many,
    /// Count the cost of changes that regions ignore, and of stamps
    Features,
    /// Count how late munmap and REGISTER complete while other threads keep the device busy
    Latency,
    /// Measure the memory of regions and files; run this first after a boot
    Memory,
    /// Time invalidations by several threads at once, on two processors and without --icount
    Processors,
    /// Show results, and compare them with earlier ones
    Report {
        /// The results, as printed by the other commands
        figures: PathBuf,

        /// Earlier results to compare with, if they are of the same kernel: the exit status is 1 if
        /// a result is more than 3 % higher now
        #[arg(long, value_name = "FILE")]
        earlier: Option<PathBuf>,

        /// Results of the baselines, to show next to these
        #[arg(long, value_name = "FILE")]
        peers: Vec<PathBuf>,

        /// Write figures.json, table.md and cost.svg to this directory
        #[arg(long, value_name = "DIRECTORY")]
        output: Option<PathBuf>,
    },
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    command::exit(match &args.what {
        What::Costs => measure(costs::measure),
        What::Userfaultfd => measure(userfault::measure),
        What::Many => measure(|| {
            let mut figures = crowd::measure()?;
            figures.extend(files::measure()?);
            Ok(figures)
        }),
        What::Features => measure(features::measure),
        What::Latency => measure(latency::measure),
        What::Memory => measure(memory::measure),
        What::Processors => measure(processors::measure),
        What::Report {
            figures,
            earlier,
            peers,
            output,
        } => report(figures, earlier.as_deref(), peers, output.as_deref()),
    })
}

/// Measures in a kernel that changes no memory by itself; prints the results.
fn measure(body: impl FnOnce() -> Outcome<Figures>) -> Outcome {
    let settings = [
        ("/sys/kernel/mm/transparent_hugepage/enabled", "never"),
        ("/sys/kernel/mm/ksm/run", "0"),
        ("/proc/sys/kernel/numa_balancing", "0"),
        // For userfaultfd, where each region is a VMA, and so is the memory between two.
        ("/proc/sys/vm/max_map_count", "10000000"),
    ];
    // A kernel that lacks one of these settings does not do what it controls.
    let _settings: Vec<_> = settings
        .iter()
        .filter_map(|(path, value)| Setting::change(path, value).ok())
        .collect();
    let mut figures = body()?;
    figures.kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?
        .trim()
        .into();
    println!("{}", figures.to_json());
    Ok(())
}

fn report(
    figures: &Path,
    earlier: Option<&Path>,
    peers: &[PathBuf],
    output: Option<&Path>,
) -> Outcome {
    let figures = Figures::read(figures)?;
    let mut all = figures.clone();
    let mut elsewhere = String::new();
    for path in peers {
        let peer = Figures::read(path)?;
        if peer.kernel != figures.kernel {
            elsewhere += &format!(
                "\nThe results from {} were measured in Linux {}.\n",
                path.display(),
                peer.kernel
            );
        }
        all.extend(peer);
    }
    let table = all.table() + &elsewhere;
    print!("{table}");
    if let Some(output) = output {
        fs::create_dir_all(output).map_err(command::failed("output"))?;
        let write =
            |name, text| fs::write(output.join(name), text).map_err(command::failed("output"));
        write("figures.json", figures.to_json() + "\n")?;
        write("table.md", table)?;
        write("cost.svg", plot::draw(&all)?)?;
    }
    let Some(earlier) = earlier else {
        return Ok(());
    };
    let before = Figures::read(earlier)?;
    let Some(changes) = figures.changes_since(&before) else {
        println!(
            "Not compared with {}, which was measured in Linux {}: this is Linux {}.",
            earlier.display(),
            before.kernel,
            figures.kernel
        );
        return Ok(());
    };
    for change in &changes {
        println!("{change}");
    }
    match changes.iter().filter(|change| change.is_worse()).count() {
        0 => Ok(()),
        count => Err(Failure::Failed(format!(
            "{count} results are worse than those in {}",
            earlier.display()
        ))),
    }
}
