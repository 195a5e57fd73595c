// SPDX-License-Identifier: GPL-2.0

//! System calls that only the model makes, and what `/proc` says of the mappings.

use std::{
    fs::File,
    io,
    ops::Range,
    os::{
        fd::{
            AsRawFd,
            FromRawFd,
            OwnedFd, //
        },
        unix::fs::FileExt, //
    },
    ptr, //
};

use crate::{
    device::check,
    mem::PAGE, //
};

/// A VMA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// Its addresses.
    pub range: Range<u64>,
    /// Access rights, as `PROT_*` bits.
    pub access: i32,
    /// Whether writes go to the file.
    pub shared: bool,
    /// The inode number of the file, or 0.
    pub inode: u64,
    /// The offset of its start in the file.
    pub offset: u64,
}

impl Vma {
    /// The part of a range that lies in this VMA.
    pub fn part_of(&self, range: &Range<u64>) -> Option<Range<u64>> {
        common(&self.range, range)
    }

    /// The addresses in this VMA where these bytes of its file are mapped.
    pub fn of_file(&self, bytes: &Range<u64>) -> Option<Range<u64>> {
        let end = self.offset + (self.range.end - self.range.start);
        let part = common(&(self.offset..end), bytes)?;
        let at = |offset| self.range.start + (offset - self.offset);
        Some(at(part.start)..at(part.end))
    }
}

/// The intersection of two ranges.
pub fn common(one: &Range<u64>, other: &Range<u64>) -> Option<Range<u64>> {
    let (start, end) = (one.start.max(other.start), one.end.min(other.end));
    (start < end).then_some(start..end)
}

/// `struct procmap_query` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

/// `/proc/self/maps`, queried one VMA at a time; since Linux 6.11.
pub struct Maps(File);

impl Maps {
    /// Opens the maps of this process.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/maps").map(Self)
    }

    /// The VMAs that overlap a range.
    pub fn of(&self, range: &Range<u64>) -> io::Result<Vec<Vma>> {
        /// `PROCMAP_QUERY`.
        const QUERY: libc::c_ulong = 0xc068_6611;
        const COVERING_OR_NEXT: u64 = 0x10;
        const SHARED: u64 = 8;
        let mut found = vec![];
        let mut at = range.start;
        while at < range.end {
            let mut query = Query {
                size: size_of::<Query>() as u64,
                query_flags: COVERING_OR_NEXT,
                query_addr: at,
                ..Query::default()
            };
            // SAFETY: The argument is a `struct procmap_query` that asks for no names.
            match check(unsafe { libc::ioctl(self.0.as_raw_fd(), QUERY, &mut query) }) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                result => result?,
            };
            if query.vma_start >= range.end {
                break;
            }
            found.push(Vma {
                range: query.vma_start..query.vma_end,
                // The lowest bits are the same as those of `PROT_*`.
                access: (query.vma_flags & 7) as i32,
                shared: query.vma_flags & SHARED != 0,
                inode: query.inode,
                offset: query.vma_offset,
            });
            at = query.vma_end;
        }
        Ok(found)
    }
}

/// What is mapped at a page, according to `/proc/self/pagemap`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// The page frame, if one is mapped.
    pub fn frame(self) -> Option<u64> {
        (self.0 >> 63 == 1).then_some(self.0 & ((1 << 55) - 1))
    }

    /// Whether it is a page of a file, or shared memory.
    pub fn is_file(self) -> bool {
        (self.0 >> 61) & 1 == 1
    }

    /// Whether the page frame that was mapped here no longer is.
    pub fn is_lost(self, now: Self) -> bool {
        self.frame().is_some() && self.frame() != now.frame()
    }
}

/// `/proc/self/pagemap`.
pub struct Pagemap(File);

impl Pagemap {
    /// Opens the page map of this process.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/pagemap").map(Self)
    }

    /// Looks up the pages from `start` on.
    pub fn read(&self, start: u64, entries: &mut [Entry]) -> io::Result<()> {
        // SAFETY: Any bytes are valid entries, and each entry has eight.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(entries.as_mut_ptr().cast(), size_of_val(entries))
        };
        self.0.read_exact_at(bytes, start / PAGE * 8)
    }
}

/// Makes the kernel write a byte there, with a page fault if necessary.
///
/// Fails if the mapping does not allow it.
pub fn store(source: &File, address: u64) -> io::Result<()> {
    // SAFETY: The kernel checks the address, which is in an arena.
    check(unsafe { libc::pread(source.as_raw_fd(), address as *mut _, 1, 0) }).map(drop)
}

/// Makes the kernel read a byte there, with a page fault if necessary.
pub fn load(sink: &File, address: u64) -> io::Result<()> {
    // SAFETY: The kernel checks the address.
    check(unsafe { libc::pwrite(sink.as_raw_fd(), address as *const _, 1, 1) }).map(drop)
}

/// `mremap` with all its arguments.
pub fn remap(from: &Range<u64>, length: u64, flags: i32, to: u64) -> io::Result<()> {
    // SAFETY: The ranges are in an arena.
    let address = unsafe {
        libc::mremap(
            from.start as *mut _,
            (from.end - from.start) as usize,
            length as usize,
            flags,
            to as *mut libc::c_void,
        )
    };
    check(address as isize).map(drop)
}

