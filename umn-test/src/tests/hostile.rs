// SPDX-License-Identifier: GPL-2.0

//! An ordinary user does everything the device allows, and others do not pay for it.
//!
//! Times are compared only with times of the same run. The bounds leave room for other load: they
//! distinguish a constant cost from one that grows with what the user has.

use std::{
    fs::{
        self,
        File, //
    },
    io,
    os::fd::{
        AsRawFd,
        FromRawFd,
        OwnedFd, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

use super::{
    crowd::{
        read_up_to_last,
        Crowd,
        Layout, //
    },
    exhaustion::possible_in,
    prelude::*, //
};
use crate::{
    harness,
    module::{
        Module,
        Unloaded, //
    },
};

table! {
    hostile_changes_cost_little: "a change that hits many regions costs about as much as one that hits 128",
    hostile_forks_cost_little: "so does a fork",
    hostile_truncate_costs_little: "so does a truncation by root of a file that the user has mapped",
    hostile_waiters_cost_little: "a change with thousands of waiters costs about as much as with few",
    hostile_open_does_not_hold_up: "three processes open the device in a loop: another device opens as fast as before",
    hostile_open_ends: "with 60,000 mappings and a 1 kHz timer, every open succeeds",
    hostile_exit_is_quick: "exit with 3,000 files takes no more than 5 times as long as with eventfds",
    hostile_memory_is_limited: "endless registering takes no more memory than may be locked",
    hostile_memory_comes_back: "without the limit, all memory is freed when the process is killed",
    hostile_read_heeds_signals: "a long read returns what it has when a signal comes",
    hostile_unload_beside_close: "unloading the module races with the last close, repeatedly",
}

/// A limit on locked memory that is never reached.
const UNLIMITED: u64 = u64::MAX;

/// How many regions a change visits.
const FEW: u64 = 128;

/// How many times more something may take that should take the same; times are never exact.
const SLACK: u32 = 40;

/// How long one part of a test may take, roughly.
const LONG: Duration = Duration::from_secs(2);

/// Enough regions that a cost for each would show, if the machine can register them soon.
fn many() -> Outcome<u64> {
    Ok(possible_in(Duration::from_millis(500))?.clamp(1 << 14, 1 << 20))
}

/// Expects two times to be about the same.
#[track_caller]
fn about_the_same(what: &str, seen: Duration, usual: Duration) -> Outcome {
    let most = usual * SLACK;
    expect::that(
        what,
        seen <= most,
        format_args!("{most:?} or less"),
        format_args!("{seen:?}"),
    )
}

/// Reads everything, with reads that take little memory.
fn drain(device: &Device) -> Outcome {
    while !read_if_any(device, 512)?.is_empty() {}
    Ok(())
}

/// The shortest of several times, since disturbances only make things slower.
fn shortest(times: u64, mut time: impl FnMut() -> Outcome<Duration>) -> Outcome<Duration> {
    let mut shortest = Duration::MAX;
    for _ in harness::rounds_soon(times) {
        shortest = shortest.min(time()?);
    }
    Ok(shortest)
}

fn timed<T>(call: impl FnOnce() -> Outcome<T>) -> Outcome<Duration> {
    let began = Instant::now();
    call()?;
    Ok(began.elapsed())
}

/// What a process of an ordinary user measures with few regions, and with many of a layout.
fn few_and_many<const N: usize>(
    layout: Layout,
    many: u64,
    measure: impl Fn(&Crowd) -> Outcome<[Duration; N]>,
) -> Outcome<[[Duration; N]; 2]> {
    let times = |count| -> Outcome<[Duration; N]> {
        let child = as_ordinary_user(UNLIMITED, |line| {
            for time in measure(&Crowd::new(layout, count)?)? {
                line.tell_number(time.as_nanos() as u64)?;
            }
            Ok(())
        })?;
        let mut times = [Duration::ZERO; N];
        for time in &mut times {
            *time = Duration::from_nanos(child.hear_number()?);
        }
        child.join().map(|()| times)
    };
    Ok([times(FEW)?, times(many)?])
}

fn hostile_changes_cost_little() -> Outcome {
    const WHAT: [&str; 4] = ["madvise", "munmap", "madvise again", "munmap again"];
    let many = many()?;
    for layout in Layout::ALL {
        let [few, all] = few_and_many(layout, many, |crowd| {
            let time = |reads: bool, change: &dyn Fn() -> io::Result<()>| {
                shortest(5, || {
                    // The first hit after everything was read, or a hit of regions that are queued
                    // already.
                    crowd.populate();
                    if reads {
                        drain(&crowd.bench.device)?;
                    }
                    let time = timed(|| Ok(change()?))?;
                    // At once, before anything else is mapped there.
                    mem::map_over(&crowd.pages())?;
                    Ok(time)
                })
            };
            let advise = || mem::advise(&crowd.pages(), libc::MADV_DONTNEED);
            let unmap = || mem::unmap(&crowd.pages());
            Ok([
                time(true, &advise)?,
                time(true, &unmap)?,
                time(false, &advise)?,
                time(false, &unmap)?,
            ])
        })?;
        for (what, (few, all)) in WHAT.iter().zip(few.into_iter().zip(all)) {
            about_the_same(&format!("{what}, {many} {layout:?} regions"), all, few)?;
        }
    }
    harness::note(format_args!("{many} regions"));
    Ok(())
}

fn hostile_forks_cost_little() -> Outcome {
    let many = many()?;
    let [[few], [all]] = few_and_many(Layout::Overlapping, many, |crowd| {
        let time = shortest(5, || {
            // A write to a page that a fork has made copy-on-write is a change, too.
            crowd.populate();
            drain(&crowd.bench.device)?;
            let mut child = 0;
            let time = timed(|| {
                // SAFETY: The child only ends.
                match check(unsafe { libc::fork() })? {
                    // SAFETY: As above.
                    0 => unsafe { libc::_exit(0) },
                    pid => child = pid,
                }
                Ok(())
            })?;
            // SAFETY: The status is of no interest.
            check(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) })?;
            Ok(time)
        })?;
        Ok([time])
    })?;
    // A fork takes long by itself, so the added cost shows less.
    let most = few * 5;
    let what = format!("fork of {many} regions");
    expect::that(
        &what,
        all <= most,
        format_args!("{most:?} or less"),
        format_args!("{all:?}"),
    )
}

