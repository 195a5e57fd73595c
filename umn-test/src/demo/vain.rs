// SPDX-License-Identifier: GPL-2.0

//! Registrations that are lost needlessly: a change was reported, but the pinned pages are still
//! mapped. Compares a cache for version 2 with one that uses the features.

use std::{
    fmt, fs,
    io::{
        self,
        Read, //
    },
    ops::Range,
    os::unix::net::UnixStream,
    slice, thread,
    time::{
        Duration,
        Instant, //
    },
};

use ummunotify::{
    cache::RegistrationCache,
    Features,
    Options,
    Watcher, //
};

use super::{
    adapter::Adapter,
    region, //
};
use crate::{
    command::failed,
    expect::{
        Failure,
        OrSkip,
        Outcome, //
    },
    mem::{
        self,
        Guarded,
        PAGE, //
    },
    model::calls,
    process::{
        self,
        Child, //
    },
    system::Setting,
};

/// Results of look-ups of registrations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// The number of look-ups after an operation.
    pub looked_up: u64,
    /// How often the registration was gone although the pages were the same.
    pub in_vain: u64,
    /// Messages that arrived with bytes other than those written.
    pub stale: u64,
}

impl Lost {
    /// Adds another.
    pub fn add(&mut self, other: Self) {
        self.looked_up += other.looked_up;
        self.in_vain += other.in_vain;
        self.stale += other.stale;
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{} of {}", self.in_vain, self.looked_up))
    }
}

/// A row of the table: an operation.
pub struct Case {
    /// Its name in the table.
    pub name: &'static str,
    run: fn(Features) -> Outcome<Lost>,
}

/// All rows.
pub const CASES: [Case; 7] = [
    Case {
        name: "a fork at each step",
        run: |features| each_step(features, 50, private, |_, _| fork()),
    },
    Case {
        name: "NUMA balancing, for 5 seconds",
        run: balanced,
    },
    Case {
        name: "mprotect, as a collector's barrier",
        run: |features| each_step(features, 50, private, |_, memory| barrier(memory)),
    },
    Case {
        name: "KSM tries to merge pinned pages",
        run: merged,
    },
    Case {
        name: "attempts to migrate pinned pages",
        run: migrated,
    },
    Case {
        name: "MADV_DONTFORK in the same huge page",
        run: |features| each_step(features, 50, in_a_huge_page, not_forked),
    },
    Case {
        name: "a hole in a part of a large region",
        run: region::punched,
    },
];

impl Case {
    /// Runs it in a separate process; returns `None` if this machine lacks something that it needs.
    pub fn run(&self, features: Features) -> Outcome<Option<Lost>> {
        let child = Child::fork(|line| {
            let lost = (self.run)(features)?;
            for number in [lost.looked_up, lost.in_vain, lost.stale] {
                line.tell_number(number)?;
            }
            Ok(())
        })?;
        let numbers = || -> Outcome<Lost> {
            Ok(Lost {
                looked_up: child.hear_number()?,
                in_vain: child.hear_number()?,
                stale: child.hear_number()?,
            })
        };
        match numbers() {
            Err(Failure::Skipped(_)) => Ok(None),
            result => result.map(Some),
        }
    }
}

/// The number of registered buffers, and of pages in each.
const PIECES: u64 = 8;
const PAGES: u64 = 4;

/// Private memory with some pages for each buffer.
fn private() -> io::Result<Vec<Range<u64>>> {
    let area = Guarded::new(PIECES * PAGES)?;
    Ok((0..PIECES)
        .map(|piece| area.span(piece * PAGES..(piece + 1) * PAGES))
        .collect())
}

/// Memory in one block that may be a huge page.
fn in_a_huge_page() -> io::Result<Vec<Range<u64>>> {
    let area = Guarded::huge(1)?;
    area.fill();
    Ok((0..PIECES)
        .map(|piece| area.span(piece * PAGES..(piece + 1) * PAGES))
        .collect())
}

/// The page frames of a range; all 0 without privilege.
pub fn frames(memory: &Range<u64>) -> io::Result<Vec<u64>> {
    let states = mem::page_states(memory)?;
    Ok(states.iter().map(|page| page.frame()).collect())
}

/// A cache with these features and room for all buffers.
fn cache(features: Features) -> Outcome<RegistrationCache<Adapter>> {
    let adapter = Adapter::open(PIECES as u16 + 2).or_skip("io_uring with sparse buffer tables")?;
    let device = Options::new().features(features).open();
    let device = device.or_skip("no /dev/ummunotify to open")?;
    let watcher = Watcher::new(device).map_err(failed("mapping the counter"))?;
    Ok(RegistrationCache::new(
        adapter,
        PIECES as usize,
        Some(watcher),
    ))
}

