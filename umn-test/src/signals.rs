// SPDX-License-Identifier: GPL-2.0

//! Signals: caught in this process, and sent to its threads.

use std::{
    ffi::c_void,
    io,
    mem,
    ptr,
    sync::atomic::{
        AtomicI32,
        Ordering, //
    },
    time::Duration, //
};

use crate::device::check;

/// The number of signals [`catch_signal`] has caught.
static SIGNALS: AtomicI32 = AtomicI32::new(0);

/// `si_code` and `si_fd` of the last signal.
static SIGNAL_CODE: AtomicI32 = AtomicI32::new(0);
static SIGNAL_FD: AtomicI32 = AtomicI32::new(-1);

/// The signals that [`catch_signal`] has caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caught {
    /// The number of signals.
    pub count: i32,
    /// `si_code` of the last one.
    pub code: i32,
    /// `si_fd` of the last one, if it has one.
    pub fd: i32,
}

/// Catches a signal from now on, with these flags (`SA_RESTART` or none).
pub fn catch_signal(signal: i32, flags: i32) -> io::Result<()> {
    /// The part of `siginfo_t` that is valid for SIGIO.
    #[repr(C)]
    struct PollInfo {
        common: [i32; 3],
        band: libc::c_long,
        fd: i32,
    }
    extern "C" fn count_signal(_: i32, info: *const libc::siginfo_t, _: *mut c_void) {
        // SAFETY: The kernel passes a valid `siginfo_t`, which is larger than the part read here.
        let (code, fd) = unsafe { ((*info).si_code, (*info.cast::<PollInfo>()).fd) };
        SIGNAL_CODE.store(code, Ordering::Relaxed);
        SIGNAL_FD.store(fd, Ordering::Relaxed);
        SIGNALS.fetch_add(1, Ordering::Release);
    }
    // SAFETY: All-zero bytes are a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_flags = flags | libc::SA_SIGINFO;
    action.sa_sigaction = count_signal as extern "C" fn(_, _, _) as usize;
    // SAFETY: The handler is async-signal-safe.
    check(unsafe { libc::sigaction(signal, &action, ptr::null_mut()) }).map(drop)
}

/// The signals caught so far.
pub fn caught() -> Caught {
    Caught {
        count: SIGNALS.load(Ordering::Acquire),
        code: SIGNAL_CODE.load(Ordering::Relaxed),
        fd: SIGNAL_FD.load(Ordering::Relaxed),
    }
}

/// Makes `SIGALRM` arrive at this interval, which is below a second, or stops it.
pub fn set_timer(interval: Duration) -> io::Result<()> {
    let time = libc::timeval {
        tv_sec: 0,
        tv_usec: interval.as_micros() as libc::suseconds_t,
    };
    let timer = libc::itimerval {
        it_interval: time,
        it_value: time,
    };
    // SAFETY: `timer` is valid.
    check(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut()) }).map(drop)
}

/// Sends a signal to a thread of this process.
pub fn signal_thread(tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: The call takes no pointer.
    check(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal) }).map(drop)
}
