// SPDX-License-Identifier: GPL-2.0

//! SIGIO, and other signals that a file sends.

use std::{
    io,
    mem::zeroed,
    os::fd::AsRawFd,
    ptr, //
};

use super::{
    poll::{
        crowded_pages,
        loses_nothing,
        NOTIFICATION, //
    },
    prelude::*, //
};
use crate::signals::Caught;

table! {
    sigio_once_until_read: "F_SETOWN and O_ASYNC: SIGIO on the first event after each read",
    sigio_loses_nothing: "reading up to LAST at each SIGIO reads everything in the end",
    sigio_with_information: "F_SETSIG: the chosen signal, with POLL_IN and the descriptor",
    sigio_switched_off: "no signal after O_ASYNC is cleared",
    sigio_and_close: "closing a file with O_ASYNC set",
}

/// `F_SETSIG` of `asm-generic/fcntl.h`, which the crate `libc` lacks.
const F_SETSIG: i32 = 10;

/// Requests signals on events: a chosen signal with information, or `SIGIO`.
fn ask_for_signals(device: &Device, own: Option<i32>) -> io::Result<()> {
    let fd = device.as_raw_fd();
    // SAFETY: The calls take no pointers.
    unsafe {
        check(libc::fcntl(fd, libc::F_SETOWN, libc::getpid()))?;
        if let Some(signal) = own {
            check(libc::fcntl(fd, F_SETSIG, signal))?;
        }
        check(libc::fcntl(
            fd,
            libc::F_SETFL,
            libc::O_NONBLOCK | libc::O_ASYNC,
        ))?;
    }
    Ok(())
}

fn sigio_once_until_read() -> Outcome {
    let bench = Bench::new(2)?;
    bench.watch_pages()?;
    signals::catch_signal(libc::SIGIO, 0)?;
    let is = |what, expected| expect::same(what, signals::caught().count, expected);
    bench.hit(0)?;
    is("signals before O_ASYNC", 0)?;
    ask_for_signals(&bench.device, None)?;
    // What is there already when O_ASYNC is set causes no signal.
    bench.hit(0)?;
    is("signals with an event", 1)?;
    bench.hit(0)?;
    bench.hit(1)?;
    is("signals with others, before a read", 1)?;
    bench.device.read_events(1)?;
    is("signals after a partial read", 1)?;
    bench.hit(1)?;
    is("signals with an event after that", 2)?;
    bench.hit(1)?;
    is("signals with another, before a read", 2)?;
    bench.reads(&[whole(2, &bench.area.page(1)), last(6)])?;
    for count in 3..=6 {
        bench.hit(0)?;
        is("signals with an event", count)?;
        bench.hit(1)?;
        is("signals with another, before a read", count)?;
        bench.device.read_events(8)?;
    }
    // A change that hits nothing causes no signal, and does not use up the one that is due.
    bench.device.unregister(1)?;
    bench.hit(0)?;
    is("signals", 6)?;
    bench.hit(1)?;
    is("signals", 7)?;
    // The queue is empty, but LAST is still to be read.
    bench.device.unregister(2)?;
    bench.watch(1, &bench.area.page(0))?;
    bench.hit(0)?;
    is("signals", 7)?;
    bench.device.read_events(8)?;
    bench.hit(0)?;
    is("signals", 8)?;
    // A stranger's read does not count.
    Child::fork(|_| expect::error("read", bench.device.read_events(4), libc::EPERM))?.join()?;
    is("signals, after the fork has hit everything", 8)
}

fn sigio_loses_nothing() -> Outcome {
    let bench = crowded_pages()?;
    // SAFETY: All-zero bytes are an empty set.
    let mut signals: libc::sigset_t = unsafe { zeroed() };
    // SAFETY: The set is valid. All other threads block the signal.
    unsafe {
        libc::sigaddset(&mut signals, libc::SIGIO);
        check(libc::sigprocmask(
            libc::SIG_BLOCK,
            &signals,
            ptr::null_mut(),
        ))?;
    }
    ask_for_signals(&bench.device, None)?;
    let time = libc::timespec {
        tv_sec: NOTIFICATION.as_secs() as _,
        tv_nsec: 0,
    };
    loses_nothing(&bench, || {
        // SAFETY: The set and the time are valid.
        match check(unsafe { libc::sigtimedwait(&signals, ptr::null_mut(), &time) }) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    })
}

fn sigio_with_information() -> Outcome {
    /// `POLL_IN` of `asm-generic/siginfo.h`, which the crate `libc` lacks.
    const POLL_IN: i32 = 1;
    let bench = Bench::one_page()?;
    let signal = libc::SIGRTMIN() + 3;
    signals::catch_signal(signal, 0)?;
    ask_for_signals(&bench.device, Some(signal))?;
    bench.hit(0)?;
    let wanted = Caught {
        count: 1,
        code: POLL_IN,
        fd: bench.device.as_raw_fd(),
    };
    expect::same("the signal", signals::caught(), wanted)
}

fn sigio_switched_off() -> Outcome {
    let bench = Bench::one_page()?;
    signals::catch_signal(libc::SIGIO, 0)?;
    ask_for_signals(&bench.device, None)?;
    bench.hit(0)?;
    expect::same("signals", signals::caught().count, 1)?;
    // SAFETY: The call takes no pointer.
    check(unsafe { libc::fcntl(bench.device.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
    bench.hit(0)?;
    bench.hit(0)?;
    expect::same("signals", signals::caught().count, 1)
}

fn sigio_and_close() -> Outcome {
    signals::catch_signal(libc::SIGIO, 0)?;
    let Bench {
        device,
        counter,
        area,
    } = Bench::one_page()?;
    ask_for_signals(&device, None)?;
    drop(counter);
    drop(device);
    mem::unmap(&area.all())?;
    expect::same("signals after close", signals::caught().count, 0)
}
