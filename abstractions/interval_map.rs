// SPDX-License-Identifier: GPL-2.0

//! A map from keys to values that belong to intervals, with a queue of some of its entries.

use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    ptr::NonNull, //
};

use kernel::{
    container_of,
    prelude::*, //
};

use super::{
    fifo::{
        Fifo,
        FifoLinks, //
    },
    interval_tree::{
        IntervalNode,
        IntervalTree, //
    },
    key_tree::{
        KeyNode,
        KeyTree, //
    },
    kmem_cache::{
        CacheBox,
        KmemCache, //
    }, //
};

/// What an entry is made of: one allocation, which is in all the indexes at once.
pub(crate) struct Node<K, T> {
    key: KeyNode<K>,
    interval: IntervalNode,
    links: FifoLinks,
    value: T,
}

/// Where the entries of [`IntervalMap`]s are allocated.
pub(crate) type NodeCache<K, T> = KmemCache<Node<K, T>>;

/// Memory for an entry of an [`IntervalMap`].
///
/// With it an entry can be inserted under a spinlock.
pub(crate) struct Reservation<K, T>(CacheBox<MaybeUninit<Node<K, T>>>);

impl<K, T> Reservation<K, T> {
    /// Allocates memory for one entry. May sleep.
    #[inline]
    pub(crate) fn new(cache: &NodeCache<K, T>) -> Result<Self> {
        Ok(Self(cache.alloc()?))
    }
}

/// An entry that is in no [`IntervalMap`]: it was removed from one, or could not be inserted.
///
/// Dropping it frees its memory, which can be left until a spinlock is released.
pub(crate) struct Removed<K, T> {
    _node: CacheBox<Node<K, T>>,
}

/// A map whose entries are found by a unique key, or by the interval they belong to.
///
/// Intervals may overlap and may be equal. Any of the entries may also be in a first-in first-out
/// queue. Each entry is one allocation. Finding, inserting and removing one costs O(log n),
/// queueing and dequeueing one O(1).
///
/// It is made of the kernel's red-black tree and interval tree.
///
/// # Invariants
///
/// - The nodes in `by_key` are the fields of a [`Node`] that came from [`CacheBox::into_raw`], and
///   belongs to this map alone.
/// - `by_interval` has exactly the intervals of these nodes.
/// - All links in `queue` are those of such nodes.
/// - `len` is the number of nodes.
pub(crate) struct IntervalMap<K: Ord, T> {
    by_key: KeyTree<K>,
    by_interval: IntervalTree,
    queue: Fifo,
    len: usize,
    _nodes: PhantomData<Node<K, T>>,
}

// SAFETY: The nodes belong to the map, and memory from a cache may be freed by any thread.
unsafe impl<K: Ord + Send, T: Send> Send for IntervalMap<K, T> {}

// The entries are in memory of their own, which does not move with the map.
impl<K: Ord, T> Unpin for IntervalMap<K, T> {}

impl<K: Ord, T> IntervalMap<K, T> {
    /// Creates an empty map.
    pub(crate) fn new() -> Self {
        // INVARIANT: There are no entries.
        Self {
            by_key: KeyTree::new(),
            by_interval: IntervalTree::new(),
            queue: Fifo::new(),
            len: 0,
            _nodes: PhantomData,
        }
    }

    /// Returns the number of entries.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Inserts an entry for the interval `start ..= last`, which is not queued.
    ///
    /// Where there is an entry with this key, it stays as it is, and the other one is handed back.
    #[inline]
    pub(crate) fn insert(
        &mut self,
        reservation: Reservation<K, T>,
        key: K,
        start: usize,
        last: usize,
        value: T,
    ) -> Result<(), Removed<K, T>> {
        let node = reservation.0.write(Node {
            key: KeyNode::new(key),
            interval: IntervalNode::new(start, last),
            links: FifoLinks::new(),
            value,
        });
        let node = node.into_raw();
        // INVARIANT: The node is added to both trees or to none of them.
        //
        // SAFETY: The node is new, so it is in no tree. It does not move in its memory, and
        // `remove` takes it out of the trees first; after `drop` no method is called.
        unsafe {
            if !self.by_key.insert(Node::key_of(node)) {
                return Err(Removed {
                    _node: CacheBox::from_raw(node),
                });
            }
            self.by_interval.insert(Node::interval_of(node));
        }
        self.len += 1;
        Ok(())
    }

