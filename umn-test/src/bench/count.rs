// SPDX-License-Identifier: GPL-2.0

//! Counting instructions.

use std::{
    arch::{
        asm,
        x86_64::_rdtsc, //
    },
    sync::LazyLock, //
};

use crate::expect::{
    Failure,
    Outcome, //
};

/// How often each thing is measured: an odd number, for the median.
pub const ROUNDS: usize = 1001;

/// The clock, which `scripts/vm --icount` has move by one with each instruction.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: Each x86-64 processor can tell it.
    unsafe { _rdtsc() }
}

/// Skips where the clock counts something else.
pub fn require() -> Outcome {
    const COUNT: u64 = 10_000;
    let mut stopwatch = Stopwatch::new();
    for _ in 0..ROUNDS {
        // SAFETY: It does nothing.
        stopwatch.time(|| unsafe { asm!(".rept 10000", "nop", ".endr") });
    }
    match stopwatch.median() {
        COUNT => Ok(()),
        other => Err(Failure::Skipped(format!(
            "the clock does not count instructions, {COUNT} were {other}; use scripts/vm --icount"
        ))),
    }
}

/// Measures the same thing several times.
#[derive(Default)]
pub struct Stopwatch(Vec<u64>);

impl Stopwatch {
    /// One that has measured nothing yet.
    pub fn new() -> Self {
        Self(Vec::with_capacity(ROUNDS))
    }

    /// Measures how many instructions something takes.
    #[inline(always)]
    pub fn time<T>(&mut self, body: impl FnOnce() -> T) -> T {
        let start = now();
        let result = body();
        let end = now();
        self.0.push(end - start);
        result
    }

    /// The median, without the reading of the clock.
    pub fn median(self) -> u64 {
        /// What it takes to measure nothing.
        static NOTHING: LazyLock<u64> = LazyLock::new(|| {
            let mut stopwatch = Stopwatch::new();
            for _ in 0..ROUNDS {
                stopwatch.time(|| ());
            }
            stopwatch.middle()
        });
        self.middle() - *NOTHING
    }

    fn middle(mut self) -> u64 {
        self.0.sort_unstable();
        self.0[self.0.len() / 2]
    }
}

/// A system call, without the function of a library around it. The arguments must be those that the
/// call takes; it may change no memory but that which the caller means it to.
#[inline(always)]
pub fn call(number: libc::c_long, arguments: [u64; 3]) -> i64 {
    let result;
    // SAFETY: As the comment above says; the registers are those of the kernel's convention.
    unsafe {
        asm!(
            "syscall",
            inout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result
}
