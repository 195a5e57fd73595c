// SPDX-License-Identifier: GPL-2.0

//! STAMP: the errors and their order. A call that fails writes nothing.

use std::{
    ops::Range,
    ptr, thread,
    time::{
        Duration,
        Instant, //
    },
};

use super::prelude::*;
use crate::uapi::{
    Stamp,
    STAMP, //
};

table! {
    stamp_number: "the number and layout of STAMP",
    stamp_not_granted: "without the feature STAMP gives ENOTTY, and the file does not count as used",
    stamp_in_another_process: "a child gets EPERM, before EFAULT and EINVAL; ENOTTY comes first",
    stamp_of_the_dead: "STAMP fails after the opener's exit",
    stamp_by_threads: "threads and vfork children may call STAMP",
    stamp_bad_pointer: "a bad or read-only argument gives EFAULT",
    stamp_invalid: "an end below the start, flags, or more than 16 GiB give EINVAL",
    stamp_outputs_are_ignored: "stamp and absent may have any value on entry",
    stamp_uses_the_file: "EXCHANGE_FEATURES after STAMP gives EINVAL",
    stamp_short_is_not_interrupted: "ranges of up to 65,536 pages never give EINTR",
    stamp_long_is_interrupted: "16 GiB give EINTR if a signal arrives, and nothing is written",
    stamp_long_is_killed: "a process can be killed in the middle of 16 GiB",
}

/// The fields that a call writes, as set before it.
const UNTOUCHED: (u64, u32) = (0x5a5a_5a5a_5a5a_5a5a, 0xa5a5_a5a5);

fn argument(range: &Range<u64>, flags: u32) -> Stamp {
    Stamp {
        start: range.start,
        end: range.end,
        stamp: UNTOUCHED.0,
        absent: UNTOUCHED.1,
        flags,
    }
}

/// A range that ends before it starts.
fn backwards(range: &Range<u64>) -> Range<u64> {
    range.end..range.start
}

/// Expects STAMP to fail, and to write nothing.
#[track_caller]
fn fails(device: &Device, range: &Range<u64>, flags: u32, error: i32) -> Outcome {
    let before = argument(range, flags);
    let mut now = before;
    let result = device.ioctl_raw(STAMP, (&raw mut now).cast());
    let what = format!("STAMP of {range:#x?}, flags {flags:#x}");
    expect::error(&what, result, error)?;
    expect::same("the argument", now, before)
}

fn stamp_number() -> Outcome {
    let bench = Bench::over(open_with(Features::STAMP)?, Guarded::new(1)?)?;
    let mut words = [bench.area.all().start, bench.area.all().end, 1, 0xffff_ffff];
    let result = bench
        .device
        .ioctl_raw(0xC020_5504, words.as_mut_ptr().cast());
    expect::success("0xC0205504", result)?;
    expect::same("start", words[0], bench.area.all().start)?;
    expect::same("end", words[1], bench.area.all().end)?;
    expect::that("stamp, at 16", words[2] > 1, "a stamp", words[2])?;
    expect::same("absent, at 24, and flags, at 28", words[3], 0)?;
    for number in [
        0x4020_5504,
        0x8020_5504,
        0xC018_5504,
        0xC028_5504,
        0xC020_5505,
    ] {
        let result = bench.device.ioctl_raw(number, words.as_mut_ptr().cast());
        expect::error(&format!("{number:#x}"), result, libc::ENOTTY)?;
    }
    Ok(())
}

fn stamp_not_granted() -> Outcome {
    let area = Guarded::new(1)?;
    let device = open()?;
    fails(&device, &area.all(), 0, libc::ENOTTY)?;
    fails(&device, &area.all(), 1, libc::ENOTTY)?;
    let result = device.ioctl_raw(STAMP, ptr::null_mut());
    expect::error("STAMP, bad pointer", result, libc::ENOTTY)?;
    let granted = device.exchange_features(Features::STAMP.bits());
    let granted = expect::success("EXCHANGE_FEATURES after that", granted)?;
    expect::same("granted features", granted, Features::STAMP.bits())?;
    expect::success(
        "STAMP",
        device.stamp_with(Stamp {
            flags: 0,
            ..argument(&area.all(), 0)
        }),
    )?;

    for features in [Features::NONE, Features::CAUSE, Features::HULL] {
        let device = Device::open_with(features)?;
        fails(&device, &area.all(), 0, libc::ENOTTY)?;
    }
    Ok(())
}

fn stamp_in_another_process() -> Outcome {
    let area = Guarded::new(1)?;
    let (device, without) = (open_with(Features::STAMP)?, open()?);
    Child::fork(|_| {
        fails(&device, &area.all(), 0, libc::EPERM)?;
        fails(&device, &area.all(), 1, libc::EPERM)?;
        fails(&device, &backwards(&area.all()), 0, libc::EPERM)?;
        let result = device.ioctl_raw(STAMP, ptr::null_mut());
        expect::error("STAMP, bad pointer", result, libc::EPERM)?;
        fails(&without, &area.all(), 0, libc::ENOTTY)
    })?
    .join()
}

fn stamp_of_the_dead() -> Outcome {
    open()?;
    let child = Child::fork(|line| {
        line.pass(&open_with(Features::STAMP)?)?;
        Ok(line.hear()?)
    })?;
    let device = Device::from(child.receive()?);
    let area = Guarded::new(1)?;
    fails(&device, &area.all(), 0, libc::EPERM)?;
    child.tell()?;
    child.join()?;
    let errors = [libc::EPERM, libc::ESRCH];
    expect::one_of(
        "STAMP",
        device.stamp_with(argument(&area.all(), 0)),
        &errors,
    )
}