    /// Removes the entry with this key, from the queue too, and returns it.
    #[inline]
    pub(crate) fn remove(&mut self, key: &K) -> Option<Removed<K, T>> {
        let found = self.by_key.find(key)?;
        // SAFETY: By the type invariants it is the field of a `Node`, which is in `by_interval`
        // too, and in no queue but `queue`. After this it is in none of them, and thus this one's
        // alone.
        unsafe {
            let node = Node::from_key(found);
            let links = Node::links_of(node);
            self.by_key.remove(found);
            self.by_interval.remove(Node::interval_of(node));
            if self.queue.contains(links) {
                self.queue.remove(links);
            }
            self.len -= 1;
            Some(Removed {
                _node: CacheBox::from_raw(node),
            })
        }
    }

    /// Calls `visit` for each entry whose interval has a position in common with `start ..= last`.
    ///
    /// Costs O(log n) for each such entry, and O(log n) where there is none.
    #[inline]
    pub(crate) fn for_each_overlap(
        &mut self,
        start: usize,
        last: usize,
        mut visit: impl FnMut(Entry<'_, K, T>),
    ) {
        let mut next = self.by_interval.first_overlap(start, last);
        while let Some(interval) = next {
            // SAFETY: By the type invariants, each node in `by_interval` is that of a `Node`.
            let node = unsafe { container_of!(interval.as_ptr(), Node<K, T>, interval) };
            visit(Entry {
                // SAFETY: It was made from a pointer that is not null.
                node: unsafe { NonNull::new_unchecked(node) },
                queue: &mut self.queue,
                _value: PhantomData,
            });
            // SAFETY: The node was found for the same interval, and is still in the tree: an
            // `Entry` cannot remove it.
            next = unsafe { self.by_interval.next_overlap(interval, start, last) };
        }
    }

    /// Returns the number of queued entries.
    #[inline]
    pub(crate) fn queue_len(&self) -> usize {
        self.queue.len()
    }

    /// Returns the entry at the front of the queue.
    #[inline]
    pub(crate) fn front(&self) -> Option<Queued<K, T>>
    where
        K: Copy,
        T: Copy,
    {
        // SAFETY: By the type invariants the links are those of a node of ours.
        self.queue.front().map(|links| unsafe { Queued::of(links) })
    }

    /// Takes the entry at the front out of the queue; returns `false` where there is none.
    #[inline]
    pub(crate) fn pop(&mut self) -> bool {
        let Some(links) = self.queue.front() else {
            return false;
        };
        // SAFETY: The links are in the queue.
        unsafe { self.queue.remove(links) };
        true
    }

    /// Takes entries out of the queue, from the front, and writes to `room` what `usual` makes of
    /// them, or else `other`. Ends where there is no more room, or no more entry.
    ///
    /// Returns what was written, and what can put the entries back. There are two functions since
    /// of one the compiler would make a single path, on which the usual case takes longer.
    #[inline]
    pub(crate) fn dequeue<'r, E>(
        &mut self,
        room: &'r mut [MaybeUninit<E>],
        usual: impl Fn(&Queued<K, T>) -> Option<E>,
        other: impl Fn(Queued<K, T>) -> E,
    ) -> (&'r [E], Dequeued<'_>)
    where
        K: Copy,
        T: Copy,
    {
        let first = self.queue.front();
        let count = self.queue.remove_first(room, |links, slot| {
            // SAFETY: By the type invariants the links are those of a node of ours.
            let queued = unsafe { Queued::of(links) };
            match usual(&queued) {
                Some(made) => slot.write(made),
                None => slot.write(other(queued)),
            };
        });
        // SAFETY: These were just written to.
        let made = unsafe { core::slice::from_raw_parts(room.as_ptr().cast(), count) };
        // INVARIANT: They were just taken out.
        let dequeued = Dequeued {
            queue: &mut self.queue,
            first,
            count,
        };
        (made, dequeued)
    }
}

