// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! Decides which registrations are valid.
//!
//! libfabric does not announce that it pins memory. It looks up a range and asks whether its
//! registration is valid. If it has no valid one, it pins the range and subscribes to it
//! **afterwards**. A change in between must not be missed. Two moments are known:
//!
//! - A range is *clean since* it was first watched, or since its last change was read.
//! - A thread last asked whether something is valid before it pinned. So memory that it subscribes
//!   to was *pinned after* it last asked.
//!
//! A registration is valid if it was pinned while the range was clean; otherwise it is doubtful.
//! The first subscription to a range is always doubtful, since nobody watched while it was pinned.
//! The first look-up answers "invalid", libfabric pins again, and from then on the registration is
//! valid. A range stays watched for a while after its last subscription has ended, so that this
//! happens once, and not after each change.
//!
//! If the driver has the features, changes that leave the pages in place are ignored, and memory is
//! stamped: before libfabric pins it, when it asks, and again when it subscribes. If both stamps are
//! equal, and nothing has changed in between, they are the stamp of the pinned pages. If the pages
//! still have that stamp after a change, the registration is valid; [`ummunotify::cache`] explains
//! the order.
//!
//! Moments are numbers. Several domains may subscribe to the same range and cannot be told apart,
//! so the one that pinned first counts.

use std::{
    cell::Cell,
    collections::{
        BTreeMap,
        HashMap, //
    },
    hash::{
        BuildHasherDefault,
        Hasher, //
    },
    io, mem,
    ops::Range,
    os::fd::{
        AsFd,
        AsRawFd,
        RawFd, //
    },
    sync::{
        atomic::{
            AtomicUsize,
            Ordering, //
        },
        Arc, //
    },
};

use ummunotify::{
    Causes,
    Stamp,
    Watcher, //
};

use crate::{
    counts::COUNTS,
    log::say, //
};

/// How many ranges without subscriptions stay watched.
const IDLE: usize = 4096;

/// A point in time; later ones are greater.
pub type Moment = u64;

thread_local! {
    /// When this thread last asked whether something is valid.
    static ASKED: Cell<Moment> = const { Cell::new(0) };
}

/// A range that has changed.
pub struct Change {
    cookie: u64,
    /// See [`ummunotify::Change::may_keep_pages`].
    may_keep_pages: bool,
}

/// The source of changes: the device, or a test.
pub trait Watch {
    /// Identifies the pages that are mapped.
    type Stamp: Copy;

    /// Like [`Watcher::watch_ignoring`], for causes that leave the pages mapped.
    fn watch(&self, range: Range<u64>, cookie: u64) -> io::Result<()>;
    /// Like [`Watcher::unwatch`].
    fn unwatch(&mut self, cookie: u64) -> io::Result<()>;
    /// Like [`Watcher::changed`].
    fn changed(&self) -> bool;
    /// Like [`Watcher::next_change`].
    fn next_change(&mut self) -> io::Result<Option<Change>>;
    /// Like [`Watcher::stamp_in_memory`], since libfabric's lock is held.
    fn stamp(&self, range: Range<u64>) -> Option<Self::Stamp>;
    /// Like [`Stamp::is_same`].
    fn is_same(one: Self::Stamp, other: Self::Stamp) -> bool;
}

impl Watch for Watcher {
    type Stamp = Stamp;

    fn watch(&self, range: Range<u64>, cookie: u64) -> io::Result<()> {
        self.watch_ignoring(range, cookie, Causes::SAME_PAGES)
    }

    fn unwatch(&mut self, cookie: u64) -> io::Result<()> {
        self.unwatch(cookie)
    }

    fn changed(&self) -> bool {
        self.changed()
    }

    fn next_change(&mut self) -> io::Result<Option<Change>> {
        Ok(self.next_change()?.map(|change| Change {
            cookie: change.cookie(),
            may_keep_pages: change.may_keep_pages(),
        }))
    }

