// SPDX-License-Identifier: GPL-2.0

//! How a process reports an outcome to its parent: the exit status, and a text on standard output.

use std::{
    env,
    io::{
        self,
        Write, //
    },
    os::unix::process::ExitStatusExt,
    panic,
    process::{
        ExitCode,
        ExitStatus, //
    }, //
};

use crate::expect::{
    Failure,
    Outcome, //
};

/// The exit status for "skipped", as in kselftest.
const SKIPPED: u8 = 4;

/// The exit status of a run in which everything was skipped.
///
/// cargo-nextest, which sets this variable, treats every status other than 0 as a failure.
pub fn skipped() -> ExitCode {
    match env::var_os("NEXTEST") {
        Some(_) => ExitCode::SUCCESS,
        None => SKIPPED.into(),
    }
}

/// Returns the outcome of a process that wrote `text` and ended with `status`.
pub fn judge(status: ExitStatus, text: &str) -> Outcome {
    match status.code() {
        Some(0) => Ok(()),
        Some(1) => Err(Failure::Failed(text.into())),
        Some(code) if code == i32::from(SKIPPED) => Err(Failure::Skipped(text.into())),
        _ => Err(Failure::Failed(match status.signal() {
            Some(signal) => format!("expected a normal exit, saw death by signal {signal}"),
            None => format!("expected a normal exit, saw {status}"),
        })),
    }
}

/// Converts an outcome into an exit status and a text.
pub fn encode(outcome: Outcome) -> (u8, String) {
    match outcome {
        Ok(()) => (0, String::new()),
        Err(Failure::Failed(why)) => (1, why),
        Err(Failure::Skipped(why)) => (SKIPPED, why),
    }
}

/// Turns a panic into a failure.
pub fn catch(run: impl FnOnce() -> Outcome) -> Outcome {
    panic::catch_unwind(panic::AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(Failure::Failed(
            "expected a normal exit, saw a panic".into(),
        ))
    })
}

/// Reports an outcome to the parent.
pub fn finish(outcome: Outcome) -> ExitCode {
    let (code, text) = encode(outcome);
    // A test may have replaced standard output, and then the report is lost.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tells_its_outcome() {
        for outcome in [
            Ok(()),
            Err(Failure::Failed("f".into())),
            Err(Failure::Skipped("s".into())),
        ] {
            let shown = format!("{outcome:?}");
            let (code, text) = encode(outcome);
            let status = ExitStatus::from_raw(i32::from(code) << 8);
            assert_eq!(format!("{:?}", judge(status, &text)), shown);
        }
    }
}
