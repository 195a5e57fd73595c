// SPDX-License-Identifier: GPL-2.0

//! A page of kernel data that user space may map and read.

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
/// The memory is zeroed, and charged to the memory cgroup of the task that allocates it.
///
/// # Invariants
///
/// `page` is the only page of `words`.
pub(crate) struct SharedPage {
    words: VBox<Words>,
    page: NonNull<bindings::page>,
}

// SAFETY: A page has no ties to a thread, and is freed with `words`.
unsafe impl Send for SharedPage {}
// SAFETY: All words are atomic; the page is only mapped, which the kernel synchronises.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    const VM_OPS: bindings::vm_operations_struct = bindings::vm_operations_struct {
        fault: Some(Self::fault),
        ..pin_init::zeroed()
    };

    /// Allocates a page.
    pub(crate) fn new() -> Result<Self> {
        // vmalloc would tell the kernel log of a failure, as often as anybody cares to provoke it.
        let flags = GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN;
        let words = VBox::<Words>::new_uninit(flags)?;
        // SAFETY: The memory is zeroed, and zero is valid for an atomic integer.
        let mut words = unsafe { words.assume_init() };
        // A vmalloc allocation starts at a page boundary and has at least one page.
        let page = words.page_iter().next().ok_or(ENOMEM)?;
        let page = NonNull::new(page.as_ptr()).ok_or(ENOMEM)?;
        // INVARIANT: `Words` is as large as a page.
        Ok(Self { words, page })
    }

    /// Returns the word at `INDEX`, which is at byte `8 * INDEX` of the mapping.
    #[inline]
    pub(crate) fn word<const INDEX: usize>(&self) -> &Atomic<u64> {
        const { assert!(INDEX < WORDS) };
        &self.words.0[INDEX]
    }

    /// Maps the page for reading: the `mmap` file operation.
    ///
    /// Fails with `EINVAL` unless exactly this page is asked for, and with `EACCES` where it is to
    /// be writable, now or, by a private copy that would not change any more, later.
    ///
    /// # Safety
    ///
    /// `self` must stay where it is and outlive the VMA.
    pub(super) unsafe fn map(&self, vma: &VmaNew) -> Result {
        let raw = vma.as_ptr();
        // SAFETY: The VMA is being set up by this thread, so nothing else accesses it.
        let offset = unsafe { (*raw).vm_pgoff };
        if offset != 0 || vma.end() - vma.start() != PAGE_SIZE {
            return Err(EINVAL);
        }
        vma.try_clear_maywrite().map_err(|_| EACCES)?;
        vma.set_dontexpand();
        vma.set_mixedmap();
        // SAFETY: As above. `fault` gets `self` back, which outlives the VMA.
        unsafe {
            (*raw).vm_ops = &Self::VM_OPS;
            (*raw).vm_private_data = core::ptr::from_ref(self).cast_mut().cast();
            // So that no access ever faults, but for one after the page was unmapped by force.
            Self::insert(raw)
        }
    }

    /// # Safety
    ///
    /// `vma` must be valid, locked at least for reading, and set up by [`Self::map`].
    unsafe fn insert(vma: *mut bindings::vm_area_struct) -> Result {
        // SAFETY: `map` put it there, and it outlives the VMA.
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

    /// # Safety
    ///
    /// Only to be called by the page fault handler, for a VMA set up by [`Self::map`].
    unsafe extern "C" fn fault(fault: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The page fault handler passes a valid fault, of a VMA that it has locked.
        match unsafe { Self::insert((*fault).__bindgen_anon_1.vma) } {
            // EBUSY: another thread was quicker.
            Ok(()) | Err(EBUSY) => bindings::vm_fault_reason_VM_FAULT_NOPAGE,
            Err(ENOMEM) => bindings::vm_fault_reason_VM_FAULT_OOM,
            Err(_) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
        }
    }
}
