// SPDX-License-Identifier: GPL-2.0

//! The tests by subject, and what they share.

#[cfg(target_pointer_width = "64")] // like the demonstration
mod caches;
mod causes;
mod causes_device;
mod causes_gap;
mod causes_ignored;
#[cfg(target_pointer_width = "64")] // like the demonstration
mod causes_pinned;
mod causes_reported;
mod clients;
mod counter;
mod crowd;
mod deferred;
mod exhaustion;
mod faults;
mod features;
pub mod fork;
mod gap;
mod hostile;
mod hull;
mod inject;
mod ioctl;
mod last;
mod limits;
mod locked;
mod mmap;
mod open;
mod others;
mod poll;
mod races;
mod read;
mod regions;
mod sigio;
mod stalled;
mod stamp_absent;
mod stamp_errors;
mod stamp_pages;
mod v2;

use std::{
    io,
    ops::Range,
    time::Duration, //
};

use self::prelude::*;
use crate::{
    harness::Test,
    uapi, //
};

/// What most tests use.
mod prelude {
    pub(super) use super::{
        as_ordinary_user,
        causes_of,
        open,
        open_blocking,
        open_with,
        read_if_any,
        Bench, //
    };
    pub(super) use crate::{
        absent::Absent,
        device::{
            self,
            check,
            Counter,
            Device, //
        },
        expect::{
            self,
            inval,
            last,
            whole,
            Failure,
            OrSkip,
            Outcome, //
        },
        harness::table,
        mem::{
            self,
            Guarded,
            HUGE,
            PAGE, //
        },
        process::{
            self,
            Channel,
            Child,
            Tid, //
        },
        signals,
        system::{
            Cgroup,
            Setting, //
        },
        uapi::{
            Event,
            Register,
            EVENT_INVAL,
            EVENT_LAST, //
        },
    };
    pub(super) use ummunotify::{
        Causes,
        Features, //
    };
}

/// All tests.
pub fn all() -> Vec<Test> {
    [
        v2::TESTS,
        open::TESTS,
        ioctl::TESTS,
        regions::TESTS,
        last::TESTS,
        counter::TESTS,
        read::TESTS,
        poll::TESTS,
        sigio::TESTS,
        mmap::TESTS,
        fork::TESTS,
        causes::TESTS,
        others::TESTS,
        gap::TESTS,
        features::TESTS,
        causes_reported::TESTS,
        causes_device::TESTS,
        #[cfg(target_pointer_width = "64")]
        causes_pinned::TESTS,
        causes_ignored::TESTS,
        causes_gap::TESTS,
        hull::TESTS,
        stamp_pages::TESTS,
        stalled::TESTS,
        stamp_absent::TESTS,
        stamp_errors::TESTS,
        races::TESTS,
        deferred::TESTS,
        limits::TESTS,
        locked::TESTS,
        hostile::TESTS,
        faults::TESTS,
        exhaustion::TESTS,
        clients::TESTS,
        #[cfg(target_pointer_width = "64")]
        caches::TESTS,
    ]
    .concat()
}

/// Opens a file for non-blocking reads.
fn open() -> Outcome<Device> {
    Device::open_nonblocking().or_skip("no /dev/ummunotify to open")
}

/// Opens the device with features, for non-blocking reads. Fails if one is not granted.
fn open_with(features: Features) -> Outcome<Device> {
    let device = Device::open_with(features).or_skip("no /dev/ummunotify to open")?;
    let granted = device.features();
    expect::that(
        "EXCHANGE_FEATURES",
        granted == features,
        format_args!("features {:#x} to be granted", features.bits()),
        format_args!("{:#x}", granted.bits()),
    )?;
    Ok(device)
}

/// The causes that an event names.
fn causes_of(event: &Event) -> Causes {
    Causes::from_bits(event.flags >> uapi::EVENT_CAUSES_SHIFT)
}

/// Opens a file for blocking reads.
fn open_blocking() -> Outcome<Device> {
    Device::open().or_skip("no /dev/ummunotify to open")
}

