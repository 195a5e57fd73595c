// SPDX-License-Identifier: GPL-2.0

//! The causes of changes, and the regions that heed them.
//!
//! A region ignores some of the causes that leave the page frames unchanged. There are eight
//! combinations of these causes, and each is a [`Class`] of regions. A search visits only the
//! classes that heed the cause, so regions that ignore it cost nothing.

use crate::{
    abstractions::{
        interval_map::{
            Class,
            Classes, //
        },
        mmu_notifier::Event, //
    },
    uapi::{
        UMMUNOTIFY_CAUSES_SAME_PAGES,
        UMMUNOTIFY_CAUSE_CLEAR,
        UMMUNOTIFY_CAUSE_DEVICE,
        UMMUNOTIFY_CAUSE_OTHER,
        UMMUNOTIFY_CAUSE_PROTECT_AREA,
        UMMUNOTIFY_CAUSE_PROTECT_PAGES,
        UMMUNOTIFY_CAUSE_SOFT_DIRTY,
        UMMUNOTIFY_CAUSE_UNMAP,
        UMMUNOTIFY_EVENT_CAUSES_SHIFT, //
    },
};

/// The lowest bit of the causes that can be ignored. The others are the next bits.
const IGNORABLE_SHIFT: u32 = UMMUNOTIFY_CAUSES_SAME_PAGES.trailing_zeros();

/// A set of causes, `UMMUNOTIFY_CAUSE_*`.
///
/// Files without `UMMUNOTIFY_FEATURE_CAUSE` do not use it: their changes have no cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Causes(u16);

impl Causes {
    /// No cause.
    pub(super) const NONE: Self = Self(0);

    /// Every cause.
    pub(super) const ALL: Self = Self(u16::MAX);

    /// Creates the set of causes whose bits are set.
    pub(super) const fn new(bits: u32) -> Self {
        Self(bits as u16)
    }

    /// Returns the cause of a kernel event.
    pub(super) fn of(event: Event) -> Self {
        let known = EVENTS.iter().find(|(known, _)| *known == event);
        known.map_or(OTHER, |(_, cause)| Self::new(*cause))
    }

    /// Returns the causes as they are in the flags of an event.
    #[inline]
    pub(super) const fn event_flags(self) -> u32 {
        (self.0 as u32) << UMMUNOTIFY_EVENT_CAUSES_SHIFT
    }

    /// Returns the causes that are in either set.
    pub(super) const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns the causes that are in both sets.
    #[inline]
    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns the causes that regions of this class heed.
    pub(super) const fn heeded_by(self, class: Class) -> Self {
        Self(self.0 & !((class.number() as u16) << IGNORABLE_SHIFT))
    }

    /// Returns the classes of regions that heed at least one of the causes. Without causes, these
    /// are all classes.
    #[inline]
    pub(super) const fn heeding(self) -> Classes {
        const IGNORABLE: u16 = UMMUNOTIFY_CAUSES_SAME_PAGES as u16;
        /// Indexed by the causes that can be ignored, of which there are three.
        const HEEDING: [Classes; 8] = {
            let mut heeding = [Classes::ALL; 8];
            let mut causes = 1;
            while causes < 8 {
                let mut bits = 0;
                let mut class = 0;
                while class < 8 {
                    if causes & !class != 0 {
                        bits |= 1 << class;
                    }
                    class += 1;
                }
                heeding[causes] = Classes::from_bits(bits);
                causes += 1;
            }
            heeding
        };
        if self.0 & !IGNORABLE != 0 {
            return Classes::ALL;
        }
        HEEDING[(self.0 >> IGNORABLE_SHIFT) as usize & 7]
    }
}

/// Causes that the driver does not know.
const OTHER: Causes = Causes::new(UMMUNOTIFY_CAUSE_OTHER);

/// The kernel's events, and the cause that user space sees for each.
const EVENTS: [(Event, u32); 8] = [
    (Event::UNMAP, UMMUNOTIFY_CAUSE_UNMAP),
    (Event::CLEAR, UMMUNOTIFY_CAUSE_CLEAR),
    (Event::PROTECTION_AREA, UMMUNOTIFY_CAUSE_PROTECT_AREA),
    (Event::PROTECTION_PAGE, UMMUNOTIFY_CAUSE_PROTECT_PAGES),
    (Event::SOFT_DIRTY, UMMUNOTIFY_CAUSE_SOFT_DIRTY),
    (Event::RELEASE, UMMUNOTIFY_CAUSE_OTHER),
    (Event::MIGRATE, UMMUNOTIFY_CAUSE_DEVICE),
    (Event::EXCLUSIVE, UMMUNOTIFY_CAUSE_DEVICE),
];

/// A set of events of the kernel. Unless it is empty, it contains all unknown events.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Events(usize);

