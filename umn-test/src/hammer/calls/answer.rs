// SPDX-License-Identifier: GPL-2.0

//! What came of a call, and whether it may have come.

use std::io;

use crate::device::check;

/// Whether a call that was made may have succeeded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    May,
    /// It must not, whatever the moment.
    MustFail,
}

/// What came of a call.
pub type Answer = (Verdict, io::Result<i64>);

/// A result of the system as a number.
pub fn number<T: PartialEq + From<i8> + TryInto<i64>>(result: T) -> io::Result<i64> {
    check(result).map(|value| value.try_into().unwrap_or(0))
}
