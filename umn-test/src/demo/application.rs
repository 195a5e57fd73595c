// SPDX-License-Identifier: GPL-2.0

//! A program that remaps its buffers, as real programs do, and sends messages from them.

use std::{
    hash::{
        DefaultHasher,
        Hasher, //
    },
    io::{
        self,
        Read, //
    },
    ops::Range,
    os::unix::net::UnixStream,
    slice,
    sync::{
        Mutex,
        PoisonError, //
    },
};

use ummunotify::cache::RegistrationCache;

use super::adapter::Adapter;
use crate::mem::{
    self,
    PAGE, //
};

/// The number of buffers that a thread sends from.
pub const BUFFERS: u64 = 8;

/// What the program may do to a buffer between two messages.
#[derive(Clone, Copy)]
pub enum Change {
    /// Nothing, so that a cache is useful.
    Nothing,
    /// Free it, and map memory at the same address, as a large `free` and `malloc` do.
    Free,
    /// Map new memory over it.
    Replace,
    /// Tell the kernel that the contents are not needed, as allocators do with free memory.
    Discard,
    /// Move it elsewhere, as a large `realloc` does, and map memory at the old address.
    Move,
    /// Move it elsewhere and back. The same pages are mapped there again, so dropping the pin is
    /// unnecessary in this case only.
    MoveAndReturn,
}

impl Change {
    /// All of them; the index of each is its number.
    pub const ALL: [Self; 6] = [
        Self::Nothing,
        Self::Free,
        Self::Replace,
        Self::Discard,
        Self::Move,
        Self::MoveAndReturn,
    ];

    /// Its name in terms of system calls.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Free => "munmap, mmap there again",
            Self::Replace => "mmap(MAP_FIXED) over it",
            Self::Discard => "madvise(MADV_DONTNEED)",
            Self::Move => "mremap away, mmap there again",
            Self::MoveAndReturn => "mremap away and back",
        }
    }

    /// Nothing in half of the cases, otherwise any of the others.
    fn choose(random: &mut Random) -> Self {
        if random.below(2) == 0 {
            Self::Nothing
        } else {
            Self::ALL[1 + random.below(Self::ALL.len() as u64 - 1) as usize]
        }
    }
}

/// Results of the messages that were sent after one kind of change.
#[derive(Clone, Copy, Default)]
pub struct Fate {
    /// How many were sent.
    pub sent: u64,
    /// How many arrived with bytes other than those written.
    pub stale: u64,
}

/// Results of all messages.
#[derive(Default)]
pub struct Fates {
    /// By kind of change, in the order of [`Change::ALL`].
    pub after: [Fate; Change::ALL.len()],
    /// A description of the first stale message.
    pub example: Option<String>,
}

impl Fates {
    /// Adds the results of others.
    pub fn add(&mut self, other: Self) {
        for (sum, fate) in self.after.iter_mut().zip(other.after) {
            sum.sent += fate.sent;
            sum.stale += fate.stale;
        }
        self.example = self.example.take().or(other.example);
    }

    /// The totals.
    pub fn sum(&self) -> Fate {
        self.after.iter().fold(Fate::default(), |sum, fate| Fate {
            sent: sum.sent + fate.sent,
            stale: sum.stale + fate.stale,
        })
    }
}

/// One thread of the program. It repeatedly changes a buffer, writes a message to it, sends it, and
/// checks what arrives. The sequence of changes is the same in each run.
pub fn run_thread(
    thread: u64,
    rounds: u64,
    cache: &Mutex<RegistrationCache<Adapter>>,
) -> io::Result<Fates> {
    let mut random = Random(thread);
    let buffers = (0..BUFFERS)
        .map(|index| Buffer::map(thread * BUFFERS + index, index % 4 + 1))
        .collect::<io::Result<Vec<_>>>()?;
    let (sender, mut receiver) = UnixStream::pair()?;
    let mut fates = Fates::default();

    for round in 1..=rounds {
        let buffer = &buffers[random.below(BUFFERS) as usize];
        let change = Change::choose(&mut random);
        buffer.change(change)?;
        let written = buffer.write((thread << 32) | round);

        let memory = buffer.home();
        {
            let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
            let key = cache.get(&memory)?;
            cache.adapter().send(key, &memory, &sender)?;
        }

        let arrived = Message::receive(&mut receiver, buffer.length())?;
        let fate = &mut fates.after[change as usize];
        fate.sent += 1;
        if arrived != written {
            fate.stale += 1;
            fates.example.get_or_insert_with(|| {
                format!(
                    "{} was written, but {} arrived",
                    written.name(),
                    arrived.name()
                )
            });
        }
    }
    Ok(fates)
}

