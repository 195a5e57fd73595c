// SPDX-License-Identifier: GPL-2.0

//! The ioctl commands, and reading their arguments.

use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

use crate::{
    abstractions::interval_map::Class,
    uapi::{
        ummunotify_register_ioctl,
        ummunotify_stamp_ioctl as StampArg,
        RUST_CONST_UMMUNOTIFY_EXCHANGE_FEATURES as EXCHANGE_FEATURES,
        RUST_CONST_UMMUNOTIFY_REGISTER_REGION as REGISTER_REGION,
        RUST_CONST_UMMUNOTIFY_STAMP as STAMP,
        RUST_CONST_UMMUNOTIFY_UNREGISTER_REGION as UNREGISTER_REGION,
        UMMUNOTIFY_FEATURE_CAUSE, //
    }, //
};

use super::cause;

/// A command and the address of its argument.
pub(super) enum Command {
    /// Negotiate features.
    ExchangeFeatures(Word),
    /// Start watching a region.
    Register(UserPtr),
    /// Stop watching a region.
    Unregister(UserPtr),
    /// Return a stamp of page frames.
    Stamp(UserPtr),
}

impl Command {
    /// Decodes a command. Fails with `ENOTTY` if it is unknown.
    #[inline]
    pub(super) fn new(cmd: u32, arg: usize) -> Result<Self> {
        let arg = UserPtr::from_addr(arg);
        match cmd {
            EXCHANGE_FEATURES => Ok(Self::ExchangeFeatures(Word(arg))),
            REGISTER_REGION => Ok(Self::Register(arg)),
            UNREGISTER_REGION => Ok(Self::Unregister(arg)),
            STAMP => Ok(Self::Stamp(arg)),
            _ => Err(ENOTTY),
        }
    }
}

/// A 32-bit word in user space.
pub(super) struct Word(UserPtr);

impl Word {
    /// Reads the word. Fails with `EFAULT`.
    pub(super) fn read(&self) -> Result<u32> {
        UserSlice::new(self.0, size_of::<u32>()).reader().read()
    }

    /// Writes the word. Fails with `EFAULT`.
    pub(super) fn write(&self, value: u32) -> Result {
        UserSlice::new(self.0, size_of::<u32>())
            .writer()
            .write(&value)
    }
}

/// The bounds of a region, and its cookie.
pub(super) struct Bounds {
    /// The first address.
    pub(super) start: usize,
    /// The last address. It is not below `start`.
    pub(super) last: usize,
    /// The number that identifies the region.
    pub(super) cookie: u64,
    /// The class of regions that ignore the same causes.
    pub(super) class: Class,
}

impl Bounds {
    /// Checks the argument of REGISTER_REGION. `granted` are the features of the file; `untag`
    /// removes the tag of an address.
    ///
    /// Without features, `flags` and `reserved` are ignored, whatever their values: there is a
    /// program that passes uninitialised memory.
    ///
    /// Fails with `EINVAL` if the end is below the start, or if a flag has no meaning with these
    /// features.
    #[inline]
    fn new(
        region: ummunotify_register_ioctl,
        granted: u32,
        untag: impl Fn(usize) -> usize,
    ) -> Result<Self> {
        let class = if granted == 0 {
            Class::new(0)
        } else {
            class_of(&region, granted)?
        };
        // Kconfig allows only 64-bit machines, so nothing is truncated.
        let (start, end) = (untag(region.start as usize), untag(region.end as usize));
        if end < start {
            return Err(EINVAL);
        }
        Ok(Self {
            start,
            // Watch at least one byte: there is a program that passes the last address as the end.
            // No underflow: an `end` above `start` is not 0.
            last: end.wrapping_sub(usize::from(end > start)),
            cookie: region.user_cookie,
            class,
        })
    }
}

/// Returns the class of a region of a file with features.
#[cold]
fn class_of(region: &ummunotify_register_ioctl, granted: u32) -> Result<Class> {
    if region.reserved != 0 || granted & UMMUNOTIFY_FEATURE_CAUSE == 0 && region.flags != 0 {
        return Err(EINVAL);
    }
    cause::class_ignoring(region.flags).ok_or(EINVAL)
}

/// Reads the argument of REGISTER_REGION. `granted` are the features of the file; `untag` removes
/// the tag of an address.
///
/// Fails with `EFAULT`, and with `EINVAL` if the end is below the start or a flag has no meaning.
#[inline]
pub(super) fn read_bounds(
    arg: UserPtr,
    granted: u32,
    untag: impl Fn(usize) -> usize,
) -> Result<Bounds> {
    let words: [u64; size_of::<ummunotify_register_ioctl>() / size_of::<u64>()] =
        UserSlice::new(arg, size_of::<ummunotify_register_ioctl>())
            .reader()
            .read()?;
    Bounds::new(zerocopy::transmute!(words), granted, untag)
}