/// Entries that were taken out of the queue of an [`IntervalMap`].
///
/// # Invariants
///
/// `count` entries were taken out of `queue` at once, and `first` are the links of the first one,
/// if there is one. The map has been borrowed since then.
pub(crate) struct Dequeued<'a> {
    queue: &'a mut Fifo,
    first: Option<NonNull<FifoLinks>>,
    count: usize,
}

impl Dequeued<'_> {
    /// Puts them back to where they were, but for the first `skip` of them.
    #[inline]
    pub(crate) fn put_back(self, skip: usize) {
        if skip < self.count {
            // SAFETY: By the type invariants, as there is at least one. An entry cannot be removed
            // while its map is borrowed, so that the links are valid.
            unsafe {
                let first = self.first.unwrap_unchecked();
                self.queue.put_back(first, skip, self.count);
            }
        }
    }
}

impl<K: Ord, T> Drop for IntervalMap<K, T> {
    fn drop(&mut self) {
        self.by_key.drain(|key| {
            // SAFETY: By the type invariants the nodes came from `into_raw` and belong to the map,
            // which is going away.
            drop(unsafe { CacheBox::from_raw(Node::<K, T>::from_key(key)) });
        });
    }
}

impl<K, T> Node<K, T> {
    /// # Safety
    ///
    /// `node` must be valid.
    #[inline]
    unsafe fn key_of(node: NonNull<Self>) -> NonNull<KeyNode<K>> {
        // SAFETY: By the safety requirement the field is in bounds, so that it is not at null.
        unsafe { NonNull::new_unchecked(&raw mut (*node.as_ptr()).key) }
    }

    /// # Safety
    ///
    /// `node` must be valid.
    #[inline]
    unsafe fn interval_of(node: NonNull<Self>) -> NonNull<IntervalNode> {
        // SAFETY: As above.
        unsafe { NonNull::new_unchecked(&raw mut (*node.as_ptr()).interval) }
    }

    /// # Safety
    ///
    /// `node` must be valid.
    #[inline]
    unsafe fn links_of(node: NonNull<Self>) -> NonNull<FifoLinks> {
        // SAFETY: As above.
        unsafe { NonNull::new_unchecked(&raw mut (*node.as_ptr()).links) }
    }

    /// # Safety
    ///
    /// `key` must be that of a `Self`.
    #[inline]
    unsafe fn from_key(key: NonNull<KeyNode<K>>) -> NonNull<Self> {
        // SAFETY: By the safety requirement.
        unsafe { NonNull::new_unchecked(container_of!(key.as_ptr(), Self, key)) }
    }

    /// # Safety
    ///
    /// `links` must be those of a `Self`.
    #[inline]
    unsafe fn from_links(links: NonNull<FifoLinks>) -> NonNull<Self> {
        // SAFETY: By the safety requirement.
        unsafe { NonNull::new_unchecked(container_of!(links.as_ptr(), Self, links)) }
    }
}

/// An entry that is queued, as it is.
pub(crate) struct Queued<K, T> {
    /// Its key.
    pub(crate) key: K,
    /// First position inside the interval.
    pub(crate) start: usize,
    /// Last position inside the interval.
    pub(crate) last: usize,
    /// What belongs to the interval.
    pub(crate) value: T,
}

impl<K: Copy, T: Copy> Queued<K, T> {
    /// # Safety
    ///
    /// `links` must be those of a [`Node`] of a map that is borrowed.
    #[inline]
    unsafe fn of(links: NonNull<FifoLinks>) -> Self {
        // SAFETY: By the safety requirement. The node's links are accessed only by the queue,
        // through a cell.
        let node = unsafe { &*Node::<K, T>::from_links(links).as_ptr() };
        Self {
            key: *node.key.key(),
            start: node.interval.start(),
            last: node.interval.last(),
            value: node.value,
        }
    }
}

/// An entry of an [`IntervalMap`], to be changed.
///
/// # Invariants
///
/// `node` is in the map whose queue is `queue`, and borrowed from it.
pub(crate) struct Entry<'a, K, T> {
    node: NonNull<Node<K, T>>,
    queue: &'a mut Fifo,
    _value: PhantomData<&'a mut T>,
}

