// SPDX-License-Identifier: GPL-2.0

//! Waiting by means other than read: poll, select, epoll.

use std::{
    io,
    mem::zeroed,
    os::fd::{
        AsRawFd,
        FromRawFd,
        OwnedFd, //
    },
    ptr,
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
    thread,
    time::Duration, //
};

use super::prelude::*;
use crate::harness;

table! {
    poll_reports_readable: "POLLIN and POLLRDNORM when a read would return something",
    poll_on_a_blocking_file: "poll works the same on a blocking file",
    poll_wakes: "poll sleeps until there is an event",
    poll_wakes_many: "one event wakes forty sleepers, each with or without an epoll set",
    poll_and_close: "closing the file while another thread polls it",
    select_reports_readable: "select",
    epoll_level: "level-triggered epoll reports while there is something to read",
    epoll_edge: "edge-triggered epoll reports the first event after each read",
    epoll_edge_of_another: "a set that is added is notified of the next event, though nobody has read",
    epoll_edge_loses_nothing: "reading up to LAST at each edge reads everything in the end",
    epoll_exclusive: "exclusive waiters are all woken, so none sleeps while there is something to read",
    poll_multishot: "a multishot poll of io_uring reports the first event after each read",
    epoll_wakes: "epoll_wait sleeps until there is an event",
    epoll_and_close: "closing a file that epoll watches, then changing the memory",
}

const READABLE: i16 = libc::POLLIN | libc::POLLRDNORM;

/// What poll reports at once.
fn polled(device: &Device) -> io::Result<i16> {
    device.poll(READABLE | libc::POLLOUT | libc::POLLPRI, Duration::ZERO)
}