fn hostile_truncate_costs_little() -> Outcome {
    /// Enough files that a cost for each would show.
    const FILES: u64 = 4;
    let many = many()? / FILES;
    let time = |count: u64| -> Outcome<Duration> {
        let file = mem::memory_file(1)?;
        let child = as_ordinary_user(UNLIMITED, |line| {
            let page = mem::map(None, PAGE, libc::PROT_READ, libc::MAP_SHARED, Some(&file))?;
            let files = (0..FILES).map(|_| open()).collect::<Outcome<Vec<_>>>()?;
            for file in &files {
                for cookie in 0..count {
                    file.register(page, page + PAGE, cookie)?;
                }
            }
            line.tell()?;
            line.hear()?;
            for file in &files {
                let events = read_up_to_last(file, count as usize + 1)?.len() as u64;
                expect::at_least("records", events, count + 1)?;
            }
            Ok(())
        })?;
        child.hear()?;
        let truncate = || {
            let time = timed(|| Ok(file.set_len(0)?))?;
            file.set_len(PAGE)?;
            Ok(time)
        };
        let first = truncate()?;
        let again = shortest(5, truncate)?;
        child.tell()?;
        child.join()?;
        // The first is measured only once, so anything may have delayed it.
        Ok(first.min(again * SLACK).max(again))
    };
    let few = time(FEW)?;
    about_the_same(
        &format!("truncate, {FILES} files with {many} regions each"),
        time(many)?,
        few,
    )
}

