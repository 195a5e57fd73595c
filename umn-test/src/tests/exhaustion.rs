// SPDX-License-Identifier: GPL-2.0

//! Exhausted resources, and numbers so large that any cost per item shows.

use std::{
    env,
    fs,
    io,
    os::{
        fd::AsRawFd,
        unix::process::CommandExt, //
    },
    process::{
        Command,
        Stdio, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    }, //
};

use super::{
    limits::{
        fdinfo,
        fdinfo_text,
        DEFAULT_LIMIT, //
    },
    prelude::*, //
};
use crate::uapi::{
    EVENT_CAUSES_SHIFT,
    EVENT_FLAG_HINT, //
};

table! {
    exhaustion_of_regions: "as many regions as the default limit allows, and no more; the file still works",
    exhaustion_of_a_group: "a full memory cgroup gives ENOMEM; this file and others still work",
    exhaustion_of_a_group_kills: "a full memory cgroup gets a process in it killed, and no other",
    exhaustion_of_memory_reaps: "the OOM reaper's work on a process that cannot end is reported, with CLEAR",
    exhaustion_by_files: "a process with a thousand files: one munmap is reported in each",
    exhaustion_by_processes: "many processes with many files each",
    exhaustion_exit: "exit with a million regions takes time proportional to them, and delays nobody",
    exhaustion_exec: "so does exec",
    exhaustion_close: "so does close",
    exhaustion_munmap: "so does an munmap that hits them all, with the reads afterwards",
}

/// Where nothing is mapped; regions need no memory.
const NOWHERE: u64 = 0x20_0000_0000;

/// Registers `count` pages with cookies 0, 1, …, starting at an address.
fn register_pages(device: &Device, from: u64, count: u64) -> Outcome {
    for number in 0..count {
        let start = from + number * PAGE;
        expect::success(
            "REGISTER_REGION",
            device.register(start, start + PAGE, number),
        )?;
    }
    Ok(())
}

/// Approximately how many regions this machine can register in some time, and at least some.
pub(super) fn possible_in(time: Duration) -> Outcome<u64> {
    const SOME: u64 = 2000;
    let device = open()?;
    let began = Instant::now();
    register_pages(&device, NOWHERE, SOME)?;
    let possible = u128::from(SOME) * time.as_nanos() / began.elapsed().as_nanos().max(1);
    // The machine may have been busy with other things just then.
    Ok((possible as u64).max(SOME))
}

fn exhaustion_of_regions() -> Outcome {
    /// Memory of a region, and what the kernel needs to account for it.
    const REGION: u64 = 192;
    let bench = Bench::new(2)?;
    let limit = fdinfo(&fdinfo_text(&bench.device)?, "limit")?;
    expect::same("the default limit", limit, DEFAULT_LIMIT)?;
    if available_memory()? < limit * REGION {
        let megabytes = (limit * REGION) >> 20;
        return Err(Failure::Skipped(format!(
            "less than {megabytes} MB of memory free"
        )));
    }
    if possible_in(Duration::from_secs(30))? < limit {
        let why = format!("registering {limit} regions takes more than 30 s here");
        return Err(Failure::Skipped(why));
    }
    register_pages(&bench.device, NOWHERE, limit - 1)?;
    bench.watch(limit, &bench.area.page(0))?;
    for _ in 0..3 {
        let result = bench.device.register(NOWHERE, NOWHERE + PAGE, limit + 1);
        expect::error("one more", result, libc::ENOSPC)?;
    }
    bench.hit(0)?;
    bench.reads(&[inval(limit, &bench.area.page(0)), last(1)])?;
    bench.device.unregister(limit / 2)?;
    bench.watch(limit + 1, &bench.area.page(1))?;
    let result = bench.device.register(NOWHERE, NOWHERE + PAGE, limit / 2);
    expect::error("one more", result, libc::ENOSPC)?;
    bench.hit(1)?;
    bench.reads(&[inval(limit + 1, &bench.area.page(1)), last(2)])?;
    let text = fdinfo_text(&bench.device)?;
    expect::same("regions", fdinfo(&text, "regions")?, limit)
}

/// Memory that is available now.
fn available_memory() -> Outcome<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kilobytes = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok());
    kilobytes
        .map(|number| number << 10)
        .ok_or_else(|| Failure::Skipped("meminfo has no MemAvailable".into()))
}

