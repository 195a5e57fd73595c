// SPDX-License-Identifier: GPL-2.0

//! Each allocation and each copy of user memory in each call, made to fail once.
//!
//! Each test makes a call whose n-th point of failure fails, for n = 1, 2, … until the call has no
//! n-th point. Whatever fails, the call must return one of its documented errors, the queue must be
//! intact, and the file must still work.
//!
//! Leaks and invalid accesses are reported by the kernel, if it is built to detect them.

use std::{
    ffi::c_void,
    fs,
    io,
    os::fd::{
        AsRawFd,
        FromRawFd,
        IntoRawFd,
        OwnedFd, //
    },
    ptr, //
};

use ummunotify::Features;

use super::{
    crowd::{
        Crowd,
        Layout, //
    },
    inject::Faults,
    limits::{
        fdinfo,
        fdinfo_path, //
    },
    prelude::*,
    stamp_pages::stamp_of, //
};
use crate::{
    module::{
        Module,
        Unloaded, //
    },
    uapi::Stamp, //
};

table! {
    faults_open: "open fails cleanly at each fault, in an address space without other files",
    faults_first_register: "so does the first REGISTER_REGION after an open that could not register the notifier",
    faults_close: "close succeeds in spite of any fault",
    faults_exchange: "EXCHANGE_FEATURES fails cleanly, and can be repeated",
    faults_register: "REGISTER_REGION fails cleanly, and the cookie stays free",
    faults_unregister: "UNREGISTER_REGION fails cleanly, and the region stays",
    faults_stamp: "STAMP fails cleanly, and other calls return the same stamp",
    faults_mmap: "mmap and mremap of the counter, and the first access to it",
    faults_read: "read fails cleanly or not at all, and no record is lost or repeated",
    faults_read_deferred: "so does a read of deferred events",
    faults_readv: "so does readv",
    faults_poll: "poll and epoll fail cleanly",
    faults_async: "O_ASYNC fails cleanly: there is a signal exactly if it succeeded",
    faults_fdinfo: "reading fdinfo fails cleanly",
    faults_fork: "a failing fork leaves the file and the mapped counter intact",
    faults_module: "loading the module fails cleanly, and leaves no device behind",
}

/// The errors of a call that runs out of memory, or that cannot access its arguments.
const NO_MEMORY: &[i32] = &[libc::ENOMEM];
const NO_ACCESS: &[i32] = &[libc::EFAULT];
const EITHER: &[i32] = &[libc::ENOMEM, libc::EFAULT];

/// A file with two regions, used to show that a fault damages neither the file nor its queue.
struct Witness(Bench);

impl Witness {
    /// Creates one on memory that fork does not copy.
    fn new() -> Outcome<Self> {
        let bench = Bench::over(open()?, Guarded::shared(2)?)?;
        bench.watch_pages()?;
        Ok(Self(bench))
    }

    /// Queues an event whose loss would be noticed.
    fn queue(&self) -> Outcome {
        let before = self.0.counter.get();
        self.0.hit(0)?;
        self.0.counts(before + 1)
    }

    /// Expects exactly that event, and that the file still works.
    #[track_caller]
    fn testifies(&self) -> Outcome {
        let Self(bench) = self;
        let before = bench.counter.get();
        bench.hit(1)?;
        bench.reads(&[
            inval(1, &bench.area.page(0)),
            inval(2, &bench.area.page(1)),
            last(before + 1),
        ])?;
        bench.counts(before + 1)?;
        bench.is_silent()
    }
}

fn faults_open() -> Outcome {
    let faults = Faults::new()?;
    // Some memory is allocated only for the first file of an address space.
    faults.sweep("open", 6, |faults, nth| {
        let child = Child::fork(|line| {
            let attempt = faults.inject(nth, Device::open_nonblocking)?;
            line.tell_number(attempt.faulted.into())?;
            drop(attempt.may_fail("open", EITHER)?);
            let witness = Witness::new()?;
            witness.queue()?;
            witness.testifies()
        })?;
        let faulted = child.hear_number()? != 0;
        child.join()?;
        Ok(faulted)
    })
}

