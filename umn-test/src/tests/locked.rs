// SPDX-License-Identifier: GPL-2.0

//! The memory of a file is charged to its opener as locked memory.

use std::{
    env,
    os::{
        fd::AsRawFd,
        unix::process::CommandExt, //
    },
    process::{
        Command,
        Stdio, //
    },
    thread,
    time::Duration, //
};

use super::{
    crowd::{
        read_up_to_last,
        Crowd,
        Layout, //
    },
    exhaustion::fill_up,
    limits::fdinfo_text,
    prelude::*, //
};

table! {
    locked_limit: "beyond RLIMIT_MEMLOCK REGISTER_REGION gives ENOMEM, and the file still works",
    locked_limit_of_files: "files are charged, too, each with all its memory",
    locked_limit_of_nothing: "a user who may lock nothing cannot use the device, and gets ENOMEM",
    locked_in_fdinfo: "fdinfo shows the charge: more for more regions, less for fewer",
    locked_unregistered: "after UNREGISTER as many regions can be registered again",
    locked_by_all_processes: "all processes of a user share the limit",
    locked_by_others: "other users do not share the limit",
    locked_with_privilege: "CAP_IPC_LOCK exempts a file for as long as it is open",
    locked_and_closed: "close returns the whole charge",
    locked_and_exited: "so does exit",
    locked_and_killed: "so does death by a signal",
    locked_and_executed: "so does exec, though the file stays open",
    locked_while_queued: "exit returns the charge of idle regions; that of the others is returned by reads",
}

/// The limit on locked memory in these tests.
const LIMIT: u64 = 1 << 19;

/// The least memory that a region takes.
const LEAST: u64 = 64;

/// The charge of a file in bytes.
fn locked(device: &Device) -> Outcome<u64> {
    let text = fdinfo_text(device)?;
    let kilobytes = text.lines().find_map(|line| {
        line.strip_prefix("locked:\t")?
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()
    });
    kilobytes
        .map(|number| number << 10)
        .ok_or_else(|| Failure::new("fdinfo", "a line 'locked: N kB'", text))
}

/// Registers regions until the limit is reached; returns how many.
#[track_caller]
fn fill(device: &Device) -> Outcome<u64> {
    let (count, error) = fill_up(device);
    expect::error("REGISTER_REGION", Err::<(), _>(error), libc::ENOMEM)?;
    Ok(count)
}

/// Opens a file and registers regions until the limit is reached; returns how many.
fn fill_new() -> Outcome<u64> {
    match Device::open_nonblocking() {
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => Ok(0),
        device => fill(&device?),
    }
}

fn locked_limit() -> Outcome {
    as_ordinary_user(LIMIT, |_| {
        let bench = Bench::new(1)?;
        bench.watch(!0, &bench.area.all())?;
        let count = fill(&bench.device)?;
        expect::at_least("regions", count, LIMIT / 1024)?;
        expect::that(
            "regions",
            count * LEAST <= LIMIT,
            format_args!("{} or less", LIMIT / LEAST),
            count,
        )?;
        for _ in 0..3 {
            let page = bench.area.all();
            let result = bench.device.register(page.start, page.end, count);
            expect::error("one more", result, libc::ENOMEM)?;
        }
        bench.hit(0)?;
        bench.reads(&[inval(!0, &bench.area.all()), last(1)])?;
        let result = bench.device.unregister(count);
        expect::error("the one that failed", result, libc::EINVAL)
    })?
    .join()
}

fn locked_limit_of_files() -> Outcome {
    /// More files than the limit has pages.
    const MOST: usize = (LIMIT / PAGE) as usize + 1;
    as_ordinary_user(LIMIT, |_| {
        let mut files = vec![];
        let error = loop {
            match open_and_register() {
                Ok(device) => files.push(device),
                Err(error) => break error,
            }
            expect::that(
                "files",
                files.len() < MOST,
                format_args!("less than {MOST}"),
                files.len(),
            )?;
        };
        expect::error("one file more", Err::<(), _>(error), libc::ENOMEM)?;
        expect::at_least("files", files.len() as u64, 16)?;
        // Every one of them works, and closing one makes room for another.
        let bench = Bench::over(files.swap_remove(0), Guarded::new(1)?)?;
        bench.watch_pages()?;
        bench.hit(0)?;
        bench.reads(&[inval(1, &bench.area.all()), last(1)])?;
        files.pop();
        let again = process::eventually(|| open_and_register().is_ok());
        expect::that("another file", again, "success", "ENOMEM")
    })?
    .join()
}

