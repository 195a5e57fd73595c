// SPDX-License-Identifier: GPL-2.0

//! What differs between the kernel series that the driver is built for.
//!
//! The rest of the driver is written for the newest of them; this offers older ones what they lack,
//! under the same names. `Kbuild` sets `linux_7_2` when it builds for Linux 7.2. When a series is no
//! longer supported, what is here for it goes, and with the last of it this file.

use kernel::prelude::*;

use super::char_file::CharFile;

#[cfg(not(linux_7_2))]
pub(crate) use kernel::sync::poll::PollCondVarBox;

#[cfg(linux_7_2)]
pub(crate) use linux_7_2::PollCondVarBox;

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

/// What Linux 7.3 has and Linux 7.2 lacks.
#[cfg(linux_7_2)]
mod linux_7_2 {
    use core::{
        ops::Deref,
        pin::Pin, //
    };

    use kernel::{
        prelude::*,
        sync::{
            poll::PollCondVar,
            LockClassKey, //
        }, //
    };

    /// A [`PollCondVar`] in a box of its own.
    ///
    /// Dropping it waits for an RCU grace period. That of Linux 7.3 does not: it leaves its memory
    /// to `kfree_rcu()`.
    pub(crate) struct PollCondVarBox(Pin<KBox<PollCondVar>>);

    impl PollCondVarBox {
        /// Allocates one, and fails with `ENOMEM` if there is no memory.
        pub(crate) fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> Result<Self> {
            Ok(Self(KBox::pin_init(
                PollCondVar::new(name, key),
                GFP_KERNEL,
            )?))
        }
    }

    impl Deref for PollCondVarBox {
        type Target = PollCondVar;

        fn deref(&self) -> &PollCondVar {
            &self.0
        }
    }
}