/// Moves pages of a process to a node, as far as possible.
pub fn move_pages(pid: i32, pages: &[u64], node: i32) -> io::Result<()> {
    /// `MPOL_MF_MOVE` of `linux/mempolicy.h`, which the crate `libc` lacks.
    const MPOL_MF_MOVE: i32 = 2;
    let nodes = vec![node; pages.len()];
    let mut status = vec![0i32; pages.len()];
    // SAFETY: Each array has as many elements as the call is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            pid,
            pages.len(),
            pages.as_ptr(),
            nodes.as_ptr(),
            status.as_mut_ptr(),
            MPOL_MF_MOVE,
        )
    })
    .map(drop)
}

/// `mbind` to a node; pages elsewhere are moved.
pub fn bind(range: &Range<u64>, node: i32) -> io::Result<()> {
    /// As above.
    const MPOL_MF_MOVE: u32 = 2;
    let mask = 1u64 << node;
    // SAFETY: The mask has as many bits as the call is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mbind,
            range.start,
            range.end - range.start,
            libc::MPOL_BIND,
            &mask,
            64u64,
            MPOL_MF_MOVE,
        )
    })
    .map(drop)
}

/// `process_madvise`.
pub fn advise_other(pidfd: &OwnedFd, range: &Range<u64>, advice: i32) -> io::Result<()> {
    let range = libc::iovec {
        iov_base: range.start as *mut _,
        iov_len: (range.end - range.start) as usize,
    };
    // SAFETY: The kernel checks the range, which is in another process.
    check(unsafe {
        let fd = pidfd.as_raw_fd();
        libc::syscall(libc::SYS_process_madvise, fd, &range, 1usize, advice, 0)
    })
    .map(drop)
}

/// A file that refers to a process.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: The call takes no pointer.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: The file was just opened and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A userfaultfd that never blocks anybody: a write to a protected page just removes its
/// protection.
pub struct Uffd(OwnedFd);

impl Uffd {
    const API: libc::c_ulong = 0xc018_aa3f;
    const REGISTER: libc::c_ulong = 0xc020_aa00;
    const MOVE: libc::c_ulong = 0xc028_aa05;
    const WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
    /// `UFFD_FEATURE_PAGEFAULT_FLAG_WP`, `_WP_UNPOPULATED`, `_WP_ASYNC` and `_MOVE`.
    const FEATURES: u64 = 1 | (1 << 13) | (1 << 15) | (1 << 16);

    /// Opens one; fails if the kernel lacks one of the features.
    pub fn open() -> io::Result<Self> {
        // SAFETY: The call takes no pointer.
        let fd = check(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) })?;
        // SAFETY: The file was just opened and is nobody else's.
        let uffd = Self(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        uffd.ioctl(Self::API, &mut [0xaa, Self::FEATURES, 0])?;
        Ok(uffd)
    }

    /// Issues an ioctl whose argument is an array of 64-bit numbers.
    fn ioctl<const N: usize>(
        &self,
        request: libc::c_ulong,
        argument: &mut [u64; N],
    ) -> io::Result<()> {
        // SAFETY: The argument is what the command expects.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument.as_mut_ptr()) }).map(drop)
    }

    /// `UFFDIO_REGISTER`, to write-protect.
    pub fn register(&self, range: &Range<u64>) -> io::Result<()> {
        const MODE_WP: u64 = 2;
        let length = range.end - range.start;
        self.ioctl(Self::REGISTER, &mut [range.start, length, MODE_WP, 0])
    }

    /// `UFFDIO_WRITEPROTECT`.
    pub fn protect(&self, range: &Range<u64>, protect: bool) -> io::Result<()> {
        let length = range.end - range.start;
        let mode = u64::from(protect);
        self.ioctl(Self::WRITEPROTECT, &mut [range.start, length, mode])
    }

    /// `UFFDIO_MOVE`.
    pub fn move_to(&self, from: &Range<u64>, to: u64) -> io::Result<()> {
        const ALLOW_SRC_HOLES: u64 = 2;
        let length = from.end - from.start;
        self.ioctl(
            Self::MOVE,
            &mut [to, from.start, length, ALLOW_SRC_HOLES, 0],
        )
    }
}

/// Entries for the pages of a range, not yet looked up.
pub fn entries(range: &Range<u64>) -> Vec<Entry> {
    vec![Entry::default(); ((range.end - range.start) / PAGE) as usize]
}

/// Reads into several buffers.
pub fn readv(file: &impl AsRawFd, buffers: &[(u64, usize)]) -> io::Result<usize> {
    let iov: Vec<libc::iovec> = buffers
        .iter()
        .map(|(at, length)| libc::iovec {
            iov_base: ptr::without_provenance_mut(*at as usize),
            iov_len: *length,
        })
        .collect();
    // SAFETY: The kernel checks the buffers, which are the model's own or meant to be bad.
    let read = check(unsafe { libc::readv(file.as_raw_fd(), iov.as_ptr(), iov.len() as i32) })?;
    Ok(read as usize)
}
