// SPDX-License-Identifier: GPL-2.0

//! Intrusive red-black trees, which do not own their nodes.
//!
//! [`kernel::rbtree`] allocates its nodes itself. These are embedded in the objects they index, so
//! an object can be in several indexes and come from any allocator.
//!
//! C header: [`include/linux/rbtree.h`](srctree/include/linux/rbtree.h)

use core::{
    marker::PhantomData,
    ptr::{
        null_mut,
        NonNull, //
    },
};

use kernel::{
    bindings,
    container_of,
    types::Opaque, //
};

/// A node of a [`KeyTree`], to be embedded in the object that the key identifies.
pub(crate) struct KeyNode<K> {
    links: Opaque<bindings::rb_node>,
    key: K,
}

// SAFETY: The links are accessed only through the tree.
unsafe impl<K: Send> Send for KeyNode<K> {}

impl<K> KeyNode<K> {
    /// Creates a node that is in no tree.
    pub(crate) fn new(key: K) -> Self {
        Self {
            links: Opaque::uninit(),
            key,
        }
    }

    /// Returns the key.
    #[inline]
    pub(crate) fn key(&self) -> &K {
        &self.key
    }
}

/// A tree of nodes with distinct keys.
///
/// Finding, inserting and removing a node are O(log n). Dropping the tree does not access the
/// nodes.
///
/// # Invariants
///
/// Each node in the tree is the `links` field of a valid [`KeyNode`], and the keys are in order.
pub(crate) struct KeyTree<K> {
    root: bindings::rb_root,
    _keys: PhantomData<K>,
}

// SAFETY: The tree is not tied to a thread, and does not access what its nodes are embedded in.
unsafe impl<K: Send> Send for KeyTree<K> {}

impl<K: Ord> KeyTree<K> {
    /// Creates an empty tree.
    pub(crate) fn new() -> Self {
        // INVARIANT: There are no nodes.
        Self {
            root: pin_init::zeroed(),
            _keys: PhantomData,
        }
    }

    /// Returns the node with this key.
    #[inline]
    pub(crate) fn find(&self, key: &K) -> Option<NonNull<KeyNode<K>>> {
        let mut next = self.root.rb_node;
        while !next.is_null() {
            // This is a separate loop because the compiler merges both directions into one path
            // otherwise, which takes more instructions at each level.
            //
            // SAFETY: By the type invariant, all nodes and their links are valid, here and below.
            while *key < *unsafe { Self::node_of(next).as_ref() }.key() {
                // SAFETY: As above.
                next = unsafe { (*next).rb_left };
                if next.is_null() {
                    return None;
                }
            }
            // SAFETY: As above.
            let node = unsafe { Self::node_of(next) };
            // SAFETY: As above.
            if *key == *unsafe { node.as_ref() }.key() {
                return Some(node);
            }
            // SAFETY: As above.
            next = unsafe { (*next).rb_right };
        }
        None
    }

    /// Returns the node with the lowest key that is `key` or above.
    pub(crate) fn lower_bound(&self, key: &K) -> Option<NonNull<KeyNode<K>>> {
        let mut found = None;
        let mut next = self.root.rb_node;
        while !next.is_null() {
            // SAFETY: By the type invariant all nodes and their links are valid.
            unsafe {
                let node = Self::node_of(next);
                if node.as_ref().key() < key {
                    next = (*next).rb_right;
                } else {
                    found = Some(node);
                    next = (*next).rb_left;
                }
            }
        }
        found
    }

    /// Returns the node after `node`.
    ///
    /// # Safety
    ///
    /// `node` must be in this tree.
    pub(crate) unsafe fn next(&self, node: NonNull<KeyNode<K>>) -> Option<NonNull<KeyNode<K>>> {
        // SAFETY: By the safety requirement, and as all nodes are valid by the type invariant.
        unsafe {
            let links = bindings::rb_next((*node.as_ptr()).links.get());
            (!links.is_null()).then(|| Self::node_of(links))
        }
    }

    /// Inserts a node. Returns `false`, and does nothing, if the tree already has its key.
    ///
    /// # Safety
    ///
    /// `node` must be valid, and in no tree. It must stay valid and must not move until it is
    /// removed, or until no method of the tree is called any more.
    #[inline]
    pub(crate) unsafe fn insert(&mut self, node: NonNull<KeyNode<K>>) -> bool {
        // `Opaque::get()` would take a reference to the links, and a pointer derived from that must
        // not be used to access the rest of the node.
        //
        // SAFETY: By the safety requirement, the node is valid.
        let (key, links) = unsafe {
            (
                &(*node.as_ptr()).key,
                Opaque::cast_into(&raw const (*node.as_ptr()).links),
            )
        };
        let mut parent = null_mut();
        let mut place = &raw mut self.root.rb_node;
        // Two loops, as in `find`.
        //
        // SAFETY: By the type invariant, all nodes and their links are valid. `place` points to the
        // root, or to a link of `parent`.
        unsafe {
            'search: while !(*place).is_null() {
                parent = *place;
                while *key < *Self::node_of(parent).as_ref().key() {
                    place = &raw mut (*parent).rb_left;
                    if (*place).is_null() {
                        break 'search;
                    }
                    parent = *place;
                }
                if *key == *Self::node_of(parent).as_ref().key() {
                    return false;
                }
                place = &raw mut (*parent).rb_right;
            }
        }
        // INVARIANT: The key is greater than those where the search went right, and less than all
        // others.
        // SAFETY: The node is valid and in no tree, and `place` is valid, as above.
        unsafe {
            bindings::rb_link_node(links, parent, place);
            bindings::rb_insert_color(links, &mut self.root);
        }
        true
    }

    /// Removes a node.
    ///
    /// # Safety
    ///
    /// `node` must be in this tree.
    #[inline]
    pub(crate) unsafe fn remove(&mut self, node: NonNull<KeyNode<K>>) {
        // SAFETY: By the safety requirement.
        unsafe { bindings::rb_erase((*node.as_ptr()).links.get(), &mut self.root) };
    }

    /// Empties the tree and calls `visit` with each node that was in it, in no particular order.
    ///
    /// This is O(n). `visit` may free the node.
    pub(crate) fn drain(&mut self, mut visit: impl FnMut(NonNull<KeyNode<K>>)) {
        // SAFETY: All nodes are valid by the type invariant.
        let mut next = unsafe { bindings::rb_first_postorder(&self.root) };
        self.root = pin_init::zeroed();
        while !next.is_null() {
            let links = next;
            // SAFETY: In postorder, the node's parent and all nodes that follow come later. None of
            // them was passed to `visit` yet, so all are valid.
            next = unsafe { bindings::rb_next_postorder(links) };
            // SAFETY: By the type invariant.
            visit(unsafe { Self::node_of(links) });
        }
    }

    /// Returns the node that `links` belong to.
    ///
    /// # Safety
    ///
    /// `links` must be the field of a [`KeyNode`].
    #[inline]
    unsafe fn node_of(links: *mut bindings::rb_node) -> NonNull<KeyNode<K>> {
        // SAFETY: By the safety requirement.
        unsafe {
            NonNull::new_unchecked(
                container_of!(Opaque::cast_from(links), KeyNode<K>, links).cast_mut(),
            )
        }
    }
}
