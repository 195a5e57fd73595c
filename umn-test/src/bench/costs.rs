// SPDX-License-Identifier: GPL-2.0

//! The cost of each call of the device, and what the device adds to calls that change mappings.

use std::{
    hint::black_box,
    ops::Range,
    os::fd::AsRawFd, //
};

use super::{
    count::{
        self,
        Stopwatch,
        ROUNDS, //
    },
    figures::{
        Figures,
        Operation,
        Peer,
        REGIONS, //
    },
};
use crate::{
    command,
    device::{
        Counter,
        Device, //
    },
    expect::{
        self,
        Outcome, //
    },
    mem::{
        self,
        PAGE, //
    },
    system::Cgroup,
    uapi::{
        self,
        Event,
        Register, //
    },
};

/// Where the regions are. Nothing else is mapped there.
const ARENA: u64 = 1 << 40;

/// Distance from one region to the next: every other page is a region.
pub const DISTANCE: u64 = 2 * PAGE;

/// Where the regions that are hit together are.
const TOGETHER: u64 = 2 << 40;

/// The number of these regions.
const MANY: u64 = 128;

/// How often the counter is checked.
const LOOKS: u64 = 1000;

/// The region with this index, which is one page.
pub fn page(index: u64) -> Range<u64> {
    page_of(ARENA, index)
}

fn page_of(start: u64, index: u64) -> Range<u64> {
    let start = start + index * DISTANCE;
    start..start + PAGE
}

/// The page after a region, which is not watched.
fn gap(index: u64) -> Range<u64> {
    let region = page(index);
    region.end..region.end + PAGE
}

/// A page below all regions.
fn outside() -> Range<u64> {
    ARENA - DISTANCE..ARENA - PAGE
}

/// The first `count` of the regions that are hit together.
fn together(count: u64) -> Range<u64> {
    TOGETHER..page_of(TOGETHER, count - 1).end
}

/// Maps a page and populates it.
pub fn populate(page: &Range<u64>) -> Outcome {
    mem::map_over(page)?;
    mem::write_byte(page.start, 1);
    Ok(())
}

/// `munmap`.
#[inline(always)]
pub fn munmap(range: &Range<u64>) -> i64 {
    count::call(libc::SYS_munmap, [range.start, range.end - range.start, 0])
}

/// `madvise(MADV_DONTNEED)`.
#[inline(always)]
pub fn dontneed(range: &Range<u64>) -> i64 {
    let advice = libc::MADV_DONTNEED as u64;
    count::call(
        libc::SYS_madvise,
        [range.start, range.end - range.start, advice],
    )
}

/// The calls that change mappings, and their median costs.
pub struct Calls;

impl Calls {
    /// `munmap` of pages that `choose` returns.
    pub fn munmap(
        mut choose: impl FnMut() -> u64,
        mut after: impl FnMut() -> Outcome,
    ) -> Outcome<f64> {
        let mut stopwatch = Stopwatch::new();
        for _ in 0..ROUNDS {
            let index = choose();
            // Another page near it stays mapped, so that the page tables stay.
            let other = gap(index ^ 8);
            populate(&other)?;
            populate(&page(index))?;
            stopwatch.time(|| munmap(&page(index)));
            mem::unmap(&other)?;
            after()?;
        }
        Ok(stopwatch.median() as f64)
    }

    /// `madvise` of unwatched pages that `choose` returns.
    fn dontneed(mut choose: impl FnMut() -> Range<u64>) -> Outcome<f64> {
        let mut stopwatch = Stopwatch::new();
        for _ in 0..ROUNDS {
            let page = choose();
            populate(&page)?;
            stopwatch.time(|| dontneed(&page));
            mem::unmap(&page)?;
        }
        Ok(stopwatch.median() as f64)
    }

    /// `madvise` of the pages of `count` regions that are hit together.
    fn together(count: u64, mut after: impl FnMut() -> Outcome) -> Outcome<f64> {
        let range = together(count);
        mem::map_over(&range)?;
        let mut stopwatch = Stopwatch::new();
        for _ in 0..ROUNDS {
            after()?;
            stopwatch.time(|| dontneed(&range));
        }
        mem::unmap(&range)?;
        after()?;
        Ok(stopwatch.median() as f64)
    }
}

/// The costs of the calls without the device.
struct Bare {
    munmap: f64,
    dontneed: f64,
    one: f64,
    many: f64,
}

impl Bare {
    fn measure() -> Outcome<Self> {
        // In place of the counter: finding a mapping takes longer if there are more.
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let stand_in = mem::map(None, PAGE, libc::PROT_READ, flags, None)?;
        let measure = || {
            Outcome::Ok(Self {
                munmap: Calls::munmap(|| 0, || Ok(()))?,
                dontneed: Calls::dontneed(outside)?,
                one: Calls::together(1, || Ok(()))?,
                many: Calls::together(MANY, || Ok(()))?,
            })
        };
        // How mappings are stored also depends on earlier ones.
        measure()?;
        let bare = measure()?;
        mem::unmap(&(stand_in..stand_in + PAGE))?;
        Ok(bare)
    }
}

