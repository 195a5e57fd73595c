// SPDX-License-Identifier: GPL-2.0

//! The calls, and the results each may have.

mod answer;
mod device;
mod file;
mod memory;
mod read;
mod wait;

use std::{
    io,
    process::{
        Command,
        Stdio, //
    },
    ptr, //
};

use self::{
    answer::{
        number,
        Answer,
        Verdict::{
            May,
            MustFail, //
        }, //
    },
    device::{
        close,
        close_all,
        duplicate,
        exchange,
        open,
        other_ioctl,
        register,
        register_crowd,
        register_many,
        stamp,
        unregister, //
    },
    file::{
        control,
        fdinfo,
        lock,
        lose,
        own,
        pass,
        receive,
        steal, //
    },
    memory::{
        advise,
        change,
        map,
        peek,
        poke,
        protect,
        remap,
        unmap, //
    },
    read::{
        other_file,
        preadv2,
        read,
        read_properly,
        readv,
        seek,
        splice,
        write, //
    },
    wait::{
        epoll,
        poll,
        select,
        uring, //
    },
};
use super::{
    caller::{
        Caller,
        FDS, //
    },
    tally::ROWS,
};
use crate::{
    device::check,
    expect::named, //
};

/// A kind of call.
struct Call {
    /// Its name in the table.
    name: &'static str,
    /// How often it is made, relative to others.
    weight: u32,
    /// The errors it may fail with, in addition to [`ANYWHERE`].
    errors: &'static [i32],
    /// Makes the call.
    make: fn(&mut Caller) -> Answer,
}

/// Errors of any call: a descriptor may be closed at any time, and memory may run out.
const ANYWHERE: &[i32] = &[libc::EBADF, libc::ENOMEM];

impl Call {
    /// Whether it may fail with this error.
    fn fails_with(&self, error: &io::Error) -> bool {
        error
            .raw_os_error()
            .is_some_and(|number| self.errors.contains(&number) || ANYWHERE.contains(&number))
    }
}

/// Defines the table: `function, weight, errors;` for each call.
macro_rules! calls {
    ($($name:ident, $weight:literal, [$($error:ident)*];)+) => {
        /// All kinds of calls.
        const CALLS: &[Call] = &[
            $(Call {
                name: stringify!($name),
                weight: $weight,
                errors: &[$(libc::$error),*],
                make: $name,
            },)+
        ];

        /// The sum of their weights.
        const WEIGHTS: u32 = 0 $(+ $weight)+;
    };
}

/// The index of `open` in the table.
const OPEN: usize = 0;

calls! {
    open, 60, [EINVAL ENOENT ENODEV ENXIO EMFILE ENFILE ENOTDIR];
    close, 8, [];
    close_all, 1, [];
    duplicate, 6, [EBUSY];
    exchange, 4, [EINVAL EPERM EFAULT];
    register, 50, [EINVAL EPERM EFAULT ENOSPC];
    register_many, 2, [EINVAL EPERM ENOSPC];
    register_crowd, 2, [EINVAL EPERM ENOSPC];
    unregister, 25, [EINVAL EPERM EFAULT];
    stamp, 12, [ENOTTY EPERM ESRCH EFAULT EINVAL EINTR];
    other_ioctl, 15, [ENOTTY];
    read, 50, [EAGAIN EINTR EINVAL EFAULT EPERM];
    read_properly, 30, [EAGAIN EINTR EPERM];
    readv, 20, [EAGAIN EINTR EINVAL EFAULT EPERM];
    preadv2, 15, [EAGAIN EINTR EINVAL EFAULT EPERM ESPIPE EOPNOTSUPP];
    write, 6, [EINVAL EFAULT ESPIPE];
    seek, 4, [EINVAL ESPIPE];
    splice, 8, [EINVAL ESPIPE EXDEV];
    other_file, 8, [EINVAL ENOTDIR ENOTSOCK ESPIPE EOPNOTSUPP ENODEV EPERM];
    map, 30, [EINVAL EACCES EAGAIN EPERM EEXIST EOPNOTSUPP EOVERFLOW];
    unmap, 6, [];
    protect, 10, [EINVAL EACCES];
    remap, 10, [EINVAL EFAULT EAGAIN EACCES];
    advise, 15, [EINTR EINVAL EACCES EPERM EFAULT EBUSY EIO EAGAIN EOPNOTSUPP];
    peek, 10, [EFAULT ENOSYS];
    poke, 5, [EFAULT ENOSYS];
    poll, 15, [EINTR EINVAL EFAULT];
    select, 8, [EINTR];
    epoll, 8, [EPERM EEXIST EINTR EMFILE ENFILE];
    uring, 6, [EMFILE ENFILE EPERM ENOSYS EAGAIN];
    control, 20, [EINVAL EPERM ESRCH EACCES EAGAIN EFAULT ENOTDIR EMFILE];
    own, 12, [EINVAL ESRCH EPERM];
    lock, 6, [EINVAL EAGAIN EINTR ENOLCK EDEADLK];
    fdinfo, 8, [ENOENT EACCES ESRCH EPERM EMFILE ENFILE];
    change, 120, [EINTR EINVAL EACCES EFAULT EAGAIN EIO EBUSY EPERM];
    pass, 8, [EAGAIN ETOOMANYREFS EPIPE ECONNREFUSED ENOBUFS EINTR];
    lose, 2, [ETOOMANYREFS EMFILE ENFILE ENOBUFS];
    receive, 8, [EAGAIN EMFILE];
    steal, 3, [ESRCH EPERM EMFILE EINVAL];
    signal, 10, [ESRCH EPERM];
    fork, 3, [EAGAIN];
    spawn, 1, [ECHILD EAGAIN EACCES EMFILE ENFILE EINTR ENOENT];
}

