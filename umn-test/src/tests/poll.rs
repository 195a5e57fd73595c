// SPDX-License-Identifier: GPL-2.0

//! Waiting by other means than read: poll, select, epoll, SIGIO.

use std::{
    io,
    mem::zeroed,
    os::fd::{
        AsRawFd,
        FromRawFd,
        OwnedFd, //
    },
    ptr,
    thread,
    time::Duration, //
};

use super::prelude::*;

table! {
    poll_reports_readable: "POLLIN and POLLRDNORM when a read would return something",
    poll_on_a_blocking_file: "poll is no different on a file that blocks",
    poll_wakes: "poll sleeps until an event comes",
    poll_and_close: "closing the file while another thread polls it",
    select_reports_readable: "select",
    epoll_level: "level-triggered epoll reports as long as something is there",
    epoll_edge: "edge-triggered epoll reports each event once",
    epoll_wakes: "epoll_wait sleeps until an event comes",
    epoll_and_close: "closing a file that epoll watches, and changing the memory later",
    sigio_on_every_event: "F_SETOWN and O_ASYNC: SIGIO on every event",
    sigio_with_information: "F_SETSIG: the signal of choice, with POLL_IN and the descriptor",
    sigio_switched_off: "no signal after O_ASYNC is cleared",
    sigio_and_close: "closing a file with O_ASYNC set",
}

const READABLE: i16 = libc::POLLIN | libc::POLLRDNORM;

/// What poll says at once.
fn polled(device: &Device) -> io::Result<i16> {
    device.poll(READABLE | libc::POLLOUT | libc::POLLPRI, Duration::ZERO)
}

/// The states of a queue, and what poll says in each.
fn check_poll(bench: &Bench) -> Outcome {
    let is = |what, expected| expect::same(what, polled(&bench.device)?, expected);
    is("poll at first", 0)?;
    bench.watch_pages()?;
    is("poll after REGISTER_REGION", 0)?;
    bench.hit(0)?;
    is("poll with an event", READABLE)?;
    is("poll again", READABLE)?;
    bench.device.read_events(1)?;
    is("poll with LAST owed", READABLE)?;
    bench.reads(&[last(1)])?;
    is("poll with nothing left", 0)?;
    bench.hit(0)?;
    is("poll with the next event", READABLE)?;
    bench.device.unregister(1)?;
    is("poll after UNREGISTER_REGION", READABLE)?;
    bench.reads(&[last(2)])?;
    is("poll with nothing left", 0)
}

fn poll_reports_readable() -> Outcome {
    check_poll(&Bench::new(1)?)
}

fn poll_on_a_blocking_file() -> Outcome {
    check_poll(&Bench::blocking(1)?)
}

/// A time that is over only where a wake-up went missing.
const LONG: Duration = Duration::from_secs(20);

fn poll_wakes() -> Outcome {
    let bench = Bench::one_page()?;
    let tid = Tid::default();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            tid.set();
            bench.device.poll(READABLE, LONG)
        });
        tid.asleep_in(libc::SYS_poll)?;
        bench.hit(0)?;
        let seen = waiter.join().expect("the waiter does not panic")?;
        expect::same("poll", seen, READABLE)
    })
}

fn poll_and_close() -> Outcome {
    let bench = Bench::one_page()?;
    let fd = bench.device.as_raw_fd();
    let tid = Tid::default();
    thread::scope(|scope| {
        let tid = &tid;
        let waiter = scope.spawn(move || {
            tid.set();
            let mut poll = libc::pollfd {
                fd,
                events: READABLE,
                revents: 0,
            };
            // SAFETY: `poll` is one valid `pollfd`.
            check(unsafe { libc::poll(&mut poll, 1, LONG.as_millis() as i32) })?;
            io::Result::Ok(poll.revents)
        });
        tid.asleep_in(libc::SYS_poll)?;
        let Bench {
            device,
            counter,
            area,
        } = bench;
        drop(device);
        // The sleeping poll holds the file, so the event still wakes it; then it finds no file.
        mem::unmap(&area.all())?;
        let seen = waiter.join().expect("the waiter does not panic")?;
        expect::same("poll", seen, libc::POLLNVAL)?;
        expect::same("the counter", counter.get(), 1)
    })
}

