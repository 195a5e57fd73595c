// SPDX-License-Identifier: GPL-2.0

//! Every way in which a process can change its own mappings. Each change is reported, and only
//! where it happens.

use std::{
    ffi::CString,
    fs::{
        self,
        File, //
    },
    io,
    ops::Range,
    os::{
        fd::{
            AsRawFd,
            FromRawFd,
            OwnedFd, //
        },
        unix::fs::FileExt, //
    },
    ptr, //
};

use super::prelude::*;
use crate::userfault::{
    self,
    UserFault, //
};

table! {
    cause_munmap: "munmap",
    cause_munmap_part: "munmap of part of a region",
    cause_munmap_more: "munmap of more than a region",
    cause_map_fixed: "MAP_FIXED over a region",
    cause_mremap_from: "mremap away from a region",
    cause_mremap_onto: "mremap onto a region",
    cause_mremap_shrink: "mremap to a shorter length",
    cause_brk: "brk to a lower address",
    cause_mprotect_none: "mprotect to PROT_NONE",
    cause_mprotect_read: "mprotect to read-only",
    cause_mprotect_write: "mprotect back to writable",
    cause_dontneed: "MADV_DONTNEED",
    cause_free: "MADV_FREE",
    cause_remove: "MADV_REMOVE of shared memory",
    cause_pageout: "MADV_PAGEOUT",
    cause_pageout_shared: "MADV_PAGEOUT of shared memory",
    cause_collapse: "MADV_COLLAPSE into a huge page",
    cause_guard_install: "MADV_GUARD_INSTALL",
    cause_shmdt: "shmdt",
    cause_truncate: "ftruncate of the mapped file",
    cause_punch_hole: "fallocate punches a hole into the mapped file",
    cause_fork_and_write: "fork, and the first write to each page afterwards",
    cause_write_to_zero_page: "the first write to a page that was only read",
    cause_write_to_file_copy: "the first write to a private page of a file",
    cause_split_by_mprotect: "mprotect of part of a huge page",
    cause_split_by_munmap: "munmap of part of a huge page",
    cause_split_by_dontneed: "MADV_DONTNEED of part of a huge page",
    cause_huge_unmapped: "munmap of a huge page",
    cause_hugetlb: "munmap of a hugetlb page",
    cause_move_pages: "move_pages to another node",
    cause_mbind: "mbind to another node",
    cause_soft_dirty: "clear_refs 4, which starts to track writes",
    cause_write_protected: "userfaultfd write-protects a page",
    cause_moved: "userfaultfd moves a page away",
    cause_scan: "PAGEMAP_SCAN write-protects written pages",
    cause_uprobe: "a uprobe inserts a breakpoint into a page of code, and removes it",
    cause_poisoned: "MADV_HWPOISON",
    cause_soft_offline: "MADV_SOFT_OFFLINE",
    cause_without_effect: "MADV_COLD, mlock, first touch and the like are not reported",
    cause_unwatched: "changes to memory that is not watched are not reported",
}

/// Applies a cause to the middle one of three pages that `make` returns, in three ways.
///
/// If only the neighbours are watched, nothing may be reported. If all three pages are watched,
/// exactly the one in the middle must be reported on return. With the feature CAUSE, the event must
/// name `causes`. Returns how far the counter moved.
fn only_the_middle(
    causes: Causes,
    make: impl Fn() -> Outcome<Guarded>,
    cause: impl Fn(&Range<u64>) -> Outcome,
) -> Outcome<u64> {
    let bench = Bench::over(open()?, make()?)?;
    bench.watch(1, &bench.area.page(0))?;
    bench.watch(3, &bench.area.page(2))?;
    cause(&bench.area.page(1))?;
    bench.counts(0)?;
    bench.is_silent()?;

    let bench = Bench::over(open()?, make()?)?;
    bench.watch_pages()?;
    let page = bench.area.page(1);
    cause(&page)?;
    let counter = bench.counter.get();
    expect::at_least("the counter on return", counter, 1)?;
    let event = match counter {
        1 => inval(2, &page),
        _ => whole(2, &page),
    };
    bench.reads(&[event, last(counter)])?;
    bench.counts(counter)?;
    causes_reported(causes, &make()?, cause)?;
    Ok(counter)
}

