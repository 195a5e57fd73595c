// SPDX-License-Identifier: GPL-2.0

//! The mapped counter.

use std::{
    io,
    ops::Range,
    os::fd::AsRawFd,
    sync::atomic::{
        AtomicU64,
        Ordering, //
    }, //
};

use super::prelude::*;

table! {
    mmap_lengths: "lengths up to one page are accepted; clients map 8 bytes",
    mmap_wrong_length: "a length of more than a page gives EINVAL",
    mmap_wrong_offset: "an offset gives EINVAL",
    mmap_writable: "a writable mapping gives EACCES, shared or private",
    mmap_made_writable: "mprotect to writable fails with EACCES",
    mmap_private: "a private read-only mapping shows the live counter",
    mmap_rest_is_zero: "the page is zero except for the counter",
    mmap_several: "several mappings all show the counter",
    mmap_counters_of_two_files: "mappings of two files show two counters",
    mmap_unmapped_and_mapped_again: "the counter can be unmapped and mapped again",
    mmap_dont_need: "the mapping survives MADV_DONTNEED",
    mmap_by_others: "another process cannot map it; an inherited mapping stays readable",
    mmap_does_not_grow: "mremap cannot make the mapping longer",
    mmap_can_move: "mremap can move the mapping",
    mmap_protection_none: "the mapping can be made unreadable and readable again",
    mmap_watched: "a watched counter mapping, and its munmap",
}

/// Maps a file of the device with any arguments.
fn map(device: &Device, length: usize, access: i32, flags: i32, offset: i64) -> io::Result<u64> {
    let fd = device.as_raw_fd();
    // SAFETY: A new mapping, where the kernel likes.
    let at = unsafe { libc::mmap64(std::ptr::null_mut(), length, access, flags, fd, offset) };
    if at == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(at as u64)
    }
}

/// Maps the counter like a client.
fn map_page(device: &Device, flags: i32) -> io::Result<Range<u64>> {
    map(device, 8, libc::PROT_READ, flags, 0).map(|at| at..at + PAGE)
}

/// The number at an address.
fn load(address: u64) -> u64 {
    // SAFETY: The tests pass addresses in pages that they have mapped.
    unsafe { &*(address as *const AtomicU64) }.load(Ordering::Acquire)
}

fn mmap_lengths() -> Outcome {
    let bench = Bench::one_page()?;
    bench.hit(0)?;
    for length in [1, 8, 4095, 4096] {
        let result = map(&bench.device, length, libc::PROT_READ, libc::MAP_SHARED, 0);
        let at = expect::success("mmap", result)?;
        expect::same("the counter", load(at), 1)?;
    }
    Ok(())
}

fn mmap_wrong_length() -> Outcome {
    let bench = Bench::new(1)?;
    for length in [0, 4097, 8192, 2 << 20] {
        for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
            let result = map(&bench.device, length, libc::PROT_READ, flags, 0);
            expect::error("mmap", result, libc::EINVAL)?;
        }
    }
    Ok(())
}

fn mmap_wrong_offset() -> Outcome {
    let bench = Bench::new(1)?;
    for offset in [1, 8, 4096, 1 << 20, 1 << 40] {
        for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
            let result = map(&bench.device, 8, libc::PROT_READ, flags, offset);
            expect::error("mmap", result, libc::EINVAL)?;
        }
    }
    Ok(())
}

fn mmap_writable() -> Outcome {
    let bench = Bench::new(1)?;
    for access in [libc::PROT_WRITE, libc::PROT_READ | libc::PROT_WRITE] {
        for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
            let result = map(&bench.device, 8, access, flags, 0);
            expect::error("mmap", result, libc::EACCES)?;
        }
    }
    Ok(())
}

fn mmap_made_writable() -> Outcome {
    let bench = Bench::one_page()?;
    for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
        let page = map_page(&bench.device, flags)?;
        for access in [libc::PROT_WRITE, libc::PROT_READ | libc::PROT_WRITE] {
            let result = mem::protect(&page, access);
            expect::error("mprotect", result, libc::EACCES)?;
        }
        bench.hit(0)?;
        expect::same("the counter", load(page.start), bench.counter.get())?;
    }
    bench.counts(2)
}

fn mmap_private() -> Outcome {
    let bench = Bench::one_page()?;
    let page = map_page(&bench.device, libc::MAP_PRIVATE)?;
    for count in 0..5 {
        expect::same("the counter", load(page.start), count)?;
        bench.hit(0)?;
    }
    Ok(())
}

fn mmap_rest_is_zero() -> Outcome {
    let bench = Bench::one_page()?;
    let page = map_page(&bench.device, libc::MAP_SHARED)?;
    for round in 0..3 {
        let words: Vec<u64> = (page.start..page.end).step_by(8).map(load).collect();
        expect::same("the counter", words[0], round)?;
        let others = words[1..].iter().filter(|word| **word != 0).count();
        expect::same("words that are not zero", others, 0)?;
        bench.hit(0)?;
    }
    Ok(())
}