fn hostile_waiters_cost_little() -> Outcome {
    /// Epoll sets, and how often the file is in each.
    const SETS: usize = 4;
    const ITEMS: u64 = 3000;
    process::set_limit(libc::RLIMIT_NOFILE, ITEMS + 1000).or_skip("so many files")?;
    let child = as_ordinary_user(UNLIMITED, |line| {
        line.tell()?;
        line.hear()?;
        let time = |items: u64| -> Outcome<Duration> {
            let bench = Bench::one_page()?;
            let duplicates = (0..items)
                .map(|_| bench.device.file().try_clone())
                .collect::<io::Result<Vec<_>>>()?;
            let sets = (0..SETS)
                .map(|_| epoll_of(&duplicates))
                .collect::<io::Result<Vec<_>>>()?;
            let mut number = 0;
            let time = shortest(50, || {
                mem::write_byte(bench.area.all().start, 1);
                let time = timed(|| Ok(mem::advise(&bench.area.all(), libc::MADV_DONTNEED)?))?;
                // None is left out, whether the change or the work item wakes it.
                for set in &sets {
                    let mut ready = 0;
                    process::eventually(|| {
                        ready = count_ready(set, items as usize).unwrap_or(0);
                        ready == items as usize
                    });
                    expect::same("items of epoll that are ready", ready, items as usize)?;
                }
                number += 1;
                bench.reads(&[inval(1, &bench.area.all()), last(number)])?;
                // The sets have to notice that before the next hit.
                for set in &sets {
                    expect::same("items that are ready", count_ready(set, items as usize)?, 0)?;
                }
                Ok(time)
            })?;
            drop((sets, duplicates));
            Ok(time)
        };
        let few = time(8)?;
        about_the_same(
            &format!("a hit with {} waiters", SETS as u64 * ITEMS),
            time(ITEMS)?,
            few,
        )
    })?;
    child.hear()?;
    // So that it is not delayed by the thread that wakes the waiters.
    process::set_priority(child.pid(), 1).or_skip("real-time priority")?;
    child.tell()?;
    child.join()
}

/// An epoll set with all these files in it.
fn epoll_of(files: &[File]) -> io::Result<OwnedFd> {
    // SAFETY: The file was just opened and is nobody else's.
    let set = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
    for file in files {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: 0,
        };
        // SAFETY: `event` is valid.
        check(unsafe {
            libc::epoll_ctl(
                set.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                file.as_raw_fd(),
                &mut event,
            )
        })?;
    }
    Ok(set)
}

/// How many files of a set are ready.
fn count_ready(set: &OwnedFd, most: usize) -> io::Result<usize> {
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; most];
    let fd = set.as_raw_fd();
    // SAFETY: There is room for that many events.
    let count = check(unsafe { libc::epoll_wait(fd, events.as_mut_ptr(), most as i32, 0) })?;
    Ok(count as usize)
}

/// The number of mappings of these processes, if they are made soon.
const MAPPINGS: u64 = 60_000;

/// Allows processes a few more mappings than that.
fn allow_mappings() -> Outcome<Setting> {
    let most = (MAPPINGS + 5000).to_string();
    Setting::change("/proc/sys/vm/max_map_count", &most).or_skip("so many mappings")
}

/// Creates these mappings, which stay, or as many as a slow machine creates soon.
fn make_mappings() -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let start = mem::map(None, MAPPINGS * PAGE, libc::PROT_NONE, flags, None)?;
    let began = Instant::now();
    for page in (0..MAPPINGS).step_by(2) {
        let at = start + page * PAGE;
        mem::protect(&(at..at + PAGE), libc::PROT_READ)?;
        if began.elapsed() > LONG {
            break;
        }
    }
    Ok(())
}

