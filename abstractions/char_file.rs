// SPDX-License-Identifier: GPL-2.0

//! Miscellaneous character devices whose files are streams, with support for waiting.
//!
//! This extends [`kernel::miscdevice`] by `poll`, `O_ASYNC`, reads that must not block, a page to
//! map, deferred work, and a mode for the device node.
//!
//! C headers: [`include/linux/miscdevice.h`](srctree/include/linux/miscdevice.h),
//! [`include/linux/fs.h`](srctree/include/linux/fs.h)

use core::{
    marker::PhantomData,
    ops::Deref, //
};

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
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    },
    sync::{
        Arc,
        ArcBorrow, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    types::{
        ForeignOwnable,
        Opaque, //
    },
    uaccess::UserPtr,
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    }, //
};

use super::{
    compat::{
        owner,
        synchronize_rcu, //
    },
    destination::{
        Destination,
        UserBuffer, //
    },
    mmu_notifier::{
        self,
        HoldsModule, //
    },
    shared_page::SharedPage,
    waiters::{
        PollMask,
        Waiters, //
    },
    work_queue::WorkQueue, //
};

// Bindgen leaves out macros with casts. In the kernel tree, these two would be `RUST_CONST_HELPER_`
// constants in `rust/bindings/bindings_helper.h`, which a module cannot extend.

/// `FMODE_NOWAIT`: reads respect `IOCB_NOWAIT`.
const FMODE_NOWAIT: bindings::fmode_t = 1 << 27;

/// `IOCB_NOWAIT`: the read must not wait.
const IOCB_NOWAIT: c_int = 0x8;

/// The file operations of a character device.
///
/// All operations except [`open`] may run concurrently, in any process that has the file.
///
/// Data that files share, and data that a file owns, outlive the code that created them. So neither
/// can borrow anything, which the bound `'static` ensures:
///
/// ```compile_fail
/// struct Borrows<'a>(&'a Cell<u32>);
///
/// #[vtable]
/// impl CharFile for Borrows<'_> {
///     type Common = ();
///     // ...
/// }
/// ```
///
/// [`open`]: CharFile::open
#[vtable]
pub(crate) trait CharFile: Sized + Send + Sync + 'static {
    /// Data shared by all files of the device.
    type Common: Send + Sync + 'static;

    /// Called when the device is opened.
    ///
    /// May sleep, but not for long: no other miscellaneous device can be opened in the meantime.
    fn open(common: &Self::Common, file: &File) -> Result<impl PinInit<Self, Error>>;

    /// Called some time after [`open`](CharFile::open) by the task that opened the file, on its way
    /// back to user space or when it exits.
    ///
    /// May sleep. May not be called at all if the task is exiting when it opens the file.
    fn opened(this: ArcBorrow<'_, OpenFile<Self>>);

    /// Called when the last reference to the file is gone. No other operation is running then, and
    /// none will be called except [`deferred`](CharFile::deferred).
    fn closed(this: ArcBorrow<'_, OpenFile<Self>>);

    /// Called by a work item after [`OpenFile::defer`]. May sleep.
    fn deferred(this: &OpenFile<Self>);

    /// Returns whether [`would_block`] should be called at all.
    ///
    /// [`would_block`]: CharFile::would_block
    fn is_quiet(&self) -> bool;

    /// Returns whether a read of `len` bytes that must not block would fail with `EAGAIN`, without
    /// other effects.
    ///
    /// May always return `false`.
    fn would_block(&self, len: usize) -> bool;

    /// Reads into `destination`; returns the number of bytes.
    ///
    /// If it would have to wait and `nonblocking` is set, it fails with `EAGAIN` instead.
    fn read(
        this: ArcBorrow<'_, OpenFile<Self>>,
        destination: &mut impl Destination,
        nonblocking: bool,
    ) -> Result<usize>;

    /// Carries out the ioctl `cmd`, also for 32-bit processes.
    fn ioctl(this: ArcBorrow<'_, OpenFile<Self>>, cmd: u32, arg: usize) -> Result;

    /// Called when a new waiter wants to be notified of events, through `poll` or `O_ASYNC`.
    fn waiter_added(&self);

    /// Returns the events for `poll`.
    ///
    /// When these change, [`OpenFile::waiters`] must be notified.
    fn poll(&self) -> PollMask;

    /// Returns whether the current task may map the page of the file.
    fn may_map(&self) -> Result;

    /// Prints the lines for `/proc/PID/fdinfo/FD`.
    fn show_fdinfo(&self, out: &SeqFile);
}

// SAFETY: Dropping the `Registration` waits until all of them are freed.
unsafe impl<T: CharFile> HoldsModule for OpenFile<T> {}

/// An open file. It dereferences to the driver's part.
///
/// It may outlive the `struct file`, for as long as there is an [`Arc`] to it.
#[pin_data]
pub(crate) struct OpenFile<T: CharFile> {
    #[pin]
    waiters: Waiters,
    page: SharedPage,
    #[pin]
    work: Work<OpenFile<T>>,
    #[pin]
    driver: T,
    // Dropped last: it signals that the other fields are gone.
    device: Counted<T::Common>,
}

impl<T: CharFile> Deref for OpenFile<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.driver
    }
}