/// Applies a cause to the second page of an area, which two regions cover. Expects the event of one
/// region to name `causes`, and that of the other, which ignores some causes, to name the rest.
pub(super) fn causes_reported(
    causes: Causes,
    area: &Guarded,
    cause: impl FnOnce(&Range<u64>) -> Outcome,
) -> Outcome {
    const ALL: u64 = 1;
    const SOME: u64 = 2;
    let device = open_with(Features::CAUSE)?;
    let page = area.page(1);
    device.watch(page.clone(), ALL)?;
    device.watch_ignoring(page.clone(), SOME, Causes::SAME_PAGES)?;
    cause(&page)?;
    let rest = Causes::from_bits(causes.bits() & !Causes::SAME_PAGES.bits());
    let events = read_if_any(&device, 4)?;
    let of = |cookie| {
        let mut events = events.iter().filter(|event| event.kind == EVENT_INVAL);
        let event = events.find(|event| event.user_cookie_counter == cookie);
        event.map_or(Causes::NONE, causes_of)
    };
    expect::same("causes", of(ALL), causes)?;
    expect::same("causes that are not ignored", of(SOME), rest)?;
    let last = events.last().map(|event| (event.kind, event.flags));
    expect::same("type and flags of LAST", last, Some((EVENT_LAST, 0)))
}

/// [`only_the_middle`] of small private pages, for a cause that is a single invalidation.
fn once(causes: Causes, cause: impl Fn(&Range<u64>) -> Outcome) -> Outcome {
    let counter = only_the_middle(causes, private, cause)?;
    expect::same("the counter", counter, 1)
}

/// Three private pages.
fn private() -> Outcome<Guarded> {
    Ok(Guarded::new(3)?)
}

/// Three shared pages.
fn shared() -> Outcome<Guarded> {
    Ok(Guarded::shared(3)?)
}

fn cause_munmap() -> Outcome {
    once(Causes::UNMAP, |page| Ok(mem::unmap(page)?))
}

fn cause_munmap_part() -> Outcome {
    for (pages, counter) in [(1..2, 1), (0..1, 1), (2..4, 1)] {
        let bench = Bench::new(4)?;
        bench.watch(1, &bench.area.all())?;
        mem::unmap(&bench.area.span(pages.clone()))?;
        bench.counts(counter)?;
        bench.reads(&[inval(1, &bench.area.span(pages)), last(counter)])?;
    }
    Ok(())
}

fn cause_munmap_more() -> Outcome {
    let bench = Bench::new(4)?;
    bench.watch(1, &bench.area.page(1))?;
    mem::unmap(&bench.area.all())?;
    bench.counts(1)?;
    bench.reads(&[inval(1, &bench.area.page(1)), last(1)])
}

fn cause_map_fixed() -> Outcome {
    once(Causes::UNMAP, |page| Ok(mem::map_over(page)?))
}

fn cause_mremap_from() -> Outcome {
    let target = Guarded::new(1)?.all();
    only_the_middle(Causes::UNMAP, private, |page| {
        Ok(mem::move_to(page, &target)?)
    })
    .map(drop)
}

fn cause_mremap_onto() -> Outcome {
    only_the_middle(Causes::UNMAP, private, |page| {
        Ok(mem::move_to(&Guarded::new(1)?.all(), page)?)
    })
    .map(drop)
}

fn cause_mremap_shrink() -> Outcome {
    let bench = Bench::new(4)?;
    bench.watch_pages()?;
    mem::resize(&bench.area.all(), 2, 0)?;
    bench.counts(1)?;
    let (third, fourth) = (inval(3, &bench.area.page(2)), inval(4, &bench.area.page(3)));
    bench.reads(&[third, fourth, last(1)])
}

