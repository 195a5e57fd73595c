// SPDX-License-Identifier: GPL-2.0

//! The caches of pinned memory in `clients/`, the one in Rust and the one in C: both behave alike.

use std::{
    collections::HashMap,
    ffi::{
        c_int,
        c_void, //
    },
    io::{
        self,
        Read, //
    },
    ops::Range,
    os::unix::net::UnixStream,
    ptr::NonNull,
    slice, //
};

use ummunotify::{
    cache::{
        Pin,
        RegistrationCache, //
    },
    Features,
    Options,
    Watcher, //
};

use super::prelude::*;
use crate::demo::adapter::Adapter;

table! {
    caches_agree: "the caches in Rust and in C have the same hits and misses, and no hit is stale",
    caches_end_where_pinning_changes_mappings: "memory whose pinning changes mappings is cached",
    caches_give_up: "memory that changes whenever it is pinned is used once and not cached",
    caches_at_the_limit: "memory that cannot be watched is used once and not cached; the rest is cached",
    caches_in_a_child: "both caches fail in a forked child",
}

/// A cache, in either language.
trait Cache {
    /// Returns the key for `memory`, and whether it was in the cache.
    fn get(&mut self, memory: &Range<u64>) -> io::Result<(u64, bool)>;
}

impl<P: Pin<Key: Into<u64>>> Cache for RegistrationCache<P> {
    fn get(&mut self, memory: &Range<u64>) -> io::Result<(u64, bool)> {
        let hits = self.counts().hits;
        let key = RegistrationCache::get(self, memory)?;
        Ok((key.into(), self.counts().hits > hits))
    }
}

/// The cache in `clients/c/example.c`.
struct InC<P> {
    example: NonNull<c_void>,
    adapter: NonNull<P>,
}

extern "C" {
    fn example_open(
        capacity: usize,
        features: u32,
        pin: extern "C" fn(*mut c_void, *mut c_void, usize, *mut u64) -> c_int,
        unpin: extern "C" fn(*mut c_void, u64),
        adapter: *mut c_void,
    ) -> *mut c_void;
    fn example_get(example: *mut c_void, start: *mut c_void, length: usize, pin: *mut u64)
        -> c_int;
    fn example_close(example: *mut c_void);
}

impl<P: Pin<Key: Into<u64> + TryFrom<u64>>> InC<P> {
    fn open(adapter: P, capacity: usize, features: Features) -> Outcome<Self> {
        let adapter = NonNull::from(Box::leak(Box::new(adapter)));
        let (features, data) = (features.bits(), adapter.as_ptr().cast());
        // SAFETY: The functions take the adapter, which lives until the cache is closed.
        let example = unsafe { example_open(capacity, features, Self::pin, Self::unpin, data) };
        let example = NonNull::new(example).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { example, adapter })
    }

    fn adapter(&mut self) -> &mut P {
        // SAFETY: The cache uses the adapter only while one of its functions runs.
        unsafe { self.adapter.as_mut() }
    }

    extern "C" fn pin(
        adapter: *mut c_void,
        start: *mut c_void,
        length: usize,
        pin: *mut u64,
    ) -> c_int {
        // SAFETY: It is the adapter, and nobody else uses it during the call.
        let adapter = unsafe { &mut *adapter.cast::<P>() };
        let start = start as u64;
        match adapter.pin(&(start..start + length as u64)) {
            Ok(key) => {
                // SAFETY: The caller has room for the key.
                unsafe { *pin = key.into() };
                0
            }
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        }
    }

    extern "C" fn unpin(adapter: *mut c_void, pin: u64) {
        // SAFETY: As above.
        let adapter = unsafe { &mut *adapter.cast::<P>() };
        let key = P::Key::try_from(pin).unwrap_or_else(|_| panic!("{pin} is not a key"));
        adapter.unpin(key).expect("what was pinned can be unpinned");
    }
}

