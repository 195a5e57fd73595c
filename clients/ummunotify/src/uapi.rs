// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! The interface as it is in `linux/ummunotify.h`, for programs that call the device themselves.
//!
//! The build of umn-test checks that this file and the header say the same.

/// `struct ummunotify_register_ioctl`: a region to watch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Register {
    /// First address of the region.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Name of the region.
    pub user_cookie: u64,
    /// Ignored without negotiated features.
    pub flags: u32,
    /// Ignored without negotiated features.
    pub reserved: u32,
}

/// `struct ummunotify_event`: a record that `read` returns.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// C's `type`: [`EVENT_INVAL`] or [`EVENT_LAST`].
    pub kind: u32,
    /// [`EVENT_FLAG_HINT`] or 0.
    pub flags: u32,
    /// First invalidated address.
    pub hint_start: u64,
    /// First address after the invalidated ones.
    pub hint_end: u64,
    /// The region's cookie, or for [`EVENT_LAST`] the generation counter.
    pub user_cookie_counter: u64,
}

/// `UMMUNOTIFY_EXCHANGE_FEATURES`.
pub const EXCHANGE_FEATURES: u32 = 0xC004_5501;
/// `UMMUNOTIFY_REGISTER_REGION`.
pub const REGISTER_REGION: u32 = 0x4020_5502;
/// `UMMUNOTIFY_UNREGISTER_REGION`.
pub const UNREGISTER_REGION: u32 = 0x4008_5503;
/// `UMMUNOTIFY_EVENT_TYPE_INVAL`.
pub const EVENT_INVAL: u32 = 0;
/// `UMMUNOTIFY_EVENT_TYPE_LAST`.
pub const EVENT_LAST: u32 = 1;
/// `UMMUNOTIFY_EVENT_FLAG_HINT`.
pub const EVENT_FLAG_HINT: u32 = 1;
