// SPDX-License-Identifier: GPL-2.0

//! What the driver needs of the kernel and the `kernel` crate does not offer yet.
//!
//! All `unsafe` of this module is in here. Nothing in here knows what ummunotify is: each file is
//! written so that it could move to `rust/kernel`.

pub(crate) mod address_space;
pub(crate) mod char_file;
pub(crate) mod compat;
pub(crate) mod destination;
pub(crate) mod fifo;
pub(crate) mod interval_map;
pub(crate) mod interval_tree;
pub(crate) mod key_tree;
pub(crate) mod kmem_cache;
pub(crate) mod locked_memory;
pub(crate) mod marked;
pub(crate) mod mmu_notifier;
pub(crate) mod shared_page;
pub(crate) mod signals;

pub(crate) mod waiters;
pub(crate) mod work_queue;
