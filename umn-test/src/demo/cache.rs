// SPDX-License-Identifier: GPL-2.0

//! A cache of pinned memory that ummunotify keeps true; code to copy.
//!
//! To pin memory takes long, so that libraries leave it pinned after it was sent from: programs
//! tend to send from the same memory again. What is pinned are pages though, not addresses. Once a
//! program has freed the memory and got other pages at the same address, whoever still sends from
//! the pinned ones sends what was there before, and nothing fails. So a cache has to be told.
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
//! 4. When it is pinned, do 1 and 2 again. If an event for it is among those that have come since,
//!    the pages may be those from before the change. Drop it, and start over at 3.
//!
//! What a program sends while another of its threads changes the mapping may be the old or the
//! new pages; that is a bug in the program and the same without a cache. A change that was over
//! when [`RegistrationCache::get`] was called is always seen.

use std::{
    collections::HashMap,
    io,
    ops::Range, //
};

use super::adapter::{
    Adapter,
    Key, //
};
use crate::{
    device::{
        Counter,
        Device, //
    },
    uapi::{
        EVENT_INVAL,
        EVENT_LAST, //
    },
};

/// What a cache has done.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    /// Look-ups that found pinned memory.
    pub hits: u64,
    /// How often memory was pinned.
    pub pins: u64,
    /// How often memory was unpinned to make room.
    pub evictions: u64,
    /// How often the counter was loaded.
    pub loads: u64,
    /// How often it had moved.
    pub moved: u64,
    /// `read` calls that were made then.
    pub reads: u64,
}

/// Memory that is pinned, and watched.
struct Registration {
    memory: Range<u64>,
    key: Key,
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
pub struct RegistrationCache {
    adapter: Adapter,
    /// Without it, the cache believes that mappings never change.
    watch: Option<Watch>,
    /// By cookie, since this is what an event has.
    registrations: HashMap<u64, Registration>,
    /// The cookie of what is pinned at some addresses.
    cookies: HashMap<Range<u64>, u64>,
    free_keys: Vec<Key>,
    /// A cookie is used once, so that an event is never taken for one of a later registration.
    next_cookie: u64,
    /// Counts look-ups, to find out what was not used for the longest time.
    now: u64,
    counts: Counts,
}

impl RegistrationCache {
    /// Makes a cache for an adapter with `keys` keys, kept true by `device` if there is one.
    pub fn new(adapter: Adapter, keys: u16, device: Option<Device>) -> io::Result<Self> {
        Ok(Self {
            adapter,
            watch: device.map(Watch::new).transpose()?,
            registrations: HashMap::new(),
            cookies: HashMap::new(),
            free_keys: (0..keys).collect(),
            next_cookie: 1,
            now: 0,
            counts: Counts::default(),
        })
    }

    /// Returns the key for what is mapped at `memory`, which is valid until the next call.
    pub fn get(&mut self, memory: &Range<u64>) -> io::Result<Key> {
        self.now += 1;
        self.catch_up()?;
        if let Some(found) = self
            .cookies
            .get(memory)
            .and_then(|cookie| self.registrations.get_mut(cookie))
        {
            self.counts.hits += 1;
            found.last_use = self.now;
            return Ok(found.key);
        }
        loop {
            let cookie = self.register(memory)?;
            self.catch_up()?;
            // Unless it was dropped again, nothing has changed since before it was pinned.
            if let Some(new) = self.registrations.get(&cookie) {
                return Ok(new.key);
            }
        }
    }

    /// The adapter, to send with a key.
    pub fn adapter(&mut self) -> &mut Adapter {
        &mut self.adapter
    }

    /// What the cache has done so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Drops all that is not true any more.
    fn catch_up(&mut self) -> io::Result<()> {
        let Some(watch) = &mut self.watch else {
            return Ok(());
        };
        for cookie in watch.changed(&mut self.counts)? {
            self.drop_registration(cookie)?;
        }
        Ok(())
    }

    /// Watches and pins `memory`; returns its cookie.
    fn register(&mut self, memory: &Range<u64>) -> io::Result<u64> {
        let key = self.make_room()?;
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        if let Some(watch) = &self.watch {
            watch.device.register(memory.start, memory.end, cookie)?;
        }
        self.free_keys.pop();
        self.cookies.insert(memory.clone(), cookie);
        self.registrations.insert(
            cookie,
            Registration {
                memory: memory.clone(),
                key,
                last_use: self.now,
            },
        );

        if let Err(error) = self.adapter.pin(key, memory) {
            self.drop_registration(cookie)?;
            return Err(error);
        }
        self.counts.pins += 1;
        Ok(cookie)
    }

    /// Returns the key that is the next to be used; drops what was not used for the longest time
    /// if there is none.
    fn make_room(&mut self) -> io::Result<Key> {
        if self.free_keys.is_empty() {
            let oldest = self.registrations.iter().min_by_key(|(_, it)| it.last_use);
            if let Some((&cookie, _)) = oldest {
                self.counts.evictions += 1;
                self.drop_registration(cookie)?;
            }
        }
        self.free_keys
            .last()
            .copied()
            .ok_or_else(|| io::Error::other("the adapter has no keys"))
    }

    /// Unpins memory and stops to watch it.
    ///
    /// An event may name what is gone already, since it was read before that was dropped.
    fn drop_registration(&mut self, cookie: u64) -> io::Result<()> {
        let Some(old) = self.registrations.remove(&cookie) else {
            return Ok(());
        };
        self.cookies.remove(&old.memory);
        self.adapter.unpin(old.key)?;
        self.free_keys.push(old.key);
        match &self.watch {
            Some(watch) => watch.device.unregister(cookie),
            None => Ok(()),
        }
    }
}

/// An open file of the device, with all that has happened up to a value of its counter known.
struct Watch {
    device: Device,
    counter: Counter,
    seen: u64,
}

impl Watch {
    /// `device` is to be one that does not block.
    fn new(device: Device) -> io::Result<Self> {
        let counter = device.map_counter()?;
        Ok(Self {
            device,
            counter,
            seen: 0,
        })
    }

    /// Returns the cookies of the regions that were hit since the last call.
    fn changed(&mut self, counts: &mut Counts) -> io::Result<Vec<u64>> {
        /// As many events as are read with one call.
        const BATCH: usize = 64;

        counts.loads += 1;
        let now = self.counter.get();
        if now == self.seen {
            return Ok(Vec::new());
        }
        counts.moved += 1;
        let mut cookies = Vec::new();
        loop {
            counts.reads += 1;
            let events = match self.device.read_events(BATCH) {
                // The driver of 2010 has no LAST to tell where the only event there was went away
                // with its region. Up to `now` there is nothing else, then.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.seen = now;
                    return Ok(cookies);
                }
                result => result?,
            };
            let mut last = None;
            for event in events {
                match event.kind {
                    EVENT_INVAL => cookies.push(event.user_cookie_counter),
                    EVENT_LAST => last = Some(event.user_cookie_counter),
                    _ => {}
                }
            }
            if let Some(counter) = last {
                self.seen = counter;
                return Ok(cookies);
            }
        }
    }
}
