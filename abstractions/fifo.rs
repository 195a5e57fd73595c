// SPDX-License-Identifier: GPL-2.0

//! An intrusive queue that neither allocates nor needs a pinned head.
//!
//! Each entry has two pointers, so that it can be removed from any position.

use core::{
    cell::UnsafeCell,
    marker::PhantomPinned,
    ptr::NonNull, //
};

/// The links of a [`Fifo`], to be embedded in its entries.
#[repr(C)]
pub(crate) struct FifoLinks {
    inner: UnsafeCell<Inner>,
    _pin: PhantomPinned,
}

// SAFETY: Links are plain data, and are accessed only through the queue.
unsafe impl Send for FifoLinks {}

/// `previous` is `None` if the links are in no queue, and points to the links themselves if they
/// are at the front. `next` is `None` at the back.
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

/// A first-in, first-out queue of links that it does not own.
///
/// All operations are O(1) per link that is added, removed or put back. Dropping the queue does not
/// access the links.
///
/// # Invariants
///
/// - `front` and `back` are both `None`, or the two ends of one chain of valid links.
/// - Nothing else accesses the links in the chain.
/// - `len` is the number of links in the chain.
pub(crate) struct Fifo {
    front: Option<NonNull<FifoLinks>>,
    back: Option<NonNull<FifoLinks>>,
    len: usize,
}

// SAFETY: The queue is not tied to a thread, and does not access what the links are embedded in.
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

    /// Returns the front of the queue.
    #[inline]
    pub(crate) fn front(&self) -> Option<NonNull<FifoLinks>> {
        self.front
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
    /// `links` must be valid, and in no queue. They must stay valid, and must not be moved or
    /// accessed by anything else, until they are removed or no method of the queue is called any
    /// more.
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
        // INVARIANT: `links` are now the end of the chain.
        self.back = Some(links);
        self.len += 1;
    }

    /// Removes `links` from the queue, at any position.
    ///
    /// # Safety
    ///
    /// `links` must be in this queue.
    #[inline]
    pub(crate) unsafe fn remove(&mut self, links: NonNull<FifoLinks>) {
        // SAFETY: By the safety requirement and the type invariant.
        let Inner { previous, next } = unsafe { *Self::inner(links) };
        let previous = previous.filter(|&previous| previous != links);
        // INVARIANT: The neighbours are linked to each other. If there is only one, it becomes an
        // end.
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

    /// Removes links from the front of the queue, up to the number of `slots`.
    ///
    /// Calls `visit` with each of them and its slot. Returns their number.
    #[inline]
    pub(crate) fn remove_first<S>(
        &mut self,
        slots: &mut [S],
        mut visit: impl FnMut(NonNull<FifoLinks>, &mut S),
    ) -> usize {
        let count = slots.len().min(self.len);
        let mut front = self.front;
        for slot in &mut slots[..count] {
            // SAFETY: By the type invariants there are at least `count` links, and they are valid.
            unsafe {
                let links = front.unwrap_unchecked();
                (*Self::inner(links)).previous = None;
                front = (*Self::inner(links)).next;
                visit(links, slot);
            }
        }
        // INVARIANT: The rest of the chain begins at `front`.
        self.front = front;
        match front {
            // SAFETY: The links are valid by the type invariant.
            Some(front) => unsafe { (*Self::inner(front)).previous = Some(front) },
            None => self.back = None,
        }
        self.len -= count;
        count
    }

    /// Puts links back at the front of the queue, in their original order.
    ///
    /// These are the `count` links that one call to [`Self::remove_first`] has removed, except for
    /// the first `skip`.
    ///
    /// # Safety
    ///
    /// `first` must be the first of the links that were removed, and `skip` less than `count`. No
    /// other method may have been called since. The links must still be valid, in the same place,
    /// and not have been accessed by anything else.
    pub(crate) unsafe fn put_back(&mut self, first: NonNull<FifoLinks>, skip: usize, count: usize) {
        let mut links = first;
        for _ in 0..skip {
            // SAFETY: By the safety requirements, the links are valid, and still point to the next
            // ones.
            links = unsafe { (*Self::inner(links)).next.unwrap_unchecked() };
        }
        let behind = self.front.replace(links);
        let mut previous = links;
        for _ in skip + 1..count {
            // SAFETY: As above.
            unsafe {
                (*Self::inner(links)).previous = Some(previous);
                previous = links;
                links = (*Self::inner(links)).next.unwrap_unchecked();
            }
        }
        // SAFETY: As above.
        unsafe { (*Self::inner(links)).previous = Some(previous) };
        // INVARIANT: The last of them is followed by the former front, if any.
        match behind {
            // SAFETY: The links are valid by the type invariant.
            Some(behind) => unsafe { (*Self::inner(behind)).previous = Some(links) },
            None => self.back = Some(links),
        }
        self.len += count - skip;
    }

    fn inner(links: NonNull<FifoLinks>) -> *mut Inner {
        // CAST: `FifoLinks` is `repr(C)` and begins with the cell.
        UnsafeCell::raw_get(links.as_ptr().cast::<UnsafeCell<Inner>>())
    }
}