    fn stamp(&self, range: Range<u64>) -> Option<Stamp> {
        self.stamp_in_memory(range).ok().flatten()
    }

    fn is_same(one: Stamp, other: Stamp) -> bool {
        one.is_same(other)
    }
}

/// A range that is subscribed to, or was recently.
struct Region<S> {
    range: Range<u64>,
    /// The number of subscriptions.
    users: u32,
    /// Whether the device watches it. If not, nothing is known about it.
    watched: bool,
    /// Whether it has changed since its first subscription.
    changed: bool,
    /// Whether libfabric has yet to be notified to drop it.
    to_drop: bool,
    clean_since: Moment,
    /// The moment after which its oldest pin was made.
    pinned_after: Moment,
    /// The stamp of everything that is pinned, if there is one.
    stamp: Option<S>,
    /// When a thread last asked whether it is valid, and its stamp at that moment.
    asked: Option<(Moment, S)>,
    /// When its last subscription ended, if it has none.
    idle_since: Moment,
}

impl<S> Region<S> {
    fn is_true(&self) -> bool {
        self.watched && self.clean_since <= self.pinned_after
    }

    fn is_doubtful(&self) -> bool {
        self.users > 0 && !self.is_true()
    }
}

/// All regions.
pub struct Regions<W: Watch> {
    watcher: W,
    /// By cookie; `None` if the cookie is free.
    regions: Vec<Option<Region<W::Stamp>>>,
    free: Vec<usize>,
    by_range: HashMap<(u64, u64), usize, BuildHasherDefault<Fold>>,
    idle: BTreeMap<Moment, usize>,
    /// Doubtful regions that libfabric has yet to be notified to drop.
    to_drop: Vec<usize>,
    now: Moment,
    /// Whether the device has failed.
    failed: bool,
    /// The number of doubtful regions in use. If it is 0 and nothing has changed, every look-up is
    /// valid.
    doubtful: Arc<AtomicUsize>,
}

impl Regions<Watcher> {
    /// The device's descriptor, to poll it.
    pub fn device(&self) -> RawFd {
        self.watcher.as_fd().as_raw_fd()
    }
}

/// Whether a registration may be used, and what to do otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It may be used.
    Valid,
    /// It must not be used.
    Invalid,
    /// It must not be used. Several caches have it, so it stays invalid until all of them have
    /// dropped it.
    InvalidForSeveral,
}

impl<W: Watch> Regions<W> {
    /// Creates an empty set. `now` must be no earlier than any moment of a previous one.
    pub fn new(watcher: W, doubtful: Arc<AtomicUsize>, now: Moment) -> Self {
        doubtful.store(0, Ordering::Release);
        Self {
            watcher,
            regions: Vec::new(),
            free: Vec::new(),
            by_range: HashMap::default(),
            idle: BTreeMap::new(),
            to_drop: Vec::new(),
            now,
            failed: false,
            doubtful,
        }
    }

    /// The present moment.
    pub fn now(&self) -> Moment {
        self.now
    }

    /// Whether the device has failed.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether libfabric has yet to be notified to drop something.
    pub fn has_to_drop(&self) -> bool {
        !self.to_drop.is_empty()
    }

    /// Reads what has changed. If the device fails, nothing is known from then on.
    pub fn catch_up(&mut self) {
        if !self.watcher.changed() || self.failed {
            return;
        }
        // A thread that asked before now may have pinned before the change.
        self.now += 1;
        loop {
            match self.watcher.next_change() {
                Ok(Some(change)) => self.changed(&change),
                Ok(None) => return,
                Err(error) => {
                    say!("the device failed: {error}; libfabric keeps no registrations any more");
                    self.failed = true;
                    // From now on, look-ups do not take the fast path.
                    self.doubtful.fetch_add(1, Ordering::Release);
                    return;
                }
            }
        }
    }

