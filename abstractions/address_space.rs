// SPDX-License-Identifier: GPL-2.0

//! Address spaces: tags of addresses, and whether an address space still has users.
//!
//! C header: [`arch/x86/include/asm/uaccess_64.h`](srctree/arch/x86/include/asm/uaccess_64.h),
//! [`arch/arm64/include/asm/memory.h`](srctree/arch/arm64/include/asm/memory.h)

use kernel::mm::Mm;

/// Returns whether no task uses the address space any more; none ever will again then.
///
/// `false` may be outdated immediately.
pub(crate) fn is_gone(mm: &Mm) -> bool {
    // SAFETY: The `struct mm_struct` is valid. Others may change the count, so the load is
    // volatile.
    let users =
        unsafe { (&raw const (*mm.as_raw()).__bindgen_anon_1.mm_users.counter).read_volatile() };
    users == 0
}

/// Returns `address`, which is in the user space of `mm`, without its tag:
/// `untagged_addr_remote()`.
///
/// If the processor or the address space has no tags, that is `address` itself.
#[inline]
pub(crate) fn untagged(mm: &Mm, address: usize) -> usize {
    #[cfg(CONFIG_ADDRESS_MASKING)]
    {
        // SAFETY: The address space is valid. Others may change the mask, so the load is volatile.
        let mask = unsafe { (&raw const (*mm.as_raw()).context.untag_mask).read_volatile() };
        address & mask as usize
    }
    #[cfg(not(CONFIG_ADDRESS_MASKING))]
    {
        let _ = mm;
        if cfg!(target_arch = "aarch64") {
            // Bit 55 determines the bits above it; kernel addresses stay unchanged.
            address & (((address << 8) as isize) >> 8) as usize
        } else {
            address
        }
    }
}
