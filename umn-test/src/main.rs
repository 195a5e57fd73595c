// SPDX-License-Identifier: GPL-2.0

//! Tests, demonstration and event viewer for `/dev/ummunotify`.

mod device;
mod uapi;

fn main() {}
