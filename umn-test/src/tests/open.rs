// SPDX-License-Identifier: GPL-2.0

//! Opening the device, and several open files.

use std::{
    ffi::CString,
    fs,
    io,
    os::{
        fd::{
            AsRawFd,
            FromRawFd,
            OwnedFd, //
        },
        unix::fs::{
            FileTypeExt,
            PermissionsExt, //
        },
    },
    thread, //
};

use super::prelude::*;

table! {
    open_read_only: "O_RDONLY opens, blocking or not",
    open_write_modes: "any write mode gives EINVAL",
    open_node: "the node is a character device called ummunotify that every user may open",
    open_as_ordinary_user: "an unprivileged process can open it and gets its events",
    open_interrupted: "open does not fail if a signal arrives",
    open_by_io_uring: "io_uring opens it while signals arrive, and no open fails",
    open_many_files: "256 files in one process, each with a region, all hit by one munmap",
    open_files_are_independent: "cookies, events, LAST and counters of two files are separate",
    open_same_inode_other_state: "a duplicated descriptor shares the file's state, a second open does not",
    open_close_on_exec_flag: "O_CLOEXEC is honoured",
    close_with_regions: "closing with 1000 regions and queued events, then changing the memory",
    close_while_mapped: "a mapping of the counter keeps the file: it still counts after close",
}

/// Opens the device with the given flags.
fn open_flags(flags: i32) -> io::Result<Device> {
    let path = CString::new(device::PATH)?;
    // SAFETY: `path` is a C string.
    let fd = check(unsafe { libc::open(path.as_ptr(), flags) })?;
    // SAFETY: The file was just opened and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

fn descriptor_flags(device: &Device) -> io::Result<i32> {
    // SAFETY: The call takes no pointer.
    check(unsafe { libc::fcntl(device.as_raw_fd(), libc::F_GETFD) })
}

fn open_read_only() -> Outcome {
    open()?;
    for flags in [0, libc::O_NONBLOCK, libc::O_CLOEXEC, libc::O_NOCTTY] {
        expect::success("open", open_flags(libc::O_RDONLY | flags))?;
    }
    Ok(())
}

fn open_write_modes() -> Outcome {
    open()?;
    for mode in [libc::O_WRONLY, libc::O_RDWR, libc::O_ACCMODE] {
        for flags in [0, libc::O_NONBLOCK, libc::O_APPEND, libc::O_TRUNC] {
            let result = open_flags(mode | flags).map(drop);
            expect::error("open for writing", result, libc::EINVAL)?;
        }
    }
    Ok(())
}

fn open_node() -> Outcome {
    let node = fs::metadata(device::PATH).or_skip("no /dev/ummunotify")?;
    expect::same("character device", node.file_type().is_char_device(), true)?;
    let mode = node.permissions().mode() & 0o444;
    expect::same("the mode", format!("{mode:o}"), "444".into())?;
    let names = fs::read_to_string("/proc/misc").or_skip("no /proc/misc")?;
    let listed = names
        .lines()
        .any(|line| line.split_whitespace().nth(1) == Some("ummunotify"));
    expect::same("ummunotify in /proc/misc", listed, true)
}

fn open_as_ordinary_user() -> Outcome {
    open()?;
    Child::fork(|_| {
        process::drop_privilege().or_skip("become an ordinary user")?;
        let bench = Bench::over(
            expect::success("open", Device::open_nonblocking())?,
            Guarded::new(1)?,
        )?;
        bench.watch_pages()?;
        bench.hit(0)?;
        bench.reads(&[inval(1, &bench.area.all()), last(1)])
    })?
    .join()
}

fn open_interrupted() -> Outcome {
    open()?;
    signals::catch_signal(libc::SIGUSR1, 0)?;
    // While the kernel waits for the file name, the system call cannot fail yet.
    let path = Absent::new()?;
    let tid = Tid::default();
    let opened = thread::scope(|scope| -> Outcome<_> {
        let opener = scope.spawn(|| {
            tid.set();
            // SAFETY: The page will contain a C string.
            check(unsafe { libc::open(path.pointer().cast(), libc::O_RDONLY) })
        });
        path.is_awaited()?;
        expect::same("signals before", signals::caught().count, 0)?;
        signals::signal_thread(tid.get(), libc::SIGUSR1)?;
        path.provide(device::PATH.as_bytes())?;
        Ok(opener.join().expect("the opener does not panic"))
    })?;
    expect::success("open", opened)?;
    expect::same("signals", signals::caught().count, 1)
}

#[cfg(not(target_pointer_width = "64"))]
fn open_by_io_uring() -> Outcome {
    Err(Failure::Skipped("the crate io-uring is for 64 bits".into()))
}

#[cfg(target_pointer_width = "64")]
fn open_by_io_uring() -> Outcome {
    use std::{
        sync::atomic::{
            AtomicBool,
            Ordering, //
        },
        time::Duration,
    };

    use io_uring::{
        opcode,
        squeue::Flags,
        types::Fd,
        IoUring, //
    };

    const OPENS: u64 = 3000;
    open()?;
    let mut ring = IoUring::new(4).or_skip("io_uring")?;
    let path = CString::new(device::PATH).map_err(io::Error::from)?;
    let bench = Bench::new(1)?;
    let page = bench.area.all();
    signals::catch_signal(libc::SIGUSR1, libc::SA_RESTART)?;
    let (tid, done) = (Tid::default(), AtomicBool::new(false));
    tid.set();
    thread::scope(|scope| {
        let interrupter = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                signals::signal_thread(tid.get(), libc::SIGUSR1)?;
                thread::sleep(Duration::from_micros(50));
            }
            io::Result::Ok(())
        });
        let mut open_one = |number: u64| -> Outcome {
            // By this thread if possible, or else by one of the kernel's.
            let flags = [Flags::empty(), Flags::ASYNC][number as usize % 2];
            let entry = opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr())
                .flags(libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC)
                .build()
                .flags(flags);
            // SAFETY: The path lives longer than the ring.
            unsafe { ring.submission().push(&entry) }.expect("the queue has room");
            let result = loop {
                match ring.submit_and_wait(1) {
                    Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                    result => drop(result?),
                }
                if let Some(done) = ring.completion().next() {
                    break done.result();
                }
            };
            let fd = match result {
                0.. => result,
                error => return expect::success("open", Err(io::Error::from_raw_os_error(-error))),
            };
            // SAFETY: The file was just opened and is nobody else's.
            let device = Device::from(unsafe { OwnedFd::from_raw_fd(fd) });
            expect::success(
                "REGISTER_REGION",
                device.register(page.start, page.end, number),
            )?;
            bench.hit(0)?;
            let events = expect::success("read", device.read_events(3))?;
            expect::events("read", &events, &[inval(number, &page), last(1)])
        };
        let outcome = crate::harness::rounds_soon(OPENS).try_for_each(&mut open_one);
        done.store(true, Ordering::Relaxed);
        interrupter.join().expect("the thread does not panic")?;
        outcome
    })?;
    expect::at_least("signals", signals::caught().count as u64, 100)
}

