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

#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(ummunotify_page_frames)]
mod tests {
    use super::*;

    use kernel::{
        error::to_result,
        uaccess::{
            UserPtr,
            UserSlice, //
        },
    };

    use crate::abstractions::kunit::expect_eq;

    /// Returns the number of absent pages, and the first two frames.
    fn frames(start: usize) -> (usize, [Option<usize>; 2]) {
        let (mut found, mut count) = ([None; 2], 0);
        let absent = look_up(start, 2, |frame| {
            found[count] = Some(frame.id());
            count += 1;
        });
        (absent, found)
    }

    /// An example of how to look up frames.
    #[test]
    fn a_page_has_a_frame_once_it_is_written_to() -> Result {
        const PROT_READ_WRITE: usize = 3;
        const MAP_PRIVATE_ANONYMOUS: usize = 0x22;
        // SAFETY: This is the thread of a KUnit test, and the memory is new.
        let start = unsafe {
            to_result(bindings::kunit_attach_mm())?;
            bindings::vm_mmap(
                core::ptr::null_mut(),
                0,
                2 * PAGE_SIZE,
                PROT_READ_WRITE,
                MAP_PRIVATE_ANONYMOUS,
                0,
            )
        };
        expect_eq!(frames(start), (2, [None; 2]));

        let second = UserPtr::from_addr(start + PAGE_SIZE);
        UserSlice::new(second, size_of::<u64>())
            .writer()
            .write(&1u64)?;
        let (absent, found) = frames(start);
        expect_eq!(absent, 1);
        assert!(found[0].is_some());
        expect_eq!(frames(start), (absent, found));

        // SAFETY: Nothing refers to the memory any more.
        to_result(unsafe { bindings::vm_munmap(start, 2 * PAGE_SIZE) })?;
        expect_eq!(frames(start), (2, [None; 2]));
        Ok(())
    }
}
