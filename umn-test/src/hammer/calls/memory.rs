// SPDX-License-Identifier: GPL-2.0

//! The mapped counter, and changes to watched memory.

use std::{
    ffi::c_void,
    ptr, //
};

use super::answer::{
    number,
    Answer,
    Verdict::{
        May,
        MustFail, //
    }, //
};
use crate::{
    hammer::caller::{
        Caller,
        ARENA,
        ARENA_PAGES, //
    },
    mem::PAGE, //
};

pub fn map(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let at = caller.window_page();
    let usual = caller.once_in(2);
    let (access, length, offset) = if usual {
        (libc::PROT_READ, 8, 0)
    } else {
        (
            caller.some_of(&[libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC]),
            caller.one_of(&[0, 1, 4096, 4097, 8192, 1 << 30, !0]),
            caller.one_of(&[0, 0, 0, 1, 4096, 1 << 40, i64::MIN]),
        )
    };
    let share = caller.one_of(&[
        libc::MAP_SHARED,
        libc::MAP_SHARED,
        libc::MAP_PRIVATE,
        libc::MAP_SHARED_VALIDATE,
        0,
    ]);
    let place = caller.one_of(&[
        libc::MAP_FIXED,
        libc::MAP_FIXED,
        libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE,
    ]);
    let extra = if usual {
        0
    } else {
        caller.some_of(&[
            libc::MAP_POPULATE,
            libc::MAP_LOCKED,
            libc::MAP_NORESERVE,
            libc::MAP_SYNC,
            libc::MAP_GROWSDOWN,
        ])
    };
    let one_page = (1..=PAGE as usize).contains(&length);
    let verdict = if access & libc::PROT_WRITE == 0 && one_page && offset == 0 {
        May
    } else {
        MustFail
    };
    // SAFETY: Only mapped counters are in this range.
    let mapped = unsafe {
        libc::mmap(
            at as *mut c_void,
            length,
            access,
            share | place | extra,
            fd,
            offset,
        )
    };
    (verdict, number(mapped as i64))
}

pub fn unmap(caller: &mut Caller) -> Answer {
    let at = caller.window_page() as *mut c_void;
    let length = caller.rng.usize(1..3) * PAGE as usize;
    // SAFETY: Only mapped counters are in this range.
    (May, number(unsafe { libc::munmap(at, length) }))
}

pub fn protect(caller: &mut Caller) -> Answer {
    let at = caller.window_page() as *mut c_void;
    let access = caller.some_of(&[libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC]);
    let verdict = if access & libc::PROT_WRITE == 0 {
        May
    } else {
        MustFail
    };
    // SAFETY: Only mapped counters are in this range.
    let result = unsafe { libc::mprotect(at, PAGE as usize, access) };
    (verdict, number(result))
}

pub fn remap(caller: &mut Caller) -> Answer {
    let (from, to) = (caller.window_page(), caller.window_page());
    let old = caller.one_of(&[0, PAGE, PAGE, 2 * PAGE]) as usize;
    let new = caller.one_of(&[0, PAGE, PAGE, 2 * PAGE, 1 << 30]) as usize;
    // Always to an address in the window, where no other memory is.
    let flags = libc::MREMAP_FIXED | libc::MREMAP_MAYMOVE | caller.one_of(&[0, 0, 4]);
    // The mapping cannot grow.
    let verdict = if new > old.max(PAGE as usize) {
        MustFail
    } else {
        May
    };
    // SAFETY: Only mapped counters are in this range.
    let moved = unsafe { libc::mremap(from as *mut c_void, old, new, flags, to as *mut c_void) };
    (verdict, number(moved as i64))
}

