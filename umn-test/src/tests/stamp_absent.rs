// SPDX-License-Identifier: GPL-2.0

//! Absent pages: STAMP counts each of them, and returns the stamp 0.

use std::{
    fs,
    ops::Range,
    os::fd::{
        FromRawFd,
        OwnedFd, //
    },
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

use super::{
    causes::{
        move_page,
        other_node,
        page_out, //
    },
    prelude::*,
    stamp_pages::{
        stamp,
        stamp_of, //
    },
};
use crate::userfault::{
    self,
    UserFault, //
};

table! {
    absent_unmapped: "unmapped pages, and pages that were never touched",
    absent_each_counts: "every combination of 8 absent and present pages is counted",
    absent_protected: "PROT_NONE, until it is readable again",
    absent_zero_page: "a page that was only read",
    absent_swapped: "a swapped-out page, until it is touched",
    absent_numa_hinted: "a page that NUMA balancing has marked, until it is touched: PROTECT_AREA",
    absent_migrating: "pages that are being moved to another node",
    absent_userfault: "a page that a userfaultfd must provide; the call does not wait for it",
    absent_access_protected: "a page that a userfaultfd protects from access: PROTECT_AREA",
    absent_secret: "memfd_secret",
    absent_closed_key: "a closed protection key",
    absent_special: "vvar, which has no struct page",
    absent_beyond: "addresses beyond user space",
    absent_large: "16 GiB of nothing",
}

/// Expects this number of pages to be absent.
#[track_caller]
fn absent(device: &Device, range: &Range<u64>, pages: u64) -> Outcome {
    let (_, absent) = stamp(device, range)?;
    expect::same("absent pages", u64::from(absent), pages)
}

fn absent_unmapped() -> Outcome {
    let device = open_with(Features::STAMP)?;
    let area = Guarded::new(4)?;
    absent(&device, &area.all(), 0)?;
    mem::unmap(&area.page(2))?;
    absent(&device, &area.all(), 1)?;
    mem::map_over(&area.page(2))?;
    absent(&device, &area.all(), 1)?;
    mem::write_byte(area.page(2).start, 1);
    absent(&device, &area.all(), 0)?;
    // With the guard pages on both sides.
    let around = area.all().start - PAGE..area.all().end + PAGE;
    absent(&device, &around, 2)?;
    absent(&device, &Guarded::unpopulated(100)?.all(), 100)
}

fn absent_each_counts() -> Outcome {
    let device = open_with(Features::STAMP)?;
    for present in 0..=255u32 {
        let area = Guarded::unpopulated(8)?;
        for page in (0..8).filter(|page| (present >> page) & 1 == 1) {
            mem::write_byte(area.page(page).start, 1);
        }
        absent(&device, &area.all(), (8 - present.count_ones()).into())?;
        mem::unmap(&area.all())?;
    }
    Ok(())
}

fn absent_protected() -> Outcome {
    let device = open_with(Features::STAMP)?;
    let area = Guarded::new(3)?;
    let before = stamp_of(&device, &area.all())?;
    mem::protect(&area.page(0), libc::PROT_NONE)?;
    absent(&device, &area.all(), 1)?;
    mem::protect(&area.page(0), libc::PROT_READ)?;
    expect::same("stamp", stamp_of(&device, &area.all())?, before)
}

fn absent_zero_page() -> Outcome {
    let device = open_with(Features::STAMP)?;
    let area = Guarded::unpopulated(2)?;
    mem::read_byte(area.page(0).start);
    mem::write_byte(area.page(1).start, 1);
    absent(&device, &area.all(), 1)?;
    mem::write_byte(area.page(0).start, 1);
    absent(&device, &area.all(), 0)?;
    // Reading maps a huge zero page or small ones, all of which count as absent.
    let huge = Guarded::huge(1)?;
    let _ = mem::advise(&huge.all(), libc::MADV_HUGEPAGE);
    for page in 0..huge.pages() {
        mem::read_byte(huge.page(page).start);
    }
    absent(&device, &huge.all(), huge.pages())
}

fn absent_swapped() -> Outcome {
    let device = open_with(Features::STAMP)?;
    let area = Guarded::new(2)?;
    page_out(&area.page(1), || {
        mem::advise(&area.page(1), libc::MADV_PAGEOUT)
    })?;
    absent(&device, &area.all(), 1)?;
    // The call does not swap it in.
    absent(&device, &area.all(), 1)?;
    let state = mem::page_states(&area.page(1))?[0];
    expect::same("in memory", state.present(), false)?;
    mem::read_byte(area.page(1).start);
    absent(&device, &area.all(), 0)
}

fn absent_numa_hinted() -> Outcome {
    const TIME: Duration = Duration::from_secs(20);
    let device = open_with(Features::ALL)?;
    let area = Guarded::new(64)?;
    process::balance_numa(true).or_skip("NUMA policy")?;
    let switch = "/proc/sys/kernel/numa_balancing";
    let _setting = Setting::change(switch, "1").or_skip("NUMA balancing")?;
    let end = Instant::now() + TIME;
    // Pages on the local node are marked only if there are several threads.
    thread::spawn(thread::park);
    device.watch(area.all(), 1)?;
    device.watch_ignoring(area.all(), 2, Causes::PROTECT_AREA)?;
    let before = mem::page_states(&area.all())?;
    let mut stamps = stamp(&device, &area.all())?;
    while stamps.1 == 0 {
        if Instant::now() > end {
            return Err(Failure::Skipped("NUMA balancing marked no page".into()));
        }
        // The kernel marks the memory of running tasks.
        let busy = Instant::now() + Duration::from_millis(5);
        while Instant::now() < busy {
            std::hint::spin_loop();
        }
        stamps = stamp(&device, &area.all())?;
    }
    let marked = mem::page_states(&area.all())?;
    expect::same("frames of marked pages", &marked, &before)?;
    only_protected(&device)?;
    for page in 0..area.pages() {
        mem::read_byte(area.page(page).start);
    }
    // Some pages may be marked again.
    process::eventually(|| stamp(&device, &area.all()).is_ok_and(|(_, absent)| absent == 0));
    Ok(())
}

/// Expects region 1 to be hit by PROTECT_AREA, and region 2, which ignores that, not at all.
#[track_caller]
fn only_protected(device: &Device) -> Outcome {
    let events = expect::success("read", device.read_events(3))?;
    let seen: Vec<_> = events
        .iter()
        .filter(|event| event.kind == EVENT_INVAL)
        .map(|event| (event.user_cookie_counter, causes_of(event)))
        .collect();
    let wanted = vec![(1, Causes::PROTECT_AREA)];
    expect::same("cookies and causes", seen, wanted)
}

fn absent_migrating() -> Outcome {
    const TIME: Duration = Duration::from_secs(20);
    let device = open_with(Features::STAMP)?;
    let area = Guarded::new(64)?;
    other_node(area.all().start)?;
    let is_seen = AtomicBool::new(false);
    let end = Instant::now() + TIME;
    let goes_on = || !is_seen.load(Ordering::Relaxed) && Instant::now() < end;
    thread::scope(|scope| -> Outcome {
        scope.spawn(|| {
            let moves = (0..area.pages()).flat_map(|page| [(page, 0), (page, 1)]);
            for (page, node) in moves.cycle().take_while(|_| goes_on()) {
                // That a page is busy at the moment is not an error.
                let _ = move_page(0, area.page(page).start, Some(node));
            }
        });
        while goes_on() {
            let (_, absent) = stamp(&device, &area.all())?;
            is_seen.store(absent > 0, Ordering::Relaxed);
        }
        Ok(())
    })?;
    absent(&device, &area.all(), 0)?;
    let is_seen = is_seen.load(Ordering::Relaxed);
    expect::same("a page was absent while it moved", is_seen, true)
}

fn absent_access_protected() -> Outcome {
    let device = open_with(Features::ALL)?;
    let fault = UserFault::new(userfault::FEATURE_PROTECT | userfault::FEATURE_PROTECT_ASYNC)?;
    let area = Guarded::new(2)?;
    let before = stamp_of(&device, &area.all())?;
    fault.register(&area.all(), userfault::MODE_PROTECT)?;
    device.watch(area.all(), 1)?;
    device.watch_ignoring(area.all(), 2, Causes::PROTECT_AREA)?;
    fault.protect(&area.page(1))?;
    absent(&device, &area.all(), 1)?;
    only_protected(&device)?;
    let byte = mem::read_byte(area.page(1).start);
    expect::same("a byte", byte, Guarded::content(1))?;
    expect::same("stamp", stamp_of(&device, &area.all())?, before)
}

fn absent_userfault() -> Outcome {
    let device = open_with(Features::STAMP)?;
    let fault = UserFault::new(0)?;
    let area = Guarded::unpopulated(2)?;
    mem::write_byte(area.page(0).start, 1);
    fault.register(&area.all(), userfault::MODE_MISSING)?;
    absent(&device, &area.all(), 1)?;
    fault.provide(&area.page(1), &[7; PAGE as usize])?;
    absent(&device, &area.all(), 0)
}

fn absent_secret() -> Outcome {
    let device = open_with(Features::STAMP)?;
    // SAFETY: The call takes no pointer.
    let fd = check(unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) })
        .or_skip("memfd_secret")?;
    // SAFETY: The file was just opened and is nobody else's.
    let file = fs::File::from(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    file.set_len(2 * PAGE)?;
    let area = Guarded::of_file(&file, 2)?;
    expect::same(
        "a byte",
        mem::read_byte(area.page(1).start),
        Guarded::content(1),
    )?;
    absent(&device, &area.all(), 2)
}

