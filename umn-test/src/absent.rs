// SPDX-License-Identifier: GPL-2.0

//! Memory that makes who accesses it wait: `userfaultfd`.

use std::{
    ffi::c_void,
    io,
    os::fd::{
        AsRawFd,
        FromRawFd,
        OwnedFd, //
    }, //
};

use crate::{
    device::check,
    expect::{
        self,
        OrSkip,
        Outcome, //
    },
    mem::{
        Guarded,
        PAGE, //
    },
};

/// `struct uffdio_api` of `linux/userfaultfd.h`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

const UFFDIO_API: u32 = 0xc018_aa3f;
const UFFDIO_REGISTER: u32 = 0xc020_aa00;
const UFFDIO_COPY: u32 = 0xc028_aa03;
const UFFD_API: u64 = 0xaa;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;

/// A page that is not there until it is provided.
///
/// Who accesses it before that waits, even where it is the kernel that does so in a system call. So
/// a test can do things in the middle of the call.
pub struct Absent {
    page: Guarded,
    faults: OwnedFd,
}

impl Absent {
    /// A page that nobody waits for yet.
    pub fn new() -> Outcome<Self> {
        let page = Guarded::unpopulated(1)?;
        // Only one that does not block can be polled.
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: The call takes no pointer.
        let fd = check(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })
            .or_skip("userfaultfd for the kernel's accesses")?;
        // SAFETY: The file was just opened and is nobody else's.
        let faults = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let absent = Self { page, faults };
        absent.ioctl(
            UFFDIO_API,
            &mut Api {
                api: UFFD_API,
                features: 0,
                ioctls: 0,
            },
        )?;
        absent.ioctl(
            UFFDIO_REGISTER,
            &mut Register {
                start: absent.page.all().start,
                length: PAGE,
                mode: UFFDIO_REGISTER_MODE_MISSING,
                ioctls: 0,
            },
        )?;
        Ok(absent)
    }

    /// Where it is.
    pub fn pointer(&self) -> *mut c_void {
        self.page.all().start as *mut c_void
    }

    /// Waits until somebody waits for it.
    pub fn is_awaited(&self) -> Outcome {
        let mut poll = libc::pollfd {
            fd: self.faults.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `poll` is one valid `pollfd`.
        check(unsafe { libc::poll(&mut poll, 1, 10_000) })?;
        expect::same(
            "POLLIN for an access to the page",
            poll.revents,
            libc::POLLIN,
        )
    }

    /// Lets who waits for it go on, and find these bytes at its start.
    pub fn provide(&self, bytes: &[u8]) -> io::Result<()> {
        let mut content = [0; PAGE as usize];
        content[..bytes.len()].copy_from_slice(bytes);
        self.ioctl(
            UFFDIO_COPY,
            &mut Copy {
                to: self.page.all().start,
                from: content.as_ptr() as u64,
                length: PAGE,
                mode: 0,
                copied: 0,
            },
        )
    }

    /// `T` must be what the command takes.
    fn ioctl<T>(&self, command: u32, argument: &mut T) -> io::Result<()> {
        // SAFETY: The argument is what the command takes.
        check(unsafe { libc::ioctl(self.faults.as_raw_fd(), command as _, argument) }).map(drop)
    }
}
