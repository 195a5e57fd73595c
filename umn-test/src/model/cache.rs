// SPDX-License-Identifier: GPL-2.0

//! Property-based test of a cache that uses all features: however the memory is changed, a message
//! that is sent from pinned pages has the bytes that are mapped at the buffer's address.
//!
//! Each thread has buffers of its own, and only it writes to them. All threads share the cache, so
//! one thread may stamp a buffer while another changes its mapping. Meanwhile a helper process and
//! the kernel move pages, which leaves their content as it is.

use std::{
    fs::{
        self,
        File, //
    },
    io::{
        self,
        Read, //
    },
    ops::Range,
    os::unix::net::UnixStream,
    slice,
    sync::{
        atomic::{
            AtomicBool,
            Ordering, //
        },
        Mutex,
        PoisonError, //
    },
    thread,
    time::Duration,
};

use ummunotify::{
    cache::{
        Counts,
        Fault,
        RegistrationCache, //
    },
    Features,
    Options,
    Watcher, //
};

use super::{
    calls,
    figures::{
        add,
        get,
        Figures, //
    }, //
};
use crate::{
    demo::{
        adapter::Adapter,
        application::{
            Buffer,
            Change, //
        }, //
    },
    device::check,
    expect::{
        Failure,
        OrSkip,
        Outcome, //
    },
    mem::{
        self,
        PAGE, //
    },
    process::{
        self,
        Child, //
    },
    system::Setting,
};

/// The number of threads, and of buffers of each thread.
const THREADS: u64 = 3;
const BUFFERS: u64 = 6;

/// How many buffers stay pinned: not all, so that some are evicted.
const CAPACITY: u16 = 14;

/// The parameters of a run.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Seed of all random choices.
    pub seed: u64,
    /// How many messages to send, by all threads together.
    pub messages: u64,
    /// A bug to put into the cache, if any.
    pub fault: Option<Fault>,
}

/// Sends messages; fails with the first stale one.
pub fn run(figures: &'static Figures, plan: Plan) -> Outcome {
    let device = Options::new().features(Features::ALL).open();
    let device = device.or_skip("no /dev/ummunotify to open")?;
    if device.features() != Features::ALL {
        return Err(Failure::new("granted features", "all", "fewer"));
    }
    let adapter = Adapter::open(CAPACITY + 2).or_skip("io_uring with sparse buffer tables")?;
    let mut cache = RegistrationCache::new(adapter, CAPACITY.into(), Some(Watcher::new(device)?));
    if let Some(fault) = plan.fault {
        cache.break_by(fault);
    }
    // Forking requires that there is only one thread yet.
    let _helper = helper(plan.seed)?;
    let _settings = stir_up();
    let (cache, stop) = (Mutex::new(cache), AtomicBool::new(false));
    let outcome = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                let (cache, stop) = (&cache, &stop);
                scope.spawn(move || {
                    let outcome = run_thread(figures, plan, number, cache, stop);
                    if outcome.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    outcome
                })
            })
            .collect();
        let outcomes = threads
            .into_iter()
            .map(|thread| thread.join().expect("the thread does not panic"));
        outcomes.fold(Ok(()), Outcome::and)
    });
    let cache = cache.into_inner().unwrap_or_else(PoisonError::into_inner);
    let Counts {
        hits,
        pins,
        changes,
        dropped,
        kept,
        uncached,
        ..
    } = cache.counts();
    eprintln!(
        "{} messages, {hits} of them from memory that was already pinned; {pins} pins, \
         {uncached} of them for one use; {changes} events: {dropped} registrations dropped, {kept} \
         kept because the pages were the same",
        get(&figures.done)
    );
    outcome
}