fn absent_closed_key() -> Outcome {
    /// Denies reads and writes.
    const PKEY_DISABLE_ACCESS: u64 = 1;
    let device = open_with(Features::STAMP)?;
    let area = Guarded::new(2)?;
    let before = stamp_of(&device, &area.all())?;
    // SAFETY: The calls take no pointer except to the test's own memory.
    unsafe {
        let key = check(libc::syscall(libc::SYS_pkey_alloc, 0, PKEY_DISABLE_ACCESS));
        let key = match key {
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                return Err(Failure::Skipped("no protection keys".into()));
            }
            result => result.or_skip("protection keys")?,
        };
        let (page, access) = (area.page(1), libc::PROT_READ | libc::PROT_WRITE);
        let protect = |key: libc::c_long| {
            let start = page.start as usize;
            check(libc::syscall(
                libc::SYS_pkey_mprotect,
                start,
                PAGE as usize,
                access,
                key,
            ))
        };
        protect(key)?;
        absent(&device, &area.all(), 1)?;
        protect(0)?;
    }
    expect::same("stamp", stamp_of(&device, &area.all())?, before)
}

fn absent_special() -> Outcome {
    let device = open_with(Features::STAMP)?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let line = maps.lines().find(|line| line.ends_with("[vvar]"));
    let Some((start, rest)) = line.and_then(|line| line.split_once('-')) else {
        return Err(Failure::Skipped("no vvar".into()));
    };
    let start = u64::from_str_radix(start, 16).expect("an address");
    let end = rest.split_once(' ').expect("an address").0;
    let end = u64::from_str_radix(end, 16).expect("an address");
    absent(&device, &(start..end), (end - start) / PAGE)
}