/// The identity of a message: the number at its start, and a checksum of its bytes.
#[derive(PartialEq, Eq)]
struct Message {
    number: u64,
    checksum: u64,
}

impl Message {
    fn of(bytes: &[u8]) -> Self {
        let mut checksum = DefaultHasher::new();
        checksum.write(bytes);
        let number = bytes.first_chunk().copied().map_or(0, u64::from_ne_bytes);
        Self {
            number,
            checksum: checksum.finish(),
        }
    }

    fn receive(from: &mut UnixStream, length: usize) -> io::Result<Self> {
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes)?;
        Ok(Self::of(&bytes))
    }

    fn name(&self) -> String {
        let (thread, round) = (self.number >> 32, self.number as u32);
        format!("message {round} of thread {thread}")
    }
}

/// A buffer to send from. Its address stays the same, though not its memory.
pub struct Buffer {
    start: u64,
    pages: u64,
}

impl Buffer {
    /// Where the buffers are: far below the addresses that the kernel chooses by itself, so that no
    /// other thread's memory gets between a `munmap` and the `mmap` that follows.
    const ARENA: u64 = 64 << 30;

    /// Distance between buffers: room for the buffer and for the target of moves, with a gap after
    /// each.
    const ROOM: u64 = 16 * PAGE;

    /// The addresses of a buffer.
    pub fn place(index: u64, pages: u64) -> Range<u64> {
        let start = Self::ARENA + index * Self::ROOM;
        start..start + pages * PAGE
    }

    /// Maps a buffer of `pages` pages.
    pub fn map(index: u64, pages: u64) -> io::Result<Self> {
        let start = Self::place(index, pages).start;
        let buffer = Self { start, pages };
        buffer.map_again()?;
        Ok(buffer)
    }

    /// Where messages are written and sent from.
    pub fn home(&self) -> Range<u64> {
        self.start..self.start + self.pages * PAGE
    }

    /// The target of moves; whatever was there before is unmapped.
    fn elsewhere(&self) -> Range<u64> {
        let start = self.start + Self::ROOM / 2;
        start..start + self.pages * PAGE
    }

    fn length(&self) -> usize {
        (self.pages * PAGE) as usize
    }

    fn map_again(&self) -> io::Result<()> {
        mem::map(
            Some(self.start),
            self.pages * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            None,
        )
        .map(drop)
    }

    /// Changes the mapping. The buffer is mapped and writable after it.
    pub fn change(&self, change: Change) -> io::Result<()> {
        let (home, elsewhere) = (self.home(), self.elsewhere());
        match change {
            Change::Nothing => Ok(()),
            Change::Free => {
                mem::unmap(&home)?;
                self.map_again()
            }
            Change::Replace => mem::map_over(&home),
            Change::Discard => mem::advise(&home, libc::MADV_DONTNEED),
            Change::Move => {
                mem::move_to(&home, &elsewhere)?;
                self.map_again()
            }
            Change::MoveAndReturn => {
                mem::move_to(&home, &elsewhere)?;
                mem::move_to(&elsewhere, &home)
            }
        }
    }

    /// Fills the buffer with a unique message.
    fn write(&self, number: u64) -> Message {
        // SAFETY: All of this is mapped, it belongs to this buffer, and the buffer to this thread.
        let bytes = unsafe { slice::from_raw_parts_mut(self.start as *mut u8, self.length()) };
        let mut random = Random(number);
        let mut word = number;
        for place in bytes.chunks_exact_mut(size_of::<u64>()) {
            place.copy_from_slice(&word.to_ne_bytes());
            word = random.next();
        }
        Message::of(bytes)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // The buffer and the target of moves; nothing else is mapped there.
        let _ = mem::unmap(&(self.start..self.start + Self::ROOM));
    }
}

/// Pseudo-random numbers, the same in each run (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
