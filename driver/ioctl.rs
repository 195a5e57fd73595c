// SPDX-License-Identifier: GPL-2.0

//! The commands, and how their arguments are read.

use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

use crate::uapi::{
    ummunotify_register_ioctl,
    RUST_CONST_UMMUNOTIFY_EXCHANGE_FEATURES as EXCHANGE_FEATURES,
    RUST_CONST_UMMUNOTIFY_REGISTER_REGION as REGISTER_REGION,
    RUST_CONST_UMMUNOTIFY_UNREGISTER_REGION as UNREGISTER_REGION, //
};

/// A command with the address of its argument.
pub(super) enum Command {
    /// Negotiate features.
    ExchangeFeatures(Word),
    /// Start to watch a region.
    Register(UserPtr),
    /// Stop to watch a region.
    Unregister(UserPtr),
}

impl Command {
    /// Recognises a command. Fails with `ENOTTY` where it is none of ours.
    #[inline]
    pub(super) fn new(cmd: u32, arg: usize) -> Result<Self> {
        let arg = UserPtr::from_addr(arg);
        match cmd {
            EXCHANGE_FEATURES => Ok(Self::ExchangeFeatures(Word(arg))),
            REGISTER_REGION => Ok(Self::Register(arg)),
            UNREGISTER_REGION => Ok(Self::Unregister(arg)),
            _ => Err(ENOTTY),
        }
    }
}

/// A 32-bit word in user space.
pub(super) struct Word(UserPtr);

impl Word {
    /// Reads the word.
    pub(super) fn read(&self) -> Result<u32> {
        UserSlice::new(self.0, size_of::<u32>()).reader().read()
    }

    /// Writes the word.
    pub(super) fn write(&self, value: u32) -> Result {
        UserSlice::new(self.0, size_of::<u32>())
            .writer()
            .write(&value)
    }
}

/// Where a region is and what it is called.
pub(super) struct Bounds {
    /// First address.
    pub(super) start: usize,
    /// Last address inside the region.
    pub(super) last: usize,
    /// Name of the region.
    pub(super) cookie: u64,
}

impl Bounds {
    /// Without negotiated features `flags` and `reserved` are ignored, whatever they hold: a
    /// program is known that passes what happens to be on its stack.
    ///
    /// `untag` takes the tag out of an address.
    #[inline]
    fn new(region: ummunotify_register_ioctl, untag: impl Fn(usize) -> usize) -> Result<Self> {
        // On the 64-bit machines that the driver is for, both types are the same.
        let (start, end) = (untag(region.start as usize), untag(region.end as usize));
        if end < start {
            return Err(EINVAL);
        }
        Ok(Self {
            start,
            // A program is known that passes the last address, so watch one byte at least. No
            // overflow: if something is above `start`, it is not 0.
            last: end.wrapping_sub(usize::from(end > start)),
            cookie: region.user_cookie,
        })
    }
}

/// Reads the argument of REGISTER_REGION, with addresses freed of their tags by `untag`.
#[inline]
pub(super) fn read_bounds(arg: UserPtr, untag: impl Fn(usize) -> usize) -> Result<Bounds> {
    let words: [u64; size_of::<ummunotify_register_ioctl>() / size_of::<u64>()] =
        UserSlice::new(arg, size_of::<ummunotify_register_ioctl>())
            .reader()
            .read()?;
    Bounds::new(zerocopy::transmute!(words), untag)
}

/// Reads the argument of UNREGISTER_REGION.
#[inline]
pub(super) fn read_cookie(arg: UserPtr) -> Result<u64> {
    UserSlice::new(arg, size_of::<u64>()).reader().read()
}

#[kernel::prelude::kunit_tests(ummunotify_ioctl)]
mod tests {
    use super::*;

    #[test]
    fn only_the_numbers_of_v2_are_commands() {
        for (cmd, known) in [
            (0xc004_5501, true),
            (0x4020_5502, true),
            (0x4008_5503, true),
            (0, false),
            (0x4020_5501, false),
            (0x4008_5502, false),
            (0xc020_5502, false),
            (0x4008_5504, false),
            (0x4008_5603, false),
            (u32::MAX, false),
        ] {
            assert_eq!(Command::new(cmd, 0).is_ok(), known);
        }
    }

    #[test]
    fn regions_are_what_v2_takes() {
        for (start, end, watched) in [
            (0x1000, 0x3000, Some((0x1000, 0x2fff))),
            (0x1001, 0x1003, Some((0x1001, 0x1002))),
            // Where the end is not above the start, the byte at the start is watched.
            (0x1000, 0x1000, Some((0x1000, 0x1000))),
            (0, 0, Some((0, 0))),
            (0, 1, Some((0, 0))),
            (0, u64::MAX, Some((0, usize::MAX - 1))),
            (u64::MAX, u64::MAX, Some((usize::MAX, usize::MAX))),
            (0x1001, 0x1000, None),
            (u64::MAX, 0, None),
        ] {
            // What V2 does not look at must not matter.
            for (cookie, flags, reserved) in [(0, 0, 0), (u64::MAX, u32::MAX, 1)] {
                let bounds = Bounds::new(
                    ummunotify_register_ioctl {
                        start,
                        end,
                        user_cookie: cookie,
                        flags,
                        reserved,
                    },
                    |address| address,
                );
                let expected = watched.ok_or(EINVAL);
                assert!(bounds.map(|found| (found.start, found.last)) == expected);
            }
        }
        let region = ummunotify_register_ioctl {
            user_cookie: u64::MAX - 1,
            ..Default::default()
        };
        assert!(
            Bounds::new(region, |address| address).is_ok_and(|found| found.cookie == u64::MAX - 1)
        );
    }

    #[test]
    fn bad_pointers_are_faults() {
        let nowhere = UserPtr::from_addr(usize::MAX - 4096);
        assert!(read_bounds(nowhere, |address| address).err() == Some(EFAULT));
        assert!(read_cookie(nowhere).err() == Some(EFAULT));
        assert!(Word(nowhere).read().err() == Some(EFAULT));
        assert!(Word(nowhere).write(0).err() == Some(EFAULT));
    }
}
