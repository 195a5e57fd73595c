// SPDX-License-Identifier: GPL-2.0

//! What the commands for people have in common.

use std::process::ExitCode;

use crate::{
    device::{
        self,
        Device, //
    },
    exit,
    expect::{
        Failure,
        Outcome, //
    },
};

/// What a command says in its help about how it ends.
pub const EXIT_STATUS: &str =
    "Exit status: 0 success, 1 failure, 2 wrong usage, 4 skipped: this machine lacks what it takes.";

/// Ends a command: a failure is one line on stderr.
pub fn exit(outcome: Outcome) -> ExitCode {
    let (code, text) = exit::encode(outcome);
    if !text.is_empty() {
        eprintln!("umn-test: {text}");
    }
    ExitCode::from(code)
}

/// Opens the device, for reads that do not block.
pub fn open_device() -> Outcome<Device> {
    Device::open_nonblocking().map_err(|error| {
        Failure::Skipped(format!(
            "cannot open {}: {error}; is the module loaded (modprobe ummunotify)?",
            device::PATH
        ))
    })
}

/// Makes an error of the system one that says what was being done.
pub fn failed(what: &str) -> impl Fn(std::io::Error) -> Failure + '_ {
    move |error| Failure::Failed(format!("{what}: {error}"))
}
