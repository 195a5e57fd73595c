// SPDX-License-Identifier: GPL-2.0

//! The result of a call, and whether it is allowed.

use std::io;

use crate::device::check;

/// Whether a call may succeed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may succeed.
    May,
    /// It must fail, whatever else happens.
    MustFail,
}

/// The verdict on a call, and its result.
pub type Answer = (Verdict, io::Result<i64>);

/// Converts the result of a system call to a number.
pub fn number<T: PartialEq + From<i8> + TryInto<i64>>(result: T) -> io::Result<i64> {
    check(result).map(|value| value.try_into().unwrap_or(0))
}
