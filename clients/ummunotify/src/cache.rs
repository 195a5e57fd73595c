// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! A cache of pinned memory that ummunotify keeps true; to use, or to copy.
//!
//! Pinning memory takes long, so libraries leave it pinned after it was sent from: programs tend to
//! send from the same memory again. But pages are pinned, not addresses. Once a program has freed
//! the memory and got other pages at the same address, whoever still sends from the pinned ones
//! sends what was there before, and nothing fails. So a cache has to be told.
//!
//! # The protocol
//!
//! 1. Before each look-up, compare the mapped counter with its value at the last one. It has moved
//!    before the system call that changed a mapping returns, so if it stands still, all that is in
//!    the cache is true. This is one load.
//! 2. If it has moved, read events up to LAST, drop what they name, and keep the value of the
//!    counter that LAST carries.
//! 3. What is not in the cache is registered with ummunotify **first**, and pinned **after that**.
//!    The other way round a change between the two would be missed, and the old pages used for
//!    ever.
//! 4. When it is pinned, do 1 and 2 again. If there is an event for it, the pages may be those from
//!    before the change. Pin it **again before** the first pin is dropped, and repeat this step.
//!    Some ways to pin change mappings themselves, for example by splitting a huge page. While the
//!    first pin is held the second has nothing left to change, so two rounds are enough.
//! 5. Memory that still changes after some rounds, or that cannot be watched because a limit is
//!    reached, is pinned for one use and not kept.
//!
//! What a program sends while another of its threads changes the mapping may be the old or the
//! new pages; that is a bug in the program and the same without a cache. A change that was over
//! when [`RegistrationCache::get`] was called is always seen.

use std::{
    collections::HashMap,
    io,
    ops::Range, //
};

use crate::Watcher;

/// Something that can pin memory of this process, such as a network adapter.
pub trait Pin {
    /// Names pinned memory, as an `lkey` does.
    type Key: Copy;

    /// Pins the pages that are mapped at `memory` now. The same memory may be pinned twice.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from doing so; the caller of [`RegistrationCache::get`] gets it.
    fn pin(&mut self, memory: &Range<u64>) -> io::Result<Self::Key>;

    /// Lets go of the pages that are known as `key`.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from doing so; the caller of [`RegistrationCache::get`] gets it.
    fn unpin(&mut self, key: Self::Key) -> io::Result<()>;
}

/// What a cache has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Look-ups that found pinned memory.
    pub hits: u64,
    /// How often memory was pinned.
    pub pins: u64,
    /// How often memory was unpinned to make room.
    pub evictions: u64,
    /// How often memory was pinned for one use.
    pub uncached: u64,
    /// How often the counter was loaded.
    pub loads: u64,
    /// How often it had moved.
    pub moved: u64,
    /// Changes that were read then.
    pub changes: u64,
}

/// Memory that is pinned, and watched.
struct Registration<K> {
    memory: Range<u64>,
    key: K,
    last_use: u64,
}

/// Keeps memory pinned, and knows when what is pinned is not what is mapped any more.
///
/// There is one for all threads of a process, behind a lock: then what one thread has pinned is of
/// use to the others. With it there is one open file of the device, whose events only the cache
/// reads.
///
/// A cache whose device fails is of no use any more, since events may be lost. That happens in a
/// forked child, where the device is still its parent's.
///
/// ```
/// use std::{io, ops::Range};
/// use ummunotify::{addresses, cache::{Pin, RegistrationCache}, Watcher};
///
/// /// Stands for an adapter. A real one pins what it is given.
/// struct Adapter(u32);
///
/// impl Pin for Adapter {
///     type Key = u32;
///     fn pin(&mut self, _: &Range<u64>) -> io::Result<u32> {
///         self.0 += 1;
///         Ok(self.0)
///     }
///     fn unpin(&mut self, _: u32) -> io::Result<()> {
///         Ok(())
///     }
/// }
///
/// # fn main() -> io::Result<()> {
/// # if !ummunotify::is_present() { return Ok(()) }
/// let mut cache = RegistrationCache::new(Adapter(0), 100, Some(Watcher::open()?));
/// let buffer = vec![1u8; 1 << 20];
/// let memory = addresses(&buffer);
/// let key = cache.get(&memory)?;
/// assert_eq!(cache.get(&memory)?, key);
///
/// drop(buffer);
/// assert_ne!(cache.get(&memory)?, key);
/// # Ok(())
/// # }
/// ```
pub struct RegistrationCache<P: Pin> {
    adapter: P,
    capacity: usize,
    /// Without it, the cache believes that mappings never change.
    watcher: Option<Watcher>,
    /// By cookie, since this is what a change has.
    registrations: HashMap<u64, Registration<P::Key>>,
    /// The cookie of what is pinned at some addresses.
    cookies: HashMap<Range<u64>, u64>,
    /// What the last call has pinned for one use.
    once: Option<P::Key>,
    next_cookie: u64,
    /// Counts look-ups, to find out what was not used for the longest time.
    now: u64,
    counts: Counts,
}

