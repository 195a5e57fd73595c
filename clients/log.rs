// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! The log of the libraries, which `UMMUNOTIFY_LOG` enables, and the counts in it.

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
#[inline]
pub fn is_on() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| {
        env::var_os("UMMUNOTIFY_LOG").is_some_and(|value| !value.is_empty() && value != "0")
    })
}

/// Prints a line with one system call, so that the lines of several processes stay whole.
pub fn print(what: Arguments<'_>) {
    if is_on() {
        let (name, process) = (env!("CARGO_PKG_NAME"), process::id());
        let line = format!("{name}[{process}]: {what}\n");
        // If standard error is closed, nothing can be done.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

/// A count, maintained only if the log is on: threads would contend for its cache line.
pub struct Count(AtomicU64);

impl Count {
    /// Creates a count of 0.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds one.
    #[inline]
    pub fn add_one(&self) {
        if is_on() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
