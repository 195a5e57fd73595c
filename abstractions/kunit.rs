// SPDX-License-Identifier: GPL-2.0

//! Comparisons for the KUnit tests, which print both values if they differ.

use kernel::{
    fmt::Debug,
    prelude::*, //
};

/// Returns whether `seen` is as expected; prints both values if not.
pub(crate) fn agree<T: Debug + PartialEq>(what: &str, seen: T, expected: T) -> bool {
    let is_equal = seen == expected;
    if !is_equal {
        pr_err!("{what}: {seen:?}, expected {expected:?}\n");
    }
    is_equal
}

/// Asserts that two values are equal, like KUnit's `assert_eq!`; prints both if not.
macro_rules! expect_eq {
    ($seen:expr, $expected:expr $(,)?) => {
        assert!($crate::abstractions::kunit::agree(
            stringify!($seen),
            $seen,
            $expected
        ))
    };
}
pub(crate) use expect_eq;
