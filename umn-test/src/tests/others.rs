// SPDX-License-Identifier: GPL-2.0

//! Invalidations that the caller does not cause: by other threads, by other processes, and by the
//! kernel itself.

use std::{
    fs,
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
    }, //
};

use super::{
    causes::{
        collapse,
        collapsible,
        migrate,
        move_page,
        only_huge,
        only_the_middle_of_file,
        other_node,
        page_out,
        truncated,
        watch_huge, //
    },
    causes_reported::{
        await_merge,
        make_mergeable, //
    },
    prelude::*, //
};

table! {
    other_thread_unmaps: "another thread's munmap",
    other_process_truncates: "another process truncates the mapped file",
    other_process_punches_hole: "another process punches a hole into the mapped file",
    other_process_pages_out: "another process: process_madvise(MADV_PAGEOUT)",
    other_process_collapses: "another process: process_madvise(MADV_COLLAPSE)",
    other_process_dontneed: "another process: process_madvise(MADV_DONTNEED), if allowed",
    other_process_moves_pages: "another process moves a page to another node",
    other_process_soft_dirty: "another process writes clear_refs",
    other_process_writes_memory: "a debugger writes to a copy-on-write page",
    kernel_reclaims: "reclaim: each page that was swapped out is reported",
    kernel_merges: "KSM merges a page, and a write unshares it",
    kernel_collapses: "khugepaged collapses pages into a huge page",
    kernel_compacts: "compaction: each page that was moved is reported",
    kernel_balances: "NUMA balancing: each page that was moved is reported",
}

fn other_thread_unmaps() -> Outcome {
    let bench = Bench::new(3)?;
    bench.watch_pages()?;
    let page = bench.area.page(1);
    thread::scope(|scope| {
        let unmap = scope.spawn(|| mem::unmap(&page));
        unmap.join().expect("the thread does not panic")
    })?;
    bench.counts(1)?;
    bench.reads(&[inval(2, &page), last(1)])
}

/// Expects events of only the second of three watched pages.
#[track_caller]
fn only_the_second(bench: &Bench) -> Outcome {
    expect::at_least("the counter", bench.counter.get(), 1)?;
    let events = bench.drain()?;
    expect::same("records", events.len(), 2)?;
    expect::same("cookie", events[0].user_cookie_counter, 2)
}

/// Does something in a process that was forked before there was anything to watch.
pub(super) fn in_another_process(act: impl FnOnce(&Channel) -> Outcome) -> io::Result<Child> {
    Child::fork(|line| {
        line.hear()?;
        act(line)
    })
}

/// Lets the other process act and waits for its end.
pub(super) fn let_act(child: Child) -> Outcome {
    child.tell()?;
    child.join()
}

fn other_process_truncates() -> Outcome {
    truncated(|file| let_act(in_another_process(|_| Ok(file.set_len(2 * PAGE)?))?))
}

fn other_process_punches_hole() -> Outcome {
    only_the_middle_of_file(|file| {
        let_act(in_another_process(|_| Ok(mem::punch_hole(file, 1..2)?))?)
    })
}

/// A process that gives advice on one range of its parent's memory.
///
/// It does so each time the parent asks it to, and answers with the error number or 0.
fn adviser(advice: i32) -> io::Result<Child> {
    let parent = std::process::id();
    in_another_process(move |line| {
        // SAFETY: The call takes no pointer.
        let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, parent, 0) })?;
        // SAFETY: The file was just opened and is nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        loop {
            let (start, length) = (line.hear_number()?, line.hear_number()?);
            if length == 0 {
                return Ok(());
            }
            let range = libc::iovec {
                iov_base: start as *mut _,
                iov_len: length as usize,
            };
            // SAFETY: The kernel checks the range, which is in another process.
            let result = check(unsafe {
                let fd = fd.as_raw_fd();
                libc::syscall(libc::SYS_process_madvise, fd, &range, 1usize, advice, 0)
            });
            let error = result.err().and_then(|error| error.raw_os_error());
            line.tell_number(error.unwrap_or(0) as u64)?;
        }
    })
}

/// Makes the adviser act; fails if the adviser itself fails.
fn advised(child: &Child, range: &std::ops::Range<u64>) -> Outcome<io::Result<()>> {
    child.tell_number(range.start)?;
    child.tell_number(range.end - range.start)?;
    Ok(match child.hear_number()? {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number as i32)),
    })
}

/// Lets the adviser end.
fn dismiss(child: Child) -> Outcome {
    child.tell_number(0)?;
    child.tell_number(0)?;
    child.join()
}

/// Turns an outcome into the result of a call, if it was one.
fn flatten(result: Outcome<io::Result<()>>) -> io::Result<()> {
    result.unwrap_or_else(|failure| Err(io::Error::other(format!("{failure:?}"))))
}

fn other_process_pages_out() -> Outcome {
    open()?;
    let child = adviser(libc::MADV_PAGEOUT)?;
    child.tell()?;
    let bench = Bench::new(3)?;
    bench.watch_pages()?;
    let page = bench.area.page(1);
    page_out(&page, || flatten(advised(&child, &page)))?;
    only_the_second(&bench)?;
    dismiss(child)
}

