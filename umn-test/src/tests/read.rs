// SPDX-License-Identifier: GPL-2.0

//! Reads: how much they return, when they wait, and that none of them loses anything.

use std::{
    collections::HashSet,
    ffi::c_void,
    io,
    os::fd::AsRawFd,
    ptr,
    thread, //
};

use super::prelude::*;

table! {
    read_nothing_nonblocking: "O_NONBLOCK: nothing queued gives EAGAIN",
    read_nonblocking_set_later: "O_NONBLOCK set with F_SETFL takes effect at once",
    read_blocks_until_an_event: "a blocking read sleeps until there is an event",
    read_wakes_for_last: "a blocking read returns a pending LAST",
    read_interrupted: "a signal interrupts a blocking read with EINTR",
    read_restarted: "SA_RESTART restarts a blocking read",
    read_and_close: "closing the file while another thread reads: the event still wakes it",
    read_killed: "SIGKILL ends a sleeping reader; others continue",
    read_several_sleepers: "several sleeping readers all get something",
    read_many_sleepers: "forty sleeping readers all get something",
    read_behind_sleepers_that_fail: "forty readers that sleep first and fail do not keep the event from another",
    read_count_zero: "a read of no bytes returns 0",
    read_short_buffer: "a buffer shorter than a record gives EINVAL and loses nothing",
    read_whole_records: "a buffer of 33 to 63 bytes gets one record",
    read_as_many_as_fit: "a read returns as many records as fit",
    read_huge: "20,000 events in one read",
    read_bad_pointer: "a bad pointer gives EFAULT and loses nothing",
    read_half_bad_buffer: "a buffer with 48 writable bytes gets 32, and nothing is lost",
    read_bad_after_many: "a buffer that becomes unwritable after many records gets those, and nothing is lost",
    read_read_only_buffer: "a read-only buffer gives EFAULT and loses nothing",
    read_faults_buffer_in: "a buffer that is not populated yet is faulted in",
    read_into_watched_memory: "the buffer itself is in a watched region and copied on write",
    read_iovecs: "readv over several buffers",
    read_iovec_straddled: "readv with a record split over two buffers, and over many",
    read_iovec_half_bad: "readv with a bad second buffer returns whole records and loses nothing",
    read_iovec_never_sleeps_twice: "readv of several buffers returns once it has something",
    read_nowait: "preadv2 with RWF_NOWAIT does not wait on a blocking file",
    read_io_uring: "io_uring reads, before and after the event",
    read_by_position: "pread and lseek give ESPIPE",
    write_fails: "write gives EBADF",
}

fn read_nothing_nonblocking() -> Outcome {
    let bench = Bench::new(1)?;
    bench.is_silent()?;
    bench.watch_pages()?;
    bench.is_silent()?;
    bench.hit(0)?;
    bench.reads(&[inval(1, &bench.area.all()), last(1)])?;
    bench.is_silent()?;
    let mut space = [0u8; 96];
    let result = read_vector(&bench.device, &[(space.as_mut_ptr().cast(), 96)]);
    expect::error("readv of an empty queue", result, libc::EAGAIN)
}

fn set_nonblocking(device: &Device) -> io::Result<()> {
    // SAFETY: The call takes no pointer.
    check(unsafe { libc::fcntl(device.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }).map(drop)
}

fn read_nonblocking_set_later() -> Outcome {
    let bench = Bench::blocking(1)?;
    bench.watch_pages()?;
    bench.hit(0)?;
    bench.reads(&[inval(1, &bench.area.all()), last(1)])?;
    set_nonblocking(&bench.device)?;
    bench.is_silent()
}

/// Starts a blocking read in another thread and calls `wake` while it sleeps; returns what it read.
fn read_asleep(bench: &Bench, wake: impl FnOnce() -> Outcome) -> Outcome<Vec<Event>> {
    let tid = Tid::default();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            tid.set();
            bench.device.read_events(4)
        });
        tid.asleep_in(libc::SYS_read)?;
        wake()?;
        Ok(reader.join().expect("the reader does not panic")?)
    })
}

