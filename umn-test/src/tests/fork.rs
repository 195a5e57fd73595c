// SPDX-License-Identifier: GPL-2.0

//! Files in other address spaces, and files that outlive their own: fork, vfork, exec, exit,
//! passing to another process.

use std::{
    env,
    os::{
        fd::{
            AsRawFd,
            FromRawFd,
            OwnedFd, //
        },
        unix::process::CommandExt, //
    },
    process::Command,
    thread,
    time::{
        Duration,
        Instant, //
    }, //
};

use super::prelude::*;

table! {
    fork_child_is_refused: "read and ioctl by a forked child give EPERM and consume nothing",
    fork_child_polls: "a forked child may poll",
    fork_child_sees_the_counter: "the inherited counter mapping stays live in the child",
    fork_child_changes_do_not_count: "changes by a forked child to its own memory do not count",
    fork_child_closes: "a forked child closes the file; the parent's still works",
    fork_child_opens_its_own: "a forked child's own file is bound to the child",
    fork_of_fork: "a grandchild gets EPERM, even after the child in between has ended",
    threads_share_the_file: "every thread may register, unregister and read",
    vfork_child_shares_the_file: "a vfork child may use the file, and its munmap counts",
    exec_of_the_opener: "after exec: POLLHUP, events, LAST, then end of file; ioctls fail",
    exec_in_a_child: "a program executed in a child gets EPERM while the opener lives",
    exec_closes: "O_CLOEXEC closes at exec",
    exit_with_events: "the opener exits: a holder reads the events, LAST, then end of file",
    exit_without_events: "the opener exits with nothing queued: end of file at once",
    exit_by_signal: "the opener is killed: a holder reads what was queued",
    exit_wakes_poll: "a poll in another process wakes up when the opener exits",
    exit_and_close: "closing after the opener's exit is clean, even with many regions and a mapping",
    passed_file_is_refused: "a process that was passed the file gets EPERM, and consumes nothing",
    passed_file_does_not_pin: "a passed file does not keep the opener's memory alive",
    passed_file_closed: "closing a passed file does not affect the opener or the receiver",
}

/// Expects every call of a stranger to give `EPERM`.
fn is_refused(device: &Device, area: &Guarded) -> Outcome {
    let eperm = |what, result| expect::error(what, result, libc::EPERM);
    let page = area.page(0);
    for size in [1, 4, 128] {
        eperm("read", device.read_events(size).map(drop))?;
    }
    eperm("REGISTER_REGION", device.register(page.start, page.end, 99))?;
    eperm("UNREGISTER_REGION", device.unregister(1))?;
    eperm("EXCHANGE_FEATURES", device.exchange_features(0).map(drop))
}

fn fork_child_is_refused() -> Outcome {
    for blocking in [false, true] {
        let area = Guarded::shared(2)?;
        let device = if blocking { open_blocking()? } else { open()? };
        let bench = Bench::over(device, area)?;
        bench.watch_pages()?;
        // With nothing to read, before and after the opener has found that out, and with an event.
        Child::fork(|_| is_refused(&bench.device, &bench.area))?.join()?;
        if !blocking {
            bench.is_silent()?;
            Child::fork(|_| is_refused(&bench.device, &bench.area))?.join()?;
        }
        bench.hit(0)?;
        bench.hit(1)?;
        Child::fork(|_| is_refused(&bench.device, &bench.area))?.join()?;
        bench.counts(2)?;
        let (first, second) = (inval(1, &bench.area.page(0)), inval(2, &bench.area.page(1)));
        bench.reads(&[first, second, last(2)])?;
        bench.device.unregister(1)?;
    }
    Ok(())
}

fn fork_child_polls() -> Outcome {
    let bench = Bench::over(open()?, Guarded::shared(1)?)?;
    bench.watch_pages()?;
    let child = Child::fork(|line| {
        let poll = |time| bench.device.poll(libc::POLLIN, time);
        expect::same("poll in the child", poll(Duration::ZERO)?, 0)?;
        line.tell()?;
        let seen = poll(Duration::from_secs(10))?;
        expect::same("poll in the child", seen, libc::POLLIN)
    })?;
    child.hear()?;
    bench.hit(0)?;
    child.join()?;
    bench.reads(&[inval(1, &bench.area.all()), last(1)])
}

