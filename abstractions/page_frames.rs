// SPDX-License-Identifier: GPL-2.0

//! Which page frames are mapped in the address space of the current task.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use core::mem::MaybeUninit;

use kernel::{
    bindings,
    page::PAGE_SIZE,
    prelude::*, //
};

/// Identifies a page frame until the machine is rebooted.
///
/// It is the address of its `struct page`, so it must not be disclosed to user space.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame(usize);

impl Frame {
    /// Returns a number that no other frame has.
    #[inline]
    pub(crate) fn id(self) -> usize {
        self.0
    }
}

/// The most pages that are looked up at once, with interrupts disabled.
const BATCH: usize = 64;

/// Looks up the frames that are mapped at the `count` pages from the address `start` on, and calls
/// `visit` for each. Returns the number of pages without a frame.
///
/// These are the pages that fast GUP refuses: pages that are not mapped or not readable, and
/// special entries. Nothing is faulted in, and no frame is held when this returns.
///
/// Must be called where the task may sleep.
pub(crate) fn look_up(start: usize, count: usize, mut visit: impl FnMut(Frame)) -> usize {
    let mut absent = 0;
    let mut page = 0;
    let mut most = BATCH;
    while page < count {
        let address = start.wrapping_add(page * PAGE_SIZE);
        let asked = most.min(count - page);
        let mut pages = [const { MaybeUninit::<*mut bindings::page>::uninit() }; BATCH];
        // SAFETY: There is room for the requested number of pages. Any address may be requested.
        let found = unsafe {
            bindings::get_user_pages_fast_only(
                address,
                asked as c_int,
                0,
                pages.as_mut_ptr().cast(),
            )
        };
        most = BATCH;
        if found > 0 {
            // No overflow: it is positive.
            let found = found as usize;
            for frame in &pages[..found.min(asked)] {
                // SAFETY: The first `found` elements were written to.
                visit(Frame(unsafe { frame.assume_init() } as usize));
            }
            let pages = bindings::release_pages_arg {
                pages: pages.as_mut_ptr().cast(),
            };
            // SAFETY: A reference to each of these pages was taken above.
            unsafe { bindings::release_pages(pages, found as c_int) };
            page += found;
        } else if found < 0 && asked > 1 {
            // Some addresses are beyond user space, but not necessarily all of them.
            most = 1;
        } else {
            absent += 1;
            page += 1;
        }
        kernel::task::might_sleep();
    }
    absent
}
