// SPDX-License-Identifier: GPL-2.0

//! Intrusive interval trees, which find the intervals that overlap a given one.
//!
//! C header: [`include/linux/interval_tree.h`](srctree/include/linux/interval_tree.h)

use core::ptr::NonNull;

use kernel::{
    bindings,
    types::Opaque, //
};

/// A node of an [`IntervalTree`], to be embedded in the object that the interval belongs to.
///
/// # Invariants
///
/// `start` and `last` are initialised, and do not change.
#[repr(transparent)]
pub(crate) struct IntervalNode(Opaque<bindings::interval_tree_node>);

// SAFETY: A node is plain data, and its links are accessed only through the tree.
unsafe impl Send for IntervalNode {}

impl IntervalNode {
    /// Creates a node for the interval `start ..= last`.
    ///
    /// `start` must not be above `last`, otherwise lookups give unspecified results.
    #[inline]
    pub(crate) fn new(start: usize, last: usize) -> Self {
        debug_assert!(start <= last);
        let node = Opaque::uninit();
        // The other fields are written when the node is inserted.
        //
        // SAFETY: The fields are in bounds, and nothing else has access to the node yet.
        unsafe {
            let node: *mut bindings::interval_tree_node = node.get();
            (&raw mut (*node).start).write(start);
            (&raw mut (*node).last).write(last);
        }
        // INVARIANT: Both were just written.
        Self(node)
    }

    /// Returns the first position of the interval.
    #[inline]
    pub(crate) fn start(&self) -> usize {
        // SAFETY: The field is written only when the node is created.
        unsafe { (*self.0.get()).start }
    }

    /// Returns the last position of the interval.
    #[inline]
    pub(crate) fn last(&self) -> usize {
        // SAFETY: The field is written only when the node is created.
        unsafe { (*self.0.get()).last }
    }
}

/// A tree of intervals, ordered by their starts. It does not own its nodes.
///
/// All operations are O(log n). Dropping the tree does not access the nodes.
///
/// # Invariants
///
/// All nodes in the tree are valid.
pub(crate) struct IntervalTree {
    root: bindings::rb_root_cached,
}

// SAFETY: The tree is not tied to a thread, and does not access what its nodes are embedded in.
unsafe impl Send for IntervalTree {}

impl IntervalTree {
    /// Creates an empty tree.
    pub(crate) const fn new() -> Self {
        // INVARIANT: There are no nodes.
        Self {
            root: pin_init::zeroed(),
        }
    }

    /// Returns whether there are no nodes.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.root.rb_root.rb_node.is_null()
    }

    /// Inserts a node.
    ///
    /// # Safety
    ///
    /// `node` must be valid, and in no tree. It must stay valid and must not move until it is
    /// removed, or until no method of the tree is called any more.
    #[inline]
    pub(crate) unsafe fn insert(&mut self, node: NonNull<IntervalNode>) {
        // INVARIANT, SAFETY: By the safety requirement; `IntervalNode` is a transparent wrapper.
        unsafe { bindings::interval_tree_insert(node.as_ptr().cast(), &mut self.root) };
    }

    /// Removes a node.
    ///
    /// # Safety
    ///
    /// `node` must be in this tree.
    #[inline]
    pub(crate) unsafe fn remove(&mut self, node: NonNull<IntervalNode>) {
        // SAFETY: By the safety requirement.
        unsafe { bindings::interval_tree_remove(node.as_ptr().cast(), &mut self.root) };
    }

    /// Returns the first node, in the order of starts, that overlaps `start ..= last`.
    #[inline]
    pub(crate) fn first_overlap(
        &mut self,
        start: usize,
        last: usize,
    ) -> Option<NonNull<IntervalNode>> {
        // SAFETY: By the type invariant, the nodes are valid.
        NonNull::new(unsafe { bindings::interval_tree_iter_first(&mut self.root, start, last) })
            .map(NonNull::cast)
    }

    /// Returns the next node after `node` that overlaps `start ..= last`.
    ///
    /// # Safety
    ///
    /// `node` must be in a tree, to which the caller has exclusive access, and must have been found
    /// for the same `start` and `last`.
    #[inline]
    pub(crate) unsafe fn next_overlap(
        node: NonNull<IntervalNode>,
        start: usize,
        last: usize,
    ) -> Option<NonNull<IntervalNode>> {
        // SAFETY: By the safety requirement, and as the nodes are valid by the type invariant.
        NonNull::new(unsafe {
            bindings::interval_tree_iter_next(node.as_ptr().cast(), start, last)
        })
        .map(NonNull::cast)
    }
}

#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(ummunotify_interval_tree)]
mod tests {
    use super::*;

    use crate::abstractions::kunit::expect_eq;

    /// An example of how to use the tree.
    #[test]
    fn finds_the_intervals_that_overlap() {
        let nodes = [(0, 9), (5, 14), (20, 29)].map(|(start, last)| IntervalNode::new(start, last));
        let mut tree = IntervalTree::new();
        for node in &nodes {
            // SAFETY: The node is in no tree, and does not move while the tree is used.
            unsafe { tree.insert(NonNull::from(node)) };
        }

        let mut starts = [usize::MAX; 3];
        let mut found = tree.first_overlap(8, 20);
        for start in &mut starts {
            let Some(node) = found else {
                break;
            };
            // SAFETY: The node is one of `nodes`, and was found for these bounds.
            unsafe {
                *start = node.as_ref().start();
                found = IntervalTree::next_overlap(node, 8, 20);
            }
        }
        expect_eq!(starts, [0, 5, 20]);
        expect_eq!(found, None);

        // SAFETY: The node is in the tree.
        unsafe { tree.remove(NonNull::from(&nodes[1])) };
        expect_eq!(tree.first_overlap(10, 19), None);
    }
}