fn fork_child_sees_the_counter() -> Outcome {
    let bench = Bench::over(open()?, Guarded::shared(1)?)?;
    bench.watch_pages()?;
    bench.hit(0)?;
    let child = Child::fork(|line| {
        for count in 1..=3 {
            bench.counts(count)?;
            line.tell()?;
            line.hear()?;
        }
        Ok(())
    })?;
    for _ in 0..3 {
        child.hear()?;
        bench.hit(0)?;
        child.tell()?;
    }
    child.join()?;
    bench.counts(4)
}

fn fork_child_changes_do_not_count() -> Outcome {
    let bench = Bench::new(3)?;
    bench.watch_pages()?;
    let child = Child::fork(|line| {
        line.hear()?;
        bench.hit(0)?;
        mem::unmap(&bench.area.page(1))?;
        mem::protect(&bench.area.page(2), libc::PROT_NONE)?;
        Ok(())
    })?;
    // Forking itself made private pages copy on write.
    bench.drain()?;
    let before = bench.counter.get();
    child.tell()?;
    child.join()?;
    bench.counts(before)?;
    bench.is_silent()
}

fn fork_child_closes() -> Outcome {
    let bench = Bench::over(open()?, Guarded::shared(1)?)?;
    bench.watch_pages()?;
    Child::fork(|_| {
        // SAFETY: The child does not use the file any more.
        check(unsafe { libc::close(bench.device.as_raw_fd()) })?;
        mem::unmap(&bench.area.all())?;
        Ok(())
    })?
    .join()?;
    bench.counts(0)?;
    bench.hit(0)?;
    bench.reads(&[inval(1, &bench.area.all()), last(1)])
}

fn fork_child_opens_its_own() -> Outcome {
    let bench = Bench::over(open()?, Guarded::shared(1)?)?;
    bench.watch_pages()?;
    Child::fork(|_| {
        // Shared memory at the same address, but each process has its own mapping.
        let own = Bench::over(open()?, Guarded::shared(1)?)?;
        let page = bench.area.all();
        own.watch(7, &page)?;
        mem::unmap(&page)?;
        own.reads(&[inval(7, &page), last(1)])?;
        bench.counts(0)
    })?
    .join()?;
    bench.counts(0)?;
    bench.is_silent()
}

fn fork_of_fork() -> Outcome {
    let bench = Bench::over(open()?, Guarded::shared(1)?)?;
    bench.watch_pages()?;
    let child = Child::fork(|_| {
        Child::fork(|_| is_refused(&bench.device, &bench.area))?.join()?;
        is_refused(&bench.device, &bench.area)
    })?;
    child.join()?;
    bench.hit(0)?;
    bench.reads(&[inval(1, &bench.area.all()), last(1)])
}

fn threads_share_the_file() -> Outcome {
    let bench = Bench::new(2)?;
    let in_a_thread = |work: &(dyn Fn() -> Outcome + Sync)| {
        thread::scope(|scope| scope.spawn(work).join().expect("the thread does not panic"))
    };
    in_a_thread(&|| bench.watch_pages())?;
    in_a_thread(&|| Ok(mem::unmap(&bench.area.page(0))?))?;
    bench.counts(1)?;
    in_a_thread(&|| bench.reads(&[inval(1, &bench.area.page(0)), last(1)]))?;
    in_a_thread(&|| Ok(bench.device.unregister(1)?))?;
    mem::unmap(&bench.area.page(1))?;
    in_a_thread(&|| bench.reads(&[inval(2, &bench.area.page(1)), last(2)]))
}

fn vfork_child_shares_the_file() -> Outcome {
    let bench = Bench::new(3)?;
    bench.watch(1, &bench.area.page(0))?;
    process::in_vfork_child(|| {
        bench.watch(2, &bench.area.page(1))?;
        mem::unmap(&bench.area.page(0))?;
        bench.counts(1)?;
        bench.reads(&[inval(1, &bench.area.page(0)), last(1)])?;
        bench.device.unregister(1)?;
        Ok(mem::unmap(&bench.area.page(1))?)
    })?;
    // The child has ended, but the address space has not.
    bench.counts(2)?;
    bench.reads(&[inval(2, &bench.area.page(1)), last(2)])?;
    bench.watch(3, &bench.area.page(2))?;
    mem::unmap(&bench.area.page(2))?;
    bench.reads(&[inval(3, &bench.area.page(2)), last(3)])
}

/// Executes this program with the file; it continues in [`executed`]. Returns only on error.
fn execute(name: &str, device: &Device, keep: bool) -> Outcome {
    let fd = device.as_raw_fd();
    if keep {
        // SAFETY: The call takes no pointer.
        check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) })?;
    }
    let error = Command::new(env::current_exe()?)
        .args(["--executed", name, &fd.to_string()])
        .exec();
    Err(error.into())
}