fn other_process_collapses() -> Outcome {
    open()?;
    let child = adviser(libc::MADV_COLLAPSE)?;
    child.tell()?;
    let (bench, place) = collapsible()?;
    watch_huge(&bench, &place)?;
    mem::advise(&place, libc::MADV_HUGEPAGE).or_skip("huge pages")?;
    collapse(place.start, || flatten(advised(&child, &place)))?;
    only_huge(&bench)?;
    dismiss(child)
}

fn other_process_dontneed() -> Outcome {
    open()?;
    let child = adviser(libc::MADV_DONTNEED)?;
    child.tell()?;
    let bench = Bench::one_page()?;
    let before = mem::read_byte(bench.area.all().start);
    match advised(&child, &bench.area.all())? {
        Ok(()) => bench.reads(&[inval(1, &bench.area.all()), last(1)])?,
        refused => {
            expect::one_of("process_madvise", refused, &[libc::EINVAL, libc::EPERM])?;
            let now = mem::read_byte(bench.area.all().start);
            expect::same("content of the page", now, before)?;
            bench.counts(0)?;
        }
    }
    dismiss(child)
}

/// Moves pages of a process to nodes on request, until the requested page is 0.
pub(super) fn move_pages(parent: i32, line: &Channel) -> Outcome {
    loop {
        let (page, node) = (line.hear_number()?, line.hear_number()?);
        if page == 0 {
            return Ok(());
        }
        // That a page is busy at the moment is not an error.
        let _ = move_page(parent, page, Some(node as i32));
        line.tell()?;
    }
}

fn other_process_moves_pages() -> Outcome {
    open()?;
    let parent = std::process::id() as i32;
    let child = in_another_process(|line| move_pages(parent, line))?;
    child.tell()?;
    let bench = Bench::new(3)?;
    bench.watch_pages()?;
    let page = bench.area.page(1).start;
    let node = other_node(page)?;
    migrate(page, node, || {
        let ask = || {
            child.tell_number(page)?;
            child.tell_number(node as u64)?;
            child.hear()
        };
        flatten(ask().map(Ok))
    })?;
    only_the_second(&bench)?;
    dismiss(child)
}

fn other_process_soft_dirty() -> Outcome {
    open()?;
    let path = format!("/proc/{}/clear_refs", std::process::id());
    let child = in_another_process(|_| fs::write(&path, "4").or_skip("clear_refs"))?;
    let bench = Bench::one_page()?;
    let_act(child)?;
    expect::at_least("the counter", bench.counter.get(), 1)?;
    expect::same("records", bench.drain()?.len(), 2)
}

/// A debugger, which writes 42 to the address that it receives.
pub(super) fn debugger() -> Outcome<Child> {
    let path = format!("/proc/{}/mem", std::process::id());
    Ok(Child::fork(|line| {
        use std::os::unix::fs::FileExt;
        let memory = fs::File::options().write(true).open(&path);
        let memory = memory.or_skip("another process's memory")?;
        let at = line.hear_number()?;
        memory.write_all_at(&[42], at).or_skip("writing there")
    })?)
}

fn other_process_writes_memory() -> Outcome {
    open()?;
    let debugger = debugger()?;
    let bench = Bench::new(3)?;
    // Another process that has the pages, so that a write must copy them.
    let holder = Child::fork(|line| Ok(line.hear()?))?;
    bench.watch_pages()?;
    let page = bench.area.page(1);
    debugger.tell_number(page.start)?;
    debugger.join()?;
    expect::same("the byte", mem::read_byte(page.start), 42)?;
    bench.counts(1)?;
    bench.reads(&[inval(2, &page), last(1)])?;
    holder.tell()?;
    holder.join()
}

/// Expects every page for which `changed` returns true to be reported; cookies are page numbers
/// plus 1.
///
/// Returns how many there were. Others may be reported, too.
fn all_reported(bench: &Bench, changed: impl Fn(usize) -> bool) -> Outcome<usize> {
    let mut reported = vec![false; bench.area.pages() as usize];
    for event in bench.drain()? {
        if event.kind == EVENT_INVAL {
            reported[event.user_cookie_counter as usize - 1] = true;
        }
    }
    let changed: Vec<usize> = (0..reported.len()).filter(|page| changed(*page)).collect();
    let missed = changed.iter().filter(|page| !reported[**page]).count();
    expect::same("pages that were missed", missed, 0)?;
    Ok(changed.len())
}

/// Another file that watches the same memory, and ignores what leaves the pages as they are.
fn witness(area: &Guarded) -> Outcome<Device> {
    let device = open_with(Features::CAUSE)?;
    device.watch_ignoring(area.all(), 1, Causes::SAME_PAGES)?;
    Ok(device)
}

/// Expects the event of such a file to name just CLEAR.
#[track_caller]
fn saw_clear(device: &Device) -> Outcome {
    let events = expect::success("read", device.read_events(1))?;
    expect::same("causes", causes_of(&events[0]), Causes::CLEAR)
}

