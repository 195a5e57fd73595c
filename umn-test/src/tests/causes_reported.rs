// SPDX-License-Identifier: GPL-2.0

//! Causes of changes that involve several pages or another process. `causes` tests changes of a
//! single page.

use std::{
    fs::{
        self,
        File,
        OpenOptions, //
    },
    ops::Range,
    os::unix::fs::OpenOptionsExt,
    time::Duration, //
};

use super::{
    causes::{
        attach,
        causes_reported,
        collapse,
        collapsible_on,
        hugetlb_page,
        migrate,
        other_node, //
    },
    others::{
        debugger,
        in_another_process,
        let_act,
        move_pages, //
    },
    prelude::*, //
};
use crate::system;

table! {
    causes_munmap_around: "munmap of more, and of less, than a region: UNMAP",
    causes_brk: "brk and shmdt: UNMAP",
    causes_mremap: "mremap: UNMAP at the old and the new address, and of the part that is cut off",
    causes_truncate: "another process truncates the file: CLEAR",
    causes_fork: "fork: PROTECT_PAGES; the first write after it: CLEAR",
    causes_write_back: "write-back, also asked for by another process: PROTECT_PAGES",
    causes_fork_of_shared: "fork does not report shared memory",
    causes_soft_dirty: "clear_refs, also by another process: SOFT_DIRTY",
    causes_migration: "another process moves pages: CLEAR",
    causes_debugger: "a debugger writes to a copy-on-write page: CLEAR",
    causes_merged: "KSM merges a page: CLEAR; a write unshares it: CLEAR",
    causes_collapsed: "pages are collapsed into a huge page: CLEAR",
    causes_split: "mprotect, mlock and MADV_DONTFORK of part of a huge page: CLEAR of the block",
    causes_hugetlb_fork: "fork of private hugetlb memory: CLEAR",
    causes_hugetlb_mremap: "mremap of private hugetlb memory: CLEAR and UNMAP",
    causes_at_exit: "the end of the process hits nothing",
    causes_folded: "an event carries the causes of all changes since it was queued",
    causes_of_one_change: "each event of a change that hits many regions carries its cause",
    causes_deferred: "events of deferred changes carry causes",
    causes_deferred_in_turn: "the same range changes for several causes: each is reported",
    causes_start_anew: "after a read, the next event carries only later causes",
    causes_discarded: "a region that is registered again does not inherit causes",
}

fn causes_munmap_around() -> Outcome {
    let unmap_all = |page: &Range<u64>| Ok(mem::unmap(&(page.start - PAGE..page.end + PAGE))?);
    causes_reported(Causes::UNMAP, &Guarded::new(3)?, unmap_all)?;
    let area = Guarded::new(4)?;
    let bench = Bench::over(open_with(Features::CAUSE)?, area)?;
    bench.watch(1, &bench.area.all())?;
    mem::unmap(&bench.area.page(2))?;
    only(&bench, Causes::UNMAP)
}

/// Expects the queue to consist of events with these causes, at least one.
#[track_caller]
fn only(bench: &Bench, causes: Causes) -> Outcome {
    let events = bench.drain()?;
    let mut reported: Vec<_> = events
        .iter()
        .filter(|event| event.kind == EVENT_INVAL)
        .map(causes_of)
        .collect();
    reported.dedup();
    expect::same("causes", reported, vec![causes])
}

fn causes_brk() -> Outcome {
    // SAFETY: The heap grows by two pages that nobody else uses.
    let end = |bytes| check(unsafe { libc::sbrk(bytes) } as isize);
    let odd = end(0)? as u64 % PAGE;
    end((PAGE - odd) as isize)?;
    let start = end(2 * PAGE as isize)? as u64;
    mem::write_byte(start + PAGE, 1);
    let bench = Bench::over(open_with(Features::CAUSE)?, Guarded::new(1)?)?;
    bench.watch(1, &(start + PAGE..start + 2 * PAGE))?;
    end(-(PAGE as isize))?;
    only(&bench, Causes::UNMAP)?;

    let at = attach(PAGE)?;
    mem::write_byte(at, 1);
    bench.watch(2, &(at..at + PAGE))?;
    // SAFETY: Nobody uses the segment any more.
    check(unsafe { libc::shmdt(at as *const _) })?;
    only(&bench, Causes::UNMAP)
}

