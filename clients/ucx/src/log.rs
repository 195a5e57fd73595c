// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! Log output, if `UMMUNOTIFY_LOG` is set, and the counts in it.

use std::{
    env,
    fmt::Arguments,
    io::{
        self,
        Write, //
    },
    process,
    sync::{
        atomic::{
            AtomicU64,
            Ordering, //
        },
        OnceLock, //
    },
};

/// Whether the log is on.
pub fn is_on() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| {
        env::var_os("UMMUNOTIFY_LOG").is_some_and(|value| !value.is_empty() && value != "0")
    })
}

/// Prints a line with one system call, so that lines of several processes do not mix.
pub fn say(what: Arguments<'_>) {
    if is_on() {
        let line = format!("ummunotify-ucx[{}]: {what}\n", process::id());
        // If standard error is closed, nothing can be done.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// A count, maintained only if the log is on.
pub struct Count(AtomicU64);

impl Count {
    /// Creates a count of 0.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds one.
    #[inline]
    pub fn one_more(&self) {
        if is_on() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
