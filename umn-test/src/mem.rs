// SPDX-License-Identifier: GPL-2.0

//! Memory to watch, and the system calls that change its mappings.
//!
//! These functions are safe because tests only pass them memory allocated here, never memory that
//! belongs to Rust objects.

use std::{
    ffi::c_void,
    fs::{
        self,
        File, //
    },
    io::{
        self,
        Read, //
    },
    ops::Range,
    os::{
        fd::AsRawFd,
        unix::fs::FileExt, //
    },
    ptr, //
};

use nix::{
    fcntl::{
        fallocate,
        FallocateFlags,
        OFlag, //
    },
    sys::memfd::{
        memfd_create,
        MFdFlags, //
    },
    unistd::pipe2,
};

use crate::device::check;

/// Size of a page.
pub const PAGE: u64 = 4096;

/// Size of a huge page.
pub const HUGE: u64 = 2 << 20;

/// Install guard pages; since Linux 6.13.
pub const MADV_GUARD_INSTALL: i32 = 102;

/// The memory of a test: pages between guard pages, so that their VMA extends no further.
///
/// It is never unmapped, since a part that the test has unmapped may have been reused.
pub struct Guarded {
    range: Range<u64>,
}

impl Guarded {
    /// Private anonymous pages, populated, never huge.
    pub fn new(pages: u64) -> io::Result<Self> {
        let area = Self::unpopulated(pages)?;
        area.fill();
        Ok(area)
    }

    /// Private anonymous pages, not populated yet, never huge.
    pub fn unpopulated(pages: u64) -> io::Result<Self> {
        let area = Self::map(pages, PAGE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)?;
        area.never_huge()?;
        Ok(area)
    }

    /// Shared anonymous pages, populated.
    pub fn shared(pages: u64) -> io::Result<Self> {
        let area = Self::map(pages, PAGE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, None)?;
        area.never_huge()?;
        area.fill();
        Ok(area)
    }

    /// The first pages of a file, shared, populated.
    pub fn of_file(file: &File, pages: u64) -> io::Result<Self> {
        let area = Self::map(pages, PAGE, libc::MAP_SHARED, Some(file))?;
        area.fill();
        Ok(area)
    }

    /// The first pages of a file, private, populated with the pages of the file.
    pub fn copy_of_file(file: &File, pages: u64) -> io::Result<Self> {
        let area = Self::map(pages, PAGE, libc::MAP_PRIVATE, Some(file))?;
        for page in 0..pages {
            read_byte(area.page(page).start);
        }
        Ok(area)
    }

