// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! The interface for most programs: which regions have changed since the last check.

use std::{
    fmt,
    io,
    iter,
    ops::Range,
    os::fd::{
        AsFd,
        AsRawFd,
        BorrowedFd, //
    },
    ptr,
    sync::{
        atomic::Ordering,
        Arc, //
    },
    time::Duration, //
};

use crate::{
    device::{
        check,
        Counter,
        Device, //
    },
    features::{
        Causes,
        Features,
        Stamp, //
    },
    uapi::{
        self,
        Event, //
    },
    wiped::Wiped,
};

/// Watches addresses of this process.
///
/// A region stays watched until [`unwatch`](Self::unwatch), however often it changes. All changes
/// of its mappings between two reads are one [`Change`].
///
/// A watcher does not work in a forked child, since it watches the parent:
/// [`changed`](Self::changed) is always true there, and everything else fails with `EPERM`. The
/// child can open a watcher of its own.
#[derive(Debug)]
pub struct Watcher {
    device: Device,
    now: Checker,
    batch: Batch,
}

impl Watcher {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// Those of [`Options::open`](crate::Options::open) and [`Watcher::new`].
    pub fn open() -> io::Result<Self> {
        Self::new(Device::open()?)
    }

    /// Creates a watcher from an open file, which must not have been read.
    ///
    /// # Errors
    ///
    /// Those of [`Device::map_counter`]; `EINVAL` if reads of the file would block.
    pub fn new(device: Device) -> io::Result<Self> {
        // SAFETY: The call takes no pointer.
        let flags = check(unsafe { libc::fcntl(device.as_raw_fd(), libc::F_GETFL) })?;
        if flags & libc::O_NONBLOCK == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let now = Checker(Arc::new(Clock {
            counter: device.map_counter()?,
            seen: Seen::new()?,
        }));
        Ok(Self {
            device,
            now,
            batch: Batch::new(),
        })
    }

    /// Watches `addresses` with this cookie; see [`Device::watch`].
    ///
    /// Derive nothing from mappings before they are watched: a change in between would be missed.
    ///
    /// # Errors
    ///
    /// Those of [`Device::watch`].
    pub fn watch(&self, addresses: Range<u64>, cookie: u64) -> io::Result<()> {
        self.device.watch(addresses, cookie)
    }

    /// Watches `addresses`, and ignores some causes of change; see [`Device::watch_ignoring`].
    ///
    /// # Errors
    ///
    /// Those of [`Device::watch_ignoring`].
    pub fn watch_ignoring(
        &self,
        addresses: Range<u64>,
        cookie: u64,
        ignored: Causes,
    ) -> io::Result<()> {
        self.device.watch_ignoring(addresses, cookie, ignored)
    }

    /// Returns a stamp of the pages that are mapped at `addresses`, or `None` without
    /// [`Features::STAMP`].
    ///
    /// If pages are absent, this reads from all of them and tries once more. It raises no signal if
    /// they cannot be read. If a `userfaultfd` has to provide a page, it waits for that.
    ///
    /// # Errors
    ///
    /// Those of [`Device::stamp`], except for `EINTR`.
    pub fn stamp(&self, addresses: Range<u64>) -> io::Result<Option<Stamp>> {
        self.stamp_after(addresses, touch)
    }

    /// Like [`stamp`](Self::stamp), but reads only from pages that are in memory. So it does not wait
    /// for a `userfaultfd` that has to provide missing pages.
    ///
    /// This is for callers with a lock that the thread behind the `userfaultfd` may need.
    ///
    /// # Errors
    ///
    /// Those of [`stamp`](Self::stamp).
    pub fn stamp_in_memory(&self, addresses: Range<u64>) -> io::Result<Option<Stamp>> {
        self.stamp_after(addresses, touch_in_memory)
    }

