// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! A cache of pinned memory that ummunotify keeps coherent. Use it, or copy it.
//!
//! Pinning memory is slow, so libraries leave it pinned after sending from it: programs tend to
//! send from the same memory again. But pages are pinned, not addresses. When a program has freed
//! the memory and gets other pages at the same address, sending from the pinned pages sends old
//! data, and no call fails. So a cache must be notified of such changes.
//!
//! # The protocol
//!
//! 1. Before each look-up, compare the mapped counter with its value at the last one. The counter
//!    moves before the system call that changed a mapping returns, so if it has not moved,
//!    everything in the cache is valid. This is one load.
//! 2. If it has moved, read events up to LAST, drop the registrations they name, and store the
//!    counter that LAST carries.
//! 3. To add memory to the cache, register it with ummunotify **first** and pin it **afterwards**.
//!    Otherwise a change in between would be missed, and the old pages used for ever.
//! 4. Then repeat steps 1 and 2. If there is an event for the new memory, the pinned pages may be
//!    those from before the change. Pin it **again before** releasing the first pin, and repeat
//!    this step. Some ways to pin change mappings themselves, for example by splitting a huge page.
//!    While the first pin is held, the second has nothing left to change, so two rounds are enough.
//! 5. Memory that still changes after several rounds, or that cannot be watched because a limit is
//!    reached, is pinned for one use and not cached.
//!
//! # Features
//!
//! With [`Features::CAUSE`], the cache ignores [`Causes::SAME_PAGES`]: changes of protections, such
//! as those by `fork` and NUMA balancing, leave the pinned pages mapped.
//!
//! With [`Features::STAMP`] as well, the cache checks before it drops a registration whether the
//! pages are still the same, as they are if the kernel tried to move them and failed. The order
//! matters:
//!
//! - In steps 3 and 4, memory is stamped before it is pinned **and** after it, and then the events
//!   are read. If there is none for the memory, no change has started since the last read. But a
//!   change that started earlier may still be in progress, and may replace a page between the pin and
//!   a stamp. If both stamps are equal it has not, and the stamp is that of the pinned pages. If they
//!   differ, the registration is cached without a stamp, and dropped by the first event. Stamping
//!   also reads from pages that are absent. This must come before the pin: a page that NUMA balancing
//!   marked before it was pinned stays inaccessible.
//! - In step 2, the event is read **first**, and the memory is stamped **afterwards**. So a change
//!   after the stamp has an event of its own. If the stamps are equal and the causes include
//!   neither [`Causes::UNMAP`] nor [`Causes::OTHER`], the pinned pages are the mapped ones. They
//!   were pinned all the time, so none of them can have been freed and allocated again.
//!
//! If a program sends while another of its threads changes the mapping, the old or the new pages
//! may be sent. That is a bug in the program, with or without a cache. A change that was complete
//! when [`RegistrationCache::get`] was called is always seen.

use std::{
    collections::HashMap,
    io,
    ops::Range, //
};

use crate::{
    Causes,
    Change,
    Stamp,
    Watcher, //
};

/// Something that can pin memory of this process, such as a network adapter.
pub trait Pin {
    /// Identifies pinned memory, like an `lkey`.
    type Key: Copy;

    /// Pins the pages that are mapped at `memory` now. The same memory may be pinned twice.
    ///
    /// # Errors
    ///
    /// Any; the caller of [`RegistrationCache::get`] gets it.
    fn pin(&mut self, memory: &Range<u64>) -> io::Result<Self::Key>;

    /// Releases the pages that were pinned as `key`.
    ///
    /// # Errors
    ///
    /// Any; the caller of [`RegistrationCache::get`] gets it.
    fn unpin(&mut self, key: Self::Key) -> io::Result<()>;
}

/// Statistics of a cache.
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
    /// How often the counter had moved.
    pub moved: u64,
    /// Changes that were read after it had moved.
    pub changes: u64,
    /// Registrations that were dropped because of a change.
    pub dropped: u64,
    /// Changes after which a registration was kept, because the pages were the same.
    pub kept: u64,
}

/// Pinned and watched memory.
struct Registration<K> {
    memory: Range<u64>,
    key: K,
    last_use: u64,
    /// The stamp of the pinned pages, if there is one.
    stamp: Option<Stamp>,
}

/// Keeps memory pinned, and finds out when other pages are mapped at its addresses.
///
/// Use one for all threads of a process, behind a lock, so that threads share pinned memory. It
/// needs one open file of the device, and must be the only reader of its events.
///
/// It uses the features of the watcher, and also works without any.
///
/// When the device has failed, the cache must not be used any more, since events may be lost. It
/// fails in a forked child, where the file still belongs to the parent.
///
/// ```
/// use std::{io, ops::Range};
/// use ummunotify::{addresses, cache::{Pin, RegistrationCache}, Features, Options, Watcher};
///
/// /// Stands for an adapter. A real one pins the memory.
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
/// let watcher = Watcher::new(Options::new().features(Features::ALL).open()?)?;
/// let mut cache = RegistrationCache::new(Adapter(0), 100, Some(watcher));
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
    /// Without it, the cache assumes that mappings never change.
    watcher: Option<Watcher>,
    /// By cookie, which each change carries.
    registrations: HashMap<u64, Registration<P::Key>>,
    /// The cookie of the memory pinned at some addresses.
    cookies: HashMap<Range<u64>, u64>,
    /// Memory that the last call has pinned for one use.
    once: Option<P::Key>,
    next_cookie: u64,
    /// Counts look-ups, to find the least recently used registration.
    now: u64,
    counts: Counts,
    #[cfg(feature = "faulty")]
    fault: Option<Fault>,
}

