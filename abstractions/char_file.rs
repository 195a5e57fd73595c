// SPDX-License-Identifier: GPL-2.0

//! Miscellaneous character devices whose files are streams that can be waited for.
//!
//! This does what [`kernel::miscdevice`] does, and offers besides it `poll`, `O_ASYNC`, reads that
//! must not block, a page to map and a mode for the device node.
//!
//! C headers: [`include/linux/miscdevice.h`](srctree/include/linux/miscdevice.h),
//! [`include/linux/fs.h`](srctree/include/linux/fs.h)

use core::marker::PhantomData;

use kernel::{
    bindings,
    container_of,
    error::{
        from_result,
        to_result, //
    },
    fs::{
        file::flags::O_NONBLOCK,
        File, //
    },
    iov::IovIterDest,
    mm::virt::VmaNew,
    prelude::*,
    seq_file::SeqFile,
    sync::poll::PollTable,
    types::{
        ForeignOwnable,
        Opaque, //
    },
    uaccess::UserPtr, //
};

use super::{
    compat::owner,
    destination::{
        Destination,
        UserBuffer, //
    },
    fasync::FasyncList,
    shared_page::SharedPage, //
};

/// What `poll` finds: a combination of the `POLL*` constants of [`kernel::bindings`].
pub(crate) type PollMask = bindings::__poll_t;

/// There is something to read.
pub(crate) const POLL_READABLE: PollMask = bindings::POLLIN | bindings::POLLRDNORM;

/// Nothing will come any more.
pub(crate) const POLL_HUNG_UP: PollMask = bindings::POLLHUP;

/// `FMODE_NOWAIT`: reads heed `IOCB_NOWAIT`. A macro with a cast, which the bindings leave out.
const FMODE_NOWAIT: bindings::fmode_t = 1 << 27;

/// `IOCB_NOWAIT`, likewise.
const IOCB_NOWAIT: c_int = 0x8;

/// The file operations of a character device.
///
/// All but [`open`] may be called at the same time as each other, by any process that has the file.
///
/// [`open`]: CharFile::open
#[vtable]
pub(crate) trait CharFile: Sized {
    /// What all files of the device have in common.
    type Common: Send + Sync;

    /// What a file of the device owns.
    type Ptr: ForeignOwnable + Send + Sync;

    /// Called when the device is opened, which may sleep.
    fn open(common: &Self::Common, file: &File) -> Result<Self::Ptr>;

    /// Returns the operations of what a file owns.
    fn of(data: <Self::Ptr as ForeignOwnable>::Borrowed<'_>) -> &Self;

    /// Returns whether [`would_block`] is worth a call.
    ///
    /// [`would_block`]: CharFile::would_block
    fn is_quiet(&self) -> bool;

    /// Returns whether a read of `len` bytes that must not block would fail with `EAGAIN`.
    ///
    /// That is then all that it does. `false` is always right.
    fn would_block(&self, len: usize) -> bool;

    /// Reads into `destination`; returns the number of bytes.
    ///
    /// Where it would have to wait and `nonblocking` is set, it fails with `EAGAIN` instead.
    fn read(&self, destination: &mut impl Destination, nonblocking: bool) -> Result<usize>;

    /// Carries out the command `cmd`, of a 32-bit process too.
    fn ioctl(&self, cmd: u32, arg: usize) -> Result;

    /// Registers with `table` whatever is woken when the result changes, then returns the result.
    fn poll(&self, file: &File, table: PollTable<'_>) -> PollMask;

    /// Returns the list of files that want `SIGIO`.
    fn fasync(&self) -> &FasyncList;

    /// Returns the page that user space may map.
    fn shared_page(&self) -> &SharedPage;

    /// Prints the lines for `/proc/PID/fdinfo/FD`.
    fn show_fdinfo(&self, out: &SeqFile);
}

/// A registered character device.
///
/// # Invariants
///
/// `device` is registered with `misc_register()`, and its operations are those of `T`.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: CharFile> {
    #[pin]
    device: Opaque<bindings::miscdevice>,
    common: T::Common,
}

// SAFETY: A device may be deregistered by another thread than the one that registered it, and what
// the files have in common is `Send`.
unsafe impl<T: CharFile> Send for Registration<T> {}
// SAFETY: The only thing to do with a shared reference is to get at what the files have in common,
// which is `Sync`.
unsafe impl<T: CharFile> Sync for Registration<T> {}

impl<T: CharFile> Registration<T> {
    /// Registers a device by the name `name`, with the permissions `mode` for its node.
    pub(crate) fn new(
        name: &'static CStr,
        mode: u16,
        common: T::Common,
    ) -> impl PinInit<Self, Error> {
        // The device comes last: it can be opened from the moment it is registered.
        try_pin_init!(Self {
            common,
            // INVARIANT: If this succeeds, then the device is registered.
            device <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                let device = bindings::miscdevice {
                    minor: bindings::MISC_DYNAMIC_MINOR as c_int,
                    name: kernel::str::as_char_ptr_in_const_context(name),
                    fops: &Operations::<T>::TABLE,
                    mode,
                    ..pin_init::zeroed()
                };
                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write(device) };
                // SAFETY: `slot` is pinned until `Self` is dropped, which deregisters it first.
                to_result(unsafe { bindings::misc_register(slot) })
            }),
        })
    }
}

