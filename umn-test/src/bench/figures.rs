// SPDX-License-Identifier: GPL-2.0

//! The results, as a table and as a file.

use std::{
    fmt::{
        self,
        Display,
        Write, //
    },
    fs,
    path::Path,
};

use serde::{
    Deserialize,
    Serialize, //
};

use crate::expect::{
    Failure,
    Outcome, //
};

/// The numbers of regions with which each operation is measured.
pub const REGIONS: [u64; 5] = [1, 1 << 10, 1 << 15, 1 << 19, 1 << 20];

/// The numbers of regions that one change hits.
pub const CROWDS: [u64; 3] = [128, 1 << 12, 1 << 20];

/// The numbers of files that a process has open.
pub const FILES: [u64; 3] = [1, 256, 3000];

/// How much a result may exceed the earlier one, as a factor.
const TOLERANCE: f64 = 1.03;

/// What is measured, in instructions unless stated otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// REGISTER; the regions were registered in random order.
    Register,
    /// UNREGISTER of a random one of these regions.
    Unregister,
    /// REGISTER above all others; the regions were registered in ascending order.
    RegisterAscending,
    /// UNREGISTER of a random one of these regions.
    UnregisterAscending,
    /// REGISTER by a process in a memory cgroup.
    RegisterCharged,
    /// UNREGISTER of such a region.
    UnregisterCharged,
    /// `madvise(MADV_DONTNEED)` of a page below all regions; the cost added to the bare call.
    MissOutside,
    /// The same, for a page between two regions.
    MissBetween,
    /// `munmap` of a page that is a region; the cost added to the bare call.
    Hit,
    /// Each further region that the same call hits.
    Further,
    /// The same as [`MissOutside`](Self::MissOutside), after an `mprotect` of pages at address 0.
    MissAfterZero,
    /// `read` of the only queued event, into a buffer for one record.
    ReadOne,
    /// `read` of 128 events; the cost of each.
    ReadMany,
    /// `read` that finds nothing queued.
    ReadNone,
    /// Checking that nothing happened.
    Check,
    /// Memory of a region in bytes, including the overhead of the slab allocator.
    Memory,
    /// The part of it that is charged to the memory cgroup.
    Charged,
    /// Memory charged for an open file, in bytes.
    Open,
    /// `madvise(MADV_DONTNEED)` of a page covered by many regions; the cost added to the bare call.
    CrowdFirst,
    /// The same if it hits 256 regions, or half of them, and many that it does not hit lie in
    /// between.
    CrowdApart,
    /// The same if nothing was read since the last change.
    CrowdAgain,
    /// Another process punches a hole into the mapped file; the added cost.
    CrowdOther,
    /// `fork`, if a private page is there; the added cost.
    CrowdFork,
    /// Reads of all events, 128 at a time, including the deferred work; the cost of each event.
    CrowdRead,
    /// Opening one more file.
    OpenFile,
    /// The first REGISTER of a file.
    FirstRegister,
    /// Closing a file with a region.
    CloseFile,
    /// The exit of a process with many files, each with a region; the added cost of each file.
    ExitFile,
    /// For scale: `getppid`, the cheapest system call.
    Getppid,
    /// For scale: an ioctl that the device does not have.
    Ioctl,
}

use Operation::*;

