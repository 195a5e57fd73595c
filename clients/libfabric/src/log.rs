// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! Log output, if `UMMUNOTIFY_LOG` is set, and the counts in it.

use std::{
    env,
    fmt::Arguments,
    io::Write,
    process,
    sync::{
        atomic::{
            AtomicU64,
            Ordering, //
        },
        OnceLock, //
    },
};

/// Prints a line if the log is on.
macro_rules! say {
    ($($what:tt)*) => { $crate::log::print(format_args!($($what)*)) };
}
pub(crate) use say;

/// Whether the log is on.
pub fn is_on() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| {
        env::var_os("UMMUNOTIFY_LOG").is_some_and(|value| !value.is_empty() && value != "0")
    })
}

/// Prints a line with one call, so that lines of several processes do not mix.
pub fn print(what: Arguments<'_>) {
    if is_on() {
        let line = format!("ummunotify-fi[{}]: {what}\n", process::id());
        // If standard error is closed, nothing can be done.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// How often something happened.
pub struct Count(AtomicU64);

impl Count {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds one.
    #[inline]
    pub fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counts.
pub struct Counts {
    /// Look-ups of memory that may be used.
    pub hits: Count,
    /// Look-ups of memory that has changed.
    pub changed: Count,
    /// Look-ups of memory that may have changed between being pinned and being watched.
    pub unproven: Count,
    /// Registrations that libfabric made and meant to cache.
    pub registrations: Count,
    /// Those that it could not cache, because they cannot be watched.
    pub refused: Count,
    /// Events read from the device.
    pub events: Count,
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
    evictions: Count::new(),
};

impl Counts {
    /// Prints them.
    pub fn print(&self) {
        let (hits, changed, unproven) = (self.hits.get(), self.changed.get(), self.unproven.get());
        say!(
            "{} look-ups: {hits} hits, {changed} stale, {unproven} unproven; {} registrations, {} of \
             them not cached; {} events, {} evictions",
            hits + changed + unproven,
            self.registrations.get(),
            self.refused.get(),
            self.events.get(),
            self.evictions.get(),
        );
    }
}
