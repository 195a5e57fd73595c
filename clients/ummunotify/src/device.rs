// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! The open file, and its mapped counter.

use std::{
    ffi::c_void,
    fs::{
        File,
        OpenOptions, //
    },
    io,
    ops::Range,
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

use crate::{
    features::{
        Causes,
        Features,
        Stamp, //
    },
    uapi::{
        self,
        Event,
        Register, //
    },
};

/// Path of the device.
pub const PATH: &str = "/dev/ummunotify";

/// How to open the device. [`Device::open`] is short for the default.
///
/// ```
/// use ummunotify::{Features, Options};
///
/// # fn main() -> std::io::Result<()> {
/// # if !ummunotify::is_present() { return Ok(()) }
/// let device = Options::new().features(Features::ALL).open()?;
/// if !device.features().contains(Features::STAMP) {
///     // An older driver; everything else works.
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    blocking: bool,
    features: Features,
}

impl Options {
    /// Creates the default: reads do not block, and no features are requested.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether [`Device::read`] sleeps until there is something to read.
    pub fn blocking(mut self, blocking: bool) -> Self {
        self.blocking = blocking;
        self
    }

    /// Sets the features to request. The kernel may grant fewer; see [`Device::features`].
    pub fn features(mut self, features: Features) -> Self {
        self.features = features;
        self
    }

    /// Opens the device, which is then bound to the address space of this process.
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
/// All methods may be called from any thread. In a forked child they fail with `EPERM` and have no
/// effect on the parent. `exec` closes the file.
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

    /// Watches `addresses`, which need not be mapped or aligned, with this cookie.
    ///
    /// If the range is empty, the byte at its start is watched.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the cookie is in use, or the range ends before it starts. `ENOMEM`: the kernel has
    /// no memory, or the user's limit on locked memory is reached (`RLIMIT_MEMLOCK`). `ENOSPC`: the
    /// file has the maximum number of regions. `EPERM`: this is a forked child.
    pub fn watch(&self, addresses: Range<u64>, cookie: u64) -> io::Result<()> {
        self.watch_ignoring(addresses, cookie, Causes::NONE)
    }

    /// Like [`watch`](Self::watch), but changes with these causes do not hit the region.
    ///
    /// For pinned memory, ignore [`Causes::SAME_PAGES`]: they leave the pages in place, and a later
    /// change that replaces a page has another cause. Do not ignore them if something was derived from
    /// the protections.
    ///
    /// Without [`Features::CAUSE`], nothing is ignored.
    ///
    /// ```
    /// use ummunotify::{addresses, Causes, Device, Features, Options};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # if !ummunotify::is_present() { return Ok(()) }
    /// let device = Options::new().features(Features::ALL).open()?;
    /// let buffer = vec![1u8; 1 << 20];
    /// device.watch_ignoring(addresses(&buffer), 42, Causes::SAME_PAGES)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`watch`](Self::watch); `EINVAL` also if the set has causes other than
    /// [`Causes::SAME_PAGES`].
    pub fn watch_ignoring(
        &self,
        addresses: Range<u64>,
        cookie: u64,
        ignored: Causes,
    ) -> io::Result<()> {
        if self.features != Features::NONE && !Causes::SAME_PAGES.contains(ignored) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let has_causes = self.features.contains(Features::CAUSE);
        let mut region = Register {
            start: addresses.start,
            end: addresses.end,
            user_cookie: cookie,
            flags: if has_causes { ignored.bits() } else { 0 },
            reserved: 0,
        };
        // SAFETY: The argument is a region that the kernel only reads.
        unsafe { self.ioctl(uapi::REGISTER_REGION, (&raw mut region).cast()) }
    }

    /// Stops watching the region with this cookie, and discards its queued event.
    ///
    /// # Errors
    ///
    /// `EINVAL`: there is no such region. `EPERM`: this is a forked child.
    pub fn unwatch(&self, mut cookie: u64) -> io::Result<()> {
        // SAFETY: The argument is a cookie that the kernel only reads.
        unsafe { self.ioctl(uapi::UNREGISTER_REGION, (&raw mut cookie).cast()) }
    }

    /// Returns a stamp of the pages that are mapped at `addresses`, rounded to whole pages.
    ///
    /// Two stamps can be compared to find out whether pages that were pinned are still mapped: see
    /// [`Stamp::is_same`]. The order of the calls matters; [`cache`](crate::cache) explains it.
    ///
    /// A page is absent if it is not in memory, or if it is inaccessible, even if only because NUMA
    /// balancing is tracking its users. The stamp is then meaningless. Read from the pages and try
    /// again, as [`Watcher::stamp`](crate::Watcher::stamp) does.
    ///
    /// # Errors
    ///
    /// `ENOTTY`: without [`Features::STAMP`]. `EINVAL`: the range ends before it starts, or is longer
    /// than 16 GiB. `EINTR`: a signal arrived during a long range. `EPERM`: this is a forked child.
    pub fn stamp(&self, addresses: Range<u64>) -> io::Result<Stamp> {
        let mut stamp = uapi::Stamp {
            start: addresses.start,
            end: addresses.end,
            ..uapi::Stamp::default()
        };
        // SAFETY: The argument is of the type that the kernel reads and writes.
        unsafe { self.ioctl(uapi::STAMP, (&raw mut stamp).cast()) }?;
        Ok(Stamp::new(&stamp))
    }

    /// Reads records into `events`, and returns how many were read.
    ///
    /// If there is room, the last of them is [`uapi::EVENT_LAST`]. 0 means that the address space
    /// of the file is gone.
    ///
    /// # Errors
    ///
    /// `EAGAIN`: nothing is queued, and the file does not block. `EINTR`: a signal was caught.
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
        // SAFETY: A new mapping at an address that the kernel chooses.
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

    /// Issues an ioctl for which there is no other method.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    ///
    /// # Safety
    ///
    /// The caller must allow the kernel to write whatever the request writes at `argument`. The
    /// address need not be mapped.
    pub unsafe fn ioctl(&self, request: u32, argument: *mut c_void) -> io::Result<()> {
        // SAFETY: The caller vouches for it.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), request as _, argument) }).map(drop)
    }

    /// The file, for example to poll it.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl From<OwnedFd> for Device {
    /// Wraps a file of the device that was opened in another way, without features.
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

/// The mapped generation counter. While it does not move, no watched mapping has changed.
///
/// It moves before the system call that changed the mapping returns. It may outlive the device. In
/// a forked child it shows the changes of the parent's mappings, not of the child's.
#[derive(Debug)]
pub struct Counter {
    page: NonNull<AtomicU64>,
}

// SAFETY: The mapping is read-only, and any thread may read it.
unsafe impl Send for Counter {}
// SAFETY: As above.
unsafe impl Sync for Counter {}

impl Counter {
    /// Loads the counter: one load, no system call.
    #[inline]
    pub fn get(&self) -> u64 {
        // Acquire, so that accesses after this load are not performed before it. A thread that
        // learns of a change from another thread then cannot find the old value.
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

/// Turns a system call's `-1` into the error in `errno`.
pub(crate) fn check<T: PartialEq + From<i8>>(result: T) -> io::Result<T> {
    if result == T::from(-1) {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
