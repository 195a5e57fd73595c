// SPDX-License-Identifier: GPL-2.0

//! What differs between the kernel series that the driver is built for.
//!
//! The rest of the driver is written for the newest of them; this offers older ones what they lack,
//! under the same names. `Kbuild` sets `linux_7_2` when it builds for Linux 7.2. When a series is
//! no longer supported, what is here for it goes, and with the last of it this file.

use kernel::prelude::*;

use super::char_file::CharFile;

/// Returns the module that the operations of `T` are in, and that must stay while one runs.
///
/// In Linux 7.2 the `vtable` macro does not know it, so this is the module that is being built.
pub(crate) const fn owner<T: CharFile>() -> &'static ThisModule {
    #[cfg(not(linux_7_2))]
    return kernel::module::this_module::<T::OwnerModule>();
    #[cfg(linux_7_2)]
    return &crate::THIS_MODULE;
}

/// Returns the value of a module parameter, which Linux 7.2 hands out by reference.
pub(crate) fn parameter<T: Copy>(value: impl core::borrow::Borrow<T>) -> T {
    *value.borrow()
}

#[cfg(not(linux_7_2))]
pub(crate) use kernel::{
    bindings::PF_NO_NOTIFY_SIGNAL,
    sync::rcu::synchronize_rcu, //
};

/// No flag: Linux 7.2 has none that keeps `TIF_NOTIFY_SIGNAL` from counting as a signal.
#[cfg(linux_7_2)]
pub(crate) const PF_NO_NOTIFY_SIGNAL: u32 = 0;

/// Waits for an RCU grace period. Must be called where the task may sleep.
#[cfg(linux_7_2)]
pub(crate) fn synchronize_rcu() {
    // SAFETY: This is always safe to call where the task may sleep.
    unsafe { kernel::bindings::synchronize_rcu() };
}

/// Orders reads before it with those after it, between processors.
#[inline(always)]
pub(crate) fn smp_rmb() {
    #[cfg(not(linux_7_2))]
    kernel::sync::barrier::smp_mb(kernel::sync::barrier::Read);
    #[cfg(linux_7_2)]
    kernel::sync::barrier::smp_rmb();
}