    /// Whether the registration of `range` may be used.
    pub fn is_valid(&mut self, range: Range<u64>) -> Answer {
        self.catch_up();
        ASKED.set(self.now);
        let cookie = self.by_range.get(&(range.start, range.end)).copied();
        let Some(cookie) = cookie.filter(|_| !self.failed) else {
            return Answer::Invalid;
        };
        let Some(region) = self.regions.get_mut(cookie).and_then(Option::as_mut) else {
            return Answer::Invalid;
        };
        if region.is_true() {
            COUNTS.hits.add_one();
            return Answer::Valid;
        }
        // libfabric pins it next. Threads that asked earlier may have pinned it before the stamp.
        if let Some(stamp) = region.watched.then(|| self.watcher.stamp(range)).flatten() {
            self.now += 1;
            region.asked = Some((self.now, stamp));
            ASKED.set(self.now);
        }
        if region.changed {
            COUNTS.changed.add_one();
        } else {
            COUNTS.unproven.add_one();
        }
        if region.users > 1 {
            self.drop_later(cookie);
            return Answer::InvalidForSeveral;
        }
        Answer::Invalid
    }

    /// Adds a subscription to `range`, which was pinned.
    ///
    /// # Errors
    ///
    /// Those of the device. The registration must then not be cached, but `unsubscribe` must still
    /// be called.
    pub fn subscribe(&mut self, range: Range<u64>) -> io::Result<()> {
        COUNTS.registrations.add_one();
        let asked = ASKED.get();
        let stamp = self.stamp_pinned(&range, asked);
        self.catch_up();
        if self.failed {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let cookie = match self.by_range.get(&(range.start, range.end)) {
            Some(&cookie) => cookie,
            None => self.add(range),
        };
        let watched = self.watch(cookie);
        let mut was_idle = None;
        self.update(cookie, |it| {
            if it.users == 0 {
                was_idle = Some(it.idle_since);
                it.changed = false;
                it.to_drop = false;
                it.pinned_after = asked;
                it.stamp = stamp;
            }
            it.users += 1;
            it.pinned_after = it.pinned_after.min(asked);
            #[cfg(feature = "trust-first-pin")]
            {
                it.pinned_after = it.pinned_after.max(it.clean_since);
            }
            let is_that_of_all = |all| stamp.is_some_and(|stamp| W::is_same(all, stamp));
            let is_true = it.is_true();
            it.stamp = it.stamp.filter(|all| is_true && is_that_of_all(*all));
        });
        if let Some(since) = was_idle {
            self.idle.remove(&since);
        }
        watched
    }

    /// The stamp of the pages that a thread has pinned after it asked at `asked`, unless the range
    /// has changed meanwhile.
    fn stamp_pinned(&self, range: &Range<u64>, asked: Moment) -> Option<W::Stamp> {
        let cookie = *self.by_range.get(&(range.start, range.end))?;
        let (at, before) = self.regions.get(cookie)?.as_ref()?.asked?;
        let after = self.watcher.stamp(range.clone()).filter(|_| at <= asked)?;
        W::is_same(before, after).then_some(after)
    }

    /// Removes a subscription to `range`, whose registration will not be used any more.
    pub fn unsubscribe(&mut self, range: Range<u64>) {
        let Some(&cookie) = self.by_range.get(&(range.start, range.end)) else {
            return;
        };
        self.now += 1;
        let now = self.now;
        let mut watched = false;
        let mut users = 1;
        self.update(cookie, |it| {
            it.users = it.users.saturating_sub(1);
            it.idle_since = now;
            (users, watched) = (it.users, it.watched);
        });
        if users > 0 {
            return;
        }
        if !watched {
            self.remove(cookie);
            return;
        }
        self.idle.insert(now, cookie);
        if self.idle.len() > IDLE {
            self.forget_oldest();
        }
    }

    /// Takes the ranges that libfabric must drop.
    pub fn take_to_drop(&mut self) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        for cookie in mem::take(&mut self.to_drop) {
            if let Some(Some(region)) = self.regions.get_mut(cookie) {
                // It may have been pinned again in the meantime.
                if mem::take(&mut region.to_drop) && region.is_doubtful() {
                    ranges.push(region.range.clone());
                }
            }
        }
        ranges
    }

