// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! Reports when mappings of this process change, through `/dev/ummunotify`.
//!
//! A program that keeps something derived from its memory mappings, such as pages pinned for a
//! network adapter, watches the addresses it depends on. [`Watcher::changed`] needs one load and no
//! system call to find out whether any of their mappings changed since [`Watcher::next_change`]
//! last returned `None`. If so, `next_change` returns the changed regions.
//!
//! ```
//! use std::io;
//! use ummunotify::{addresses, Watcher};
//!
//! # fn main() -> io::Result<()> {
//! # if !ummunotify::is_present() { return Ok(()) }
//! let mut watcher = Watcher::open()?;
//! let buffer = vec![1u8; 1 << 20];
//! watcher.watch(addresses(&buffer), 42)?; // Watch first, then pin.
//! assert!(!watcher.changed());
//!
//! drop(buffer); // The allocator unmaps it.
//! assert!(watcher.changed());
//! while let Some(change) = watcher.next_change()? {
//!     assert_eq!(change.cookie(), 42);
//!     watcher.unwatch(change.cookie())?; // Here its pages would be unpinned.
//! }
//! assert!(!watcher.changed());
//! # Ok(())
//! # }
//! ```
//!
//! # Contents
//!
//! - [`Watcher`] is for most programs. It buffers events that were read but not yet returned, and
//!   refuses to work in a forked child, whose mappings it does not watch.
//! - [`cache`] is a complete cache of pinned memory on top of it, and explains the protocol.
//! - [`Device`] is the open file alone, and [`Counter`] its mapped counter, for programs that need
//!   something else. [`uapi`] has the numbers and structures of the interface.
//!
//! # Features
//!
//! [`Options::features`] requests [`Features`] beyond the basic interface; [`Device::features`]
//! returns those that the kernel granted. Programs that request [`Features::ALL`] work with any
//! driver: if it lacks a feature, changes have no causes, nothing is ignored, or [`Watcher::stamp`]
//! returns `None`.
//!
//! ```
//! use std::io;
//! use ummunotify::{addresses, Causes, Features, Options, Watcher};
//!
//! # fn main() -> io::Result<()> {
//! # if !ummunotify::is_present() { return Ok(()) }
//! let mut watcher = Watcher::new(Options::new().features(Features::ALL).open()?)?;
//! let buffer = vec![1u8; 1 << 20];
//! watcher.watch_ignoring(addresses(&buffer), 42, Causes::SAME_PAGES)?;
//! // Here the buffer would be pinned, after a first stamp; see the cache for the whole protocol.
//! let before = watcher.stamp(addresses(&buffer))?;
//!
//! drop(buffer);
//! while let Some(change) = watcher.next_change()? {
//!     println!("{:#x?}: {}", change.addresses(), change.causes()); // "unmap"
//!     if watcher.device().features().contains(Features::CAUSE) {
//!         assert!(change.causes().contains(Causes::UNMAP));
//!     }
//! }
//! # let _ = before;
//! # Ok(())
//! # }
//! ```
//!
//! # Errors
//!
//! All errors are system errors, as [`std::io::Error`]. Nothing in this crate panics.

pub mod cache;
mod device;
mod features;
pub mod uapi;
mod watcher;
mod wiped;

use std::{
    ops::Range,
    path::Path, //
};

pub use device::{
    Counter,
    Device,
    Options,
    PATH, //
};
pub use features::{
    Causes,
    Features,
    Stamp, //
};
pub use watcher::{
    Change,
    Changes,
    Checker,
    Watcher, //
};

/// Whether the device exists, which does not mean that this process may open it.
pub fn is_present() -> bool {
    Path::new(PATH).exists()
}

/// The addresses of `memory`, for [`Watcher::watch`].
///
/// ```
/// let page = [0u8; 4096];
/// let range = ummunotify::addresses(&page);
/// assert_eq!(range.end - range.start, 4096);
/// ```
pub fn addresses<T>(memory: &[T]) -> Range<u64> {
    let Range { start, end } = memory.as_ptr_range();
    start as u64..end as u64
}
