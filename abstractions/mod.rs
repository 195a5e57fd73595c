// SPDX-License-Identifier: GPL-2.0

//! Kernel interfaces that the driver needs and the `kernel` crate does not have yet.
//!
//! All `unsafe` code of the module is in here, and nothing in here depends on ummunotify.
//!
//! These are meant for `rust/kernel`, as separate files, and have a KUnit test as an example:
//! [`interval_tree`], [`kmem_cache`], [`locked_memory`], [`mmu_notifier`], [`page_frames`],
//! [`siphash`] and [`work_queue`]. Parts of [`char_file`], [`waiters`], [`destination`] and
//! [`shared_page`] would become optional methods of `miscdevice`.
//!
//! The rest is private to the driver: [`key_tree`], [`fifo`] and [`interval_map`] share one node,
//! which [`kernel::rbtree`] and [`kernel::list`] cannot do; [`marked`] is `Atomic` without a
//! function call for each access; [`address_space`] and [`signals`] are a few functions that `Mm`
//! and `Task` could take; [`compat`] has the differences between kernel series; `kunit` is for
//! tests.

pub(crate) mod address_space;
pub(crate) mod char_file;
pub(crate) mod compat;
pub(crate) mod destination;
pub(crate) mod fifo;
pub(crate) mod interval_map;
pub(crate) mod interval_tree;
pub(crate) mod key_tree;
pub(crate) mod kmem_cache;
#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
pub(crate) mod kunit;
pub(crate) mod locked_memory;
pub(crate) mod marked;
pub(crate) mod mmu_notifier;
pub(crate) mod page_frames;
pub(crate) mod shared_page;
pub(crate) mod signals;
pub(crate) mod siphash;
pub(crate) mod waiters;
pub(crate) mod work_queue;