impl Operation {
    /// Its name in the table.
    pub fn text(self) -> &'static str {
        match self {
            Register => "register one more",
            Unregister => "unregister a random one",
            RegisterAscending => "register one more, in ascending order",
            UnregisterAscending => "unregister a random one of these",
            RegisterCharged => "register one more, in a memory cgroup",
            UnregisterCharged => "unregister it",
            MissOutside => "madvise(DONTNEED) of a page below all regions",
            MissBetween => "madvise(DONTNEED) of a page between regions",
            Hit => "munmap of one watched page",
            Further => "each further region hit by the same call",
            ReadOne => "read of one event",
            ReadMany => "read of 128 events, each",
            ReadNone => "read, nothing queued",
            Check => "check that nothing happened",
            Memory => "memory of a region, bytes",
            Charged => "  of it charged to the memory cgroup",
            Open => "memory of an open file, bytes charged",
            MissAfterZero => "the same, after mprotect at address 0",
            CrowdFirst => "madvise(DONTNEED) of their page",
            CrowdApart => "the same, if it hits 256 of them or half, far apart",
            CrowdAgain => "the same, nothing was read in between",
            CrowdOther => "a hole in the file, by another process",
            CrowdFork => "fork",
            CrowdRead => "reads of all of the events, each",
            OpenFile => "open one more",
            FirstRegister => "its first register",
            CloseFile => "close it",
            ExitFile => "exit with all of them, each",
            Getppid => "getppid",
            Ioctl => "an unknown ioctl",
        }
    }

    /// The goal for this device: instructions or bytes at most.
    fn goal(self, regions: u64) -> Option<f64> {
        Some(match self {
            Register if regions == 1 => 1000.0,
            Register => 1300.0,
            Unregister if regions == 1 => 900.0,
            Unregister => 1200.0,
            MissOutside | MissBetween | MissAfterZero => 380.0,
            CrowdFirst | CrowdApart | CrowdAgain | CrowdOther | CrowdFork => 30_000.0,
            CrowdRead => 180.0,
            Hit => 700.0,
            Further => 72.0,
            ReadOne => 800.0,
            ReadMany => 60.0,
            ReadNone => 650.0,
            Check => 3.0,
            Memory => 112.0,
            Open => 8192.0,
            RegisterAscending | UnregisterAscending | RegisterCharged | UnregisterCharged => {
                return None
            }
            OpenFile | FirstRegister | CloseFile | ExitFile => return None,
            Charged | Getppid | Ioctl => return None,
        })
    }
}

/// A table: operations, each with different numbers of something.
struct Table {
    title: &'static str,
    columns: &'static [u64],
    operations: &'static [Operation],
}

/// All tables.
const TABLES: [Table; 3] = [
    Table {
        title: "operation, with N regions",
        columns: &REGIONS,
        operations: &[
            Register,
            Unregister,
            RegisterAscending,
            UnregisterAscending,
            RegisterCharged,
            UnregisterCharged,
            MissOutside,
            MissAfterZero,
            MissBetween,
            Hit,
            Further,
            ReadOne,
            ReadMany,
            ReadNone,
            Check,
            Memory,
            Charged,
            Open,
            Getppid,
            Ioctl,
        ],
    },
    Table {
        title: "one change that hits N regions of a file",
        columns: &CROWDS,
        operations: &[
            CrowdFirst, CrowdApart, CrowdAgain, CrowdOther, CrowdFork, CrowdRead,
        ],
    },
    Table {
        title: "operation, with N open files, each with a region",
        columns: &FILES,
        operations: &[OpenFile, FirstRegister, CloseFile, ExitFile],
    },
];

/// Whose operation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// Nobody's: the call alone.
    Bare,
    /// This driver.
    Ummunotify,
    /// userfaultfd with its events, and a thread that reads them.
    Userfaultfd,
    /// Version 2 of the driver, of 2010.
    V2,
    /// The module that libfabric supports.
    Kdreg2,
    /// `eventfd`, one of the simplest files there are.
    Eventfd,
}

impl Peer {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 6] = [
        Self::Ummunotify,
        Self::Userfaultfd,
        Self::V2,
        Self::Kdreg2,
        Self::Eventfd,
        Self::Bare,
    ];

    /// The name in the table.
    pub fn text(self) -> &'static str {
        match self {
            Self::Bare => "bare call",
            Self::Ummunotify => "ummunotify",
            Self::Userfaultfd => "userfaultfd",
            Self::V2 => "V2 (2010)",
            Self::Kdreg2 => "kdreg2",
            Self::Eventfd => "eventfd",
        }
    }
}

/// The cost of an operation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// The operation.
    pub operation: Operation,
    /// Whose.
    pub peer: Peer,
    /// The number of regions.
    pub regions: u64,
    /// The median.
    pub value: f64,
}

/// How many instructions after its due time an operation was complete.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// The operation.
    pub operation: String,
    /// What other threads did meanwhile.
    pub beside: String,
    /// The median, the 99.9th percentile, and the worst.
    pub quantiles: [u64; 3],
}

/// How much longer invalidations take when several threads make them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Processors {
    /// Threads.
    pub threads: u64,
    /// Time of a call relative to one thread, without the device.
    pub bare: f64,
    /// The same with the device; each thread has regions of its own, while another registers and
    /// reads.
    pub watched: f64,
    /// Time of a watched call relative to a bare one, with the same number of threads.
    pub ratio: f64,
}

/// All results of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// The kernel's release.
    pub kernel: String,
    /// Costs.
    #[serde(default)]
    pub costs: Vec<Cost>,
    /// Latencies.
    #[serde(default)]
    pub latencies: Vec<Latency>,
    /// Several processors.
    #[serde(default)]
    pub processors: Vec<Processors>,
}

