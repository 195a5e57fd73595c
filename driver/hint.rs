// SPDX-License-Identifier: GPL-2.0

//! Where in a region something was invalidated.

use kernel::page::PAGE_SHIFT;

/// How many of the bits hold the number of pages. The others hold the number of the first page.
const COUNT_BITS: u32 = 28;

/// The pages of a region that an event is about: some of them, or all.
///
/// It takes 8 bytes, since there is one in each region: with 4 KiB pages it can tell up to 1 TiB
/// below 2^48. What goes beyond that is taken for all of the region.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hint(u64);

impl Hint {
    /// The whole region.
    pub(super) const WHOLE: Self = Self(0);

    /// The pages in which `start ..= last` lies.
    #[inline]
    pub(super) fn new(start: usize, last: usize) -> Self {
        let (first, last) = (start as u64 >> PAGE_SHIFT, last as u64 >> PAGE_SHIFT);
        let count = last - first + 1;
        if count >> COUNT_BITS != 0 || first >> (u64::BITS - COUNT_BITS) != 0 {
            return Self::WHOLE;
        }
        Self(first << COUNT_BITS | count)
    }

    /// The first and the last address of the pages; `None` where it is the whole region.
    #[inline]
    pub(super) fn bounds(self) -> Option<(usize, usize)> {
        if self == Self::WHOLE {
            return None;
        }
        let first = self.0 >> COUNT_BITS << PAGE_SHIFT;
        let bytes = (self.0 & ((1 << COUNT_BITS) - 1)) << PAGE_SHIFT;
        // No overflow, since these are addresses of pages. On the 64-bit machines that the driver
        // is for, both types are the same.
        Some((
            first as usize,
            first.wrapping_add(bytes).wrapping_sub(1) as usize,
        ))
    }

    /// Returns whether all of `start ..= last`, which lies in the region, is told.
    pub(super) fn covers(self, start: usize, last: usize) -> bool {
        self.bounds()
            .is_none_or(|(first, end)| first <= start && last <= end)
    }
}

#[kernel::prelude::kunit_tests(ummunotify_hint)]
mod tests {
    use super::*;

    use kernel::page::PAGE_SIZE as P;

    #[test]
    fn tells_the_pages() {
        for (start, last, bounds) in [
            (0, 0, Some((0, P - 1))),
            (P, 2 * P - 1, Some((P, 2 * P - 1))),
            (P + 1, 2 * P, Some((P, 3 * P - 1))),
            (7 * P + 5, 7 * P + 5, Some((7 * P, 8 * P - 1))),
            (
                (1 << 48) - P,
                (1 << 48) - 1,
                Some(((1 << 48) - P, (1 << 48) - 1)),
            ),
            (P, (P << 28) - 1, Some((P, (P << 28) - 1))),
            // Too many pages, and too high.
            (0, (P << 28) - 1, None),
            (P << 36, P << 36, None),
            (0, usize::MAX, None),
            (usize::MAX, usize::MAX, None),
        ] {
            assert!(Hint::new(start, last).bounds() == bounds);
        }
    }

    #[test]
    fn covers_what_it_tells() {
        let hint = Hint::new(2 * P, 5 * P - 1);
        for (start, last, covers) in [
            (2 * P, 5 * P - 1, true),
            (3 * P, 3 * P, true),
            (2 * P - 1, 3 * P, false),
            (3 * P, 5 * P, false),
            (0, 9 * P, false),
            (6 * P, 7 * P, false),
        ] {
            assert_eq!(hint.covers(start, last), covers);
        }
        assert!(Hint::WHOLE.covers(0, usize::MAX));
    }
}
