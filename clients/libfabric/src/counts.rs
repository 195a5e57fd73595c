// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! The counts that are printed at the end.

use crate::log::{
    say,
    Count, //
};

/// The counts.
pub struct Counts {
    /// Look-ups of valid registrations.
    pub hits: Count,
    /// Look-ups of memory that has changed.
    pub changed: Count,
    /// Look-ups of memory that may have changed between being pinned and being watched.
    pub unproven: Count,
    /// Registrations that libfabric made in order to cache them.
    pub registrations: Count,
    /// Those that it could not cache, because their memory cannot be watched.
    pub refused: Count,
    /// Events read from the device.
    pub events: Count,
    /// Those after which the pages were the same.
    pub kept: Count,
    /// Ranges that libfabric was notified to unpin.
    pub evictions: Count,
}

/// The counts of this process.
pub static COUNTS: Counts = Counts {
    hits: Count::new(),
    changed: Count::new(),
    unproven: Count::new(),
    registrations: Count::new(),
    refused: Count::new(),
    events: Count::new(),
    kept: Count::new(),
    evictions: Count::new(),
};

impl Counts {
    /// Prints them.
    pub fn print(&self) {
        let (hits, changed, unproven) = (self.hits.get(), self.changed.get(), self.unproven.get());
        say!(
            "{} look-ups: {hits} hits, {changed} stale, {unproven} unproven; {} registrations, {} of \
             them not cached; {} events, {} of them with the same pages; {} evictions",
            hits + changed + unproven,
            self.registrations.get(),
            self.refused.get(),
            self.events.get(),
            self.kept.get(),
            self.evictions.get(),
        );
    }
}