#[pinned_drop]
impl<T: CharFile> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant the device is registered, and this happens once.
        unsafe { bindings::misc_deregister(self.device.get()) };
    }
}

/// The operations of the files of a device.
struct Operations<T>(PhantomData<T>);

impl<T: CharFile> Operations<T> {
    const TABLE: bindings::file_operations = bindings::file_operations {
        owner: owner::<T>().as_ptr(),
        open: Some(Self::open),
        release: Some(Self::release),
        read: Some(Self::read),
        read_iter: Some(Self::read_iter),
        poll: Some(Self::poll),
        fasync: Some(Self::fasync),
        mmap: Some(Self::mmap),
        unlocked_ioctl: Some(Self::ioctl),
        #[cfg(CONFIG_COMPAT)]
        compat_ioctl: bindings::compat_ptr_ioctl,
        show_fdinfo: Some(Self::show_fdinfo),
        ..pin_init::zeroed()
    };

    /// Returns what `file` owns.
    ///
    /// # Safety
    ///
    /// `file` must have been opened with [`Self::open`], and not be released during `'a`.
    unsafe fn of<'a>(file: *mut bindings::file) -> &'a T
    where
        T: 'a,
    {
        // SAFETY: `open` put the data there, and only `release` takes them away.
        T::of(unsafe { <T::Ptr as ForeignOwnable>::borrow((*file).private_data) })
    }

