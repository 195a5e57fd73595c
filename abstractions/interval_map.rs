// SPDX-License-Identifier: GPL-2.0

//! A map from keys to values with intervals, and a queue of some of its entries.
//!
//! Each entry has a class. A search can be limited to some classes. Entries of other classes then
//! cost nothing.

use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    ptr::NonNull, //
};

use kernel::{
    container_of,
    prelude::*,
    sync::Arc, //
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

/// The memory of an entry: one allocation, which is in all indexes at once.
pub(crate) struct Node<K, T> {
    key: KeyNode<K>,
    interval: IntervalNode,
    links: FifoLinks,
    value: T,
    class: Class,
}

/// The number of classes.
const CLASSES: usize = 8;

/// The class of an entry.
///
/// # Invariants
///
/// It is below [`CLASSES`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Class(u8);

impl Class {
    /// Creates the class whose number is the lowest three bits of `number`.
    #[inline]
    pub(crate) const fn new(number: u8) -> Self {
        // INVARIANT: The mask ensures this.
        Self(number & (CLASSES - 1) as u8)
    }

    /// Returns an index below [`CLASSES`], in a way that needs no bounds check.
    #[inline]
    const fn index(self) -> usize {
        self.0 as usize % CLASSES
    }

    /// Returns the number of the class.
    #[inline]
    pub(crate) const fn number(self) -> u8 {
        self.0
    }
}

/// A set of classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Classes(u8);

impl Classes {
    /// No class.
    pub(crate) const NONE: Self = Self(0);

    /// All classes.
    pub(crate) const ALL: Self = Self(u8::MAX);

    /// Creates the set of the classes whose bits are set, bit 0 for class 0.
    pub(crate) const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Returns the bits of the classes, bit 0 for class 0.
    #[inline]
    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    /// Adds a class.
    #[inline]
    fn insert(&mut self, class: Class) {
        self.0 |= 1 << class.index();
    }

    /// Removes a class.
    #[inline]
    fn remove(&mut self, class: Class) {
        self.0 &= !(1 << class.index());
    }

    /// Returns the classes that are in both sets.
    #[inline]
    fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Removes the lowest class, and returns it.
    #[inline]
    fn pop(&mut self) -> Option<Class> {
        if self.0 == 0 {
            return None;
        }
        // INVARIANT: One of `CLASSES` bits is set.
        let class = Class(self.0.trailing_zeros() as u8);
        self.0 &= self.0 - 1;
        Some(class)
    }
}

/// The slab cache for entries of [`IntervalMap`]s.
pub(crate) type NodeCache<K, T> = KmemCache<Node<K, T>>;

/// Memory for an entry of an [`IntervalMap`].
///
/// It allows inserting an entry under a spinlock.
pub(crate) struct Reservation<'c, K, T> {
    node: CacheBox<'c, MaybeUninit<Node<K, T>>>,
    cache: &'c NodeCache<K, T>,
}

impl<'c, K, T> Reservation<'c, K, T> {
    /// The memory of an entry in bytes: the node, and the reference to the cgroup it is charged to.
    pub(crate) const SIZE: usize = size_of::<Node<K, T>>() + size_of::<usize>();

    /// Allocates memory for one entry. May sleep.
    #[inline]
    pub(crate) fn new(cache: &'c NodeCache<K, T>) -> Result<Self> {
        let node = cache.alloc()?;
        Ok(Self { node, cache })
    }
}

/// An entry that is in no [`IntervalMap`]: it was removed from one, or could not be inserted.
///
/// Dropping it frees its memory, which the caller can do after releasing a spinlock.
pub(crate) struct Removed<'c, K, T> {
    _node: CacheBox<'c, Node<K, T>>,
}

/// Entries that were removed from an [`IntervalMap`] together.
///
/// Dropping it frees their memory, which the caller can do after releasing a spinlock.
///
/// # Invariants
///
/// All links in `nodes` are those of a [`Node`] that came from [`CacheBox::into_raw`], from a cache
/// that outlives `'c`, and that only this list owns.
pub(crate) struct RemovedList<'c, K, T> {
    nodes: Fifo,
    _nodes: PhantomData<(&'c (), Node<K, T>)>,
}