/// The states of a queue, and what poll reports in each.
fn check_poll(bench: &Bench) -> Outcome {
    let is = |what, expected| expect::same(what, polled(&bench.device)?, expected);
    is("poll at first", 0)?;
    bench.watch_pages()?;
    is("poll after REGISTER_REGION", 0)?;
    bench.hit(0)?;
    is("poll with an event", READABLE)?;
    is("poll again", READABLE)?;
    bench.device.read_events(1)?;
    is("poll with LAST pending", READABLE)?;
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

/// A timeout that is reached only if a wake-up was lost.
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

fn poll_wakes_many() -> Outcome {
    /// More than a change wakes directly.
    const SLEEPERS: usize = 40;
    let bench = Bench::one_page()?;
    for round in 1..=3 {
        let tids: Vec<Tid> = (0..SLEEPERS).map(|_| Tid::default()).collect();
        thread::scope(|scope| {
            let device = &bench.device;
            let sleepers: Vec<_> = (0..)
                .zip(&tids)
                .map(|(number, tid)| {
                    scope.spawn(move || -> Outcome {
                        let epoll = Epoll::of(device, libc::EPOLLIN)?;
                        tid.set();
                        let seen = if number % 2 == 0 {
                            device.poll(libc::POLLIN, LONG)? as u32
                        } else {
                            epoll.wait(LONG)?
                        };
                        expect::same("a sleeper", seen, libc::POLLIN as u32)
                    })
                })
                .collect();
            for (number, tid) in (0..).zip(&tids) {
                tid.asleep_in([libc::SYS_poll, libc::SYS_epoll_wait][number % 2])?;
            }
            bench.hit(0)?;
            sleepers
                .into_iter()
                .try_for_each(|sleeper| sleeper.join().expect("the sleeper does not panic"))
        })?;
        bench.reads(&[inval(1, &bench.area.all()), last(round)])?;
    }
    Ok(())
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
    bench.reads(&[inval(1, &bench.area.all()), last(1)])?;
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

    /// Waits; returns what is reported for the file, or 0 on timeout.
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
    is("epoll with LAST pending", libc::EPOLLIN)?;
    bench.reads(&[last(1)])?;
    is("epoll with nothing left", 0)
}

fn epoll_edge() -> Outcome {
    let bench = Bench::new(2)?;
    bench.watch_pages()?;
    let epoll = Epoll::of(&bench.device, libc::EPOLLIN | libc::EPOLLET)?;
    let is = |what, expected: i32| expect::same(what, epoll.wait(Duration::ZERO)?, expected as u32);
    let (first, second) = (inval(1, &bench.area.page(0)), inval(2, &bench.area.page(1)));
    is("epoll at first", 0)?;
    for round in 0..3 {
        bench.hit(0)?;
        is("epoll with an event", libc::EPOLLIN)?;
        is("epoll again", 0)?;
        bench.hit(1)?;
        is("epoll with another event, before a read", 0)?;
        // Any read arms the next edge, even if it leaves something.
        expect::events("read", &bench.device.read_events(1)?, &[first])?;
        is("epoll after a partial read", 0)?;
        bench.hit(0)?;
        is("epoll with an event after that", libc::EPOLLIN)?;
        bench.reads(&[second, first, last(4 * round + 3)])?;
        // So does one that returns only LAST.
        bench.hit(0)?;
        is("epoll with an event", libc::EPOLLIN)?;
        expect::events("read", &bench.device.read_events(1)?, &[first])?;
        bench.reads(&[last(4 * round + 4)])?;
        is("epoll after the last read", 0)?;
    }
    Ok(())
}

fn epoll_edge_of_another() -> Outcome {
    let bench = Bench::one_page()?;
    let edge = || Epoll::of(&bench.device, libc::EPOLLIN | libc::EPOLLET);
    let is = |what, set: &Epoll, expected: i32| {
        expect::same(what, set.wait(Duration::ZERO)?, expected as u32)
    };
    let first = edge()?;
    bench.hit(0)?;
    is("the first set with an event", &first, libc::EPOLLIN)?;
    bench.hit(0)?;
    is("the first set with another, before a read", &first, 0)?;
    let second = edge()?;
    is("the second set when it is added", &second, libc::EPOLLIN)?;
    is("the second set again", &second, 0)?;
    bench.hit(0)?;
    is("the second set with an event", &second, libc::EPOLLIN)?;
    bench.hit(0)?;
    is("the second set with another, before a read", &second, 0)
}

/// Changes mappings repeatedly, while `ready` indicates when there is something to read; expects
/// that everything was read in the end.
///
/// `ready` returns whether there may be something; if not, it has waited for a long time without
/// being notified.
pub(super) fn loses_nothing(bench: &Bench, mut ready: impl FnMut() -> Outcome<bool>) -> Outcome {
    const CHANGES: u64 = 3000;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let changer = scope.spawn(|| {
            for change in harness::rounds_soon(CHANGES) {
                bench.hit(change % bench.area.pages())?;
                if change % 16 == 0 {
                    // So that the reader catches up at times.
                    thread::sleep(Duration::from_micros(change % 300));
                }
            }
            done.store(true, Ordering::Release);
            Outcome::Ok(())
        });
        let mut counted = 0;
        loop {
            let ends = done.load(Ordering::Acquire);
            if !ready()? {
                let counter = bench.counter.get();
                let seen = format!("LAST with {counted}, then no notification");
                // Unless the counter is moving right now.
                let sees_all = counted == counter || !done.load(Ordering::Acquire);
                expect::that("the end", sees_all, format_args!("{counter}"), seen)?;
                if ends {
                    return changer.join().expect("the thread does not panic");
                }
            }
            loop {
                let events = read_if_any(&bench.device, 16)?;
                match events.last() {
                    Some(event) if event.kind == EVENT_LAST => counted = event.user_cookie_counter,
                    Some(_) => {}
                    None => break,
                }
            }
        }
    })
}

/// How long to wait for a notification that was lost.
pub(super) const NOTIFICATION: Duration = Duration::from_secs(1);

