// SPDX-License-Identifier: GPL-2.0

//! The part of a region that was invalidated, in 8 bytes.

use kernel::page::PAGE_SHIFT;

/// A range of addresses that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// The first address.
    pub(super) start: usize,
    /// The last address. It is not below `start`.
    pub(super) last: usize,
}

/// The part of a region that an event reports, or the whole region.
///
/// Each region has one, so it is packed into 8 bytes: the offset of the part from the start of the
/// region, its length, and the unit of both.
///
/// | bit 63 | length         | offset        | unit  |
/// |--------|----------------|---------------|-------|
/// | 0      | bits 32 to 62  | bits 0 to 31  | bytes |
/// | 1      | bits 36 to 62  | bits 0 to 35  | pages |
///
/// Pages are used if the part does not fit in bytes. It is then extended to whole pages, counted
/// from the start of the region. If it does not fit in pages either, it becomes the whole region,
/// which is 0. With pages of 4 KiB, that happens to parts of 512 GiB or more, or at an offset of
/// 256 TiB or more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hint(u64);

impl Hint {
    /// The whole region.
    pub(super) const WHOLE: Self = Self(0);

    /// The unit is a page.
    const PAGES: u64 = 1 << 63;

    /// The number of bits of the offset, in bytes and in pages.
    const BYTES_SHIFT: u32 = 32;
    const PAGES_SHIFT: u32 = 36;

    /// Creates a hint for `part`, which must be inside `region`.
    #[inline]
    pub(super) fn new(region: &Span, part: &Span) -> Self {
        // No overflow: the part is in the region, and no region covers all addresses.
        let offset = part.start.wrapping_sub(region.start) as u64;
        let length = part.last.wrapping_sub(part.start).wrapping_add(1) as u64;
        if let Some(bytes) = Self::pack(offset, length, Self::BYTES_SHIFT) {
            return Self(bytes);
        }
        // All pages, counted from the start of the region, that contain a byte of the part.
        let end = ((offset.wrapping_add(length) - 1) >> PAGE_SHIFT) + 1;
        let offset = offset >> PAGE_SHIFT;
        let length = end - offset;
        match Self::pack(offset, length, Self::PAGES_SHIFT) {
            Some(pages) => Self(Self::PAGES | pages),
            None => Self::WHOLE,
        }
    }

    /// Packs both into 63 bits, if they fit.
    #[inline]
    fn pack(offset: u64, length: u64, shift: u32) -> Option<u64> {
        let fits = offset >> shift == 0 && length >> (63 - shift) == 0;
        fits.then_some(length << shift | offset)
    }

    /// Returns the part of `region`, or `None` if it is the whole region.
    ///
    /// `region` must be the one that was passed to [`Self::new`].
    #[inline]
    pub(super) fn part_of(self, region: &Span) -> Option<Span> {
        if let Some(part) = self.bytes_from(region.start) {
            return Some(part);
        }
        if self == Self::WHOLE {
            return None;
        }
        // Nothing overflows below, since the part is in the region.
        let offset = (self.0 & ((1 << Self::PAGES_SHIFT) - 1)) as usize;
        let length = ((self.0 & !Self::PAGES) >> Self::PAGES_SHIFT) as usize;
        let last = ((offset + length) << PAGE_SHIFT) - 1;
        Some(Span {
            start: region.start + (offset << PAGE_SHIFT),
            // The region may end inside the last page.
            last: region.start + last.min(region.last - region.start),
        })
    }

    /// Returns the part of the region at `start`, or `None` if the unit is not bytes.
    ///
    /// This is sufficient for most hints.
    #[inline]
    pub(super) fn bytes_from(self, start: usize) -> Option<Span> {
        // The same as `self == Self::WHOLE || self.0 & Self::PAGES != 0`, in one comparison.
        if self.0 as i64 <= 0 {
            return None;
        }
        // No overflow, since the part is in the region.
        let offset = (self.0 & ((1 << Self::BYTES_SHIFT) - 1)) as usize;
        let length = (self.0 >> Self::BYTES_SHIFT) as usize;
        let start = start.wrapping_add(offset);
        let last = start.wrapping_add(length).wrapping_sub(1);
        Some(Span { start, last })
    }

    /// Returns the smallest hint that encloses this one and `part`, which must be inside `region`.
    ///
    /// `region` must be the one that was passed to [`Self::new`].
    pub(super) fn widened(self, region: &Span, part: &Span) -> Self {
        let Some(hint) = self.part_of(region) else {
            return Self::WHOLE;
        };
        let hull = Span {
            start: hint.start.min(part.start),
            last: hint.last.max(part.last),
        };
        Self::new(region, &hull)
    }