impl Figures {
    /// Reads all results in a file, which may be several, one after the other.
    pub fn read(path: &Path) -> Outcome<Self> {
        let failed = |error: &dyn Display| Failure::Failed(format!("{}: {error}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| failed(&error))?;
        let mut all = Self::default();
        for figures in serde_json::Deserializer::from_str(&text).into_iter() {
            all.extend(figures.map_err(|error| failed(&error))?);
        }
        Ok(all)
    }

    /// Adds other results.
    pub fn extend(&mut self, other: Self) {
        if self.kernel.is_empty() {
            self.kernel = other.kernel;
        }
        self.costs.extend(other.costs);
        self.latencies.extend(other.latencies);
        self.processors.extend(other.processors);
    }

    /// Adds a cost.
    pub fn add(&mut self, operation: Operation, peer: Peer, regions: u64, value: f64) {
        self.costs.push(Cost {
            operation,
            peer,
            regions,
            value,
        });
    }

    /// Converts the results to JSON that [`Self::read`] can read, one result per line.
    pub fn to_json(&self) -> String {
        let lines = |values: &[serde_json::Value]| {
            let lines: Vec<_> = values.iter().map(|value| format!("\n  {value}")).collect();
            lines.join(",")
        };
        let fields = serde_json::to_value(self).expect("all of it can be written");
        let fields = fields.as_object().expect("a structure");
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| match value.as_array() {
                Some(values) => format!("\"{name}\": [{}]", lines(values)),
                None => format!("\"{name}\": {value}"),
            })
            .collect();
        format!("{{{}}}", fields.join(",\n"))
    }

    /// The costs of an operation, by the number of regions.
    pub fn of(&self, operation: Operation, peer: Peer) -> Vec<(u64, f64)> {
        let costs = self.costs.iter();
        let of = costs.filter(|cost| (cost.operation, cost.peer) == (operation, peer));
        of.map(|cost| (cost.regions, cost.value)).collect()
    }

    /// The results as tables in Markdown.
    pub fn table(&self) -> String {
        let mut text = format!(
            "Instructions in Linux {}, the median. For hits and misses: the cost added to the bare call.\n\n",
            self.kernel
        );
        for (number, table) in TABLES.iter().enumerate() {
            if number > 0 {
                text.push('\n');
            }
            self.add_table(table, &mut text);
        }
        self.more_tables(&mut text);
        text
    }

    fn add_table(&self, table: &Table, text: &mut String) {
        let columns = table.columns.iter().map(|number| rounded(*number));
        line(
            text,
            table.title,
            "whose",
            &columns.collect::<Vec<_>>(),
            "goal",
        );
        let rule = vec!["--:".to_string(); table.columns.len()];
        line(text, "---", "---", &rule, "---");
        for operation in table.operations {
            for peer in Peer::ALL {
                let costs = self.of(*operation, peer);
                if costs.is_empty() {
                    continue;
                }
                let cells = table.columns.iter().map(|column| {
                    let cost = costs.iter().find(|cost| cost.0 == *column);
                    cost.map_or(String::new(), |cost| grouped(cost.1))
                });
                let goal = if peer == Peer::Ummunotify {
                    verdict(*operation, &costs)
                } else {
                    String::new()
                };
                let cells: Vec<_> = cells.collect();
                line(text, operation.text(), peer.text(), &cells, &goal);
            }
        }
    }

    fn more_tables(&self, text: &mut String) {
        if !self.latencies.is_empty() {
            *text += "\nInstructions from the time an operation was due to its completion, by a real-time thread:\n\n\
                      | operation | meanwhile | median | 99.9 % | worst |\n|---|---|--:|--:|--:|\n";
        }
        for latency in &self.latencies {
            let [median, most, worst] = latency.quantiles.map(|value| grouped(value as f64));
            let Latency {
                operation, beside, ..
            } = latency;
            *text += &format!("| {operation} | {beside} | {median} | {most} | {worst} |\n");
        }
        if !self.processors.is_empty() {
            *text += "\nTime of an invalidation by each of several threads, relative to one thread:\n\n\
                      | threads | bare | watched | watched, compared with bare |\n|--:|--:|--:|--:|\n";
        }
        for processors in &self.processors {
            let Processors {
                threads,
                bare,
                watched,
                ratio,
            } = processors;
            *text += &format!("| {threads} | {bare:.2} | {watched:.2} | {ratio:.2} |\n");
        }
    }

    /// The costs of the device now, compared with earlier ones.
    ///
    /// Returns `None` if the earlier results are from another kernel, whose own cost differs.
    pub fn changes_since(&self, earlier: &Self) -> Option<Vec<Change>> {
        if self.kernel != earlier.kernel {
            return None;
        }
        let ours = self
            .costs
            .iter()
            .filter(|cost| cost.peer == Peer::Ummunotify);
        let changes = ours.filter_map(|now| {
            let of = earlier.of(now.operation, Peer::Ummunotify);
            let before = of.iter().find(|before| before.0 == now.regions)?.1;
            Some(Change {
                now: now.clone(),
                before,
            })
        });
        Some(changes.filter(Change::matters).collect())
    }
}

/// A result that has changed.
pub struct Change {
    now: Cost,
    before: f64,
}

impl Change {
    fn matters(&self) -> bool {
        self.is_worse() || self.before > self.now.value * TOLERANCE
    }

