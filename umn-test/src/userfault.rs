// SPDX-License-Identifier: GPL-2.0

//! `userfaultfd`: write-protects pages, moves them, and blocks accesses to missing pages.

use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::{
        AsFd,
        AsRawFd,
        FromRawFd,
        OwnedFd, //
    },
};

use nix::poll::{
    poll,
    PollFd,
    PollFlags, //
};

use crate::{
    device::check,
    expect::{
        self,
        Failure,
        OrSkip,
        Outcome, //
    },
};

/// The feature of write-protecting pages.
pub const FEATURE_WRITE_PROTECT: u64 = 1 << 0;
/// Writes to such pages are recorded instead of blocked.
pub const FEATURE_WRITE_PROTECT_ASYNC: u64 = 1 << 15;
/// The feature of protecting pages from any access; since Linux 7.3.
pub const FEATURE_PROTECT: u64 = 1 << 17;
/// Accesses to such pages are recorded instead of blocked.
pub const FEATURE_PROTECT_ASYNC: u64 = 1 << 18;
/// The feature of moving pages; since Linux 6.8.
pub const FEATURE_MOVE: u64 = 1 << 16;

/// Registers a range for missing pages.
pub const MODE_MISSING: u64 = 1 << 0;
/// Registers a range for write-protected pages.
pub const MODE_WRITE_PROTECT: u64 = 1 << 1;

/// Registers a range for pages that are protected from access.
pub const MODE_PROTECT: u64 = 1 << 3;

/// A userfaultfd.
pub struct UserFault(OwnedFd);

impl From<UserFault> for File {
    /// Converts into the file, for reading events.
    fn from(uffd: UserFault) -> Self {
        uffd.0.into()
    }
}

impl UserFault {
    /// Opens a userfaultfd with these features; skips the test if the kernel lacks one of them.
    pub fn new(features: u64) -> Outcome<Self> {
        Self::with_flags(features, 0)
    }

    /// The same, but non-blocking.
    pub fn nonblocking(features: u64) -> Outcome<Self> {
        Self::with_flags(features, libc::O_NONBLOCK)
    }

    fn with_flags(features: u64, flags: i32) -> Outcome<Self> {
        const UFFDIO_API: u32 = 0xc018_aa3f;
        const UFFD_API: u64 = 0xaa;
        // SAFETY: The call takes no pointer.
        let fd = check(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | flags) })
            .or_skip("userfaultfd")?;
        // SAFETY: The file was just opened and is nobody else's.
        let this = Self(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        match this.ioctl(UFFDIO_API, [UFFD_API, features, 0]) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let why = format!("userfaultfd lacks one of the features {features:#x}");
                Err(Failure::Skipped(why))
            }
            result => Ok(result.map(|()| this)?),
        }
    }

    /// Registers a range.
    pub fn register(&self, range: &Range<u64>, mode: u64) -> io::Result<()> {
        const UFFDIO_REGISTER: u32 = 0xc020_aa00;
        let length = range.end - range.start;
        self.ioctl(UFFDIO_REGISTER, [range.start, length, mode, 0])
    }

    /// Unregisters a range.
    pub fn unregister(&self, range: &Range<u64>) -> io::Result<()> {
        const UFFDIO_UNREGISTER: u32 = 0x8010_aa01;
        self.ioctl(UFFDIO_UNREGISTER, [range.start, range.end - range.start])
    }

    /// Write-protects a registered range.
    pub fn write_protect(&self, range: &Range<u64>) -> io::Result<()> {
        const UFFDIO_WRITEPROTECT: u32 = 0xc018_aa06;
        self.change_protection(UFFDIO_WRITEPROTECT, range)
    }

    /// Protects a registered range from any access.
    pub fn protect(&self, range: &Range<u64>) -> io::Result<()> {
        const UFFDIO_RWPROTECT: u32 = 0xc018_aa09;
        self.change_protection(UFFDIO_RWPROTECT, range)
    }

    fn change_protection(&self, request: u32, range: &Range<u64>) -> io::Result<()> {
        /// `UFFDIO_WRITEPROTECT_MODE_WP` and `UFFDIO_RWPROTECT_MODE_RWP`.
        const MODE_ON: u64 = 1;
        let length = range.end - range.start;
        self.ioctl(request, [range.start, length, MODE_ON])
    }

    /// Moves pages to a registered range where none are mapped.
    pub fn move_pages(&self, from: &Range<u64>, to: &Range<u64>) -> io::Result<()> {
        const UFFDIO_MOVE: u32 = 0xc028_aa05;
        let length = from.end - from.start;
        self.ioctl(UFFDIO_MOVE, [to.start, from.start, length, 0, 0])
    }

    /// Provides a missing page of a registered range.
    pub fn provide(&self, page: &Range<u64>, content: &[u8]) -> io::Result<()> {
        const UFFDIO_COPY: u32 = 0xc028_aa03;
        let length = page.end - page.start;
        assert_eq!(content.len() as u64, length);
        let from = content.as_ptr() as u64;
        self.ioctl(UFFDIO_COPY, [page.start, from, length, 0, 0])
    }

    /// Waits up to ten seconds for an access to block. The userfaultfd must be non-blocking.
    pub fn wait_for_access(&self) -> Outcome {
        let mut faults = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut faults, 10_000u16)?;
        let seen = faults[0].revents();
        expect::same("access to the page", seen, Some(PollFlags::POLLIN))
    }

    /// Duplicates the descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Issues an ioctl whose argument is a structure of 64-bit fields.
    fn ioctl<const WORDS: usize>(
        &self,
        command: u32,
        mut argument: [u64; WORDS],
    ) -> io::Result<()> {
        // SAFETY: The argument is as large as the command says.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), command as _, argument.as_mut_ptr()) })
            .map(drop)
    }
}