fn cause_brk() -> Outcome {
    let bench = Bench::new(1)?;
    // SAFETY: The heap grows by two pages that nobody else uses.
    let end = |bytes| check(unsafe { libc::sbrk(bytes) } as isize);
    let odd = end(0)? as u64 % PAGE;
    end((PAGE - odd) as isize)?;
    let start = end(2 * PAGE as isize)? as u64;
    let region = start..start + 2 * PAGE;
    for page in [region.start, region.start + PAGE] {
        mem::write_byte(page, 1);
    }
    bench.watch(1, &region)?;
    expect::same("the end of the heap", end(0)? as u64, region.end)?;
    end(-(PAGE as isize))?;
    bench.counts(1)?;
    let freed = region.start + PAGE..region.end;
    bench.reads(&[inval(1, &freed), last(1)])
}

fn cause_mprotect_none() -> Outcome {
    once(Causes::PROTECT_AREA, |page| {
        Ok(mem::protect(page, libc::PROT_NONE)?)
    })
}

fn cause_mprotect_read() -> Outcome {
    once(Causes::PROTECT_AREA, |page| {
        Ok(mem::protect(page, libc::PROT_READ)?)
    })
}

fn cause_mprotect_write() -> Outcome {
    let read_only = || {
        let area = private()?;
        mem::protect(&area.all(), libc::PROT_READ)?;
        Ok(area)
    };
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    only_the_middle(Causes::PROTECT_AREA, read_only, |page| {
        Ok(mem::protect(page, writable)?)
    })
    .map(drop)
}

fn cause_dontneed() -> Outcome {
    once(Causes::CLEAR, |page| {
        Ok(mem::advise(page, libc::MADV_DONTNEED)?)
    })
}

fn cause_free() -> Outcome {
    once(Causes::CLEAR, |page| {
        Ok(mem::advise(page, libc::MADV_FREE)?)
    })
}

fn cause_remove() -> Outcome {
    only_the_middle(Causes::CLEAR, shared, |page| {
        Ok(mem::advise(page, libc::MADV_REMOVE)?)
    })
    .map(drop)
}

/// Writes pages to swap; skips the test if there is none.
pub(super) fn page_out(pages: &Range<u64>, mut advise: impl FnMut() -> io::Result<()>) -> Outcome {
    let swaps = std::fs::read_to_string("/proc/swaps").or_skip("no /proc/swaps")?;
    if swaps.lines().count() < 2 {
        return Err(Failure::Skipped("no swap".into()));
    }
    let other = Guarded::new(1)?.all().start;
    // The kernel skips pages that somebody else is using at the moment.
    for _ in 0..100 {
        // Nor does it find new pages that another processor has not put on its LRU lists yet.
        // Moving a page, even to the node it is on, makes all processors do that.
        if let Ok(node) = move_page(0, other, None) {
            let _ = move_page(0, other, Some(node));
        }
        advise().or_skip("MADV_PAGEOUT")?;
        if mem::page_states(pages)?.iter().all(|page| !page.present()) {
            return Ok(());
        }
    }
    Err(Failure::new(
        "MADV_PAGEOUT",
        "pages to be swapped out",
        "present pages",
    ))
}

fn cause_pageout() -> Outcome {
    only_the_middle(Causes::CLEAR, private, |page| {
        page_out(page, || mem::advise(page, libc::MADV_PAGEOUT))
    })
    .map(drop)
}

fn cause_pageout_shared() -> Outcome {
    only_the_middle(Causes::CLEAR, shared, |page| {
        page_out(page, || mem::advise(page, libc::MADV_PAGEOUT))
    })
    .map(drop)
}

/// Small pages where a huge one could be, between unused ones; the middle one of three.
pub(super) fn collapsible() -> Outcome<(Bench, Range<u64>)> {
    collapsible_on(open()?)
}

