// SPDX-License-Identifier: GPL-2.0

//! The driver of `/dev/ummunotify`, without the unsafe code that it needs.
//!
//! - [`file`]: an open file and its operations. Start here.
//! - [`ioctl`]: the ioctl commands and their arguments.
//! - [`regions`]: the regions of a file, their events, and the counter.
//! - [`gate`]: the lockless fast path of the callbacks.
//! - [`log`]: changes that have not been applied yet to all regions they hit.
//! - [`hint`]: the part of a region that was invalidated.
//! - [`cause`]: the causes of changes, and the regions that heed them.
//! - [`stamp`]: numbers that identify the page frames mapped in a range.
//! - [`event`]: the records that `read()` returns.
//! - [`account`]: the memory that is charged to the opener's user.

// KUnit's macro expands to unsafe code. Without tests there is none in here.
#![cfg_attr(not(CONFIG_UMMUNOTIFY_KUNIT_TEST), forbid(unsafe_code))]

mod account;
mod cause;
mod event;
mod file;
mod gate;
mod hint;
mod ioctl;
mod log;
mod regions;
mod stamp;

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::abstractions::char_file;

use regions::RegionCache;

/// The registered device.
pub(crate) type Device = char_file::Registration<file::WatchFile>;

/// Registers the device.
///
/// Every user may open it, since a process finds out only about itself. The node is writable so
/// that an attempt to open it for writing fails with the documented `EINVAL`.
pub(crate) fn device() -> Result<impl PinInit<Device, Error>> {
    let cache = Arc::new(RegionCache::new(c"ummunotify_region")?, GFP_KERNEL)?;
    Ok(Device::new(c"ummunotify", 0o666, cache))
}