/// Pages with so many regions that a read takes several steps.
pub(super) fn crowded_pages() -> Outcome<Bench> {
    let bench = Bench::new(4)?;
    for cookie in 0..400 {
        bench.watch(cookie, &bench.area.page(cookie % 4))?;
    }
    Ok(bench)
}

fn epoll_edge_loses_nothing() -> Outcome {
    let bench = crowded_pages()?;
    let epoll = Epoll::of(&bench.device, libc::EPOLLIN | libc::EPOLLET)?;
    loses_nothing(&bench, || Ok(epoll.wait(NOTIFICATION)? != 0))
}

fn epoll_exclusive() -> Outcome {
    const SETS: usize = 2;
    let bench = Bench::one_page()?;
    for round in 1..=5 {
        let tids: [Tid; SETS] = Default::default();
        thread::scope(|scope| {
            let device = &bench.device;
            let sleepers = tids.each_ref().map(|tid| {
                scope.spawn(move || -> Outcome<u32> {
                    let epoll = Epoll::of(device, libc::EPOLLIN | libc::EPOLLEXCLUSIVE)?;
                    tid.set();
                    Ok(epoll.wait(LONG)?)
                })
            });
            for tid in &tids {
                tid.asleep_in(libc::SYS_epoll_wait)?;
            }
            bench.hit(0)?;
            for sleeper in sleepers {
                let seen = sleeper.join().expect("the sleeper does not panic")?;
                expect::same("epoll", seen, libc::EPOLLIN as u32)?;
            }
            Outcome::Ok(())
        })?;
        bench.reads(&[inval(1, &bench.area.all()), last(round)])?;
    }
    Ok(())
}

#[cfg(not(target_pointer_width = "64"))]
fn poll_multishot() -> Outcome {
    Err(Failure::Skipped("the crate io-uring is for 64 bits".into()))
}

#[cfg(target_pointer_width = "64")]
fn poll_multishot() -> Outcome {
    use io_uring::{
        opcode,
        types::{
            Fd,
            SubmitArgs,
            Timespec, //
        },
        IoUring, //
    };

    let bench = Bench::one_page()?;
    let page = bench.area.all();
    let mut ring = IoUring::new(4).or_skip("io_uring")?;
    let fd = Fd(bench.device.as_raw_fd());
    let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true);
    // SAFETY: The entry has no buffer.
    unsafe { ring.submission().push(&poll.build()) }.expect("the queue has room");
    ring.submit()?;
    let mut completions = |time: Duration| -> Outcome<usize> {
        let time = Timespec::from(time);
        let arguments = SubmitArgs::new().timespec(&time);
        match ring.submitter().submit_with_args(1, &arguments) {
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => {}
            result => drop(result?),
        }
        let done: Vec<_> = ring.completion().collect();
        for entry in &done {
            expect::same(
                "events",
                entry.result() & i32::from(READABLE),
                libc::POLLIN.into(),
            )?;
            let more = io_uring::cqueue::more(entry.flags());
            expect::that("the poll", more, "more completions", "its end")?;
        }
        Ok(done.len())
    };
    const SHORT: Duration = Duration::from_millis(20);
    expect::same("completions at first", completions(SHORT)?, 0)?;
    for round in 0..3 {
        bench.hit(0)?;
        expect::same("completions with an event", completions(LONG)?, 1)?;
        bench.hit(0)?;
        expect::same(
            "completions with another, before a read",
            completions(SHORT)?,
            0,
        )?;
        bench.reads(&[whole(1, &page), last(2 * round + 2)])?;
        expect::same("completions with nothing left", completions(SHORT)?, 0)?;
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

    // The set still works.
    let next = Bench::one_page()?;
    epoll.add(&next.device, libc::EPOLLIN)?;
    next.hit(0)?;
    let wanted = libc::EPOLLIN as u32;
    expect::same("epoll, with another file", epoll.wait(LONG)?, wanted)
}