fn read_blocks_until_an_event() -> Outcome {
    let bench = Bench::blocking(1)?;
    bench.watch_pages()?;
    for _ in 0..5 {
        let before = bench.counter.get();
        let events = read_asleep(&bench, || Ok(bench.hit(0)?))?;
        let wanted = [inval(1, &bench.area.all()), last(before + 1)];
        expect::events("the read", &events, &wanted)?;
        bench.drain()?;
    }
    Ok(())
}

fn read_wakes_for_last() -> Outcome {
    let bench = Bench::blocking(1)?;
    bench.watch_pages()?;
    bench.hit(0)?;
    bench.device.unregister(1)?;
    bench.reads(&[last(1)])
}

fn read_interrupted() -> Outcome {
    let bench = Bench::blocking(1)?;
    bench.watch_pages()?;
    signals::catch_signal(libc::SIGUSR1, 0)?;
    let tid = Tid::default();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            tid.set();
            bench.device.read_events(2)
        });
        tid.asleep_in(libc::SYS_read)?;
        signals::signal_thread(tid.get(), libc::SIGUSR1)?;
        let result = reader.join().expect("the reader does not panic");
        expect::error("the interrupted read", result, libc::EINTR)
    })?;
    bench.hit(0)?;
    bench.reads(&[inval(1, &bench.area.all()), last(1)])
}

fn read_restarted() -> Outcome {
    let bench = Bench::blocking(1)?;
    bench.watch_pages()?;
    signals::catch_signal(libc::SIGUSR1, libc::SA_RESTART)?;
    let tid = Tid::default();
    let events = thread::scope(|scope| -> Outcome<_> {
        let reader = scope.spawn(|| {
            tid.set();
            bench.device.read_events(2)
        });
        for count in 1..=3 {
            tid.asleep_in(libc::SYS_read)?;
            signals::signal_thread(tid.get(), libc::SIGUSR1)?;
            process::eventually(|| signals::caught().count == count);
            expect::same("signals", signals::caught().count, count)?;
        }
        tid.asleep_in(libc::SYS_read)?;
        bench.hit(0)?;
        Ok(reader.join().expect("the reader does not panic")?)
    })?;
    let page = bench.area.all();
    expect::events("the restarted read", &events, &[inval(1, &page), last(1)])
}

fn read_and_close() -> Outcome {
    let bench = Bench::blocking(1)?;
    bench.watch_pages()?;
    let fd = bench.device.as_raw_fd();
    let events = read_asleep(&bench, || {
        // SAFETY: The descriptor is not used again: the file that owns it is forgotten below.
        check(unsafe { libc::close(fd) })?;
        Ok(bench.hit(0)?)
    })?;
    expect::events("the read", &events, &[inval(1, &bench.area.all()), last(1)])?;
    std::mem::forget(bench.device);
    Ok(())
}

fn read_killed() -> Outcome {
    let sleeper = Child::fork(|line| {
        let device = open_blocking()?;
        line.tell()?;
        device.read_events(1)?;
        Ok(())
    })?;
    sleeper.hear()?;
    process::asleep_in(sleeper.pid(), libc::SYS_read)?;
    sleeper.signal(libc::SIGKILL)?;
    expect::same(
        "what ended the reader",
        sleeper.ended_by()?,
        Some(libc::SIGKILL),
    )?;
    let bench = Bench::one_page()?;
    bench.hit(0)?;
    bench.reads(&[inval(1, &bench.area.all()), last(1)])
}

fn read_several_sleepers() -> Outcome {
    const READERS: usize = 4;
    let bench = Bench::blocking(8)?;
    bench.watch_pages()?;
    let tids: [Tid; READERS] = Default::default();
    let mut seen = thread::scope(|scope| -> Outcome<Vec<Event>> {
        let (device, area) = (&bench.device, &bench.area);
        let readers = tids.each_ref().map(|tid| {
            scope.spawn(move || {
                tid.set();
                device.read_events(2)
            })
        });
        for tid in &tids {
            tid.asleep_in(libc::SYS_read)?;
        }
        // Two events for each reader.
        mem::unmap(&area.all())?;
        let mut seen = vec![];
        for reader in readers {
            seen.extend(reader.join().expect("the reader does not panic")?);
        }
        Ok(seen)
    })?;
    seen.sort_unstable_by_key(|event| event.user_cookie_counter);
    let wanted: Vec<_> = (0..8)
        .map(|page| inval(page + 1, &bench.area.page(page)))
        .collect();
    expect::events("all reads together", &seen, &wanted)?;
    bench.drain().map(drop)
}