/// What the program started by [`execute`] does.
pub fn executed(name: &str, fd: &str) -> Outcome {
    let fd: i32 = fd
        .parse()
        .map_err(|_| Failure::new("arguments of the executed program", "a descriptor", fd))?;
    if name == "closed" {
        // SAFETY: The call takes no pointer.
        let result = check(unsafe { libc::fcntl(fd, libc::F_GETFD) });
        return expect::error("F_GETFD after exec", result, libc::EBADF);
    }
    // SAFETY: The executing program leaves the file to this one.
    let device = Device::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let area = Guarded::new(1)?;
    if name == "refused" {
        is_refused(&device, &area)
    } else {
        is_hung_up(&device, &area, &[1])
    }
}

/// Expects the address space of a file to be gone, with events queued for these cookies.
fn is_hung_up(device: &Device, area: &Guarded, cookies: &[u64]) -> Outcome {
    const HUNG_UP: i16 = libc::POLLIN | libc::POLLHUP;
    let gone = |what, result| expect::one_of(what, result, &[libc::EPERM, libc::ESRCH]);
    let poll = || device.poll(libc::POLLIN, Duration::ZERO);
    let page = area.page(0);
    gone("REGISTER_REGION", device.register(page.start, page.end, 99))?;
    gone("UNREGISTER_REGION", device.unregister(1))?;
    gone("EXCHANGE_FEATURES", device.exchange_features(0).map(drop))?;
    expect::same("poll", poll()?, HUNG_UP)?;

    for cookie in cookies {
        let events = device.read_events(1)?;
        let seen: Vec<u64> = events.iter().map(|e| e.user_cookie_counter).collect();
        expect::same("cookie of an event", seen, vec![*cookie])?;
    }
    if !cookies.is_empty() {
        expect::same("poll", poll()?, HUNG_UP)?;
        let events = device.read_events(4)?;
        expect::events("the last read", &events, &[last(cookies.len() as u64)])?;
    }
    for _ in 0..2 {
        expect::events("at the end", &device.read_events(4)?, &[])?;
        expect::same("poll at the end", poll()?, HUNG_UP)?;
    }
    Ok(())
}

fn exec_of_the_opener() -> Outcome {
    open()?;
    for blocking in [false, true] {
        Child::fork(|_| {
            let device = if blocking { open_blocking()? } else { open()? };
            let bench = Bench::over(device, Guarded::new(2)?)?;
            bench.watch_pages()?;
            bench.hit(0)?;
            execute("hung up", &bench.device, true)
        })?
        .join()?;
    }
    Ok(())
}

fn exec_in_a_child() -> Outcome {
    let bench = Bench::over(open()?, Guarded::shared(1)?)?;
    bench.watch_pages()?;
    bench.hit(0)?;
    Child::fork(|_| execute("refused", &bench.device, true))?.join()?;
    bench.counts(1)?;
    bench.reads(&[inval(1, &bench.area.all()), last(1)])?;
    bench.hit(0)?;
    bench.reads(&[inval(1, &bench.area.all()), last(2)])
}

fn exec_closes() -> Outcome {
    open()?;
    Child::fork(|_| {
        let bench = Bench::one_page()?;
        execute("closed", &bench.device, false)
    })?
    .join()
}

/// A child that opens a file, calls `prepare`, passes the file, and waits.
fn opener(prepare: impl FnOnce(&Bench) -> Outcome) -> Outcome<(Child, Device)> {
    open()?;
    let child = Child::fork(|line: &Channel| {
        let bench = Bench::new(3)?;
        bench.watch_pages()?;
        prepare(&bench)?;
        line.pass(&bench.device)?;
        Ok(line.hear()?)
    })?;
    let device = Device::from(child.receive()?);
    Ok((child, device))
}

/// Queues an event for each of regions 2 and 3.
fn two_events(bench: &Bench) -> Outcome {
    bench.hit(1)?;
    Ok(bench.hit(2)?)
}

fn exit_with_events() -> Outcome {
    let (child, device) = opener(two_events)?;
    child.tell()?;
    child.join()?;
    is_hung_up(&device, &Guarded::new(1)?, &[2, 3])
}

fn exit_without_events() -> Outcome {
    // Whether or not the opener has found the queue empty.
    for prepare in [|_: &Bench| Ok(()), Bench::is_silent] {
        let (child, device) = opener(prepare)?;
        child.tell()?;
        child.join()?;
        is_hung_up(&device, &Guarded::new(1)?, &[])?;
    }
    Ok(())
}