fn hostile_open_does_not_hold_up() -> Outcome {
    const OTHER: &str = "/dev/cpu_dma_latency";
    const OPENERS: u64 = 3;
    const OPENS: usize = 200;
    /// How much longer an open may take.
    const TIMES: u32 = 3;
    /// What is opened in the loop.
    const NOTHING: u8 = 1;
    const DEVICE: u8 = 2;
    open()?;
    File::open(OTHER).or_skip(OTHER)?;
    let _setting = allow_mappings()?;
    let phase = Guarded::shared(1)?.all().start;
    let openers = (0..OPENERS)
        .map(|_| {
            as_ordinary_user(UNLIMITED, |line| {
                make_mappings()?;
                line.tell()?;
                line.hear()?;
                loop {
                    if mem::read_byte(phase) == DEVICE {
                        drop(open()?);
                    } else {
                        drop(File::open("/dev/null")?);
                    }
                }
            })
        })
        .collect::<Outcome<Vec<_>>>()?;
    for opener in &openers {
        opener.hear()?;
        opener.tell()?;
    }
    process::set_priority(0, 1).or_skip("real-time priority")?;
    let nearly_longest = |what: u8| -> Outcome<Duration> {
        mem::write_byte(phase, what);
        thread::sleep(Duration::from_millis(300));
        let mut times = vec![];
        for _ in 0..OPENS {
            times.push(timed(|| Ok(File::open(OTHER)?))?);
            thread::sleep(Duration::from_micros(500));
        }
        times.sort_unstable();
        Ok(times[OPENS * 9 / 10])
    };
    // Alternately, since the machine may be busy at times.
    let [mut usual, mut seen] = [Duration::MAX; 2];
    for _ in 0..3 {
        usual = usual.min(nearly_longest(NOTHING)?);
        seen = seen.min(nearly_longest(DEVICE)?);
    }
    for opener in &openers {
        expect::that(
            "the opener",
            opener.is_alive()?,
            "a running process",
            "its end",
        )?;
    }
    expect::that(
        OTHER,
        seen <= usual * TIMES,
        format_args!("{:?} or less", usual * TIMES),
        format_args!("{seen:?}"),
    )?;
    harness::note(format_args!(
        "{seen:?} beside {OPENERS} openers, {usual:?} without"
    ));
    Ok(())
}

fn hostile_open_ends() -> Outcome {
    const OPENS: u64 = 1000;
    /// The most that all opens may take.
    const MOST: Duration = Duration::from_secs(150);
    let _setting = allow_mappings()?;
    let child = as_ordinary_user(UNLIMITED, |line| {
        make_mappings()?;
        let bench = Bench::new(1)?;
        let open_one = |number: u64| -> Outcome {
            let device = expect::success("open", Device::open_nonblocking())?;
            let page = bench.area.all();
            expect::success(
                "REGISTER_REGION",
                device.register(page.start, page.end, number),
            )?;
            bench.hit(0)?;
            let events = expect::success("read", device.read_events(3))?;
            expect::events("read", &events, &[inval(number, &page), last(1)])
        };
        let each = timed(|| open_one(0))?;
        // If each takes as long as the first.
        let possible = (LONG.as_nanos() / each.as_nanos().max(1)) as u64;
        let opens = harness::rounds(possible.clamp(10, OPENS));
        signals::catch_signal(libc::SIGALRM, libc::SA_RESTART)?;
        signals::set_timer(Duration::from_millis(1))?;
        for number in 1..=opens {
            open_one(number)?;
        }
        signals::set_timer(Duration::ZERO)?;
        expect::at_least("signals", signals::caught().count as u64, opens / 10)?;
        line.tell_number(opens)?;
        line.tell_number(signals::caught().count as u64)?;
        Ok(())
    })?;
    if !process::wait_for_exit(child.pid(), MOST)? {
        return Err(Failure::new(
            "open",
            "an end",
            format_args!("none within {MOST:?}"),
        ));
    }
    let (opens, signals) = (child.hear_number()?, child.hear_number()?);
    child.join()?;
    harness::note(format_args!("{opens} opens, {signals} signals"));
    Ok(())
}

