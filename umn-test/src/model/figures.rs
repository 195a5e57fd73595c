// SPDX-License-Identifier: GPL-2.0

//! Statistics of a run, in memory that all its processes share.

use std::{
    io,
    sync::atomic::{
        AtomicU64,
        Ordering, //
    }, //
};

use clap::ValueEnum;

use super::op::What;
use crate::mem;

/// Number of kinds of operations.
const KINDS: usize = What::LAST as usize + 1;

/// Counts, all initially zero.
#[repr(C)]
pub struct Figures {
    /// Operations done, which shows whether the run makes progress.
    pub done: AtomicU64,
    /// The sequence or round in progress.
    pub current: AtomicU64,
    /// How often each operation was done.
    ops: [AtomicU64; KINDS],
    /// How often a counter moved, by operation.
    invalidations: [AtomicU64; KINDS],
    /// Events of regions in which a page is known to have changed.
    pub changed: AtomicU64,
    /// Events of other regions, by the operation that caused them.
    reached: [AtomicU64; KINDS],
    /// Events of regions that extend beyond the arena, which any change may hit.
    pub beyond: AtomicU64,
    /// Pages that the kernel moved or took on its own; each must be reported, too.
    pub unasked: AtomicU64,
    /// LAST records.
    pub lasts: AtomicU64,
    /// Changes found deferred after an operation, and how often two were merged.
    pub deferred: AtomicU64,
    pub merged: AtomicU64,
    /// Checked claims: a change, and a region for which it must have been reported.
    pub claims: AtomicU64,
    /// The clock of the tickets.
    pub clock: AtomicU64,
}

impl Figures {
    /// New statistics, shared with all children forked later.
    pub fn shared() -> io::Result<&'static Self> {
        // SAFETY: They are atomic counts, for which zeroes are valid.
        unsafe { mem::shared(None) }
    }

    /// Counts an operation.
    pub fn count(&self, what: What) {
        add(&self.ops[what as usize], 1);
        add(&self.done, 1);
    }

    /// Counts how often an operation moved a counter.
    pub fn count_invalidations(&self, what: What, times: u64) {
        add(&self.invalidations[what as usize], times);
    }

    /// Counts an event of a region in which no change was found.
    pub fn count_reached(&self, what: What) {
        add(&self.reached[what as usize], 1);
    }

    /// Events that were delivered.
    pub fn events(&self) -> u64 {
        let reached: u64 = self.reached.iter().map(get).sum();
        get(&self.changed) + get(&self.beyond) + reached
    }

    /// How often counters moved.
    pub fn invalidations(&self) -> u64 {
        self.invalidations.iter().map(get).sum()
    }

    /// Prints a table of the operations and their effects.
    pub fn print(&self) {
        eprintln!(
            "{:16}{:>10}{:>15}{:>26}",
            "operation", "done", "invalidations", "events without a change"
        );
        for what in What::value_variants() {
            let name = what.to_possible_value().expect("none is hidden");
            let of = |counts: &[AtomicU64; KINDS]| get(&counts[*what as usize]);
            eprintln!(
                "{:16}{:>10}{:>15}{:>26}",
                name.get_name(),
                of(&self.ops),
                of(&self.invalidations),
                of(&self.reached)
            );
        }
    }
}

/// Adds to a count.
pub fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Ordering::Relaxed);
}

/// Reads a count.
pub fn get(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}