/// The same, watched by this file.
pub(super) fn collapsible_on(device: Device) -> Outcome<(Bench, Range<u64>)> {
    let bench = Bench::over(device, Guarded::huge(3)?)?;
    mem::advise(&bench.area.all(), libc::MADV_NOHUGEPAGE).or_skip("huge pages")?;
    bench.area.fill();
    let start = bench.area.all().start + HUGE;
    Ok((bench, start..start + HUGE))
}

/// Advises repeatedly, until there is a huge page at this address.
pub(super) fn collapse(at: u64, mut advise: impl FnMut() -> io::Result<()>) -> Outcome {
    for _ in 0..20 {
        match advise() {
            Ok(()) => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOMEM | libc::EBUSY) => {}
                Some(libc::EINVAL) => return Err(Failure::Skipped("no MADV_COLLAPSE".into())),
                _ => return Err(error).or_skip("MADV_COLLAPSE"),
            },
        }
        if mem::is_huge(at)? {
            return Ok(());
        }
    }
    Err(Failure::Skipped("no huge page available".into()))
}

/// Watches the memory below and above a huge page, a page in it, and all of it.
pub(super) fn watch_huge(bench: &Bench, place: &Range<u64>) -> Outcome {
    bench.watch(1, &(bench.area.all().start..place.start))?;
    bench.watch(2, &(place.start + 5 * PAGE..place.start + 6 * PAGE))?;
    bench.watch(3, place)?;
    bench.watch(4, &(place.end..bench.area.all().end))
}

/// Expects events of the regions in a huge page, and of no others.
#[track_caller]
pub(super) fn only_huge(bench: &Bench) -> Outcome {
    expect::at_least("the counter", bench.counter.get(), 1)?;
    let events = bench.drain()?;
    let mut cookies: Vec<u64> = events
        .iter()
        .filter(|event| event.kind == EVENT_INVAL)
        .map(|event| event.user_cookie_counter)
        .collect();
    cookies.sort_unstable();
    cookies.dedup();
    expect::same("cookies", cookies, vec![2, 3])
}

fn cause_collapse() -> Outcome {
    let (bench, place) = collapsible()?;
    // Watch first, since khugepaged may be faster than this thread.
    watch_huge(&bench, &place)?;
    mem::advise(&place, libc::MADV_HUGEPAGE).or_skip("huge pages")?;
    collapse(place.start, || mem::advise(&place, libc::MADV_COLLAPSE))?;
    only_huge(&bench)
}

fn cause_guard_install() -> Outcome {
    let known = mem::advise(&Guarded::new(1)?.all(), mem::MADV_GUARD_INSTALL);
    if known.is_err() {
        return Err(Failure::Skipped("no MADV_GUARD_INSTALL".into()));
    }
    only_the_middle(Causes::CLEAR, private, |page| {
        Ok(mem::advise(page, mem::MADV_GUARD_INSTALL)?)
    })
    .map(drop)
}

/// Attaches a shared memory segment, which goes away when it is detached.
pub(super) fn attach(length: u64) -> Outcome<u64> {
    // SAFETY: The calls take no pointers, and attach where the kernel likes.
    unsafe {
        let id = check(libc::shmget(
            libc::IPC_PRIVATE,
            length as usize,
            libc::IPC_CREAT | 0o600,
        ))
        .or_skip("shmget")?;
        let at = libc::shmat(id, ptr::null(), 0);
        check(libc::shmctl(id, libc::IPC_RMID, ptr::null_mut()))?;
        Ok(check(at as isize)? as usize as u64)
    }
}

fn cause_shmdt() -> Outcome {
    let bench = Bench::new(1)?;
    let at = attach(2 * PAGE)?;
    mem::write_byte(at, 1);
    let region = at..at + 2 * PAGE;
    bench.watch(1, &region)?;
    // SAFETY: Nobody uses the segment any more.
    check(unsafe { libc::shmdt(at as *const _) })?;
    bench.counts(1)?;
    bench.reads(&[inval(1, &region), last(1)])
}