fn stamp_by_threads() -> Outcome {
    let area = Guarded::new(3)?;
    let device = open_with(Features::STAMP)?;
    let of = || Ok::<_, Failure>(device.stamp_with(argument(&area.all(), 0))?.stamp);
    let here = of()?;
    let there = thread::scope(|scope| scope.spawn(of).join().expect("the thread does not panic"))?;
    expect::same("stamp", there, here)?;
    process::in_vfork_child(|| expect::same("stamp", of()?, here))
}

fn stamp_bad_pointer() -> Outcome {
    let device = open_with(Features::STAMP)?;
    for bad in [0, 8, PAGE - 1, 1 << 47, u64::MAX - 40] {
        let result = device.ioctl_raw(STAMP, bad as *mut _);
        expect::error("STAMP, bad pointer", result, libc::EFAULT)?;
    }
    let area = Guarded::new(2)?;
    // The second half of the argument is not mapped.
    mem::unmap(&area.page(1))?;
    let result = device.ioctl_raw(STAMP, (area.page(1).start - 16) as *mut _);
    expect::error("STAMP, half an argument", result, libc::EFAULT)?;
    let range = area.page(0);
    let place = range.start as *mut Stamp;
    // SAFETY: The test's own memory, which is large enough.
    unsafe { place.write(argument(&range, 0)) };
    mem::protect(&range, libc::PROT_READ)?;
    let result = device.ioctl_raw(STAMP, place.cast());
    expect::error("STAMP, read-only argument", result, libc::EFAULT)
}

fn stamp_invalid() -> Outcome {
    const G: u64 = 1 << 30;
    let device = open_with(Features::ALL)?;
    let area = Guarded::new(2)?;
    let Range { start, end } = area.all();
    for range in [start..end, start..start + 1, 0..u64::MAX] {
        fails(&device, &backwards(&range), 0, libc::EINVAL)?;
    }
    for flags in (0..32).map(|bit| 1 << bit) {
        fails(&device, &area.all(), flags, libc::EINVAL)?;
    }
    fails(&device, &(0..16 * G + 1), 0, libc::EINVAL)?;
    // The range is shorter than 16 GiB until it is rounded at both ends.
    fails(&device, &(PAGE - 1..16 * G + 1), 0, libc::EINVAL)?;
    fails(&device, &(0..u64::MAX), 0, libc::EINVAL)?;
    fails(&device, &(0..u64::MAX - PAGE), 0, libc::EINVAL)?;
    fails(&device, &(1..u64::MAX), 0, libc::EINVAL)?;
    let most = device.stamp_with(argument(&(1 << 40..(1 << 40) + 16 * G), 0));
    expect::success("STAMP of 16 GiB", most).map(drop)
}

fn stamp_outputs_are_ignored() -> Outcome {
    let device = open_with(Features::STAMP)?;
    let area = Guarded::new(1)?;
    let mut seen = vec![];
    for (stamp, absent) in [(0, 0), UNTOUCHED, (u64::MAX, u32::MAX)] {
        let mut argument = argument(&area.all(), 0);
        (argument.stamp, argument.absent) = (stamp, absent);
        let result = expect::success("STAMP", device.stamp_with(argument))?;
        expect::same("absent", result.absent, 0)?;
        seen.push(result.stamp);
    }
    seen.dedup();
    expect::same("different stamps", seen.len(), 1)
}

fn stamp_uses_the_file() -> Outcome {
    let device = open_with(Features::STAMP)?;
    device.stamp_with(argument(&Guarded::new(1)?.all(), 0))?;
    let again = device.exchange_features(Features::STAMP.bits());
    expect::error("EXCHANGE_FEATURES", again, libc::EINVAL)
}

/// Sends this process signals at an interval while `body` runs.
fn signalled(every: Duration, body: impl FnOnce() -> Outcome) -> Outcome {
    signals::catch_signal(libc::SIGALRM, 0)?;
    signals::set_timer(every)?;
    let result = body();
    signals::set_timer(Duration::ZERO)?;
    result
}

fn stamp_short_is_not_interrupted() -> Outcome {
    const MOST: u64 = 65_536;
    let device = open_with(Features::STAMP)?;
    let area = Guarded::huge(MOST * PAGE / HUGE)?;
    signalled(Duration::from_micros(300), || {
        let end = Instant::now() + Duration::from_secs(2);
        let mut calls = 0u64;
        while Instant::now() < end {
            let result = device.stamp_with(argument(&area.all(), 0));
            let result = expect::success("STAMP of 65,536 pages", result)?;
            expect::same("absent", u64::from(result.absent), MOST)?;
            calls += 1;
        }
        expect::at_least("signals", signals::caught().count as u64, 10)?;
        expect::at_least("calls", calls, 2)
    })
}

/// A long range without any page.
const LONG: Range<u64> = 1 << 40..(1 << 40) + (16 << 30);

fn stamp_long_is_interrupted() -> Outcome {
    let device = open_with(Features::STAMP)?;
    signalled(Duration::from_millis(2), || {
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            let before = argument(&LONG, 0);
            let mut now = before;
            match device.ioctl_raw(STAMP, (&raw mut now).cast()) {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {
                    return expect::same("the argument", now, before);
                }
                result => expect::success("STAMP", result)?,
            }
        }
        Err(Failure::new("STAMP of 16 GiB", "EINTR", "none in 20 s"))
    })
}

fn stamp_long_is_killed() -> Outcome {
    open()?;
    let child = Child::fork(|line| {
        let device = open_with(Features::STAMP)?;
        line.tell()?;
        loop {
            let _ = device.stamp_with(argument(&LONG, 0));
        }
    })?;
    child.hear()?;
    child.signal(libc::SIGKILL)?;
    expect::same("killed by", child.ended_by()?, Some(libc::SIGKILL))
}