fn faults_first_register() -> Outcome {
    let faults = Faults::new()?;
    let area = Guarded::new(1)?;
    let page = area.all();
    // If open succeeds in spite of a fault, the first REGISTER has to register the notifier.
    let mut opens = 0;
    let mut nth_of_open = 0;
    let mut more = true;
    while more {
        nth_of_open += 1;
        let what = format!("REGISTER_REGION after open with fault {nth_of_open}");
        let mut opened = false;
        faults.sweep(&what, 0, |faults, nth| {
            let child = Child::fork(|line| {
                let open = faults.inject(nth_of_open, Device::open_nonblocking)?;
                line.tell_number(open.faulted.into())?;
                let Some(device) = open.may_fail("open", EITHER)? else {
                    line.tell_number(0)?;
                    return Ok(line.tell_number(0)?);
                };
                let register = || device.register(page.start, page.end, 7);
                let attempt = faults.inject(nth, register)?;
                line.tell_number(1)?;
                line.tell_number(attempt.faulted.into())?;
                if attempt.may_fail("REGISTER_REGION", EITHER)?.is_none() {
                    expect::success("once more", register())?;
                }
                mem::advise(&page, libc::MADV_DONTNEED)?;
                let events = device.read_events(3)?;
                expect::events("read", &events, &[inval(7, &page), last(1)])
            })?;
            more = child.hear_number()? != 0;
            opened |= child.hear_number()? != 0;
            let faulted = child.hear_number()? != 0;
            child.join()?;
            Ok(faulted)
        })?;
        opens += u64::from(opened);
    }
    expect::at_least("opens that succeeded", opens, 1)
}

fn faults_close() -> Outcome {
    let faults = Faults::new()?;
    let witness = Witness::new()?;
    faults.sweep("close", 0, |faults, nth| {
        let bench = Bench::new(2)?;
        bench.watch_pages()?;
        bench.hit(0)?;
        witness.queue()?;
        drop(bench.counter);
        let fd = OwnedFd::from(bench.device.file().try_clone()?).into_raw_fd();
        drop(bench.device);
        // SAFETY: The descriptor is nobody else's.
        let attempt = faults.inject(nth, || check(unsafe { libc::close(fd) }))?;
        let faulted = attempt.faulted;
        attempt.may_fail("close", &[])?;
        witness.testifies()?;
        Ok(faulted)
    })
}

fn faults_exchange() -> Outcome {
    let faults = Faults::new()?;
    faults.sweep("EXCHANGE_FEATURES", 2, |faults, nth| {
        let device = open()?;
        let attempt = faults.inject(nth, || device.exchange_features(!0))?;
        let faulted = attempt.faulted;
        let again = device.exchange_features(!0);
        match attempt.may_fail("EXCHANGE_FEATURES", NO_ACCESS)? {
            Some(_) => expect::error("once more", again, libc::EINVAL)?,
            None => expect::same(
                "granted",
                expect::success("once more", again)?,
                Features::ALL.bits(),
            )?,
        }
        Ok(faulted)
    })
}

fn faults_register() -> Outcome {
    let faults = Faults::new()?;
    let witness = Witness::new()?;
    let area = Guarded::new(1)?;
    let page = area.all();
    faults.sweep("REGISTER_REGION", 2, |faults, nth| {
        let Witness(Bench { device, .. }) = &witness;
        witness.queue()?;
        let attempt = faults.inject(nth, || device.register(page.start, page.end, 9))?;
        let faulted = attempt.faulted;
        let free = attempt.may_fail("REGISTER_REGION", EITHER)?.is_none();
        let again = device.register(page.start, page.end, 9);
        if free {
            expect::success("once more", again)?;
        } else {
            expect::error("once more", again, libc::EINVAL)?;
        }
        device.unregister(9)?;
        witness.testifies()?;
        Ok(faulted)
    })
}

fn faults_unregister() -> Outcome {
    let faults = Faults::new()?;
    let witness = Witness::new()?;
    let area = Guarded::new(1)?;
    let page = area.all();
    faults.sweep("UNREGISTER_REGION", 1, |faults, nth| {
        let Witness(Bench { device, .. }) = &witness;
        device.register(page.start, page.end, 9)?;
        witness.queue()?;
        let attempt = faults.inject(nth, || device.unregister(9))?;
        let faulted = attempt.faulted;
        let again = match attempt.may_fail("UNREGISTER_REGION", NO_ACCESS)? {
            Some(()) => expect::error("once more", device.unregister(9), libc::EINVAL),
            None => expect::success("once more", device.unregister(9)),
        };
        again?;
        witness.testifies()?;
        Ok(faulted)
    })
}

