// SPDX-License-Identifier: GPL-2.0

//! Which features a file has, and their effect on `flags` and `reserved` of REGISTER_REGION.

use super::{
    exhaustion::fill_up,
    limits::{
        fdinfo_text,
        few_regions,
        FEW, //
    },
    prelude::*, //
};
use crate::uapi::{
    CAUSES_SAME_PAGES,
    CAUSE_CLEAR,
    CAUSE_OTHER,
    CAUSE_UNMAP, //
};

table! {
    features_granted: "each set of features is granted as requested, and fdinfo shows it",
    features_unknown: "unknown bits are not granted, and the others are nevertheless",
    features_none: "without features, random flags are ignored and events carry no causes",
    features_none_by_choice: "the same if the program negotiated, but requested none",
    features_reserved: "with any feature, reserved must be 0",
    features_meaningless_flags: "with any feature, flags without a meaning give EINVAL",
    features_ignorable: "only the three causes that leave the same pages can be ignored",
    features_flags_before_limits: "bad flags give EINVAL before the limit on regions is checked",
    features_flags_before_memory: "nor is the limit on locked memory",
    features_flags_and_bad_pointers: "a bad pointer gives EFAULT before flags are checked",
    features_flags_in_another_process: "another process gets EPERM, whatever the flags",
    features_without_cause: "without CAUSE, events carry no causes",
    features_without_hull: "without HULL, a second hit discards the hint",
}

/// All sets of features except the empty one.
fn sets() -> impl Iterator<Item = Features> {
    (1..=Features::ALL.bits()).map(Features::from_bits)
}

/// Expects fdinfo to show the offered and the granted features.
#[track_caller]
fn shows(device: &Device, granted: Features) -> Outcome {
    let text = fdinfo_text(device)?;
    let line = text.lines().find(|line| line.starts_with("features:"));
    let (all, granted) = (Features::ALL.bits(), granted.bits());
    let expected = format!("features:\t{all:#x} granted {granted:#x}");
    expect::same("fdinfo", line, Some(expected.as_str()))
}

fn features_granted() -> Outcome {
    shows(&open()?, Features::NONE)?;
    sets().try_for_each(|features| shows(&open_with(features)?, features))
}

fn features_unknown() -> Outcome {
    for bits in [!0, 0xffff_fff8, 1 << 3, (1 << 31) | 1, 5] {
        let device = open()?;
        let granted = expect::success("EXCHANGE_FEATURES", device.exchange_features(bits))?;
        let known = bits & Features::ALL.bits();
        expect::same("granted features", granted, known)?;
        shows(&device, Features::from_bits(known))?;
    }
    Ok(())
}

/// A page as the argument of REGISTER_REGION.
fn region(page: &std::ops::Range<u64>, cookie: u64, flags: u32, reserved: u32) -> Register {
    Register {
        start: page.start,
        end: page.end,
        user_cookie: cookie,
        flags,
        reserved,
    }
}

/// Expects a file to behave as in version 2, whatever flags REGISTER_REGION gets.
fn is_version_2(device: Device) -> Outcome {
    let bench = Bench::over(device, Guarded::new(2)?)?;
    let mut random = fastrand::Rng::with_seed(1);
    let edges = [0, CAUSES_SAME_PAGES, CAUSE_CLEAR, 1 << 16, !0];
    let flags = edges.into_iter().chain((0..200).map(|_| random.u32(..)));
    for flags in flags {
        let before = bench.counter.get();
        let argument = region(&bench.area.page(1), 7, flags, flags.rotate_left(7));
        expect::success("REGISTER_REGION", bench.device.register_with(argument))?;
        mem::protect(&bench.area.page(1), libc::PROT_READ)?;
        bench.reads(&[inval(7, &bench.area.page(1)), last(before + 1)])?;
        mem::protect(&bench.area.page(1), libc::PROT_READ | libc::PROT_WRITE)?;
        bench.hit(1)?;
        let counter = bench.counter.get();
        bench.reads(&[whole(7, &bench.area.page(1)), last(counter)])?;
        bench.device.unregister(7)?;
    }
    Ok(())
}

fn features_none() -> Outcome {
    is_version_2(open()?)
}

fn features_none_by_choice() -> Outcome {
    let device = open()?;
    expect::same("granted features", device.exchange_features(0)?, 0)?;
    is_version_2(device)?;
    let device = open()?;
    expect::same("granted features", device.exchange_features(1 << 9)?, 0)?;
    is_version_2(device)
}

/// Expects REGISTER_REGION to fail with `EINVAL`, and to register nothing.
#[track_caller]
fn refused(bench: &Bench, flags: u32, reserved: u32) -> Outcome {
    let argument = region(&bench.area.page(0), 5, flags, reserved);
    let what = format!("REGISTER_REGION, flags {flags:#x}, reserved {reserved:#x}");
    expect::error(&what, bench.device.register_with(argument), libc::EINVAL)?;
    let unregistered = bench.device.unregister(5);
    expect::error("UNREGISTER_REGION after it", unregistered, libc::EINVAL)
}