/// Makes the kernel move and merge pages on its own, as far as this machine allows it. Dropping the
/// settings restores them.
fn stir_up() -> Vec<Setting> {
    let _ = process::balance_numa(true);
    let settings = [
        ("/proc/sys/kernel/numa_balancing", "1"),
        ("/sys/kernel/mm/ksm/sleep_millisecs", "10"),
        ("/sys/kernel/mm/ksm/pages_to_scan", "200"),
        ("/sys/kernel/mm/ksm/run", "1"),
    ];
    let changed = settings
        .into_iter()
        .map(|(path, value)| Setting::change(path, value));
    changed.flatten().collect()
}

/// Starts a process that keeps moving pages of this one, without changing their content.
fn helper(seed: u64) -> io::Result<Child> {
    let parent = std::process::id() as i32;
    Child::fork(|_| {
        let mut random = fastrand::Rng::with_seed(seed);
        let pidfd = calls::pidfd(parent)?;
        loop {
            let memory = place(random.u64(..THREADS), random.u64(..BUFFERS));
            let pages: Vec<u64> = memory.clone().step_by(PAGE as usize).collect();
            // Any of these may fail.
            let _ = match random.u8(..8) {
                0..4 => calls::move_pages(parent, &pages, random.i32(..2)),
                4..7 => calls::advise_other(&pidfd, &memory, libc::MADV_PAGEOUT),
                _ => fs::write(format!("/proc/{parent}/clear_refs"), "4"),
            };
            thread::sleep(Duration::from_micros(random.u64(..1000)));
        }
    })
}

/// The number of pages of a buffer.
fn pages_of(buffer: u64) -> u64 {
    buffer % 4 + 1
}

/// The addresses of a buffer.
fn place(thread: u64, buffer: u64) -> Range<u64> {
    Buffer::place(thread * BUFFERS + buffer, pages_of(buffer))
}

/// The state of a thread, apart from its buffers.
struct Owner {
    random: fastrand::Rng,
    /// A file as large as the largest buffer, for mapping over buffers.
    file: File,
    /// A forked child that keeps the pages of that time in use.
    holder: Option<libc::pid_t>,
}

fn run_thread(
    figures: &Figures,
    plan: Plan,
    number: u64,
    cache: &Mutex<RegistrationCache<Adapter>>,
    stop: &AtomicBool,
) -> Outcome {
    let mut owner = Owner {
        random: fastrand::Rng::with_seed(plan.seed.wrapping_mul(THREADS).wrapping_add(number)),
        file: mem::memory_file(4)?,
        holder: None,
    };
    let buffers = (0..BUFFERS)
        .map(|buffer| Buffer::map(number * BUFFERS + buffer, pages_of(buffer)))
        .collect::<io::Result<Vec<_>>>()?;
    let (sender, mut receiver) = UnixStream::pair()?;
    let mut message = number << 48;
    let mut last = "nothing";
    while get(&figures.done) < plan.messages && !stop.load(Ordering::Relaxed) {
        let buffer = &buffers[owner.random.usize(..buffers.len())];
        let memory = buffer.home();
        if owner.random.bool() {
            last = owner.act(buffer)?;
        }
        // Write to the first page, and sometimes to another.
        let first = owner.random.u64(..4);
        for (index, page) in memory.clone().step_by(PAGE as usize).enumerate() {
            if index == 0 || index as u64 == first {
                message += 1;
                // SAFETY: The page is mapped, and belongs to this thread.
                unsafe { (page as *mut u64).write_volatile(message) };
            }
        }
        let mut arrived = vec![0; (memory.end - memory.start) as usize];
        {
            let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
            let key = cache.get(&memory)?;
            cache.adapter().send(key, &memory, &sender)?;
        }
        receiver.read_exact(&mut arrived)?;
        // SAFETY: The memory is mapped, and nobody but this thread writes to it.
        let mapped = unsafe { slice::from_raw_parts(memory.start as *const u8, arrived.len()) };
        if mapped != arrived {
            return Err(Failure::Failed(format!(
                "message {} was STALE: thread {number} sent it from {memory:#x?}; its last change \
                 of a mapping was: {last}",
                get(&figures.done)
            )));
        }
        add(&figures.done, 1);
    }
    Ok(())
}

