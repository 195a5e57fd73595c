// SPDX-License-Identifier: GPL-2.0

//! The three commands of V2: numbers, layouts, errors.

use std::{
    ffi::c_void,
    io,
    ptr,
    thread, //
};

use super::prelude::*;
use crate::uapi::{
    EXCHANGE_FEATURES,
    REGISTER_REGION,
    UNREGISTER_REGION, //
};

table! {
    ioctl_numbers: "the three commands have the numbers of V2",
    ioctl_register_layout: "REGISTER_REGION reads its fields at the offsets of V2",
    ioctl_unknown: "anything else gives ENOTTY",
    ioctl_unknown_in_another_process: "ENOTTY comes before EPERM",
    ioctl_compat: "a 32-bit system call has the same numbers and layouts",
    exchange_grants_a_subset: "EXCHANGE_FEATURES grants only features that were requested and exist",
    exchange_twice: "EXCHANGE_FEATURES after EXCHANGE_FEATURES gives EINVAL",
    exchange_after_register: "EXCHANGE_FEATURES after REGISTER_REGION gives EINVAL",
    exchange_after_read: "EXCHANGE_FEATURES after a read gives EINVAL",
    exchange_overtaken: "EXCHANGE_FEATURES that is overtaken by REGISTER_REGION gives EINVAL",
    exchange_bad_pointer: "a bad pointer gives EFAULT, and the call can be repeated",
    exchange_read_only_word: "a read-only mask gives EFAULT, and the call can be repeated",
    register_bad_pointer: "a bad pointer gives EFAULT, and the file does not count as used",
    register_taken_cookie: "a cookie in use gives EINVAL, and the region stays",
    register_any_cookie: "any cookie is accepted, including 0 and all ones",
    register_ignores_flags: "flags and reserved are ignored, whatever they hold",
    unregister_unknown: "an unknown cookie gives EINVAL",
    unregister_bad_pointer: "a bad pointer gives EFAULT",
    unregister_drops_the_event: "the queued event is never delivered, the cookie is free at once",
}

/// An address in the first page, where nothing is ever mapped.
const BAD: *mut c_void = 8 as *mut c_void;

fn ioctl_numbers() -> Outcome {
    let device = open()?;
    let mut word = 0u32;
    let argument = (&raw mut word).cast();
    expect::success("0xC0045501", device.ioctl_raw(0xC004_5501, argument))?;

    let area = Guarded::new(1)?;
    let mut region = Register {
        start: area.all().start,
        end: area.all().end,
        user_cookie: 77,
        ..Register::default()
    };
    let argument = (&raw mut region).cast();
    expect::success("0x40205502", device.ioctl_raw(0x4020_5502, argument))?;

    let mut cookie = 77u64;
    let argument: *mut c_void = (&raw mut cookie).cast();
    expect::success("0x40085503", device.ioctl_raw(0x4008_5503, argument))?;
    let again = device.ioctl_raw(0x4008_5503, argument);
    expect::error("0x40085503 again", again, libc::EINVAL)
}

fn ioctl_register_layout() -> Outcome {
    let bench = Bench::new(2)?;
    let region = bench.area.page(1);
    let mut bytes = [0u8; 32];
    bytes[0..8].copy_from_slice(&region.start.to_ne_bytes());
    bytes[8..16].copy_from_slice(&region.end.to_ne_bytes());
    bytes[16..24].copy_from_slice(&0x0123_4567_89ab_cdefu64.to_ne_bytes());
    let argument = bytes.as_mut_ptr().cast();
    expect::success(
        "REGISTER_REGION",
        bench.device.ioctl_raw(REGISTER_REGION, argument),
    )?;
    mem::unmap(&bench.area.all())?;

    let mut record = [0xffu8; 32];
    let read = bench.device.read_raw(record.as_mut_ptr().cast(), 32)?;
    expect::same("bytes read", read, 32)?;
    let word = |at: usize| u64::from_ne_bytes(record[at..at + 8].try_into().expect("8 bytes"));
    let half = |at: usize| u32::from_ne_bytes(record[at..at + 4].try_into().expect("4 bytes"));
    expect::same("type, at 0", half(0), 0)?;
    expect::same("flags, at 4", half(4), 1)?;
    expect::same("hint_start, at 8", word(8), region.start)?;
    expect::same("hint_end, at 16", word(16), region.end)?;
    expect::same("cookie, at 24", word(24), 0x0123_4567_89ab_cdef)?;

    let mut record = [0xffu8; 32];
    let read = bench.device.read_raw(record.as_mut_ptr().cast(), 32)?;
    expect::same("bytes read", read, 32)?;
    let mut wanted = [0u8; 32];
    wanted[0] = 1;
    wanted[24] = 1;
    expect::same("LAST", record, wanted)
}