fn kernel_reclaims() -> Outcome {
    open()?;
    let group = Cgroup::new("reclaim").or_skip("a memory cgroup")?;
    let child = Child::fork(|line| {
        group.enter().or_skip("entering a memory cgroup")?;
        let bench = Bench::new(1024)?;
        bench.watch_pages()?;
        let witness = witness(&bench.area)?;
        for _ in 0..20 {
            line.tell_number(1)?;
            line.hear()?;
            let states = mem::page_states(&bench.area.all())?;
            let gone = all_reported(&bench, |page| !states[page].present())?;
            if gone > 0 {
                line.tell_number(0)?;
                return saw_clear(&witness);
            }
        }
        Err(Failure::new(
            "memory.reclaim",
            "some pages swapped out",
            "none",
        ))
    })?;
    while child.hear_number()? == 1 {
        // It fails if the kernel finds less than that.
        match group.write("memory.reclaim", "2M") {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => result.or_skip("memory.reclaim")?,
        }
        child.tell()?;
    }
    child.join()
}

fn kernel_merges() -> Outcome {
    let bench = Bench::new(3)?;
    let _settings = Setting::run_ksm().or_skip("KSM")?;
    let twin = Guarded::new(1)?;
    let (page, other) = (bench.area.page(1), twin.all());
    bench.watch_pages()?;
    make_mergeable(&page, &other)?;
    bench.counts(0)?;
    await_merge(&page, &other)?;
    only_the_second(&bench)?;

    let before = bench.counter.get();
    mem::write_byte(page.start, 99);
    bench.counts(before + 1)?;
    bench.reads(&[inval(2, &page), last(before + 1)])
}

fn kernel_collapses() -> Outcome {
    let (bench, place) = collapsible()?;
    watch_huge(&bench, &place)?;
    let witness = witness(&bench.area)?;
    let values = [
        ("enabled", "madvise"),
        ("khugepaged/scan_sleep_millisecs", "0"),
        ("khugepaged/alloc_sleep_millisecs", "0"),
        ("khugepaged/pages_to_scan", "4096"),
    ];
    let directory = "/sys/kernel/mm/transparent_hugepage";
    let _settings = Setting::change_all(directory, &values).or_skip("khugepaged")?;
    mem::advise(&place, libc::MADV_HUGEPAGE).or_skip("huge pages")?;
    let end = Instant::now() + Duration::from_secs(120);
    while !mem::is_huge(place.start)? {
        if Instant::now() > end {
            return Err(Failure::Skipped("khugepaged made no huge page".into()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    saw_clear(&witness)?;
    only_huge(&bench)
}

fn kernel_compacts() -> Outcome {
    const BLOCKS: u64 = 16;
    let bench = Bench::new(BLOCKS * HUGE / PAGE)?;
    bench.watch_pages()?;
    // Freed pages must be available at once instead of staying on per-processor lists.
    let at_once = "/proc/sys/vm/percpu_pagelist_high_fraction";
    let _setting = Setting::change(at_once, "1000").or_skip("compaction")?;
    let hole = |page: u64| page % 4 != 0;
    // Holes all over the memory, so that there is something to compact.
    for page in (0..bench.area.pages()).filter(|page| hole(*page)) {
        mem::advise(&bench.area.page(page), libc::MADV_DONTNEED)?;
    }
    bench.drain()?;
    let witness = witness(&bench.area)?;
    let states = || mem::page_states(&bench.area.all());
    if states()?[0].frame() == 0 {
        return Err(Failure::Skipped("page frames need privilege".into()));
    }
    for _ in 0..5 {
        let before = states()?;
        fs::write("/proc/sys/vm/compact_memory", "1").or_skip("compaction")?;
        let after = states()?;
        if all_reported(&bench, |page| before[page] != after[page])? > 0 {
            return saw_clear(&witness);
        }
    }
    Err(Failure::Skipped("compaction moved no page".into()))
}

fn kernel_balances() -> Outcome {
    const TIME: Duration = Duration::from_secs(4);
    let bench = Bench::new(64)?;
    process::balance_numa(true).or_skip("NUMA policy")?;
    let switch = "/proc/sys/kernel/numa_balancing";
    let _setting = Setting::change(switch, "1").or_skip("NUMA balancing")?;
    let node = other_node(bench.area.all().start)?;
    for page in 0..bench.area.pages() {
        // Away from where the process runs, so that moving it back pays off.
        let _ = move_page(0, bench.area.page(page).start, Some(node));
    }
    bench.watch_pages()?;
    let witness = witness(&bench.area)?;
    let before = mem::page_states(&bench.area.all())?;
    if before[0].frame() == 0 {
        return Err(Failure::Skipped("page frames need privilege".into()));
    }
    let end = Instant::now() + TIME;
    while Instant::now() < end {
        for page in 0..bench.area.pages() {
            mem::write_byte(bench.area.page(page).start, 1);
        }
        let after = mem::page_states(&bench.area.all())?;
        if (0..before.len()).any(|page| before[page].frame() != after[page].frame()) {
            let moved = |page: usize| before[page].frame() != after[page].frame();
            all_reported(&bench, moved)?;
            return saw_clear(&witness);
        }
    }
    Err(Failure::Skipped("NUMA balancing moved no page".into()))
}