/// Measures everything.
pub fn measure() -> Outcome<Figures> {
    count::require()?;
    let order = (0..REGIONS[REGIONS.len() - 1]).collect();
    let mut bench = Bench {
        figures: Figures::default(),
        random: fastrand::Rng::with_seed(1),
        bare: Bare::measure()?,
    };
    bench.scale();
    bench.random_order(order)?;
    bench.ascending_order()?;
    bench.after_zero()?;
    bench.charged()?;
    Ok(bench.figures)
}

struct Bench {
    figures: Figures,
    random: fastrand::Rng,
    bare: Bare,
}

impl Bench {
    fn add(&mut self, operation: Operation, regions: u64, value: f64) {
        self.figures
            .add(operation, Peer::Ummunotify, regions, value);
    }

    /// Measures the bare calls.
    fn scale(&mut self) {
        let mut bare = |operation, value| self.figures.add(operation, Peer::Bare, 1, value);
        let mut getppid = Stopwatch::new();
        for _ in 0..ROUNDS {
            getppid.time(|| count::call(libc::SYS_getppid, [0; 3]));
        }
        bare(Operation::Getppid, getppid.median() as f64);
        bare(Operation::Hit, self.bare.munmap);
        bare(Operation::MissOutside, self.bare.dontneed);
    }

    /// Measures with regions that are registered in random order, for each number in [`REGIONS`].
    fn random_order(&mut self, mut order: Vec<u64>) -> Outcome {
        let watch = Watch::open()?;
        let mut have = 0;
        for regions in REGIONS {
            let more = &mut order[have as usize..regions as usize];
            self.random.shuffle(more);
            for index in more.iter() {
                watch.register(page(*index), *index)?;
            }
            have = regions;
            self.with(&watch, regions)?;
        }
        Ok(())
    }

    /// Measures each call with this number of regions.
    fn with(&mut self, watch: &Watch, regions: u64) -> Outcome {
        let (mut random, mut others) = (self.random.fork(), self.random.fork());
        let mut any = || random.u64(..regions);

        self.registering(
            watch,
            [Operation::Register, Operation::Unregister],
            regions,
            || (gap(any()), (1 << 63) | any()),
            || others.u64(..regions),
        )?;

        let hit = Calls::munmap(&mut any, || watch.drain())? - self.bare.munmap;
        self.add(Operation::Hit, regions, hit);
        let outside = Calls::dontneed(outside)? - self.bare.dontneed;
        self.add(Operation::MissOutside, regions, outside);
        if regions > 1 {
            let between = Calls::dontneed(|| gap(random.u64(..regions - 1)))? - self.bare.dontneed;
            self.add(Operation::MissBetween, regions, between);
        }

        // Register the regions that are hit together only now.
        for index in 0..MANY {
            watch.register(page_of(TOGETHER, index), (1 << 62) | index)?;
        }
        let one = Calls::together(1, || watch.drain())? - self.bare.one;
        let many = Calls::together(MANY, || watch.drain())? - self.bare.many;
        self.add(
            Operation::Further,
            regions,
            (many - one) / (MANY - 1) as f64,
        );

        let mut events = vec![Event::default(); 2 * MANY as usize];
        mem::map_over(&together(MANY))?;
        for (operation, count) in [(Operation::ReadOne, 1), (Operation::ReadMany, MANY)] {
            let mut stopwatch = Stopwatch::new();
            for _ in 0..ROUNDS {
                dontneed(&together(count));
                let bytes = stopwatch.time(|| watch.read(&mut events[..count as usize]));
                expect::same("bytes read", bytes, 32 * count as i64)?;
                watch.drain()?;
            }
            self.add(operation, regions, stopwatch.median() as f64 / count as f64);
        }
        mem::unmap(&together(MANY))?;
        watch.drain()?;
        for index in 0..MANY {
            watch.device.unregister((1 << 62) | index)?;
        }

        let mut stopwatch = Stopwatch::new();
        for _ in 0..ROUNDS {
            stopwatch.time(|| watch.read(&mut events));
        }
        self.add(Operation::ReadNone, regions, stopwatch.median() as f64);
        if regions == 1 {
            let mut stopwatch = Stopwatch::new();
            for _ in 0..ROUNDS {
                stopwatch.time(|| watch.ioctl(0, &()));
            }
            self.figures.add(
                Operation::Ioctl,
                Peer::Ummunotify,
                1,
                stopwatch.median() as f64,
            );
        }
        self.add(Operation::Check, regions, look(&watch.counter));
        Ok(())
    }

