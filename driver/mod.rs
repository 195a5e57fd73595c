// SPDX-License-Identifier: GPL-2.0

//! What `/dev/ummunotify` does.
//!
//! - [`file`]: what an open file owns, and its operations.
//! - [`ioctl`]: the commands and their arguments.
//! - [`regions`]: which regions are hit, what is queued for them, and what the counter says.
//! - [`gate`]: what can be told of an invalidation without the lock.
//! - [`hint`]: where in a region something was invalidated.
//! - [`log`]: changes that are still to be applied to the regions they hit.
//! - [`account`]: the memory that is charged to the opener's user.
//! - [`event`]: the records that a read returns.

// The macro that makes KUnit suites makes unsafe code. Where there is no KUnit there is none of it.
#![cfg_attr(not(CONFIG_KUNIT = "y"), forbid(unsafe_code))]

mod account;
mod event;
mod file;
mod gate;
mod hint;
mod ioctl;
mod log;
mod regions;

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
/// Everybody may open it, since a process learns about nobody but itself. Its node is writable so
/// that an attempt to open it for writing gets the documented `EINVAL`.
pub(crate) fn device() -> Result<impl PinInit<Device, Error>> {
    let cache = Arc::new(RegionCache::new(c"ummunotify_region")?, GFP_KERNEL)?;
    Ok(Device::new(c"ummunotify", 0o666, cache))
}