    fn stamp_after(
        &self,
        addresses: Range<u64>,
        touch: fn(&Range<u64>),
    ) -> io::Result<Option<Stamp>> {
        if !self.device.features().contains(Features::STAMP) {
            return Ok(None);
        }
        let look = || loop {
            match self.device.stamp(addresses.clone()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        };
        let stamp = look()?;
        if stamp.absent() == 0 {
            return Ok(Some(stamp));
        }
        touch(&addresses);
        look().map(Some)
    }

    /// Stops watching the region with this cookie. No change of it is returned after that, so the
    /// cookie may be used again at once.
    ///
    /// # Errors
    ///
    /// Those of [`Device::unwatch`].
    pub fn unwatch(&mut self, cookie: u64) -> io::Result<()> {
        self.device.unwatch(cookie)?;
        self.batch.forget(cookie);
        Ok(())
    }

    /// Whether something may have changed since [`next_change`](Self::next_change) last returned
    /// `None`. This is one load of the mapped counter and no system call.
    ///
    /// A change is visible by the time the system call that made it returns.
    #[inline]
    pub fn changed(&self) -> bool {
        self.now.changed()
    }

    /// Creates an object that answers [`changed`](Self::changed) in threads without the watcher.
    pub fn checker(&self) -> Checker {
        self.now.clone()
    }

    /// Returns the next region that has changed, in the order of their first changes; `None` if
    /// there is none left. Does not wait, and makes no system call if nothing has changed.
    ///
    /// # Errors
    ///
    /// `EPERM`: this is a forked child. After any error, changes may be lost, and everything
    /// derived from the watched mappings must be dropped.
    pub fn next_change(&mut self) -> io::Result<Option<Change>> {
        if self.now.0.seen.is_of_parent() {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        loop {
            while let Some(event) = self.batch.next() {
                match event.kind {
                    uapi::EVENT_INVAL => return Ok(Some(Change { event })),
                    uapi::EVENT_LAST => {
                        self.now.0.seen.set(event.user_cookie_counter);
                        return Ok(None);
                    }
                    _ => {}
                }
            }
            let now = self.now.0.counter.get();
            if self.now.0.seen.is(now) {
                return Ok(None);
            }
            match self.batch.fill(&self.device) {
                Ok(()) => {}
                // The driver of 2010 sends no LAST if UNREGISTER discarded the only event. Then
                // there is nothing else up to `now`.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.now.0.seen.set(now);
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The changes up to now, as an iterator over [`next_change`](Self::next_change).
    ///
    /// Changes that are not taken are returned the next time.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # if !ummunotify::is_present() { return Ok(()) }
    /// let mut watcher = ummunotify::Watcher::open()?;
    /// let buffers = [vec![1u8; 1 << 20], vec![2u8; 1 << 20]];
    /// for (cookie, buffer) in buffers.iter().enumerate() {
    ///     watcher.watch(ummunotify::addresses(buffer), cookie as u64)?;
    /// }
    /// drop(buffers);
    /// let changes = watcher.changes().map(|change| Ok(change?.cookie()));
    /// let mut cookies = changes.collect::<std::io::Result<Vec<_>>>()?;
    /// // The kernel may have changed both before, in another order.
    /// cookies.sort();
    /// assert_eq!(cookies, [0, 1]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn changes(&mut self) -> Changes<'_> {
        Changes {
            watcher: self,
            done: false,
        }
    }

    /// Waits until something has changed, up to `limit`; returns whether it has.
    ///
    /// # Errors
    ///
    /// Those of `poll`, including `EINTR`.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<bool> {
        if !self.batch.is_empty() {
            return Ok(true);
        }
        let mut fd = libc::pollfd {
            fd: self.device.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let limit = limit.map_or(-1, |limit| limit.as_millis().try_into().unwrap_or(i32::MAX));
        // SAFETY: `fd` is one valid `pollfd`.
        Ok(check(unsafe { libc::poll(&mut fd, 1, limit) })? != 0)
    }

    /// The open file. Its events must not be read directly.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// Reads from each page, which faults in absent ones.
fn touch(addresses: &Range<u64>) {
    let page = page_size();
    let mut address = addresses.start / page * page;
    loop {
        touch_page(address);
        match address.checked_add(page) {
            Some(next) if next < addresses.end => address = next,
            _ => return,
        }
    }
}

/// Reads from each page that is in memory but may be inaccessible, as NUMA balancing makes it.
fn touch_in_memory(addresses: &Range<u64>) {
    const PAGES: u64 = 512;
    let page = page_size();
    let mut in_memory = [0; PAGES as usize];
    let mut start = addresses.start / page * page;
    while start < addresses.end {
        let pages = (addresses.end - start).div_ceil(page).min(PAGES);
        // SAFETY: The call writes a byte for each page to the array, which is long enough. It fails
        // if something is not mapped.
        let failed = unsafe {
            let length = (pages * page) as usize;
            libc::mincore(start as *mut libc::c_void, length, in_memory.as_mut_ptr())
        };
        if failed == 0 {
            (start..)
                .step_by(page as usize)
                .zip(&in_memory)
                .take(pages as usize)
                .filter(|(_, is_in_memory)| **is_in_memory & 1 != 0)
                .for_each(|(address, _)| touch_page(address));
        }
        start = start.saturating_add(pages * page);
    }
}

fn page_size() -> u64 {
    // SAFETY: The call takes no pointer.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

/// Makes the kernel read from a page. Raises no signal.
fn touch_page(address: u64) {
    const NO_WAY: libc::c_int = -1;
    // The kernel reads the mask before it rejects -1 as the way to change it.
    // SAFETY: The call only reads, and fails if it cannot.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            NO_WAY,
            address as *const u8,
            ptr::null_mut::<u8>(),
            size_of::<u64>(),
        )
    };
}

/// A watched region has changed: whatever was derived from its mappings must not be used any more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Change {
    event: Event,
}

impl Change {
    /// The cookie of the region.
    #[inline]
    pub fn cookie(&self) -> u64 {
        self.event.user_cookie_counter
    }

    /// The addresses that may have changed; they always lie inside the region. After several
    /// changes, they are a range that encloses all of them with [`Features::HULL`], and the whole
    /// region without.
    #[inline]
    pub fn addresses(&self) -> Range<u64> {
        self.event.hint_start..self.event.hint_end
    }

    /// Whether [`addresses`](Self::addresses) are the enclosing range rather than the whole region.
    #[inline]
    pub fn is_exact(&self) -> bool {
        self.event.flags & uapi::EVENT_FLAG_HINT != 0
    }

    /// The causes of all changes since the event was queued; none without [`Features::CAUSE`].
    #[inline]
    pub fn causes(&self) -> Causes {
        Causes::from_bits(self.event.flags >> uapi::EVENT_CAUSES_SHIFT)
    }

    /// Whether the pages may still be those from before the change, which a stamp can show.
    ///
    /// `false` without [`Features::CAUSE`].
    #[inline]
    pub fn may_keep_pages(&self) -> bool {
        let causes = self.causes();
        causes != Causes::NONE && !causes.intersects(Causes::UNMAP | Causes::OTHER)
    }

    /// The record from the kernel.
    #[inline]
    pub fn event(&self) -> &Event {
        &self.event
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Change")
            .field("cookie", &self.cookie())
            .field("addresses", &format_args!("{:#x?}", self.addresses()))
            .field("is_exact", &self.is_exact())
            .field("causes", &self.causes())
            .finish()
    }
}

/// The changes up to now; see [`Watcher::changes`]. It ends after an error.
#[derive(Debug)]
pub struct Changes<'a> {
    watcher: &'a mut Watcher,
    done: bool,
}

impl Iterator for Changes<'_> {
    type Item = io::Result<Change>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.watcher.next_change().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

impl iter::FusedIterator for Changes<'_> {}

/// Answers from any thread whether something may have changed; see [`Watcher::changed`].
///
/// If the answer is no, everything that the reading thread did before [`Watcher::next_change`]
/// returned `None` is visible to the asking thread.
#[derive(Clone, Debug)]
pub struct Checker(Arc<Clock>);

impl Checker {
    /// Whether something may have changed since [`Watcher::next_change`] last returned `None`.
    #[inline]
    pub fn changed(&self) -> bool {
        !self.0.seen.is(self.0.counter.get())
    }

    /// Whether this process is a forked child, for which the watcher does not work.
    pub fn is_inherited(&self) -> bool {
        self.0.seen.is_of_parent()
    }
}

/// The counter, and the value up to which changes were read.
#[derive(Debug)]
struct Clock {
    counter: Counter,
    seen: Seen,
}

/// The value of the counter up to which all changes have been taken.
///
/// It is stored plus one, so that the 0 that a forked child finds is not a valid value.
#[derive(Debug)]
struct Seen(Wiped);

impl Seen {
    fn new() -> io::Result<Self> {
        let seen = Self(Wiped::new()?);
        seen.set(0);
        Ok(seen)
    }

    #[inline]
    fn is(&self, counter: u64) -> bool {
        // Pairs with the release in `set`: entries that the reader marked as stale are seen as
        // stale.
        self.0.number().load(Ordering::Acquire) == counter.wrapping_add(1)
    }

    fn set(&self, counter: u64) {
        self.0
            .number()
            .store(counter.wrapping_add(1), Ordering::Release);
    }

    fn is_of_parent(&self) -> bool {
        self.0.number().load(Ordering::Relaxed) == 0
    }
}

/// Events that were read together, and not all returned yet.
struct Batch {
    events: Vec<Event>,
    next: usize,
}

impl Batch {
    /// How many events one call reads.
    const SIZE: usize = 128;

    fn new() -> Self {
        Self {
            events: Vec::with_capacity(Self::SIZE),
            next: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.next == self.events.len()
    }

    fn next(&mut self) -> Option<Event> {
        let event = self.events.get(self.next).copied()?;
        self.next += 1;
        Some(event)
    }

    /// Reads more when all were returned.
    fn fill(&mut self, device: &Device) -> io::Result<()> {
        self.events.resize(Self::SIZE, Event::default());
        let read = device.read(&mut self.events);
        self.events.truncate(*read.as_ref().unwrap_or(&0));
        self.next = 0;
        match read {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            result => result.map(drop),
        }
    }

    /// Discards all records of a region that is no longer watched.
    fn forget(&mut self, cookie: u64) {
        self.events.drain(..self.next);
        self.next = 0;
        self.events
            .retain(|it| it.kind != uapi::EVENT_INVAL || it.user_cookie_counter != cookie);
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.events.iter().skip(self.next))
            .finish()
    }
}