fn causes_mremap() -> Outcome {
    let bench = Bench::over(open_with(Features::CAUSE)?, Guarded::new(4)?)?;
    bench.watch_pages()?;
    mem::move_to(&bench.area.page(0), &bench.area.page(1))?;
    let events = bench.drain()?;
    let reported: Vec<_> = events
        .iter()
        .filter(|event| event.kind == EVENT_INVAL)
        .map(|event| (event.user_cookie_counter, causes_of(event)))
        .collect();
    let wanted = [2, 1].map(|cookie| (cookie, Causes::UNMAP));
    expect::same("cookies and causes", reported, wanted.to_vec())?;
    mem::resize(&bench.area.span(2..4), 1, 0)?;
    only(&bench, Causes::UNMAP)
}

fn causes_truncate() -> Outcome {
    let file = mem::memory_file(2)?;
    let shorten = Child::fork(|line| {
        line.hear()?;
        Ok(file.set_len(PAGE)?)
    })?;
    let area = Guarded::of_file(&file, 2)?;
    causes_reported(Causes::CLEAR, &area, |_| {
        shorten.tell()?;
        shorten.join()
    })
}

fn causes_fork() -> Outcome {
    let area = Guarded::new(2)?;
    let mut child = None;
    causes_reported(Causes::PROTECT_PAGES, &area, |_| {
        child = Some(Child::fork(|line| Ok(line.hear()?))?);
        Ok(())
    })?;
    // The child still has the pages.
    causes_reported(Causes::CLEAR, &area, |page| {
        mem::write_byte(page.start, 1);
        Ok(())
    })?;
    drop(child);
    Ok(())
}

/// A RAM disk that nothing uses: tmpfs, where other files of tests are, has no write-back.
fn unused_disk() -> Outcome<File> {
    const DISK: &str = "/dev/ram1";
    system::may_change().or_skip("writing to a disk")?;
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    // Fails if it is in use.
    options.custom_flags(libc::O_EXCL).open(DISK).or_skip(DISK)
}

fn causes_write_back() -> Outcome {
    let disk = unused_disk()?;
    let kept = |page: &Range<u64>, write: &dyn Fn() -> Outcome| -> Outcome {
        let before = mem::page_states(page)?[0].frame();
        write()?;
        expect::same("page frame", mem::page_states(page)?[0].frame(), before)
    };
    let area = Guarded::of_file(&disk, 3)?;
    causes_reported(Causes::PROTECT_PAGES, &area, |page| {
        kept(page, &|| Ok(mem::write_back(page)?))
    })?;
    area.fill();
    let bench = Bench::over(open_with(Features::CAUSE)?, area)?;
    let ignored = Causes::PROTECT_PAGES;
    bench.device.watch_ignoring(bench.area.all(), 1, ignored)?;
    kept(&bench.area.page(1), &|| {
        let_act(in_another_process(|_| Ok(disk.sync_data()?))?)
    })?;
    bench.counts(0)?;
    // The first write after it makes the page writable again, which is not reported.
    bench.area.fill();
    bench.counts(0)?;
    let area = bench.area;
    causes_reported(Causes::PROTECT_PAGES, &area, |_| {
        let_act(in_another_process(|_| Ok(disk.sync_data()?))?)
    })
}

fn causes_fork_of_shared() -> Outcome {
    let bench = Bench::over(open_with(Features::CAUSE)?, Guarded::shared(2)?)?;
    bench.watch_pages()?;
    Child::fork(|_| Ok(()))?.join()?;
    bench.counts(0)
}