/// Runs part of a test in a child that is an ordinary user, with a limit on locked memory of
/// `locked` bytes.
///
/// Only children of this test have that user, so nobody else's memory counts.
fn as_ordinary_user(locked: u64, body: impl FnOnce(&Channel) -> Outcome) -> Outcome<Child> {
    /// Above all users that may exist.
    const FIRST: u32 = 100_000;
    open()?;
    let user = FIRST + std::process::id();
    Ok(Child::fork(|line| {
        process::set_limit(libc::RLIMIT_MEMLOCK, locked).or_skip("a limit on locked memory")?;
        process::become_user(user).or_skip("becoming an ordinary user")?;
        body(line)
    })?)
}

/// Reads from a non-blocking file; returns nothing if there is nothing.
fn read_if_any(device: &Device, most: usize) -> io::Result<Vec<Event>> {
    match device.read_events(most) {
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(vec![]),
        result => result,
    }
}

/// An open file with its counter, and memory to watch.
struct Bench {
    device: Device,
    counter: Counter,
    area: Guarded,
}

impl Bench {
    /// A non-blocking file, and small private pages that are populated.
    fn new(pages: u64) -> Outcome<Self> {
        Self::over(open()?, Guarded::new(pages)?)
    }

    /// The same with a blocking file.
    fn blocking(pages: u64) -> Outcome<Self> {
        Self::over(open_blocking()?, Guarded::new(pages)?)
    }

    /// With the given file and memory.
    fn over(device: Device, area: Guarded) -> Outcome<Self> {
        let counter = device.map_counter()?;
        Ok(Self {
            device,
            counter,
            area,
        })
    }

    /// One page, watched with cookie 1.
    fn one_page() -> Outcome<Self> {
        let bench = Self::new(1)?;
        bench.watch_pages()?;
        Ok(bench)
    }

    /// Watches each page of the area, with cookies 1, 2, …
    fn watch_pages(&self) -> Outcome {
        for page in 0..self.area.pages() {
            self.watch(page + 1, &self.area.page(page))?;
        }
        Ok(())
    }

    /// Watches a region.
    #[track_caller]
    fn watch(&self, cookie: u64, region: &Range<u64>) -> Outcome {
        expect::success(
            "REGISTER_REGION",
            self.device.register(region.start, region.end, cookie),
        )
    }

    /// Invalidates a page exactly once; it stays mapped.
    fn hit(&self, page: u64) -> io::Result<()> {
        mem::advise(&self.area.page(page), libc::MADV_DONTNEED)?;
        mem::write_byte(self.area.page(page).start, Guarded::content(page));
        Ok(())
    }

    /// Expects a value of the counter.
    #[track_caller]
    fn counts(&self, expected: u64) -> Outcome {
        expect::same("the counter", self.counter.get(), expected)
    }

    /// Expects one read with enough room to return exactly these records.
    #[track_caller]
    fn reads(&self, expected: &[Event]) -> Outcome {
        let seen = expect::success("read", self.device.read_events(expected.len() + 2))?;
        expect::events("read", &seen, expected)
    }

    /// Reads everything, from either kind of file; expects LAST to carry the counter.
    ///
    /// If one thread reads while another changes mappings, a change may count once more when it
    /// ends. So tests with several threads do not know what is left.
    #[track_caller]
    fn drain(&self) -> Outcome<Vec<Event>> {
        let mut seen = vec![];
        while self.device.poll(libc::POLLIN, Duration::ZERO)? != 0 {
            seen.extend(expect::success("read", self.device.read_events(64))?);
        }
        if let Some(event) = seen.last() {
            let wanted = [expect::last(self.counter.get())];
            expect::events("the last record", &[*event], &wanted)?;
        }
        Ok(seen)
    }

    /// Expects that there is nothing to read from a non-blocking file.
    #[track_caller]
    fn is_silent(&self) -> Outcome {
        expect::error(
            "read of an empty queue",
            self.device.read_events(1),
            libc::EAGAIN,
        )
    }
}
