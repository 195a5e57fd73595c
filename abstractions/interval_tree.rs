// SPDX-License-Identifier: GPL-2.0

//! Interval trees: finding the intervals that overlap a given one.
//!
//! C header: [`include/linux/interval_tree.h`](srctree/include/linux/interval_tree.h)

use core::ptr::NonNull;

use kernel::{
    bindings,
    types::Opaque, //
};

/// A node of an [`IntervalTree`], to be embedded in what the interval belongs to.
///
/// # Invariants
///
/// `start` and `last` are initialised, and do not change.
#[repr(transparent)]
pub(crate) struct IntervalNode(Opaque<bindings::interval_tree_node>);

// SAFETY: A node is plain data; its links are accessed only by whoever has the tree.
unsafe impl Send for IntervalNode {}

impl IntervalNode {
    /// Creates a node for the interval `start ..= last`.
    ///
    /// `start` must not be above `last`, or nobody can say which positions it will be found for.
    #[inline]
    pub(crate) fn new(start: usize, last: usize) -> Self {
        debug_assert!(start <= last);
        let node = Opaque::uninit();
        // What there is besides these two is written when the node is inserted.
        //
        // SAFETY: The fields are in bounds, and nobody else has them.
        unsafe {
            let node: *mut bindings::interval_tree_node = node.get();
            (&raw mut (*node).start).write(start);
            (&raw mut (*node).last).write(last);
        }
        // INVARIANT: The ends were written, and the node is not in a tree.
        Self(node)
    }

    /// Returns the first position inside the interval.
    #[inline]
    pub(crate) fn start(&self) -> usize {
        // SAFETY: The field is written only when the node is created.
        unsafe { (*self.0.get()).start }
    }

    /// Returns the last position inside the interval.
    #[inline]
    pub(crate) fn last(&self) -> usize {
        // SAFETY: The field is written only when the node is created.
        unsafe { (*self.0.get()).last }
    }
}

/// An intrusive interval tree, which does not own its nodes.
///
/// All operations cost O(log n). Dropping it leaves the nodes as they are.
///
/// # Invariants
///
/// All nodes in the tree are valid.
pub(crate) struct IntervalTree {
    root: bindings::rb_root_cached,
}

// SAFETY: The tree has no ties to a thread. What is in the nodes is not accessed through it.
unsafe impl Send for IntervalTree {}

impl IntervalTree {
    /// Creates an empty tree.
    pub(crate) fn new() -> Self {
        // INVARIANT: There are no nodes.
        Self {
            root: pin_init::zeroed(),
        }
    }

    /// Inserts a node.
    ///
    /// # Safety
    ///
    /// `node` must be valid, in no tree, and stay valid and in its place until it is removed, or
    /// until no method of the tree is called any more.
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

    /// Returns the first node, by its start, that has a position in common with `start ..= last`.
    #[inline]
    pub(crate) fn first_overlap(
        &mut self,
        start: usize,
        last: usize,
    ) -> Option<NonNull<IntervalNode>> {
        // SAFETY: The nodes are valid by the type invariant.
        NonNull::new(unsafe { bindings::interval_tree_iter_first(&mut self.root, start, last) })
            .map(NonNull::cast)
    }

    /// Returns the node after `node` that has a position in common with `start ..= last`, and
    /// subtracts from `steps` how many nodes it took to find it.
    ///
    /// This is `interval_tree_iter_next()`, which does not tell how far it goes: to the next node or
    /// up and down the whole tree.
    ///
    /// # Safety
    ///
    /// `node` must be in this tree, and have been found for the same `start` and `last`.
    #[inline]
    pub(crate) unsafe fn next_overlap(
        &mut self,
        node: NonNull<IntervalNode>,
        start: usize,
        last: usize,
        steps: &mut isize,
    ) -> Option<NonNull<IntervalNode>> {
        let mut node: *mut bindings::interval_tree_node = node.as_ptr().cast();
        // SAFETY: By the safety requirement, and as all nodes and their links are valid by the type
        // invariant. The links are at the beginning of a node.
        unsafe {
            // Up, until there is something in the range, or a subtree on the right that may have.
            let mut right: *mut bindings::interval_tree_node = (*node).rb.rb_right.cast();
            while right.is_null() || (*right).__subtree_last < start {
                loop {
                    *steps -= 1;
                    let parent: *mut bindings::interval_tree_node =
                        core::ptr::with_exposed_provenance_mut((*node).rb.__rb_parent_color & !3);
                    if parent.is_null() {
                        return None;
                    }
                    right = (*parent).rb.rb_right.cast();
                    if right != core::mem::replace(&mut node, parent) {
                        break;
                    }
                }
                if last < (*node).start {
                    return None;
                }
                if start <= (*node).last {
                    return NonNull::new(node.cast());
                }
            }
            // Down, to the first one in that subtree.
            node = right;
            loop {
                *steps -= 1;
                let left: *mut bindings::interval_tree_node = (*node).rb.rb_left.cast();
                if !left.is_null() && start <= (*left).__subtree_last {
                    node = left;
                    continue;
                }
                if last < (*node).start {
                    return None;
                }
                if start <= (*node).last {
                    return NonNull::new(node.cast());
                }
                // What ends late enough must be on this side.
                node = (*node).rb.rb_right.cast();
                if node.is_null() {
                    return None;
                }
            }
        }
    }
}
