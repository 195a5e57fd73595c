// SPDX-License-Identifier: GPL-2.0

//! An intrusive queue that needs neither an allocation nor a pinned head.

use core::{
    cell::UnsafeCell,
    marker::PhantomPinned,
    ptr::NonNull, //
};

/// The links of a [`Fifo`], to be embedded in what is queued.
#[repr(C)]
pub(crate) struct FifoLinks {
    inner: UnsafeCell<Inner>,
    _pin: PhantomPinned,
}

// SAFETY: Links are plain data; they are accessed only by whoever has the queue.
unsafe impl Send for FifoLinks {}

/// `previous` is `None` where the links are in no queue, and points to the links themselves where
/// they are at the front. `next` is `None` at the back.
#[derive(Clone, Copy)]
struct Inner {
    previous: Option<NonNull<FifoLinks>>,
    next: Option<NonNull<FifoLinks>>,
}

impl FifoLinks {
    /// Creates links that are in no queue.
    pub(crate) const fn new() -> Self {
        Self {
            inner: UnsafeCell::new(Inner {
                previous: None,
                next: None,
            }),
            _pin: PhantomPinned,
        }
    }
}

/// A first-in first-out queue of links that it does not own.
///
/// All operations cost O(1) for each of the links they are about. Dropping it leaves the links as
/// they are.
///
/// # Invariants
///
/// - `front` and `back` are both `None`, or both the ends of one chain of valid links.
/// - Nothing else accesses the links in the chain.
/// - `len` is the number of links in it.
pub(crate) struct Fifo {
    front: Option<NonNull<FifoLinks>>,
    back: Option<NonNull<FifoLinks>>,
    len: usize,
}

// SAFETY: The queue has no ties to a thread. What the links are part of is not accessed through it.
unsafe impl Send for Fifo {}

impl Fifo {
    /// Creates an empty queue.
    pub(crate) const fn new() -> Self {
        // INVARIANT: There are no links.
        Self {
            front: None,
            back: None,
            len: 0,
        }
    }

    /// Returns the number of links in the queue.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns the links that have been in the queue for longest.
    #[inline]
    pub(crate) fn front(&self) -> Option<NonNull<FifoLinks>> {
        self.front
    }

    /// Returns the links that were queued next after `links`.
    ///
    /// # Safety
    ///
    /// `links` must be in this queue.
    #[inline]
    pub(crate) unsafe fn next(&self, links: NonNull<FifoLinks>) -> Option<NonNull<FifoLinks>> {
        // SAFETY: By the safety requirement and the type invariant.
        unsafe { (*Self::inner(links)).next }
    }

    /// Returns whether `links` are in this queue.
    ///
    /// # Safety
    ///
    /// `links` must be valid, and in no other queue.
    #[inline]
    pub(crate) unsafe fn contains(&self, links: NonNull<FifoLinks>) -> bool {
        // SAFETY: By the safety requirement.
        unsafe { (*Self::inner(links)).previous }.is_some()
    }

    /// Puts `links` at the back of the queue.
    ///
    /// # Safety
    ///
    /// `links` must be valid, in no queue, and stay valid and in their place until they are
    /// removed, or until no method of the queue is called any more. Nothing else may access them.
    #[inline]
    pub(crate) unsafe fn push_back(&mut self, links: NonNull<FifoLinks>) {
        let inner = Inner {
            previous: Some(self.back.unwrap_or(links)),
            next: None,
        };
        // SAFETY: By the safety requirement.
        unsafe { *Self::inner(links) = inner };
        match self.back {
            // SAFETY: The links are valid by the type invariant.
            Some(back) => unsafe { (*Self::inner(back)).next = Some(links) },
            None => self.front = Some(links),
        }
        // INVARIANT: `links` now are the end of the chain.
        self.back = Some(links);
        self.len += 1;
    }

    /// Takes `links` out of the queue, wherever they are in it.
    ///
    /// # Safety
    ///
    /// `links` must be in this queue.
    #[inline]
    pub(crate) unsafe fn remove(&mut self, links: NonNull<FifoLinks>) {
        // SAFETY: By the safety requirement and the type invariant.
        let Inner { previous, next } = unsafe { *Self::inner(links) };
        let previous = previous.filter(|&previous| previous != links);
        // INVARIANT: The neighbours are tied together, and become the ends where there is only one.
        match previous {
            // SAFETY: The links are valid by the type invariant.
            Some(previous) => unsafe { (*Self::inner(previous)).next = next },
            None => self.front = next,
        }
        match next {
            // SAFETY: The links are valid by the type invariant.
            Some(next) => unsafe { (*Self::inner(next)).previous = previous.or(Some(next)) },
            None => self.back = previous,
        }
        // SAFETY: By the safety requirement.
        unsafe { (*Self::inner(links)).previous = None };
        self.len -= 1;
    }

    /// Takes the first `count` links out of the queue, or all; returns how many.
    #[inline]
    pub(crate) fn remove_first(&mut self, count: usize) -> usize {
        let count = count.min(self.len);
        let mut front = self.front;
        for _ in 0..count {
            // SAFETY: By the type invariants there are that many, and they are valid.
            unsafe {
                let links = Self::inner(front.unwrap_unchecked());
                (*links).previous = None;
                front = (*links).next;
            }
        }
        // INVARIANT: What is left of the chain begins at `front`.
        self.front = front;
        match front {
            // SAFETY: The links are valid by the type invariant.
            Some(front) => unsafe { (*Self::inner(front)).previous = Some(front) },
            None => self.back = None,
        }
        self.len -= count;
        count
    }

    fn inner(links: NonNull<FifoLinks>) -> *mut Inner {
        // CAST: The only other field takes no space, so the cell is where the links are.
        UnsafeCell::raw_get(links.as_ptr().cast::<UnsafeCell<Inner>>())
    }
}