/// Watches four pages of a file that is truncated to two.
pub(super) fn truncated(truncate: impl FnOnce(&File) -> Outcome) -> Outcome {
    let file = mem::memory_file(4)?;
    let bench = Bench::over(open()?, Guarded::of_file(&file, 4)?)?;
    bench.watch_pages()?;
    truncate(&file)?;
    expect::at_least("the counter on return", bench.counter.get(), 1)?;
    let events = bench.drain()?;
    let cookies: Vec<u64> = events.iter().map(|e| e.user_cookie_counter).collect();
    expect::same(
        "cookies, and LAST",
        cookies,
        vec![3, 4, bench.counter.get()],
    )
}

fn cause_truncate() -> Outcome {
    truncated(|file| Ok(file.set_len(2 * PAGE)?))
}

/// [`only_the_middle`] of a file's pages, for a cause that needs the file.
pub(super) fn only_the_middle_of_file(cause: impl Fn(&File) -> Outcome) -> Outcome {
    let file = mem::memory_file(3)?;
    let make = || Ok(Guarded::of_file(&file, 3)?);
    only_the_middle(Causes::CLEAR, make, |_| cause(&file)).map(drop)
}

fn cause_punch_hole() -> Outcome {
    only_the_middle_of_file(|file| Ok(mem::punch_hole(file, 1..2)?))
}

fn cause_fork_and_write() -> Outcome {
    let bench = Bench::new(3)?;
    let (all, region) = (bench.area.all(), bench.area.span(1..3));
    bench.watch(1, &region)?;
    let child = Child::fork(|line| Ok(line.hear()?))?;
    bench.counts(1)?;
    bench.reads(&[inval(1, &region), last(1)])?;
    // The first write copies the page, the second finds the copy.
    mem::write_byte(all.start, 1);
    bench.counts(1)?;
    for (page, counter) in [(2, 2), (1, 3)] {
        let page = bench.area.page(page);
        mem::write_byte(page.start, 1);
        bench.counts(counter)?;
        mem::write_byte(page.start + 8, 1);
        bench.counts(counter)?;
        bench.reads(&[inval(1, &page), last(counter)])?;
    }
    child.tell()?;
    child.join()?;
    bench.counts(3)
}

fn cause_write_to_zero_page() -> Outcome {
    let only_read = || {
        let area = Guarded::unpopulated(3)?;
        for page in 0..3 {
            expect::same(
                "an untouched byte",
                mem::read_byte(area.page(page).start),
                0,
            )?;
        }
        Ok(area)
    };
    only_the_middle(Causes::CLEAR, only_read, |page| {
        mem::write_byte(page.start, 1);
        Ok(())
    })
    .map(drop)
}

fn cause_write_to_file_copy() -> Outcome {
    let file = mem::memory_file(3)?;
    let make = || Ok(Guarded::copy_of_file(&file, 3)?);
    only_the_middle(Causes::CLEAR, make, |page| {
        mem::write_byte(page.start, 1);
        Ok(())
    })
    .map(drop)
}

/// A huge page between others; everything is watched.
fn huge_page() -> Outcome<(Bench, Range<u64>)> {
    let (bench, place) = collapsible()?;
    mem::advise(&place, libc::MADV_HUGEPAGE).or_skip("huge pages")?;
    collapse(place.start, || mem::advise(&place, libc::MADV_COLLAPSE))?;
    watch_huge(&bench, &place)?;
    Ok((bench, place))
}

/// A range of pages in a huge page, including the one that is watched separately.
fn part_of_huge(place: &Range<u64>) -> Range<u64> {
    place.start + 4 * PAGE..place.start + 7 * PAGE
}

fn cause_split_by_mprotect() -> Outcome {
    let (bench, place) = huge_page()?;
    mem::protect(&part_of_huge(&place), libc::PROT_READ)?;
    only_huge(&bench)
}

fn cause_split_by_munmap() -> Outcome {
    let (bench, place) = huge_page()?;
    mem::unmap(&part_of_huge(&place))?;
    only_huge(&bench)
}

fn cause_split_by_dontneed() -> Outcome {
    let (bench, place) = huge_page()?;
    mem::advise(&part_of_huge(&place), libc::MADV_DONTNEED)?;
    only_huge(&bench)
}

