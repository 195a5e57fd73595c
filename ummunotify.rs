// SPDX-License-Identifier: GPL-2.0

//! `/dev/ummunotify`: MMU notifications for user space.
//!
//! A library that keeps memory pinned for a network adapter must know when the program no longer
//! maps the pages that are pinned. A process opens the device, registers ranges of its addresses,
//! and reads an event when their mappings change, whoever changes them.
//!
//! The crate has three modules:
//!
//! - `driver`: the driver, without `unsafe`. Start with `driver::file`.
//! - `abstractions`: safe interfaces to the parts of the kernel that it uses, and all `unsafe`.
//! - `uapi`: the user-space interface, generated from the C header.
//!
//! The interface is documented in `Documentation/userspace-api/ummunotify.rst`, the design in
//! `Documentation/mm/ummunotify.rst`.

#[cfg(not(CONFIG_MMU_NOTIFIER))]
compile_error!("ummunotify needs a kernel that is built with CONFIG_MMU_NOTIFIER=y.");

use kernel::prelude::*;

mod abstractions;
mod driver;
mod uapi;

module! {
    type: Ummunotify,
    name: "ummunotify",
    authors: ["The ummunotify developers"],
    description: "MMU notifications for user space",
    license: "GPL",
    params: {
        max_regions: u32 {
            default: 2097152,
            description: "Maximum number of regions of an open file (default 2097152)",
        },
    },
}

/// The version, as `modinfo` shows it; the macro [`module!`] has no field for it.
///
/// What is built into the kernel has the kernel's version.
#[cfg(MODULE)]
#[link_section = ".modinfo"]
#[used(compiler)]
static VERSION: [u8; 14] = *b"version=1.0.0\0";

/// The loaded module.
#[pin_data]
struct Ummunotify {
    #[pin]
    _device: driver::Device,
}

impl kernel::InPlaceModule for Ummunotify {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _device <- driver::device()?,
        })
    }
}