impl<T: CharFile> OpenFile<T> {
    fn new(device: &Arc<Device<T::Common>>, file: &File) -> Result<Arc<Self>> {
        let page = SharedPage::new()?;
        let driver = T::open(&device.common, file)?;
        let device = Counted::new(device);
        Arc::pin_init(
            try_pin_init!(Self {
                waiters <- Waiters::new(),
                page,
                work <- new_work!("ummunotify"),
                driver <- driver,
                device,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Returns the tasks that wait for the file.
    #[inline]
    pub(crate) fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// Returns the page that user space may map.
    #[inline]
    pub(crate) fn page(&self) -> &SharedPage {
        &self.page
    }

    /// Waits for work that was deferred earlier, and for a grace period of MMU notifiers. Most
    /// memory of files that were closed earlier is free afterwards. Sleeps.
    pub(crate) fn wait_for_closed(&self) {
        self.device.0.queue.flush();
        mmu_notifier::synchronize();
    }

    /// Makes a work item call [`CharFile::deferred`] at least once after this. Does not sleep.
    pub(crate) fn defer(this: ArcBorrow<'_, Self>) {
        let this = Arc::from(this);
        // The queue must outlive the call, which the file may not.
        let device = this.device.0.clone();
        // If it is enqueued already, it has not started yet.
        let _ = device.queue.queue().enqueue(this);
    }
}

impl_has_work! {
    impl{T: CharFile} HasWork<Self> for OpenFile<T> { self.work }
}

impl<T: CharFile> WorkItem for OpenFile<T> {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        T::deferred(&this);
    }
}

/// Data shared by the files of a device.
struct Device<C> {
    queue: WorkQueue,
    /// The number of [`OpenFile`]s.
    files: Atomic<usize>,
    common: C,
}

/// Counts an [`OpenFile`].
struct Counted<C>(Arc<Device<C>>);

impl<C> Counted<C> {
    fn new(device: &Arc<Device<C>>) -> Self {
        device.files.fetch_add(1, Relaxed);
        Self(device.clone())
    }
}

impl<C> Drop for Counted<C> {
    fn drop(&mut self) {
        // Release: pairs with the acquire load in the drop of `Registration`, so that every access
        // to the file precedes the end of the device.
        self.0.files.fetch_sub(1, Release);
    }
}

/// A registered character device.
///
/// Dropping it waits until all of its files are freed, including those that are closed already.
///
/// # Invariants
///
/// `misc` is registered with `misc_register()`, and its operations are those of `T`.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: CharFile> {
    #[pin]
    misc: Opaque<bindings::miscdevice>,
    device: Arc<Device<T::Common>>,
}

// SAFETY: Another thread than the one that registered a device may deregister it, and the shared
// data is `Send`.
unsafe impl<T: CharFile> Send for Registration<T> {}
// SAFETY: A shared reference gives no access.
unsafe impl<T: CharFile> Sync for Registration<T> {}

impl<T: CharFile> Registration<T> {
    /// Registers a device named `name`, whose node has the permissions `mode`.
    pub(crate) fn new(
        name: &'static CStr,
        mode: u16,
        common: T::Common,
    ) -> impl PinInit<Self, Error> {
        // The miscdevice comes last: it can be opened as soon as it is registered.
        try_pin_init!(Self {
            device: Arc::new(
                Device {
                    queue: WorkQueue::new(name)?,
                    files: Atomic::new(0),
                    common,
                },
                GFP_KERNEL,
            )?,
            // INVARIANT: On success, the device is registered.
            misc <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                let misc = bindings::miscdevice {
                    minor: bindings::MISC_DYNAMIC_MINOR as c_int,
                    name: kernel::str::as_char_ptr_in_const_context(name),
                    fops: &Operations::<T>::TABLE,
                    mode,
                    ..pin_init::zeroed()
                };
                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write(misc) };
                // SAFETY: `slot` is pinned until `Self` is dropped, which deregisters it first.
                to_result(unsafe { bindings::misc_register(slot) })
            }),
        })
    }
}