impl<K, T> Drop for RemovedList<'_, K, T> {
    fn drop(&mut self) {
        while let Some(links) = self.nodes.front() {
            // SAFETY: By the type invariants; the node is removed from the list before it is freed.
            unsafe {
                self.nodes.remove(links);
                drop(CacheBox::from_raw(Node::<K, T>::from_links(links)));
            }
        }
    }
}

/// The position of a walk over the entries that overlap an interval.
#[derive(Clone, Copy)]
struct Walk {
    /// The next node to visit in the current class, if any.
    next: Option<NonNull<IntervalNode>>,
    start: usize,
    last: usize,
    /// The classes still to be searched.
    left: Classes,
}

/// A map whose entries are found by a unique key, or by an interval.
///
/// Intervals may overlap and may be equal. Any entry may also be in a first-in, first-out queue.
/// Each entry is one allocation. Finding, inserting and removing one is O(log n), queueing and
/// dequeueing one is O(1).
///
/// It combines the kernel's red-black tree and interval tree.
///
/// # Invariants
///
/// - The nodes in `by_key` are the fields of a [`Node`] that came from [`CacheBox::into_raw`] and
///   that only this map owns.
/// - `by_interval` has exactly the intervals of these nodes, each in the tree of its class.
/// - `populated` are the classes of these nodes.
/// - All links in `queue` are those of such nodes.
/// - `walk.next`, if any, is in `by_interval`, and was found for the interval of `walk`.
/// - `len` is the number of nodes.
/// - All nodes came from `cache`.
pub(crate) struct IntervalMap<K: Ord, T> {
    by_key: KeyTree<K>,
    by_interval: [IntervalTree; CLASSES],
    populated: Classes,
    queue: Fifo,
    walk: Walk,
    len: usize,
    cache: Arc<NodeCache<K, T>>,
    _nodes: PhantomData<Node<K, T>>,
}

// SAFETY: The map owns the nodes, and any thread may free memory of a cache.
unsafe impl<K: Ord + Send, T: Send> Send for IntervalMap<K, T> {}

// The entries are in memory of their own, which does not move with the map.
impl<K: Ord, T> Unpin for IntervalMap<K, T> {}

impl<K: Ord, T> IntervalMap<K, T> {
    /// Creates an empty map for entries allocated from `cache`.
    pub(crate) fn new(cache: Arc<NodeCache<K, T>>) -> Self {
        // INVARIANT: There are no entries.
        Self {
            by_key: KeyTree::new(),
            by_interval: [const { IntervalTree::new() }; CLASSES],
            populated: Classes::NONE,
            queue: Fifo::new(),
            walk: Walk {
                next: None,
                start: 0,
                last: 0,
                left: Classes::NONE,
            },
            len: 0,
            cache,
            _nodes: PhantomData,
        }
    }

    /// Returns the number of entries.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the classes that have entries.
    #[inline]
    pub(crate) fn populated(&self) -> Classes {
        self.populated
    }