    /// # Safety
    ///
    /// `inode` and `file` must be those of a file of this device that is being opened.
    unsafe extern "C" fn open(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        from_result(|| {
            // SAFETY: By the safety requirement.
            to_result(unsafe { bindings::stream_open(inode, file) })?;
            // SAFETY: The file is valid, and nobody else has it yet. `misc_open()` left the device
            // there, which is the field of a `Registration`. That is not dropped while the file is
            // being opened: to deregister the device takes the lock that `misc_open()` holds.
            // `common` was initialised before the device was registered; it is borrowed alone.
            let (common, file_ref) = unsafe {
                let device = (*file).private_data.cast::<bindings::miscdevice>();
                let registration =
                    container_of!(Opaque::cast_from(device), Registration<T>, device);
                (&(*registration).common, File::from_raw_file(file))
            };
            let data = T::open(common, file_ref)?;
            // SAFETY: As above.
            unsafe {
                (*file).private_data = data.into_foreign();
                (*file).f_mode |= FMODE_NOWAIT;
            }
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `file` must have been opened with [`Self::open`], and be about to go away.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: `open` put the data there. No other operation is running, nor will one be
        // called: whoever calls one has a reference to the file, and so has each mapping of it.
        drop(unsafe { <T::Ptr as ForeignOwnable>::from_foreign((*file).private_data) });
        0
    }

    /// What `read(2)` comes to.
    ///
    /// It would come to `read_iter` without it, by way of a `kiocb` and an `iov_iter` that cost
    /// more than the read.
    ///
    /// # Safety
    ///
    /// `file` must have been opened with [`Self::open`].
    unsafe extern "C" fn read(
        file: *mut bindings::file,
        buffer: *mut c_char,
        len: usize,
        _position: *mut bindings::loff_t,
    ) -> isize {
        // SAFETY: By the safety requirement; the caller has a reference to the file. It is a
        // stream, so nobody holds a lock on its position.
        let (this, file) = unsafe { (Self::of(file), File::from_raw_file(file)) };
        let nonblocking = file.flags() & O_NONBLOCK != 0;
        if nonblocking && this.is_quiet() {
            return Self::read_quiet(this, buffer, len);
        }
        Self::read_buffer(this, buffer, len, nonblocking)
    }

    // These two are not inlined, so that the registers that one of them uses are saved once, and
    // not where the other one is called.

    #[inline(never)]
    fn read_quiet(this: &T, buffer: *mut c_char, len: usize) -> isize {
        if this.would_block(len) {
            return EAGAIN.to_errno() as isize;
        }
        Self::read_buffer(this, buffer, len, true)
    }

    #[inline(never)]
    fn read_buffer(this: &T, buffer: *mut c_char, len: usize, nonblocking: bool) -> isize {
        let mut buffer = UserBuffer::new(UserPtr::from_ptr(buffer.cast()), len);
        from_result(|| {
            this.read(&mut buffer, nonblocking)
                .map(|bytes| bytes as isize)
        })
    }

    /// # Safety
    ///
    /// `kiocb` must be that of a read of a file opened with [`Self::open`], and `iter` its
    /// destination.
    unsafe extern "C" fn read_iter(
        kiocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: By the safety requirement.
        let (file, flags) = unsafe { ((*kiocb).ki_filp, (*kiocb).ki_flags) };
        // SAFETY: The caller has a reference to the file. It is a stream, so nobody holds a lock
        // on its position.
        let file_flags = unsafe { File::from_raw_file(file) }.flags();
        let nonblocking = flags & IOCB_NOWAIT != 0 || file_flags & O_NONBLOCK != 0;
        // SAFETY: By the safety requirement.
        let iov = unsafe { IovIterDest::from_raw(iter) };
        // SAFETY: The caller has a reference to the file.
        let this = unsafe { Self::of(file) };
        from_result(|| this.read(iov, nonblocking).map(|bytes| bytes as isize))
    }

    /// # Safety
    ///
    /// `file` must have been opened with [`Self::open`]; `table` must be null or valid.
    unsafe extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table,
    ) -> PollMask {
        // SAFETY: By the safety requirement; the caller has a reference to the file.
        let (this, file, table) = unsafe {
            (
                Self::of(file),
                File::from_raw_file(file),
                PollTable::from_raw(table),
            )
        };
        this.poll(file, table)
    }

    /// # Safety
    ///
    /// `file` must have been opened with [`Self::open`].
    unsafe extern "C" fn fasync(fd: c_int, file: *mut bindings::file, on: c_int) -> c_int {
        // SAFETY: By the safety requirement; the caller has a reference to the file.
        let (this, file) = unsafe { (Self::of(file), File::from_raw_file(file)) };
        // SAFETY: The list is part of what the file owns; `__fput()` takes the file out of it
        // before that is released.
        from_result(|| unsafe { this.fasync().update(fd, file, on) }.map(|()| 0))
    }

    /// # Safety
    ///
    /// `file` must have been opened with [`Self::open`], and `vma` be a new mapping of it.
    unsafe extern "C" fn mmap(
        file: *mut bindings::file,
        vma: *mut bindings::vm_area_struct,
    ) -> c_int {
        // SAFETY: By the safety requirement.
        let (this, vma) = unsafe { (Self::of(file), VmaNew::from_raw(vma)) };
        // SAFETY: The page is borrowed from what the file owns, which is not released before the
        // VMA is gone, since the VMA has a reference to the file. So has each copy of it that a
        // fork or a move makes.
        from_result(|| unsafe { this.shared_page().map(vma) }.map(|()| 0))
    }

    /// # Safety
    ///
    /// `file` must have been opened with [`Self::open`].
    unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
        // SAFETY: By the safety requirement; the caller has a reference to the file.
        let this = unsafe { Self::of(file) };
        from_result(|| this.ioctl(cmd, arg).map(|()| 0))
    }

    /// # Safety
    ///
    /// `file` must have been opened with [`Self::open`]; `out` must be valid, and not used by
    /// anybody else.
    unsafe extern "C" fn show_fdinfo(out: *mut bindings::seq_file, file: *mut bindings::file) {
        // SAFETY: By the safety requirement; the caller has a reference to the file.
        let (this, out) = unsafe { (Self::of(file), SeqFile::from_raw(out)) };
        this.show_fdinfo(out);
    }
}
