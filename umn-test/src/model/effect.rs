// SPDX-License-Identifier: GPL-2.0

//! What an operation makes the kernel invalidate, as far as that is known.

use std::{
    io,
    mem,
    ops::Range, //
};

use crate::mem::PAGE;

/// More invalidations than any operation causes.
pub const MANY: u64 = 1 << 32;

/// What an operation makes the kernel invalidate.
#[derive(Debug, Default)]
pub struct Effect {
    /// Invalidations that certainly happened, each once and with exactly this range.
    pub sure: Vec<Range<u64>>,
    /// Ranges with possible further invalidations, and the most there can be in each.
    pub maybe: Vec<(Range<u64>, u64)>,
    /// Pages that are no longer mapped where they were.
    pub lost: Vec<Range<u64>>,
    /// Whether the lost pages were removed one at a time.
    pub one_by_one: bool,
}

impl Effect {
    /// Exactly one in each of these ranges.
    pub fn sure(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        Self {
            sure: ranges.into_iter().collect(),
            ..Self::default()
        }
    }

    /// At most `most` in each of these ranges.
    pub fn maybe(ranges: impl IntoIterator<Item = Range<u64>>, most: u64) -> Self {
        Self {
            maybe: ranges.into_iter().map(|range| (range, most)).collect(),
            ..Self::default()
        }
    }

    /// The same, of pages that are removed one at a time.
    pub fn of_pages(pages: impl IntoIterator<Item = Range<u64>>, most: u64) -> Self {
        Self {
            one_by_one: true,
            ..Self::maybe(pages, most)
        }
    }

    /// Turns certain invalidations into possible ones if the call failed.
    pub fn unless(mut self, result: &io::Result<()>) -> Self {
        if result.is_err() {
            let sure = mem::take(&mut self.sure);
            self.maybe.extend(sure.into_iter().map(|range| (range, 1)));
        }
        self
    }
}

/// The pages of a range, one by one.
pub fn pages(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let starts = range.clone().step_by(PAGE as usize);
    starts.map(|page| page..page + PAGE)
}
