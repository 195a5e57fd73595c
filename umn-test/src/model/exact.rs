// SPDX-License-Identifier: GPL-2.0

//! One thread, which checks after each operation that the device has reported exactly what it must.
//!
//! Three files watch the same memory, each with its own regions, and are read at different times.
//! One of them has all features. The kernel is kept from changing mappings by itself (see
//! [`super::quieten`]), so every report must be the result of an operation.

use std::{
    io,
    ops::Range,
    os::fd::AsRawFd, //
};

use ummunotify::{
    Causes,
    Features, //
};

use super::{
    calls,
    figures::{
        add,
        Figures, //
    },
    op::{
        Op,
        Sequence,
        What, //
    },
    oracle::{
        Asked,
        Oracle, //
    },
    world::{
        World,
        MARGIN, //
    },
};
use crate::{
    device::{
        Counter,
        Device, //
    },
    expect::{
        self,
        Failure,
        OrSkip,
        Outcome, //
    },
    mem::{
        self,
        PAGE, //
    },
    uapi::{
        Event,
        Register, //
    },
};

/// Number of files that watch.
const FILES: usize = 3;

/// The features of each.
const FEATURES: [Features; FILES] = [Features::NONE, Features::NONE, Features::ALL];

/// The most regions of a file, unless it is crowded, see [`Oracle::is_crowded`].
const MOST_REGIONS: usize = 24;

/// The most regions of a file in all.
const MOST_OF_ALL: usize = 600;

/// The largest read, in records.
const MOST_RECORDS: usize = MOST_OF_ALL + 2;

/// A page for the buffers of reads; the page after it cannot be accessed.
const BUFFER: u64 = 32 << 30;

/// An address where nothing is mapped.
const NOWHERE: u64 = 8;

/// An open file, and the oracle of what it must report.
struct Watcher {
    figures: &'static Figures,
    device: Device,
    counter: Counter,
    oracle: Oracle,
    next_cookie: u64,
    /// A cookie that was used before and is free again.
    free_cookie: Option<u64>,
}

impl Watcher {
    fn open(figures: &'static Figures, features: Features) -> Outcome<Self> {
        let device = Device::open_with(features).or_skip("no /dev/ummunotify to open")?;
        expect::same("granted features", device.features(), features)?;
        let counter = device.map_counter()?;
        expect::same("the counter of a new file", counter.get(), 0)?;
        Ok(Self {
            figures,
            oracle: Oracle::new(figures, features, 0),
            device,
            counter,
            next_cookie: 0,
            free_cookie: None,
        })
    }

    /// Unregisters all regions and reads everything, so that the next sequence starts afresh.
    fn reset(&mut self, figures: &'static Figures) -> Outcome {
        while let Some((cookie, _)) = self.oracle.pick(0) {
            self.device.unregister(cookie)?;
            self.oracle.unregister(cookie);
        }
        while self.device.read_events(MOST_RECORDS).is_ok() {}
        let features = self.device.features();
        self.oracle = Oracle::new(figures, features, self.counter.get());
        self.next_cookie = 0;
        self.free_cookie = None;
        Ok(())
    }

    /// A cookie for a new region: often one that was used before.
    fn cookie(&mut self, with: u8) -> u64 {
        match self.free_cookie.take() {
            Some(cookie) if with & 4 != 0 => cookie,
            _ => {
                self.next_cookie += 1;
                // The smallest and the largest cookie are not special.
                [0, u64::MAX]
                    .get(self.next_cookie as usize - 1)
                    .copied()
                    .unwrap_or(self.next_cookie)
            }
        }
    }