    /// Adds a region without subscriptions that is not watched.
    fn add(&mut self, range: Range<u64>) -> usize {
        let region = Region {
            range: range.clone(),
            users: 0,
            watched: false,
            changed: false,
            to_drop: false,
            clean_since: self.now,
            pinned_after: 0,
            stamp: None,
            asked: None,
            idle_since: Moment::MAX,
        };
        let cookie = self.free.pop().unwrap_or(self.regions.len());
        match self.regions.get_mut(cookie) {
            Some(place) => *place = Some(region),
            None => self.regions.push(Some(region)),
        }
        self.by_range.insert((range.start, range.end), cookie);
        cookie
    }

    /// Makes the device watch a region, unless it does already.
    fn watch(&mut self, cookie: usize) -> io::Result<()> {
        let Some(region) = self.regions.get(cookie).and_then(Option::as_ref) else {
            return Ok(());
        };
        if region.watched {
            return Ok(());
        }
        let range = region.range.clone();
        while let Err(error) = self.watcher.watch(range.clone(), cookie as u64) {
            // There may be room if an idle region is dropped.
            let is_limit = matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOSPC));
            if !is_limit || !self.forget_oldest() {
                COUNTS.refused.add_one();
                return Err(error);
            }
        }
        self.now += 1;
        let now = self.now;
        self.update(cookie, |it| {
            it.watched = true;
            it.clean_since = now;
        });
        Ok(())
    }

    /// Stops watching the region that has been idle for the longest time; returns whether there was
    /// one.
    fn forget_oldest(&mut self) -> bool {
        let Some((_, cookie)) = self.idle.pop_first() else {
            return false;
        };
        // An error does not matter: events with this cookie are ignored.
        let _ = self.watcher.unwatch(cookie as u64);
        self.remove(cookie);
        true
    }

    fn remove(&mut self, cookie: usize) {
        if let Some(region) = self.regions.get_mut(cookie).and_then(Option::take) {
            self.by_range
                .remove(&(region.range.start, region.range.end));
            self.free.push(cookie);
        }
    }

    /// Records that a region has changed. The event has been read.
    fn changed(&mut self, change: &Change) {
        let cookie = change.cookie as usize;
        COUNTS.events.add_one();
        if change.may_keep_pages && self.keeps_pages(cookie) {
            COUNTS.kept.add_one();
            return;
        }
        let now = self.now;
        self.update(cookie, |it| {
            it.clean_since = now;
            it.changed = true;
            it.stamp = None;
        });
        self.drop_later(cookie);
    }

    /// Whether the pinned pages are still mapped.
    fn keeps_pages(&self, cookie: usize) -> bool {
        let Some(region) = self.regions.get(cookie).and_then(Option::as_ref) else {
            return false;
        };
        let (true, Some(before)) = (region.users > 0, region.stamp) else {
            return false;
        };
        let now = self.watcher.stamp(region.range.clone());
        now.is_some_and(|now| W::is_same(before, now))
    }

    fn drop_later(&mut self, cookie: usize) {
        if let Some(Some(region)) = self.regions.get_mut(cookie) {
            if region.is_doubtful() && !region.to_drop {
                region.to_drop = true;
                self.to_drop.push(cookie);
            }
        }
    }

    /// Changes a region, and maintains the number of doubtful ones.
    fn update(&mut self, cookie: usize, change: impl FnOnce(&mut Region<W::Stamp>)) {
        let Some(Some(region)) = self.regions.get_mut(cookie) else {
            return;
        };
        let before = region.is_doubtful();
        change(region);
        // The release pairs with the acquire of a look-up. The watcher marks the counter as read
        // only after this, so a thread that finds the counter unchanged still finds this region
        // among the doubtful ones.
        match (before, region.is_doubtful()) {
            (false, true) => self.doubtful.fetch_add(1, Ordering::Release),
            (true, false) => self.doubtful.fetch_sub(1, Ordering::Release),
            _ => return,
        };
    }
}

