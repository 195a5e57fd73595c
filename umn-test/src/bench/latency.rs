// SPDX-License-Identifier: GPL-2.0

//! How late an operation completes that is due at a given time, while other threads keep the device
//! busy.
//!
//! A real-time thread sleeps until that time and preempts whatever runs. So the latencies show how
//! long interrupts are disabled or a spinlock is held.

use std::{
    fs,
    ops::Range,
    os::fd::AsRawFd,
    sync::atomic::{
        AtomicBool,
        Ordering, //
    },
    thread,
    time::Duration, //
};

use super::{
    costs::{
        munmap,
        page,
        populate, //
    },
    count,
    figures::{
        Figures,
        Latency,
        REGIONS, //
    },
};
use crate::{
    command,
    device::Device,
    expect::Outcome,
    mem::PAGE,
    process, //
};

/// The number of regions that are registered and unregistered.
const REGISTERED: u64 = REGIONS[REGIONS.len() - 1];

/// The interval between operations.
const PERIOD: Duration = Duration::from_micros(40);

/// How often each operation is measured, unless the other threads finish earlier.
const CALLS: usize = 20_000;

/// Operations before the first that counts.
const FIRST: usize = 100;

/// Measures the latencies.
pub fn measure() -> Outcome<Figures> {
    count::require()?;
    let mut figures = Figures::default();
    let mut note = |beside: &str, calls: Calls| {
        let calls = [
            ("munmap of a watched page", calls.munmap),
            ("register", calls.register),
        ];
        for (operation, latencies) in calls {
            figures.latencies.push(Latency {
                operation: operation.into(),
                beside: beside.into(),
                quantiles: quantiles(latencies),
            });
        }
    };

    note("nothing", beside(&command::open_device()?, &[])?);

    let spin: Task<'_> = &|ends| while !ends.load(Ordering::Relaxed) {};
    note(
        "two threads compute",
        beside(&command::open_device()?, &[spin, spin])?,
    );

    let device = registered()?;
    let done = AtomicBool::new(false);
    let unregister: Task<'_> = &|ends| {
        for index in 0..REGISTERED {
            let _ = device.unregister(index);
        }
        done.store(true, Ordering::Relaxed);
        ends.store(true, Ordering::Relaxed);
    };
    let read: Task<'_> = &|ends| {
        while !ends.load(Ordering::Relaxed) {
            let _ = device.read_events(16);
        }
    };
    note(
        "a thread unregisters 1Mi regions, another reads",
        beside(&device, &[unregister, read])?,
    );

    let other = std::sync::Mutex::new(Some(registered()?));
    let close: Task<'_> = &|ends| {
        drop(other.lock().map(|mut other| other.take()));
        ends.store(true, Ordering::Relaxed);
    };
    note(
        "a thread closes a file with 1Mi regions, another reads",
        beside(&device, &[close, read])?,
    );

    let mut wakeups = |beside: &str, tasks: &[Task<'_>]| -> Outcome {
        figures.latencies.push(Latency {
            operation: "a wake-up".into(),
            beside: beside.into(),
            quantiles: quantiles(beside_with(tasks, sample_wakeups)?),
        });
        Ok(())
    };
    wakeups("nothing", &[])?;
    // The kernel itself delays more than the driver may, so few regions are the standard.
    for (count, name) in [(128, "128"), (REGISTERED, "1Mi")] {
        let crowd = crowd(count)?;
        let change: Task<'_> = &|ends| {
            while !ends.load(Ordering::Relaxed) {
                let _ = populate(&CROWDED);
                munmap(&CROWDED);
            }
        };
        let read: Task<'_> = &|ends| {
            while !ends.load(Ordering::Relaxed) {
                let _ = crowd.read_events(1024);
            }
        };
        let look: Task<'_> = &|ends| {
            let path = format!("/proc/self/fdinfo/{}", crowd.as_raw_fd());
            while !ends.load(Ordering::Relaxed) {
                let _ = fs::read(&path);
            }
        };
        let register: Task<'_> = &|ends| {
            while !ends.load(Ordering::Relaxed) {
                let _ = crowd.register(CROWDED.start, CROWDED.end, u64::MAX - 2);
                let _ = crowd.unregister(u64::MAX - 2);
            }
        };
        let changes = format!("changes that hit {name} regions, reads");
        wakeups(&format!("{changes}, fdinfo"), &[change, read, look])?;
        wakeups(
            &format!("{changes}, REGISTER and UNREGISTER"),
            &[change, read, register],
        )?;
    }
    Ok(figures)
}