/// Numbers that are no command's.
const UNKNOWN: &[u32] = &[
    0,
    1,
    0xffff_ffff,
    // The right number, but a wrong direction, size or type.
    0x4004_5501,
    0x8004_5501,
    0xC008_5501,
    0x4021_5502,
    0x4010_5502,
    0xC020_5502,
    0x4004_5503,
    0x0000_5503,
    0x4008_5603,
    // The right type, but another number.
    0xC004_5500,
    0x4008_5504,
    libc::FIONREAD as u32,
    libc::TCGETS as u32,
];

/// Expects every unknown number to give `ENOTTY`.
fn gives_enotty(device: &Device) -> Outcome {
    let mut space = [0u64; 8];
    for number in UNKNOWN {
        let result = device.ioctl_raw(*number, space.as_mut_ptr().cast());
        expect::error(&format!("ioctl {number:#x}"), result, libc::ENOTTY)?;
        let result = device.ioctl_raw(*number, BAD);
        expect::error(&format!("ioctl {number:#x}"), result, libc::ENOTTY)?;
    }
    Ok(())
}

fn ioctl_unknown() -> Outcome {
    let device = open()?;
    gives_enotty(&device)?;
    // None of this counts as use.
    expect::success("EXCHANGE_FEATURES", device.exchange_features(0)).map(drop)
}

fn ioctl_unknown_in_another_process() -> Outcome {
    let device = open()?;
    Child::fork(|_| gives_enotty(&device))?.join()
}