fn read_many_sleepers() -> Outcome {
    /// More than a change wakes directly.
    const READERS: usize = 40;
    let bench = Bench::blocking(1)?;
    bench.watch_pages()?;
    let tids: Vec<Tid> = (0..READERS).map(|_| Tid::default()).collect();
    thread::scope(|scope| {
        let device = &bench.device;
        let readers: Vec<_> = tids
            .iter()
            .map(|tid| {
                scope.spawn(move || {
                    tid.set();
                    device.read_events(1)
                })
            })
            .collect();
        for tid in &tids {
            tid.asleep_in(libc::SYS_read)?;
        }
        // Each change gives something to two of them at most.
        let all = process::eventually(|| {
            let _ = bench.hit(0);
            readers.iter().all(|reader| reader.is_finished())
        });
        if !all {
            // They sleep for ever, so joining them would hang.
            return Err(Failure::new("readers", "their end", "some still asleep"));
        }
        readers.into_iter().try_for_each(|reader| {
            let events = reader.join().expect("the reader does not panic")?;
            expect::same("records", events.len(), 1)
        })
    })
}

fn read_behind_sleepers_that_fail() -> Outcome {
    /// More than a change wakes directly.
    const OTHERS: usize = 40;
    let bench = Bench::blocking(1)?;
    bench.watch_pages()?;
    let tids: Vec<Tid> = (0..=OTHERS).map(|_| Tid::default()).collect();
    thread::scope(|scope| {
        let device = &bench.device;
        let (tid, others) = tids.split_last().expect("there are some");
        let others: Vec<_> = others
            .iter()
            .map(|tid| {
                let other = scope.spawn(move || {
                    tid.set();
                    device.read_raw(ptr::null_mut(), size_of::<Event>())
                });
                tid.asleep_in(libc::SYS_read).map(|()| other)
            })
            .collect::<Outcome<_>>()?;
        let reader = scope.spawn(|| {
            tid.set();
            device.read_events(1)
        });
        tid.asleep_in(libc::SYS_read)?;
        bench.hit(0)?;
        let woken = process::eventually(|| reader.is_finished());
        if !woken {
            // It is the only one that is left.
            bench.hit(0)?;
        }
        for other in others {
            let read = other.join().expect("the thread does not panic");
            expect::error("read into nothing", read, libc::EFAULT)?;
        }
        let events = reader.join().expect("the reader does not panic")?;
        expect::that("the reader", woken, "the event", "that it sleeps on")?;
        expect::events("read", &events, &[inval(1, &bench.area.all())])
    })
}

fn read_count_zero() -> Outcome {
    for bench in [Bench::new(1)?, Bench::blocking(1)?] {
        bench.watch_pages()?;
        let nothing = || bench.device.read_raw(ptr::null_mut(), 0);
        expect::same("bytes read", nothing()?, 0)?;
        bench.hit(0)?;
        expect::same("bytes read", nothing()?, 0)?;
        bench.reads(&[inval(1, &bench.area.all()), last(1)])?;
        set_nonblocking(&bench.device)?;
        bench.is_silent()?;
        expect::same("bytes read", nothing()?, 0)?;
    }
    Ok(())
}

fn read_short_buffer() -> Outcome {
    for bench in [Bench::new(1)?, Bench::blocking(1)?] {
        bench.watch_pages()?;
        let mut buffer = [0u8; 31];
        let mut check_all = |what| {
            [1, 8, 31].iter().try_for_each(|size| {
                let result = bench.device.read_raw(buffer.as_mut_ptr().cast(), *size);
                expect::error(what, result, libc::EINVAL)
            })
        };
        check_all("short read of an empty queue")?;
        bench.hit(0)?;
        check_all("short read of an event")?;
        let events = bench.device.read_events(1)?;
        expect::events("a long read", &events, &[inval(1, &bench.area.all())])?;
        check_all("short read of LAST")?;
        bench.reads(&[last(1)])?;
        set_nonblocking(&bench.device)?;
        bench.is_silent()?;
        check_all("short read after one that found nothing")?;
    }
    Ok(())
}