fn causes_soft_dirty() -> Outcome {
    let clear = |pid: &str| fs::write(format!("/proc/{pid}/clear_refs"), "4").or_skip("clear_refs");
    causes_reported(Causes::SOFT_DIRTY, &Guarded::new(2)?, |_| clear("self"))?;
    let parent = std::process::id().to_string();
    let other = Child::fork(|line| {
        line.hear()?;
        clear(&parent)
    })?;
    causes_reported(Causes::SOFT_DIRTY, &Guarded::new(2)?, |_| {
        other.tell()?;
        other.join()
    })
}

fn causes_migration() -> Outcome {
    let parent = std::process::id() as i32;
    let other = Child::fork(|line| move_pages(parent, line))?;
    causes_reported(Causes::CLEAR, &Guarded::new(2)?, |page| {
        let node = other_node(page.start)?;
        migrate(page.start, node, || {
            let ask = || -> Outcome {
                other.tell_number(page.start)?;
                other.tell_number(node as u64)?;
                other.hear()
            };
            ask().map_err(|_| std::io::Error::other("the other process has ended"))
        })
    })?;
    other.tell_number(0)?;
    other.tell_number(0)?;
    other.join()
}

fn causes_debugger() -> Outcome {
    let debugger = debugger()?;
    let area = Guarded::new(2)?;
    // The child shares the pages, so a write must copy them.
    let holder = Child::fork(|line| Ok(line.hear()?))?;
    causes_reported(Causes::CLEAR, &area, |page| {
        debugger.tell_number(page.start)?;
        debugger.join()
    })?;
    drop(holder);
    Ok(())
}

/// Gives two pages the same contents, and lets KSM merge them.
pub(super) fn make_mergeable(one: &Range<u64>, other: &Range<u64>) -> Outcome {
    for byte in 0..PAGE {
        let value = (byte * 7 + 13) as u8;
        mem::write_byte(one.start + byte, value);
        mem::write_byte(other.start + byte, value);
    }
    for range in [one, other] {
        mem::advise(range, libc::MADV_MERGEABLE).or_skip("MADV_MERGEABLE")?;
    }
    Ok(())
}