    /// Whether it is a regression.
    pub fn is_worse(&self) -> bool {
        self.now.value > self.before * TOLERANCE
    }
}

impl Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}: {}, with {} regions: {} instead of {}",
            if self.is_worse() { "WORSE" } else { "better" },
            self.now.operation.text(),
            self.now.regions,
            grouped(self.now.value),
            grouped(self.before)
        )
    }
}

fn line(text: &mut String, operation: &str, peer: &str, cells: &[String], goal: &str) {
    let _ = writeln!(
        text,
        "| {operation} | {peer} | {} | {goal} |",
        cells.join(" | ")
    );
}

/// The goal, and whether it is met.
fn verdict(operation: Operation, costs: &[(u64, f64)]) -> String {
    let goal = |regions| operation.goal(regions).unwrap_or(f64::INFINITY);
    let (Some(first), Some(last)) = (operation.goal(1), operation.goal(2)) else {
        return String::new();
    };
    let text = if first == last {
        grouped(last)
    } else {
        format!("{}, {}", grouped(first), grouped(last))
    };
    let met = |cost: &(u64, f64)| cost.1.round() <= goal(cost.0);
    if costs.iter().all(met) {
        format!("{text}: met")
    } else {
        format!("{text}: not met")
    }
}

/// Formats a number, with a binary unit if it is a multiple of one.
fn rounded(number: u64) -> String {
    let units = [(20, "Mi"), (10, "Ki")];
    let unit = units.iter().find(|(shift, _)| number % (1 << shift) == 0);
    unit.map_or(grouped(number as f64), |(shift, unit)| {
        format!("{}{unit}", number >> shift)
    })
}

/// Formats a number with thousands separators; small numbers get a fraction.
fn grouped(value: f64) -> String {
    if value.fract() != 0.0 && value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_thousands_apart() {
        let cases = [
            (0.0, "0"),
            (65.25, "65.2"),
            (966.0, "966"),
            (1e6, "1,000,000"),
            (-1000.0, "-1,000"),
        ];
        for (value, text) in cases {
            assert_eq!(grouped(value), text);
        }
    }

    #[test]
    fn figures_can_be_written_and_read() {
        let mut figures = Figures::default();
        figures.add(Hit, Peer::Ummunotify, 1, 446.0);
        let again: Figures = serde_json::from_str(&figures.to_json()).expect("it can be read");
        assert_eq!(again.of(Hit, Peer::Ummunotify), [(1, 446.0)]);
    }

    #[test]
    fn figures_of_another_kernel_are_not_compared() {
        let on = |kernel: &str, value| {
            let mut figures = Figures {
                kernel: kernel.into(),
                ..Figures::default()
            };
            figures.add(Hit, Peer::Ummunotify, 1, value);
            figures
        };
        let earlier = on("7.3.4", 100.0);
        assert!(on("7.3.5", 200.0).changes_since(&earlier).is_none());
        let changes = on("7.3.4", 200.0).changes_since(&earlier);
        assert_eq!(changes.map(|changes| changes.len()), Some(1));
    }

    #[test]
    fn a_change_of_more_than_three_percent_matters() {
        let with = |value| {
            let mut figures = Figures::default();
            figures.add(Hit, Peer::Ummunotify, 1, value);
            figures
        };
        for (now, worse) in [
            (103.0, None),
            (104.0, Some(true)),
            (98.0, None),
            (97.0, Some(false)),
        ] {
            let changes = with(now).changes_since(&with(100.0));
            let changes = changes.expect("the kernel is the same");
            assert_eq!(changes.first().map(Change::is_worse), worse, "{now}");
        }
    }
}