    /// Inserts an entry of this class for the interval `start ..= last`, which is not queued.
    ///
    /// Returns whether it is the only entry of its class. If there is already an entry with this
    /// key, it stays unchanged, and the new one is returned. It is also returned if its memory came
    /// from another cache.
    #[inline]
    pub(crate) fn insert<'c>(
        &mut self,
        reservation: Reservation<'c, K, T>,
        class: Class,
        key: K,
        start: usize,
        last: usize,
        value: T,
    ) -> Result<bool, Removed<'c, K, T>> {
        let is_ours = core::ptr::eq(reservation.cache, &*self.cache);
        let node = reservation.node.write(Node {
            key: KeyNode::new(key),
            interval: IntervalNode::new(start, last),
            links: FifoLinks::new(),
            value,
            class,
        });
        let node = node.into_raw();
        // INVARIANT: The node is added to both trees or to none of them.
        //
        // SAFETY: The node is new, so it is in no tree. It does not move in its memory, and
        // `remove` takes it out of the trees first; no method is called after `drop`.
        let is_only = unsafe {
            if !is_ours || !self.by_key.insert(Node::key_of(node)) {
                return Err(Removed {
                    _node: CacheBox::from_raw(node),
                });
            }
            let tree = &mut self.by_interval[class.index()];
            let is_only = tree.is_empty();
            tree.insert(Node::interval_of(node));
            is_only
        };
        if is_only {
            self.populated.insert(class);
        }
        self.len += 1;
        Ok(is_only)
    }

    /// Removes and returns the entry with this key, which is also removed from the queue.
    ///
    /// Does nothing unless `cache` is the one that the map was created with.
    #[inline]
    pub(crate) fn remove<'c>(
        &mut self,
        cache: &'c NodeCache<K, T>,
        key: &K,
    ) -> Option<Removed<'c, K, T>> {
        if !core::ptr::eq(cache, &*self.cache) {
            return None;
        }
        let found = self.by_key.find(key)?;
        // SAFETY: By the type invariants, it is the field of a `Node` that is also in the other
        // indexes. Only this function owns it after it was removed from them. It came from `cache`.
        unsafe {
            let node = Node::from_key(found);
            self.take_out(node);
            Some(Removed {
                _node: CacheBox::from_raw(node),
            })
        }
    }

    /// Removes a node from all indexes.
    ///
    /// # Safety
    ///
    /// `node` must belong to this map.
    // A call would cost `remove` 2 % of an UNREGISTER.
    #[inline(always)]
    unsafe fn take_out(&mut self, node: NonNull<Node<K, T>>) {
        // SAFETY: By the safety requirement and the type invariants, here and below.
        let (interval, class) = unsafe { (Node::interval_of(node), (*node.as_ptr()).class) };
        let tree = &mut self.by_interval[class.index()];
        if self.walk.next.is_some_and(|next| next == interval) {
            let Walk { start, last, .. } = self.walk;
            // SAFETY: As above; `walk.next` was found for this interval.
            self.walk.next = unsafe { IntervalTree::next_overlap(interval, start, last) };
        }
        // SAFETY: As above.
        unsafe {
            let links = Node::links_of(node);
            self.by_key.remove(Node::key_of(node));
            tree.remove(interval);
            if self.queue.contains(links) {
                self.queue.remove(links);
            }
        }
        if tree.is_empty() {
            self.populated.remove(class);
        }
        self.len -= 1;
    }

    /// Looks at `count` entries in the order of keys, beginning with the key `from`, and removes
    /// those that are not queued. Returns them, and the key to continue from if there are more
    /// entries.
    ///
    /// Does nothing unless `cache` is the one that the map was created with.
    pub(crate) fn remove_idle<'c>(
        &mut self,
        cache: &'c NodeCache<K, T>,
        from: &K,
        count: usize,
    ) -> (RemovedList<'c, K, T>, Option<K>)
    where
        K: Copy,
    {
        // INVARIANT: There are no nodes.
        let mut removed = RemovedList {
            nodes: Fifo::new(),
            _nodes: PhantomData,
        };
        if !core::ptr::eq(cache, &*self.cache) {
            return (removed, None);
        }
        let mut next = self.by_key.lower_bound(from);
        for _ in 0..count {
            let Some(key) = next else { break };
            // SAFETY: By the type invariants, the key is that of a node of this map. After its
            // removal, only the list uses its links. It came from `cache`.
            unsafe {
                next = self.by_key.next(key);
                let node = Node::<K, T>::from_key(key);
                let links = Node::links_of(node);
                if !self.queue.contains(links) {
                    self.take_out(node);
                    removed.nodes.push_back(links);
                }
            }
        }
        // SAFETY: The node is valid by the type invariants.
        let next = next.map(|key| unsafe { *key.as_ref().key() });
        (removed, next)
    }

    /// Removes all entries.
    pub(crate) fn take(&mut self) -> Self {
        let empty = Self::new(self.cache.clone());
        core::mem::replace(self, empty)
    }

    /// Returns whether an entry of this class overlaps `start ..= last`.
    #[inline]
    pub(crate) fn has_overlap(&mut self, class: Class, start: usize, last: usize) -> bool {
        let tree = &mut self.by_interval[class.index()];
        tree.first_overlap(start, last).is_some()
    }

    /// The same, of one of these classes.
    pub(crate) fn has_overlap_in(&mut self, classes: Classes, start: usize, last: usize) -> bool {
        let mut left = classes.and(self.populated);
        while let Some(class) = left.pop() {
            if self.has_overlap(class, start, last) {
                return true;
            }
        }
        false
    }

    /// Begins a walk over the entries of this class that overlap `start ..= last`: calls `visit`
    /// for up to `most` of them.
    ///
    /// Returns whether these were all. If not, [`Self::go_on`] visits the next ones. An earlier
    /// walk is abandoned.
    ///
    /// Entries may be inserted and removed during a walk. Each entry that is present all the time
    /// is visited exactly once, in the order of starts. Costs O(log n) for each entry, and O(log n)
    /// if there is none.
    #[inline]
    pub(crate) fn walk(
        &mut self,
        class: Class,
        start: usize,
        last: usize,
        most: usize,
        visit: impl FnMut(Entry<'_, K, T>),
    ) -> bool {
        let next = self.by_interval[class.index()].first_overlap(start, last);
        // SAFETY: The node was found for this interval.
        let (next, _) = unsafe { self.visit(next, start, last, most, visit) };
        if next.is_none() {
            return true;
        }
        let left = Classes::NONE;
        // INVARIANT: The node was found for this interval.
        self.walk = Walk {
            next,
            start,
            last,
            left,
        };
        false
    }

    /// The same for the entries of several classes, one class after the other.
    pub(crate) fn walk_in(
        &mut self,
        classes: Classes,
        start: usize,
        last: usize,
        most: usize,
        visit: impl FnMut(Entry<'_, K, T>),
    ) -> bool {
        // INVARIANT: There is no node yet.
        self.walk = Walk {
            next: None,
            start,
            last,
            left: classes.and(self.populated),
        };
        self.go_on(most, visit)
    }

    /// Calls `visit` for up to `most` further entries of the walk; returns whether these were the
    /// last.
    pub(crate) fn go_on(
        &mut self,
        mut most: usize,
        mut visit: impl FnMut(Entry<'_, K, T>),
    ) -> bool {
        loop {
            let Walk {
                next, start, last, ..
            } = self.walk;
            // SAFETY: The node was found for this interval, by the type invariants.
            let (next, left) = unsafe { self.visit(next, start, last, most, &mut visit) };
            // INVARIANT: This one was, too.
            self.walk.next = next;
            if next.is_some() {
                return false;
            }
            most = left;
            let Some(class) = self.walk.left.pop() else {
                return true;
            };
            // INVARIANT: The node is found for this interval.
            self.walk.next = self.by_interval[class.index()].first_overlap(start, last);
        }
    }

    /// Visits up to `most` nodes of a class, beginning with `next`. Returns the node after them,
    /// and the number of visits that were left.
    ///
    /// # Safety
    ///
    /// `next` must be in a tree of this map, and have been found for `start ..= last`.
    #[inline(always)]
    unsafe fn visit(
        &mut self,
        mut next: Option<NonNull<IntervalNode>>,
        start: usize,
        last: usize,
        most: usize,
        mut visit: impl FnMut(Entry<'_, K, T>),
    ) -> (Option<NonNull<IntervalNode>>, usize) {
        for visited in 0..most {
            let Some(interval) = next else {
                return (None, most - visited);
            };
            // SAFETY: By the type invariants, each node in `by_interval` is the field of a `Node`.
            let node = unsafe { container_of!(interval.as_ptr(), Node<K, T>, interval) };
            visit(Entry {
                // SAFETY: The pointer was derived from one that is not null.
                node: unsafe { NonNull::new_unchecked(node) },
                queue: &mut self.queue,
                _value: PhantomData,
            });
            // SAFETY: The node was found for the same interval, and is still in its tree: an
            // `Entry` cannot remove it.
            next = unsafe { IntervalTree::next_overlap(interval, start, last) };
        }
        (next, 0)
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

    /// Removes the entry at the front of the queue; returns `false` if there is none.
    #[inline]
    pub(crate) fn pop(&mut self) -> bool {
        self.queue.remove_first(&mut [()], |_, ()| ()) == 1
    }

    /// Removes entries from the front of the queue, converts each with `usual` or, if that returns
    /// `None`, with `other`, and writes the results to `room`. Stops when the room or the queue is
    /// used up.
    ///
    /// Returns what was written, and an object that can put the entries back. There are two
    /// functions because the compiler would turn a single one into one path, on which the usual
    /// case takes longer.
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
        // SAFETY: These elements were just written.
        let made = unsafe { core::slice::from_raw_parts(room.as_ptr().cast(), count) };
        // INVARIANT: They were just removed.
        let dequeued = Dequeued {
            queue: &mut self.queue,
            first,
            count,
        };
        (made, dequeued)
    }
}

/// Entries that were removed from the queue of an [`IntervalMap`].
///
/// # Invariants
///
/// `count` entries were removed from `queue` together, and `first` are the links of the first one,
/// if any. The map has been borrowed since then.
pub(crate) struct Dequeued<'a> {
    queue: &'a mut Fifo,
    first: Option<NonNull<FifoLinks>>,
    count: usize,
}

impl Dequeued<'_> {
    /// Puts them back in their places, except for the first `skip` of them.
    #[inline]
    pub(crate) fn put_back(self, skip: usize) {
        if skip < self.count {
            // SAFETY: By the type invariants, as there is at least one. No entry can be removed
            // while its map is borrowed, so the links are valid.
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
            // SAFETY: By the type invariants, the nodes came from `into_raw` and are owned by the
            // map, which is being dropped, and their cache outlives it.
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
        // SAFETY: By the safety requirement, the field is in bounds, so its address is not null.
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
    /// `key` must be the field of a `Self`.
    #[inline]
    unsafe fn from_key(key: NonNull<KeyNode<K>>) -> NonNull<Self> {
        // SAFETY: By the safety requirement.
        unsafe { NonNull::new_unchecked(container_of!(key.as_ptr(), Self, key)) }
    }

    /// # Safety
    ///
    /// `links` must be the field of a `Self`.
    #[inline]
    unsafe fn from_links(links: NonNull<FifoLinks>) -> NonNull<Self> {
        // SAFETY: By the safety requirement.
        unsafe { NonNull::new_unchecked(container_of!(links.as_ptr(), Self, links)) }
    }
}

/// A queued entry.
pub(crate) struct Queued<K, T> {
    /// The key.
    pub(crate) key: K,
    /// First position of the interval.
    pub(crate) start: usize,
    /// Last position of the interval.
    pub(crate) last: usize,
    /// The value.
    pub(crate) value: T,
}

impl<K: Copy, T: Copy> Queued<K, T> {
    /// # Safety
    ///
    /// `links` must be the field of a [`Node`] of a borrowed map.
    #[inline]
    unsafe fn of(links: NonNull<FifoLinks>) -> Self {
        // SAFETY: By the safety requirement. Only the queue accesses the node's links, through a
        // cell.
        let node = unsafe { &*Node::<K, T>::from_links(links).as_ptr() };
        Self {
            key: *node.key.key(),
            start: node.interval.start(),
            last: node.interval.last(),
            value: node.value,
        }
    }
}

/// An entry of an [`IntervalMap`] that can be changed.
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
    /// Returns the first position of the interval.
    #[inline]
    pub(crate) fn start(&self) -> usize {
        // SAFETY: The node is valid by the type invariant.
        unsafe { &(*self.node.as_ptr()).interval }.start()
    }

    /// Returns the last position of the interval.
    #[inline]
    pub(crate) fn last(&self) -> usize {
        // SAFETY: The node is valid by the type invariant.
        unsafe { &(*self.node.as_ptr()).interval }.last()
    }

    /// Returns the class.
    #[inline]
    pub(crate) fn class(&self) -> Class {
        // SAFETY: The node is valid by the type invariant.
        unsafe { (*self.node.as_ptr()).class }
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
        // SAFETY: The node is valid by the type invariant. By those of the map, its links are in no
        // other queue.
        unsafe { self.queue.contains(Node::links_of(self.node)) }
    }

    /// Puts the entry at the back of the queue; returns `false` if it is queued already.
    #[inline]
    pub(crate) fn enqueue(&mut self) -> bool {
        if self.is_queued() {
            return false;
        }
        // SAFETY: The node is valid by the type invariant. Its links are in no queue, and stay in
        // place until `IntervalMap::remove` removes them.
        unsafe { self.queue.push_back(Node::links_of(self.node)) };
        true
    }
}

#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(ummunotify_interval_map)]
mod tests {
    use super::*;

    use crate::abstractions::kunit::{
        agree,
        expect_eq, //
    };

    /// An entry of the reference list.
    #[derive(Clone, Copy)]
    struct Listed {
        class: Class,
        key: u64,
        start: usize,
        last: usize,
    }

    /// A map, and lists with the same contents that are searched linearly.
    struct Compared {
        map: IntervalMap<u64, u64>,
        list: KVec<Listed>,
        /// The keys of queued entries, in order.
        queue: KVec<u64>,
        cache: Arc<NodeCache<u64, u64>>,
        random: u64,
    }

    impl Compared {
        fn new() -> Result<Self> {
            let cache = Arc::new(NodeCache::new(c"interval_map_test")?, GFP_KERNEL)?;
            Ok(Self {
                map: IntervalMap::new(cache.clone()),
                list: KVec::new(),
                queue: KVec::new(),
                cache,
                random: 1,
            })
        }

        /// Returns a pseudo-random number below `bound`: xorshift64.
        fn random(&mut self, bound: u64) -> u64 {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            self.random % bound
        }

        /// Inserts an entry; returns whether the map and the list agree on success.
        fn insert(&mut self, key: u64, start: usize, last: usize) -> Result<bool> {
            let class = Class::new(self.random(8) as u8);
            self.insert_as(class, key, start, last)
        }

        fn insert_as(&mut self, class: Class, key: u64, start: usize, last: usize) -> Result<bool> {
            let is_new = self.list.iter().all(|listed| listed.key != key);
            let reservation = Reservation::new(&self.cache)?;
            let result = self.map.insert(reservation, class, key, start, last, !key);
            if is_new {
                let listed = Listed {
                    class,
                    key,
                    start,
                    last,
                };
                self.list.push(listed, GFP_KERNEL)?;
            }
            Ok(agree("insert succeeds", result.is_ok(), is_new) && self.has_right_lengths())
        }

        /// Returns whether the map has as many entries as the lists, and of the same classes.
        fn has_right_lengths(&self) -> bool {
            let mut classes = Classes::NONE;
            self.list
                .iter()
                .for_each(|listed| classes.insert(listed.class));
            agree("entries", self.map.len(), self.list.len())
                && agree("queued entries", self.map.queue_len(), self.queue.len())
                && agree("classes", self.map.populated(), classes)
        }

        fn remove(&mut self, key: u64) -> bool {
            let removed = self.map.remove(&self.cache, &key).is_some();
            let is_listed = self.list.iter().any(|listed| listed.key == key);
            self.list.retain(|listed| listed.key != key);
            self.queue.retain(|queued| *queued != key);
            agree("remove finds an entry", removed, is_listed) && self.has_right_lengths()
        }

        /// Removes the idle ones of some entries; returns whether the map and the list agree.
        fn remove_idle(&mut self, from: u64, count: usize) -> bool {
            let mut keys = [u64::MAX; 8];
            let (count, mut found) = (count.min(keys.len()), 0);
            let mut above = from;
            while found < count {
                let lowest = self.list.iter().filter(|listed| listed.key >= above);
                let Some(key) = lowest.map(|listed| listed.key).min() else {
                    break;
                };
                keys[found] = key;
                found += 1;
                above = key + 1;
            }
            let after = self.list.iter().filter(|listed| listed.key >= above);
            let after = after.map(|listed| listed.key).min();
            let (removed, next) = self.map.remove_idle(&self.cache, &from, count);
            let before = self.list.len();
            let Self { list, queue, .. } = self;
            list.retain(|listed| {
                !keys[..found].contains(&listed.key) || queue.contains(&listed.key)
            });
            agree("removed entries", removed.nodes.len(), before - list.len())
                && (found < count || count == 0 || agree("the next key", next, after))
                && self.has_right_lengths()
        }

        /// Queues all overlapping entries of some classes, a few at a time; returns whether they
        /// are those of the list, sorted by class and start.
        fn queue(&mut self, classes: Classes, start: usize, last: usize) -> Result<bool> {
            let most = 1 + self.random(9) as usize;
            let Self {
                map, list, queue, ..
            } = self;
            queue.reserve(list.len(), GFP_KERNEL)?;
            let (mut found, mut previous, mut right) = (0, (0, 0), true);
            let overlaps = map.has_overlap_in(classes, start, last);
            let mut visit = |mut entry: Entry<'_, u64, u64>| {
                let key = !*entry.value();
                right &= list.iter().any(|listed| {
                    listed.key == key
                        && listed.class == entry.class()
                        && (listed.start, listed.last) == (entry.start(), entry.last())
                        && listed.start <= last
                        && start <= listed.last
                });
                right &= classes.bits() >> entry.class().number() & 1 == 1;
                let place = (entry.class().number(), entry.start());
                right &= previous <= place;
                previous = place;
                let was_queued = queue.contains(&key);
                right &= entry.is_queued() == was_queued;
                right &= entry.enqueue() != was_queued;
                if !was_queued {
                    right &= queue.push_within_capacity(key).is_ok();
                }
                found += 1;
            };
            let mut is_done = map.walk_in(classes, start, last, most, &mut visit);
            while !is_done {
                is_done = map.go_on(most, &mut visit);
            }
            let overlap = |listed: &&Listed| {
                classes.bits() >> listed.class.number() & 1 == 1
                    && listed.start <= last
                    && start <= listed.last
            };
            Ok(agree("entries are those of the list", right, true)
                && agree("has_overlap", overlaps, found > 0)
                && agree(
                    "visited entries",
                    found,
                    list.iter().filter(overlap).count(),
                ))
        }

        /// Removes some entries from the queue, and puts some of these back; returns whether the
        /// map and the list agree.
        fn dequeue(&mut self, count: usize, skip: usize) -> bool {
            let Self {
                map, list, queue, ..
            } = self;
            let mut room = [const { MaybeUninit::uninit() }; 8];
            let entry =
                |queued: &Queued<u64, u64>| (queued.key, queued.value, queued.start, queued.last);
            // Some by one function, some by the other.
            let (seen, dequeued) = map.dequeue(
                &mut room[..count],
                |queued| (queued.key & 1 == 0).then(|| entry(queued)),
                |queued| entry(&queued),
            );
            let right = agree("dequeued entries", seen.len(), count.min(queue.len()))
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
            agree("dequeued entries are those of the list", right, true)
                && agree("queued entries", map.queue_len(), queue.len())
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
            let right = match compared.random(9) {
                0..=3 => compared.insert(key, start, last)?,
                4 | 5 => compared.remove(key),
                6 => {
                    let classes = Classes::from_bits(compared.random(256) as u8);
                    compared.queue(classes, start, last)?
                }
                7 => {
                    let count = compared.random(4) as usize;
                    compared.remove_idle(key, count)
                }
                _ => {
                    let (count, skip) = (compared.random(8), compared.random(8));
                    compared.dequeue(count as usize, skip as usize)
                }
            };
            wrong += usize::from(!right);
        }
        expect_eq!(wrong, 0);
        Ok(())
    }

    #[test]
    fn keeps_its_balance() -> Result {
        let mut compared = Compared::new()?;
        // In ascending order, which is the worst case for a tree without balancing.
        for key in 0..1000 {
            let start = key as usize * 2;
            assert!(compared.insert(key, start, start)?);
        }
        assert!(compared.queue(Classes::ALL, 0, usize::MAX)?);
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
            assert!(compared.queue(Classes::ALL, start, last)?);
            assert!(compared.dequeue(7, 7));
        }
        assert!(compared.insert(3, 9, 9)?);
        Ok(())
    }

    #[test]
    fn walks_go_on_where_entries_are_removed() -> Result {
        let mut compared = Compared::new()?;
        for key in 0..10 {
            assert!(compared.insert_as(Class::new(0), key, key as usize, 100)?);
        }
        let mut visited = 0;
        let mut visit = |mut entry: Entry<'_, u64, u64>| visited |= 1 << !*entry.value();
        assert!(!compared.map.walk(Class::new(0), 50, 60, 3, &mut visit));
        // An entry that was visited, the next one, the one after that, and the last one.
        for key in [1, 3, 4, 9] {
            assert!(compared.remove(key));
        }
        // Before the next one, and after it.
        assert!(compared.insert_as(Class::new(0), 20, 1, 100)?);
        assert!(compared.insert_as(Class::new(0), 21, 7, 100)?);
        assert!(compared.map.go_on(10, &mut visit));
        assert!(compared.map.go_on(10, &mut visit));
        expect_eq!(visited, 1 << 21 | 0b1_1110_0111);
        assert!(compared.map.walk.next.is_none());
        Ok(())
    }

    #[test]
    fn walks_go_on_in_the_next_class() -> Result {
        let mut compared = Compared::new()?;
        let [none, some] = [0, 5].map(Class::new);
        for (class, key) in [(none, 0), (none, 1), (some, 2), (some, 3)] {
            assert!(compared.insert_as(class, key, 0, 9)?);
        }
        let mut visited = 0;
        let mut visit = |mut entry: Entry<'_, u64, u64>| visited |= 1 << !*entry.value();
        assert!(!compared.map.walk_in(Classes::ALL, 0, 9, 1, &mut visit));
        // The next one, which is the last of its class.
        assert!(compared.remove(1));
        assert!(!compared.map.go_on(1, &mut visit));
        assert!(compared.map.go_on(1, &mut visit));
        // A class that is empty by then.
        assert!(!compared.map.walk_in(Classes::ALL, 0, 9, 0, &mut visit));
        assert!(compared.remove(2) && compared.remove(3) && compared.remove(0));
        assert!(compared.map.go_on(0, &mut visit));
        assert_eq!(visited, 0b1101);
        Ok(())
    }

    #[test]
    fn what_is_dropped_is_freed() -> Result {
        // Dropping the cache triggers a warning unless all of its memory was freed.
        let mut compared = Compared::new()?;
        for key in 0..100 {
            compared.insert(key, 0, key as usize)?;
        }
        assert!(compared.queue(Classes::ALL, 0, 0)?);
        let Compared { map, cache, .. } = compared;
        let spare: Reservation<'_, u64, u64> = Reservation::new(&cache)?;
        drop(spare);
        drop(map);
        drop(cache);
        Ok(())
    }
}
