// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! The open file, and its mapped counter.

use std::{
    ffi::c_void,
    fs::{
        File,
        OpenOptions, //
    },
    io,
    ops::{
        BitOr,
        Range, //
    },
    os::{
        fd::{
            AsFd,
            AsRawFd,
            BorrowedFd,
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
};

use crate::uapi::{
    self,
    Event,
    Register, //
};

/// Where the device is.
pub const PATH: &str = "/dev/ummunotify";

/// Extensions of the interface that a program may ask for, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features(u32);

impl Features {
    /// None of them: the basic interface, which every version of the driver has.
    pub const NONE: Self = Self(0);

    /// The features with these bits, whether this crate knows them or not.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits, as the kernel numbers them.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` are among these.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How to open the device. [`Device::open`] is the short form of the default.
///
/// ```
/// use ummunotify::{Features, Options};
///
/// # fn main() -> std::io::Result<()> {
/// # if !ummunotify::is_present() { return Ok(()) }
/// let device = Options::new().features(Features::NONE).open()?;
/// assert_eq!(device.features(), Features::NONE);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    blocking: bool,
    features: Features,
}

impl Options {
    /// The default: reads do not block, and no features.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether [`Device::read`] sleeps until there is something to read.
    pub fn blocking(mut self, blocking: bool) -> Self {
        self.blocking = blocking;
        self
    }

    /// The features to ask for. The kernel may grant fewer; see [`Device::features`].
    pub fn features(mut self, features: Features) -> Self {
        self.features = features;
        self
    }

    /// Opens the device. It then is bound to the address space of this process.
    ///
    /// # Errors
    ///
    /// `ENOENT` or `ENXIO`: the module is not loaded. `EACCES`: the caller may not open it.
    pub fn open(self) -> io::Result<Device> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(if self.blocking { 0 } else { libc::O_NONBLOCK })
            .open(PATH)?;
        let mut device = Device {
            file,
            features: Features::NONE,
        };
        if self.features != Features::NONE {
            let mut mask = self.features.bits();
            // SAFETY: The argument is a mask that the kernel may read and write.
            unsafe { device.ioctl(uapi::EXCHANGE_FEATURES, (&raw mut mask).cast()) }?;
            device.features = Features::from_bits(mask);
        }
        Ok(device)
    }
}

/// An open file of the device, bound to the address space of the process that opened it.
///
/// All methods may be called from any thread. In a forked child they fail with `EPERM`, and take
/// nothing from the parent. After `exec` the file is of no use, and closed.
#[derive(Debug)]
pub struct Device {
    file: File,
    features: Features,
}

impl Device {
    /// Opens the device for reads that do not block, without features.
    ///
    /// # Errors
    ///
    /// Those of [`Options::open`].
    pub fn open() -> io::Result<Self> {
        Options::new().open()
    }

    /// The features that the kernel granted.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Watches `addresses`, which need not be mapped or aligned, under the name `cookie`.
    ///
    /// If the range is empty, the byte at its start is watched.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the cookie is in use, or the range ends before it starts. `ENOMEM`: the kernel has
    /// no memory, or the user of this process has too much of it locked (`RLIMIT_MEMLOCK`).
    /// `ENOSPC`: the file has as many regions as it may have. `EPERM`: this is a forked child.
    pub fn watch(&self, addresses: Range<u64>, cookie: u64) -> io::Result<()> {
        let mut region = Register {
            start: addresses.start,
            end: addresses.end,
            user_cookie: cookie,
            ..Register::default()
        };
        // SAFETY: The argument is a region that the kernel only reads.
        unsafe { self.ioctl(uapi::REGISTER_REGION, (&raw mut region).cast()) }
    }

    /// Stops watching what is named `cookie`, and discards the event that is queued for it.
    ///
    /// # Errors
    ///
    /// `EINVAL`: there is no such region. `EPERM`: this is a forked child.
    pub fn unwatch(&self, mut cookie: u64) -> io::Result<()> {
        // SAFETY: The argument is a cookie that the kernel only reads.
        unsafe { self.ioctl(uapi::UNREGISTER_REGION, (&raw mut cookie).cast()) }
    }

    /// Reads records into `events`, and returns how many were read.
    ///
    /// Where there is room for it, the last of them is [`uapi::EVENT_LAST`]. 0 means that the
    /// address space that the file is bound to is gone.
    ///
    /// # Errors
    ///
    /// `EAGAIN`: nothing is queued, and the file does not block. `EINTR`: there was a signal.
    /// `EPERM`: this is a forked child.
    pub fn read(&self, events: &mut [Event]) -> io::Result<usize> {
        let (buffer, length) = (events.as_mut_ptr().cast(), size_of_val(events));
        // SAFETY: This is the memory of `events`, and any bytes are an event.
        let read = unsafe { libc::read(self.file.as_raw_fd(), buffer, length) };
        Ok(check(read)? as usize / size_of::<Event>())
    }

    /// Maps the generation counter.
    ///
    /// # Errors
    ///
    /// Those of `mmap`; `EPERM` in a forked child.
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
        match NonNull::new(page) {
            Some(page) if page.as_ptr() != libc::MAP_FAILED => Ok(Counter { page: page.cast() }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Issues an ioctl, for what the other methods do not do.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    ///
    /// # Safety
    ///
    /// What the request has the kernel write at `argument` must be the caller's to change. An
    /// address that is not mapped is fine.
    pub unsafe fn ioctl(&self, request: u32, argument: *mut c_void) -> io::Result<()> {
        // SAFETY: The caller vouches for it.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), request as _, argument) }).map(drop)
    }

    /// The file, to poll it, say.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl From<OwnedFd> for Device {
    /// Takes a file of the device that was opened in another way, for which no features were
    /// negotiated.
    fn from(fd: OwnedFd) -> Self {
        Self {
            file: fd.into(),
            features: Features::NONE,
        }
    }
}

impl From<Device> for OwnedFd {
    fn from(device: Device) -> Self {
        device.file.into()
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The mapped generation counter. As long as it stands still, no watched mapping has changed.
///
/// It has moved before the system call that changed the mapping returns. It outlives the device. In
/// a forked child it goes on showing the changes of the parent, and none of the child.
#[derive(Debug)]
pub struct Counter {
    page: NonNull<AtomicU64>,
}

// SAFETY: The mapping is read only, and can be read from any thread.
unsafe impl Send for Counter {}
// SAFETY: As above.
unsafe impl Sync for Counter {}

impl Counter {
    /// The counter now: one load, no system call.
    #[inline]
    pub fn get(&self) -> u64 {
        // Acquire, so that a thread that has been told of a change by another one, and then finds
        // the counter as it was, cannot be: what comes after this load is done after it.
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

/// Turns a system call's `-1` into the error that it left in `errno`.
pub(crate) fn check<T: PartialEq + From<i8>>(result: T) -> io::Result<T> {
    if result == T::from(-1) {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