impl Events {
    /// No event.
    pub(super) const NONE: Self = Self(0);

    /// Returns the events that regions of at least one of `classes` heed.
    pub(super) fn heeded_by(classes: Classes) -> Self {
        if classes == Classes::NONE {
            return Self::NONE;
        }
        let mut events = usize::MAX;
        for (event, cause) in EVENTS {
            if Causes::new(cause).heeding().bits() & classes.bits() == 0 {
                events &= !(1 << event.number());
            }
        }
        Self(events)
    }

    /// Creates a set from the result of [`Self::bits`].
    #[inline]
    pub(super) const fn from_bits(bits: usize) -> Self {
        Self(bits)
    }

    /// Returns the set as bits.
    #[inline]
    pub(super) const fn bits(self) -> usize {
        self.0
    }

    /// Returns whether the event is in the set.
    #[inline]
    pub(super) const fn contains(self, event: Event) -> bool {
        // The kernel has eight events, so each has its own bit.
        self.0.wrapping_shr(event.number()) & 1 != 0
    }
}

/// Returns the class of regions that ignore these causes, or `None` if one of them cannot be
/// ignored or a bit is not a cause.
#[inline]
pub(super) fn class_ignoring(causes: u32) -> Option<Class> {
    (causes & !UMMUNOTIFY_CAUSES_SAME_PAGES == 0)
        .then_some(Class::new((causes >> IGNORABLE_SHIFT) as u8))
}

#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(ummunotify_cause)]
mod tests {
    use super::*;

    use crate::abstractions::kunit::expect_eq;

    #[test]
    fn classes_ignore_what_they_say() {
        for class in 0..8 {
            let ignored = u32::from(class) << IGNORABLE_SHIFT;
            let found = class_ignoring(ignored);
            expect_eq!(found.map(Class::number), Some(class));
            for bit in 0..16 {
                let cause = Causes::new(1 << bit);
                let heeds = ignored & 1 << bit == 0;
                let is_heeded = cause.heeded_by(Class::new(class)) == cause;
                let is_heeding = cause.heeding().bits() >> class & 1 == 1;
                expect_eq!((is_heeded, is_heeding), (heeds, heeds));
            }
        }
        for bit in (0..32).filter(|bit| ![2, 3, 4].contains(bit)) {
            assert!(class_ignoring(1 << bit).is_none());
            assert!(class_ignoring(UMMUNOTIFY_CAUSES_SAME_PAGES | 1 << bit).is_none());
        }
    }

    #[test]
    fn events_have_one_cause() {
        for (event, cause) in [
            (Event::UNMAP, 1 << 0),
            (Event::CLEAR, 1 << 1),
            (Event::PROTECTION_AREA, 1 << 2),
            (Event::PROTECTION_PAGE, 1 << 3),
            (Event::SOFT_DIRTY, 1 << 4),
            (Event::MIGRATE, 1 << 5),
            (Event::EXCLUSIVE, 1 << 5),
        ] {
            expect_eq!(Causes::of(event).0, cause);
        }
        expect_eq!(Causes::of(Event::RELEASE), OTHER);
    }

    #[test]
    fn events_of_future_kernels_are_reported() {
        for number in EVENTS.len() as u32..32 {
            let event = Event::of_number(number);
            expect_eq!(Causes::of(event), OTHER);
            for class in 0..8 {
                let heeding = Events::heeded_by(Classes::from_bits(1 << class));
                assert!(heeding.contains(event));
            }
            assert!(!Events::heeded_by(Classes::NONE).contains(event));
        }
        expect_eq!(OTHER.heeding(), Classes::ALL);
    }

    #[test]
    fn events_are_heeded_by_what_heeds_their_causes() {
        for classes in 0..=u8::MAX {
            let classes = Classes::from_bits(classes);
            let events = Events::heeded_by(classes);
            for (event, cause) in EVENTS {
                let is_heeded = Causes::new(cause).heeding().bits() & classes.bits() != 0;
                expect_eq!(events.contains(event), is_heeded);
            }
            let is_any = classes != Classes::NONE;
            expect_eq!(events.contains(Event::RELEASE), is_any);
        }
    }

    #[test]
    fn one_of_several_causes_is_enough() {
        let all = Causes::new(UMMUNOTIFY_CAUSES_SAME_PAGES);
        expect_eq!(all.heeding().bits(), 0b0111_1111);
        let clear = Causes::new(UMMUNOTIFY_CAUSE_CLEAR);
        expect_eq!(all.or(clear).heeding(), Classes::ALL);
        expect_eq!(all.or(clear).heeded_by(Class::new(7)), clear);
        expect_eq!(Causes::NONE.heeding(), Classes::ALL);
        expect_eq!(all.or(clear).event_flags(), 0b1_1110 << 16);
    }
}
