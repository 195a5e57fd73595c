// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! The interface of `linux/ummunotify.h`, for programs that call the device themselves.
//!
//! The build of umn-test checks that this file and the header agree.

/// `struct ummunotify_register_ioctl`: a region to watch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Register {
    /// First address of the region.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// The number that identifies the region.
    pub user_cookie: u64,
    /// With [`FEATURE_CAUSE`], the causes that the region ignores. Ignored without features.
    pub flags: u32,
    /// Must be 0 with features. Ignored without.
    pub reserved: u32,
}

/// `struct ummunotify_event`: a record that `read` returns.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// C's `type`: [`EVENT_INVAL`] or [`EVENT_LAST`].
    pub kind: u32,
    /// [`EVENT_FLAG_HINT`] or 0; with [`FEATURE_CAUSE`], the causes from [`EVENT_CAUSES_SHIFT`] on.
    pub flags: u32,
    /// First invalidated address.
    pub hint_start: u64,
    /// First address after the invalidated ones.
    pub hint_end: u64,
    /// The region's cookie, or for [`EVENT_LAST`] the generation counter.
    pub user_cookie_counter: u64,
}

/// `struct ummunotify_stamp_ioctl`: which page frames are mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// First address of the range.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// The stamp, or 0 if pages were absent.
    pub stamp: u64,
    /// How many pages could not be looked up.
    pub absent: u32,
    /// Must be 0.
    pub flags: u32,
}

/// `UMMUNOTIFY_EXCHANGE_FEATURES`.
pub const EXCHANGE_FEATURES: u32 = 0xC004_5501;
/// `UMMUNOTIFY_REGISTER_REGION`.
pub const REGISTER_REGION: u32 = 0x4020_5502;
/// `UMMUNOTIFY_UNREGISTER_REGION`.
pub const UNREGISTER_REGION: u32 = 0x4008_5503;
/// `UMMUNOTIFY_STAMP`.
pub const STAMP: u32 = 0xC020_5504;
/// `UMMUNOTIFY_FEATURE_CAUSE`.
pub const FEATURE_CAUSE: u32 = 1 << 0;
/// `UMMUNOTIFY_FEATURE_HULL`.
pub const FEATURE_HULL: u32 = 1 << 1;
/// `UMMUNOTIFY_FEATURE_STAMP`.
pub const FEATURE_STAMP: u32 = 1 << 2;
/// `UMMUNOTIFY_CAUSE_UNMAP`.
pub const CAUSE_UNMAP: u32 = 1 << 0;
/// `UMMUNOTIFY_CAUSE_CLEAR`.
pub const CAUSE_CLEAR: u32 = 1 << 1;
/// `UMMUNOTIFY_CAUSE_PROTECT_AREA`.
pub const CAUSE_PROTECT_AREA: u32 = 1 << 2;
/// `UMMUNOTIFY_CAUSE_PROTECT_PAGES`.
pub const CAUSE_PROTECT_PAGES: u32 = 1 << 3;
/// `UMMUNOTIFY_CAUSE_SOFT_DIRTY`.
pub const CAUSE_SOFT_DIRTY: u32 = 1 << 4;
/// `UMMUNOTIFY_CAUSE_DEVICE`.
pub const CAUSE_DEVICE: u32 = 1 << 5;
/// `UMMUNOTIFY_CAUSE_OTHER`.
pub const CAUSE_OTHER: u32 = 1 << 15;
/// `UMMUNOTIFY_CAUSES_SAME_PAGES`.
pub const CAUSES_SAME_PAGES: u32 = CAUSE_PROTECT_AREA | CAUSE_PROTECT_PAGES | CAUSE_SOFT_DIRTY;
/// `UMMUNOTIFY_EVENT_TYPE_INVAL`.
pub const EVENT_INVAL: u32 = 0;
/// `UMMUNOTIFY_EVENT_TYPE_LAST`.
pub const EVENT_LAST: u32 = 1;
/// `UMMUNOTIFY_EVENT_FLAG_HINT`.
pub const EVENT_FLAG_HINT: u32 = 1;
/// `UMMUNOTIFY_EVENT_CAUSES_SHIFT`.
pub const EVENT_CAUSES_SHIFT: u32 = 16;