impl<P> Cache for InC<P> {
    fn get(&mut self, memory: &Range<u64>) -> io::Result<(u64, bool)> {
        let (start, length) = (memory.start as *mut _, (memory.end - memory.start) as usize);
        let mut pin = 0;
        // SAFETY: The cache is open and accepts any memory.
        match unsafe { example_get(self.example.as_ptr(), start, length, &mut pin) } {
            found @ (0 | 1) => Ok((pin, found == 1)),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }
}

impl<P> Drop for InC<P> {
    fn drop(&mut self) {
        // SAFETY: The cache is open, and was the only user of the adapter.
        unsafe {
            example_close(self.example.as_ptr());
            drop(Box::from_raw(self.adapter.as_ptr()));
        }
    }
}

/// With version 2, and with all features that the driver grants.
const EACH: [Features; 2] = [Features::NONE, Features::ALL];

fn watcher(features: Features) -> Outcome<Option<Watcher>> {
    let device = Options::new().features(features).open();
    let device = device.or_skip("no /dev/ummunotify to open")?;
    Ok(Some(Watcher::new(device)?))
}

/// Opens both caches, each with an adapter of the same kind.
fn both<P: Pin<Key: Into<u64> + TryFrom<u64>>>(
    capacity: usize,
    features: Features,
    adapter: impl Fn() -> Outcome<P>,
) -> Outcome<(RegistrationCache<P>, InC<P>)> {
    let in_rust = RegistrationCache::new(adapter()?, capacity, watcher(features)?);
    Ok((in_rust, InC::open(adapter()?, capacity, features)?))
}

fn caches_agree() -> Outcome {
    EACH.into_iter().try_for_each(agree)
}

fn agree(features: Features) -> Outcome {
    const CAPACITY: usize = 10;
    let (mut in_rust, mut in_c) = both(CAPACITY, features, || {
        Adapter::open(CAPACITY as u16 + 2).or_skip("io_uring with sparse buffer tables")
    })?;
    let buffers = (0..16)
        .map(|index| Guarded::new(index % 4 + 1))
        .collect::<io::Result<Vec<_>>>()?;
    let elsewhere = Guarded::new(4)?;
    let (sender, mut receiver) = UnixStream::pair()?;
    let mut random = fastrand::Rng::with_seed(1);

    let (mut hits, mut rounds) = (0, 0);
    for round in crate::harness::rounds_soon(2000) {
        let memory = buffers[random.usize(..buffers.len())].all();
        match random.u8(..8) {
            0 => mem::advise(&memory, libc::MADV_DONTNEED)?,
            1 => mem::map_over(&memory)?,
            2 => {
                let length = memory.end - memory.start;
                let other = elsewhere.all().start..elsewhere.all().start + length;
                mem::map_over(&other)?;
                mem::move_to(&other, &memory)?;
            }
            3 => mem::map_over(&(memory.start..memory.start + PAGE))?,
            _ => {}
        }
        // SAFETY: The memory is mapped, and belongs to this test alone.
        let written = unsafe {
            slice::from_raw_parts_mut(
                memory.start as *mut u8,
                (memory.end - memory.start) as usize,
            )
        };
        written
            .chunks_exact_mut(8)
            .for_each(|place| place.copy_from_slice(&(round * 0x0101_0101).to_ne_bytes()));

        let (key, found) = Cache::get(&mut in_rust, &memory)?;
        let (key_in_c, found_in_c) = in_c.get(&memory)?;
        let what = format!("hit of the C cache in round {round}");
        expect::same(&what, found_in_c, found)?;
        hits += u64::from(found);
        rounds += 1;
        for (adapter, key) in [(in_rust.adapter(), key), (in_c.adapter(), key_in_c)] {
            adapter.send(key as u16, &memory, &sender)?;
            let mut arrived = vec![0; written.len()];
            receiver.read_exact(&mut arrived)?;
            expect::same("stale bytes", arrived != written, false)?;
        }
    }
    expect::at_least("hits", hits, rounds / 10)
}

/// Pins as mlock does, or as an RDMA library does for the sake of fork: once for all pins of the
/// same memory, and in a way that changes the mapping if the memory is part of a huge page.
#[derive(Default)]
struct Splitting {
    pins: HashMap<u64, u32>,
    count: u64,
}

impl Pin for Splitting {
    type Key = u64;

    fn pin(&mut self, memory: &Range<u64>) -> io::Result<u64> {
        let pins = self.pins.entry(memory.start).or_default();
        if *pins == 0 {
            // Make the block huge first, as khugepaged would do sooner or later.
            let block = memory.start / HUGE * HUGE..(memory.start / HUGE + 1) * HUGE;
            mem::advise(&block, libc::MADV_COLLAPSE)?;
            mem::advise(memory, libc::MADV_DONTFORK)?;
        }
        *pins += 1;
        self.count += 1;
        Ok(memory.start)
    }

