// SPDX-License-Identifier: GPL-2.0

//! What `/dev/ummunotify` does.
//!
//! - [`file`]: what an open file owns, and its operations.
//! - [`ioctl`]: the commands and their arguments.
//! - [`regions`]: which regions are hit, what is queued for them, and what the counter says.
//! - [`event`]: the records that a read returns.

#![forbid(unsafe_code)]

mod event;
mod file;
mod ioctl;
mod regions;

use kernel::prelude::*;

use crate::abstractions::char_file;

/// The registered device.
pub(crate) type Device = char_file::Registration<file::WatchFile>;

/// Registers the device.
///
/// Everybody may open it, since a process learns about nobody but itself. Its node is writable so
/// that an attempt to open it for writing gets the documented `EINVAL`.
pub(crate) fn device() -> impl PinInit<Device, Error> {
    Device::new(c"ummunotify", 0o666)
}