/// A fast hash for pairs of addresses, whose collisions nobody can profit from.
#[derive(Default)]
pub struct Fold(u64);

impl Hasher for Fold {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9E37_79B9_7F4A_7C15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::{
        cell::RefCell,
        collections::{
            BTreeSet,
            VecDeque, //
        },
        sync::Mutex,
        thread, //
    };

    use super::*;

    /// Takes the place of the device: a test says what changes.
    #[derive(Default)]
    struct Fake {
        watched: RefCell<BTreeSet<u64>>,
        changes: VecDeque<Change>,
        /// What is mapped, wherever that is.
        mapped: u64,
        has_stamps: bool,
        limit: Option<usize>,
        fails: bool,
    }

    impl Watch for Fake {
        type Stamp = u64;

        fn watch(&self, _: Range<u64>, cookie: u64) -> io::Result<()> {
            let mut watched = self.watched.borrow_mut();
            if self.limit.is_some_and(|limit| watched.len() >= limit) {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            assert!(watched.insert(cookie));
            Ok(())
        }

        fn unwatch(&mut self, cookie: u64) -> io::Result<()> {
            assert!(self.watched.borrow_mut().remove(&cookie));
            self.changes.retain(|it| it.cookie != cookie);
            Ok(())
        }

        fn changed(&self) -> bool {
            self.fails || !self.changes.is_empty()
        }

        fn next_change(&mut self) -> io::Result<Option<Change>> {
            if self.fails {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            Ok(self.changes.pop_front())
        }

        fn stamp(&self, _: Range<u64>) -> Option<u64> {
            self.has_stamps.then_some(self.mapped)
        }

        fn is_same(one: u64, other: u64) -> bool {
            one == other
        }
    }

    const ONE: Range<u64> = 0x1000..0x2000;
    const OTHER: Range<u64> = 0x8000..0x9000;

    fn regions() -> Regions<Fake> {
        ASKED.set(0);
        Regions::new(Fake::default(), Arc::default(), 0)
    }

    impl Regions<Fake> {
        fn doubtful(&self) -> usize {
            self.doubtful.load(Ordering::Relaxed)
        }

        fn change(&mut self, range: &Range<u64>) {
            self.watcher.mapped += 1;
            self.change_nothing(range, false);
        }

        /// An event that may have left the pages as they were, and has.
        fn change_nothing(&mut self, range: &Range<u64>, may_keep_pages: bool) {
            let cookie = self.by_range[&(range.start, range.end)] as u64;
            self.watcher.changes.push_back(Change {
                cookie,
                may_keep_pages,
            });
        }

        /// Does what libfabric does for a buffer; returns whether it was a hit.
        fn look_up(&mut self, range: &Range<u64>) -> bool {
            let known = self
                .by_range
                .get(&(range.start, range.end))
                .is_some_and(|it| self.regions[*it].as_ref().is_some_and(|it| it.users > 0));
            if known {
                if self.is_valid(range.clone()) == Answer::Valid {
                    return true;
                }
                self.unsubscribe(range.clone());
            }
            if self.subscribe(range.clone()).is_err() {
                self.unsubscribe(range.clone());
            }
            false
        }
    }

    #[test]
    fn what_was_pinned_before_it_was_watched_is_pinned_again() {
        let mut regions = regions();
        assert!(!regions.look_up(&ONE));
        assert_eq!(regions.doubtful(), 1);
        assert!(!regions.look_up(&ONE));
        assert_eq!(regions.doubtful(), 0);
        assert!(regions.look_up(&ONE));
        // This happens only once.
        regions.change(&ONE);
        assert!(!regions.look_up(&ONE));
        assert!(regions.look_up(&ONE));
    }

    #[test]
    fn a_change_between_pin_and_subscription_is_not_missed() {
        let mut regions = regions();
        regions.look_up(&ONE);
        assert_eq!(regions.is_valid(ONE), Answer::Invalid);
        regions.unsubscribe(ONE);
        // At this point, libfabric pins the range.
        regions.change(&ONE);
        regions.subscribe(ONE).unwrap();
        assert!(!regions.look_up(&ONE));
        assert!(regions.look_up(&ONE));
    }

    #[test]
    fn a_change_of_what_was_not_asked_for_is_not_missed() {
        let mut regions = regions();
        for range in [ONE, OTHER] {
            regions.look_up(&range);
            regions.look_up(&range);
        }
        // libfabric makes room, and later finds nothing to ask for.
        regions.unsubscribe(OTHER);
        assert!(regions.look_up(&ONE));
        // At this point, libfabric pins the other range.
        regions.change(&OTHER);
        regions.subscribe(OTHER).unwrap();
        assert!(!regions.look_up(&OTHER));
        assert!(regions.look_up(&OTHER));
    }

    #[test]
    fn a_thread_that_did_not_ask_is_not_believed() {
        let mut regions = regions();
        regions.look_up(&ONE);
        regions.look_up(&ONE);
        regions.unsubscribe(ONE);
        let regions = Mutex::new(regions);
        thread::scope(|scope| {
            scope.spawn(|| regions.lock().unwrap().subscribe(ONE).unwrap());
        });
        let mut regions = regions.into_inner().unwrap();
        assert!(!regions.look_up(&ONE));
        assert!(regions.look_up(&ONE));
    }

    #[test]
    fn of_several_the_oldest_counts() {
        let mut regions = regions();
        regions.subscribe(ONE).unwrap();
        regions.subscribe(ONE).unwrap();
        assert_eq!(regions.is_valid(ONE), Answer::InvalidForSeveral);
        regions.unsubscribe(ONE);
        regions.subscribe(ONE).unwrap();
        assert_eq!(regions.is_valid(ONE), Answer::InvalidForSeveral);
        // Until all of them were dropped.
        assert_eq!(regions.take_to_drop(), [ONE]);
        regions.unsubscribe(ONE);
        regions.unsubscribe(ONE);
        assert_eq!(regions.doubtful(), 0);
        regions.subscribe(ONE).unwrap();
        regions.subscribe(ONE).unwrap();
        assert_eq!(regions.is_valid(ONE), Answer::Valid);
    }

    fn regions_with_stamps() -> Regions<Fake> {
        let mut regions = regions();
        regions.watcher.has_stamps = true;
        regions.look_up(&ONE);
        regions.look_up(&ONE);
        regions
    }

    #[test]
    fn a_change_that_keeps_the_pages_keeps_the_registration() {
        let mut regions = regions_with_stamps();
        regions.change_nothing(&ONE, true);
        assert!(regions.look_up(&ONE));
        regions.watcher.mapped += 1;
        regions.change_nothing(&ONE, true);
        assert!(!regions.look_up(&ONE));
        assert!(regions.look_up(&ONE));
        // Equal stamps prove nothing after this cause.
        regions.change_nothing(&ONE, false);
        assert!(!regions.look_up(&ONE));
    }

    #[test]
    fn without_stamps_a_change_that_keeps_the_pages_does_not_count_as_one() {
        let mut regions = regions();
        regions.look_up(&ONE);
        regions.look_up(&ONE);
        regions.change_nothing(&ONE, true);
        assert!(!regions.look_up(&ONE));
    }

    #[test]
    fn pages_that_were_replaced_while_they_were_pinned_have_no_stamp() {
        let mut regions = regions_with_stamps();
        regions.change(&ONE);
        assert_eq!(regions.is_valid(ONE), Answer::Invalid);
        regions.unsubscribe(ONE);
        // At this point, the range is pinned. Then a change that began long ago takes effect,
        // without an event.
        regions.watcher.mapped += 1;
        regions.subscribe(ONE).unwrap();
        assert!(regions.look_up(&ONE));
        // Now there is its event, and the pages are those of the second stamp.
        regions.change_nothing(&ONE, true);
        assert!(!regions.look_up(&ONE));
    }

    #[test]
    fn a_stamp_is_that_of_all_that_is_pinned() {
        let mut regions = regions_with_stamps();
        // A thread that last asked before it was stamped pins it for another domain.
        ASKED.set(regions.regions[0].as_ref().unwrap().clean_since);
        regions.subscribe(ONE).unwrap();
        assert_eq!(regions.is_valid(ONE), Answer::Valid);
        regions.change_nothing(&ONE, true);
        assert_eq!(regions.is_valid(ONE), Answer::InvalidForSeveral);
    }

    #[test]
    fn a_stamp_of_another_thread_is_not_used() {
        let mut regions = regions_with_stamps();
        regions.change(&ONE);
        assert_eq!(regions.is_valid(ONE), Answer::Invalid);
        regions.unsubscribe(ONE);
        // At this point, the range is pinned, and a change that began long ago replaces its pages.
        // Then another thread asks.
        regions.watcher.mapped += 1;
        let regions = Mutex::new(regions);
        thread::scope(|scope| {
            scope.spawn(|| regions.lock().unwrap().is_valid(ONE));
        });
        let mut regions = regions.into_inner().unwrap();
        regions.subscribe(ONE).unwrap();
        regions.change_nothing(&ONE, true);
        assert!(!regions.look_up(&ONE));
    }

    #[test]
    fn only_what_is_not_true_is_dropped() {
        let mut regions = regions();
        for range in [ONE, OTHER] {
            regions.look_up(&range);
            regions.look_up(&range);
        }
        regions.change(&ONE);
        regions.change(&OTHER);
        // The other event, which comes first, is read, too.
        assert!(!regions.look_up(&OTHER));
        assert_eq!(regions.doubtful(), 1);
        assert!(regions.has_to_drop());
        assert_eq!(regions.take_to_drop(), [ONE]);
        assert!(!regions.has_to_drop());
    }

    #[test]
    fn what_cannot_be_watched_takes_the_place_of_what_is_idle() {
        let mut regions = regions();
        regions.watcher.limit = Some(1);
        regions.look_up(&ONE);
        assert!(!regions.look_up(&OTHER));
        assert!(!regions.look_up(&OTHER));
        assert!(!regions.by_range.contains_key(&(OTHER.start, OTHER.end)));
        assert_eq!(regions.doubtful(), 1);
        regions.unsubscribe(ONE);
        regions.look_up(&OTHER);
        regions.look_up(&OTHER);
        assert!(regions.look_up(&OTHER));
    }

    #[test]
    fn when_the_device_has_failed_nothing_is_true() {
        let mut regions = regions();
        regions.look_up(&ONE);
        regions.look_up(&ONE);
        assert!(regions.look_up(&ONE));
        regions.watcher.fails = true;
        assert!(!regions.look_up(&ONE));
        // Nobody trusts the counter alone.
        assert_ne!(regions.doubtful(), 0);
        assert!(regions.has_failed());
        assert!(!regions.look_up(&ONE));
        assert!(regions.subscribe(ONE).is_err());
    }

    #[test]
    fn not_too_many_stay_watched() {
        let mut regions = regions();
        for page in 0..2 * IDLE as u64 {
            let range = page << 12..(page + 1) << 12;
            regions.subscribe(range.clone()).unwrap();
            regions.unsubscribe(range);
        }
        assert_eq!(regions.watcher.watched.borrow().len(), IDLE);
        assert_eq!(regions.by_range.len(), IDLE);
        // The newest of them.
        let newest = |range: &(u64, u64)| range.0 >= (IDLE as u64) << 12;
        assert!(regions.by_range.keys().all(newest));
        assert!(regions.regions.len() <= IDLE + 1);
    }
}
