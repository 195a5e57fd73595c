// SPDX-License-Identifier: GPL-2.0

//! What a run counts, in memory that all its processes share.

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

/// Number of operations that there are.
const KINDS: usize = What::LAST as usize + 1;

/// Counts. All zero to begin with.
#[repr(C)]
pub struct Figures {
    /// Operations that were done, so that one can see whether it goes on.
    pub done: AtomicU64,
    /// The sequence that is being run, or the round.
    pub current: AtomicU64,
    /// How often each operation was done.
    ops: [AtomicU64; KINDS],
    /// How often the counters were seen to move, by operation.
    invalidations: [AtomicU64; KINDS],
    /// Events of regions in which a page was seen to change.
    pub changed: AtomicU64,
    /// Events of other regions, by the operation that reached them.
    reached: [AtomicU64; KINDS],
    /// Events of regions that reach beyond the arena, which anything may hit.
    pub beyond: AtomicU64,
    /// Pages that the kernel moved or took unasked; each has to be reported too.
    pub unasked: AtomicU64,
    /// LAST records.
    pub lasts: AtomicU64,
    /// Changes that were found deferred after an operation, and how often two were merged.
    pub deferred: AtomicU64,
    pub merged: AtomicU64,
    /// Claims that were checked: a change, and a region that it must have been reported for.
    pub claims: AtomicU64,
    /// The clock of the tickets.
    pub clock: AtomicU64,
}

impl Figures {
    /// New ones, shared with all children from now on.
    pub fn shared() -> io::Result<&'static Self> {
        // SAFETY: They are atomic counts, and zeroes are valid ones.
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

    /// Counts an event of a region in which nothing was seen to change.
    pub fn count_reached(&self, what: What) {
        add(&self.reached[what as usize], 1);
    }

    /// Events that were delivered.
    pub fn events(&self) -> u64 {
        let reached: u64 = self.reached.iter().map(get).sum();
        get(&self.changed) + get(&self.beyond) + reached
    }

    /// How often counters were seen to move.
    pub fn invalidations(&self) -> u64 {
        self.invalidations.iter().map(get).sum()
    }

    /// Prints a table of the operations, and what they did.
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