fn hostile_exit_is_quick() -> Outcome {
    const FILES: u64 = 3000;
    const TIMES: u32 = 5;
    process::set_limit(libc::RLIMIT_NOFILE, FILES + 1000).or_skip("so many files")?;
    let time = |make: &dyn Fn(u64) -> Outcome<OwnedFd>| {
        shortest(20, || {
            let child = as_ordinary_user(UNLIMITED, |line| {
                let files = (0..FILES).map(make).collect::<Outcome<Vec<_>>>()?;
                line.tell()?;
                line.hear()?;
                std::mem::forget(files);
                Ok(())
            })?;
            child.hear()?;
            let began = Instant::now();
            child.tell()?;
            child.ended_by()?;
            let time = began.elapsed();
            child.join().map(|()| time)
        })
    };
    let usual = time(&|_| {
        // SAFETY: The file was just opened and is nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC))?) })
    })?;
    let seen = time(&|number| {
        let device = open()?;
        device.register(PAGE, 2 * PAGE, number)?;
        Ok(OwnedFd::from(device.file().try_clone()?))
    })?;
    expect::that(
        "exit",
        seen <= usual * TIMES,
        format_args!("{:?} or less", usual * TIMES),
        format_args!("{seen:?}"),
    )?;
    harness::note(format_args!("{seen:?}, with eventfds {usual:?}"));
    Ok(())
}

fn hostile_memory_is_limited() -> Outcome {
    const FILES: usize = 7;
    /// The default limit.
    const LIMIT: u64 = 8 << 20;
    /// The least memory that a region takes.
    const LEAST: u64 = 64;
    let group = Cgroup::new("hostile").or_skip("a memory cgroup")?;
    let child = Child::fork(|line| {
        group.enter().or_skip("entering a memory cgroup")?;
        process::set_limit(libc::RLIMIT_MEMLOCK, LIMIT)?;
        process::become_user(100_000 + std::process::id()).or_skip("becoming an ordinary user")?;
        let files = (0..FILES).map(|_| open()).collect::<Outcome<Vec<_>>>()?;
        let mut count = 0;
        // Until all files refuse one more region.
        let mut refusals = 0;
        for file in files.iter().cycle() {
            match file.register(PAGE, 2 * PAGE, count) {
                Ok(()) => (count, refusals) = (count + 1, 0),
                result => {
                    expect::error("REGISTER_REGION", result, libc::ENOMEM)?;
                    refusals += 1;
                }
            }
            if refusals == FILES {
                break;
            }
            let most = LIMIT / LEAST;
            expect::that(
                "regions",
                count <= most,
                format_args!("{most} or less"),
                count,
            )?;
        }
        line.tell_number(count)?;
        line.hear()?;
        Ok(())
    })?;
    let count = child.hear_number()?;
    let bytes: u64 = group
        .read("memory.current")?
        .trim()
        .parse()
        .unwrap_or(u64::MAX);
    // A kernel that looks for bugs needs more memory for each object.
    let most = 2 * LIMIT;
    expect::that(
        "bytes charged to the cgroup",
        bytes <= most,
        format_args!("{most} or less"),
        bytes,
    )?;
    child.tell()?;
    child.join()?;
    harness::note(format_args!("{count} regions, {} kB", bytes >> 10));
    Ok(())
}

/// The kilobytes in a line of `/proc/meminfo`.
fn meminfo(name: &str) -> Outcome<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok())
        .ok_or_else(|| Failure::Skipped(format!("meminfo has no {name}")))
}

/// Kilobytes of memory in which the kernel keeps regions.
///
/// Where it merges their slab cache with others, these are all slab caches.
fn region_memory() -> Outcome<u64> {
    const NAME: &str = "ummunotify_region";
    // KASAN keeps freed objects for a while, unless their cache is shrunk.
    let _ = fs::write(format!("/sys/kernel/slab/{NAME}/shrink"), "1");
    let text = fs::read_to_string("/proc/slabinfo")?;
    let Some(line) = text.lines().find(|line| line.starts_with(NAME)) else {
        return meminfo("SUnreclaim");
    };
    // The pages of a slab, and the number of slabs.
    let column = |number| line.split_whitespace().nth(number)?.parse::<u64>().ok();
    column(5)
        .zip(column(14))
        .map(|(pages, slabs)| pages * slabs * PAGE / 1024)
        .ok_or_else(|| Failure::Failed(format!("slabinfo has the line {line:?}")))
}