/// Bugs to put into a cache, for tests that must notice them.
#[cfg(feature = "faulty")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Ignores events whose only cause is [`Causes::CLEAR`].
    IgnoresClear,
    /// Stamps memory before it reads the events.
    StampsFirst,
}

impl<P: Pin> RegistrationCache<P> {
    /// How often to pin memory that keeps changing.
    const ROUNDS: usize = 8;

    /// Creates a cache that keeps up to `capacity` ranges pinned, with an adapter that can pin two
    /// more. A `watcher` keeps it coherent.
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
            #[cfg(feature = "faulty")]
            fault: None,
        }
    }

    /// Puts a bug into the cache.
    #[cfg(feature = "faulty")]
    pub fn break_by(&mut self, fault: Fault) {
        self.fault = Some(fault);
    }

    /// Returns a key for the pages mapped at `memory`, which is valid until the next call.
    ///
    /// # Errors
    ///
    /// Those of the adapter. After an error of the device, the cache must not be used any more.
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
            match watcher.watch_ignoring(memory.clone(), cookie, Causes::SAME_PAGES) {
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

    /// The statistics so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Pins the memory watched as `cookie`, and caches it if it has not changed meanwhile.
    fn pin_watched(&mut self, memory: &Range<u64>, cookie: u64) -> io::Result<Option<P::Key>> {
        let mut before = self.stamp(memory);
        let mut key = self.pin(memory)?;
        for _ in 0..Self::ROUNDS {
            let after = self.stamp(memory);
            let is_same = |(before, after): (Stamp, Stamp)| before.is_same(after);
            let stamp = after.filter(|_| before.zip(after).is_some_and(is_same));
            if !self.catch_up(Some(cookie))? {
                // Nothing has changed since before it was pinned.
                self.cookies.insert(memory.clone(), cookie);
                let registration = Registration {
                    memory: memory.clone(),
                    key,
                    last_use: self.now,
                    stamp,
                };
                self.registrations.insert(cookie, registration);
                return Ok(Some(key));
            }
            before = self.stamp(memory);
            let older = key;
            let pinned = self.pin(memory);
            self.adapter.unpin(older)?;
            key = pinned?;
        }
        self.adapter.unpin(key)?;
        Ok(None)
    }

    /// Returns the stamp of the pages that are mapped now, if there is a meaningful one.
    fn stamp(&self, memory: &Range<u64>) -> Option<Stamp> {
        let stamp = self.watcher.as_ref()?.stamp(memory.clone()).ok()??;
        (stamp.absent() == 0).then_some(stamp)
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

    /// Drops everything that is stale. Returns whether the region `new`, which is not in the cache
    /// yet, has changed.
    fn catch_up(&mut self, new: Option<u64>) -> io::Result<bool> {
        let mut new_changed = false;
        self.counts.loads += 1;
        if !self.watcher.as_ref().is_some_and(Watcher::changed) {
            return Ok(false);
        }
        self.counts.moved += 1;
        #[cfg(feature = "faulty")]
        let early = self.stamp_too_early();
        while let Some(change) = self
            .watcher
            .as_mut()
            .map_or(Ok(None), Watcher::next_change)?
        {
            self.counts.changes += 1;
            #[cfg(feature = "faulty")]
            if self.is_mistaken(&change, &early) {
                continue;
            }
            if new == Some(change.cookie()) {
                new_changed = true;
            } else if self.is_same(&change) {
                self.counts.kept += 1;
            } else if self.drop_registration(change.cookie())? {
                self.counts.dropped += 1;
            }
        }
        Ok(new_changed)
    }

    /// Whether the pinned pages are still mapped after a change.
    ///
    /// The event must have been read already, so that a later change has another one.
    fn is_same(&self, change: &Change) -> bool {
        if !change.may_keep_pages() {
            return false;
        }
        let Some(found) = self.registrations.get(&change.cookie()) else {
            return false;
        };
        let (Some(before), Some(now)) = (found.stamp, self.stamp(&found.memory)) else {
            return false;
        };
        before.is_same(now)
    }

    #[cfg(feature = "faulty")]
    fn stamp_too_early(&self) -> HashMap<u64, Option<Stamp>> {
        if self.fault != Some(Fault::StampsFirst) {
            return HashMap::new();
        }
        let all = self.registrations.iter();
        all.map(|(cookie, it)| (*cookie, self.stamp(&it.memory)))
            .collect()
    }

    #[cfg(feature = "faulty")]
    fn is_mistaken(&self, change: &Change, early: &HashMap<u64, Option<Stamp>>) -> bool {
        match self.fault {
            Some(Fault::IgnoresClear) => change.causes() == Causes::CLEAR,
            Some(Fault::StampsFirst) => {
                let before = self.registrations.get(&change.cookie());
                let before = before.and_then(|it| it.stamp);
                let seen = early.get(&change.cookie()).copied().flatten();
                let is_same = before.zip(seen).is_some_and(|(a, b)| a.is_same(b));
                is_same && !change.causes().intersects(Causes::UNMAP | Causes::OTHER)
            }
            None => false,
        }
    }

    /// Drops the least recently used registration if the cache is full.
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

    /// Unpins memory and stops watching it. Returns whether it was there.
    fn drop_registration(&mut self, cookie: u64) -> io::Result<bool> {
        let Some(old) = self.registrations.remove(&cookie) else {
            return Ok(false);
        };
        self.cookies.remove(&old.memory);
        self.unwatch(cookie)?;
        self.adapter.unpin(old.key)?;
        Ok(true)
    }

    fn unwatch(&mut self, cookie: u64) -> io::Result<()> {
        match &mut self.watcher {
            Some(watcher) => watcher.unwatch(cookie),
            None => Ok(()),
        }
    }
}

/// Whether the error is a limit: no more can be watched, but everything else still works.
fn is_limit(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOSPC))
}