    /// Measures with regions that are registered in ascending order.
    fn ascending_order(&mut self) -> Outcome {
        let watch = Watch::open()?;
        let mut have = 0;
        for regions in REGIONS {
            for index in have..regions {
                watch.register(page(index), index)?;
            }
            have = regions;
            let mut random = self.random.fork();
            self.registering(
                &watch,
                [Operation::RegisterAscending, Operation::UnregisterAscending],
                regions,
                || (page(regions), regions),
                || random.u64(..regions),
            )?;
        }
        Ok(())
    }

    /// Measures misses after a change whose end the kernel does not report.
    fn after_zero(&mut self) -> Outcome {
        let watch = Watch::open()?;
        watch.register(page(0), 0)?;
        let low = 0..2 * PAGE;
        mem::map_over(&low)?;
        mem::advise(&low, libc::MADV_POPULATE_WRITE)?;
        for _ in 0..100 {
            mem::protect(&low, libc::PROT_READ)?;
            mem::protect(&low, libc::PROT_READ | libc::PROT_WRITE)?;
        }
        // A region that is registered while that change seems to be in progress.
        watch.register(page(1), 1)?;
        let outside = Calls::dontneed(outside)? - self.bare.dontneed;
        self.add(Operation::MissAfterZero, 1, outside);
        Ok(mem::unmap(&low)?)
    }

    /// Measures regions of a process in a memory cgroup. The root cgroup, where everything else is
    /// measured, counts nothing.
    fn charged(&mut self) -> Outcome {
        let cgroup = Cgroup::new("bench")?;
        cgroup.enter()?;
        let watch = Watch::open()?;
        watch.register(page(0), 0)?;
        self.registering(
            &watch,
            [Operation::RegisterCharged, Operation::UnregisterCharged],
            1,
            || (gap(0), 1),
            || 0,
        )
    }

    /// Measures REGISTER of a region and UNREGISTER of its cookie.
    fn registering(
        &mut self,
        watch: &Watch,
        [register, unregister]: [Operation; 2],
        regions: u64,
        mut new: impl FnMut() -> (Range<u64>, u64),
        mut old: impl FnMut() -> u64,
    ) -> Outcome {
        let (mut registering, mut unregistering) = (Stopwatch::new(), Stopwatch::new());
        for _ in 0..ROUNDS {
            let (region, cookie) = new();
            let argument = Watch::argument(region, cookie);
            registering.time(|| watch.ioctl(uapi::REGISTER_REGION, &argument));
            watch.device.unregister(cookie)?;
        }
        for _ in 0..ROUNDS {
            let index = old();
            unregistering.time(|| watch.ioctl(uapi::UNREGISTER_REGION, &index));
            watch.register(page(index), index)?;
        }
        self.add(register, regions, registering.median() as f64);
        self.add(unregister, regions, unregistering.median() as f64);
        Ok(())
    }
}

/// An open file with its counter.
pub struct Watch {
    /// The file.
    pub device: Device,
    counter: Counter,
}

impl Watch {
    /// Opens a file and maps its counter.
    pub fn open() -> Outcome<Self> {
        let device = command::open_device()?;
        let counter = device.map_counter()?;
        Ok(Self { device, counter })
    }

    /// The argument of REGISTER.
    pub fn argument(region: Range<u64>, cookie: u64) -> Register {
        Register {
            start: region.start,
            end: region.end,
            user_cookie: cookie,
            ..Register::default()
        }
    }

    /// Registers a region.
    pub fn register(&self, region: Range<u64>, cookie: u64) -> Outcome {
        Ok(self.device.register(region.start, region.end, cookie)?)
    }

    /// Issues an ioctl with a valid argument.
    #[inline(always)]
    pub fn ioctl<T>(&self, command: u32, argument: &T) -> i64 {
        let argument = (&raw const *argument) as u64;
        count::call(
            libc::SYS_ioctl,
            [self.device.as_raw_fd() as u64, command.into(), argument],
        )
    }

    /// Reads; returns the number of bytes, or a negative error.
    #[inline(always)]
    pub fn read(&self, events: &mut [Event]) -> i64 {
        let (buffer, bytes) = (events.as_mut_ptr() as u64, size_of_val(events) as u64);
        count::call(
            libc::SYS_read,
            [self.device.as_raw_fd() as u64, buffer, bytes],
        )
    }

    /// Reads everything.
    fn drain(&self) -> Outcome {
        let mut events = [Event::default(); 2 * MANY as usize];
        while self.read(&mut events) > 0 {}
        Ok(())
    }
}

/// Loads the counter repeatedly; returns the cost of one load.
fn look(counter: &Counter) -> f64 {
    let seen = counter.get();
    let (mut with, mut without) = (Stopwatch::new(), Stopwatch::new());
    for _ in 0..ROUNDS {
        with.time(|| {
            for index in 0..LOOKS {
                black_box(index);
                if counter.get() != seen {
                    return false;
                }
            }
            true
        });
        without.time(|| {
            for index in 0..LOOKS {
                black_box(index);
            }
        });
    }
    (with.median() - without.median()) as f64 / LOOKS as f64
}
