// SPDX-License-Identifier: GPL-2.0

//! How much threads that change mappings delay each other.

use std::{
    ops::Range,
    sync::atomic::{
        AtomicBool,
        AtomicU64,
        Ordering, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    },
};

use super::{
    costs::page,
    figures::{
        Figures,
        Processors, //
    },
};
use crate::{
    command,
    device::Device,
    expect::Outcome,
    mem::{
        self,
        PAGE, //
    },
};

/// The numbers of threads to measure.
const THREADS: [u64; 3] = [1, 2, 4];

/// Regions of each thread.
const REGIONS: u64 = 1 << 10;

/// How often each number of threads is measured.
const ROUNDS: usize = 9;

/// Duration of one measurement.
const TIME: Duration = Duration::from_millis(300);

/// Measures without and with the device, alternately.
pub fn measure() -> Outcome<Figures> {
    let mut times = [[f64::MAX; 2]; THREADS.len()];
    for _ in 0..ROUNDS {
        for (threads, times) in THREADS.iter().zip(&mut times) {
            for (watched, time) in [false, true].into_iter().zip(times) {
                // Disturbances can only make it slower, so take the minimum.
                *time = time.min(invalidate(*threads, watched)?);
            }
        }
    }
    let [bare, watched] = times[0];
    let mut figures = Figures::default();
    for (threads, times) in THREADS.into_iter().zip(times) {
        figures.processors.push(Processors {
            threads,
            bare: times[0] / bare,
            watched: times[1] / watched,
            ratio: times[1] / times[0],
        });
    }
    Ok(figures)
}

/// The memory of a thread.
fn memory(thread: u64) -> Range<u64> {
    page(thread * REGIONS).start..page((thread + 1) * REGIONS).start - PAGE
}

/// The time of a call in seconds when `threads` threads make calls, each in its own memory.
fn invalidate(threads: u64, watched: bool) -> Outcome<f64> {
    for thread in 0..threads {
        mem::map_over(&memory(thread))?;
    }
    // A new file each time: an address space without files gets no notifications.
    let device = watched.then(|| register(threads)).transpose()?;
    let (calls, ends) = (AtomicU64::new(0), AtomicBool::new(false));
    let start = Instant::now();
    thread::scope(|scope| {
        for thread in 0..threads {
            let (calls, ends) = (&calls, &ends);
            scope.spawn(move || {
                let mut done = 0;
                while !ends.load(Ordering::Relaxed) {
                    let page = page(thread * REGIONS + done % REGIONS);
                    let _ = mem::advise(&page, libc::MADV_DONTNEED);
                    done += 1;
                }
                calls.fetch_add(done, Ordering::Relaxed);
            });
        }
        if let Some(device) = &device {
            scope.spawn(|| use_device(device, threads, &ends));
        } else {
            // The same number of threads, so that the processors have as many to run.
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    std::hint::spin_loop()
                }
            });
        }
        thread::sleep(TIME);
        ends.store(true, Ordering::Relaxed);
    });
    Ok(start.elapsed().as_secs_f64() * threads as f64 / calls.into_inner() as f64)
}

/// A file with the regions of all threads.
fn register(threads: u64) -> Outcome<Device> {
    let device = command::open_device()?;
    for index in 0..threads * REGIONS {
        let region = page(index);
        device.register(region.start, region.end, index)?;
    }
    Ok(device)
}

/// Registers and reads until the others end.
fn use_device(device: &Device, threads: u64, ends: &AtomicBool) {
    let more = page(threads * REGIONS);
    while !ends.load(Ordering::Relaxed) {
        let _ = device.register(more.start, more.end, u64::MAX);
        let _ = device.read_events(128);
        let _ = device.unregister(u64::MAX);
    }
}
