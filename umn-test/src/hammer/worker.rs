// SPDX-License-Identifier: GPL-2.0

//! A process whose threads make calls until it is killed or leaves.

use std::{
    mem,
    os::unix::process::CommandExt,
    panic,
    process::{
        self,
        ExitCode, //
    },
    sync::atomic::Ordering,
    thread,
    time::Duration, //
};

use fastrand::Rng;

use super::{
    caller::{
        self,
        Caller,
        THREADS, //
    },
    calls,
    tally::Tally, //
};
use crate::{
    device::check,
    expect::Outcome,
    process::{
        drop_privilege,
        set_limit, //
    },
    signals::{
        catch_signal,
        signal_thread, //
    },
    system::Cgroup,
};

/// The parameters of a worker.
pub struct Plan<'a> {
    /// Seed of its random choices.
    pub seed: u64,
    /// The number of threads.
    pub threads: usize,
    /// The cgroup it joins.
    pub group: Option<&'a Cgroup>,
}

/// Runs a worker in a forked child.
pub fn run(plan: &Plan<'_>, tally: &'static Tally, leader: i32) {
    super::join_group(0, leader);
    match prepare(plan) {
        Ok(is_apart) => make_calls(plan, tally, !is_apart),
        Err(failure) => tally.wrong(&format!("a worker could not start: {failure:?}")),
    }
}

/// Sets limits; returns whether the process became a user that no other process has.
fn prepare(plan: &Plan<'_>) -> Outcome<bool> {
    if let Some(group) = plan.group {
        group.enter()?;
    }
    // SAFETY: The call takes no arguments.
    let is_apart = unsafe { libc::geteuid() } == 0;
    if is_apart {
        // Some workers may lock so little memory that requests fail at every point.
        let locked = [96 << 10, 64 << 20, 64 << 20][plan.seed as usize % 3];
        set_limit(libc::RLIMIT_MEMLOCK, locked)?;
        drop_privilege()?;
    }
    set_limit(libc::RLIMIT_NOFILE, 160)?;
    set_limit(libc::RLIMIT_NPROC, 400)?;
    set_limit(libc::RLIMIT_CORE, 0)?;
    // SAFETY: The call takes no pointer.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    let restart = if plan.seed % 2 == 0 {
        libc::SA_RESTART
    } else {
        0
    };
    catch_signal(libc::SIGUSR1, restart)?;
    catch_signal(libc::SIGIO, 0)?;
    caller::map_memory()?;
    panic::set_hook(Box::new(|info| {
        eprintln!("umn-test: {info}");
        process::abort();
    }));
    Ok(is_apart)
}

/// Starts the threads, interrupts one now and then, and ends after a random time.
fn make_calls(plan: &Plan<'_>, tally: &'static Tally, spares_strangers: bool) {
    let mut rng = Rng::with_seed(plan.seed);
    calls::begin(&mut Caller::new(rng.u64(..), tally, spares_strangers));
    for place in &THREADS[..plan.threads] {
        let seed = rng.u64(..);
        let thread = thread::Builder::new().spawn(move || {
            // SAFETY: The call takes no arguments.
            place.store(unsafe { libc::gettid() }, Ordering::Relaxed);
            let mut caller = Caller::new(seed, tally, spares_strangers);
            loop {
                calls::make_any(&mut caller);
            }
        });
        // There may be too many processes now, or too little memory.
        mem::forget(thread);
    }
    for _ in 0..rng.u32(5..1000) {
        thread::sleep(Duration::from_micros(rng.u64(500..3000)));
        let place = rng.usize(0..plan.threads);
        if let tid @ 1.. = THREADS[place].load(Ordering::Relaxed) {
            // The thread may be gone if another one has executed a program.
            let _ = signal_thread(tid, libc::SIGUSR1);
        }
    }
    if rng.bool() {
        // Another program replaces all threads. This fails if memory is short.
        let _ = calls::executed(rng.u64(..)).exec();
    }
    // Otherwise, the process ends while its threads are running or sleeping.
}

/// Runs the program that a worker executes: it has the files, but another address space.
pub fn executed(seed: u64) -> ExitCode {
    let ready = Tally::inherited().and_then(|tally| {
        caller::map_memory()?;
        catch_signal(libc::SIGUSR1, 0)?;
        catch_signal(libc::SIGIO, 0)?;
        Ok(tally)
    });
    // Memory may be short.
    if let Ok(tally) = ready {
        let mut caller = Caller::new(seed, tally, true);
        caller.be_child();
        for _ in 0..caller.rng.u32(10..200) {
            calls::make_any(&mut caller);
        }
    }
    ExitCode::SUCCESS
}