#[pinned_drop]
impl<T: CharFile> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant, the device is registered. It is deregistered only here.
        unsafe { bindings::misc_deregister(self.misc.get()) };

        // The kernel calls back a closed file for up to a grace period, and the module must stay
        // until then. Acquire: pairs with the drop of `Counted`.
        while self.device.files.load(Acquire) != 0 {
            fsleep(Delta::from_millis(1));
        }
        // The thread that dropped the last file may still be executing code of the module: in an
        // RCU callback or in a work item.
        synchronize_rcu();
        self.device.queue.drain();
        // Or in `Returning::run`, which may have been preempted there.
        #[cfg(CONFIG_TASKS_RCU)]
        // SAFETY: This may sleep.
        unsafe {
            bindings::synchronize_rcu_tasks()
        };
    }
}

/// Task work that calls [`CharFile::opened`] on the way back to user space.
///
/// # Invariants
///
/// `file` was opened with [`Operations::open`], and this holds a reference to it.
#[repr(C)]
struct Returning<T> {
    work: bindings::callback_head,
    file: *mut bindings::file,
    _driver: PhantomData<fn() -> T>,
}

impl<T: CharFile> Returning<T> {
    /// Allocates the work for [`Self::start`].
    fn new(file: *mut bindings::file) -> Result<KBox<Self>> {
        Ok(KBox::new(
            Self {
                work: bindings::callback_head {
                    next: core::ptr::null_mut(),
                    func: Some(Self::run),
                },
                file,
                _driver: PhantomData,
            },
            GFP_KERNEL_ACCOUNT,
        )?)
    }

    /// Makes [`CharFile::opened`] be called when the current task returns to user space.
    ///
    /// # Safety
    ///
    /// The file must have been opened with [`Operations::open`].
    unsafe fn start(self: KBox<Self>) {
        let raw = KBox::into_raw(self);
        // SAFETY: The work is valid until it runs, which happens once. The file is valid, too: this
        // holds a reference to it. If the work cannot be added, both are released.
        unsafe {
            let file = (*raw).file;
            bindings::get_file(file);
            let mode = bindings::task_work_notify_mode_TWA_RESUME;
            if bindings::task_work_add(bindings::get_current(), &raw mut (*raw).work, mode) != 0 {
                drop(KBox::from_raw(raw));
                bindings::fput(file);
            }
        }
    }

