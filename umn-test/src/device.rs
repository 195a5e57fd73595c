// SPDX-License-Identifier: GPL-2.0

//! `/dev/ummunotify` as a Rust object: one method for each call a program can make.

use std::{
    ffi::c_void,
    fs::{
        File,
        OpenOptions, //
    },
    io,
    os::{
        fd::{
            AsRawFd,
            OwnedFd,
            RawFd, //
        },
        unix::fs::OpenOptionsExt, //
    },
    ptr::NonNull,
    sync::atomic::{
        AtomicU64,
        Ordering, //
    },
    time::Duration, //
};

use crate::uapi::{
    self,
    Event,
    Register, //
};

/// Where the device is.
pub const PATH: &str = "/dev/ummunotify";

/// An open file of the device, bound to the address space of the process that opened it.
pub struct Device {
    file: File,
}

impl Device {
    /// Opens the device for blocking reads.
    pub fn open() -> io::Result<Self> {
        Self::open_with(0)
    }

    /// Opens the device for reads that return `EAGAIN` where nothing is queued.
    pub fn open_nonblocking() -> io::Result<Self> {
        Self::open_with(libc::O_NONBLOCK)
    }

    fn open_with(flags: i32) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(PATH)?;
        Ok(Self { file })
    }

    /// Issues an ioctl with a pointer argument that the caller vouches for or means to be bad.
    pub fn ioctl_raw(&self, request: u32, argument: *mut c_void) -> io::Result<()> {
        // SAFETY: The kernel checks the pointer; what it may write there is the caller's to allow.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), request as _, argument) };
        check(result).map(drop)
    }

    /// Asks for `wanted` features; returns those granted.
    pub fn exchange_features(&self, wanted: u32) -> io::Result<u32> {
        let mut mask = wanted;
        self.ioctl_raw(uapi::EXCHANGE_FEATURES, (&raw mut mask).cast())?;
        Ok(mask)
    }

    /// Watches `start .. end` under the name `cookie`.
    pub fn register(&self, start: u64, end: u64, cookie: u64) -> io::Result<()> {
        self.register_with(Register {
            start,
            end,
            user_cookie: cookie,
            ..Register::default()
        })
    }

    /// Watches a region, with every field of the argument given.
    pub fn register_with(&self, mut region: Register) -> io::Result<()> {
        self.ioctl_raw(uapi::REGISTER_REGION, (&raw mut region).cast())
    }

    /// Stops to watch the region named `cookie`.
    pub fn unregister(&self, mut cookie: u64) -> io::Result<()> {
        self.ioctl_raw(uapi::UNREGISTER_REGION, (&raw mut cookie).cast())
    }

    /// Reads into memory that the caller vouches for or means to be bad; returns the bytes read.
    pub fn read_raw(&self, buffer: *mut c_void, length: usize) -> io::Result<usize> {
        // SAFETY: The kernel checks the pointer; what it may write there is the caller's to allow.
        let read = check(unsafe { libc::read(self.file.as_raw_fd(), buffer, length) })?;
        Ok(read as usize)
    }

    /// Reads at most `most` records with one `read` call.
    pub fn read_events(&self, most: usize) -> io::Result<Vec<Event>> {
        let mut events = vec![Event::default(); most];
        let bytes = most * size_of::<Event>();
        let read = self.read_raw(events.as_mut_ptr().cast(), bytes)?;
        if read % size_of::<Event>() != 0 {
            return Err(io::Error::other(format!(
                "read returned {read} bytes, not whole records"
            )));
        }
        events.truncate(read / size_of::<Event>());
        Ok(events)
    }

    /// Waits until one of `events` (`POLLIN` …) is there; returns what is, 0 when time ran out.
    pub fn poll(&self, events: i16, timeout: Duration) -> io::Result<i16> {
        let mut fd = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events,
            revents: 0,
        };
        // SAFETY: `fd` is one valid `pollfd`.
        check(unsafe { libc::poll(&mut fd, 1, timeout.as_millis() as i32) })?;
        Ok(fd.revents)
    }

    /// Maps the page with the generation counter.
    pub fn map_counter(&self) -> io::Result<Counter> {
        // SAFETY: A new mapping, where the kernel likes.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<u64>(),
                libc::PROT_READ,
                libc::MAP_SHARED,
                self.file.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Counter {
            page: NonNull::new(page)
                .expect("mmap does not return null")
                .cast(),
        })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl From<OwnedFd> for Device {
    /// Takes a file that was passed by another process, or is a duplicate.
    fn from(fd: OwnedFd) -> Self {
        Self { file: fd.into() }
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The mapped generation counter; as long as it stands still, nothing happened.
pub struct Counter {
    page: NonNull<AtomicU64>,
}

// SAFETY: The mapping is read only, and can be read from any thread.
unsafe impl Send for Counter {}
// SAFETY: As above.
unsafe impl Sync for Counter {}

impl Counter {
    /// The counter's value now: one load, no system call.
    pub fn get(&self) -> u64 {
        // SAFETY: The mapping lives as long as `self`, and is aligned to a page.
        unsafe { self.page.as_ref() }.load(Ordering::Acquire)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // SAFETY: Nothing refers to the mapping any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), size_of::<u64>()) };
    }
}

/// Turns a system call's `-1` into the error it left in `errno`.
pub fn check<T: PartialEq + From<i8>>(result: T) -> io::Result<T> {
    if result == T::from(-1) {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
