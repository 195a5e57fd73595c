// SPDX-License-Identifier: GPL-2.0

//! The cost of userfaultfd, which any program can use instead of the device.

use std::{
    fs::File,
    io::Read,
    ops::Range,
    thread, //
};

use super::{
    costs::{
        munmap,
        page,
        Calls,
        DISTANCE, //
    },
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
    expect::Outcome,
    mem::{
        self,
        PAGE, //
    },
    userfault::{
        UserFault,
        MODE_MISSING, //
    },
};

/// Features: `MADV_DONTNEED` and `munmap` are reported, and wait until the report is read.
pub const EVENTS: u64 = (1 << 3) | (1 << 6);

/// Measures the operations that userfaultfd has.
///
/// Each region is a mapping of its own, as are the pages between them.
pub fn measure() -> Outcome<Figures> {
    count::require()?;
    let bare = Calls::munmap(|| 0, || Ok(()))?;
    let mut figures = Figures::default();
    let mut add = |operation, regions, value| {
        figures.add(operation, Peer::Userfaultfd, regions, value);
    };
    let mut random = fastrand::Rng::with_seed(1);
    let mut silent = File::from(UserFault::nonblocking(EVENTS)?);
    let mut message = [0; 32];
    let mut stopwatch = Stopwatch::new();
    for _ in 0..ROUNDS {
        let _ = stopwatch.time(|| silent.read(&mut message));
    }
    add(Operation::ReadNone, 1, stopwatch.median() as f64);

    let uffd = UserFault::new(EVENTS)?;
    let mut reader = File::from(uffd.try_clone()?);
    // The thread ends with the process.
    thread::spawn(move || while reader.read(&mut [0; 32]).is_ok() {});
    let most = REGIONS[REGIONS.len() - 1];
    map(&(page(0).start..page(0).start + (most + ROUNDS as u64) * DISTANCE))?;
    let mut order: Vec<u64> = (0..most).collect();
    let mut have = 0;
    for regions in REGIONS {
        let more = &mut order[have as usize..regions as usize];
        random.shuffle(more);
        for index in more.iter() {
            uffd.register(&page(*index), MODE_MISSING)?;
        }
        have = regions;

        let (mut registering, mut unregistering) = (Stopwatch::new(), Stopwatch::new());
        for round in 0..ROUNDS as u64 {
            let more = page(regions + round);
            registering.time(|| uffd.register(&more, MODE_MISSING))?;
            uffd.unregister(&more)?;
        }
        add(Operation::Register, regions, registering.median() as f64);
        let mut unmapping = Stopwatch::new();
        for _ in 0..ROUNDS {
            let page = page(random.u64(..regions));
            unregistering.time(|| uffd.unregister(&page))?;
            // A present page is not reported as missing.
            mem::write_byte(page.start, 1);
            uffd.register(&page, MODE_MISSING)?;
            unmapping.time(|| munmap(&page));
            map(&page)?;
            uffd.register(&page, MODE_MISSING)?;
        }
        add(
            Operation::Unregister,
            regions,
            unregistering.median() as f64,
        );
        add(Operation::Hit, regions, unmapping.median() as f64 - bare);
    }
    Ok(figures)
}

/// Maps memory without reserving swap space for it.
pub fn map(range: &Range<u64>) -> Outcome {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    mem::map(
        Some(range.start),
        range.end - range.start,
        access,
        flags,
        None,
    )?;
    debug_assert!((range.end - range.start) % PAGE == 0);
    Ok(())
}