// --- memory ------------------------------------------------------------------------------------

/// Size of a small cgroup: room for many regions and the process that has them.
const FULL: u64 = 8 << 20;

/// A memory cgroup of this size, which cannot swap.
fn small_group(name: &str, bytes: u64) -> Outcome<Cgroup> {
    let group = Cgroup::new(name).or_skip("a memory cgroup")?;
    group.write("memory.max", &bytes.to_string())?;
    // Without swap, this file does not exist.
    let _ = group.write("memory.swap.max", "0");
    Ok(group)
}

/// The memory charged to a cgroup.
fn charge(group: &Cgroup) -> Outcome<u64> {
    let text = group.read("memory.current")?;
    text.trim()
        .parse()
        .map_err(|_| Failure::new("memory.current", "a number", text))
}

/// Expects the charge of a cgroup to drop to nearly nothing soon.
fn is_given_back(group: &Cgroup) -> Outcome {
    process::eventually(|| charge(group).is_ok_and(|bytes| bytes < FULL / 4));
    let bytes = charge(group)?;
    expect::that("bytes still charged", bytes < FULL / 4, FULL / 4, bytes)
}

/// Uses every call of a file repeatedly until a child ends.
fn go_on_beside(bench: &Bench, child: &Child) -> Outcome {
    thread::scope(|scope| {
        let end = scope.spawn(|| child.ended_by());
        let page = bench.area.page(0);
        let mut rounds = 0;
        while !end.is_finished() {
            rounds += 1;
            bench.watch(rounds, &page)?;
            bench.hit(0)?;
            bench.counts(rounds)?;
            bench.reads(&[inval(rounds, &page), last(rounds)])?;
            bench.device.unregister(rounds)?;
        }
        expect::at_least("rounds meanwhile", rounds, 10)
    })
}

/// Registers regions until that fails.
pub(super) fn fill_up(device: &Device) -> (u64, io::Error) {
    let mut number = 0;
    loop {
        let start = NOWHERE + number * PAGE;
        match device.register(start, start + PAGE, number) {
            Ok(()) => number += 1,
            Err(error) => return (number, error),
        }
    }
}

fn exhaustion_of_a_group() -> Outcome {
    let outside = Bench::new(1)?;
    let group = small_group("full", FULL)?;
    let child = Child::fork(|_| {
        // A write that needs a page would wait forever in the full group.
        mem::copy_shared_pages().or_skip("mlockall")?;
        group.enter().or_skip("entering a memory cgroup")?;
        // Nobody can be killed then.
        fs::write("/proc/self/oom_score_adj", "-1000").or_skip("setting oom_score_adj")?;
        let bench = Bench::new(1)?;
        bench.watch(!0, &bench.area.all())?;
        let (count, error) = fill_up(&bench.device);
        expect::error("REGISTER_REGION", Err::<(), _>(error), libc::ENOMEM)?;
        bench.hit(0)?;
        bench.counts(1)?;
        bench.reads(&[inval(!0, &bench.area.all()), last(1)])?;
        // Reading the charge takes memory, and so does another region.
        for number in 0..count / 4 {
            bench.device.unregister(number)?;
        }
        expect::at_least("bytes charged", charge(&group)?, FULL / 2)?;
        bench.watch(0, &bench.area.all())?;
        drop(bench.device);
        drop(bench.counter);
        is_given_back(&group)
    })?;
    let result = go_on_beside(&outside, &child);
    child.join()?;
    result
}

fn exhaustion_of_a_group_kills() -> Outcome {
    let outside = Bench::new(1)?;
    let group = small_group("kill", FULL)?;
    let child = Child::fork(|_| {
        group.enter().or_skip("entering a memory cgroup")?;
        let (_, error) = fill_up(&open()?);
        // The call may fail before the process is killed.
        expect::error("REGISTER_REGION", Err::<(), _>(error), libc::ENOMEM)?;
        loop {
            thread::park();
        }
    })?;
    go_on_beside(&outside, &child)?;
    if let Ok(None) = child.ended_by() {
        return child.join();
    }
    expect::same("killed by", child.ended_by()?, Some(libc::SIGKILL))?;
    is_given_back(&group)
}