fn select_reports_readable() -> Outcome {
    let bench = Bench::one_page()?;
    let fd = bench.device.as_raw_fd();
    let select = || -> io::Result<(bool, bool)> {
        // SAFETY: All-zero bytes are valid sets and a valid time.
        let (mut read, mut write, mut time): (libc::fd_set, libc::fd_set, libc::timeval) =
            unsafe { zeroed() };
        // SAFETY: All pointers are to valid values, and `fd` fits into a set.
        unsafe {
            libc::FD_SET(fd, &mut read);
            check(libc::select(
                fd + 1,
                &mut read,
                &mut write,
                ptr::null_mut(),
                &mut time,
            ))?;
            Ok((libc::FD_ISSET(fd, &read), libc::FD_ISSET(fd, &write)))
        }
    };
    expect::same("select at first", select()?, (false, false))?;
    bench.hit(0)?;
    expect::same("select with an event", select()?, (true, false))?;
    bench.reads(&[hit(1, &bench.area.all()), last(1)])?;
    expect::same("select with nothing left", select()?, (false, false))
}

/// An epoll set with one file in it.
struct Epoll(OwnedFd);

impl Epoll {
    fn of(device: &Device, events: i32) -> io::Result<Self> {
        // SAFETY: The call takes no pointer.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: The file was just opened and is nobody else's.
        let set = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        set.add(device, events)?;
        Ok(set)
    }

    fn add(&self, device: &Device, events: i32) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: events as u32,
            u64: 42,
        };
        let (fd, added) = (self.0.as_raw_fd(), device.as_raw_fd());
        // SAFETY: `event` is valid.
        check(unsafe { libc::epoll_ctl(fd, libc::EPOLL_CTL_ADD, added, &mut event) })?;
        Ok(())
    }

    /// Waits; returns what is reported for the file, 0 when time ran out.
    fn wait(&self, time: Duration) -> io::Result<u32> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        let fd = self.0.as_raw_fd();
        // SAFETY: `event` has room for one event.
        check(unsafe { libc::epoll_wait(fd, &mut event, 1, time.as_millis() as i32) })?;
        Ok(event.events)
    }
}

fn epoll_level() -> Outcome {
    let bench = Bench::one_page()?;
    let epoll = Epoll::of(&bench.device, libc::EPOLLIN)?;
    let is = |what, expected: i32| expect::same(what, epoll.wait(Duration::ZERO)?, expected as u32);
    is("epoll at first", 0)?;
    bench.hit(0)?;
    is("epoll with an event", libc::EPOLLIN)?;
    is("epoll again", libc::EPOLLIN)?;
    bench.device.read_events(1)?;
    is("epoll with LAST owed", libc::EPOLLIN)?;
    bench.reads(&[last(1)])?;
    is("epoll with nothing left", 0)
}

fn epoll_edge() -> Outcome {
    let bench = Bench::new(2)?;
    bench.watch_pages()?;
    let epoll = Epoll::of(&bench.device, libc::EPOLLIN | libc::EPOLLET)?;
    let is = |what, expected: i32| expect::same(what, epoll.wait(Duration::ZERO)?, expected as u32);
    is("epoll at first", 0)?;
    for round in 1..=3 {
        bench.hit(0)?;
        is("epoll with an event", libc::EPOLLIN)?;
        is("epoll again", 0)?;
        // Without a read in between.
        bench.hit(1)?;
        is("epoll with another event", libc::EPOLLIN)?;
        is("epoll again", 0)?;
        let (first, second) = (hit(1, &bench.area.page(0)), hit(2, &bench.area.page(1)));
        bench.reads(&[first, second, last(2 * round)])?;
    }
    Ok(())
}

