// SPDX-License-Identifier: GPL-2.0

//! A map from keys to values that belong to intervals, with a queue of some of its entries.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

use kernel::{
    alloc::Flags,
    container_of,
    prelude::*,
    rbtree::{
        Entry as KeyEntry,
        RBTree,
        RBTreeNode,
        RBTreeNodeReservation, //
    }, //
};

use super::{
    fifo::{
        Fifo,
        FifoLinks, //
    },
    interval_tree::{
        IntervalNode,
        IntervalTree, //
    }, //
};

/// What an entry is made of: one allocation, which is in all the indexes at once.
struct Node<T> {
    interval: IntervalNode,
    links: FifoLinks,
    value: T,
}

/// Memory for an entry of an [`IntervalMap`].
///
/// With it an entry can be inserted under a spinlock.
pub(crate) struct Reservation<K, T>(RBTreeNodeReservation<K, Node<T>>);

impl<K, T> Reservation<K, T> {
    /// Allocates memory for one entry.
    pub(crate) fn new(flags: Flags) -> Result<Self> {
        Ok(Self(RBTreeNodeReservation::new(flags)?))
    }
}

/// An entry that was removed from an [`IntervalMap`].
///
/// Dropping it frees its memory, which can be left until a spinlock is released.
pub(crate) struct Removed<K, T> {
    _node: RBTreeNode<K, Node<T>>,
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
/// - `by_interval` has exactly the nodes that are the values of `by_key`.
/// - All links in `queue` are those of values of `by_key`.
/// - `len` is the number of values in `by_key`.
pub(crate) struct IntervalMap<K, T> {
    by_key: RBTree<K, Node<T>>,
    by_interval: IntervalTree,
    queue: Fifo,
    len: usize,
}

// The entries are in memory of their own, which does not move with the map.
impl<K, T> Unpin for IntervalMap<K, T> {}

impl<K: Ord, T> IntervalMap<K, T> {
    /// Creates an empty map.
    pub(crate) fn new() -> Self {
        // INVARIANT: There are no entries.
        Self {
            by_key: RBTree::new(),
            by_interval: IntervalTree::new(),
            queue: Fifo::new(),
            len: 0,
        }
    }

    /// Returns the number of entries.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Inserts an entry for the interval `start ..= last`, which is not queued.
    ///
    /// Where there is an entry with this key, it stays as it is and the reservation is handed back.
    pub(crate) fn insert(
        &mut self,
        reservation: Reservation<K, T>,
        key: K,
        start: usize,
        last: usize,
        value: T,
    ) -> Result<(), Reservation<K, T>> {
        let KeyEntry::Vacant(vacant) = self.by_key.entry(key) else {
            return Err(reservation);
        };
        let node = Node {
            interval: IntervalNode::new(start, last),
            links: FifoLinks::new(),
            value,
        };
        let node = NonNull::from(vacant.insert(node, reservation.0));
        // INVARIANT: The node was added to `by_key` above.
        // SAFETY: The node is new, so it is in no tree. The red-black tree has it in memory of its
        // own and does not move it; `remove` takes it out of here first, and after `drop` no
        // method is called.
        unsafe { self.by_interval.insert(Self::interval_of(node)) };
        self.len += 1;
        Ok(())
    }

    /// Removes the entry with this key; returns it, and whether it was queued.
    pub(crate) fn remove(&mut self, key: &K) -> Option<(Removed<K, T>, bool)> {
        let mut found = self.by_key.find_mut(key)?;
        let node = NonNull::from(found.get_mut());
        let links = Node::links(node);
        // SAFETY: By the type invariants the node is in `by_interval`, and in no queue but `queue`.
        let queued = unsafe {
            self.by_interval.remove(Self::interval_of(node));
            self.queue.contains(links)
        };
        if queued {
            // SAFETY: The links are in the queue.
            unsafe { self.queue.remove(links) };
        }
        self.len -= 1;
        let removed = Removed {
            _node: found.remove_node(),
        };
        Some((removed, queued))
    }

    /// Calls `visit` for each entry whose interval has a position in common with `start ..= last`.
    ///
    /// Costs O(log n) for each such entry, and O(log n) where there is none.
    #[inline]
    pub(crate) fn for_each_overlap(
        &mut self,
        start: usize,
        last: usize,
        mut visit: impl FnMut(Entry<'_, T>),
    ) {
        let mut next = self.by_interval.first_overlap(start, last);
        while let Some(interval) = next {
            // SAFETY: By the type invariants, each node in `by_interval` is a `Node<T>`.
            let node = unsafe { container_of!(interval.as_ptr(), Node<T>, interval) };
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

    /// Returns an iterator over the queued entries, from the front of the queue.
    #[inline]
    pub(crate) fn queued(&self) -> impl Iterator<Item = Queued<'_, T>> {
        let mut next = self.queue.front();
        core::iter::from_fn(move || {
            let links = next?;
            // SAFETY: `links` are in the queue, which nothing can change while `self` is borrowed.
            next = unsafe { self.queue.next(links) };
            // SAFETY: By the type invariants the links are those of a node of ours, which is
            // borrowed with `self`. Its links are accessed only by `queue`, through a cell.
            let node = unsafe { &*Node::<T>::from_links(links).as_ptr() };
            Some(Queued {
                start: node.interval.start(),
                last: node.interval.last(),
                value: &node.value,
            })
        })
    }

    /// Takes the entry at the front out of the queue, and returns its value.
    #[inline]
    pub(crate) fn dequeue(&mut self) -> Option<&mut T> {
        let links = self.queue.front()?;
        // SAFETY: The links are in this queue.
        unsafe { self.queue.remove(links) };
        // SAFETY: By the type invariants the links were those of a node of ours, which is borrowed
        // with `self`.
        Some(unsafe { &mut (*Node::<T>::from_links(links).as_ptr()).value })
    }

    #[inline]
    fn interval_of(node: NonNull<Node<T>>) -> NonNull<IntervalNode> {
        // SAFETY: Callers only pass nodes of ours, so that the field is in bounds and not null.
        unsafe { NonNull::new_unchecked(&raw mut (*node.as_ptr()).interval) }
    }
}

impl<T> Node<T> {
    #[inline]
    fn links(node: NonNull<Self>) -> NonNull<FifoLinks> {
        // SAFETY: Callers only pass nodes of the map, so that the field is in bounds and not null.
        unsafe { NonNull::new_unchecked(&raw mut (*node.as_ptr()).links) }
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
pub(crate) struct Queued<'a, T> {
    /// First position inside the interval.
    pub(crate) start: usize,
    /// Last position inside the interval.
    pub(crate) last: usize,
    /// What belongs to the interval.
    pub(crate) value: &'a T,
}

/// An entry of an [`IntervalMap`], to be changed.
///
/// # Invariants
///
/// `node` is in the map whose queue is `queue`, and borrowed from it.
pub(crate) struct Entry<'a, T> {
    node: NonNull<Node<T>>,
    queue: &'a mut Fifo,
    _value: PhantomData<&'a mut T>,
}

impl<T> Entry<'_, T> {
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

    /// Puts the entry at the back of the queue; returns `false` where it is queued already.
    #[inline]
    pub(crate) fn enqueue(&mut self) -> bool {
        let links = Node::links(self.node);
        // SAFETY: By the type invariants of the map the links are in no other queue.
        if unsafe { self.queue.contains(links) } {
            return false;
        }
        // SAFETY: The links are in no queue, and stay where they are until `IntervalMap::remove`
        // takes them out.
        unsafe { self.queue.push_back(links) };
        true
    }
}