fn exhaustion_of_memory_reaps() -> Outcome {
    const PAGES: u64 = 4096;
    /// Pages of one region.
    const SPAN: u64 = 8;
    const COUNT: u64 = PAGES / SPAN;
    open()?;
    let group = small_group("reap", 2 * PAGES * PAGE)?;
    let area = Guarded::unpopulated(PAGES)?;
    let region = |number: u64| area.span(number * SPAN..(number + 1) * SPAN);
    let child = Child::fork(|line| {
        group.enter().or_skip("entering a memory cgroup")?;
        let device = open_with(Features::CAUSE)?;
        area.fill();
        for number in 0..COUNT {
            device.register(region(number).start, region(number).end, number)?;
        }
        line.pass(&device)?;
        line.hear()?;
        loop {
            Guarded::new(64)?;
        }
    })?;
    let device = Device::from(child.receive()?);
    stop_at_exit(&child).or_skip("tracing")?;
    child.tell()?;
    // The process is killed, but stops before it frees its memory. After a while the OOM
    // reaper frees it instead, and the callback must not sleep then.
    let mut status = 0;
    // SAFETY: `status` may be written to.
    check(unsafe { libc::waitpid(child.pid(), &mut status, libc::__WALL) })?;
    let at_exit = libc::SIGTRAP | (libc::PTRACE_EVENT_EXIT << 8);
    expect::same("where it stopped", status >> 8, at_exit)?;
    let is_reported = || -> Outcome<bool> {
        let text = fdinfo_text(&device)?;
        Ok(fdinfo(&text, "queued")? == COUNT || fdinfo(&text, "deferred")? > 0)
    };
    let reported = process::eventually(|| is_reported().is_ok_and(|reported| reported));
    if !reported {
        // It would not end while it is traced.
        // SAFETY: The call takes no pointer.
        check(unsafe { libc::ptrace(libc::PTRACE_DETACH, child.pid(), 0, 0) })?;
    }
    expect::that(
        "events before its end",
        reported,
        COUNT,
        fdinfo_text(&device)?,
    )?;
    let ready = device.poll(libc::POLLIN, Duration::ZERO)?;
    expect::same("poll before its end", ready, libc::POLLIN)?;

    // SAFETY: The call takes no pointer.
    check(unsafe { libc::ptrace(libc::PTRACE_DETACH, child.pid(), 0, 0) })?;
    expect::same("killed by", child.ended_by()?, Some(libc::SIGKILL))?;
    let events = device.read_events(COUNT as usize + 2)?;
    let hits = (0..COUNT).map(|number| Event {
        flags: EVENT_FLAG_HINT | (Causes::CLEAR.bits() << EVENT_CAUSES_SHIFT),
        ..inval(number, &region(number))
    });
    let wanted: Vec<_> = hits.chain([last(1)]).collect();
    expect::events("events after its end", &events, &wanted)
}

/// Makes a child stop before it gives up its memory, whatever ends it.
fn stop_at_exit(child: &Child) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACEEXIT;
    // SAFETY: The call takes no pointer.
    check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, child.pid(), 0, options) }).map(drop)
}

// --- files -------------------------------------------------------------------------------------

/// Opens many files, each with a region and a counter, and expects one munmap to be reported in
/// all.
fn many_files(count: u64) -> Outcome {
    process::set_limit(libc::RLIMIT_NOFILE, count + 1000).or_skip("so many files")?;
    let area = Guarded::new(1)?;
    let page = area.all();
    let files = (0..count)
        .map(|number| {
            let device = open()?;
            device.register(page.start, page.end, number)?;
            let counter = device.map_counter()?;
            Ok((device, counter))
        })
        .collect::<Outcome<Vec<_>>>()?;
    mem::unmap(&page)?;
    for (number, (device, counter)) in (0..).zip(&files) {
        expect::same("the counter", counter.get(), 1)?;
        let wanted = [inval(number, &page), last(1)];
        expect::events("read", &device.read_events(3)?, &wanted)?;
    }
    Ok(())
}

fn exhaustion_by_files() -> Outcome {
    many_files(1000)
}

fn exhaustion_by_processes() -> Outcome {
    const PROCESSES: usize = 50;
    const FILES: u64 = 20;
    let children = (0..PROCESSES)
        .map(|_| {
            Child::fork(|line| {
                // All of them have their files open at the same time.
                let result = many_files(FILES);
                line.tell()?;
                line.hear()?;
                result
            })
        })
        .collect::<io::Result<Vec<_>>>()?;
    for child in &children {
        child.hear()?;
    }
    for child in &children {
        child.tell()?;
    }
    children.into_iter().try_for_each(Child::join)
}