fn open_many_files() -> Outcome {
    let area = Guarded::new(1)?;
    let files = (0..256).map(|_| open()).collect::<Outcome<Vec<Device>>>()?;
    for (cookie, file) in (0..).zip(&files) {
        file.register(area.all().start, area.all().end, cookie)?;
    }
    mem::unmap(&area.all())?;
    for (cookie, file) in (0..).zip(&files) {
        let events = file.read_events(2)?;
        expect::events("each file", &events, &[inval(cookie, &area.all()), last(1)])?;
    }
    Ok(())
}

fn open_files_are_independent() -> Outcome {
    let one = Bench::new(2)?;
    let two = Bench::over(open()?, Guarded::new(1)?)?;
    let page = one.area.page(0);
    one.watch(1, &page)?;
    one.watch(2, &one.area.page(1))?;
    two.watch(1, &page)?;
    one.hit(1)?;
    one.counts(1)?;
    two.counts(0)?;
    two.is_silent()?;
    one.hit(0)?;
    one.counts(2)?;
    two.counts(1)?;
    one.device.unregister(1)?;
    two.reads(&[inval(1, &page), last(1)])?;
    one.reads(&[inval(2, &one.area.page(1)), last(2)])?;
    expect::error("unregister", one.device.unregister(1), libc::EINVAL)?;
    one.hit(0)?;
    one.counts(2)?;
    drop(one.device);
    two.counts(2)?;
    two.device.unregister(1)?;
    two.reads(&[last(2)])
}

fn open_same_inode_other_state() -> Outcome {
    let bench = Bench::one_page()?;
    let same = Device::from(bench.device.file().try_clone().map(OwnedFd::from)?);
    bench.hit(0)?;
    let events = same.read_events(2)?;
    expect::events(
        "the duplicate",
        &events,
        &[inval(1, &bench.area.all()), last(1)],
    )?;
    bench.is_silent()?;
    let other = open()?;
    let result = other.unregister(1);
    expect::error("unregister on a second file", result, libc::EINVAL)?;
    drop(bench.device);
    expect::success("unregister on the duplicate", same.unregister(1))
}

fn open_close_on_exec_flag() -> Outcome {
    open()?;
    let with = open_flags(libc::O_RDONLY | libc::O_CLOEXEC)?;
    let without = open_flags(libc::O_RDONLY)?;
    expect::same("with", descriptor_flags(&with)?, libc::FD_CLOEXEC)?;
    expect::same("without", descriptor_flags(&without)?, 0)
}

fn close_with_regions() -> Outcome {
    let area = Guarded::new(1000)?;
    for round in 0..3 {
        let bench = Bench::over(open()?, Guarded::new(1)?)?;
        for page in 0..area.pages() {
            bench.watch(page, &area.page(page))?;
        }
        if round > 0 {
            mem::advise(&area.span(0..500), libc::MADV_DONTNEED)?;
            bench.counts(1)?;
        }
        drop(bench.device);
        area.fill();
        mem::advise(&area.all(), libc::MADV_DONTNEED)?;
    }
    mem::unmap(&area.all())?;
    Ok(())
}

fn close_while_mapped() -> Outcome {
    let bench = Bench::one_page()?;
    bench.hit(0)?;
    drop(bench.device);
    expect::same("the counter after close", bench.counter.get(), 1)?;
    mem::unmap(&bench.area.all())?;
    expect::same("the counter after munmap", bench.counter.get(), 2)
}