/// Waits until KSM has merged two pages.
pub(super) fn await_merge(one: &Range<u64>, other: &Range<u64>) -> Outcome {
    let frame = |page| Ok::<_, Failure>(mem::page_states(page)?[0].frame());
    let end = std::time::Instant::now() + std::time::Duration::from_secs(40);
    while frame(one)? != frame(other)? {
        if std::time::Instant::now() > end {
            let scans = std::fs::read_to_string("/sys/kernel/mm/ksm/full_scans")?;
            let seen = format!("two, after {} scans of all memory", scans.trim());
            return Err(Failure::new("KSM", "two merged pages", seen));
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok(())
}

/// Gives two pages the same contents, and waits until KSM has merged them.
pub(super) fn merge(one: &Range<u64>, other: &Range<u64>) -> Outcome {
    make_mergeable(one, other)?;
    await_merge(one, other)
}

fn causes_merged() -> Outcome {
    let _settings = Setting::run_ksm().or_skip("KSM")?;
    let (area, twin) = (Guarded::new(2)?, Guarded::new(1)?);
    causes_reported(Causes::CLEAR, &area, |page| merge(page, &twin.all()))?;
    causes_reported(Causes::CLEAR, &area, |page| {
        mem::write_byte(page.start, 99);
        Ok(())
    })
}

/// A watched huge page, and small pages on both sides, one of which is watched on each side.
pub(super) fn huge_page() -> Outcome<(Bench, Range<u64>)> {
    let (bench, place) = collapsible_on(open_with(Features::CAUSE)?)?;
    mem::advise(&place, libc::MADV_HUGEPAGE).or_skip("huge pages")?;
    collapse(place.start, || mem::advise(&place, libc::MADV_COLLAPSE))?;
    bench.watch(1, &(place.start - PAGE..place.start))?;
    bench.watch(2, &(place.start..place.start + PAGE))?;
    bench.watch(3, &(place.end - PAGE..place.end))?;
    bench.watch(4, &(place.end..place.end + PAGE))?;
    Ok((bench, place))
}

/// The regions that were hit, with their causes.
pub(super) fn reported(bench: &Bench) -> Outcome<Vec<(u64, Causes)>> {
    let events = bench.drain()?;
    let events = events.iter().filter(|event| event.kind == EVENT_INVAL);
    let mut reported: Vec<_> = events
        .map(|event| (event.user_cookie_counter, causes_of(event)))
        .collect();
    reported.sort_by_key(|(cookie, _)| *cookie);
    Ok(reported)
}

fn causes_collapsed() -> Outcome {
    let (bench, place) = collapsible_on(open_with(Features::CAUSE)?)?;
    bench.watch(1, &(place.start..place.start + PAGE))?;
    mem::advise(&place, libc::MADV_HUGEPAGE).or_skip("huge pages")?;
    collapse(place.start, || mem::advise(&place, libc::MADV_COLLAPSE))?;
    only(&bench, Causes::CLEAR)
}

fn causes_split() -> Outcome {
    let change = |number: usize, part: &Range<u64>| match number {
        0 => mem::protect(part, libc::PROT_READ),
        1 => mem::lock(part),
        _ => mem::advise(part, libc::MADV_DONTFORK),
    };
    for number in 0..3 {
        let (bench, place) = huge_page()?;
        // Change the middle of the block, where nothing is watched.
        change(number, &(place.start + 64 * PAGE..place.start + 66 * PAGE))?;
        let wanted = vec![(2, Causes::CLEAR), (3, Causes::CLEAR)];
        expect::same("cookies and causes", reported(&bench)?, wanted)?;
    }
    Ok(())
}

/// A hugetlb page that is watched by two regions, one of which ignores some causes, and the setting
/// that provides it.
fn watched_hugetlb_page() -> Outcome<(Setting, Bench, Range<u64>)> {
    let (pool, at) = hugetlb_page()?;
    mem::write_byte(at, 1);
    let page = at..at + HUGE;
    let bench = Bench::over(open_with(Features::CAUSE)?, Guarded::new(1)?)?;
    bench.watch(1, &page)?;
    let ignored = Causes::SAME_PAGES;
    bench.device.watch_ignoring(page.clone(), 2, ignored)?;
    Ok((pool, bench, page))
}

/// Expects both regions of such a page to be hit, with the same causes.
#[track_caller]
fn both(bench: &Bench, causes: Causes) -> Outcome {
    let mut seen = reported(bench)?;
    seen.sort_by_key(|(cookie, _)| *cookie);
    expect::same("cookies and causes", seen, vec![(1, causes), (2, causes)])
}

fn causes_hugetlb_fork() -> Outcome {
    let (_pool, bench, page) = watched_hugetlb_page()?;
    Child::fork(|_| Ok(()))?.join()?;
    both(&bench, Causes::CLEAR)?;
    Ok(mem::unmap(&page)?)
}

fn causes_hugetlb_mremap() -> Outcome {
    let (_pool, bench, page) = watched_hugetlb_page()?;
    let to = Guarded::huge(1)?.all();
    mem::move_to(&page, &to)?;
    both(&bench, Causes::CLEAR | Causes::UNMAP)?;
    Ok(mem::unmap(&to)?)
}

fn causes_at_exit() -> Outcome {
    let child = Child::fork(|line| {
        let area = Guarded::new(2)?;
        let device = open_with(Features::ALL)?;
        device.watch(area.all(), 1)?;
        device.watch_ignoring(area.all(), 2, Causes::SAME_PAGES)?;
        Ok(line.pass(&device)?)
    })?;
    let device = Device::from(child.receive()?);
    child.join()?;
    let seen = device.poll(libc::POLLIN, Duration::from_secs(10))?;
    expect::same("poll", seen, libc::POLLIN | libc::POLLHUP)?;
    expect::events("read", &device.read_events(4)?, &[])
}

fn causes_folded() -> Outcome {
    let bench = Bench::over(open_with(Features::CAUSE)?, Guarded::new(4)?)?;
    bench.watch(1, &bench.area.all())?;
    let page = bench.area.page(2);
    mem::protect(&page, libc::PROT_READ)?;
    let child = Child::fork(|line| Ok(line.hear()?))?;
    let mut causes = Causes::PROTECT_AREA | Causes::PROTECT_PAGES;
    only(&bench, causes)?;

    mem::protect(&page, libc::PROT_READ | libc::PROT_WRITE)?;
    causes = Causes::PROTECT_AREA;
    mem::write_byte(page.start, 1);
    causes = causes | Causes::CLEAR;
    if fs::write("/proc/self/clear_refs", "4").is_ok() {
        causes = causes | Causes::SOFT_DIRTY;
    }
    mem::unmap(&bench.area.page(0))?;
    causes = causes | Causes::UNMAP;
    only(&bench, causes)?;
    drop(child);
    Ok(())
}

fn causes_of_one_change() -> Outcome {
    const REGIONS: u64 = 100;
    let bench = Bench::over(open_with(Features::CAUSE)?, Guarded::new(REGIONS)?)?;
    bench.watch_pages()?;
    mem::protect(&bench.area.all(), libc::PROT_READ)?;
    let wanted: Vec<_> = (1..=REGIONS).map(|it| (it, Causes::PROTECT_AREA)).collect();
    expect::same("cookies and causes", reported(&bench)?, wanted)
}

fn causes_deferred() -> Outcome {
    /// More regions than a change visits.
    const REGIONS: u64 = 1000;
    let bench = Bench::over(open_with(Features::CAUSE)?, Guarded::new(REGIONS)?)?;
    bench.watch_pages()?;
    mem::protect(&bench.area.all(), libc::PROT_READ)?;
    mem::advise(&bench.area.all(), libc::MADV_DONTNEED)?;
    let events = reported(&bench)?;
    expect::same("events", events.len() as u64, REGIONS)?;
    let both = Causes::PROTECT_AREA | Causes::CLEAR;
    let wrong = events.iter().find(|(_, causes)| *causes != both);
    expect::same("an event without both causes", wrong, None)
}

fn causes_deferred_in_turn() -> Outcome {
    /// More than a change visits.
    const REGIONS: u64 = 1000;
    let bench = Bench::over(open_with(Features::CAUSE)?, Guarded::new(REGIONS)?)?;
    bench.watch_pages()?;
    let all = bench.area.all();
    mem::protect(&all, libc::PROT_READ)?;
    mem::advise(&all, libc::MADV_DONTNEED)?;
    mem::unmap(&all)?;
    let wanted = Causes::PROTECT_AREA | Causes::CLEAR | Causes::UNMAP;
    let wanted: Vec<_> = (1..=REGIONS).map(|it| (it, wanted)).collect();
    expect::same("cookies and causes", reported(&bench)?, wanted)
}

fn causes_start_anew() -> Outcome {
    let bench = Bench::over(open_with(Features::CAUSE)?, Guarded::new(1)?)?;
    bench.watch_pages()?;
    mem::protect(&bench.area.all(), libc::PROT_READ)?;
    only(&bench, Causes::PROTECT_AREA)?;
    mem::advise(&bench.area.all(), libc::MADV_DONTNEED)?;
    only(&bench, Causes::CLEAR)?;
    mem::unmap(&bench.area.all())?;
    only(&bench, Causes::UNMAP)
}

fn causes_discarded() -> Outcome {
    let bench = Bench::over(open_with(Features::CAUSE)?, Guarded::new(1)?)?;
    bench.watch_pages()?;
    mem::protect(&bench.area.all(), libc::PROT_READ)?;
    bench.device.unregister(1)?;
    bench.watch_pages()?;
    mem::advise(&bench.area.all(), libc::MADV_DONTNEED)?;
    only(&bench, Causes::CLEAR)
}
