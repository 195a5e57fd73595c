// SPDX-License-Identifier: GPL-2.0

//! Differences between the kernel series that the driver supports.
//!
//! The rest of the driver is written for the newest series. This file provides what older ones
//! lack, under the same names. `Kbuild` sets `linux_7_2` when it builds for Linux 7.2, and
//! `has_pf_no_notify_signal` for what an update of a series added. When support for a series ends,
//! remove its part; when none is left, remove this file.

use kernel::prelude::*;

use super::char_file::CharFile;

/// Returns the module that contains the operations of `T`, which must stay while one of them runs.
///
/// The `vtable` macro of Linux 7.2 does not provide it, so this is the module that is being built.
pub(crate) const fn owner<T: CharFile>() -> &'static ThisModule {
    #[cfg(not(linux_7_2))]
    return kernel::module::this_module::<T::OwnerModule>();
    #[cfg(linux_7_2)]
    return &crate::THIS_MODULE;
}

/// Returns the value of a module parameter, which Linux 7.2 returns by reference.
pub(crate) fn parameter<T: Copy>(value: impl core::borrow::Borrow<T>) -> T {
    *value.borrow()
}

#[cfg(has_pf_no_notify_signal)]
pub(crate) use kernel::bindings::PF_NO_NOTIFY_SIGNAL;

/// No flag: Linux 7.2 and the first releases of 7.3 cannot prevent `TIF_NOTIFY_SIGNAL` from
/// counting as a signal.
#[cfg(not(has_pf_no_notify_signal))]
pub(crate) const PF_NO_NOTIFY_SIGNAL: u32 = 0;

#[cfg(not(linux_7_2))]
pub(crate) use kernel::sync::rcu::synchronize_rcu;

/// Waits for an RCU grace period. Must be called where the task may sleep.
#[cfg(linux_7_2)]
pub(crate) fn synchronize_rcu() {
    // SAFETY: This is always safe to call where the task may sleep.
    unsafe { kernel::bindings::synchronize_rcu() };
}

/// Orders earlier reads before later ones, between processors.
#[inline(always)]
pub(crate) fn smp_rmb() {
    #[cfg(not(linux_7_2))]
    kernel::sync::barrier::smp_mb(kernel::sync::barrier::Read);
    #[cfg(linux_7_2)]
    kernel::sync::barrier::smp_rmb();
}