fn epoll_wakes() -> Outcome {
    let bench = Bench::one_page()?;
    let epoll = Epoll::of(&bench.device, libc::EPOLLIN | libc::EPOLLRDNORM)?;
    let tid = Tid::default();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            tid.set();
            epoll.wait(LONG)
        });
        tid.asleep_in(libc::SYS_epoll_wait)?;
        bench.hit(0)?;
        let seen = waiter.join().expect("the waiter does not panic")?;
        let wanted = libc::EPOLLIN | libc::EPOLLRDNORM;
        expect::same("epoll", seen, wanted as u32)
    })
}

fn epoll_and_close() -> Outcome {
    let Bench {
        device,
        counter,
        area,
    } = Bench::one_page()?;
    let epoll = Epoll::of(&device, libc::EPOLLIN)?;
    drop(counter);
    drop(device);
    mem::unmap(&area.all())?;
    expect::same("epoll", epoll.wait(Duration::from_millis(10))?, 0)?;

    // The set is as good as before.
    let next = Bench::one_page()?;
    epoll.add(&next.device, libc::EPOLLIN)?;
    next.hit(0)?;
    let wanted = libc::EPOLLIN as u32;
    expect::same("epoll, with another file", epoll.wait(LONG)?, wanted)
}

/// `F_SETSIG` of `asm-generic/fcntl.h`, which the crate `libc` lacks.
const F_SETSIG: i32 = 10;

/// Asks for signals at events; an own signal with its information in place of `SIGIO`, if given.
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

fn sigio_on_every_event() -> Outcome {
    let bench = Bench::new(2)?;
    bench.watch_pages()?;
    process::catch_signal(libc::SIGIO, 0)?;
    bench.hit(0)?;
    expect::same("signals unasked", process::caught().count, 0)?;
    ask_for_signals(&bench.device, None)?;
    for count in 1..=10 {
        // Some of these find a queue that is not empty.
        bench.hit((count / 2 % 2) as u64)?;
        expect::same("signals", process::caught().count, count)?;
        if count % 3 == 0 {
            bench.device.read_events(8)?;
        }
    }
    // What hits nothing does not signal.
    bench.device.unregister(1)?;
    bench.hit(0)?;
    expect::same("signals", process::caught().count, 10)
}

fn sigio_with_information() -> Outcome {
    /// `POLL_IN` of `asm-generic/siginfo.h`, which the crate `libc` lacks.
    const POLL_IN: i32 = 1;
    let bench = Bench::one_page()?;
    let signal = libc::SIGRTMIN() + 3;
    process::catch_signal(signal, 0)?;
    ask_for_signals(&bench.device, Some(signal))?;
    bench.hit(0)?;
    let wanted = process::Caught {
        count: 1,
        code: POLL_IN,
        fd: bench.device.as_raw_fd(),
    };
    expect::same("the signal", process::caught(), wanted)
}

fn sigio_switched_off() -> Outcome {
    let bench = Bench::one_page()?;
    process::catch_signal(libc::SIGIO, 0)?;
    ask_for_signals(&bench.device, None)?;
    bench.hit(0)?;
    expect::same("signals", process::caught().count, 1)?;
    // SAFETY: The call takes no pointer.
    check(unsafe { libc::fcntl(bench.device.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })?;
    bench.hit(0)?;
    bench.hit(0)?;
    expect::same("signals", process::caught().count, 1)
}

fn sigio_and_close() -> Outcome {
    process::catch_signal(libc::SIGIO, 0)?;
    let Bench {
        device,
        counter,
        area,
    } = Bench::one_page()?;
    ask_for_signals(&device, None)?;
    drop(counter);
    drop(device);
    mem::unmap(&area.all())?;
    expect::same("signals after close", process::caught().count, 0)
}
