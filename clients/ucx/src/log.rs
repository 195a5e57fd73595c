// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! What is printed, if `UMMUNOTIFY_LOG` is set, and what is counted for it.

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

/// Whether anything is to be printed.
pub fn is_on() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| {
        env::var_os("UMMUNOTIFY_LOG").is_some_and(|value| !value.is_empty() && value != "0")
    })
}

/// Prints a line with a single system call, so that those of several processes do not mix.
pub fn say(what: Arguments<'_>) {
    if is_on() {
        let line = format!("ummunotify-ucx[{}]: {what}\n", process::id());
        // Nothing can be done where standard error is closed.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// Something that is counted, if there is a log.
pub struct Count(AtomicU64);

impl Count {
    /// None so far.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more.
    #[inline]
    pub fn one_more(&self) {
        if is_on() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many there were.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
