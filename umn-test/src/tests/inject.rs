// SPDX-License-Identifier: GPL-2.0

//! The kernel's fault injection: makes one point of failure in a call fail.
//!
//! With `CONFIG_FAULT_INJECTION`, writing n to a thread's `fail-nth` makes the n-th point of
//! failure in its following system calls fail.

use std::{
    ffi::CString,
    fs::{
        File,
        OpenOptions, //
    },
    io,
    os::unix::fs::FileExt,
    path::Path,
    ptr, //
};

use super::prelude::*;
use crate::{
    harness,
    system, //
};

/// Where debugfs is mounted.
const DEBUGFS: &str = "/sys/kernel/debug";

/// More points of failure than any call has.
const MOST: u32 = 5000;

/// The kernel's fault injection, set up so that any allocation can fail. Dropping it restores the
/// settings.
pub struct Faults {
    _settings: Vec<Setting>,
}

impl Faults {
    pub fn new() -> Outcome<Self> {
        open()?;
        fail_nth().or_skip("no fail-nth, so no CONFIG_FAULT_INJECTION")?;
        if !Path::new(DEBUGFS).join("failslab").exists() {
            mount_debugfs().or_skip("mounting debugfs")?;
        }
        // Without the first setting, allocations that may sleep never fail. Logging every fault
        // would hide what matters in the kernel's log.
        let settings = Setting::change_all(
            DEBUGFS,
            &[
                ("failslab/ignore-gfp-wait", "N"),
                ("failslab/verbose", "0"),
                ("fail_page_alloc/ignore-gfp-wait", "N"),
                ("fail_page_alloc/ignore-gfp-highmem", "N"),
                ("fail_page_alloc/min-order", "0"),
                ("fail_page_alloc/verbose", "0"),
                ("fail_usercopy/verbose", "0"),
            ],
        )
        .or_skip("fault injection in debugfs")?;
        Ok(Self {
            _settings: settings,
        })
    }

    /// Makes a call whose `nth` point of failure fails.
    ///
    /// `call` should do little more than one system call: all others have such points, too.
    pub fn inject<T>(&self, nth: u32, call: impl FnOnce() -> io::Result<T>) -> Outcome<Attempt<T>> {
        let control = fail_nth()?;
        control.write_all_at(nth.to_string().as_bytes(), 0)?;
        let result = call();
        // The calls that check for a fault and disable faults have points of failure, too.
        let mut left = [0; 8];
        let faulted = match control.read_at(&mut left, 0) {
            Ok(_) => left.starts_with(b"0\n"),
            Err(_) => false,
        };
        if control.write_all_at(b"0", 0).is_err() {
            control.write_all_at(b"0", 0)?;
        }
        Ok(Attempt { result, faulted })
    }

    /// Makes attempts with the fault at increasing positions, until an attempt has no fault.
    ///
    /// `attempt` checks the consequences, and returns whether there was a fault. There must be at
    /// least `least` faults.
    pub fn sweep(
        &self,
        what: &str,
        least: u32,
        attempt: impl FnMut(&Self, u32) -> Outcome<bool>,
    ) -> Outcome {
        self.sweep_each(1, what, least, attempt)
    }

    /// The same at every `step`th position; at all of them with `--rounds`.
    pub fn sweep_some(
        &self,
        step: u32,
        what: &str,
        least: u32,
        attempt: impl FnMut(&Self, u32) -> Outcome<bool>,
    ) -> Outcome {
        let step = if harness::rounds(0) > 0 { 1 } else { step };
        self.sweep_each(step, what, least, attempt)
    }

    fn sweep_each(
        &self,
        step: u32,
        what: &str,
        least: u32,
        mut attempt: impl FnMut(&Self, u32) -> Outcome<bool>,
    ) -> Outcome {
        let mut nth = 1;
        while attempt(self, nth).map_err(|failure| match failure {
            Failure::Failed(why) => Failure::Failed(format!("{why}, with fault {nth} in {what}")),
            skipped => skipped,
        })? {
            nth += step;
            expect::that(what, nth < MOST, "fewer faults", nth)?;
        }
        let each = match step {
            1 => String::new(),
            step => format!(", at every {step}th position"),
        };
        eprintln!("faults in {what}: {}{each}", (nth - 1) / step);
        expect::at_least(what, (nth - 1).into(), least.into())
    }
}

/// The file that selects this thread's point of failure.
fn fail_nth() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/proc/thread-self/fail-nth")
}

fn mount_debugfs() -> io::Result<()> {
    system::may_change()?;
    let at = CString::new(DEBUGFS)?;
    let kind = c"debugfs".as_ptr();
    // SAFETY: All are C strings, or null where they may be.
    check(unsafe { libc::mount(kind, at.as_ptr(), kind, 0, ptr::null()) }).map(drop)
}

/// The result of a call, and whether a fault was injected.
pub struct Attempt<T> {
    result: io::Result<T>,
    pub faulted: bool,
}

impl<T> Attempt<T> {
    /// Expects success or, after a fault, one of these errors; returns the value on success.
    #[track_caller]
    pub fn may_fail(self, what: &str, errors: &[i32]) -> Outcome<Option<T>> {
        match self.result {
            Err(error) if self.faulted => {
                expect::one_of(what, Err::<(), _>(error), errors).map(|()| None)
            }
            result => expect::success(what, result).map(Some),
        }
    }
}
