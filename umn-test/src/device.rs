// SPDX-License-Identifier: GPL-2.0

//! `/dev/ummunotify` for tests: the crate `ummunotify`, plus every call a program can make with
//! invalid arguments.

use std::{
    ffi::c_void,
    io,
    ops::Deref,
    os::fd::{
        AsRawFd,
        OwnedFd,
        RawFd, //
    },
    time::Duration, //
};

pub use ummunotify::{
    Counter,
    PATH, //
};

use crate::uapi::{
    self,
    Event,
    Register,
    Stamp, //
};

/// An open file of the device, bound to the address space of the process that opened it.
pub struct Device(ummunotify::Device);

impl Device {
    /// Opens the device for blocking reads.
    pub fn open() -> io::Result<Self> {
        ummunotify::Options::new().blocking(true).open().map(Self)
    }

    /// Opens the device for reads that return `EAGAIN` if nothing is queued.
    pub fn open_nonblocking() -> io::Result<Self> {
        ummunotify::Device::open().map(Self)
    }

    /// Opens the device with features, for non-blocking reads. The kernel may grant fewer.
    pub fn open_with(features: ummunotify::Features) -> io::Result<Self> {
        let options = ummunotify::Options::new().features(features);
        options.open().map(Self)
    }

    /// Issues an ioctl. The pointer must be valid for the command, or bad on purpose.
    pub fn ioctl_raw(&self, request: u32, argument: *mut c_void) -> io::Result<()> {
        // SAFETY: The kernel checks the pointer; the caller allows it to write there.
        unsafe { self.0.ioctl(request, argument) }
    }

    /// Requests the features in `wanted`; returns those granted.
    pub fn exchange_features(&self, wanted: u32) -> io::Result<u32> {
        let mut mask = wanted;
        self.ioctl_raw(uapi::EXCHANGE_FEATURES, (&raw mut mask).cast())?;
        Ok(mask)
    }

    /// Watches `start .. end` with this cookie.
    pub fn register(&self, start: u64, end: u64, cookie: u64) -> io::Result<()> {
        self.watch(start..end, cookie)
    }

    /// Watches a region; the caller sets every field of the argument.
    pub fn register_with(&self, mut region: Register) -> io::Result<()> {
        self.ioctl_raw(uapi::REGISTER_REGION, (&raw mut region).cast())
    }

    /// Requests a stamp; the caller sets every field of the argument. Returns the argument as the
    /// kernel left it.
    pub fn stamp_with(&self, mut stamp: Stamp) -> io::Result<Stamp> {
        self.ioctl_raw(uapi::STAMP, (&raw mut stamp).cast())?;
        Ok(stamp)
    }

    /// Stops watching the region with this cookie.
    pub fn unregister(&self, cookie: u64) -> io::Result<()> {
        self.unwatch(cookie)
    }

    /// Reads; returns the number of bytes. The buffer must be valid, or bad on purpose.
    pub fn read_raw(&self, buffer: *mut c_void, length: usize) -> io::Result<usize> {
        // SAFETY: The kernel checks the pointer; the caller allows it to write there.
        let read = check(unsafe { libc::read(self.as_raw_fd(), buffer, length) })?;
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

    /// Waits until one of `events` (`POLLIN` …) is reported; returns those reported, or 0 on
    /// timeout.
    pub fn poll(&self, events: i16, timeout: Duration) -> io::Result<i16> {
        let mut fd = libc::pollfd {
            fd: self.as_raw_fd(),
            events,
            revents: 0,
        };
        // SAFETY: `fd` is one valid `pollfd`.
        check(unsafe { libc::poll(&mut fd, 1, timeout.as_millis() as i32) })?;
        Ok(fd.revents)
    }

    /// Converts into the crate's type.
    pub fn into_inner(self) -> ummunotify::Device {
        self.0
    }
}

impl Deref for Device {
    type Target = ummunotify::Device;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl From<OwnedFd> for Device {
    /// Wraps a file that another process passed, or a duplicate.
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Turns a system call's `-1` into the error in `errno`.
pub fn check<T: PartialEq + From<i8>>(result: T) -> io::Result<T> {
    if result == T::from(-1) {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
