// SPDX-License-Identifier: GPL-2.0

//! Waiting for events in every way.

use std::{
    mem,
    os::fd::{
        AsRawFd,
        FromRawFd,
        OwnedFd, //
    },
    ptr, //
};

use io_uring::{
    opcode,
    types,
    IoUring, //
};

use super::{
    answer::{
        number,
        Answer,
        Verdict::May, //
    },
    read::whole_records, //
};
use crate::{
    device::check,
    hammer::caller::{
        Caller,
        FDS,
        FIRST_FD, //
    }, //
};

pub fn poll(caller: &mut Caller) -> Answer {
    let mut fds = [(); FDS as usize].map(|()| libc::pollfd {
        fd: caller.fd(),
        events: caller.rng.i16(..),
        revents: 0,
    });
    let time = caller.rng.i32(0..5);
    let (at, count) = match caller.rng.u32(0..10) {
        0 => (caller.pointer().cast(), FDS as u64),
        1 => (ptr::null_mut(), 1 << 30),
        _ => (fds.as_mut_ptr(), FDS as u64),
    };
    // SAFETY: Either the array has that many elements, or the kernel refuses the count.
    (May, number(unsafe { libc::poll(at, count, time) }))
}

pub fn select(caller: &mut Caller) -> Answer {
    // SAFETY: All-zero bytes are an empty set.
    let mut sets: [libc::fd_set; 3] = unsafe { mem::zeroed() };
    for set in &mut sets {
        // SAFETY: The descriptor is below 1024.
        unsafe { libc::FD_SET(caller.fd(), set) };
    }
    let mut time = libc::timeval {
        tv_sec: 0,
        tv_usec: caller.rng.i64(0..3000),
    };
    let [read, write, error] = &mut sets;
    // SAFETY: The sets and the time are valid.
    let result = unsafe { libc::select(FIRST_FD + FDS, read, write, error, &mut time) };
    (May, number(result))
}

pub fn epoll(caller: &mut Caller) -> Answer {
    // SAFETY: The call takes no pointer.
    let fd = match check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }) {
        // SAFETY: The file was just opened and is nobody else's.
        Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
        Err(error) => return (May, Err(error)),
    };
    let mut result = Ok(0);
    for _ in 0..3 {
        let mut event = libc::epoll_event {
            events: caller.rng.u32(..) & !(libc::EPOLLEXCLUSIVE | libc::EPOLLWAKEUP) as u32,
            u64: 0,
        };
        let target = caller.fd();
        // SAFETY: `event` is a valid event.
        let added = number(unsafe {
            libc::epoll_ctl(fd.as_raw_fd(), libc::EPOLL_CTL_ADD, target, &mut event)
        });
        result = result.and(added);
    }
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    let time = caller.rng.i32(0..3);
    // SAFETY: There is room for one event.
    let waited = number(unsafe { libc::epoll_wait(fd.as_raw_fd(), &mut event, 1, time) });
    (May, result.and(waited))
}

/// Reads and polls asynchronously, and usually does not wait for the completion.
pub fn uring(caller: &mut Caller) -> Answer {
    let mut ring = match IoUring::new(8) {
        Ok(ring) => ring,
        Err(error) => return (May, Err(error)),
    };
    for _ in 0..3 {
        let fd = types::Fd(caller.fd());
        let read = opcode::Read::new(fd, caller.pointer().cast(), 128).build();
        let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        // SAFETY: The addresses are of memory that may be overwritten at any time, or invalid.
        let pushed = unsafe {
            let mut queue = ring.submission();
            queue.push(&read.user_data(1)).and(queue.push(&poll))
        };
        pushed.expect("there is room for all of them");
    }
    let wait = usize::from(caller.once_in(3));
    let result = match ring.submit_and_wait(wait) {
        // A signal ended the wait.
        Err(error) if error.raw_os_error() == Some(libc::EINTR) => Ok(0),
        result => result.map(|count| count as i64),
    };
    for completion in ring.completion() {
        let bytes = completion.result();
        if completion.user_data() == 1 && bytes > 0 {
            whole_records(caller, "a read by io_uring", &Ok(bytes.into()));
        }
    }
    (May, result)
}