/// A file with a region that nothing hits.
fn open_and_register() -> std::io::Result<Device> {
    let device = Device::open_nonblocking()?;
    device.register(PAGE, 2 * PAGE, 0)?;
    Ok(device)
}

fn locked_limit_of_nothing() -> Outcome {
    as_ordinary_user(0, |_| {
        expect::error(
            "a file with a region",
            open_and_register().map(drop),
            libc::ENOMEM,
        )
    })?
    .join()
}

fn locked_in_fdinfo() -> Outcome {
    as_ordinary_user(2 * LIMIT, |_| {
        let device = open()?;
        open_and_register()?;
        device.register(PAGE, 2 * PAGE, !0)?;
        let few = locked(&device)?;
        expect::at_least("locked, with one region", few, PAGE)?;
        expect::that(
            "locked, with one region",
            few < 32 * PAGE,
            "some pages",
            few,
        )?;
        for cookie in 0..LIMIT / 256 {
            device.register(PAGE, 2 * PAGE, cookie)?;
        }
        let many = locked(&device)?;
        expect::at_least("locked, with many more", many, few + LIMIT / 256 * LEAST)?;
        expect::that(
            "locked",
            many <= 2 * LIMIT,
            format_args!("{} or less", 2 * LIMIT),
            many,
        )?;
        for cookie in 0..LIMIT / 256 {
            device.unregister(cookie)?;
        }
        let again = locked(&device)?;
        expect::that(
            "locked, with one region again",
            again < (few + many) / 2,
            "less",
            again,
        )
    })?
    .join()
}

fn locked_unregistered() -> Outcome {
    as_ordinary_user(LIMIT, |_| {
        let device = open()?;
        let count = fill(&device)?;
        for _ in 0..3 {
            for cookie in 0..count {
                device.unregister(cookie)?;
            }
            expect::same("regions", fill(&device)?, count)?;
        }
        for cookie in 0..count / 2 {
            device.unregister(cookie)?;
        }
        for cookie in 0..count / 2 {
            expect::success("REGISTER_REGION", device.register(PAGE, 2 * PAGE, cookie))?;
        }
        Ok(())
    })?
    .join()
}

fn locked_by_all_processes() -> Outcome {
    let first = as_ordinary_user(LIMIT, |line| {
        let device = open()?;
        fill(&device)?;
        line.tell()?;
        line.hear()?;
        drop(device);
        line.tell()?;
        Ok(line.hear()?)
    })?;
    let second = as_ordinary_user(LIMIT, |line| {
        line.hear()?;
        // Whole pages are charged, so there may be room for a few regions.
        let few = fill_new()?;
        line.tell()?;
        line.hear()?;
        let enough = process::eventually(|| fill_new().is_ok_and(|count| count >= LIMIT / 1024));
        expect::that("regions", few < LIMIT / 4096, "few", few)?;
        expect::that("regions, when the other has closed", enough, "many", "few")
    })?;
    first.hear()?;
    second.tell()?;
    second.hear()?;
    first.tell()?;
    first.hear()?;
    second.tell()?;
    second.join()?;
    first.tell()?;
    first.join()
}

fn locked_by_others() -> Outcome {
    let first = as_ordinary_user(LIMIT, |line| {
        let device = open()?;
        let count = fill(&device)?;
        line.tell_number(count)?;
        Ok(line.hear()?)
    })?;
    let count = first.hear_number()?;
    Child::fork(|_| {
        process::set_limit(libc::RLIMIT_MEMLOCK, LIMIT)?;
        process::drop_privilege().or_skip("becoming an ordinary user")?;
        expect::at_least("regions", fill_new()?, count / 2)
    })?
    .join()?;
    first.tell()?;
    first.join()
}

fn locked_with_privilege() -> Outcome {
    open()?;
    Child::fork(|_| {
        process::set_limit(libc::RLIMIT_MEMLOCK, 0)?;
        let device = Device::open_nonblocking()?;
        let register = |cookies: std::ops::Range<u64>| -> Outcome {
            for cookie in cookies {
                let result = device.register(PAGE, 2 * PAGE, cookie);
                expect::success("REGISTER_REGION", result)?;
            }
            Ok(())
        };
        register(0..10_000)?;
        expect::same("locked", locked(&device)?, 0)?;
        process::drop_privilege().or_skip("becoming an ordinary user")?;
        register(10_000..20_000)?;
        expect::same("locked", locked(&device)?, 0)?;
        expect::error(
            "a file with a region",
            open_and_register().map(drop),
            libc::ENOMEM,
        )
    })?
    .join()
}

