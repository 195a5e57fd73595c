// SPDX-License-Identifier: GPL-2.0

//! The results as tables in Markdown.

use std::fmt::Write;

use super::figures::{
    Figures,
    Latency,
    Operation::{
        self,
        *, //
    },
    Peer,
    Processors,
    CROWDS,
    FILES,
    REGIONS, //
};

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
            Ignored,
            StampOne,
            StampPage,
            StampAbsent,
            Memory,
            Charged,
            Open,
            CachedRegistration,
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
            Ignored => "mprotect of a page, ignored by all regions",
            StampOne => "stamp of one page",
            StampPage => "stamp of 1,024 pages, each further one",
            StampAbsent => "the same, pages that are not there",
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
            CachedRegistration => "fi_mr_reg, fi_close of a cached buffer",
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
            Ignored => 300.0,
            StampPage => 110.0,
            StampAbsent => 505.0,
            // A part of it is the overhead of the allocator, so the goal is that of what is charged.
            Charged => 120.0,
            Open => 8192.0,
            CachedRegistration => 500.0,
            RegisterAscending | UnregisterAscending | RegisterCharged | UnregisterCharged => {
                return None
            }
            OpenFile | FirstRegister | CloseFile | ExitFile => return None,
            StampOne | Memory | Getppid | Ioctl => return None,
        })
    }
}

impl Peer {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 7] = [
        Self::Ummunotify,
        Self::Userfaultfd,
        Self::V2,
        Self::Kdreg2,
        Self::Memhooks,
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
            Self::Memhooks => "memhooks",
            Self::Eventfd => "eventfd",
        }
    }
}

impl Figures {
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
            "our goal",
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
pub fn rounded(number: u64) -> String {
    let units = [(20, "Mi"), (10, "Ki")];
    let unit = units.iter().find(|(shift, _)| number % (1 << shift) == 0);
    unit.map_or(grouped(number as f64), |(shift, unit)| {
        format!("{}{unit}", number >> shift)
    })
}

/// Formats a number with thousands separators; small numbers get a fraction.
pub fn grouped(value: f64) -> String {
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
}