impl<K, T> Entry<'_, K, T> {
    /// Returns the first position inside the interval.
    #[inline]
    pub(crate) fn start(&self) -> usize {
        // SAFETY: The node is valid by the type invariant.
        unsafe { &(*self.node.as_ptr()).interval }.start()
    }

    /// Returns the last position inside the interval.
    #[inline]
    pub(crate) fn last(&self) -> usize {
        // SAFETY: The node is valid by the type invariant.
        unsafe { &(*self.node.as_ptr()).interval }.last()
    }

    /// Returns the value.
    #[inline]
    pub(crate) fn value(&mut self) -> &mut T {
        // SAFETY: The node is valid and borrowed by the type invariant.
        unsafe { &mut (*self.node.as_ptr()).value }
    }

    /// Returns whether the entry is queued.
    #[inline]
    pub(crate) fn is_queued(&self) -> bool {
        // SAFETY: The node is valid by the type invariant. By those of the map its links are in no
        // other queue.
        unsafe { self.queue.contains(Node::links_of(self.node)) }
    }

    /// Puts the entry at the back of the queue; returns `false` where it is queued already.
    #[inline]
    pub(crate) fn enqueue(&mut self) -> bool {
        if self.is_queued() {
            return false;
        }
        // SAFETY: The node is valid by the type invariant. Its links are in no queue, and stay
        // where they are until `IntervalMap::remove` takes them out.
        unsafe { self.queue.push_back(Node::links_of(self.node)) };
        true
    }
}

#[kernel::prelude::kunit_tests(interval_map)]
mod tests {
    use super::*;

    /// An entry of the list that a map is compared with.
    #[derive(Clone, Copy)]
    struct Listed {
        key: u64,
        start: usize,
        last: usize,
    }

    /// A map, and lists that are searched from end to end.
    struct Compared {
        map: IntervalMap<u64, u64>,
        list: KVec<Listed>,
        /// The keys of what is queued, in the order in which it was.
        queue: KVec<u64>,
        cache: NodeCache<u64, u64>,
        random: u64,
    }

    impl Compared {
        fn new() -> Result<Self> {
            Ok(Self {
                map: IntervalMap::new(),
                list: KVec::new(),
                queue: KVec::new(),
                cache: NodeCache::new(c"interval_map_test")?,
                random: 1,
            })
        }

        /// A number below `bound`: xorshift64.
        fn random(&mut self, bound: u64) -> u64 {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            self.random % bound
        }

        /// Inserts an entry; returns whether the map takes it as the list says it should.
        fn insert(&mut self, key: u64, start: usize, last: usize) -> Result<bool> {
            let is_new = self.list.iter().all(|listed| listed.key != key);
            let reservation = Reservation::new(&self.cache)?;
            let result = self.map.insert(reservation, key, start, last, !key);
            if is_new {
                self.list.push(Listed { key, start, last }, GFP_KERNEL)?;
            }
            Ok(result.is_ok() == is_new && self.map.len() == self.list.len())
        }

        fn remove(&mut self, key: u64) -> bool {
            let removed = self.map.remove(&key).is_some();
            let is_listed = self.list.iter().any(|listed| listed.key == key);
            self.list.retain(|listed| listed.key != key);
            self.queue.retain(|queued| *queued != key);
            removed == is_listed
                && self.map.len() == self.list.len()
                && self.map.queue_len() == self.queue.len()
        }

        /// Queues all that overlap; returns whether they are those of the list, sorted by start.
        fn queue(&mut self, start: usize, last: usize) -> Result<bool> {
            let Self {
                map, list, queue, ..
            } = self;
            queue.reserve(list.len(), GFP_KERNEL)?;
            let (mut found, mut previous, mut right) = (0, 0, true);
            map.for_each_overlap(start, last, |mut entry| {
                let key = !*entry.value();
                right &= list.iter().any(|listed| {
                    listed.key == key
                        && (listed.start, listed.last) == (entry.start(), entry.last())
                        && listed.start <= last
                        && start <= listed.last
                });
                right &= previous <= entry.start();
                previous = entry.start();
                let was_queued = queue.contains(&key);
                right &= entry.is_queued() == was_queued;
                right &= entry.enqueue() != was_queued;
                if !was_queued {
                    right &= queue.push_within_capacity(key).is_ok();
                }
                found += 1;
            });
            let overlap = |listed: &&Listed| listed.start <= last && start <= listed.last;
            Ok(right && found == list.iter().filter(overlap).count())
        }

