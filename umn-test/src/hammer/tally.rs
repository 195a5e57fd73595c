// SPDX-License-Identifier: GPL-2.0

//! Statistics of a run, in memory that all its processes share, executed ones too.

use std::{
    fs::File,
    io,
    mem::ManuallyDrop,
    os::fd::{
        AsRawFd,
        FromRawFd, //
    },
    sync::atomic::{
        AtomicBool,
        AtomicI32,
        AtomicU64,
        Ordering, //
    }, //
};

use crate::{
    device::check,
    expect::errno_name,
    mem, //
};

/// Error numbers are below this.
const ERRORS: usize = 134;

/// Room for kinds of calls; there are fewer.
pub const ROWS: usize = 64;

/// The most worker processes at a time.
pub const MOST_WORKERS: usize = 16;

/// The descriptor of the [`Tally`] in all processes.
const TALLY_FD: i32 = 99;

/// Results of the calls of one kind.
#[repr(C)]
struct Row {
    successes: AtomicU64,
    errors: [AtomicU64; ERRORS],
}

/// The statistics of a run, which all its processes share. All-zero bytes are valid.
#[repr(C)]
pub struct Tally {
    rows: [Row; ROWS],
    calls: AtomicU64,
    wrong: AtomicU64,
    /// The process IDs of the workers, which kill each other and take each other's files.
    workers: [AtomicI32; MOST_WORKERS],
    unloads: AtomicU64,
    refusals: AtomicU64,
    over: AtomicBool,
}

impl Tally {
    /// Creates the statistics of a new run, for this process and all its descendants.
    pub fn create() -> io::Result<&'static Self> {
        let pages = size_of::<Self>().div_ceil(mem::PAGE as usize);
        place_at(&mem::memory_file(pages as u64)?, TALLY_FD)?;
        Self::inherited()
    }

    /// Returns the statistics of the run that this process belongs to.
    pub fn inherited() -> io::Result<&'static Self> {
        // SAFETY: Nothing else uses the descriptor, and nothing closes it.
        let file = ManuallyDrop::new(unsafe { File::from_raw_fd(TALLY_FD) });
        // SAFETY: The file is as large as the structure, which consists of atomics.
        unsafe { mem::shared(Some(&file)) }
    }

    /// Counts the result of a call.
    pub fn count(&self, call: usize, result: &io::Result<i64>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let row = &self.rows[call];
        match result {
            Ok(_) => &row.successes,
            Err(error) => {
                let number = error.raw_os_error().unwrap_or(0) as usize;
                &row.errors[number.min(ERRORS - 1)]
            }
        }
        .fetch_add(1, Ordering::Relaxed);
    }

    /// The number of calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Reports something that must not happen.
    pub fn wrong(&self, what: &str) {
        // Print first: this process may be killed at any time.
        eprintln!("umn-test: {what}");
        self.wrong.fetch_add(1, Ordering::Relaxed);
    }

    /// How many things happened that must not.
    pub fn wrongs(&self) -> u64 {
        self.wrong.load(Ordering::Relaxed)
    }

    /// Sets the process ID of the worker with an index; 0 means that there is none.
    pub fn set_worker(&self, place: usize, pid: i32) {
        self.workers[place].store(pid, Ordering::Relaxed);
    }

    /// Returns the process ID of a worker, or 0 if there is none.
    pub fn worker(&self, place: usize) -> i32 {
        self.workers[place].load(Ordering::Relaxed)
    }

    /// Counts that the module was unloaded and loaded again.
    pub fn count_unload(&self) {
        self.unloads.fetch_add(1, Ordering::Relaxed);
    }

    /// How often the module was unloaded.
    pub fn unloads(&self) -> u64 {
        self.unloads.load(Ordering::Relaxed)
    }

    /// Counts that the module could not be unloaded because the device was in use.
    pub fn count_refusal(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }

    /// How often the module could not be unloaded.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// Ends the run.
    pub fn set_over(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Whether the run has ended.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Prints a line for each kind of call, given their names.
    pub fn print(&self, names: impl Iterator<Item = &'static str>) {
        eprintln!("{:14}{:>9}{:>10}  errors", "call", "calls", "succeeded");
        for (name, row) in names.zip(&self.rows) {
            let successes = row.successes.load(Ordering::Relaxed);
            let errors: Vec<_> = (0..ERRORS)
                .map(|number| (number, row.errors[number].load(Ordering::Relaxed)))
                .filter(|(_, count)| *count > 0)
                .collect();
            let calls = successes + errors.iter().map(|(_, count)| count).sum::<u64>();
            let errors: Vec<_> = errors
                .into_iter()
                .map(|(number, count)| format!("{} {count}", errno_name(number as i32)))
                .collect();
            eprintln!("{name:14}{calls:>9}{successes:>10}  {}", errors.join(", "));
        }
    }
}

/// Duplicates a file to a given descriptor, which stays open across `exec`.
pub fn place_at(file: &impl AsRawFd, number: i32) -> io::Result<()> {
    // SAFETY: The caller ensures that the descriptor belongs to nothing else.
    check(unsafe { libc::dup2(file.as_raw_fd(), number) }).map(drop)
}
