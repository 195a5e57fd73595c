// SPDX-License-Identifier: GPL-2.0

//! What can be done to any open file: flags, owner, locks, and passing it to other processes.

use std::{
    fs,
    os::fd::{
        AsRawFd,
        BorrowedFd,
        FromRawFd,
        OwnedFd, //
    }, //
};

use super::{
    answer::{
        number,
        Answer,
        Verdict::May, //
    },
    device::place, //
};
use crate::{
    device::check,
    hammer::caller::Caller,
    process::Channel, //
};

pub fn control(caller: &mut Caller) -> Answer {
    /// What the crate `libc` lacks.
    const F_SETSIG: i32 = 10;
    const F_GETSIG: i32 = 11;
    const F_GETOWN_EX: i32 = 16;
    let fd = caller.fd();
    let flags = caller.some_of(&[
        libc::O_ASYNC,
        libc::O_NONBLOCK,
        libc::O_NONBLOCK,
        libc::O_APPEND,
    ]);
    let odd = caller.one_of(&[libc::O_DIRECT, libc::O_NOATIME, !0]);
    // Fatal signals are rare, and those that indicate a broken program are left out.
    let signal = caller.one_of(&[0, libc::SIGIO, libc::SIGIO, libc::SIGUSR1, 65, -1]);
    let signal = if caller.once_in(20) {
        libc::SIGKILL
    } else {
        signal
    };
    let closing = caller.rng.i32(0..2);
    let pointer = caller.pointer();
    // SAFETY: The commands take no pointer, or one to memory that may be overwritten.
    let result = unsafe {
        match caller.rng.u32(0..12) {
            0..=4 => libc::fcntl(fd, libc::F_SETFL, flags),
            5 => libc::fcntl(fd, libc::F_SETFL, odd),
            6 => libc::fcntl(fd, F_SETSIG, signal),
            7 => libc::fcntl(fd, libc::F_SETFD, closing),
            8 => libc::fcntl(fd, F_GETOWN_EX, pointer),
            9 => libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK),
            10 => libc::fcntl(fd, libc::F_NOTIFY, 2),
            _ => libc::fcntl(fd, caller.one_of(&[F_GETSIG, libc::F_GETFL, libc::F_GETFD])),
        }
    };
    (May, number(result))
}

/// Makes another process the recipient of signals; a stranger must not get them.
pub fn own(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let worker = caller.worker();
    // SAFETY: The call takes no arguments.
    let group = unsafe { libc::getpgrp() };
    let owners = [
        worker,
        worker,
        caller.thread(),
        -group,
        i32::MAX,
        i32::MIN,
        0,
    ];
    let owner = if caller.spares_strangers || !caller.once_in(4) {
        caller.one_of(&owners)
    } else {
        // The init process, and others that may be unrelated.
        caller.rng.i32(1..100)
    };
    // SAFETY: The command takes no pointer.
    let result = unsafe { libc::fcntl(fd, libc::F_SETOWN, owner) };
    (May, number(result))
}

pub fn lock(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let lock = libc::flock {
        l_type: caller.one_of(&[libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK]) as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: caller.rng.i64(0..10),
        l_len: caller.rng.i64(0..10),
        l_pid: 0,
    };
    let operation = caller.one_of(&[libc::LOCK_SH, libc::LOCK_EX, libc::LOCK_UN]);
    // SAFETY: The lock is valid.
    let result = unsafe {
        match caller.rng.u32(0..3) {
            0 => libc::fcntl(fd, libc::F_SETLK, &lock),
            1 => libc::fcntl(fd, libc::F_OFD_SETLK, &lock),
            _ => libc::flock(fd, operation | libc::LOCK_NB),
        }
    };
    (May, number(result))
}

pub fn fdinfo(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let path = match caller.worker() {
        0 => format!("/proc/self/fdinfo/{fd}"),
        worker => format!("/proc/{worker}/fdinfo/{fd}"),
    };
    (May, fs::read(path).map(|text| text.len() as i64))
}

/// The file that a descriptor currently refers to.
pub fn borrowed(fd: i32) -> BorrowedFd<'static> {
    // SAFETY: Nothing relies on the descriptor referring to the same file, or to any.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Passes a file to any process that receives it; there may be none.
pub fn pass(caller: &mut Caller) -> Answer {
    let file = borrowed(caller.fd());
    (May, caller.line().pass(&file).map(|()| 0))
}

pub fn receive(caller: &mut Caller) -> Answer {
    let target = caller.fd();
    let result = match caller.line().receive() {
        // The message had no file in it, because there was no free descriptor for it.
        Err(error) if error.raw_os_error().is_none() => Ok(0),
        result => result.and_then(|file| place(file, target)),
    };
    (May, result)
}

/// Passes a file over a channel that is closed with the file in it.
pub fn lose(caller: &mut Caller) -> Answer {
    let file = borrowed(caller.fd());
    let result = Channel::pair().and_then(|(one, _two)| one.pass(&file));
    (May, result.map(|()| 0))
}

/// Takes a file from another process.
pub fn steal(caller: &mut Caller) -> Answer {
    let (worker, from, to) = (caller.worker(), caller.fd(), caller.fd());
    let open = |result| {
        // SAFETY: The file was just opened and is nobody else's.
        check(result).map(|fd: i64| unsafe { OwnedFd::from_raw_fd(fd as i32) })
    };
    // SAFETY: The calls take no pointer.
    let result = unsafe {
        open(libc::syscall(libc::SYS_pidfd_open, worker, 0)).and_then(|process| {
            let process = process.as_raw_fd();
            open(libc::syscall(libc::SYS_pidfd_getfd, process, from, 0))
        })
    };
    (May, result.and_then(|file| place(file, to)))
}