fn hostile_memory_comes_back() -> Outcome {
    // At most half of the available memory, and what can be registered soon.
    let most = possible_in(LONG)?
        .max(10_000)
        .min(meminfo("MemAvailable")? * 1024 / 2 / 192);
    let before = region_memory()?;
    let child = as_ordinary_user(UNLIMITED, |line| {
        let mut files = vec![];
        for number in 0..most {
            if number % 100_000 == 0 {
                files.push(open()?);
            }
            let file = &files[files.len() - 1];
            file.register(number * PAGE, (number + 1) * PAGE, number)?;
        }
        line.tell()?;
        Ok(line.hear()?)
    })?;
    child.hear()?;
    let taken = region_memory()? - before;
    expect::at_least("kB used by regions", taken, most * 64 / 1024)?;
    child.signal(libc::SIGKILL)?;
    expect::same("killed by", child.ended_by()?, Some(libc::SIGKILL))?;
    let comes_back =
        process::eventually(|| region_memory().is_ok_and(|now| now < before + taken / 10));
    expect::that(
        "kB not freed",
        comes_back,
        taken / 10,
        region_memory()?.saturating_sub(before),
    )?;
    harness::note(format_args!("{taken} kB"));
    Ok(())
}

fn hostile_read_heeds_signals() -> Outcome {
    let count = many()?;
    as_ordinary_user(UNLIMITED, |line| {
        let crowd = Crowd::new(Layout::Overlapping, count)?;
        signals::catch_signal(libc::SIGALRM, 0)?;
        let mut shorter = 0;
        for round in 1..=2 {
            crowd.hit()?;
            let mut seen: Vec<Event> = vec![];
            signals::set_timer(Duration::from_millis(1))?;
            while seen.last().is_none_or(|event| event.kind != EVENT_LAST) {
                match crowd.bench.device.read_events(count as usize + 1) {
                    Ok(events) => seen.extend(events),
                    Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
                shorter += u64::from(seen.len() as u64 <= count);
            }
            signals::set_timer(Duration::ZERO)?;
            expect::events("reads", &seen, &crowd.events(round))?;
        }
        line.tell_number(shorter)?;
        expect::at_least("reads cut short by a signal", shorter, 1)
    })
    .and_then(|child| {
        let shorter = child.hear_number()?;
        child.join()?;
        harness::note(format_args!("{shorter} reads cut short, of {count} events"));
        Ok(())
    })
}

fn hostile_unload_beside_close() -> Outcome {
    const USERS: u64 = 3;
    let module = Unloaded::new()?;
    expect::success("loading the module", module.load(""))?;
    let done = Guarded::shared(1)?.all().start;
    let users = (0..USERS)
        .map(|_| {
            Child::fork(|_| {
                process::set_limit(libc::RLIMIT_MEMLOCK, UNLIMITED)?;
                process::drop_privilege().or_skip("becoming an ordinary user")?;
                let area = Guarded::new(1)?;
                let page = area.all();
                while mem::read_byte(done) == 0 {
                    // The device does not exist all the time.
                    let Ok(device) = Device::open_nonblocking() else {
                        thread::sleep(Duration::from_micros(200));
                        continue;
                    };
                    for cookie in 0..100 {
                        device.register(page.start, page.end, cookie)?;
                    }
                    mem::advise(&page, libc::MADV_DONTNEED)?;
                    mem::write_byte(page.start, 1);
                    drop(device);
                    thread::sleep(Duration::from_micros(300));
                }
                Ok(())
            })
        })
        .collect::<io::Result<Vec<_>>>()?;
    for _ in 0..harness::rounds(15) {
        let removed = process::eventually(|| Module::remove().is_ok());
        expect::that("the module", removed, "to be unloaded", "busy")?;
        expect::success("loading the module", module.load(""))?;
    }
    mem::write_byte(done, 1);
    users.into_iter().try_for_each(Child::join)
}