    fn register(&mut self, op: Op, world: &World) -> Outcome {
        let Range { start, end } = world.range(op);
        let arena = world.arena();
        let with = op.with >> 1;
        let odd = u64::from(with) * 37 % PAGE;
        if self.oracle.len() >= MOST_REGIONS && !self.oracle.is_crowded() {
            return Ok(());
        }
        let other = self.oracle.pick(with.into());
        let (start, end) = match with {
            0..48 => (start, end),
            48..68 => (start + odd, end - odd / 2),
            68..74 => (start + odd, start + odd + 1),
            74..80 => (start + odd, start + odd),
            80..88 => other.map_or((start, end), |(_, region)| (region.start, region.end)),
            88..96 => other.map_or((start, end), |(_, region)| {
                (
                    region.start.saturating_sub(odd),
                    region.end.saturating_sub(odd / 2),
                )
            }),
            96..102 => (start - MARGIN / 2, end + MARGIN / 2),
            102..108 => (start - PAGE, end),
            108 => (0, u64::MAX),
            109 => (arena.start, u64::MAX),
            110 => (0, start),
            111 => (u64::MAX, u64::MAX),
            112..116 => return self.register_wrongly(with, start, end),
            _ => (start + odd, end),
        };
        if end < start {
            return self.register_wrongly(113, end, start);
        }
        let cookie = self.cookie(with);
        let has_features = self.device.features() != Features::NONE;
        let ignored = match has_features {
            true => u32::from(with) & Causes::SAME_PAGES.bits(),
            false => 0,
        };
        let region = Register {
            start,
            end,
            user_cookie: cookie,
            // Without features, the driver ignores both fields.
            flags: match has_features {
                true => ignored,
                false => u32::from(with) * 0x0101_0101,
            },
            reserved: if has_features { 0 } else { op.with.into() },
        };
        expect::success("REGISTER_REGION", self.device.register_with(region))?;
        let ignored = Causes::from_bits(ignored);
        self.oracle
            .register(cookie, start..end, ignored, &known(arena));
        Ok(())
    }

    /// Registers more regions in a range than a change visits at once.
    fn register_many(&mut self, op: Op, world: &World) -> Outcome {
        let Range { start, end } = world.range(op);
        let unit = (end - start) / u64::from(op.len).min((end - start) / PAGE);
        let count = 130 + u64::from(op.with >> 3) * 4;
        for number in 0..count {
            if self.oracle.len() == MOST_OF_ALL {
                break;
            }
            let page = start + number * unit % (end - start);
            let region = match op.with & 7 {
                0 | 1 => start..end,
                2 | 3 => start + number..end,
                4 | 5 => start + number..end - number,
                // A few pages, or single bytes.
                6 => page..page + PAGE,
                _ => page + number..page + number + 1,
            };
            let cookie = self.cookie(0);
            let ignored = match number % 3 {
                0 => Causes::SAME_PAGES,
                _ => Causes::NONE,
            };
            // Without features, a region cannot ignore causes.
            self.device
                .watch_ignoring(region.clone(), cookie, ignored)?;
            let known = known(world.arena());
            let ignored = match self.device.features() {
                Features::NONE => Causes::NONE,
                _ => ignored,
            };
            self.oracle.register(cookie, region, ignored, &known);
        }
        Ok(())
    }

    /// Unregisters many regions, chosen all over the list.
    fn unregister_many(&mut self, op: Op) -> Outcome {
        for number in 0..usize::from(op.with) {
            let Some((cookie, _)) = self.oracle.pick(number * 7 + usize::from(op.at)) else {
                break;
            };
            expect::success("UNREGISTER_REGION", self.device.unregister(cookie))?;
            self.oracle.unregister(cookie);
        }
        Ok(())
    }