    /// Private anonymous memory of `count` huge pages, aligned accordingly, not populated.
    pub fn huge(count: u64) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        Self::map(count * HUGE / PAGE, HUGE, flags, None)
    }

    fn map(pages: u64, align: u64, flags: i32, file: Option<&File>) -> io::Result<Self> {
        let length = pages * PAGE;
        let reserved = map(
            None,
            length + 2 * PAGE + align,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            None,
        )?;
        let start = (reserved + PAGE).next_multiple_of(align);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        map(Some(start), length, access, flags, file)?;
        Ok(Self {
            range: start..start + length,
        })
    }

    fn never_huge(&self) -> io::Result<()> {
        match advise(&self.range, libc::MADV_NOHUGEPAGE) {
            // A kernel without huge pages rejects this advice.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }

    /// Writes to each page, so that all are present, each with different content.
    pub fn fill(&self) {
        for page in 0..self.pages() {
            write_byte(self.page(page).start, Self::content(page));
        }
    }

    /// What [`Self::fill`] writes at the start of a page.
    pub fn content(page: u64) -> u8 {
        page as u8 | 1
    }

    /// The number of pages.
    pub fn pages(&self) -> u64 {
        (self.range.end - self.range.start) / PAGE
    }

    /// The whole range.
    pub fn all(&self) -> Range<u64> {
        self.range.clone()
    }

    /// The range of one page.
    pub fn page(&self, index: u64) -> Range<u64> {
        self.span(index..index + 1)
    }

    /// The range of several pages.
    pub fn span(&self, pages: Range<u64>) -> Range<u64> {
        assert!(pages.end <= self.pages());
        self.range.start + pages.start * PAGE..self.range.start + pages.end * PAGE
    }
}

fn pointer(range: &Range<u64>) -> *mut c_void {
    range.start as *mut c_void
}

fn length(range: &Range<u64>) -> usize {
    (range.end - range.start) as usize
}

/// Maps memory. With an address, it replaces what is mapped there.
pub fn map(
    at: Option<u64>,
    length: u64,
    access: i32,
    flags: i32,
    file: Option<&File>,
) -> io::Result<u64> {
    let fixed = if at.is_some() { libc::MAP_FIXED } else { 0 };
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: This is new memory, or replaces the test's own.
    let address = unsafe {
        libc::mmap(
            at.unwrap_or(0) as *mut c_void,
            length as usize,
            access,
            flags | fixed,
            fd,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(address as u64)
}

/// Maps fresh anonymous memory over a range.
pub fn map_over(range: &Range<u64>) -> io::Result<()> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    map(
        Some(range.start),
        range.end - range.start,
        access,
        flags,
        None,
    )
    .map(drop)
}

/// `munmap`.
pub fn unmap(range: &Range<u64>) -> io::Result<()> {
    // SAFETY: The test's own memory.
    check(unsafe { libc::munmap(pointer(range), length(range)) }).map(drop)
}

/// `mprotect`.
pub fn protect(range: &Range<u64>, access: i32) -> io::Result<()> {
    // SAFETY: The test's own memory.
    check(unsafe { libc::mprotect(pointer(range), length(range), access) }).map(drop)
}

/// `madvise`.
pub fn advise(range: &Range<u64>, advice: i32) -> io::Result<()> {
    // SAFETY: The test's own memory.
    check(unsafe { libc::madvise(pointer(range), length(range), advice) }).map(drop)
}

/// `mlock`.
pub fn lock(range: &Range<u64>) -> io::Result<()> {
    // SAFETY: The test's own memory.
    check(unsafe { libc::mlock(pointer(range), length(range)) }).map(drop)
}

/// Copies each page that this process may write and still shares with its parent, so that writing
/// to it takes no memory later.
pub fn copy_shared_pages() -> io::Result<()> {
    // SAFETY: Locking pages changes nothing in them.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT) })?;
    // SAFETY: As above.
    check(unsafe { libc::munlockall() }).map(drop)
}

/// `msync`, which writes the changed pages of a file to its disk.
pub fn write_back(range: &Range<u64>) -> io::Result<()> {
    // SAFETY: The test's own memory.
    check(unsafe { libc::msync(pointer(range), length(range), libc::MS_SYNC) }).map(drop)
}

/// `mremap` that moves a range onto another of the same length.
pub fn move_to(from: &Range<u64>, to: &Range<u64>) -> io::Result<()> {
    // SAFETY: Both ranges are the test's own memory.
    let address = unsafe {
        libc::mremap(
            pointer(from),
            length(from),
            length(to),
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
            pointer(to),
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `mremap` that changes the length, in place or, with `MREMAP_MAYMOVE`, elsewhere.
pub fn resize(range: &Range<u64>, pages: u64, flags: i32) -> io::Result<()> {
    // SAFETY: The test's own memory.
    let address = unsafe {
        libc::mremap(
            pointer(range),
            length(range),
            (pages * PAGE) as usize,
            flags,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Reads the byte at an address.
pub fn read_byte(address: u64) -> u8 {
    // SAFETY: The test's own memory, which it has mapped readable.
    unsafe { ptr::read_volatile(address as *const u8) }
}

/// Writes the byte at an address.
pub fn write_byte(address: u64, value: u8) {
    // SAFETY: The test's own memory, which it has mapped writable.
    unsafe { ptr::write_volatile(address as *mut u8, value) }
}

/// A pipe: the read end and the write end.
pub fn pipe() -> io::Result<(File, File)> {
    let (out, into) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((out.into(), into.into()))
}

/// Returns the byte at an address, or `None` if it cannot be read. Raises no signal.
///
/// Takes no lock of the address space while the page is present.
pub fn peek(address: u64) -> io::Result<Option<u8>> {
    let (mut out, into) = pipe()?;
    // SAFETY: The kernel checks the address.
    match check(unsafe { libc::write(into.as_raw_fd(), address as *const c_void, 1) }) {
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => return Ok(None),
        result => result?,
    };
    let mut byte = [0];
    out.read_exact(&mut byte)?;
    Ok(Some(byte[0]))
}

/// A file in memory (memfd) of some pages, which allows sealing.
pub fn memory_file(pages: u64) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create("umn-test", flags)?);
    file.set_len(pages * PAGE)?;
    Ok(file)
}

/// Punches a hole into a file.
pub fn punch_hole(file: &File, pages: Range<u64>) -> io::Result<()> {
    Ok(fallocate(
        file,
        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        (pages.start * PAGE) as _,
        ((pages.end - pages.start) * PAGE) as _,
    )?)
}

/// Maps a `T` that several processes share: the start of `file` or, without one, new memory that is
/// shared with all children forked later. It is never unmapped.
///
/// # Safety
///
/// All-zero bytes must be a valid `T` that several processes may access concurrently, such as a
/// structure of atomics. If there is a file, it must contain such a `T` and be at least as large.
#[cfg(target_pointer_width = "64")] // like its users
pub unsafe fn shared<T>(file: Option<&File>) -> io::Result<&'static T> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = match file {
        Some(_) => libc::MAP_SHARED,
        None => libc::MAP_SHARED | libc::MAP_ANONYMOUS,
    };
    let address = map(None, size_of::<T>() as u64, access, flags, file)?;
    // SAFETY: The mapping is large enough, page-aligned and never removed; the caller ensures the
    // rest.
    Ok(unsafe { &*(address as *const T) })
}

/// The entry of a page in `/proc/PID/pagemap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageState(u64);

impl PageState {
    /// Whether it is in memory.
    pub fn present(self) -> bool {
        (self.0 >> 63) & 1 == 1
    }

    /// Its page frame, if present; 0 without privilege.
    pub fn frame(self) -> u64 {
        self.0 & ((1 << 55) - 1)
    }
}

/// The state of each page of a range of this process.
pub fn page_states(range: &Range<u64>) -> io::Result<Vec<PageState>> {
    let map = File::open("/proc/self/pagemap")?;
    let mut bytes = vec![0; ((range.end - range.start) / PAGE * 8) as usize];
    map.read_exact_at(&mut bytes, range.start / PAGE * 8)?;
    Ok(bytes
        .chunks_exact(8)
        .map(|word| PageState(u64::from_ne_bytes(word.try_into().expect("8 bytes"))))
        .collect())
}

/// Whether a huge page is mapped somewhere in the VMA at an address.
pub fn is_huge(address: u64) -> io::Result<bool> {
    let maps = fs::read_to_string("/proc/self/smaps")?;
    let start = format!("{address:08x}-");
    let of_vma = maps.lines().skip_while(|line| !line.starts_with(&start));
    Ok(of_vma
        .take_while(|line| !line.starts_with("VmFlags"))
        .any(|line| line.starts_with("AnonHugePages:") && !line.ends_with(" 0 kB")))
}
