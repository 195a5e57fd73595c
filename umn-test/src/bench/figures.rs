// SPDX-License-Identifier: GPL-2.0

//! The results of the benchmarks, and the file that they are kept in.

use std::{
    fmt::{
        self,
        Display, //
    },
    fs,
    path::Path,
};

use serde::{
    Deserialize,
    Serialize, //
};

use super::table::grouped;
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
    /// `mprotect` of a page that is a region, if all regions ignore it; the cost added to the bare
    /// call.
    Ignored,
    /// A stamp of one page.
    StampOne,
    /// A stamp of many pages; the cost of each further one.
    StampPage,
    /// The same for absent pages.
    StampAbsent,
    /// `fi_mr_reg` and `fi_close` of a buffer that is in libfabric's cache; measured by
    /// `scripts/tests/libfabric`.
    CachedRegistration,
    /// For scale: `getppid`, the cheapest system call.
    Getppid,
    /// For scale: an ioctl that the device does not have.
    Ioctl,
}

/// The interface that is measured, this one or a baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// None: the call alone.
    Bare,
    /// This driver.
    Ummunotify,
    /// userfaultfd with its events, and a thread that reads them.
    Userfaultfd,
    /// Version 2 of the driver, of 2010.
    V2,
    /// The module that libfabric supports.
    Kdreg2,
    /// What libfabric uses by default: it intercepts calls of libc.
    Memhooks,
    /// `eventfd`, one of the simplest files there are.
    Eventfd,
}

/// The cost of an operation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// The operation.
    pub operation: Operation,
    /// The interface.
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

/// How much longer an invalidation takes when several threads make them at once.
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
    /// Reads a file of one or more results in JSON, one after the other, and combines them.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_can_be_written_and_read() {
        let mut figures = Figures::default();
        figures.add(Operation::Hit, Peer::Ummunotify, 1, 446.0);
        let again: Figures = serde_json::from_str(&figures.to_json()).expect("it can be read");
        assert_eq!(again.of(Operation::Hit, Peer::Ummunotify), [(1, 446.0)]);
    }

    #[test]
    fn figures_of_another_kernel_are_not_compared() {
        let on = |kernel: &str, value| {
            let mut figures = Figures {
                kernel: kernel.into(),
                ..Figures::default()
            };
            figures.add(Operation::Hit, Peer::Ummunotify, 1, value);
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
            figures.add(Operation::Hit, Peer::Ummunotify, 1, value);
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