    /// How often deferred changes were merged. Only a crowded file defers changes.
    fn merged(&self) -> Outcome<u64> {
        if !self.oracle.is_crowded() {
            return Ok(0);
        }
        let path = format!("/proc/self/fdinfo/{}", self.device.as_raw_fd());
        let text = std::fs::read_to_string(path)?;
        let number = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|number| number.trim().parse().ok())
                .unwrap_or(0)
        };
        add(&self.figures.deferred, number("deferred:"));
        Ok(number("merged:"))
    }

    fn register_wrongly(&mut self, with: u8, start: u64, end: u64) -> Outcome {
        match with {
            112 => {
                let result = self
                    .device
                    .ioctl_raw(crate::uapi::REGISTER_REGION, NOWHERE as *mut _);
                expect::error("REGISTER_REGION, bad pointer", result, libc::EFAULT)
            }
            113 => {
                let result = self.device.register(end, start, 0x999);
                expect::error("REGISTER_REGION, end before start", result, libc::EINVAL)
            }
            _ => match self.oracle.pick(start as usize / PAGE as usize) {
                Some((cookie, _)) => {
                    let result = self.device.register(start, end, cookie);
                    expect::error("REGISTER_REGION, cookie taken", result, libc::EINVAL)
                }
                None => Ok(()),
            },
        }
    }

    fn unregister(&mut self, op: Op) -> Outcome {
        if op.with >= 248 {
            let result = self
                .device
                .ioctl_raw(crate::uapi::UNREGISTER_REGION, NOWHERE as *mut _);
            return expect::error("UNREGISTER_REGION, bad pointer", result, libc::EFAULT);
        }
        match self.oracle.pick(usize::from(op.with >> 1)) {
            Some((cookie, _)) if op.with < 232 => {
                expect::success("UNREGISTER_REGION", self.device.unregister(cookie))?;
                self.oracle.unregister(cookie);
                self.free_cookie = Some(cookie);
                Ok(())
            }
            _ => {
                let result = self.device.unregister(0xbad);
                expect::error("UNREGISTER_REGION, unknown cookie", result, libc::EINVAL)
            }
        }
    }

    /// Reads in one of many ways; expects the result that is due.
    fn read(&mut self, op: Op) -> Outcome {
        let mut records = [Event::default(); MOST_RECORDS];
        let memory = records.as_mut_ptr() as u64;
        let all = size_of_val(&records);
        let end = BUFFER + PAGE;
        let short = usize::from(op.at) % 31 + 1;
        // The buffers, how many of their bytes can be written, and where those begin.
        let buffers: &[(u64, usize)] = match op.with >> 1 {
            0..4 => &[(memory, 0)],
            4..8 => &[(memory, short)],
            8..14 => &[(memory, 33)],
            14..20 => &[(memory, 48)],
            20..36 => &[(memory, 32)],
            36..48 => &[(memory, 64 + short)],
            48..54 => &[(NOWHERE, 64)],
            54..58 => &[(end - 48, 64)],
            58..62 => &[(end - 64, 96)],
            62..66 => &[(end - 31, 32)],
            66..72 => &[(end - 256, 256)],
            72..78 => &[
                (memory, 7),
                (memory + 7, 25),
                (memory + 32, 3),
                (memory + 35, all - 35),
            ],
            78..82 => &[(memory, 32), (NOWHERE, 64)],
            82..86 => &[(memory, 40), (NOWHERE, 64)],
            86..88 => &[(memory, 5), (memory, 0), (memory + 5, 6)],
            88..96 => &[(memory, 48 * 32)],
            _ => &[(memory, all)],
        };
        let room = buffers.iter().map(|(_, length)| length).sum();
        let mut writable = 0;
        for (at, length) in buffers {
            let beyond = (at + *length as u64).saturating_sub(end) as usize;
            let valid = match *at {
                NOWHERE => 0,
                at if at < end => length - beyond,
                _ => *length,
            };
            writable += valid;
            if valid < *length {
                break;
            }
        }
        let result = match buffers {
            [(at, length)] => self.device.read_raw(*at as *mut _, *length),
            several => calls::readv(&self.device, several),
        };
        // The writable buffers are contiguous, so the records begin at the first one.
        let at = buffers[0].0 as *const Event;
        let result = result.and_then(|bytes| {
            if bytes % size_of::<Event>() != 0 {
                return Err(io::Error::other("not whole records"));
            }
            let record = |index| {
                // SAFETY: The kernel has written that many bytes there.
                unsafe { at.add(index).read_unaligned() }
            };
            Ok((0..bytes / size_of::<Event>()).map(record).collect())
        });
        let counter = self.counter.get();
        self.oracle.read(Asked { room, writable }, &result, counter)
    }

    fn poll(&self) -> Outcome {
        let events = libc::POLLIN | libc::POLLRDNORM;
        let seen = self.device.poll(events, std::time::Duration::ZERO)?;
        self.oracle.poll(seen)
    }
}