/// Reads the argument of UNREGISTER_REGION. Fails with `EFAULT`.
#[inline]
pub(super) fn read_cookie(arg: UserPtr) -> Result<u64> {
    UserSlice::new(arg, size_of::<u64>()).reader().read()
}

/// Reads the argument of STAMP. Fails with `EFAULT`.
pub(super) fn read_range(arg: UserPtr) -> Result<StampArg> {
    let words: [u64; size_of::<StampArg>() / size_of::<u64>()] =
        UserSlice::new(arg, size_of::<StampArg>()).reader().read()?;
    Ok(zerocopy::transmute!(words))
}

/// Writes the results of STAMP to its argument, which was `range`. Fails with `EFAULT`.
pub(super) fn write_stamp(arg: UserPtr, range: StampArg, stamp: u64, absent: usize) -> Result {
    let words: [u64; size_of::<StampArg>() / size_of::<u64>()] = zerocopy::transmute!(StampArg {
        stamp,
        // A range has fewer pages than that.
        absent: absent as u32,
        ..range
    });
    UserSlice::new(arg, size_of::<StampArg>())
        .writer()
        .write(&words)
}

#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(ummunotify_ioctl)]
mod tests {
    use super::*;

    use crate::abstractions::kunit::expect_eq;

    #[test]
    fn other_numbers_are_not_commands() {
        for (cmd, known) in [
            (0xc004_5501, true),
            (0x4020_5502, true),
            (0x4008_5503, true),
            (0xc020_5504, true),
            (0, false),
            (0x4020_5501, false),
            (0x4008_5502, false),
            (0xc020_5502, false),
            (0x4008_5504, false),
            (0x4008_5603, false),
            (u32::MAX, false),
        ] {
            expect_eq!(Command::new(cmd, 0).is_ok(), known);
        }
    }

    #[test]
    fn regions_are_what_v2_takes() {
        for (start, end, watched) in [
            (0x1000, 0x3000, Some((0x1000, 0x2fff))),
            (0x1001, 0x1003, Some((0x1001, 0x1002))),
            // If the end equals the start, the byte at the start is watched.
            (0x1000, 0x1000, Some((0x1000, 0x1000))),
            (0, 0, Some((0, 0))),
            (0, 1, Some((0, 0))),
            (0, u64::MAX, Some((0, usize::MAX - 1))),
            (u64::MAX, u64::MAX, Some((usize::MAX, usize::MAX))),
            (0x1001, 0x1000, None),
            (u64::MAX, 0, None),
        ] {
            // V2 ignores these, so they must not matter.
            for (cookie, flags, reserved) in [(0, 0, 0), (u64::MAX, u32::MAX, 1)] {
                let bounds = Bounds::new(
                    ummunotify_register_ioctl {
                        start,
                        end,
                        user_cookie: cookie,
                        flags,
                        reserved,
                    },
                    0,
                    |address| address,
                );
                let expected = watched.ok_or(EINVAL);
                expect_eq!(bounds.map(|found| (found.start, found.last)), expected);
            }
        }
        let region = ummunotify_register_ioctl {
            user_cookie: u64::MAX - 1,
            ..Default::default()
        };
        let bounds = Bounds::new(region, 0, |address| address);
        expect_eq!(bounds.map(|found| found.cookie), Ok(u64::MAX - 1));
    }

    #[test]
    fn features_give_flags_a_meaning() {
        const CAUSE: u32 = UMMUNOTIFY_FEATURE_CAUSE;
        for (granted, flags, reserved, class) in [
            (CAUSE, 0, 0, Some(0)),
            (CAUSE, 1 << 2, 0, Some(1)),
            (CAUSE, 7 << 2, 0, Some(7)),
            (CAUSE | 2, 1 << 4, 0, Some(4)),
            (CAUSE, 0, 1, None),
            (CAUSE, 1 << 1, 0, None),
            (CAUSE, 1 << 5, 0, None),
            (CAUSE, 1 << 15, 0, None),
            (CAUSE, 1 << 16, 0, None),
            (CAUSE, u32::MAX, 0, None),
            (2, 0, 0, Some(0)),
            (2, 1 << 2, 0, None),
            (2, 0, 1, None),
            (4, 1, 0, None),
        ] {
            let region = ummunotify_register_ioctl {
                flags,
                reserved,
                ..Default::default()
            };
            let bounds = Bounds::new(region, granted, |address| address);
            let expected = class.ok_or(EINVAL);
            expect_eq!(bounds.map(|found| found.class.number()), expected);
        }
    }

    #[test]
    fn bad_pointers_are_faults() {
        let nowhere = UserPtr::from_addr(usize::MAX - 4096);
        expect_eq!(
            read_bounds(nowhere, 0, |address| address).err(),
            Some(EFAULT)
        );
        expect_eq!(read_cookie(nowhere).err(), Some(EFAULT));
        expect_eq!(Word(nowhere).read().err(), Some(EFAULT));
        expect_eq!(Word(nowhere).write(0).err(), Some(EFAULT));
    }
}