fn read_whole_records() -> Outcome {
    let bench = Bench::new(2)?;
    bench.watch_pages()?;
    for size in [32, 33, 48, 63] {
        mem::advise(&bench.area.all(), libc::MADV_DONTNEED)?;
        let mut buffer = [0x5au8; 64];
        let read = bench.device.read_raw(buffer.as_mut_ptr().cast(), size)?;
        expect::same("bytes read", read, 32)?;
        let untouched = buffer[32..].iter().all(|byte| *byte == 0x5a);
        expect::same("that what follows is untouched", untouched, true)?;
        let counter = bench.counter.get();
        bench.reads(&[inval(2, &bench.area.page(1)), last(counter)])?;
    }
    Ok(())
}

fn read_as_many_as_fit() -> Outcome {
    const PAGES: u64 = 200;
    let bench = Bench::new(PAGES)?;
    bench.watch_pages()?;
    for size in [1, 2, 15, 16, 17, 33, 127, 129, 199, 200, 201, 500] {
        mem::advise(&bench.area.all(), libc::MADV_DONTNEED)?;
        let events = bench.device.read_events(size)?;
        expect::same("records", events.len(), size.min(PAGES as usize + 1))?;
        for (page, event) in (0..PAGES).zip(&events) {
            let wanted = inval(page + 1, &bench.area.page(page));
            expect::events("a record", std::slice::from_ref(event), &[wanted])?;
        }
        let rest = bench.device.read_events(PAGES as usize + 1);
        match rest {
            Ok(rest) => expect::same("all", events.len() + rest.len(), PAGES as usize + 1)?,
            error if size > PAGES as usize => expect::error("read", error, libc::EAGAIN)?,
            error => drop(error?),
        }
    }
    Ok(())
}

fn read_huge() -> Outcome {
    const REGIONS: u64 = 20_000;
    let bench = Bench::new(1)?;
    let page = bench.area.all();
    for cookie in 0..REGIONS {
        bench.watch(cookie, &page)?;
    }
    bench.hit(0)?;
    let events = bench.device.read_events(REGIONS as usize + 10)?;
    expect::same("records", events.len() as u64, REGIONS + 1)?;
    let cookies: HashSet<u64> = events
        .iter()
        .filter(|event| event.kind == EVENT_INVAL)
        .map(|event| event.user_cookie_counter)
        .collect();
    expect::same("different cookies", cookies.len() as u64, REGIONS)?;
    bench.is_silent()
}

/// Queues two INVAL records, which LAST will follow.
fn two_queued() -> Outcome<Bench> {
    let bench = Bench::new(2)?;
    bench.watch_pages()?;
    mem::advise(&bench.area.all(), libc::MADV_DONTNEED)?;
    Ok(bench)
}

/// Expects all of [`two_queued`].
#[track_caller]
fn still_has_two(bench: &Bench) -> Outcome {
    bench.reads(&[
        inval(1, &bench.area.page(0)),
        inval(2, &bench.area.page(1)),
        last(1),
    ])
}

fn read_bad_pointer() -> Outcome {
    let bench = two_queued()?;
    let unmapped = Guarded::new(1)?;
    mem::unmap(&unmapped.all())?;
    for pointer in [0, 8, unmapped.all().start, 1 << 63, u64::MAX - 100] {
        for size in [32, 33, 64, 4096] {
            let result = bench.device.read_raw(pointer as *mut c_void, size);
            expect::error("read", result, libc::EFAULT)?;
        }
    }
    still_has_two(&bench)
}

/// A buffer of which only the first `writable` bytes are mapped.
fn buffer_with_end(writable: u64) -> Outcome<*mut c_void> {
    let pages = writable.div_ceil(PAGE);
    Ok((Guarded::new(pages)?.all().end - writable) as *mut c_void)
}