    fn unpin(&mut self, key: u64) -> io::Result<()> {
        let pins = self.pins.entry(key).or_default();
        *pins -= 1;
        if *pins == 0 {
            mem::advise(&(key..key + 4 * PAGE), libc::MADV_DOFORK)?;
        }
        Ok(())
    }
}

fn caches_end_where_pinning_changes_mappings() -> Outcome {
    EACH.into_iter()
        .try_for_each(end_where_pinning_changes_mappings)
}

fn end_where_pinning_changes_mappings(features: Features) -> Outcome {
    for in_c in [false, true] {
        let area = Guarded::huge(1)?;
        mem::advise(&area.all(), libc::MADV_HUGEPAGE).or_skip("huge pages")?;
        area.fill();
        let memory = area.span(100..104);
        let mut adapter = Splitting::default();
        adapter.pin(&memory).or_skip("MADV_COLLAPSE")?;
        adapter.unpin(memory.start)?;

        let (mut rust, mut c);
        let cache: &mut dyn Cache = if in_c {
            c = InC::open(adapter, 4, features)?;
            &mut c
        } else {
            rust = RegistrationCache::new(adapter, 4, watcher(features)?);
            &mut rust
        };
        expect::same("hit at first", cache.get(&memory)?.1, false)?;
        expect::same("hit after that", cache.get(&memory)?.1, true)?;
    }
    Ok(())
}

/// Changes whatever it pins, every time.
#[derive(Default)]
struct Restless {
    quiet: bool,
    pinned: u64,
    count: u64,
}

impl Pin for Restless {
    type Key = u64;

    fn pin(&mut self, memory: &Range<u64>) -> io::Result<u64> {
        if !self.quiet {
            mem::advise(memory, libc::MADV_DONTNEED)?;
            mem::write_byte(memory.start, 1);
        }
        self.pinned += 1;
        self.count += 1;
        Ok(self.count)
    }

    fn unpin(&mut self, _: u64) -> io::Result<()> {
        self.pinned -= 1;
        Ok(())
    }
}

fn caches_give_up() -> Outcome {
    EACH.into_iter().try_for_each(give_up)
}

fn give_up(features: Features) -> Outcome {
    let area = Guarded::new(2)?;
    let (memory, other) = (area.page(0), area.page(1));
    let (mut in_rust, mut in_c) = both(4, features, || Ok(Restless::default()))?;

    let get = |cache: &mut dyn Cache| -> Outcome {
        for _ in 0..3 {
            expect::same("hit", cache.get(&memory)?.1, false)?;
        }
        Ok(())
    };
    get(&mut in_rust)?;
    get(&mut in_c)?;
    for adapter in [in_rust.adapter(), in_c.adapter()] {
        // Memory that was pinned for one use is unpinned when the next use begins.
        expect::same("pinned buffers", adapter.pinned, 1)?;
        expect::that("pins", adapter.count <= 30, "at most 30", adapter.count)?;
        adapter.quiet = true;
    }
    for memory in [&memory, &other] {
        for cache in [&mut in_rust as &mut dyn Cache, &mut in_c] {
            expect::same("hit at first", cache.get(memory)?.1, false)?;
            expect::same("hit after that", cache.get(memory)?.1, true)?;
        }
    }
    for adapter in [in_rust.adapter(), in_c.adapter()] {
        expect::same("pinned buffers", adapter.pinned, 2)?;
    }
    Ok(())
}

fn caches_at_the_limit() -> Outcome {
    const PAGES: u64 = 1200;
    let area = Guarded::new(PAGES)?;
    // Enough for a few hundred regions.
    process::set_limit(libc::RLIMIT_MEMLOCK, 16 * PAGE)?;
    process::drop_privilege()?;
    for in_c in [false, true] {
        let adapter = Restless {
            quiet: true,
            ..Restless::default()
        };
        let (mut rust, mut c);
        let cache: &mut dyn Cache = if in_c {
            c = InC::open(adapter, PAGES as usize, Features::ALL)?;
            &mut c
        } else {
            rust = RegistrationCache::new(adapter, PAGES as usize, watcher(Features::ALL)?);
            &mut rust
        };
        let mut found = 0;
        for page in 0..PAGES {
            cache.get(&area.page(page))?;
            found += u64::from(cache.get(&area.page(page))?.1);
        }
        let some = found > 0 && found < PAGES;
        expect::that("cached buffers", some, "some, not all", found)?;
        // Dropping this one makes room.
        mem::advise(&area.page(0), libc::MADV_DONTNEED)?;
        expect::same("hit", cache.get(&area.page(0))?.1, false)?;
        expect::same("hit after that", cache.get(&area.page(0))?.1, true)?;
    }
    Ok(())
}

fn caches_in_a_child() -> Outcome {
    // `fork` does not change shared memory.
    let area = Guarded::shared(1)?;
    let (mut in_rust, mut in_c) = both(4, Features::ALL, || {
        Ok(Restless {
            quiet: true,
            ..Restless::default()
        })
    })?;
    Cache::get(&mut in_rust, &area.all())?;
    in_c.get(&area.all())?;
    Child::fork(|_| {
        let result = Cache::get(&mut in_rust, &area.all());
        expect::error("the cache in Rust", result, libc::EPERM)?;
        expect::error("the cache in C", in_c.get(&area.all()), libc::EPERM)
    })?
    .join()?;
    expect::same("hit", Cache::get(&mut in_rust, &area.all())?.1, true)?;
    expect::same("hit of the C cache", in_c.get(&area.all())?.1, true)
}