impl Owner {
    /// Changes a buffer's mapping in a random way; returns which. The buffer is mapped and writable
    /// afterwards.
    fn act(&mut self, buffer: &Buffer) -> io::Result<&'static str> {
        const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
        let memory = buffer.home();
        let length = memory.end - memory.start;
        let advise = |advice| {
            // Some advice fails for shared memory.
            let _ = mem::advise(&memory, advice);
        };
        Ok(match self.random.u8(..20) {
            choice @ 0..5 => {
                let change = Change::ALL[usize::from(choice) + 1];
                buffer.change(change)?;
                advise(libc::MADV_MERGEABLE);
                change.name()
            }
            5 => {
                let (at, flags) = (Some(memory.start), libc::MAP_SHARED);
                mem::map(at, length, READ_WRITE, flags, Some(&self.file))?;
                "a shared mapping over it"
            }
            6 => {
                let (at, flags) = (Some(memory.start), libc::MAP_PRIVATE);
                mem::map(at, length, READ_WRITE, flags, Some(&self.file))?;
                "a private mapping of a file over it"
            }
            7 => {
                mem::punch_hole(&self.file, 0..4)?;
                "a hole in the file"
            }
            8 => {
                let size = self.file.metadata()?.len();
                self.file.set_len(0)?;
                self.file.set_len(size)?;
                "truncation of the file"
            }
            9 => {
                mem::protect(&memory, libc::PROT_READ)?;
                mem::protect(&memory, READ_WRITE)?;
                "mprotect, and back"
            }
            10 => {
                mem::protect(&memory, libc::PROT_NONE)?;
                mem::protect(&memory, READ_WRITE)?;
                "mprotect(PROT_NONE), and back"
            }
            11 => {
                advise(libc::MADV_FREE);
                for page in memory.step_by(PAGE as usize) {
                    mem::write_byte(page, 1);
                }
                "MADV_FREE, and a write"
            }
            12 => {
                advise(libc::MADV_PAGEOUT);
                "MADV_PAGEOUT"
            }
            13 => {
                advise(libc::MADV_DONTFORK);
                advise(libc::MADV_DOFORK);
                "MADV_DONTFORK, and MADV_DOFORK"
            }
            14 => {
                let _ = mem::lock(&memory);
                // SAFETY: The call accesses no memory.
                unsafe { libc::munlock(memory.start as *const _, length as usize) };
                "mlock, and munlock"
            }
            15 => {
                let pages: Vec<u64> = memory.step_by(PAGE as usize).collect();
                let _ = calls::move_pages(0, &pages, self.random.i32(..2));
                "move_pages"
            }
            16 => {
                let _ = fs::write("/proc/self/clear_refs", "4");
                "clear_refs"
            }
            17 => {
                self.release();
                fork(false)?;
                "fork"
            }
            18 => {
                self.release();
                self.holder = Some(fork(true)?);
                "fork of a child that holds the pages"
            }
            _ => {
                self.release();
                "exit of that child"
            }
        })
    }

    /// Kills the child that holds pages, if there is one.
    fn release(&mut self) {
        if let Some(pid) = self.holder.take() {
            // SAFETY: The child has not been reaped, so the process ID is still its own.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            }
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.release();
    }
}

/// Forks a child that sleeps until it is killed or, unless `holds`, has exited and been reaped when
/// this returns.
fn fork(holds: bool) -> io::Result<libc::pid_t> {
    // SAFETY: The child calls only functions that may be called after a fork with several threads.
    unsafe {
        let pid = check(libc::fork())?;
        if pid == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if holds {
                loop {
                    libc::pause();
                }
            }
            libc::_exit(0);
        }
        if !holds {
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
        Ok(pid)
    }
}
