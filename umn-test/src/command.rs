// SPDX-License-Identifier: GPL-2.0

//! Exit status and error messages, which all commands share.

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

/// The exit status, for the help of each command.
pub const EXIT_STATUS: &str =
    "Exit status: 0 success, 1 failure, 2 wrong usage, 4 skipped: this machine lacks something that is needed.";

/// Ends a command; prints a failure as one line on stderr.
pub fn exit(outcome: Outcome) -> ExitCode {
    let (code, text) = exit::encode(outcome);
    if !text.is_empty() {
        eprintln!("umn-test: {text}");
    }
    ExitCode::from(code)
}

/// Opens the device for non-blocking reads.
pub fn open_device() -> Outcome<Device> {
    Device::open_nonblocking().map_err(|error| {
        Failure::Skipped(format!(
            "cannot open {}: {error}; is the module loaded (modprobe ummunotify)?",
            device::PATH
        ))
    })
}

/// Turns a system error into a failure that names the action.
pub fn failed(what: &str) -> impl Fn(std::io::Error) -> Failure + '_ {
    move |error| Failure::Failed(format!("{what}: {error}"))
}