fn cause_huge_unmapped() -> Outcome {
    let (bench, place) = huge_page()?;
    mem::unmap(&place)?;
    only_huge(&bench)
}

/// A hugetlb page that is mapped but not populated, and the setting that provides it.
pub(super) fn hugetlb_page() -> Outcome<(Setting, u64)> {
    let pool = Setting::change("/proc/sys/vm/nr_hugepages", "2").or_skip("hugetlb pages")?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let at = match mem::map(None, HUGE, access, flags, None) {
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
            return Err(Failure::Skipped("no hugetlb page available".into()));
        }
        result => result?,
    };
    Ok((pool, at))
}

fn cause_hugetlb() -> Outcome {
    let bench = Bench::new(1)?;
    let (_pool, at) = hugetlb_page()?;
    mem::write_byte(at, 1);
    bench.watch(1, &(at..at + PAGE))?;
    mem::unmap(&(at..at + HUGE))?;
    bench.counts(1)?;
    bench.reads(&[inval(1, &(at..at + PAGE)), last(1)])
}

/// Moves a page to a node, or only queries if `node` is `None`; returns the node it is on now.
pub(super) fn move_page(pid: i32, page: u64, node: Option<i32>) -> io::Result<i32> {
    /// `MPOL_MF_MOVE` of `linux/mempolicy.h`, which the crate `libc` lacks.
    const MPOL_MF_MOVE: i32 = 2;
    let mut status = i32::MIN;
    let nodes = node.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: All pointers are to one valid element, except that of the nodes, which may be null.
    let left = check(unsafe {
        let (pages, status) = (&raw const page, &raw mut status);
        libc::syscall(
            libc::SYS_move_pages,
            pid,
            1usize,
            pages,
            nodes,
            status,
            MPOL_MF_MOVE,
        )
    })?;
    if left > 0 {
        // Without a status: the kernel tried to move it, and could not.
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    if status < 0 {
        return Err(io::Error::from_raw_os_error(-status));
    }
    Ok(status)
}

/// A node other than the one a page of this process is on.
pub(super) fn other_node(page: u64) -> Outcome<i32> {
    let now = move_page(0, page, None).or_skip("move_pages")?;
    let other = 1 - now;
    let path = format!("/sys/devices/system/node/node{other}");
    if std::path::Path::new(&path).exists() {
        Ok(other)
    } else {
        Err(Failure::Skipped("only one node".into()))
    }
}

/// Tries until a page of this process is on a given node.
pub(super) fn migrate(page: u64, node: i32, mut step: impl FnMut() -> io::Result<()>) -> Outcome {
    for _ in 0..50 {
        step().or_skip("page migration")?;
        if move_page(0, page, None)? == node {
            return Ok(());
        }
    }
    Err(Failure::new("migration", "a moved page", "none"))
}

fn cause_move_pages() -> Outcome {
    only_the_middle(Causes::CLEAR, private, |page| {
        let node = other_node(page.start)?;
        migrate(page.start, node, || {
            // That a page is busy at the moment is not an error.
            let _ = move_page(0, page.start, Some(node));
            Ok(())
        })
    })
    .map(drop)
}

fn cause_mbind() -> Outcome {
    /// See above.
    const MPOL_MF_MOVE: u32 = 2;
    only_the_middle(Causes::CLEAR, private, |page| {
        let node = other_node(page.start)?;
        let mask = 1u64 << node;
        migrate(page.start, node, || {
            // SAFETY: The mask has as many bits as the call is passed.
            check(unsafe {
                libc::syscall(
                    libc::SYS_mbind,
                    page.start as usize,
                    (page.end - page.start) as usize,
                    libc::MPOL_BIND,
                    &mask,
                    64usize,
                    MPOL_MF_MOVE,
                )
            })
            .map(drop)
        })
    })
    .map(drop)
}

fn cause_soft_dirty() -> Outcome {
    let bench = Bench::new(2)?;
    bench.watch_pages()?;
    let clear = |what: &str| std::fs::write("/proc/self/clear_refs", what).or_skip("clear_refs");
    clear("1")?;
    bench.counts(0)?;
    clear("4")?;
    let counter = bench.counter.get();
    expect::at_least("the counter on return", counter, 1)?;
    let events = bench.drain()?;
    expect::same("records", events.len(), 3)
}

fn cause_write_protected() -> Outcome {
    let fault = UserFault::new(userfault::FEATURE_WRITE_PROTECT)?;
    let make = || {
        let area = private()?;
        fault.register(&area.all(), userfault::MODE_WRITE_PROTECT)?;
        Ok(area)
    };
    only_the_middle(Causes::PROTECT_AREA, make, |page| {
        Ok(fault.write_protect(page)?)
    })
    .map(drop)
}

fn cause_moved() -> Outcome {
    let fault = UserFault::new(userfault::FEATURE_MOVE)?;
    only_the_middle(Causes::CLEAR, private, |page| {
        let target = Guarded::unpopulated(1)?.all();
        fault.register(&target, userfault::MODE_MISSING)?;
        fault.move_pages(page, &target)?;
        expect::same("the byte that was moved", mem::read_byte(target.start), 1)
    })
    .map(drop)
}

fn cause_scan() -> Outcome {
    /// `struct pm_scan_arg` of `linux/fs.h`.
    #[repr(C)]
    #[derive(Default)]
    struct Scan {
        size: u64,
        flags: u64,
        start: u64,
        end: u64,
        walk_end: u64,
        vec: u64,
        vec_len: u64,
        max_pages: u64,
        category_inverted: u64,
        category_mask: u64,
        category_anyof_mask: u64,
        return_mask: u64,
    }
    const PAGEMAP_SCAN: u32 = 0xc060_6610;
    const PM_SCAN_WP_MATCHING: u64 = 1;
    const PM_SCAN_CHECK_WPASYNC: u64 = 2;
    const PAGE_IS_WRITTEN: u64 = 2;

    let map = File::open("/proc/self/pagemap").or_skip("pagemap")?;
    let scan = |range: &Range<u64>, flags| {
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            flags,
            start: range.start,
            end: range.end,
            category_mask: PAGE_IS_WRITTEN,
            return_mask: PAGE_IS_WRITTEN,
            ..Scan::default()
        };
        // SAFETY: The argument is valid, and requests no output beyond it.
        check(unsafe { libc::ioctl(map.as_raw_fd(), PAGEMAP_SCAN as _, &mut scan) })
    };
    if scan(&(0..0), 0).is_err() {
        return Err(Failure::Skipped("no PAGEMAP_SCAN".into()));
    }
    let fault = UserFault::new(userfault::FEATURE_WRITE_PROTECT_ASYNC)?;
    let make = || {
        let area = private()?;
        fault.register(&area.all(), userfault::MODE_WRITE_PROTECT)?;
        Ok(area)
    };
    only_the_middle(Causes::PROTECT_AREA, make, |page| {
        scan(page, PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC)?;
        Ok(())
    })
    .map(drop)
}