/// A page covered by many regions.
const CROWDED: Range<u64> = 3 << 40..(3 << 40) + PAGE;

/// A file with `count` regions on one page.
fn crowd(count: u64) -> Outcome<Device> {
    let device = command::open_device()?;
    for cookie in 0..count {
        let start = CROWDED.start - count + cookie;
        device.register(start, CROWDED.start + 1 + cookie % PAGE, cookie)?;
    }
    Ok(device)
}

/// What another thread does until it is asked to end; it may also end the measurement itself.
type Task<'a> = &'a (dyn Fn(&AtomicBool) + Sync);

#[derive(Default)]
struct Calls {
    munmap: Vec<u64>,
    register: Vec<u64>,
}

/// A file with all regions.
fn registered() -> Outcome<Device> {
    let device = command::open_device()?;
    for index in 0..REGISTERED {
        let region = page(index);
        device.register(region.start, region.end, index)?;
    }
    Ok(device)
}

/// Measures while other threads do something.
fn beside(device: &Device, tasks: &[Task<'_>]) -> Outcome<Calls> {
    beside_with(tasks, |ends| sample(device, ends))
}

/// The same, with another sampler.
fn beside_with<T: Send>(
    tasks: &[Task<'_>],
    sample: impl FnOnce(&AtomicBool) -> Outcome<T> + Send,
) -> Outcome<T> {
    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        for task in tasks {
            scope.spawn(|| task(&ends));
        }
        let sampler = scope.spawn(|| sample(&ends));
        let calls = sampler.join().expect("it does not panic");
        ends.store(true, Ordering::Relaxed);
        calls
    })
}

fn sample(device: &Device, ends: &AtomicBool) -> Outcome<Calls> {
    let watched = page(2 * REGISTERED);
    let more = page(2 * REGISTERED + 1);
    let cookie = u64::MAX;
    device.register(watched.start, watched.end, cookie)?;
    let mut calls = Calls::default();
    calls.munmap.reserve(CALLS);
    calls.register.reserve(CALLS);
    process::set_priority(0, 1)?;
    for round in 0.. {
        if ends.load(Ordering::Relaxed) || round == FIRST + CALLS {
            break;
        }
        populate(&watched)?;
        let due = sleep();
        munmap(&watched);
        let munmap = now() - due;
        let due = sleep();
        device.register(more.start, more.end, cookie - 1)?;
        let register = now() - due;
        device.unregister(cookie - 1)?;
        if round >= FIRST {
            calls.munmap.push(munmap);
            calls.register.push(register);
        }
    }
    device.unregister(cookie)?;
    Ok(calls)
}

/// Measures how late the thread itself wakes up. Whatever delays it holds a spinlock, or has
/// disabled preemption or interrupts in another way. A change of mappings, by contrast, may also
/// wait for a mutex whose holder is waiting for the processor.
fn sample_wakeups(ends: &AtomicBool) -> Outcome<Vec<u64>> {
    let mut late = Vec::with_capacity(CALLS);
    process::set_priority(0, 1)?;
    while late.len() < CALLS && !ends.load(Ordering::Relaxed) {
        let due = sleep();
        late.push(now() - due);
    }
    Ok(late)
}

fn time() -> libc::timespec {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: There is room for the time.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time
}

/// The time in nanoseconds, which are instructions here.
fn now() -> u64 {
    let time = time();
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Sleeps until the next operation is due; returns that time.
fn sleep() -> u64 {
    let due = now() + PERIOD.as_nanos() as u64;
    let time = libc::timespec {
        tv_sec: (due / 1_000_000_000) as _,
        tv_nsec: (due % 1_000_000_000) as _,
    };
    let nowhere = std::ptr::null_mut();
    // SAFETY: The time is valid, and the remaining time is not requested.
    unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &time, nowhere) };
    due
}

fn quantiles(mut latencies: Vec<u64>) -> [u64; 3] {
    latencies.sort_unstable();
    let last = latencies.len() - 1;
    [last / 2, last * 999 / 1000, last].map(|index| latencies[index])
}