/// Advice for the counter's mapping; guard pages and collapsing are missing in the crate `libc`.
const ADVICE: &[i32] = &[
    libc::MADV_DONTNEED,
    libc::MADV_DONTNEED,
    libc::MADV_WILLNEED,
    libc::MADV_FREE,
    libc::MADV_REMOVE,
    libc::MADV_DONTFORK,
    libc::MADV_DOFORK,
    libc::MADV_MERGEABLE,
    libc::MADV_UNMERGEABLE,
    libc::MADV_HUGEPAGE,
    libc::MADV_NOHUGEPAGE,
    libc::MADV_DONTDUMP,
    libc::MADV_WIPEONFORK,
    libc::MADV_KEEPONFORK,
    libc::MADV_COLD,
    libc::MADV_PAGEOUT,
    libc::MADV_POPULATE_READ,
    25, // MADV_COLLAPSE
    crate::mem::MADV_GUARD_INSTALL,
    103, // MADV_GUARD_REMOVE
];

pub fn advise(caller: &mut Caller) -> Answer {
    let at = caller.window_page() as *mut c_void;
    let (verdict, advice) = if caller.once_in(8) {
        (MustFail, libc::MADV_POPULATE_WRITE)
    } else {
        (May, caller.one_of(ADVICE))
    };
    // SAFETY: Only mapped counters are in this range.
    let result = unsafe { libc::madvise(at, PAGE as usize, advice) };
    (verdict, number(result))
}

/// A number on the stack and one in the window, for a copy from one to the other.
pub fn copy_vectors(caller: &mut Caller, own: &mut u64) -> (libc::iovec, libc::iovec) {
    let piece = |at: *mut c_void| libc::iovec {
        iov_base: at,
        iov_len: size_of::<u64>(),
    };
    let window = caller.window_page() as *mut c_void;
    (piece(ptr::from_mut(own).cast()), piece(window))
}

pub fn peek(caller: &mut Caller) -> Answer {
    let mut own = 0;
    let (here, there) = copy_vectors(caller, &mut own);
    // SAFETY: `here` may be written to.
    let result = unsafe { libc::process_vm_readv(libc::getpid(), &here, 1, &there, 1, 0) };
    (May, number(result))
}

pub fn poke(caller: &mut Caller) -> Answer {
    let mut own = 0;
    let (here, there) = copy_vectors(caller, &mut own);
    // SAFETY: Only mapped counters are in this range.
    let result = unsafe { libc::process_vm_writev(libc::getpid(), &here, 1, &there, 1, 0) };
    (MustFail, number(result))
}

/// Changes mappings of watched memory in a random way.
pub fn change(caller: &mut Caller) -> Answer {
    let most = if caller.once_in(10) { ARENA_PAGES } else { 4 };
    let from = caller.arena_page();
    let room = (ARENA + ARENA_PAGES * PAGE - from) / PAGE;
    let pages = caller.rng.u64(1..=most.min(room));
    let to = ARENA + caller.rng.u64(0..=ARENA_PAGES - pages) * PAGE;
    let length = (pages * PAGE) as usize;
    let at = from as *mut c_void;
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let access = caller.one_of(&[libc::PROT_NONE, libc::PROT_READ, both, both]);
    let share = caller.one_of(&[libc::MAP_PRIVATE, libc::MAP_PRIVATE, libc::MAP_SHARED]);
    let advice = caller.one_of(&[
        libc::MADV_DONTNEED,
        libc::MADV_DONTNEED,
        libc::MADV_FREE,
        libc::MADV_PAGEOUT,
        libc::MADV_COLD,
        libc::MADV_DONTFORK,
        libc::MADV_DOFORK,
        libc::MADV_MERGEABLE,
        libc::MADV_UNMERGEABLE,
        crate::mem::MADV_GUARD_INSTALL,
        103, // MADV_GUARD_REMOVE
    ]);
    let fixed = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: Only the kernel accesses the memory of the arena.
    let result = unsafe {
        match caller.rng.u32(0..10) {
            0 | 1 => {
                let flags = share | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                number(libc::mmap(at, length, both, flags, -1, 0) as i64)
            }
            2 => number(libc::munmap(at, length)),
            3 => number(libc::mprotect(at, length, access)),
            4 => number(libc::mremap(at, length, length, fixed, to as *mut c_void) as i64),
            5..=7 => number(libc::madvise(at, length, libc::MADV_POPULATE_WRITE)),
            _ => number(libc::madvise(at, length, advice)),
        }
    };
    (May, result)
}