fn cause_uprobe() -> Outcome {
    /// `struct perf_event_attr` of `linux/perf_event.h`, version 1.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        kind: u32,
        size: u32,
        others: [u64; 6],
        path: u64,
        offset: u64,
    }
    /// An instruction, which fills the page.
    const NOP: u8 = 0x90;

    let kind =
        fs::read_to_string("/sys/bus/event_source/devices/uprobe/type").or_skip("uprobes")?;
    let kind = kind.trim().parse().expect("a number");
    let file = mem::memory_file(3)?;
    file.write_all_at(&[NOP; 3 * PAGE as usize], 0)?;
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("no zero in it");
    let make = || {
        let area = Guarded::copy_of_file(&file, 3)?;
        mem::protect(&area.all(), libc::PROT_READ | libc::PROT_EXEC)?;
        Ok(area)
    };
    only_the_middle(Causes::CLEAR, make, |page| {
        let attributes = Attributes {
            kind,
            size: size_of::<Attributes>() as u32,
            path: path.as_ptr() as u64,
            offset: PAGE + 8,
            ..Attributes::default()
        };
        let (call, pid, any) = (libc::SYS_perf_event_open, 0, -1);
        // SAFETY: The attributes contain their size, and the path is a C string.
        let fd = check(unsafe { libc::syscall(call, &attributes, pid, any, any, 0) })
            .or_skip("perf_event_open")?;
        // SAFETY: The file was just opened and is nobody else's.
        let probe = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let instruction = page.start + 8;
        let probed = mem::read_byte(instruction);
        expect::that("the instruction", probed != NOP, "a breakpoint", "none")?;
        drop(probe);
        Ok(())
    })
    .map(drop)
}

