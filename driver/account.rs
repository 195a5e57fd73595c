// SPDX-License-Identifier: GPL-2.0

//! The memory of an open file that is charged to its opener's user as locked memory.

use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

use crate::abstractions::locked_memory::LockedMemory;

use super::regions::NewRegion;

/// The memory of a file without regions: the page with the counter, and about one more.
const FILE_PAGES: usize = 2;

/// The number of regions that fit into a page.
const REGIONS_PER_PAGE: usize = PAGE_SIZE / NewRegion::SIZE;

/// The pages charged for a file.
///
/// # Invariants
///
/// Pages have been charged for the file and for `room` regions.
pub(super) struct Account {
    memory: LockedMemory,
    room: usize,
}

impl Account {
    /// Charges the user of the current task for a file, or fails with `ENOMEM`.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            memory: LockedMemory::new(FILE_PAGES)?,
            room: 0,
        })
    }

    /// Returns the number of charged pages.
    pub(super) fn pages(&self) -> usize {
        self.memory.pages()
    }

    /// Charges for one more region than `len`, or fails with `ENOMEM`.
    #[inline]
    pub(super) fn add(&mut self, len: usize) -> Result {
        if len < self.room {
            return Ok(());
        }
        self.add_page()
    }

    #[cold]
    fn add_page(&mut self) -> Result {
        self.memory.charge(1)?;
        // INVARIANT: A page was charged for them.
        self.room += REGIONS_PER_PAGE;
        Ok(())
    }

    /// Gives back what `len` regions do not need, except for one page: a program that alternates
    /// between REGISTER and UNREGISTER needs it again.
    #[inline]
    pub(super) fn shrink(&mut self, len: usize) {
        if self.room >= len + 2 * REGIONS_PER_PAGE {
            self.remove_pages(len + REGIONS_PER_PAGE);
        }
    }

    /// Gives back everything that `len` regions do not need.
    pub(super) fn shrink_to(&mut self, len: usize) {
        self.remove_pages(len);
    }

    #[cold]
    fn remove_pages(&mut self, len: usize) {
        let pages = self.room.saturating_sub(len) / REGIONS_PER_PAGE;
        // INVARIANT: The pages were charged for regions.
        self.memory.uncharge(pages);
        self.room -= pages * REGIONS_PER_PAGE;
    }
}