fn exit_by_signal() -> Outcome {
    let (child, device) = opener(two_events)?;
    child.signal(libc::SIGKILL)?;
    expect::same(
        "what ended the opener",
        child.ended_by()?,
        Some(libc::SIGKILL),
    )?;
    is_hung_up(&device, &Guarded::new(1)?, &[2, 3])
}

fn exit_wakes_poll() -> Outcome {
    let (child, device) = opener(|_| Ok(()))?;
    let seen = device.poll(libc::POLLIN, Duration::ZERO)?;
    expect::same("poll while the opener lives", seen, 0)?;
    let tid = process::Tid::default();
    let seen = thread::scope(|scope| -> Outcome<i16> {
        let waiter = scope.spawn(|| {
            tid.set();
            device.poll(libc::POLLIN, Duration::from_secs(20))
        });
        tid.asleep_in(libc::SYS_poll)?;
        child.tell()?;
        Ok(waiter.join().expect("the waiter does not panic")?)
    })?;
    expect::same("poll", seen, libc::POLLIN | libc::POLLHUP)?;
    child.join()
}

fn exit_and_close() -> Outcome {
    open()?;
    for events in [false, true] {
        let (line, its_line) = Channel::pair()?;
        let opener = Child::fork(|_| {
            let bench = Bench::over(open()?, Guarded::shared(1)?)?;
            for cookie in 0..1000 {
                bench.watch(cookie, &bench.area.page(0))?;
            }
            if events {
                bench.hit(0)?;
            }
            // It inherits the file and the mapping.
            let holder = Child::fork(|opener| {
                let at_its_end = || {
                    bench.counts(events.into())?;
                    let fd = bench.device.as_raw_fd();
                    // SAFETY: The file is not used any more.
                    check(unsafe { libc::close(fd) })?;
                    bench.counts(events.into())
                };
                // The opener has ended by now.
                let _ = opener.hear();
                its_line.tell_number(at_its_end().is_ok().into())?;
                Ok(())
            })?;
            std::mem::forget(holder);
            // SAFETY: Ends the process, with the file open.
            unsafe { libc::_exit(0) }
        })?;
        opener.join()?;
        expect::same("the counter, when it has ended", line.hear_number()?, 1)?;
    }
    Bench::one_page()?.counts(0)
}

fn passed_file_is_refused() -> Outcome {
    let bench = Bench::new(1)?;
    bench.watch_pages()?;
    let child = Child::fork(|line| {
        // As after a fork, but with another descriptor.
        let device = Device::from(line.receive()?);
        is_refused(&device, &Guarded::new(1)?)
    })?;
    bench.drain()?;
    bench.hit(0)?;
    let counter = bench.counter.get();
    child.pass(&bench.device)?;
    child.join()?;
    bench.reads(&[inval(1, &bench.area.all()), last(counter)])
}

fn passed_file_does_not_pin() -> Outcome {
    let file = mem::memory_file(1)?;
    let (child, device) = opener(|_| {
        Guarded::of_file(&file, 1)?;
        Ok(())
    })?;
    // A file that has a writable mapping cannot be sealed.
    let seal = || {
        // SAFETY: The call takes no pointer.
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) })
    };
    expect::error("sealing what the opener has mapped", seal(), libc::EBUSY)?;
    child.tell()?;
    child.join()?;
    let end = Instant::now() + Duration::from_secs(2);
    while seal().is_err() {
        let late = Instant::now() > end;
        expect::that("the opener's memory", !late, "it freed", "it kept")?;
    }
    is_hung_up(&device, &Guarded::new(1)?, &[])
}

fn passed_file_closed() -> Outcome {
    let child = Child::fork(|line| {
        let device = Device::from(line.receive()?);
        // Memory of the receiver, possibly at the address of the opener's region.
        let own = Guarded::new(16)?;
        drop(device);
        for page in 0..own.pages() {
            let seen = mem::read_byte(own.page(page).start);
            expect::same("the receiver's memory", seen, Guarded::content(page))?;
        }
        Ok(())
    })?;
    let bench = Bench::new(16)?;
    bench.watch_pages()?;
    child.pass(&bench.device)?;
    child.join()?;
    bench.counts(0)?;
    bench.hit(3)?;
    bench.reads(&[inval(4, &bench.area.page(3)), last(1)])
}