/// Writes a message to memory, sends it with a key, and checks what arrives.
pub fn is_stale(
    adapter: &mut Adapter,
    key: u16,
    memory: &Range<u64>,
    (from, to): (&UnixStream, &mut UnixStream),
) -> io::Result<bool> {
    adapter.send(key, memory, from)?;
    let mut arrived = vec![0; (memory.end - memory.start) as usize];
    to.read_exact(&mut arrived)?;
    // SAFETY: The memory is mapped and readable, and nobody writes to it now.
    let mapped = unsafe { slice::from_raw_parts(memory.start as *const u8, arrived.len()) };
    Ok(mapped != arrived)
}

/// In each step, calls a function that affects all buffers, and then sends from each.
fn each_step(
    features: Features,
    steps: u64,
    map: impl Fn() -> io::Result<Vec<Range<u64>>>,
    mut act: impl FnMut(u64, &[Range<u64>]) -> Outcome,
) -> Outcome<Lost> {
    let memory = map()?;
    let mut cache = cache(features)?;
    let (sender, mut receiver) = UnixStream::pair()?;
    let mut pinned = vec![vec![]; memory.len()];
    let mut lost = Lost::default();
    for step in 0..=steps {
        if step > 0 {
            act(step, &memory)?;
        }
        for (memory, pinned) in memory.iter().zip(&mut pinned) {
            let is_same = *pinned == frames(memory)?;
            for page in memory.clone().step_by(PAGE as usize) {
                mem::write_byte(page, step as u8);
            }
            let hits = cache.counts().hits;
            let key = cache.get(memory)?;
            if step > 0 {
                lost.looked_up += 1;
                lost.in_vain += u64::from(is_same && cache.counts().hits == hits);
            }
            *pinned = frames(memory)?;
            let line = (&sender, &mut receiver);
            lost.stale += u64::from(is_stale(cache.adapter(), key, memory, line)?);
        }
    }
    Ok(lost)
}

fn fork() -> Outcome {
    Child::fork(|_| Ok(()))?.join()
}

fn barrier(memory: &[Range<u64>]) -> Outcome {
    for memory in memory {
        mem::protect(memory, libc::PROT_READ)?;
    }
    for memory in memory {
        mem::protect(memory, libc::PROT_READ | libc::PROT_WRITE)?;
    }
    Ok(())
}

/// Excludes another part of the huge page from `fork` and includes it again, as a library does when
/// it pins something there.
fn not_forked(_: u64, memory: &[Range<u64>]) -> Outcome {
    let after = memory.last().map_or(0, |memory| memory.end);
    let other = after + PAGE..after + 3 * PAGE;
    mem::advise(&other, libc::MADV_DONTFORK)?;
    Ok(mem::advise(&other, libc::MADV_DOFORK)?)
}

fn balanced(features: Features) -> Outcome<Lost> {
    const STEP: Duration = Duration::from_millis(100);
    process::balance_numa(true).or_skip("NUMA policy")?;
    let _setting =
        Setting::change("/proc/sys/kernel/numa_balancing", "1").or_skip("NUMA balancing")?;
    if !fs::exists("/sys/devices/system/node/node1")? {
        return Err(Failure::Skipped("only one node".into()));
    }
    // With a single thread, the kernel does not mark pages on the node where it runs.
    thread::spawn(thread::park);
    each_step(features, 50, private, |_, _| {
        let end = Instant::now() + STEP;
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        Ok(())
    })
}

fn merged(features: Features) -> Outcome<Lost> {
    let _settings = Setting::run_ksm().or_skip("KSM")?;
    each_step(features, 20, private, |step, memory| {
        // All pages have the same contents until the next message.
        for memory in memory {
            if step == 1 {
                mem::advise(memory, libc::MADV_MERGEABLE).or_skip("MADV_MERGEABLE")?;
            }
            for page in memory.clone().step_by(PAGE as usize) {
                mem::write_byte(page, 1);
            }
        }
        thread::sleep(Duration::from_millis(50));
        Ok(())
    })
}

fn migrated(features: Features) -> Outcome<Lost> {
    if !fs::exists("/sys/devices/system/node/node1")? {
        return Err(Failure::Skipped("only one node".into()));
    }
    each_step(features, 50, private, |step, memory| {
        for memory in memory {
            let pages: Vec<u64> = memory.clone().step_by(PAGE as usize).collect();
            let _ = calls::move_pages(0, &pages, (step % 2) as i32);
        }
        Ok(())
    })
}
