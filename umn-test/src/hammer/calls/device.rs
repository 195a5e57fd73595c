// SPDX-License-Identifier: GPL-2.0

//! Calls to open, close and control the device.

use std::{
    ffi::c_void,
    io,
    os::fd::{
        AsRawFd,
        FromRawFd,
        OwnedFd, //
    }, //
};

use super::answer::{
    number,
    Answer,
    Verdict::{
        May,
        MustFail, //
    }, //
};
use crate::{
    device::{
        self,
        check, //
    },
    hammer::caller::{
        Caller,
        ARENA,
        ARENA_PAGES,
        FDS,
        FIRST_FD, //
    },
    mem::PAGE,
    uapi::{
        self,
        Register,
        Stamp, //
    }, //
};

pub fn open(caller: &mut Caller) -> Answer {
    let extra = caller.some_of(&[libc::O_CLOEXEC, libc::O_NOCTTY, libc::O_ASYNC]);
    let nonblocking = if caller.once_in(4) {
        0
    } else {
        libc::O_NONBLOCK
    };
    let (verdict, access) = if caller.once_in(5) {
        let writes = [libc::O_WRONLY, libc::O_RDWR, libc::O_ACCMODE];
        let odd = [
            libc::O_DIRECT,
            libc::O_DIRECTORY,
            libc::O_WRONLY | libc::O_APPEND,
            libc::O_RDWR | libc::O_TRUNC,
        ];
        let all: Vec<i32> = writes.into_iter().chain(odd).collect();
        (MustFail, caller.one_of(&all))
    } else if caller.once_in(20) {
        (May, libc::O_PATH)
    } else {
        (May, libc::O_RDONLY)
    };
    let target = caller.fd();
    let path = c"/dev/ummunotify";
    debug_assert_eq!(path.to_str(), Ok(device::PATH));
    // SAFETY: The path is a C string.
    let opened = check(unsafe { libc::open(path.as_ptr(), access | nonblocking | extra) });
    // SAFETY: The file was just opened and is nobody else's.
    let opened = opened.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    if let (Ok(file), true) = (&opened, caller.once_in(2)) {
        // Only a file that was not used yet can be granted features.
        let mut features = caller.rng.u32(0..8);
        let argument = (&raw mut features).cast();
        let _ = ioctl(file.as_raw_fd(), uapi::EXCHANGE_FEATURES, argument);
    }
    (verdict, opened.and_then(|file| place(file, target)))
}

/// Moves a new file of the device to one of the descriptors reserved for such files.
pub fn place(file: OwnedFd, target: i32) -> io::Result<i64> {
    // SAFETY: The file that the descriptor referred to may be closed at any time.
    number(unsafe { libc::dup2(file.as_raw_fd(), target) })
}

pub fn close(caller: &mut Caller) -> Answer {
    // SAFETY: The file may be closed at any time.
    (May, number(unsafe { libc::close(caller.fd()) }))
}

pub fn close_all(_: &mut Caller) -> Answer {
    let (first, last) = (FIRST_FD as u32, (FIRST_FD + FDS - 1) as u32);
    // SAFETY: These files may be closed at any time.
    (May, number(unsafe { libc::close_range(first, last, 0) }))
}

pub fn duplicate(caller: &mut Caller) -> Answer {
    let (from, to) = (caller.fd(), caller.fd());
    // SAFETY: The file that the descriptor referred to may be closed at any time.
    (May, number(unsafe { libc::dup2(from, to) }))
}

pub fn ioctl(fd: i32, request: u32, argument: *mut c_void) -> io::Result<i64> {
    // SAFETY: The argument is the caller's own, or memory that may be overwritten.
    number(unsafe { libc::ioctl(fd, request.into(), argument) })
}

/// Issues an ioctl with a valid argument, or with one at some address.
pub fn ioctl_with<T>(caller: &mut Caller, request: u32, mut argument: T) -> Answer {
    let fd = caller.fd();
    let pointer = if caller.once_in(4) {
        caller.pointer()
    } else {
        (&raw mut argument).cast()
    };
    (May, ioctl(fd, request, pointer))
}