/// Makes a system call the way a 32-bit program does.
#[cfg(target_arch = "x86_64")]
fn compat_call(number: u32, arguments: [u32; 3]) -> i32 {
    let mut result = u64::from(number);
    // SAFETY: The kernel checks the pointers; the tests pass those of their own memory. This is the
    // entry point for 32-bit programs, which preserves all registers except that of the result.
    unsafe {
        std::arch::asm!(
            "xchg {first}, rbx",
            "int 0x80",
            "xchg {first}, rbx",
            first = inout(reg) u64::from(arguments[0]) => _,
            inout("rax") result,
            in("rcx") u64::from(arguments[1]),
            in("rdx") u64::from(arguments[2]),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result as i32
}

#[cfg(target_arch = "x86_64")]
fn ioctl_compat() -> Outcome {
    use crate::expect::Failure;
    use std::{
        os::fd::AsRawFd,
        slice, //
    };

    /// Call numbers of 32-bit programs.
    const READ: u32 = 3;
    const GETPID: u32 = 20;
    const IOCTL: u32 = 54;

    let bench = Bench::new(1)?;
    // Without support for 32-bit programs, the kernel kills the process that tries.
    let probe = Child::fork(|_| {
        compat_call(GETPID, [0; 3]);
        Ok(())
    })?;
    if probe.ended_by()?.is_some() {
        return Err(Failure::Skipped("no 32-bit system calls".into()));
    }

    // Arguments must be where a 32-bit pointer can point.
    let low = mem::map(
        None,
        PAGE,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
        None,
    )?;
    // SAFETY: The page was just mapped, and nothing else refers to it.
    let words = unsafe { slice::from_raw_parts_mut(low as *mut u64, 8) };
    let fd = bench.device.as_raw_fd() as u32;
    let call = |number, command| compat_call(number, [fd, command, low as u32]);

    // Features that no driver offers, so that this stays a file of V2.
    words[0] = 0xffff_fff8;
    expect::same("EXCHANGE_FEATURES", call(IOCTL, EXCHANGE_FEATURES), 0)?;
    words[..4].copy_from_slice(&[bench.area.all().start, bench.area.all().end, 55, 0]);
    expect::same("REGISTER_REGION", call(IOCTL, REGISTER_REGION), 0)?;
    bench.hit(0)?;
    expect::same("read", compat_call(READ, [fd, low as u32, 64]), 64)?;
    let wanted = [
        1 << 32,
        bench.area.all().start,
        bench.area.all().end,
        55,
        1,
        0,
        0,
        1,
    ];
    expect::same("what was read", &*words, &wanted[..])?;
    words[0] = 55;
    expect::same("UNREGISTER_REGION", call(IOCTL, UNREGISTER_REGION), 0)?;
    expect::same(
        "the same again",
        call(IOCTL, UNREGISTER_REGION),
        -libc::EINVAL,
    )?;
    expect::same("an unknown command", call(IOCTL, 0x5504), -libc::ENOTTY)
}

#[cfg(not(target_arch = "x86_64"))]
fn ioctl_compat() -> Outcome {
    let why = if cfg!(target_pointer_width = "32") {
        "this program makes 32-bit system calls anyway"
    } else {
        "only implemented for x86-64"
    };
    Err(expect::Failure::Skipped(why.into()))
}

fn exchange_grants_a_subset() -> Outcome {
    for wanted in [0, 1, 0x8000_0000, 0xffff_ffff, 0xa5a5_5a5a] {
        let granted = expect::success("EXCHANGE_FEATURES", open()?.exchange_features(wanted))?;
        expect::same("what was granted", granted & wanted & FEATURES, granted)?;
    }
    Ok(())
}

/// The features that exist.
const FEATURES: u32 = 0b111;

/// Expects that features cannot be negotiated any more.
#[track_caller]
fn too_late_to_exchange(device: &Device) -> Outcome {
    let mut mask = 0xffff_ffff_u32;
    let result = device.ioctl_raw(EXCHANGE_FEATURES, (&raw mut mask).cast());
    expect::error("EXCHANGE_FEATURES", result, libc::EINVAL)?;
    expect::same("the mask after the error", mask, 0xffff_ffff)
}

fn exchange_twice() -> Outcome {
    let device = open()?;
    device.exchange_features(0)?;
    too_late_to_exchange(&device)?;
    too_late_to_exchange(&device)
}

fn exchange_after_register() -> Outcome {
    let bench = Bench::one_page()?;
    too_late_to_exchange(&bench.device)?;
    bench.device.unregister(1)?;
    too_late_to_exchange(&bench.device)
}

fn exchange_after_read() -> Outcome {
    let bench = Bench::new(1)?;
    bench.is_silent()?;
    too_late_to_exchange(&bench.device)
}

fn exchange_overtaken() -> Outcome {
    let bench = Bench::new(1)?;
    let mask = Absent::new()?;
    let result = thread::scope(|scope| -> Outcome<_> {
        let exchange = scope.spawn(|| bench.device.ioctl_raw(EXCHANGE_FEATURES, mask.pointer()));
        mask.is_awaited()?;
        bench.watch(1, &bench.area.all())?;
        mask.provide(&[])?;
        Ok(exchange.join().expect("the thread does not panic"))
    })?;
    expect::error("EXCHANGE_FEATURES", result, libc::EINVAL)
}

fn exchange_bad_pointer() -> Outcome {
    let device = open()?;
    for pointer in [ptr::null_mut(), BAD, usize::MAX as *mut c_void] {
        let result = device.ioctl_raw(EXCHANGE_FEATURES, pointer);
        expect::error("EXCHANGE_FEATURES", result, libc::EFAULT)?;
    }
    expect::success("EXCHANGE_FEATURES", device.exchange_features(0)).map(drop)
}

fn exchange_read_only_word() -> Outcome {
    let device = open()?;
    let area = Guarded::new(1)?;
    mem::protect(&area.all(), libc::PROT_READ)?;
    let result = device.ioctl_raw(EXCHANGE_FEATURES, area.all().start as *mut c_void);
    expect::error("EXCHANGE_FEATURES", result, libc::EFAULT)?;
    expect::success("EXCHANGE_FEATURES", device.exchange_features(0)).map(drop)
}

fn register_bad_pointer() -> Outcome {
    let device = open()?;
    let area = Guarded::new(1)?;
    let half_bad = (area.all().end - 16) as *mut c_void;
    for pointer in [ptr::null_mut(), BAD, usize::MAX as *mut c_void, half_bad] {
        let result = device.ioctl_raw(REGISTER_REGION, pointer);
        expect::error("REGISTER_REGION", result, libc::EFAULT)?;
    }
    expect::success("EXCHANGE_FEATURES", device.exchange_features(0)).map(drop)
}

fn register_taken_cookie() -> Outcome {
    let bench = Bench::new(2)?;
    let (first, second) = (bench.area.page(0), bench.area.page(1));
    bench.watch(5, &first)?;
    let taken = || bench.device.register(second.start, second.end, 5);
    expect::error("REGISTER_REGION", taken(), libc::EINVAL)?;
    bench.hit(1)?;
    bench.counts(0)?;
    bench.hit(0)?;
    // Nor with an event queued.
    expect::error("REGISTER_REGION", taken(), libc::EINVAL)?;
    bench.reads(&[inval(5, &first), last(1)])?;
    expect::success("unregister", bench.device.unregister(5))?;
    expect::success("REGISTER_REGION", taken())
}

fn register_any_cookie() -> Outcome {
    let bench = Bench::new(1)?;
    let cookies = [0, 1, u64::MAX, u64::MAX - 1, 1 << 63, 1 << 31, 1 << 32];
    for cookie in cookies {
        bench.watch(cookie, &bench.area.all())?;
    }
    bench.hit(0)?;
    let events = bench.device.read_events(cookies.len())?;
    let mut seen: Vec<u64> = events.iter().map(|e| e.user_cookie_counter).collect();
    seen.sort_unstable();
    let mut wanted = cookies.to_vec();
    wanted.sort_unstable();
    expect::same("cookies", seen, wanted)?;
    for cookie in cookies {
        expect::success("UNREGISTER_REGION", bench.device.unregister(cookie))?;
    }
    Ok(())
}

fn register_ignores_flags() -> Outcome {
    for negotiate in [false, true] {
        let bench = Bench::new(1)?;
        if negotiate {
            bench.device.exchange_features(0)?;
        }
        let garbage = [1, 0x8000_0000, 0xffff_ffff, 0xdead_beef];
        for (cookie, garbage) in (0..).zip(garbage) {
            let result = bench.device.register_with(Register {
                start: bench.area.all().start,
                end: bench.area.all().end,
                user_cookie: cookie,
                flags: garbage,
                reserved: !garbage,
            });
            expect::success("REGISTER_REGION", result)?;
        }
        bench.hit(0)?;
        let mut events = bench.device.read_events(8)?;
        events.sort_unstable_by_key(|event| (event.kind, event.user_cookie_counter));
        let page = bench.area.all();
        let wanted = [
            inval(0, &page),
            inval(1, &page),
            inval(2, &page),
            inval(3, &page),
            last(1),
        ];
        expect::events("events", &events, &wanted)?;
    }
    Ok(())
}

fn unregister_unknown() -> Outcome {
    let bench = Bench::one_page()?;
    for cookie in [0, 2, u64::MAX] {
        let result = bench.device.unregister(cookie);
        expect::error("UNREGISTER_REGION", result, libc::EINVAL)?;
    }
    bench.device.unregister(1)?;
    expect::error(
        "UNREGISTER_REGION",
        bench.device.unregister(1),
        libc::EINVAL,
    )
}

fn unregister_bad_pointer() -> Outcome {
    let bench = Bench::one_page()?;
    for pointer in [ptr::null_mut(), BAD, usize::MAX as *mut c_void] {
        let result: io::Result<()> = bench.device.ioctl_raw(UNREGISTER_REGION, pointer);
        expect::error("UNREGISTER_REGION", result, libc::EFAULT)?;
    }
    expect::success("UNREGISTER_REGION", bench.device.unregister(1))
}

fn unregister_drops_the_event() -> Outcome {
    let bench = Bench::new(3)?;
    bench.watch_pages()?;
    mem::advise(&bench.area.all(), libc::MADV_DONTNEED)?;
    bench.device.unregister(2)?;
    let page = bench.area.page(1);
    bench.watch(2, &page)?;
    let others = [inval(1, &bench.area.page(0)), inval(3, &bench.area.page(2))];
    bench.reads(&[others[0], others[1], last(1)])?;
    bench.hit(1)?;
    bench.reads(&[inval(2, &page), last(2)])
}
