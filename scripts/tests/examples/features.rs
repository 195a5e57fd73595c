// SPDX-License-Identifier: GPL-2.0
//
// A program around the Rust example of Documentation/userspace-api/ummunotify.rst, which is inserted
// where a line is just @5@.

use std::{error::Error, ops::Range};

use ummunotify::{Causes, Features, Options, Stamp, Watcher};

const SIZE: usize = 8192;

/// What a test does to memory.
type Change = fn(*mut libc::c_void);

struct Adapter;

impl Adapter {
    fn pin(&self, _: &Range<u64>) -> Result<u64, Box<dyn Error>> {
        Ok(42)
    }

    fn unpin(&self, key: u64) -> Result<(), Box<dyn Error>> {
        println!("drop {key}");
        Ok(())
    }
}

fn example(adapter: &Adapter, memory: Range<u64>, change: Change) -> Result<(), Box<dyn Error>> {
    let cookie = 1;
@5@
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let protect = |at| unsafe {
        libc::mprotect(at, SIZE, libc::PROT_READ);
        libc::mprotect(at, SIZE, libc::PROT_READ | libc::PROT_WRITE);
    };
    let free = |at: *mut libc::c_void| unsafe {
        libc::madvise(at, SIZE, libc::MADV_FREE);
        at.write_bytes(2, SIZE);
    };
    let unmap = |at| unsafe {
        libc::munmap(at, SIZE);
    };
    for (name, change) in [("kept", protect as Change), ("kept", free), ("", unmap)] {
        let (access, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        let at = unsafe { libc::mmap(std::ptr::null_mut(), SIZE, access, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        unsafe { at.write_bytes(1, SIZE) };
        let start = at as u64;
        example(&Adapter, start..start + SIZE as u64, change)?;
        println!("{name}");
    }
    Ok(())
}