// --- a million regions ---------------------------------------------------------------------------

/// How many are "many": as many as can be registered in some time, up to this number.
const MANY: u64 = if cfg!(target_pointer_width = "64") {
    1_000_000
} else {
    // Each has a page of its own.
    300_000
};

/// The ratio of many to few.
const TIMES: u32 = 10;

/// How much more than proportional the time may be: far less than quadratic.
const SLACK: u32 = 4;

/// The longest allowed delay; the kernel itself complains after a few times that.
const HELD_UP: Duration = Duration::from_secs(5);

/// What is done with many regions.
type Act = fn(Device, u64) -> Outcome;

/// Does something to many regions in one process, and to few in another; expects the time to be
/// proportional, and a third process not to be delayed.
fn is_proportional(what: &str, act: Act) -> Outcome {
    let many = MANY.min(possible_in(Duration::from_secs(2))?);
    let mut seen = String::new();
    let (mut few, mut all) = (Duration::MAX, Duration::MAX);
    // The machine may be busy with other things, so the shortest times count.
    for _ in 0..3 {
        let (time_few, _) = time(act, many / u64::from(TIMES))?;
        let (time_all, held_up) = time(act, many)?;
        (few, all) = (few.min(time_few), all.min(time_all));
        seen = format!("{all:?} for {many} regions, {few:?} for 1/{TIMES} of them");
        eprintln!("{what}: {seen}; another munmap took {held_up:?} at most");
        expect::that(
            "another munmap",
            held_up < HELD_UP,
            "less",
            format!("{held_up:?}"),
        )?;
        if all < few * TIMES * SLACK {
            return Ok(());
        }
    }
    Err(Failure::new(what, "a proportional time", seen))
}

/// How long a process takes to do something to `count` regions, and how long the slowest munmap of
/// another process took meanwhile.
fn time(act: Act, count: u64) -> Outcome<(Duration, Duration)> {
    let child = Child::fork(|line| {
        let device = open()?;
        let length = count * PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let from = mem::map(None, length, libc::PROT_NONE, flags, None)?;
        register_pages(&device, from, count)?;
        line.tell()?;
        line.hear()?;
        act(device, from)
    })?;
    child.hear()?;
    let bench = Bench::one_page()?;
    let began = Instant::now();
    child.tell()?;
    thread::scope(|scope| {
        let end = scope.spawn(|| {
            let result = child.ended_by();
            (began.elapsed(), result)
        });
        let mut longest = Duration::ZERO;
        let mut rounds = 0;
        while !end.is_finished() {
            let before = Instant::now();
            bench.hit(0)?;
            longest = longest.max(before.elapsed());
            rounds += 1;
        }
        bench.counts(rounds)?;
        let (took, result) = end.join().expect("the thread does not panic");
        result?;
        Ok((took, longest))
    })
    .and_then(|times| child.join().map(|()| times))
}

fn exhaustion_exit() -> Outcome {
    is_proportional("exit", |device, _| {
        // Keep it open until the address space goes away.
        std::mem::forget(device);
        Ok(())
    })
}

fn exhaustion_exec() -> Outcome {
    is_proportional("exec", |device, _| {
        // SAFETY: The call takes no pointer.
        check(unsafe { libc::fcntl(device.as_raw_fd(), libc::F_SETFD, 0) })?;
        let error = Command::new(env::current_exe()?)
            .arg("--version")
            .stdout(Stdio::null())
            .exec();
        Err(error.into())
    })
}

fn exhaustion_close() -> Outcome {
    is_proportional("close", |device, _| {
        drop(device);
        Ok(())
    })
}

fn exhaustion_munmap() -> Outcome {
    is_proportional("munmap", |device, from| {
        let regions = fdinfo(&fdinfo_text(&device)?, "regions")?;
        mem::unmap(&(from..from + regions * PAGE))?;
        // With small reads: a large buffer could be allocated where memory was just unmapped.
        let mut reported = 0;
        loop {
            let events = device.read_events(512)?;
            reported += events.len() as u64;
            if events.last().is_none_or(|event| event.kind == EVENT_LAST) {
                break;
            }
        }
        expect::same("records", reported, regions + 1)
    })
}