fn faults_stamp() -> Outcome {
    let faults = Faults::new()?;
    let device = open_with(Features::STAMP)?;
    let area = Guarded::new(100)?;
    let asked = Stamp {
        start: area.all().start,
        end: area.all().end,
        ..Stamp::default()
    };
    let before = stamp_of(&device, &area.all())?;
    faults.sweep("STAMP", 2, |faults, nth| {
        let attempt = faults.inject(nth, || device.stamp_with(asked))?;
        let faulted = attempt.faulted;
        if let Some(result) = attempt.may_fail("STAMP", NO_ACCESS)? {
            expect::same(
                "stamp and absent",
                (result.stamp, result.absent),
                (before, 0),
            )?;
        }
        expect::same("stamp, again", stamp_of(&device, &area.all())?, before)?;
        Ok(faulted)
    })
}

fn faults_mmap() -> Outcome {
    let faults = Faults::new()?;
    let witness = Witness::new()?;
    let Witness(Bench { device, .. }) = &witness;
    // Each attempt maps the counter where there is no page table yet.
    let space = Guarded::huge(2)?;
    let (here, there) = (space.all().start, space.all().start + HUGE);
    let map = || {
        let access = libc::PROT_READ;
        let file = Some(device.file());
        mem::map(Some(here), PAGE, access, libc::MAP_SHARED, file).map(|at| at..at + PAGE)
    };
    let clear = || {
        let access = libc::PROT_NONE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        mem::unmap(&space.all())?;
        mem::map(Some(here), 2 * HUGE, access, flags, None)
    };
    let shows = |at: u64| -> Outcome {
        // SAFETY: The counter is mapped there.
        let seen = unsafe { ptr::read_volatile(at as *const u64) };
        expect::same(
            "the counter at another address",
            seen,
            witness.0.counter.get(),
        )
    };

    faults.sweep("mmap", 2, |faults, nth| {
        clear()?;
        witness.queue()?;
        let attempt = faults.inject(nth, map)?;
        let faulted = attempt.faulted;
        if let Some(page) = attempt.may_fail("mmap", NO_MEMORY)? {
            shows(page.start)?;
        }
        witness.testifies()?;
        Ok(faulted)
    })?;
    faults.sweep("mremap", 1, |faults, nth| {
        clear()?;
        let page = map()?;
        let other = there..there + PAGE;
        witness.queue()?;
        let attempt = faults.inject(nth, || mem::move_to(&page, &other))?;
        let faulted = attempt.faulted;
        let moved = attempt.may_fail("mremap", NO_MEMORY)?.is_some();
        shows(if moved { there } else { here })?;
        witness.testifies()?;
        Ok(faulted)
    })?;
    faults.sweep("access after the page was dropped", 0, |faults, nth| {
        clear()?;
        let page = map()?;
        witness.queue()?;
        mem::advise(&page, libc::MADV_DONTNEED)?;
        // The access shows no error: it is retried, or the process is killed.
        let attempt = faults.inject(nth, || Ok(mem::read_byte(page.start)))?;
        shows(page.start)?;
        witness.testifies()?;
        Ok(attempt.faulted)
    })
}

/// Pages in the tests of reading: more records than the driver copies at once.
const PAGES: u64 = 60;

/// Makes `read` read into a buffer with room for everything, and then reads what is left.
fn sweep_reads(
    what: &str,
    least: u32,
    errors: &[i32],
    read: impl Fn(&Device, &mut [Event]) -> io::Result<usize>,
) -> Outcome {
    let faults = Faults::new()?;
    let bench = Bench::new(PAGES)?;
    bench.watch_pages()?;
    let mut buffer = [Event::default(); PAGES as usize + 2];
    faults.sweep(what, least, |faults, nth| {
        for page in 0..PAGES {
            bench.hit(page)?;
        }
        let attempt = faults.inject(nth, || read(&bench.device, &mut buffer))?;
        let faulted = attempt.faulted;
        let bytes = attempt.may_fail(what, errors)?.unwrap_or(0);
        expect::same("bytes beyond whole records", bytes % size_of::<Event>(), 0)?;
        let mut seen = buffer[..bytes / size_of::<Event>()].to_vec();
        seen.extend(read_if_any(&bench.device, buffer.len())?);
        let hits = (0..PAGES).map(|page| expect::inval(page + 1, &bench.area.page(page)));
        let wanted: Vec<_> = hits.chain([last(bench.counter.get())]).collect();
        expect::events(what, &seen, &wanted)?;
        bench.is_silent()?;
        Ok(faulted)
    })
}