fn mmap_several() -> Outcome {
    let bench = Bench::one_page()?;
    let pages = (0..20)
        .map(|_| map_page(&bench.device, libc::MAP_SHARED))
        .collect::<io::Result<Vec<_>>>()?;
    for count in 0..5 {
        for page in &pages {
            expect::same("the counter", load(page.start), count)?;
        }
        bench.hit(0)?;
    }
    for page in &pages {
        mem::unmap(page)?;
    }
    bench.counts(5)
}

fn mmap_counters_of_two_files() -> Outcome {
    let one = Bench::one_page()?;
    let two = Bench::one_page()?;
    one.hit(0)?;
    one.hit(0)?;
    two.hit(0)?;
    one.counts(2)?;
    two.counts(1)
}

fn mmap_unmapped_and_mapped_again() -> Outcome {
    let bench = Bench::one_page()?;
    for count in 1..=5 {
        let page = map_page(&bench.device, libc::MAP_SHARED)?;
        bench.hit(0)?;
        expect::same("the counter", load(page.start), count)?;
        mem::unmap(&page)?;
    }
    Ok(())
}

fn mmap_dont_need() -> Outcome {
    let bench = Bench::one_page()?;
    for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
        let page = map_page(&bench.device, flags)?;
        bench.hit(0)?;
        // The advice may be refused; what counts is that the next load sees the counter.
        let _ = mem::advise(&page, libc::MADV_DONTNEED);
        expect::same("the counter", load(page.start), bench.counter.get())?;
        bench.hit(0)?;
        expect::same("the counter", load(page.start), bench.counter.get())?;
    }
    bench.counts(4)
}

fn mmap_by_others() -> Outcome {
    let bench = Bench::over(open()?, Guarded::shared(1)?)?;
    bench.watch_pages()?;
    let refused = |device: &Device| -> Outcome {
        for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
            expect::error("mmap", map_page(device, flags), libc::EPERM)?;
        }
        // EPERM takes precedence over other errors.
        let written = map(device, 8, libc::PROT_WRITE, libc::MAP_SHARED, 0);
        expect::one_of("writable mmap", written, &[libc::EPERM, libc::EACCES])
    };
    let receiver = Child::fork(|line| refused(&Device::from(line.receive()?)))?;
    receiver.pass(&bench.device)?;
    receiver.join()?;
    Child::fork(|line| {
        refused(&bench.device)?;
        line.tell()?;
        line.hear()?;
        bench.counts(1)?;
        refused(&bench.device)
    })
    .map_err(Failure::from)
    .and_then(|child| {
        child.hear()?;
        bench.hit(0)?;
        child.tell()?;
        child.join()
    })?;
    process::in_vfork_child(|| {
        let page = map_page(&bench.device, libc::MAP_SHARED)?;
        expect::same("the counter", load(page.start), 1)?;
        Ok(mem::unmap(&page)?)
    })?;
    bench.counts(1)
}

fn mmap_does_not_grow() -> Outcome {
    let bench = Bench::one_page()?;
    let page = map_page(&bench.device, libc::MAP_SHARED)?;
    for flags in [0, libc::MREMAP_MAYMOVE] {
        for pages in [2, 16] {
            let result = mem::resize(&page, pages, flags);
            expect::one_of("mremap", result, &[libc::EFAULT, libc::EINVAL])?;
        }
    }
    bench.hit(0)?;
    expect::same("the counter", load(page.start), 1)
}

fn mmap_can_move() -> Outcome {
    let bench = Bench::one_page()?;
    let page = map_page(&bench.device, libc::MAP_SHARED)?;
    let target = mem::Guarded::new(1)?.all();
    expect::success("mremap", mem::move_to(&page, &target))?;
    bench.hit(0)?;
    expect::same("the counter", load(target.start), 1)
}

fn mmap_protection_none() -> Outcome {
    let bench = Bench::one_page()?;
    let page = map_page(&bench.device, libc::MAP_SHARED)?;
    mem::protect(&page, libc::PROT_NONE)?;
    bench.hit(0)?;
    expect::success("mprotect", mem::protect(&page, libc::PROT_READ))?;
    expect::same("the counter", load(page.start), 1)
}

fn mmap_watched() -> Outcome {
    let bench = Bench::new(1)?;
    let page = map_page(&bench.device, libc::MAP_SHARED)?;
    expect::same("the counter", load(page.start), 0)?;
    bench.watch(1, &page)?;
    mem::unmap(&page)?;
    bench.counts(1)?;
    bench.reads(&[expect::inval(1, &page), expect::last(1)])
}