    /// # Safety
    ///
    /// `work` must be the work of [`Self::start`], and this must be called only once.
    unsafe extern "C" fn run(work: *mut bindings::callback_head) {
        // SAFETY: The work is the first field of a box whose ownership was given away.
        let this = unsafe { KBox::from_raw(work.cast::<Self>()) };
        let file = this.file;
        // SAFETY: By the type invariant, there is a reference to the file.
        T::opened(unsafe { Operations::<T>::of(file) });
        drop(this);
        // The file has a reference to the module. If this is the last reference to the file, this
        // task releases the file after this function has returned. Otherwise, see the drop of
        // `Registration`.
        //
        // SAFETY: The reference is that of the type invariants.
        unsafe { bindings::fput(file) };
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

    /// Returns the data that `file` owns.
    ///
    /// # Safety
    ///
    /// `file` must have been opened with [`Self::open`], and not be released during `'a`.
    unsafe fn of<'a>(file: *mut bindings::file) -> ArcBorrow<'a, OpenFile<T>> {
        // SAFETY: `open` stored the data there, and only `release` removes it.
        unsafe { <Arc<OpenFile<T>> as ForeignOwnable>::borrow((*file).private_data) }
    }

    /// # Safety
    ///
    /// `inode` and `file` must be those of a file of this device that is being opened.
    unsafe extern "C" fn open(inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        from_result(|| {
            // SAFETY: By the safety requirement.
            to_result(unsafe { bindings::stream_open(inode, file) })?;
            // SAFETY: The file is valid and not shared yet. `misc_open()` stored the device there,
            // which is the field of a `Registration`. That cannot be dropped while the file is
            // being opened, since deregistering takes the lock that `misc_open()` holds. `device`
            // was initialised before the miscdevice was registered, and nothing else is borrowed.
            let (device, file_ref) = unsafe {
                let misc = (*file).private_data.cast::<bindings::miscdevice>();
                let registration = container_of!(Opaque::cast_from(misc), Registration<T>, misc);
                (&(*registration).device, File::from_raw_file(file))
            };
            let returning = Returning::<T>::new(file)?;
            let this = OpenFile::<T>::new(device, file_ref)?;
            // SAFETY: `release` closes the waiters before the file goes away.
            unsafe { this.waiters.open(file_ref) };
            // SAFETY: As above. From here on, this function has opened the file.
            unsafe {
                (*file).private_data = this.into_foreign();
                (*file).f_mode |= FMODE_NOWAIT;
                returning.start();
            }
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `file` must have been opened with [`Self::open`], and be about to go away.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: `open` stored the data there. No other operation is running or will be called:
        // every caller of one has a reference to the file, and so has each mapping of it.
        let this =
            unsafe { <Arc<OpenFile<T>> as ForeignOwnable>::from_foreign((*file).private_data) };
        this.waiters.close();
        T::closed(this.as_arc_borrow());
        0
    }

    /// The `read` operation.
    ///
    /// Without it, `read_iter` would serve `read(2)`, too, through a `kiocb` and an `iov_iter` that
    /// cost more than the read itself. `fs/read_write.c` calls a file with both "very convoluted",
    /// and does not let the kernel itself read from it, which nothing does here.
    /// `drivers/char/mem.c` has both, too.
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

    // These two are not inlined, so that the registers that one of them uses are saved only there,
    // and not when the other one is called.

    #[inline(never)]
    fn read_quiet(this: ArcBorrow<'_, OpenFile<T>>, buffer: *mut c_char, len: usize) -> isize {
        if this.would_block(len) {
            return EAGAIN.to_errno() as isize;
        }
        Self::read_buffer(this, buffer, len, true)
    }

    #[inline(never)]
    fn read_buffer(
        this: ArcBorrow<'_, OpenFile<T>>,
        buffer: *mut c_char,
        len: usize,
        nonblocking: bool,
    ) -> isize {
        let mut buffer = UserBuffer::new(UserPtr::from_ptr(buffer.cast()), len);
        from_result(|| T::read(this, &mut buffer, nonblocking).map(|bytes| bytes as isize))
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
        from_result(|| T::read(this, iov, nonblocking).map(|bytes| bytes as isize))
    }

    /// # Safety
    ///
    /// `file` must have been opened with [`Self::open`]; `table` must be null or valid.
    unsafe extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table,
    ) -> PollMask {
        // SAFETY: By the safety requirement; the caller has a reference to the file.
        let (this, file_ref) = unsafe { (Self::of(file), File::from_raw_file(file)) };
        // SAFETY: The table is null or valid by the safety requirement. The waiters live until the
        // file is released.
        if unsafe { this.waiters.poll_wait(file_ref, table) } {
            this.waiter_added();
        }
        T::poll(&this)
    }

    /// # Safety
    ///
    /// `file` must have been opened with [`Self::open`].
    unsafe extern "C" fn fasync(fd: c_int, file: *mut bindings::file, on: c_int) -> c_int {
        // SAFETY: By the safety requirement; the caller has a reference to the file.
        let (this, file) = unsafe { (Self::of(file), File::from_raw_file(file)) };
        from_result(|| {
            // SAFETY: It is the file of the waiters; `__fput()` takes it out of the list before it
            // is released.
            unsafe { this.waiters.update_fasync(fd, file, on) }?;
            this.waiter_added();
            Ok(0)
        })
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
        from_result(|| {
            this.may_map()?;
            // SAFETY: The page is borrowed from what the file owns, which is not released before
            // the VMA is gone, since the VMA has a reference to the file. So has each copy of it
            // that a fork or a move makes.
            unsafe { this.page.map(vma) }.map(|()| 0)
        })
    }

    /// # Safety
    ///
    /// `file` must have been opened with [`Self::open`].
    unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
        // SAFETY: By the safety requirement; the caller has a reference to the file.
        let this = unsafe { Self::of(file) };
        from_result(|| T::ioctl(this, cmd, arg).map(|()| 0))
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