fn faults_read() -> Outcome {
    sweep_reads("read", 2, NO_ACCESS, |device, buffer| {
        device.read_raw(buffer.as_mut_ptr().cast(), size_of_val(buffer))
    })
}

fn faults_read_deferred() -> Outcome {
    const REGIONS: u64 = 300;
    let faults = Faults::new()?;
    let crowd = Crowd::new(Layout::Nested, REGIONS)?;
    let mut buffer = [Event::default(); REGIONS as usize + 2];
    let mut counter = 0;
    faults.sweep("a read of deferred events", 2, |faults, nth| {
        crowd.hit()?;
        counter += 1;
        let read = || {
            let device = &crowd.bench.device;
            device.read_raw(buffer.as_mut_ptr().cast(), size_of_val(&buffer))
        };
        let attempt = faults.inject(nth, read)?;
        let faulted = attempt.faulted;
        let bytes = attempt.may_fail("read", NO_ACCESS)?.unwrap_or(0);
        expect::same("bytes beyond whole records", bytes % size_of::<Event>(), 0)?;
        let mut seen = buffer[..bytes / size_of::<Event>()].to_vec();
        seen.extend(read_if_any(&crowd.bench.device, buffer.len())?);
        expect::events("reads", &seen, &crowd.events(counter))?;
        crowd.bench.is_silent()?;
        Ok(faulted)
    })
}

fn faults_readv() -> Outcome {
    sweep_reads("readv", 4, EITHER, |device, buffer| {
        /// More buffers than the kernel keeps on its stack, of a size that splits records.
        const PIECE: usize = 56;
        let mut pieces = [libc::iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        }; 16];
        let start: *mut c_void = buffer.as_mut_ptr().cast();
        let length = size_of_val(buffer);
        let mut used = 0;
        for (piece, offset) in pieces.iter_mut().zip((0..length).step_by(PIECE)) {
            piece.iov_base = start.wrapping_byte_add(offset);
            piece.iov_len = PIECE.min(length - offset);
            used += 1;
        }
        // SAFETY: The pieces lie in `buffer`.
        let read = unsafe { libc::readv(device.as_raw_fd(), pieces.as_ptr(), used) };
        check(read).map(|read| read as usize)
    })
}

fn faults_poll() -> Outcome {
    /// More than the kernel keeps on its stack.
    const FILES: usize = 100;
    let faults = Faults::new()?;
    let witness = Witness::new()?;
    let fd = witness.0.device.as_raw_fd();
    faults.sweep("poll", 3, |faults, nth| {
        let events = libc::POLLIN;
        let mut fds = [libc::pollfd {
            fd,
            events,
            revents: 0,
        }; FILES];
        // Nothing is readable, so the call has to wait for all of them.
        // SAFETY: `fds` has that many elements.
        let call = || check(unsafe { libc::poll(fds.as_mut_ptr(), FILES as libc::nfds_t, 1) });
        let attempt = faults.inject(nth, call)?;
        let faulted = attempt.faulted;
        if let Some(ready) = attempt.may_fail("poll", EITHER)? {
            expect::same("ready", ready, 0)?;
        }
        witness.queue()?;
        witness.testifies()?;
        Ok(faulted)
    })?;
    // SAFETY: The file was just opened and is nobody else's.
    let epoll = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(0))?) };
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 0,
    };
    faults.sweep("epoll", 2, |faults, nth| {
        let mut control = |operation| {
            // SAFETY: `event` is a valid event.
            check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, fd, &mut event) })
        };
        let attempt = faults.inject(nth, || control(libc::EPOLL_CTL_ADD))?;
        let faulted = attempt.faulted;
        let added = attempt.may_fail("epoll_ctl", EITHER)?.is_some();
        witness.queue()?;
        let mut ready = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: `ready` is one event.
        let count = check(unsafe { libc::epoll_wait(epoll.as_raw_fd(), &mut ready, 1, 0) })?;
        expect::same("ready", count, i32::from(added))?;
        if added {
            control(libc::EPOLL_CTL_DEL)?;
        }
        witness.testifies()?;
        Ok(faulted)
    })
}

