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

    /// Takes links out of the queue, from the front: one for each of `slots`, or all of them. Calls
    /// `visit` with each and its slot; returns how many they were.
    #[inline]
    pub(crate) fn remove_first<S>(
        &mut self,
        slots: &mut [S],
        mut visit: impl FnMut(NonNull<FifoLinks>, &mut S),
    ) -> usize {
        let count = slots.len().min(self.len);
        let mut front = self.front;
        for slot in &mut slots[..count] {
            // SAFETY: By the type invariants there are that many, and they are valid.
            unsafe {
                let links = front.unwrap_unchecked();
                (*Self::inner(links)).previous = None;
                front = (*Self::inner(links)).next;
                visit(links, slot);
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

    /// Puts `count` links back to the front of the queue, from where [`Self::remove_first`] took
    /// them together, but for the first `skip` of them.
    ///
    /// # Safety
    ///
    /// `first` must be the first of these links, and `skip` less than `count`. No other method may
    /// have been called since, and the links must be valid, as if they had been there all the time.
    pub(crate) unsafe fn put_back(&mut self, first: NonNull<FifoLinks>, skip: usize, count: usize) {
        let mut links = first;
        for _ in 0..skip {
            // SAFETY: By the safety requirements; they were followed by others, and still say so.
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
        // INVARIANT: The last of them are followed by what was at the front, or by nothing.
        match behind {
            // SAFETY: The links are valid by the type invariant.
            Some(behind) => unsafe { (*Self::inner(behind)).previous = Some(links) },
            None => self.back = Some(links),
        }
        self.len += count - skip;
    }

    fn inner(links: NonNull<FifoLinks>) -> *mut Inner {
        // CAST: The only other field takes no space, so the cell is where the links are.
        UnsafeCell::raw_get(links.as_ptr().cast::<UnsafeCell<Inner>>())
    }
}
