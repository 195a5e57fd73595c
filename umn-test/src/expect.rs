// SPDX-License-Identifier: GPL-2.0

//! The assertions of tests. Each returns a [`Failure`] that shows what was expected and what was
//! seen.

use std::{
    fmt::{
        self,
        Debug,
        Display, //
    },
    io,
    ops::Range,
    panic::Location, //
};

use nix::errno::Errno;

use crate::uapi::{
    Event,
    EVENT_FLAG_HINT,
    EVENT_INVAL,
    EVENT_LAST, //
};

/// What a test returns.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Why a test did not pass.
#[derive(Debug)]
pub enum Failure {
    /// What was expected, what was seen, and where.
    Failed(String),
    /// What this machine lacks to run the test.
    Skipped(String),
}

impl Failure {
    /// Creates a failure, worded like all others.
    #[track_caller]
    pub fn new(what: &str, expected: impl Display, seen: impl Display) -> Self {
        let at = Location::caller();
        Self::Failed(format!(
            "expected {expected}, saw {seen} ({what}, {}:{})",
            at.file(),
            at.line()
        ))
    }
}

impl From<io::Error> for Failure {
    #[track_caller]
    fn from(error: io::Error) -> Self {
        Self::new("system call", "success", named(&error))
    }
}

impl From<Errno> for Failure {
    #[track_caller]
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

/// Expects a condition to hold.
#[track_caller]
pub fn that(what: &str, holds: bool, expected: impl Display, seen: impl Display) -> Outcome {
    if holds {
        Ok(())
    } else {
        Err(Failure::new(what, expected, seen))
    }
}

/// Expects a value.
#[track_caller]
pub fn same<T: PartialEq + Debug>(what: &str, seen: T, expected: T) -> Outcome {
    that(
        what,
        seen == expected,
        format_args!("{expected:?}"),
        format_args!("{seen:?}"),
    )
}

/// Expects a number to be at least a minimum.
#[track_caller]
pub fn at_least(what: &str, seen: u64, expected: u64) -> Outcome {
    that(
        what,
        seen >= expected,
        format_args!("{expected} or more"),
        seen,
    )
}

/// Expects a call to fail with one error number.
#[track_caller]
pub fn error<T: Debug>(what: &str, result: io::Result<T>, expected: i32) -> Outcome {
    one_of(what, result, &[expected])
}

/// Expects a call to fail with one of several error numbers.
#[track_caller]
pub fn one_of<T: Debug>(what: &str, result: io::Result<T>, expected: &[i32]) -> Outcome {
    let wanted: Vec<String> = expected.iter().map(|number| errno_name(*number)).collect();
    let wanted = wanted.join(" or ");
    match result {
        Err(e) if e.raw_os_error().is_some_and(|n| expected.contains(&n)) => Ok(()),
        Err(e) => Err(Failure::new(what, wanted, named(&e))),
        Ok(value) => Err(Failure::new(
            what,
            wanted,
            format_args!("success, {value:?}"),
        )),
    }
}

/// Expects a call to succeed.
#[track_caller]
pub fn success<T>(what: &str, result: io::Result<T>) -> Outcome<T> {
    result.map_err(|error| Failure::new(what, "success", named(&error)))
}

/// Expects records.
#[track_caller]
pub fn events(what: &str, seen: &[Event], expected: &[Event]) -> Outcome {
    that(what, seen == expected, Shown(expected), Shown(seen))
}

/// Skips a test if this machine lacks something that a call needs.
pub trait OrSkip<T> {
    /// Turns errors about missing features and missing privilege into [`Failure::Skipped`].
    fn or_skip(self, what: &str) -> Outcome<T>;
}

impl<T> OrSkip<T> for io::Result<T> {
    #[track_caller]
    fn or_skip(self, what: &str) -> Outcome<T> {
        /// Errors that indicate a missing feature or missing privilege.
        const LACKING: &[i32] = &[
            libc::ENOENT,
            libc::EPERM,
            libc::EACCES,
            libc::ENOSYS,
            libc::EOPNOTSUPP,
            libc::ENODEV,
            libc::ENXIO,
        ];
        let at = Location::caller();
        self.map_err(|e| match e.raw_os_error() {
            Some(number) if LACKING.contains(&number) => {
                Failure::Skipped(format!("{what}: {}", errno_name(number)))
            }
            None if e.kind() == io::ErrorKind::PermissionDenied => {
                Failure::Skipped(format!("{what}: {e}"))
            }
            _ => Failure::Failed(format!(
                "expected success, saw {} ({what}, {}:{})",
                named(&e),
                at.file(),
                at.line()
            )),
        })
    }
}

/// The record of one invalidation, whose hint is exactly `hint`.
pub fn inval(cookie: u64, hint: &Range<u64>) -> Event {
    Event {
        flags: EVENT_FLAG_HINT,
        ..whole(cookie, hint)
    }
}

/// The record of several invalidations, which has no hint and names the whole region.
pub fn whole(cookie: u64, region: &Range<u64>) -> Event {
    Event {
        kind: EVENT_INVAL,
        flags: 0,
        hint_start: region.start,
        hint_end: region.end,
        user_cookie_counter: cookie,
    }
}

/// The record that ends a drained queue.
pub fn last(counter: u64) -> Event {
    Event {
        kind: EVENT_LAST,
        user_cookie_counter: counter,
        ..Event::default()
    }
}

/// Formats records for failure messages.
struct Shown<'a>(&'a [Event]);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// The most records to print.
        const MOST: usize = 8;
        let mut separator = "[";
        for event in self.0.iter().take(MOST) {
            f.write_str(separator)?;
            separator = "; ";
            let cookie = event.user_cookie_counter;
            let range = format!("{:#x}..{:#x}", event.hint_start, event.hint_end);
            match (event.kind, event.flags) {
                (EVENT_INVAL, 0) => write!(f, "INVAL {cookie:#x} whole {range}")?,
                (EVENT_INVAL, EVENT_FLAG_HINT) => write!(f, "INVAL {cookie:#x} hint {range}")?,
                (EVENT_LAST, 0) if event.hint_start | event.hint_end == 0 => {
                    write!(f, "LAST {cookie}")?
                }
                _ => write!(f, "{event:?}")?,
            }
        }
        match self.0.len() {
            0 => f.write_str("[no record]"),
            n if n > MOST => write!(f, "; … {n} records]"),
            _ => f.write_str("]"),
        }
    }
}

/// The name of an error, or its text if it has no error number.
pub fn named(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => errno_name(number),
        None => error.to_string(),
    }
}

/// The name of an error number, such as `EINVAL`.
pub fn errno_name(number: i32) -> String {
    match Errno::from_raw(number) {
        Errno::UnknownErrno => format!("error {number}"),
        errno => format!("{errno:?}"),
    }
}