pub fn exchange(caller: &mut Caller) -> Answer {
    let mask = caller.rng.u32(..);
    ioctl_with(caller, uapi::EXCHANGE_FEATURES, mask)
}

/// A region that is likely to be hit, or very unlikely.
pub fn region(caller: &mut Caller) -> Register {
    let page = caller.arena_page();
    let (start, end) = match caller.rng.u32(0..8) {
        0 => (ARENA, ARENA + ARENA_PAGES * PAGE),
        1 => (page + caller.rng.u64(0..PAGE), page + 2 * PAGE),
        2 => (page, page),
        3 => (0, !0),
        4 => (caller.rng.u64(..), caller.rng.u64(..)),
        5 => (caller.window_page(), caller.window_page() + PAGE),
        _ => (page, page + PAGE),
    };
    // With features, most flags are refused.
    let (flags, reserved) = match caller.rng.u32(0..4) {
        0 => (caller.rng.u32(..), caller.rng.u32(..)),
        1 => (0, 0),
        _ => (caller.rng.u32(..) & uapi::CAUSES_SAME_PAGES, 0),
    };
    Register {
        start,
        end,
        user_cookie: caller.rng.u64(0..64),
        flags,
        reserved,
    }
}

pub fn stamp(caller: &mut Caller) -> Answer {
    let Register { start, end, .. } = region(caller);
    let argument = Stamp {
        start,
        end,
        stamp: caller.rng.u64(..),
        absent: caller.rng.u32(..),
        flags: u32::from(caller.once_in(8)),
    };
    ioctl_with(caller, uapi::STAMP, argument)
}

pub fn register(caller: &mut Caller) -> Answer {
    let region = region(caller);
    ioctl_with(caller, uapi::REGISTER_REGION, region)
}

pub fn register_many(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let mut last = Ok(0);
    for _ in 0..200 {
        let mut region = region(caller);
        region.user_cookie = caller.rng.u64(0..1000);
        last = ioctl(fd, uapi::REGISTER_REGION, (&raw mut region).cast());
    }
    (May, last)
}

/// Registers more regions on a page than a change visits at once.
pub fn register_crowd(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let start = caller.arena_page();
    let mut last = Ok(0);
    for cookie in 0..300 {
        let mut region = Register {
            start: start + cookie % 7,
            end: start + PAGE,
            user_cookie: cookie,
            ..Register::default()
        };
        last = ioctl(fd, uapi::REGISTER_REGION, (&raw mut region).cast());
    }
    (May, last)
}

pub fn unregister(caller: &mut Caller) -> Answer {
    let many = if caller.once_in(2) { 64 } else { 1000 };
    let cookie = caller.rng.u64(0..many);
    ioctl_with(caller, uapi::UNREGISTER_REGION, cookie)
}

/// An unknown command, which may resemble one of the device's own.
pub fn other_ioctl(caller: &mut Caller) -> Answer {
    const OURS: [u32; 4] = [
        uapi::EXCHANGE_FEATURES,
        uapi::REGISTER_REGION,
        uapi::UNREGISTER_REGION,
        uapi::STAMP,
    ];
    let near = caller.one_of(&OURS);
    let request = match caller.rng.u32(0..4) {
        // A different direction or size.
        0 => near ^ (1 << caller.rng.u32(16..32)),
        // A different number.
        1 => near & !0xff | caller.rng.u32(0..256),
        2 => caller.rng.u32(..) & !0xff00 | 0x5500,
        // Any other, except those that the kernel handles for every file.
        _ => caller.rng.u32(..) & !0xff00 | caller.one_of(&[0xa5_00, 0xe0_00, 0x55_00]),
    };
    let fd = caller.fd();
    let argument = caller.pointer();
    if OURS.contains(&request) {
        return (May, Err(io::Error::from_raw_os_error(libc::ENOTTY)));
    }
    (MustFail, ioctl(fd, request, argument))
}