impl<P: Pin> RegistrationCache<P> {
    /// How often memory is pinned that changes all the while.
    const ROUNDS: usize = 8;

    /// Makes a cache that keeps `capacity` pieces of memory pinned, for an adapter that can pin two
    /// more; kept true by `watcher` if there is one.
    pub fn new(adapter: P, capacity: usize, watcher: Option<Watcher>) -> Self {
        Self {
            adapter,
            capacity,
            watcher,
            registrations: HashMap::new(),
            cookies: HashMap::new(),
            once: None,
            next_cookie: 1,
            now: 0,
            counts: Counts::default(),
        }
    }

    /// Returns the key for what is mapped at `memory`, which is valid until the next call.
    ///
    /// # Errors
    ///
    /// Those of the adapter. An error of the device means that the cache must not be used any more.
    pub fn get(&mut self, memory: &Range<u64>) -> io::Result<P::Key> {
        self.now += 1;
        if let Some(key) = self.once.take() {
            self.adapter.unpin(key)?;
        }
        self.catch_up(None)?;
        if let Some(found) = self
            .cookies
            .get(memory)
            .and_then(|cookie| self.registrations.get_mut(cookie))
        {
            self.counts.hits += 1;
            found.last_use = self.now;
            return Ok(found.key);
        }
        self.make_room()?;
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        if let Some(watcher) = &self.watcher {
            match watcher.watch(memory.clone(), cookie) {
                Ok(()) => {}
                Err(error) if is_limit(&error) => return self.pin_once(memory),
                Err(error) => return Err(error),
            }
        }
        match self.pin_watched(memory, cookie) {
            Ok(Some(key)) => Ok(key),
            Ok(None) => {
                self.unwatch(cookie)?;
                self.pin_once(memory)
            }
            Err(error) => {
                self.unwatch(cookie)?;
                Err(error)
            }
        }
    }

    /// The adapter, to send with a key.
    pub fn adapter(&mut self) -> &mut P {
        &mut self.adapter
    }

    /// What the cache has done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Pins what is watched as `cookie`, and keeps it if what is pinned is what is mapped.
    fn pin_watched(&mut self, memory: &Range<u64>, cookie: u64) -> io::Result<Option<P::Key>> {
        let mut key = self.pin(memory)?;
        for _ in 0..Self::ROUNDS {
            if !self.catch_up(Some(cookie))? {
                // Nothing has changed since before it was pinned.
                self.cookies.insert(memory.clone(), cookie);
                let registration = Registration {
                    memory: memory.clone(),
                    key,
                    last_use: self.now,
                };
                self.registrations.insert(cookie, registration);
                return Ok(Some(key));
            }
            let older = key;
            let pinned = self.pin(memory);
            self.adapter.unpin(older)?;
            key = pinned?;
        }
        self.adapter.unpin(key)?;
        Ok(None)
    }

    fn pin_once(&mut self, memory: &Range<u64>) -> io::Result<P::Key> {
        let key = self.pin(memory)?;
        self.counts.uncached += 1;
        self.once = Some(key);
        Ok(key)
    }

    fn pin(&mut self, memory: &Range<u64>) -> io::Result<P::Key> {
        let key = self.adapter.pin(memory)?;
        self.counts.pins += 1;
        Ok(key)
    }

    /// Drops all that is not true any more. Returns whether the region `new`, which is not in the
    /// cache yet, has changed.
    fn catch_up(&mut self, new: Option<u64>) -> io::Result<bool> {
        let mut new_changed = false;
        self.counts.loads += 1;
        if !self.watcher.as_ref().is_some_and(Watcher::changed) {
            return Ok(false);
        }
        self.counts.moved += 1;
        while let Some(change) = self
            .watcher
            .as_mut()
            .map_or(Ok(None), Watcher::next_change)?
        {
            self.counts.changes += 1;
            if new == Some(change.cookie()) {
                new_changed = true;
            } else {
                self.drop_registration(change.cookie())?;
            }
        }
        Ok(new_changed)
    }

    /// Drops what was not used for the longest time if the cache is full.
    fn make_room(&mut self) -> io::Result<()> {
        if self.registrations.len() < self.capacity {
            return Ok(());
        }
        let oldest = self.registrations.iter().min_by_key(|(_, it)| it.last_use);
        if let Some((&cookie, _)) = oldest {
            self.counts.evictions += 1;
            self.drop_registration(cookie)?;
        }
        Ok(())
    }

    /// Unpins memory and stops watching it.
    fn drop_registration(&mut self, cookie: u64) -> io::Result<()> {
        let Some(old) = self.registrations.remove(&cookie) else {
            return Ok(());
        };
        self.cookies.remove(&old.memory);
        self.unwatch(cookie)?;
        self.adapter.unpin(old.key)
    }

    fn unwatch(&mut self, cookie: u64) -> io::Result<()> {
        match &mut self.watcher {
            Some(watcher) => watcher.unwatch(cookie),
            None => Ok(()),
        }
    }
}

/// Whether no more can be watched, though all that is watched is fine.
fn is_limit(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOSPC))
}