    /// Returns whether the hint encloses all of `part`.
    ///
    /// `region` must be the one that was passed to [`Self::new`].
    pub(super) fn covers(self, region: &Span, part: &Span) -> bool {
        self.part_of(region)
            .is_none_or(|hint| hint.start <= part.start && part.last <= hint.last)
    }
}

#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(ummunotify_hint)]
mod tests {
    use super::*;

    use crate::abstractions::kunit::expect_eq;
    use kernel::page::PAGE_SIZE as P;

    const G: usize = 1 << 30;
    const T: usize = 1 << 40;

    fn span(start: usize, last: usize) -> Span {
        Span { start, last }
    }

    #[test]
    fn returns_the_part() {
        let all = span(0, usize::MAX - 1);
        let high = span(usize::MAX - 9 * P, usize::MAX - 1);
        for (region, part, expected) in [
            // In bytes.
            (all, span(0, 0), Some(span(0, 0))),
            (all, span(5, 5), Some(span(5, 5))),
            (all, span(P, 3 * P - 1), Some(span(P, 3 * P - 1))),
            (all, span(0, 2 * G - 2), Some(span(0, 2 * G - 2))),
            (all, span(4 * G - 1, 5 * G), Some(span(4 * G - 1, 5 * G))),
            (high, high, Some(high)),
            (
                high,
                span(high.last, high.last),
                Some(span(high.last, high.last)),
            ),
            (
                span(100 * T, 101 * T),
                span(100 * T + P, 100 * T + P),
                Some(span(100 * T + P, 100 * T + P)),
            ),
            // In pages: too long, or too far from the start.
            (all, span(0, 2 * G - 1), Some(span(0, 2 * G - 1))),
            (all, span(P - 1, 3 * G), Some(span(0, 3 * G + P - 1))),
            (all, span(4 * G, 4 * G), Some(span(4 * G, 4 * G + P - 1))),
            (
                span(P + 7, 9 * G),
                span(6 * G, 7 * G),
                Some(span(6 * G - P + 7, 7 * G + 6)),
            ),
            (
                span(0, 5 * G + 9),
                span(5 * G, 5 * G + 1),
                Some(span(5 * G, 5 * G + 9)),
            ),
            (all, span(0, T / 2 - P - 1), Some(span(0, T / 2 - P - 1))),
            (
                all,
                span(256 * T - 1, 256 * T - 1),
                Some(span(256 * T - P, 256 * T - 1)),
            ),
            // Too long, or too far from the start, even for pages.
            (all, span(0, T / 2 - 1), None),
            (all, span(256 * T, 256 * T), None),
            (all, all, None),
            (all, span(0, usize::MAX), None),
        ] {
            let hint = Hint::new(&region, &part);
            expect_eq!(hint.part_of(&region), expected);
            assert!(hint.covers(&region, &part));
        }
    }

    #[test]
    fn widens_to_the_hull() {
        let region = span(P + 7, T);
        for (hint, part, hull) in [
            (
                span(2 * P, 3 * P),
                span(5 * P, 6 * P),
                Some(span(2 * P, 6 * P)),
            ),
            (
                span(5 * P, 6 * P),
                span(2 * P, 3 * P),
                Some(span(2 * P, 6 * P)),
            ),
            (
                span(2 * P, 9 * P),
                span(3 * P, 4 * P),
                Some(span(2 * P, 9 * P)),
            ),
            (
                span(3 * P, 4 * P),
                span(2 * P, 9 * P),
                Some(span(2 * P, 9 * P)),
            ),
            (
                span(P + 7, P + 7),
                span(P + 9, P + 9),
                Some(span(P + 7, P + 9)),
            ),
            // In pages, counted from the start of the region, from here on.
            (
                span(2 * P, 2 * P),
                span(3 * G, 3 * G),
                Some(span(P + 7, 3 * G + 6)),
            ),
            (
                span(T - P, T),
                span(T - 2 * P, T),
                Some(span(T - 3 * P + 7, T)),
            ),
            // Too long.
            (span(P + 7, P + 7), span(T - P, T), None),
            (region, span(2 * P, 2 * P), None),
        ] {
            let hint = Hint::new(&region, &hint).widened(&region, &part);
            expect_eq!(hint.part_of(&region), hull);
        }
    }

    #[test]
    fn covers_its_part() {
        let region = span(P, 9 * P - 1);
        let hint = Hint::new(&region, &span(2 * P, 5 * P - 1));
        for (part, covers) in [
            (span(2 * P, 5 * P - 1), true),
            (span(3 * P, 3 * P), true),
            (span(2 * P - 1, 3 * P), false),
            (span(3 * P, 5 * P), false),
            (span(P, 9 * P - 1), false),
            (span(6 * P, 7 * P), false),
        ] {
            expect_eq!(hint.covers(&region, &part), covers);
        }
        assert!(Hint::WHOLE.covers(&region, &region));
    }
}