/// Opens a file and registers at least `least` regions, for which room may appear only after a
/// moment.
fn fill_with(least: u64) -> Outcome<(Device, u64)> {
    let mut filled = None;
    process::eventually(|| {
        // Earlier attempts have to be freed, too.
        if filled.take().is_some() {
            thread::sleep(Duration::from_millis(50));
        }
        let device = Device::open_nonblocking().map_err(Failure::from);
        let result = device.and_then(|device| Ok((fill(&device)?, device)));
        let enough = matches!(result, Ok((count, _)) if count >= least);
        filled = result.ok();
        enough
    });
    match filled {
        Some((count, device)) => Ok((device, count)),
        None => Err(Failure::new("opening and registering", "success", "none")),
    }
}

/// Expects that a user can register as many regions as before, soon after a process that had used
/// up the limit has ended in some way.
fn is_given_back(end: impl Fn(Device) -> Outcome) -> Outcome {
    let mut first = 0;
    for _ in 0..4 {
        let child = as_ordinary_user(LIMIT, |line| {
            let (device, count) = fill_with(first)?;
            line.tell_number(count)?;
            end(device)?;
            // So that the charge is not returned by the end of that process.
            expect::at_least("regions", fill_with(count)?.1, count)
        })?;
        let count = child.hear_number()?;
        expect::at_least("regions", count, first.max(LIMIT / 1024))?;
        first = count;
        if child.ended_by()?.is_none() {
            child.join()?;
        }
    }
    Ok(())
}

fn locked_and_closed() -> Outcome {
    is_given_back(|device| {
        drop(device);
        Ok(())
    })
}

fn locked_and_exited() -> Outcome {
    is_given_back(|device| {
        std::mem::forget(device);
        // SAFETY: Ends the process, with the file open.
        unsafe { libc::_exit(0) }
    })
}

fn locked_and_killed() -> Outcome {
    is_given_back(|device| {
        std::mem::forget(device);
        // SAFETY: The call takes no pointer.
        check(unsafe { libc::raise(libc::SIGKILL) })?;
        Ok(())
    })
}

fn locked_and_executed() -> Outcome {
    // A process that executes another program with the file open gets the charge back.
    as_ordinary_user(LIMIT, |line| {
        let device = open()?;
        fill(&device)?;
        line.pass(&device)?;
        // SAFETY: The call takes no pointer.
        check(unsafe { libc::fcntl(device.as_raw_fd(), libc::F_SETFD, 0) })?;
        let error = Command::new(env::current_exe()?)
            .arg("--version")
            .stdout(Stdio::null())
            .exec();
        Err(error.into())
    })
    .and_then(|child| {
        let device = Device::from(child.receive()?);
        child.join()?;
        let given_back =
            process::eventually(|| locked(&device).is_ok_and(|bytes| bytes < LIMIT / 8));
        let bytes = locked(&device)?;
        expect::that("locked after exec", given_back, "a few pages", bytes)?;
        as_ordinary_user(LIMIT, |_| {
            expect::at_least("regions", fill_new()?, LIMIT / 2048)
        })?
        .join()
    })
}

fn locked_while_queued() -> Outcome {
    /// Hit, and more than a change visits.
    const QUEUED: u64 = 2000;
    let child = as_ordinary_user(8 * LIMIT, |line| {
        let crowd = Crowd::new(Layout::Identical, QUEUED)?;
        let device = &crowd.bench.device;
        for cookie in QUEUED..10 * QUEUED {
            device.register(PAGE, 2 * PAGE, cookie)?;
        }
        crowd.hit()?;
        line.tell_number(locked(device)?)?;
        line.pass(device)?;
        Ok(line.hear()?)
    })?;
    let before = child.hear_number()?;
    let device = Device::from(child.receive()?);
    child.tell()?;
    child.join()?;
    let falls_below =
        |bytes: u64| process::eventually(|| locked(&device).is_ok_and(|now| now < bytes));
    let after = falls_below(before / 2);
    expect::that(
        "locked, after the exit",
        after,
        format_args!("less than {}", before / 2),
        locked(&device)?,
    )?;
    thread::sleep(Duration::from_millis(100));
    expect::at_least(
        "locked for what is queued",
        locked(&device)?,
        QUEUED * LEAST,
    )?;
    let events = read_up_to_last(&device, 100)?;
    let cookies = events.iter().map(|event| event.user_cookie_counter);
    let wrong = cookies
        .zip((0..QUEUED).chain([1]))
        .filter(|(seen, wanted)| seen != wanted);
    expect::same("records in disorder", wrong.count(), 0)?;
    expect::same("records", events.len() as u64, QUEUED + 1)?;
    let read = falls_below(QUEUED * LEAST);
    expect::that(
        "locked, after everything was read",
        read,
        "a few pages",
        locked(&device)?,
    )
}