fn features_reserved() -> Outcome {
    for features in sets() {
        let bench = Bench::over(open_with(features)?, Guarded::new(1)?)?;
        for reserved in (0..32).map(|bit| 1 << bit) {
            refused(&bench, 0, reserved)?;
        }
        bench.watch_pages()?;
        bench.hit(0)?;
        bench.counts(1)?;
    }
    Ok(())
}

fn features_meaningless_flags() -> Outcome {
    for features in sets() {
        let bench = Bench::over(open_with(features)?, Guarded::new(1)?)?;
        // Without CAUSE, none has a meaning.
        let first = if features.contains(Features::CAUSE) {
            16
        } else {
            0
        };
        for flags in (first..32).map(|bit| 1 << bit) {
            refused(&bench, flags, 0)?;
            refused(&bench, flags | CAUSES_SAME_PAGES, 0)?;
        }
        let plain = region(&bench.area.page(0), 5, 0, 0);
        expect::success("REGISTER_REGION", bench.device.register_with(plain))?;
    }
    Ok(())
}

fn features_ignorable() -> Outcome {
    let bench = Bench::over(open_with(Features::CAUSE)?, Guarded::new(1)?)?;
    for flags in 0..=u32::from(u16::MAX) {
        if flags & !CAUSES_SAME_PAGES != 0 && flags.count_ones() > 2 {
            continue;
        }
        if flags & !CAUSES_SAME_PAGES != 0 {
            refused(&bench, flags, 0)?;
            continue;
        }
        let argument = region(&bench.area.page(0), 5, flags, 0);
        expect::success("REGISTER_REGION", bench.device.register_with(argument))?;
        bench.device.unregister(5)?;
    }
    refused(&bench, CAUSE_UNMAP | CAUSES_SAME_PAGES, 0)?;
    refused(&bench, CAUSE_OTHER | CAUSES_SAME_PAGES, 0)?;
    refused(&bench, 0xffff, 0)
}

fn features_flags_before_limits() -> Outcome {
    let _module = few_regions()?;
    let bench = Bench::over(open_with(Features::CAUSE)?, Guarded::new(2)?)?;
    for cookie in 0..FEW {
        bench.watch(1000 + cookie, &bench.area.page(1))?;
    }
    let full = region(&bench.area.page(0), 5, 0, 0);
    let full = bench.device.register_with(full);
    expect::error("REGISTER_REGION, beyond the limit", full, libc::ENOSPC)?;
    refused(&bench, CAUSE_CLEAR, 0)?;
    refused(&bench, 0, 1)
}

fn features_flags_before_memory() -> Outcome {
    as_ordinary_user(1 << 20, |_| {
        let bench = Bench::over(open_with(Features::CAUSE)?, Guarded::new(1)?)?;
        let (_, error) = fill_up(&bench.device);
        expect::error("REGISTER_REGION", Err::<(), _>(error), libc::ENOMEM)?;
        for (flags, reserved) in [(CAUSE_CLEAR, 0), (1 << 16, 0), (0, 1)] {
            let argument = region(&bench.area.page(0), !0, flags, reserved);
            let result = bench.device.register_with(argument);
            expect::error("REGISTER_REGION, bad flags", result, libc::EINVAL)?;
        }
        Ok(())
    })?
    .join()
}

fn features_flags_and_bad_pointers() -> Outcome {
    let device = open_with(Features::CAUSE)?;
    let nowhere = 8 as *mut _;
    let result = device.ioctl_raw(crate::uapi::REGISTER_REGION, nowhere);
    expect::error("REGISTER_REGION, bad pointer", result, libc::EFAULT)
}

fn features_flags_in_another_process() -> Outcome {
    let bench = Bench::over(open_with(Features::ALL)?, Guarded::new(1)?)?;
    Child::fork(|_| {
        for flags in [0, CAUSES_SAME_PAGES, CAUSE_CLEAR] {
            let result = bench
                .device
                .register_with(region(&bench.area.page(0), 5, flags, flags));
            expect::error("REGISTER_REGION", result, libc::EPERM)?;
        }
        Ok(())
    })?
    .join()?;
    bench.is_silent()
}

fn features_without_cause() -> Outcome {
    for features in [Features::HULL, Features::STAMP] {
        let bench = Bench::over(open_with(features)?, Guarded::new(2)?)?;
        bench.watch_pages()?;
        bench.hit(1)?;
        bench.reads(&[inval(2, &bench.area.page(1)), last(1)])?;
    }
    Ok(())
}

fn features_without_hull() -> Outcome {
    for features in [Features::CAUSE, Features::STAMP] {
        let bench = Bench::over(open_with(features)?, Guarded::new(4)?)?;
        bench.watch(1, &bench.area.all())?;
        bench.hit(1)?;
        bench.hit(2)?;
        let events = bench.drain()?;
        let event = events[0];
        expect::same("flag HINT", event.flags & 1, 0)?;
        let range = event.hint_start..event.hint_end;
        expect::same("the range", range, bench.area.all())?;
    }
    Ok(())
}