fn read_half_bad_buffer() -> Outcome {
    for writable in [32, 48, 63] {
        let bench = two_queued()?;
        let buffer = buffer_with_end(writable)?;
        let read = expect::success("read", bench.device.read_raw(buffer, 96))?;
        expect::same("bytes read", read, 32)?;
        bench.reads(&[inval(2, &bench.area.page(1)), last(1)])?;
    }
    for writable in [1, 16, 31] {
        let bench = two_queued()?;
        let buffer = buffer_with_end(writable)?;
        expect::error("read", bench.device.read_raw(buffer, 96), libc::EFAULT)?;
        still_has_two(&bench)?;
    }
    let bench = two_queued()?;
    let read = bench.device.read_raw(buffer_with_end(80)?, 96)?;
    expect::same("bytes read", read, 64)?;
    bench.reads(&[last(1)])
}

fn read_bad_after_many() -> Outcome {
    const PAGES: u64 = 300;
    let bench = Bench::new(PAGES)?;
    bench.watch_pages()?;
    mem::unmap(&bench.area.all())?;
    // The end is in the middle of a record, beyond the first page.
    let writable = PAGE + 20 * 32 + 8;
    let read = bench
        .device
        .read_raw(buffer_with_end(writable)?, 400 * 32)?;
    let records = writable / 32;
    expect::same("bytes read", read as u64, records * 32)?;
    let events = bench.device.read_events(400)?;
    expect::same("the rest", events.len() as u64, PAGES - records + 1)?;
    let next = inval(records + 1, &bench.area.page(records));
    expect::events("the first of it", &events[..1], &[next])
}

fn read_read_only_buffer() -> Outcome {
    let bench = two_queued()?;
    let area = Guarded::new(1)?;
    mem::protect(&area.all(), libc::PROT_READ)?;
    let result = bench.device.read_raw(area.all().start as *mut c_void, 96);
    expect::error("read", result, libc::EFAULT)?;
    still_has_two(&bench)
}

/// The records that a read left in memory that Rust does not own.
fn records_at(address: *mut c_void, bytes: usize) -> Vec<Event> {
    let first: *const Event = address.cast();
    (0..bytes / size_of::<Event>())
        // SAFETY: The callers have mapped the memory and read that many bytes into it.
        .map(|index| unsafe { first.add(index).read_unaligned() })
        .collect()
}

fn read_faults_buffer_in() -> Outcome {
    let bench = two_queued()?;
    let buffer = Guarded::unpopulated(2)?;
    // Across the boundary of two pages, neither of which is populated.
    let address = (buffer.page(1).start - 40) as *mut c_void;
    let read = expect::success("read", bench.device.read_raw(address, 96))?;
    expect::same("bytes read", read, 96)?;
    let (first, second) = (inval(1, &bench.area.page(0)), inval(2, &bench.area.page(1)));
    expect::events(
        "what was read",
        &records_at(address, 96),
        &[first, second, last(1)],
    )
}

fn read_into_watched_memory() -> Outcome {
    let bench = Bench::new(2)?;
    let buffer = bench.area.page(1);
    bench.watch(1, &bench.area.page(0))?;
    bench.watch(2, &buffer)?;
    // While the child lives, a write to the buffer copies its page.
    let child = Child::fork(|line| Ok(line.hear()?))?;
    let before = bench.counter.get();
    expect::at_least("the counter after fork", before, 1)?;
    let mut reported = 0;
    let mut cookies = HashSet::new();
    while reported != bench.counter.get() {
        let address = buffer.start as *mut c_void;
        let bytes = expect::success("read", bench.device.read_raw(address, 96))?;
        for event in records_at(address, bytes) {
            match event.kind {
                EVENT_INVAL => drop(cookies.insert(event.user_cookie_counter)),
                _ => reported = event.user_cookie_counter,
            }
        }
    }
    expect::same("cookies", cookies, HashSet::from([1, 2]))?;
    expect::at_least(
        "the counter after the copy",
        bench.counter.get(),
        before + 1,
    )?;
    child.tell()?;
    child.join()
}

/// `readv` into any memory; returns the number of bytes read.
fn read_vector(device: &Device, buffers: &[(*mut c_void, usize)]) -> io::Result<usize> {
    let iov: Vec<libc::iovec> = buffers
        .iter()
        .map(|(iov_base, iov_len)| libc::iovec {
            iov_base: *iov_base,
            iov_len: *iov_len,
        })
        .collect();
    // SAFETY: The kernel checks the buffers; the caller allows it to write there.
    let read = check(unsafe { libc::readv(device.as_raw_fd(), iov.as_ptr(), iov.len() as i32) })?;
    Ok(read as usize)
}

