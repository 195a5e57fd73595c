// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! Extensions of the interface, and their types.

use std::{
    fmt,
    ops::BitOr, //
};

use crate::uapi;

/// A set of extensions of the interface that a program may request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features(u32);

impl Features {
    /// The empty set: the basic interface, which every version of the driver has.
    pub const NONE: Self = Self(0);

    /// Changes have [`Causes`], and each region can ignore some of them; see
    /// [`Change::causes`](crate::Change::causes) and
    /// [`Device::watch_ignoring`](crate::Device::watch_ignoring).
    pub const CAUSE: Self = Self(uapi::FEATURE_CAUSE);

    /// Several changes of a region are reported as the range that encloses them, instead of the whole
    /// region: see [`Change::addresses`](crate::Change::addresses).
    pub const HULL: Self = Self(uapi::FEATURE_HULL);

    /// [`Device::stamp`](crate::Device::stamp) can be used to check whether the same pages are mapped.
    pub const STAMP: Self = Self(uapi::FEATURE_STAMP);

    /// All features that this version of the crate knows.
    pub const ALL: Self = Self(Self::CAUSE.0 | Self::HULL.0 | Self::STAMP.0);

    /// The features with these bits, whether this crate knows them or not.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits, as the kernel numbers them.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` are among these.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A set of causes of change.
///
/// ```
/// use ummunotify::Causes;
///
/// let causes = Causes::CLEAR | Causes::PROTECT_PAGES;
/// assert!(causes.contains(Causes::CLEAR));
/// assert!(!Causes::SAME_PAGES.contains(causes));
/// assert_eq!(causes.to_string(), "clear, protect-pages");
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Causes(u32);

impl Causes {
    /// No cause.
    pub const NONE: Self = Self(0);

    /// The memory was unmapped, moved or replaced, as by `munmap`.
    pub const UNMAP: Self = Self(uapi::CAUSE_UNMAP);

    /// Entries of the page table were cleared, as by `MADV_DONTNEED`, truncation, copy on write,
    /// reclaim or migration. The same pages may be mapped there again, or others.
    pub const CLEAR: Self = Self(uapi::CAUSE_CLEAR);

    /// Protections of an area were changed, as by `mprotect` or NUMA balancing.
    pub const PROTECT_AREA: Self = Self(uapi::CAUSE_PROTECT_AREA);

    /// Pages were made read-only, as by `fork`.
    pub const PROTECT_PAGES: Self = Self(uapi::CAUSE_PROTECT_PAGES);

    /// Tracking of writes was restarted, as checkpointing does.
    pub const SOFT_DIRTY: Self = Self(uapi::CAUSE_SOFT_DIRTY);

    /// Pages were moved to or from a device, or became exclusive to one.
    pub const DEVICE: Self = Self(uapi::CAUSE_DEVICE);

    /// A kind of change that the driver does not know.
    pub const OTHER: Self = Self(uapi::CAUSE_OTHER);

    /// The causes that leave the same pages mapped. A region can ignore only these.
    pub const SAME_PAGES: Self = Self(uapi::CAUSES_SAME_PAGES);

    /// The causes with these bits, whether this crate knows them or not.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits, as the kernel numbers them.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` are among these.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` is among these.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether there is no cause.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Causes {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Causes {
    /// The names of the causes, and unknown ones as a number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(Causes, &str); 7] = [
            (Causes::UNMAP, "unmap"),
            (Causes::CLEAR, "clear"),
            (Causes::PROTECT_AREA, "protect-area"),
            (Causes::PROTECT_PAGES, "protect-pages"),
            (Causes::SOFT_DIRTY, "soft-dirty"),
            (Causes::DEVICE, "device"),
            (Causes::OTHER, "other"),
        ];
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut unnamed = self.0;
        let mut separator = "";
        for (cause, name) in NAMES {
            if self.contains(cause) {
                unnamed &= !cause.0;
                write!(f, "{separator}{name}")?;
                separator = ", ";
            }
        }
        if unnamed != 0 {
            write!(f, "{separator}{unnamed:#x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Causes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Causes({self})")
    }
}

/// Identifies the pages that were mapped at some addresses; see
/// [`Device::stamp`](crate::Device::stamp).
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    value: u64,
    absent: u32,
}

impl Stamp {
    pub(crate) fn new(stamp: &uapi::Stamp) -> Self {
        Self {
            value: stamp.stamp,
            absent: stamp.absent,
        }
    }

    /// The number of pages that could not be looked up. If it is not 0, the stamp is meaningless.
    pub const fn absent(self) -> u32 {
        self.absent
    }

    /// Whether the same pages were mapped, for two stamps of the same addresses by the same file.
    ///
    /// `false` does not mean that the pages differ. `true` is a proof only if the caller kept the
    /// pages pinned from before the first stamp until after the second. Otherwise a page may have
    /// been freed and allocated again.
    pub const fn is_same(self, other: Self) -> bool {
        self.absent == 0 && other.absent == 0 && self.value == other.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_have_names() {
        assert_eq!(Causes::NONE.to_string(), "none");
        assert_eq!((Causes::OTHER | Causes::UNMAP).to_string(), "unmap, other");
        assert_eq!(Causes::from_bits(0x4002).to_string(), "clear, 0x4000");
        assert_eq!(Causes::from_bits(0x40).to_string(), "0x40");
        let same = "Causes(protect-area, protect-pages, soft-dirty)";
        assert_eq!(format!("{:?}", Causes::SAME_PAGES), same);
    }

    #[test]
    fn only_stamps_of_pages_that_were_seen_are_the_same() {
        let stamp = |value, absent| Stamp { value, absent };
        assert!(stamp(5, 0).is_same(stamp(5, 0)));
        assert!(stamp(0, 0).is_same(stamp(0, 0)));
        assert!(!stamp(5, 0).is_same(stamp(6, 0)));
        assert!(!stamp(0, 1).is_same(stamp(0, 1)));
        assert!(!stamp(0, 0).is_same(stamp(0, 1)));
        assert!(!stamp(0, 1).is_same(stamp(0, 0)));
    }
}