fn faults_async() -> Outcome {
    let faults = Faults::new()?;
    signals::catch_signal(libc::SIGIO, libc::SA_RESTART)?;
    // SAFETY: The call takes no pointer.
    let myself = unsafe { libc::getpid() };
    let fcntl = |bench: &Bench, command, argument: i32| {
        // SAFETY: The commands take no pointer.
        check(unsafe { libc::fcntl(bench.device.as_raw_fd(), command, argument) })
    };
    faults.sweep("F_SETOWN", 1, |faults, nth| {
        let bench = Bench::one_page()?;
        let attempt = faults.inject(nth, || fcntl(&bench, libc::F_SETOWN, myself))?;
        let faulted = attempt.faulted;
        attempt.may_fail("F_SETOWN", NO_MEMORY)?;
        bench.hit(0)?;
        bench.reads(&[expect::inval(1, &bench.area.all()), last(1)])?;
        Ok(faulted)
    })?;
    faults.sweep("O_ASYNC", 1, |faults, nth| {
        let bench = Bench::one_page()?;
        fcntl(&bench, libc::F_SETOWN, myself)?;
        let flags = libc::O_ASYNC | libc::O_NONBLOCK;
        let attempt = faults.inject(nth, || fcntl(&bench, libc::F_SETFL, flags))?;
        let faulted = attempt.faulted;
        let asked = attempt.may_fail("O_ASYNC", NO_MEMORY)?.is_some();
        let before = signals::caught().count;
        bench.hit(0)?;
        let signals = signals::caught().count - before;
        expect::same("signals", signals, i32::from(asked))?;
        bench.reads(&[expect::inval(1, &bench.area.all()), last(1)])?;
        Ok(faulted)
    })
}

fn faults_fdinfo() -> Outcome {
    let faults = Faults::new()?;
    let witness = Witness::new()?;
    let path = fdinfo_path(&witness.0.device);
    faults.sweep("fdinfo", 2, |faults, nth| {
        witness.queue()?;
        let attempt = faults.inject(nth, || fs::read_to_string(&path))?;
        let faulted = attempt.faulted;
        // procfs returns ENOENT if it has no memory for an inode.
        let errors = [libc::ENOMEM, libc::EFAULT, libc::ENOENT];
        if let Some(text) = attempt.may_fail("fdinfo", &errors)? {
            expect::same("queued", fdinfo(&text, "queued")?, 1)?;
        }
        witness.testifies()?;
        Ok(faulted)
    })
}

fn faults_fork() -> Outcome {
    let faults = Faults::new()?;
    let witness = Witness::new()?;
    faults.sweep_some(6, "fork", 20, |faults, nth| {
        witness.queue()?;
        let attempt = faults.inject(nth, || {
            // SAFETY: The child only ends.
            match check(unsafe { libc::fork() })? {
                // SAFETY: As above.
                0 => unsafe { libc::_exit(0) },
                child => Ok(child),
            }
        })?;
        let faulted = attempt.faulted;
        if let Some(child) = attempt.may_fail("fork", NO_MEMORY)? {
            // SAFETY: The status is of no interest.
            check(unsafe { libc::waitpid(child, ptr::null_mut(), 0) })?;
        }
        witness.testifies()?;
        Ok(faulted)
    })
}

fn faults_module() -> Outcome {
    let faults = Faults::new()?;
    let module = Unloaded::new()?;
    faults.sweep_some(12, "loading the module", 20, |faults, nth| {
        let attempt = faults.inject(nth, || module.insert(c""))?;
        let faulted = attempt.faulted;
        match attempt.may_fail("loading the module", EITHER)? {
            Some(()) => expect::success("unloading the module", Module::remove())?,
            None => expect::error("open", Device::open().map(drop), libc::ENOENT)?,
        }
        Ok(faulted)
    })?;
    expect::success("loading the module", module.load(""))?;
    let witness = Witness::new()?;
    witness.queue()?;
    witness.testifies()
}
