// SPDX-License-Identifier: GPL-2.0

//! Where in a region something was invalidated.

use kernel::page::PAGE_SHIFT;

/// Addresses from one to another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// The first address.
    pub(super) start: usize,
    /// The last address, which is not below `start`.
    pub(super) last: usize,
}

/// The part of a region that an event is about, or all of it.
///
/// It takes 8 bytes, since there is one in each region: how far from the start of the region the
/// part is, in the lower bits, and how long it is, in the upper ones. Both are told in bytes, or
/// where that does not fit, in pages: then the highest bit is set. With 4 KiB pages, a part that is
/// 512 GiB long, or 256 TiB from the start, is taken for all of the region.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hint(u64);

impl Hint {
    /// The whole region.
    pub(super) const WHOLE: Self = Self(0);

    /// The bit that says that the part is told in pages.
    const PAGES: u64 = 1 << 63;

    /// How many of the other bits say how far the part is, in bytes and in pages.
    const BYTES_SHIFT: u32 = 32;
    const PAGES_SHIFT: u32 = 36;

    /// `part` of `region`, which it must be in.
    #[inline]
    pub(super) fn new(region: &Span, part: &Span) -> Self {
        // No overflow, since the part is in the region, and the region is not all that there is.
        let offset = part.start.wrapping_sub(region.start) as u64;
        let length = part.last.wrapping_sub(part.start).wrapping_add(1) as u64;
        if let Some(bytes) = Self::pack(offset, length, Self::BYTES_SHIFT) {
            return Self(bytes);
        }
        // All pages, as seen from the start of the region, that there is a byte of.
        let end = ((offset.wrapping_add(length) - 1) >> PAGE_SHIFT) + 1;
        let offset = offset >> PAGE_SHIFT;
        let length = end - offset;
        match Self::pack(offset, length, Self::PAGES_SHIFT) {
            Some(pages) => Self(Self::PAGES | pages),
            None => Self::WHOLE,
        }
    }

    /// Puts both into 63 bits, if they fit.
    #[inline]
    fn pack(offset: u64, length: u64, shift: u32) -> Option<u64> {
        let fits = offset >> shift == 0 && length >> (63 - shift) == 0;
        fits.then_some(length << shift | offset)
    }

    /// The part of `region` that it is, which has been given to [`Self::new`]; `None` where it is
    /// all of it.
    #[inline]
    pub(super) fn part_of(self, region: &Span) -> Option<Span> {
        if let Some(part) = self.bytes_from(region.start) {
            return Some(part);
        }
        if self == Self::WHOLE {
            return None;
        }
        // No overflow anywhere here, since the part is in the region.
        let offset = (self.0 & ((1 << Self::PAGES_SHIFT) - 1)) as usize;
        let length = ((self.0 & !Self::PAGES) >> Self::PAGES_SHIFT) as usize;
        let last = ((offset + length) << PAGE_SHIFT) - 1;
        Some(Span {
            start: region.start + (offset << PAGE_SHIFT),
            // The last page may be in the region in part.
            last: region.start + last.min(region.last - region.start),
        })
    }

    /// The same, where it is told in bytes, and `start` is that of the region; else `None`.
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

    /// Returns whether all of `part` is told, where `region` is what has been given to
    /// [`Self::new`].
    pub(super) fn covers(self, region: &Span, part: &Span) -> bool {
        self.part_of(region)
            .is_none_or(|told| told.start <= part.start && part.last <= told.last)
    }
}

#[kernel::prelude::kunit_tests(ummunotify_hint)]
mod tests {
    use super::*;

    use kernel::page::PAGE_SIZE as P;

    const G: usize = 1 << 30;
    const T: usize = 1 << 40;

    fn span(start: usize, last: usize) -> Span {
        Span { start, last }
    }

    #[test]
    fn tells_the_part() {
        let all = span(0, usize::MAX - 1);
        let high = span(usize::MAX - 9 * P, usize::MAX - 1);
        for (region, part, told) in [
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
            // Too long, or too far from the start, for that too.
            (all, span(0, T / 2 - 1), None),
            (all, span(256 * T, 256 * T), None),
            (all, all, None),
            (all, span(0, usize::MAX), None),
        ] {
            let hint = Hint::new(&region, &part);
            assert!(hint.part_of(&region) == told);
            assert!(hint.covers(&region, &part));
        }
    }

    #[test]
    fn covers_what_it_tells() {
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
            assert_eq!(hint.covers(&region, &part), covers);
        }
        assert!(Hint::WHOLE.covers(&region, &region));
    }
}
