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

/// How often each thing is measured. The number is odd, so that there is a median.
pub const ROUNDS: usize = 1001;

/// Reads the clock, which `scripts/vm --icount` advances by one with each instruction.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: Every x86-64 processor has this instruction.
    unsafe { _rdtsc() }
}

/// Skips the benchmark if the clock does not count instructions.
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

/// Measures the same thing repeatedly.
#[derive(Default)]
pub struct Stopwatch(Vec<u64>);

impl Stopwatch {
    /// Creates a stopwatch without measurements.
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

    /// The median, without the cost of reading the clock.
    pub fn median(self) -> u64 {
        /// The cost of measuring nothing.
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

/// A system call, without a library function around it. The arguments must be valid for the call,
/// which may change no other memory than the caller intends.
#[inline(always)]
pub fn call(number: libc::c_long, arguments: [u64; 3]) -> i64 {
    let result;
    // SAFETY: The caller vouches for the arguments; the registers are those of the kernel's calling
    // convention.
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