        /// Takes some entries out of the queue, and puts some of these back; returns whether they
        /// are those that the list says.
        fn dequeue(&mut self, count: usize, skip: usize) -> bool {
            let Self {
                map, list, queue, ..
            } = self;
            let mut room = [const { MaybeUninit::uninit() }; 8];
            let entry =
                |queued: &Queued<u64, u64>| (queued.key, queued.value, queued.start, queued.last);
            // Some by one of the functions, and some by the other one.
            let (seen, dequeued) = map.dequeue(
                &mut room[..count],
                |queued| (queued.key & 1 == 0).then(|| entry(queued)),
                |queued| entry(&queued),
            );
            let right = seen.len() == count.min(queue.len())
                && seen
                    .iter()
                    .zip(queue.iter())
                    .all(|((key, value, start, last), queued)| {
                        key == queued
                            && *value == !*key
                            && list.iter().any(|listed| {
                                (listed.key, listed.start, listed.last) == (*key, *start, *last)
                            })
                    });
            let seen = seen.len();
            dequeued.put_back(skip);
            for _ in 0..skip.min(seen) {
                let _ = queue.remove(0);
            }
            right && map.queue_len() == queue.len()
        }
    }

    #[test]
    fn agrees_with_a_list() -> Result {
        let mut compared = Compared::new()?;
        let mut wrong = 0;
        for _ in 0..5_000 {
            let key = compared.random(200);
            let start = compared.random(1000) as usize;
            let last = start + compared.random(50) as usize;
            let right = match compared.random(8) {
                0..=3 => compared.insert(key, start, last)?,
                4 | 5 => compared.remove(key),
                6 => compared.queue(start, last)?,
                _ => {
                    let (count, skip) = (compared.random(8), compared.random(8));
                    compared.dequeue(count as usize, skip as usize)
                }
            };
            wrong += usize::from(!right);
        }
        assert_eq!(wrong, 0);
        Ok(())
    }

    #[test]
    fn keeps_its_balance() -> Result {
        let mut compared = Compared::new()?;
        // In order, which a tree that is not balanced likes least.
        for key in 0..1000 {
            let start = key as usize * 2;
            assert!(compared.insert(key, start, start)?);
        }
        assert!(compared.queue(0, usize::MAX)?);
        for key in (0..1000).rev() {
            assert!(compared.remove(key));
        }
        assert!(compared.dequeue(1, 1));
        Ok(())
    }

    #[test]
    fn intervals_may_be_equal_and_extreme() -> Result {
        let mut compared = Compared::new()?;
        for (key, start, last) in [
            (0, 0, usize::MAX),
            (u64::MAX, 0, usize::MAX),
            (1, usize::MAX, usize::MAX),
            (2, 0, 0),
            (3, 5, 5),
            (4, 5, 5),
        ] {
            assert!(compared.insert(key, start, last)?);
        }
        for (start, last) in [(0, 0), (5, 5), (6, 6), (usize::MAX, usize::MAX), (4, 6)] {
            assert!(compared.queue(start, last)?);
            assert!(compared.dequeue(7, 7));
        }
        assert!(compared.insert(3, 9, 9)?);
        Ok(())
    }

    #[test]
    fn what_is_dropped_is_freed() -> Result {
        // The cache complains when it is dropped, unless all of its memory was freed before.
        let mut compared = Compared::new()?;
        for key in 0..100 {
            compared.insert(key, 0, key as usize)?;
        }
        assert!(compared.queue(0, 0)?);
        let Compared { map, cache, .. } = compared;
        let spare: Reservation<u64, u64> = Reservation::new(&cache)?;
        drop(spare);
        drop(map);
        drop(cache);
        Ok(())
    }
}
