// SPDX-License-Identifier: GPL-2.0

//! A thread that makes calls, and the arguments it chooses: files, addresses, numbers.
//!
//! All threads of a process share the files and the memory, without synchronisation. The device's
//! files have descriptors that nothing else ever uses, so whatever is open there is the device. The
//! memory is at addresses that the kernel does not choose by itself.

use std::{
    ffi::c_void,
    io,
    mem::ManuallyDrop,
    os::fd::{
        FromRawFd,
        OwnedFd, //
    },
    sync::atomic::{
        AtomicI32,
        Ordering, //
    }, //
};

use fastrand::Rng;

use crate::{
    mem::{
        self,
        PAGE, //
    },
    process::Channel,
    uapi::Event, //
};

use super::tally::{
    Tally,
    MOST_WORKERS, //
};

/// The first descriptor for files of the device.
pub const FIRST_FD: i32 = 100;
/// The number of these descriptors.
pub const FDS: i32 = 6;
/// The descriptors of a channel over which all processes pass files.
pub const LINE_FDS: [i32; 2] = [97, 98];

/// Memory that is watched, changed and read into.
pub const ARENA: u64 = 0x10_0000_0000;
/// Its length in pages.
pub const ARENA_PAGES: u64 = 128;
/// Pages at which a copy must stop: one read-only, a hole, one writable, a hole.
const TRAPS: u64 = ARENA + 0x1000_0000;
/// Where counters are mapped, and nothing else.
pub const WINDOW: u64 = ARENA + 0x2000_0000;
/// Its length in pages.
pub const WINDOW_PAGES: u64 = 8;

/// The most threads of a process.
pub const MOST_THREADS: usize = 16;

/// The IDs of this process's threads, which send signals to each other.
pub static THREADS: [AtomicI32; MOST_THREADS] = [const { AtomicI32::new(0) }; MOST_THREADS];

/// Maps the arena and the traps.
pub fn map_memory() -> io::Result<()> {
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let both = libc::PROT_READ | libc::PROT_WRITE;
    mem::map(Some(ARENA), ARENA_PAGES * PAGE, both, private, None)?;
    mem::map(Some(TRAPS), 4 * PAGE, libc::PROT_NONE, private, None)?;
    mem::protect(&(TRAPS..TRAPS + PAGE), libc::PROT_READ)?;
    mem::protect(&(TRAPS + 2 * PAGE..TRAPS + 3 * PAGE), both)
}

/// A thread that makes calls.
pub struct Caller {
    /// Makes every choice, so that the same seed leads to the same calls.
    pub rng: Rng,
    /// Where results are counted.
    pub tally: &'static Tally,
    /// A valid buffer to read into.
    pub buffer: [Event; 64],
    /// Whether this is a forked or executed process, which has no children of its own.
    pub is_child: bool,
    /// Whether the process must not send signals to processes outside this run.
    pub spares_strangers: bool,
    /// Both ends of the channel.
    lines: [ManuallyDrop<Channel>; 2],
}

impl Caller {
    /// Creates a caller whose choices follow from `seed`.
    pub fn new(seed: u64, tally: &'static Tally, spares_strangers: bool) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            tally,
            buffer: [Event::default(); 64],
            is_child: false,
            spares_strangers,
            lines: LINE_FDS.map(|fd| {
                // SAFETY: The descriptor belongs to nothing else, and stays open until the process
                // ends.
                ManuallyDrop::new(Channel::from(unsafe { OwnedFd::from_raw_fd(fd) }))
            }),
        }
    }

    /// Turns this into the caller of a process that has no children and ends even if it sleeps.
    pub fn be_child(&mut self) {
        self.is_child = true;
        // SAFETY: The call takes no pointer.
        unsafe { libc::alarm(1) };
    }

    /// A descriptor that refers to the device or to nothing.
    pub fn fd(&mut self) -> i32 {
        FIRST_FD + self.rng.i32(0..FDS)
    }

    /// Returns true once in `times` calls, on average.
    pub fn once_in(&mut self, times: u32) -> bool {
        self.rng.u32(0..times) == 0
    }

    /// Returns one of several values.
    pub fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.rng.usize(0..values.len())]
    }

    /// Returns a random combination of flags, possibly none.
    pub fn some_of(&mut self, flags: &[i32]) -> i32 {
        flags
            .iter()
            .filter(|_| self.rng.bool())
            .fold(0, |all, flag| all | flag)
    }

    /// The address of a page in the arena.
    pub fn arena_page(&mut self) -> u64 {
        ARENA + self.rng.u64(0..ARENA_PAGES) * PAGE
    }

    /// The address of a page in the window.
    pub fn window_page(&mut self) -> u64 {
        WINDOW + self.rng.u64(0..WINDOW_PAGES) * PAGE
    }

    /// An address that is invalid, or that may become invalid during the call.
    ///
    /// None of them is in memory that Rust uses.
    pub fn address(&mut self) -> u64 {
        let traps = [TRAPS, TRAPS + PAGE, TRAPS + 2 * PAGE];
        match self.rng.u32(0..12) {
            0 => 0,
            1 => self.one_of(&[1, 7, PAGE - 1]),
            // Nothing is mapped there.
            2 => ARENA - 0x1000_0000,
            3 => self.one_of(&[0xffff_8880_0000_0000, 0xffff_ffff_8100_0000, !0 - 7]),
            // The end of user space, and non-canonical addresses.
            4 => self.one_of(&[
                0x7fff_ffff_f000,
                0x7fff_ffff_eff8,
                0x8000_0000_0000,
                1 << 63,
            ]),
            5 => self.one_of(&traps),
            // Across the end of the writable page.
            6 | 7 => TRAPS + 3 * PAGE - self.rng.u64(1..80),
            8 => self.window_page(),
            9 => self.arena_page() + self.rng.u64(0..PAGE),
            10 => self.arena_page() - self.rng.u64(1..64),
            _ => self.arena_page(),
        }
    }

    /// The same, as a pointer.
    pub fn pointer(&mut self) -> *mut c_void {
        self.address() as *mut c_void
    }

    /// A length, plausible or not.
    pub fn length(&mut self) -> usize {
        let odd = self.rng.usize(0..PAGE as usize);
        self.one_of(&[
            0,
            1,
            31,
            32,
            33,
            48,
            64,
            1024,
            4096,
            1 << 20,
            1 << 31,
            odd,
            !0,
            !0 >> 1,
        ])
    }

    /// The ID of a thread of this process, or 0.
    pub fn thread(&mut self) -> i32 {
        let place = self.rng.usize(0..MOST_THREADS);
        THREADS[place].load(Ordering::Relaxed)
    }

    /// The ID of a worker process, or 0.
    pub fn worker(&mut self) -> i32 {
        self.tally.worker(self.rng.usize(0..MOST_WORKERS))
    }

    /// One end of the channel.
    pub fn line(&mut self) -> &Channel {
        &self.lines[usize::from(self.rng.bool())]
    }
}