/// The arena and its margins, in which only the model changes mappings.
fn known(arena: &Range<u64>) -> Range<u64> {
    arena.start - MARGIN..arena.end + MARGIN
}

/// The state that sequences run in.
pub struct Session {
    figures: &'static Figures,
    world: World,
    watchers: Vec<Watcher>,
}

impl Session {
    /// Creates the memory and opens the files. The process must have only one thread.
    pub fn new(figures: &'static Figures) -> Outcome<Self> {
        let world = World::new()?;
        let (access, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        mem::map(Some(BUFFER), PAGE, access, flags, None)?;
        let watchers = FEATURES
            .into_iter()
            .map(|features| Watcher::open(figures, features))
            .collect::<Outcome<_>>()?;
        Ok(Self {
            figures,
            world,
            watchers,
        })
    }

    /// Ends the processes, and checks that they succeeded.
    pub fn end(self) -> Outcome {
        drop(self.watchers);
        self.world.end()
    }

    /// Runs a sequence from its start, and reads everything at the end.
    pub fn run(&mut self, sequence: &Sequence) -> Outcome {
        self.world.reset(sequence.huge)?;
        for watcher in &mut self.watchers {
            watcher.reset(self.figures)?;
        }
        for (index, op) in sequence.ops.iter().enumerate() {
            self.step(*op)
                .map_err(|failure| after(failure, index + 1, op))?;
        }
        let rest = Op {
            what: What::Read,
            at: 0,
            len: 1,
            with: 255,
        };
        for watcher in &mut self.watchers {
            loop {
                let more = watcher.oracle.is_readable();
                watcher
                    .read(rest)
                    .map_err(|failure| after(failure, sequence.ops.len() + 1, &rest))?;
                if !more {
                    break;
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, op: Op) -> Outcome {
        self.figures.count(op.what);
        let watcher = &mut self.watchers[usize::from(op.with) % FILES];
        let effect = match op.what {
            What::Register => watcher.register(op, &self.world).map(|()| None)?,
            What::Unregister => watcher.unregister(op).map(|()| None)?,
            What::RegisterMany => watcher.register_many(op, &self.world).map(|()| None)?,
            What::UnregisterMany => watcher.unregister_many(op).map(|()| None)?,
            What::Read => watcher.read(op).map(|()| None)?,
            What::Poll => watcher.poll().map(|()| None)?,
            What::Reopen => {
                *watcher = Watcher::open(self.figures, watcher.device.features())?;
                None
            }
            _ => Some(self.world.perform(op)?),
        };
        let stood = |watcher: &Watcher| watcher.counter.get() == watcher.oracle.counter();
        if effect.is_none() && self.watchers.iter().all(stood) {
            return Ok(());
        }
        // If something was invalidated although no operation should have done so, accept that.
        let mut effect = effect.unwrap_or_default();
        effect.lost = self.world.look()?;
        for watcher in &mut self.watchers {
            let merged = watcher.merged()?;
            let counter = watcher.counter.get();
            watcher.oracle.apply(op.what, &effect, counter, merged)?;
        }
        Ok(())
    }
}

fn after(failure: Failure, number: usize, op: &Op) -> Failure {
    match failure {
        Failure::Failed(why) => Failure::Failed(format!("operation {number}, {op}: {why}")),
        skipped => skipped,
    }
}