/// `readv` into pieces of one array; returns the records.
fn read_pieces(device: &Device, sizes: &[usize]) -> Outcome<Vec<Event>> {
    let mut space = vec![0u8; sizes.iter().sum()];
    let mut at = space.as_mut_ptr();
    let mut buffers = vec![];
    for size in sizes {
        buffers.push((at.cast(), *size));
        at = at.wrapping_add(*size);
    }
    let read = expect::success("readv", read_vector(device, &buffers))?;
    Ok(records_at(space.as_mut_ptr().cast(), read))
}

fn read_iovecs() -> Outcome {
    let bench = two_queued()?;
    let events = read_pieces(&bench.device, &[32, 32, 32])?;
    let (first, second) = (inval(1, &bench.area.page(0)), inval(2, &bench.area.page(1)));
    expect::events("one record each", &events, &[first, second, last(1)])?;

    let bench = two_queued()?;
    let events = read_pieces(&bench.device, &[0, 64, 0])?;
    let (first, second) = (inval(1, &bench.area.page(0)), inval(2, &bench.area.page(1)));
    expect::events("with empty buffers", &events, &[first, second])?;
    let none = read_vector(&bench.device, &[])?;
    expect::same("without buffers", none, 0)?;
    bench.reads(&[last(1)])
}

fn read_iovec_straddled() -> Outcome {
    for sizes in [&[20, 44, 40][..], &[16, 80], &[1; 100], &[31, 1, 33, 31]] {
        let bench = two_queued()?;
        let events = read_pieces(&bench.device, sizes)?;
        let (first, second) = (inval(1, &bench.area.page(0)), inval(2, &bench.area.page(1)));
        expect::events("pieces", &events, &[first, second, last(1)])?;
    }
    let bench = two_queued()?;
    let result = read_vector(
        &bench.device,
        &[
            ([0u8; 16].as_mut_ptr().cast(), 16),
            ([0u8; 15].as_mut_ptr().cast(), 15),
        ],
    );
    expect::error("31 bytes in two pieces", result, libc::EINVAL)?;
    still_has_two(&bench)
}

fn read_iovec_half_bad() -> Outcome {
    let mut space = [0u8; 64];
    let good: *mut c_void = space.as_mut_ptr().cast();
    let bad = ptr::null_mut();

    let bench = two_queued()?;
    let read = read_vector(&bench.device, &[(good, 32), (bad, 64)])?;
    expect::same("bytes before a bad buffer", read, 32)?;
    bench.reads(&[inval(2, &bench.area.page(1)), last(1)])?;

    let bench = two_queued()?;
    let read = read_vector(&bench.device, &[(good, 48), (bad, 64)])?;
    expect::same("whole records before a bad buffer", read, 32)?;
    bench.reads(&[inval(2, &bench.area.page(1)), last(1)])?;

    let bench = two_queued()?;
    let result = read_vector(&bench.device, &[(good, 16), (bad, 64)]);
    expect::error("no whole record", result, libc::EFAULT)?;
    let result = read_vector(&bench.device, &[(bad, 32), (good, 64)]);
    expect::error("a bad buffer first", result, libc::EFAULT)?;
    still_has_two(&bench)
}

fn read_iovec_never_sleeps_twice() -> Outcome {
    let bench = Bench::blocking(2)?;
    bench.watch_pages()?;
    mem::advise(&bench.area.all(), libc::MADV_DONTNEED)?;
    let events = read_pieces(&bench.device, &[32, 32, 32, 32, 32])?;
    expect::same("records of a blocking readv", events.len(), 3)?;
    // The same if a blocking read has had to wait.
    let tid = Tid::default();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            tid.set();
            read_pieces(&bench.device, &[32, 500])
        });
        tid.asleep_in(libc::SYS_readv)?;
        bench.hit(1)?;
        let events = reader.join().expect("the reader does not panic")?;
        let wanted = [inval(2, &bench.area.page(1)), last(2)];
        expect::events("the sleeping readv", &events, &wanted)?;
        bench.drain().map(drop)
    })
}