const _: () = assert!(CALLS.len() <= ROWS);

/// The names of all kinds of calls.
pub fn names() -> impl Iterator<Item = &'static str> {
    CALLS.iter().map(|call| call.name)
}

/// Opens some files to start with.
pub fn begin(caller: &mut Caller) {
    for _ in 0..FDS {
        make(caller, OPEN);
    }
}

/// Makes a random call.
pub fn make_any(caller: &mut Caller) {
    let mut at = caller.rng.u32(0..WEIGHTS);
    let index = CALLS
        .iter()
        .position(|call| match at.checked_sub(call.weight) {
            Some(left) => {
                at = left;
                false
            }
            None => true,
        })
        .expect("the weights add up");
    make(caller, index);
}

/// Makes a call of one kind, and judges its result.
fn make(caller: &mut Caller, index: usize) {
    let call = &CALLS[index];
    let (verdict, result) = (call.make)(caller);
    caller.tally.count(index, &result);
    match (verdict, &result) {
        (MustFail, Ok(value)) => {
            let what = format!("{}: expected an error, saw {value}", call.name);
            caller.tally.wrong(&what);
        }
        (_, Err(error)) if !call.fails_with(error) => {
            let what = format!(
                "{}: expected another error, saw {}",
                call.name,
                named(error)
            );
            caller.tally.wrong(&what);
        }
        _ => (),
    }
}

/// Interrupts a thread of this process or, occasionally, kills another process.
fn signal(caller: &mut Caller) -> Answer {
    let (thread, worker) = (caller.thread(), caller.worker());
    // SAFETY: The calls take no pointer.
    let result = unsafe {
        if thread != 0 && !caller.once_in(100) {
            let process = libc::getpid();
            libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR1)
        } else if worker != 0 {
            libc::kill(worker, libc::SIGKILL).into()
        } else {
            0
        }
    };
    (May, number(result))
}

/// Forks a child that uses the same files concurrently.
fn fork(caller: &mut Caller) -> Answer {
    if caller.is_child {
        return (May, Err(io::Error::from_raw_os_error(libc::EAGAIN)));
    }
    let calls = caller.rng.u32(0..100);
    // SAFETY: The child makes the same kinds of calls and ends. The C library ensures that the
    // child can allocate memory.
    let result = check(unsafe { libc::fork() });
    match result {
        Ok(0) => {
            caller.be_child();
            for _ in 0..calls {
                make_any(caller);
            }
            // SAFETY: Ends the process, without the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        Ok(_) => {
            // Reap the children that have ended.
            // SAFETY: The status is of no interest.
            while unsafe { libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG) } > 0 {}
        }
        Err(_) => (),
    }
    (May, result.map(i64::from))
}

/// Executes this program in a child of `vfork`, with the same files.
fn spawn(caller: &mut Caller) -> Answer {
    if caller.is_child {
        return (May, Err(io::Error::from_raw_os_error(libc::EAGAIN)));
    }
    // Another thread, in [`fork`], may reap it.
    let status = executed(caller.rng.u64(..)).status();
    (May, status.map(|_| 0))
}

/// This program, which continues with the files it inherits.
pub fn executed(seed: u64) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["hammer", "--executed", &seed.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}