/// Maps and populates pages where nothing is mapped.
fn map_if_free(range: &Range<u64>) -> std::io::Result<()> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let length = range.end - range.start;
    mem::map(Some(range.start), length, access, flags, None)?;
    for page in range.clone().step_by(PAGE as usize) {
        mem::write_byte(page, 1);
    }
    Ok(())
}

fn absent_beyond() -> Outcome {
    let device = open_with(Features::STAMP)?;
    const HALF: u64 = 1 << 47;
    const KERNEL: u64 = 0xffff_8000_0000_0000;
    absent(&device, &(0..2 * PAGE), 2)?;
    absent(&device, &(HALF - PAGE..HALF + PAGE), 2)?;
    // On x86, user space ends one page before the first or the second one. The last pages before
    // that are looked up, although the range goes on.
    for end in [HALF - PAGE, (1 << 56) - PAGE] {
        let top = end - 3 * PAGE..end;
        if cfg!(target_pointer_width = "64") && map_if_free(&top).is_ok() {
            absent(&device, &(top.start..end + 2 * PAGE), 2)?;
            mem::unmap(&top)?;
        }
    }
    absent(&device, &(HALF..HALF + 5 * PAGE), 5)?;
    absent(&device, &(KERNEL..KERNEL + 3 * PAGE), 3)?;
    absent(&device, &(0xffff_ffff_8000_0000..0xffff_ffff_8000_1000), 1)?;
    absent(&device, &(u64::MAX - 2 * PAGE + 1..u64::MAX - PAGE + 1), 1)?;
    absent(&device, &(u64::MAX - PAGE..u64::MAX), 2)?;
    absent(&device, &(u64::MAX..u64::MAX), 1)
}

fn absent_large() -> Outcome {
    let device = open_with(Features::STAMP)?;
    const G: u64 = 1 << 30;
    absent(&device, &(1 << 40..(1 << 40) + 16 * G), 16 * G / PAGE)
}