/// Skips tests that make a page of the machine unusable until it reboots, unless this is a guest.
fn only_in_a_guest() -> Outcome {
    match std::env::var_os("UMN_MODULE") {
        Some(_) => Ok(()),
        None => Err(Failure::Skipped("costs a page until the next boot".into())),
    }
}

/// [`only_the_middle`] for advice that a kernel without memory failure handling does not know.
fn failing_memory(advice: i32) -> Outcome {
    only_in_a_guest()?;
    only_the_middle(Causes::CLEAR, private, |page| {
        match mem::advise(page, advice) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                Err(Failure::Skipped("no memory failures".into()))
            }
            result => result.or_skip("memory failures"),
        }
    })
    .map(drop)
}

fn cause_poisoned() -> Outcome {
    // The kernel signals what the process asked for.
    signals::catch_signal(libc::SIGBUS, 0)?;
    failing_memory(libc::MADV_HWPOISON)
}

fn cause_soft_offline() -> Outcome {
    failing_memory(libc::MADV_SOFT_OFFLINE)
}

fn cause_without_effect() -> Outcome {
    let bench = Bench::new(2)?;
    bench.watch_pages()?;
    let all = bench.area.all();
    let advice = [
        ("MADV_COLD", libc::MADV_COLD),
        ("MADV_WILLNEED", libc::MADV_WILLNEED),
        ("MADV_RANDOM", libc::MADV_RANDOM),
        ("MADV_SEQUENTIAL", libc::MADV_SEQUENTIAL),
        ("MADV_DONTDUMP", libc::MADV_DONTDUMP),
        ("MADV_POPULATE_WRITE", libc::MADV_POPULATE_WRITE),
    ];
    for (what, advice) in advice {
        expect::success(what, mem::advise(&all, advice))?;
        expect::same(what, bench.counter.get(), 0)?;
    }
    mem::lock(&bench.area.page(0))?;
    bench.counts(0)?;
    mem::write_byte(all.start, 9);
    expect::same("a byte", mem::read_byte(all.start), 9)?;
    bench.counts(0)?;

    let fresh = Guarded::unpopulated(2)?;
    bench.watch(10, &fresh.all())?;
    mem::write_byte(fresh.page(0).start, 1);
    expect::same("an untouched byte", mem::read_byte(fresh.page(1).start), 0)?;
    bench.counts(0)?;
    let other = Guarded::unpopulated(1)?;
    bench.watch(11, &other.all())?;
    mem::lock(&other.all())?;
    bench.counts(0)?;
    bench.is_silent()
}

fn cause_unwatched() -> Outcome {
    let bench = Bench::new(1)?;
    bench.watch_pages()?;
    let other = Guarded::new(8)?;
    mem::unmap(&other.page(0))?;
    mem::map_over(&other.page(1))?;
    mem::move_to(&other.page(2), &other.page(3))?;
    mem::protect(&other.page(4), libc::PROT_NONE)?;
    mem::advise(&other.page(5), libc::MADV_DONTNEED)?;
    mem::advise(&other.page(6), libc::MADV_FREE)?;
    let signal = signals::caught();
    expect::same("signals", signal.count, 0)?;
    bench.counts(0)?;
    bench.is_silent()
}