fn read_nowait() -> Outcome {
    let bench = Bench::blocking(1)?;
    bench.watch_pages()?;
    let mut space = [Event::default(); 4];
    let address: *mut c_void = space.as_mut_ptr().cast();
    let iov = libc::iovec {
        iov_base: address,
        iov_len: size_of_val(&space),
    };
    let read = || {
        let fd = bench.device.as_raw_fd();
        // SAFETY: The buffer is alive, and any bytes are a valid `Event`.
        check(unsafe { libc::preadv2(fd, &iov, 1, -1, libc::RWF_NOWAIT) })
    };
    expect::error("preadv2 of an empty queue", read(), libc::EAGAIN)?;
    bench.hit(0)?;
    expect::same("bytes read", expect::success("preadv2", read())?, 64)?;
    let wanted = [inval(1, &bench.area.all()), last(1)];
    expect::events("preadv2", &records_at(address, 64), &wanted)?;
    expect::error("preadv2 of an empty queue", read(), libc::EAGAIN)
}

#[cfg(not(target_pointer_width = "64"))]
fn read_io_uring() -> Outcome {
    Err(Failure::Skipped("the crate io-uring is for 64 bits".into()))
}

#[cfg(target_pointer_width = "64")]
fn read_io_uring() -> Outcome {
    use io_uring::{
        opcode,
        types::Fd,
        IoUring, //
    };

    for blocking in [true, false] {
        let bench = if blocking {
            Bench::blocking(1)?
        } else {
            Bench::new(1)?
        };
        bench.watch_pages()?;
        let mut ring = IoUring::new(4).or_skip("io_uring")?;
        let mut space = [Event::default(); 4];
        let address: *mut c_void = space.as_mut_ptr().cast();
        let fd = Fd(bench.device.as_raw_fd());
        let length = size_of_val(&space) as u32;
        let entry = opcode::Read::new(fd, address.cast(), length).build();
        let submit = |ring: &mut IoUring, wait| -> io::Result<Option<i32>> {
            // SAFETY: The buffer outlives the request, since the ring is dropped first.
            unsafe { ring.submission().push(&entry) }.expect("the queue has room");
            ring.submit_and_wait(wait)?;
            Ok(ring.completion().next().map(|done| done.result()))
        };

        bench.hit(0)?;
        expect::same("result", submit(&mut ring, 1)?, Some(64))?;
        let page = bench.area.all();
        let wanted = [inval(1, &page), last(1)];
        expect::events("a read after the event", &records_at(address, 64), &wanted)?;

        // On a non-blocking file, the ring either waits or reports that there is nothing.
        let early = submit(&mut ring, 0)?;
        if !blocking && early == Some(-libc::EAGAIN) {
            continue;
        }
        expect::same("result on an empty queue", early, None)?;
        bench.hit(0)?;
        ring.submit_and_wait(1)?;
        let result = ring.completion().next().map(|done| done.result());
        expect::same("result", result, Some(64))?;
        let wanted = [inval(1, &page), last(2)];
        expect::events("a read before the event", &records_at(address, 64), &wanted)?;
    }
    Ok(())
}

fn read_by_position() -> Outcome {
    let bench = two_queued()?;
    let fd = bench.device.as_raw_fd();
    let mut space = [0u8; 96];
    for position in [0, 32, 4096] {
        // SAFETY: The buffer is alive and of that size.
        let result = check(unsafe { libc::pread(fd, space.as_mut_ptr().cast(), 96, position) });
        expect::error("pread", result, libc::ESPIPE)?;
    }
    for whence in [libc::SEEK_SET, libc::SEEK_CUR, libc::SEEK_END] {
        // SAFETY: The call takes no pointer.
        let result = check(unsafe { libc::lseek(fd, 0, whence) });
        expect::error("lseek", result, libc::ESPIPE)?;
    }
    still_has_two(&bench)
}

fn write_fails() -> Outcome {
    let bench = Bench::new(1)?;
    let fd = bench.device.as_raw_fd();
    let bytes = [0u8; 32];
    // SAFETY: The buffer is alive and of that size.
    let result = check(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) });
    expect::error("write", result, libc::EBADF)
}
