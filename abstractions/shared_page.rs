// SPDX-License-Identifier: GPL-2.0

//! A page of kernel data that user space can map and read.

use core::ptr::NonNull;

use kernel::{
    bindings,
    error::to_result,
    mm::virt::VmaNew,
    page::{
        AsPageIter,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::atomic::Atomic, //
};

const WORDS: usize = PAGE_SIZE / size_of::<u64>();

#[repr(C)]
struct Words([Atomic<u64>; WORDS]);

/// A page of 64-bit words that the kernel writes and user space reads.
///
/// It is initially zero, and charged to the memory cgroup of the task that allocates it.
///
/// # Invariants
///
/// `page` is the only page of `words`.
pub(crate) struct SharedPage {
    words: VBox<Words>,
    page: NonNull<bindings::page>,
}

// SAFETY: The page is not tied to a thread. It is freed with `words`.
unsafe impl Send for SharedPage {}
// SAFETY: All words are atomic. `page` is only passed to functions that map it and synchronise.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    const VM_OPS: bindings::vm_operations_struct = bindings::vm_operations_struct {
        fault: Some(Self::fault),
        ..pin_init::zeroed()
    };

    /// Allocates a page. Sleeps. Fails with `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        // Users can provoke failures at will, so do not log them.
        let flags = GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN;
        let words = VBox::<Words>::new_uninit(flags)?;
        // SAFETY: The memory is zeroed, and zero is valid for an atomic integer.
        let mut words = unsafe { words.assume_init() };
        // A vmalloc allocation is page-aligned and has at least one page.
        let page = words.page_iter().next().ok_or(ENOMEM)?;
        let page = NonNull::new(page.as_ptr()).ok_or(ENOMEM)?;
        // INVARIANT: `Words` has the size of a page.
        Ok(Self { words, page })
    }

    /// Returns word number `INDEX`, which is at byte `8 * INDEX` of the mapping.
    #[inline]
    pub(crate) fn word<const INDEX: usize>(&self) -> &Atomic<u64> {
        const { assert!(INDEX < WORDS) };
        &self.words.0[INDEX]
    }

    /// Maps the page read-only: the `mmap` file operation.
    ///
    /// Fails with `EINVAL` unless the VMA covers exactly this page, and with `EACCES` if it is
    /// writable. It cannot be made writable later either: a private mapping would then get a copy
    /// that no longer changes.
    ///
    /// # Safety
    ///
    /// `self` must outlive the VMA and must not move.
    pub(super) unsafe fn map(&self, vma: &VmaNew) -> Result {
        let raw = vma.as_ptr();
        // SAFETY: This thread is setting up the VMA, so nothing else accesses it.
        let offset = unsafe { (*raw).vm_pgoff };
        if offset != 0 || vma.end() - vma.start() != PAGE_SIZE {
            return Err(EINVAL);
        }
        vma.try_clear_maywrite().map_err(|_| EACCES)?;
        vma.set_dontexpand();
        vma.set_mixedmap();
        // SAFETY: As above. `insert` uses `self` later, which outlives the VMA.
        unsafe {
            (*raw).vm_ops = &Self::VM_OPS;
            (*raw).vm_private_data = core::ptr::from_ref(self).cast_mut().cast();
            // Populate the mapping, so that accesses do not fault. `fault` is needed only after
            // something has removed the page again.
            Self::insert(raw)
        }
    }

    /// Inserts the page into the page table.
    ///
    /// # Safety
    ///
    /// `vma` must be valid, locked at least for reading, and set up by [`Self::map`].
    unsafe fn insert(vma: *mut bindings::vm_area_struct) -> Result {
        // SAFETY: `map` stored it there, and it outlives the VMA.
        let this = unsafe { &*(*vma).vm_private_data.cast::<Self>() };
        // SAFETY: `map` has set VM_MIXEDMAP, and the page is a valid single page.
        to_result(unsafe {
            bindings::vm_insert_page(
                vma,
                (*vma).__bindgen_anon_1.__bindgen_anon_1.vm_start,
                this.page.as_ptr(),
            )
        })
    }

    /// The `fault` operation of the VMA.
    ///
    /// # Safety
    ///
    /// Only the page fault handler may call this, for a VMA set up by [`Self::map`].
    unsafe extern "C" fn fault(fault: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The page fault handler passes a valid fault, and has locked its VMA.
        match unsafe { Self::insert((*fault).__bindgen_anon_1.vma) } {
            // EBUSY: another thread has inserted it.
            Ok(()) | Err(EBUSY) => bindings::vm_fault_reason_VM_FAULT_NOPAGE,
            Err(ENOMEM) => bindings::vm_fault_reason_VM_FAULT_OOM,
            Err(_) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
        }
    }
}
