// SPDX-License-Identifier: GPL-2.0

//! The calls that are made, and what may come of each.

use std::{
    ffi::c_void,
    fs,
    io,
    mem,
    os::fd::{
        AsRawFd,
        BorrowedFd,
        FromRawFd,
        OwnedFd, //
    },
    process::{
        Command,
        Stdio, //
    },
    ptr, //
};

use io_uring::{
    opcode,
    types,
    IoUring, //
};

use crate::{
    device::{
        self,
        check, //
    },
    mem::PAGE,
    process::Line,
    uapi::{
        self,
        Event,
        Register,
        EVENT_FLAG_HINT,
        EVENT_INVAL,
        EVENT_LAST, //
    },
};

use super::caller::{
    Caller,
    ARENA,
    ARENA_PAGES,
    FDS,
    FIRST_FD, //
};

/// Whether a call that was made may have succeeded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    May,
    /// It must not, whatever the moment.
    MustFail,
}
use Verdict::{
    May,
    MustFail, //
};

/// What came of a call.
type Answer = (Verdict, io::Result<i64>);

/// A kind of call.
pub struct Call {
    /// What it is called in the table.
    pub name: &'static str,
    /// How often it is made, compared to others.
    pub weight: u32,
    /// The errors it may fail with, besides [`ANYWHERE`].
    errors: &'static [i32],
    /// Makes it.
    pub make: fn(&mut Caller) -> Answer,
}

/// A descriptor may be closed at any time, and memory short.
const ANYWHERE: &[i32] = &[libc::EBADF, libc::ENOMEM];

impl Call {
    /// Whether it may fail with an error.
    pub fn fails_with(&self, error: &io::Error) -> bool {
        error
            .raw_os_error()
            .is_some_and(|number| self.errors.contains(&number) || ANYWHERE.contains(&number))
    }
}

/// Makes the table: `function, weight, errors;` for each.
macro_rules! calls {
    ($($name:ident, $weight:literal, [$($error:ident)*];)+) => {
        /// All kinds.
        pub const CALLS: &[Call] = &[
            $(Call {
                name: stringify!($name),
                weight: $weight,
                errors: &[$(libc::$error),*],
                make: $name,
            },)+
        ];
    };
}

/// The place of `open` in the table.
pub const OPEN: usize = 0;

calls! {
    open, 60, [EINVAL ENOENT ENODEV ENXIO EMFILE ENFILE ENOTDIR EINTR];
    close, 8, [];
    close_all, 1, [];
    duplicate, 6, [EBUSY];
    exchange, 4, [EINVAL EPERM EFAULT];
    register, 50, [EINVAL EPERM EFAULT ENOSPC];
    register_many, 2, [EINVAL EPERM ENOSPC];
    register_crowd, 2, [EINVAL EPERM ENOSPC];
    unregister, 25, [EINVAL EPERM EFAULT];
    other_ioctl, 15, [ENOTTY];
    read, 50, [EAGAIN EINTR EINVAL EFAULT EPERM];
    read_properly, 30, [EAGAIN EINTR EPERM];
    readv, 20, [EAGAIN EINTR EINVAL EFAULT EPERM];
    preadv2, 15, [EAGAIN EINTR EINVAL EFAULT EPERM ESPIPE EOPNOTSUPP];
    write, 6, [EINVAL EFAULT ESPIPE];
    seek, 4, [EINVAL ESPIPE];
    splice, 8, [EINVAL ESPIPE EXDEV];
    other_file, 8, [EINVAL ENOTDIR ENOTSOCK ESPIPE EOPNOTSUPP ENODEV EPERM];
    map, 30, [EINVAL EACCES EAGAIN EPERM EEXIST EOPNOTSUPP EOVERFLOW];
    unmap, 6, [];
    protect, 10, [EINVAL EACCES];
    remap, 10, [EINVAL EFAULT EAGAIN EACCES];
    advise, 15, [EINTR EINVAL EACCES EPERM EFAULT EBUSY EIO EAGAIN EOPNOTSUPP];
    peek, 10, [EFAULT ENOSYS];
    poke, 5, [EFAULT ENOSYS];
    poll, 15, [EINTR EINVAL EFAULT];
    select, 8, [EINTR];
    epoll, 8, [EPERM EEXIST EINTR EMFILE ENFILE];
    uring, 6, [EMFILE ENFILE EPERM ENOSYS EAGAIN];
    control, 20, [EINVAL EPERM ESRCH EACCES EAGAIN EFAULT ENOTDIR EMFILE];
    own, 12, [EINVAL ESRCH EPERM];
    lock, 6, [EINVAL EAGAIN EINTR ENOLCK EDEADLK];
    fdinfo, 8, [ENOENT EACCES ESRCH EPERM EMFILE ENFILE];
    change, 120, [EINTR EINVAL EACCES EFAULT EAGAIN EIO EBUSY EPERM];
    pass, 8, [EAGAIN ETOOMANYREFS EPIPE ECONNREFUSED ENOBUFS EINTR];
    lose, 2, [ETOOMANYREFS EMFILE ENFILE ENOBUFS];
    receive, 8, [EAGAIN EMFILE];
    steal, 3, [ESRCH EPERM EMFILE EINVAL];
    signal, 10, [ESRCH EPERM];
    fork, 3, [EAGAIN];
    spawn, 1, [ECHILD EAGAIN EACCES EMFILE ENFILE EINTR ENOENT];
}

/// A result of the system as a number.
fn number<T: PartialEq + From<i8> + TryInto<i64>>(result: T) -> io::Result<i64> {
    check(result).map(|value| value.try_into().unwrap_or(0))
}

// --- the device's own ------------------------------------------------------------------------

fn open(caller: &mut Caller) -> Answer {
    let extra = caller.some_of(&[libc::O_CLOEXEC, libc::O_NOCTTY, libc::O_ASYNC]);
    let nonblocking = if caller.once_in(4) {
        0
    } else {
        libc::O_NONBLOCK
    };
    let (verdict, access) = if caller.once_in(5) {
        let writes = [libc::O_WRONLY, libc::O_RDWR, libc::O_ACCMODE];
        let odd = [
            libc::O_DIRECT,
            libc::O_DIRECTORY,
            libc::O_WRONLY | libc::O_APPEND,
            libc::O_RDWR | libc::O_TRUNC,
        ];
        let all: Vec<i32> = writes.into_iter().chain(odd).collect();
        (MustFail, caller.one_of(&all))
    } else if caller.once_in(20) {
        (May, libc::O_PATH)
    } else {
        (May, libc::O_RDONLY)
    };
    let target = caller.fd();
    let path = c"/dev/ummunotify";
    debug_assert_eq!(path.to_str(), Ok(device::PATH));
    // SAFETY: The path is a C string.
    let opened = check(unsafe { libc::open(path.as_ptr(), access | nonblocking | extra) });
    // SAFETY: The file was just opened and is nobody else's.
    let opened = opened.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    (verdict, opened.and_then(|file| place(file, target)))
}

/// Gives a new file of the device one of the descriptors for these.
fn place(file: OwnedFd, target: i32) -> io::Result<i64> {
    // SAFETY: What the descriptor stood for before may go away at any time.
    number(unsafe { libc::dup2(file.as_raw_fd(), target) })
}

fn close(caller: &mut Caller) -> Answer {
    // SAFETY: The file may go away at any time.
    (May, number(unsafe { libc::close(caller.fd()) }))
}

fn close_all(_: &mut Caller) -> Answer {
    let (first, last) = (FIRST_FD as u32, (FIRST_FD + FDS - 1) as u32);
    // SAFETY: These files may go away at any time.
    (May, number(unsafe { libc::close_range(first, last, 0) }))
}

fn duplicate(caller: &mut Caller) -> Answer {
    let (from, to) = (caller.fd(), caller.fd());
    // SAFETY: What the descriptor stood for before may go away at any time.
    (May, number(unsafe { libc::dup2(from, to) }))
}

fn ioctl(fd: i32, request: u32, argument: *mut c_void) -> io::Result<i64> {
    // SAFETY: The argument is the caller's own, or memory that anything may be written to.
    number(unsafe { libc::ioctl(fd, request.into(), argument) })
}

/// Issues an ioctl with an argument that is as it should be, or at some address.
fn ioctl_with<T>(caller: &mut Caller, request: u32, mut argument: T) -> Answer {
    let fd = caller.fd();
    let pointer = if caller.once_in(4) {
        caller.pointer()
    } else {
        (&raw mut argument).cast()
    };
    (May, ioctl(fd, request, pointer))
}

fn exchange(caller: &mut Caller) -> Answer {
    let mask = caller.rng.u32(..);
    ioctl_with(caller, uapi::EXCHANGE_FEATURES, mask)
}

/// A region that is likely to be hit, or not at all likely.
fn region(caller: &mut Caller) -> Register {
    let page = caller.arena_page();
    let (start, end) = match caller.rng.u32(0..8) {
        0 => (ARENA, ARENA + ARENA_PAGES * PAGE),
        1 => (page + caller.rng.u64(0..PAGE), page + 2 * PAGE),
        2 => (page, page),
        3 => (0, !0),
        4 => (caller.rng.u64(..), caller.rng.u64(..)),
        5 => (caller.window_page(), caller.window_page() + PAGE),
        _ => (page, page + PAGE),
    };
    Register {
        start,
        end,
        user_cookie: caller.rng.u64(0..64),
        flags: caller.rng.u32(..),
        reserved: caller.rng.u32(..),
    }
}

fn register(caller: &mut Caller) -> Answer {
    let region = region(caller);
    ioctl_with(caller, uapi::REGISTER_REGION, region)
}

fn register_many(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let mut last = Ok(0);
    for _ in 0..200 {
        let mut region = region(caller);
        region.user_cookie = caller.rng.u64(0..1000);
        last = ioctl(fd, uapi::REGISTER_REGION, (&raw mut region).cast());
    }
    (May, last)
}

/// More regions on a page than a change to it queues by itself.
fn register_crowd(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let start = caller.arena_page();
    let mut last = Ok(0);
    for cookie in 0..300 {
        let mut region = Register {
            start: start + cookie % 7,
            end: start + PAGE,
            user_cookie: cookie,
            ..Register::default()
        };
        last = ioctl(fd, uapi::REGISTER_REGION, (&raw mut region).cast());
    }
    (May, last)
}

fn unregister(caller: &mut Caller) -> Answer {
    let many = if caller.once_in(2) { 64 } else { 1000 };
    let cookie = caller.rng.u64(0..many);
    ioctl_with(caller, uapi::UNREGISTER_REGION, cookie)
}

/// A command that is none of the device's, though it may look like one.
fn other_ioctl(caller: &mut Caller) -> Answer {
    const OURS: [u32; 3] = [
        uapi::EXCHANGE_FEATURES,
        uapi::REGISTER_REGION,
        uapi::UNREGISTER_REGION,
    ];
    let near = caller.one_of(&OURS);
    let request = match caller.rng.u32(0..4) {
        // Another direction or size.
        0 => near ^ (1 << caller.rng.u32(16..32)),
        // Another number.
        1 => near & !0xff | caller.rng.u32(0..256),
        2 => caller.rng.u32(..) & !0xff00 | 0x5500,
        // Whatever is none of those that the kernel carries out for each file.
        _ => caller.rng.u32(..) & !0xff00 | caller.one_of(&[0xa5_00, 0xe0_00, 0x55_00]),
    };
    let fd = caller.fd();
    let argument = caller.pointer();
    if OURS.contains(&request) {
        return (May, Err(io::Error::from_raw_os_error(libc::ENOTTY)));
    }
    (MustFail, ioctl(fd, request, argument))
}

// --- reading ---------------------------------------------------------------------------------

/// Expects whole records.
fn whole_records(caller: &Caller, what: &str, result: &io::Result<i64>) {
    if let Ok(bytes) = result {
        if bytes % size_of::<Event>() as i64 != 0 {
            caller.tally.wrong(&format!("{what}: {bytes} bytes"));
        }
    }
}

fn read(caller: &mut Caller) -> Answer {
    let (fd, buffer, length) = (caller.fd(), caller.pointer(), caller.length());
    // SAFETY: There is nothing at the address but what anything may be written to.
    let result = number(unsafe { libc::read(fd, buffer, length) });
    whole_records(caller, "read", &result);
    (May, result)
}

/// Reads where all is as it should be, and looks at what comes.
fn read_properly(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let most = caller.rng.usize(1..=caller.buffer.len());
    let buffer = caller.buffer.as_mut_ptr().cast();
    // SAFETY: The buffer has room for so many.
    let result = number(unsafe { libc::read(fd, buffer, most * size_of::<Event>()) });
    whole_records(caller, "read", &result);
    if let Ok(bytes) = result {
        let records = &caller.buffer[..bytes as usize / size_of::<Event>()];
        let end = records.len().saturating_sub(1);
        for (at, record) in records.iter().enumerate() {
            let hint = record.hint_start..record.hint_end;
            let valid = match (record.kind, record.flags) {
                (EVENT_INVAL, 0 | EVENT_FLAG_HINT) => !hint.is_empty(),
                (EVENT_LAST, 0) => at == end && hint == (0..0),
                _ => false,
            };
            if !valid {
                caller
                    .tally
                    .wrong(&format!("read: {record:?} as {at} of {end}"));
            }
        }
    }
    (May, result)
}

/// Pieces at some addresses.
fn pieces(caller: &mut Caller) -> [libc::iovec; 20] {
    [(); 20].map(|()| libc::iovec {
        iov_base: caller.pointer(),
        iov_len: caller.rng.usize(0..200),
    })
}

/// Mostly a count that there is.
fn piece_count(caller: &mut Caller) -> i32 {
    if caller.once_in(10) {
        caller.one_of(&[-1, 0, 1025, i32::MAX])
    } else {
        caller.rng.i32(1..=20)
    }
}

fn readv(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let pieces = pieces(caller);
    let count = piece_count(caller);
    let vector = if caller.once_in(10) {
        caller.pointer().cast_const().cast()
    } else if count > pieces.len() as i32 {
        ptr::null()
    } else {
        pieces.as_ptr()
    };
    // SAFETY: There is nothing at the addresses but what anything may be written to.
    let result = number(unsafe { libc::readv(fd, vector, count) });
    whole_records(caller, "readv", &result);
    (May, result)
}

fn preadv2(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let pieces = pieces(caller);
    let count = piece_count(caller).clamp(-1, pieces.len() as i32);
    let flags = match caller.rng.u32(0..6) {
        0 => 0,
        1 => libc::RWF_HIPRI,
        2 => libc::RWF_NOWAIT | libc::RWF_DSYNC,
        3 => 1 << caller.rng.u32(0..31),
        _ => libc::RWF_NOWAIT,
    };
    // The position of a stream is -1.
    let (verdict, position) = if caller.once_in(4) {
        (MustFail, caller.one_of(&[0, 8, i64::MAX, i64::MIN]))
    } else {
        (May, -1)
    };
    // SAFETY: There is nothing at the addresses but what anything may be written to.
    let result = number(unsafe { libc::preadv2(fd, pieces.as_ptr(), count, position, flags) });
    whole_records(caller, "preadv2", &result);
    (verdict, result)
}

// --- what a device to read from does not do --------------------------------------------------

fn write(caller: &mut Caller) -> Answer {
    let (fd, buffer, length) = (caller.fd(), caller.pointer(), caller.length());
    let piece = libc::iovec {
        iov_base: buffer,
        iov_len: length,
    };
    // SAFETY: The kernel checks the address.
    let result = unsafe {
        match caller.rng.u32(0..3) {
            0 => libc::write(fd, buffer, length),
            1 => libc::pwrite(fd, buffer, length, 0),
            _ => libc::writev(fd, &piece, 1),
        }
    };
    (MustFail, number(result))
}

fn seek(caller: &mut Caller) -> Answer {
    let (offset, whence) = (caller.rng.i64(..), caller.rng.i32(-1..7));
    // SAFETY: The call takes no pointer.
    let result = unsafe { libc::lseek(caller.fd(), offset, whence) };
    (MustFail, number(result))
}

fn splice(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let nowhere = ptr::null_mut();
    let mut ends = [0; 2];
    // SAFETY: There is room for two descriptors.
    if let Err(error) = check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK) }) {
        let full = [libc::EMFILE, libc::ENFILE].contains(&error.raw_os_error().unwrap_or(0));
        let number = if full { libc::ENOMEM } else { libc::EIO };
        return (May, Err(io::Error::from_raw_os_error(number)));
    }
    // SAFETY: The files were just opened and are nobody else's.
    let [out, inward] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    let (out, inward) = (out.as_raw_fd(), inward.as_raw_fd());
    // SAFETY: The files may be anything, and the pointers may be null.
    let result = unsafe {
        match caller.rng.u32(0..6) {
            0 => libc::splice(fd, nowhere, inward, nowhere, 4096, libc::SPLICE_F_NONBLOCK),
            1 => libc::splice(out, nowhere, fd, nowhere, 4096, libc::SPLICE_F_NONBLOCK),
            2 => libc::tee(fd, inward, 4096, libc::SPLICE_F_NONBLOCK),
            3 => libc::sendfile(inward, fd, ptr::null_mut(), 4096),
            4 => libc::sendfile(fd, out, ptr::null_mut(), 4096),
            _ => libc::copy_file_range(fd, nowhere, caller.fd(), nowhere, 4096, 0),
        }
    };
    (MustFail, number(result))
}

fn other_file(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    // SAFETY: The calls take no pointer, or one that the kernel checks.
    let result = unsafe {
        match caller.rng.u32(0..9) {
            0 => libc::fsync(fd).into(),
            1 => libc::fdatasync(fd).into(),
            2 => libc::ftruncate(fd, 4096).into(),
            3 => libc::fallocate(fd, caller.rng.i32(0..4), 0, 4096).into(),
            4 => libc::readahead(fd, 0, 4096) as i64,
            5 => libc::fchdir(fd).into(),
            6 => libc::listen(fd, 1).into(),
            7 => libc::sync_file_range(fd, 0, 4096, 7).into(),
            _ => libc::syscall(libc::SYS_getdents64, fd, caller.pointer(), 4096),
        }
    };
    (MustFail, number(result))
}

// --- the mapped counter ----------------------------------------------------------------------

fn map(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let at = caller.window_page();
    let usual = caller.once_in(2);
    let (access, length, offset) = if usual {
        (libc::PROT_READ, 8, 0)
    } else {
        (
            caller.some_of(&[libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC]),
            caller.one_of(&[0, 1, 4096, 4097, 8192, 1 << 30, !0]),
            caller.one_of(&[0, 0, 0, 1, 4096, 1 << 40, i64::MIN]),
        )
    };
    let share = caller.one_of(&[
        libc::MAP_SHARED,
        libc::MAP_SHARED,
        libc::MAP_PRIVATE,
        libc::MAP_SHARED_VALIDATE,
        0,
    ]);
    let place = caller.one_of(&[
        libc::MAP_FIXED,
        libc::MAP_FIXED,
        libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE,
    ]);
    let extra = if usual {
        0
    } else {
        caller.some_of(&[
            libc::MAP_POPULATE,
            libc::MAP_LOCKED,
            libc::MAP_NORESERVE,
            libc::MAP_SYNC,
            libc::MAP_GROWSDOWN,
        ])
    };
    let one_page = (1..=PAGE as usize).contains(&length);
    let verdict = if access & libc::PROT_WRITE == 0 && one_page && offset == 0 {
        May
    } else {
        MustFail
    };
    // SAFETY: Nothing but mapped counters is there.
    let mapped = unsafe {
        libc::mmap(
            at as *mut c_void,
            length,
            access,
            share | place | extra,
            fd,
            offset,
        )
    };
    (verdict, number(mapped as i64))
}

fn unmap(caller: &mut Caller) -> Answer {
    let at = caller.window_page() as *mut c_void;
    let length = caller.rng.usize(1..3) * PAGE as usize;
    // SAFETY: Nothing but mapped counters is there.
    (May, number(unsafe { libc::munmap(at, length) }))
}

fn protect(caller: &mut Caller) -> Answer {
    let at = caller.window_page() as *mut c_void;
    let access = caller.some_of(&[libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC]);
    let verdict = if access & libc::PROT_WRITE == 0 {
        May
    } else {
        MustFail
    };
    // SAFETY: Nothing but mapped counters is there.
    let result = unsafe { libc::mprotect(at, PAGE as usize, access) };
    (verdict, number(result))
}

fn remap(caller: &mut Caller) -> Answer {
    let (from, to) = (caller.window_page(), caller.window_page());
    let old = caller.one_of(&[0, PAGE, PAGE, 2 * PAGE]) as usize;
    let new = caller.one_of(&[0, PAGE, PAGE, 2 * PAGE, 1 << 30]) as usize;
    // Always to a place of one's choice, which is no other memory.
    let flags = libc::MREMAP_FIXED | libc::MREMAP_MAYMOVE | caller.one_of(&[0, 0, 4]);
    // To a longer mapping there is no way.
    let verdict = if new > old.max(PAGE as usize) {
        MustFail
    } else {
        May
    };
    // SAFETY: Nothing but mapped counters is there.
    let moved = unsafe { libc::mremap(from as *mut c_void, old, new, flags, to as *mut c_void) };
    (verdict, number(moved as i64))
}

/// Advice for the counter's mapping; of what the crate `libc` lacks, guard pages and collapsing.
const ADVICE: &[i32] = &[
    libc::MADV_DONTNEED,
    libc::MADV_DONTNEED,
    libc::MADV_WILLNEED,
    libc::MADV_FREE,
    libc::MADV_REMOVE,
    libc::MADV_DONTFORK,
    libc::MADV_DOFORK,
    libc::MADV_MERGEABLE,
    libc::MADV_UNMERGEABLE,
    libc::MADV_HUGEPAGE,
    libc::MADV_NOHUGEPAGE,
    libc::MADV_DONTDUMP,
    libc::MADV_WIPEONFORK,
    libc::MADV_KEEPONFORK,
    libc::MADV_COLD,
    libc::MADV_PAGEOUT,
    libc::MADV_POPULATE_READ,
    25, // MADV_COLLAPSE
    crate::mem::MADV_GUARD_INSTALL,
    103, // MADV_GUARD_REMOVE
];

fn advise(caller: &mut Caller) -> Answer {
    let at = caller.window_page() as *mut c_void;
    let (verdict, advice) = if caller.once_in(8) {
        (MustFail, libc::MADV_POPULATE_WRITE)
    } else {
        (May, caller.one_of(ADVICE))
    };
    // SAFETY: Nothing but mapped counters is there.
    let result = unsafe { libc::madvise(at, PAGE as usize, advice) };
    (verdict, number(result))
}

/// A word of this process's own, and one of the window, for a copy between them.
fn words(caller: &mut Caller, word: &mut u64) -> (libc::iovec, libc::iovec) {
    let piece = |at: *mut c_void| libc::iovec {
        iov_base: at,
        iov_len: size_of::<u64>(),
    };
    let window = caller.window_page() as *mut c_void;
    (piece(ptr::from_mut(word).cast()), piece(window))
}

fn peek(caller: &mut Caller) -> Answer {
    let mut word = 0;
    let (here, there) = words(caller, &mut word);
    // SAFETY: `here` may be written to.
    let result = unsafe { libc::process_vm_readv(libc::getpid(), &here, 1, &there, 1, 0) };
    (May, number(result))
}

fn poke(caller: &mut Caller) -> Answer {
    let mut word = 0;
    let (here, there) = words(caller, &mut word);
    // SAFETY: Nothing but mapped counters is there.
    let result = unsafe { libc::process_vm_writev(libc::getpid(), &here, 1, &there, 1, 0) };
    (MustFail, number(result))
}

// --- waiting ---------------------------------------------------------------------------------

fn poll(caller: &mut Caller) -> Answer {
    let mut fds = [(); FDS as usize].map(|()| libc::pollfd {
        fd: caller.fd(),
        events: caller.rng.i16(..),
        revents: 0,
    });
    let time = caller.rng.i32(0..5);
    let (at, count) = match caller.rng.u32(0..10) {
        0 => (caller.pointer().cast(), FDS as u64),
        1 => (ptr::null_mut(), 1 << 30),
        _ => (fds.as_mut_ptr(), FDS as u64),
    };
    // SAFETY: There are so many, or the kernel finds that there are not.
    (May, number(unsafe { libc::poll(at, count, time) }))
}

fn select(caller: &mut Caller) -> Answer {
    // SAFETY: All-zero bytes are an empty set.
    let mut sets: [libc::fd_set; 3] = unsafe { mem::zeroed() };
    for set in &mut sets {
        // SAFETY: The descriptor is below 1024.
        unsafe { libc::FD_SET(caller.fd(), set) };
    }
    let mut time = libc::timeval {
        tv_sec: 0,
        tv_usec: caller.rng.i64(0..3000),
    };
    let [read, write, error] = &mut sets;
    // SAFETY: The sets and the time are valid.
    let result = unsafe { libc::select(FIRST_FD + FDS, read, write, error, &mut time) };
    (May, number(result))
}

fn epoll(caller: &mut Caller) -> Answer {
    // SAFETY: The call takes no pointer.
    let fd = match check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }) {
        // SAFETY: The file was just opened and is nobody else's.
        Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
        Err(error) => return (May, Err(error)),
    };
    let mut result = Ok(0);
    for _ in 0..3 {
        let mut event = libc::epoll_event {
            events: caller.rng.u32(..) & !(libc::EPOLLEXCLUSIVE | libc::EPOLLWAKEUP) as u32,
            u64: 0,
        };
        let target = caller.fd();
        // SAFETY: `event` is a valid event.
        let added = number(unsafe {
            libc::epoll_ctl(fd.as_raw_fd(), libc::EPOLL_CTL_ADD, target, &mut event)
        });
        result = result.and(added);
    }
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    let time = caller.rng.i32(0..3);
    // SAFETY: There is room for one event.
    let waited = number(unsafe { libc::epoll_wait(fd.as_raw_fd(), &mut event, 1, time) });
    (May, result.and(waited))
}

/// Reads and polls asynchronously, and mostly leaves before that is done.
fn uring(caller: &mut Caller) -> Answer {
    let mut ring = match IoUring::new(8) {
        Ok(ring) => ring,
        Err(error) => return (May, Err(error)),
    };
    for _ in 0..3 {
        let fd = types::Fd(caller.fd());
        let read = opcode::Read::new(fd, caller.pointer().cast(), 128).build();
        let poll = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        // SAFETY: There is nothing at the address but what anything may be written to, whenever.
        let pushed = unsafe {
            let mut queue = ring.submission();
            queue.push(&read.user_data(1)).and(queue.push(&poll))
        };
        pushed.expect("there is room for so many");
    }
    let wait = usize::from(caller.once_in(3));
    let result = match ring.submit_and_wait(wait) {
        // A signal, which ends the waiting.
        Err(error) if error.raw_os_error() == Some(libc::EINTR) => Ok(0),
        result => result.map(|count| count as i64),
    };
    for completion in ring.completion() {
        let bytes = completion.result();
        if completion.user_data() == 1 && bytes > 0 {
            whole_records(caller, "a read by io_uring", &Ok(bytes.into()));
        }
    }
    (May, result)
}

// --- the file ----------------------------------------------------------------------------------

fn control(caller: &mut Caller) -> Answer {
    /// What the crate `libc` lacks.
    const F_SETSIG: i32 = 10;
    const F_GETSIG: i32 = 11;
    const F_GETOWN_EX: i32 = 16;
    let fd = caller.fd();
    let flags = caller.some_of(&[
        libc::O_ASYNC,
        libc::O_NONBLOCK,
        libc::O_NONBLOCK,
        libc::O_APPEND,
    ]);
    let odd = caller.one_of(&[libc::O_DIRECT, libc::O_NOATIME, !0]);
    // Deadly ones are rare, and those that say that a program is broken are not among them.
    let signal = caller.one_of(&[0, libc::SIGIO, libc::SIGIO, libc::SIGUSR1, 65, -1]);
    let signal = if caller.once_in(20) {
        libc::SIGKILL
    } else {
        signal
    };
    let closing = caller.rng.i32(0..2);
    let pointer = caller.pointer();
    // SAFETY: The commands take no pointer, or one that anything may be written to.
    let result = unsafe {
        match caller.rng.u32(0..12) {
            0..=4 => libc::fcntl(fd, libc::F_SETFL, flags),
            5 => libc::fcntl(fd, libc::F_SETFL, odd),
            6 => libc::fcntl(fd, F_SETSIG, signal),
            7 => libc::fcntl(fd, libc::F_SETFD, closing),
            8 => libc::fcntl(fd, F_GETOWN_EX, pointer),
            9 => libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK),
            10 => libc::fcntl(fd, libc::F_NOTIFY, 2),
            _ => libc::fcntl(fd, caller.one_of(&[F_GETSIG, libc::F_GETFL, libc::F_GETFD])),
        }
    };
    (May, number(result))
}

/// Has somebody else sent the signals, who may be a stranger and must not get them.
fn own(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let worker = caller.worker();
    // SAFETY: The call takes no arguments.
    let group = unsafe { libc::getpgrp() };
    let owners = [
        worker,
        worker,
        caller.thread(),
        -group,
        i32::MAX,
        i32::MIN,
        0,
    ];
    let owner = if caller.spares_strangers || !caller.once_in(4) {
        caller.one_of(&owners)
    } else {
        // The first process of all, and some that may have been there for long.
        caller.rng.i32(1..100)
    };
    // SAFETY: The command takes no pointer.
    let result = unsafe { libc::fcntl(fd, libc::F_SETOWN, owner) };
    (May, number(result))
}

fn lock(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let lock = libc::flock {
        l_type: caller.one_of(&[libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK]) as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: caller.rng.i64(0..10),
        l_len: caller.rng.i64(0..10),
        l_pid: 0,
    };
    let operation = caller.one_of(&[libc::LOCK_SH, libc::LOCK_EX, libc::LOCK_UN]);
    // SAFETY: The lock is valid.
    let result = unsafe {
        match caller.rng.u32(0..3) {
            0 => libc::fcntl(fd, libc::F_SETLK, &lock),
            1 => libc::fcntl(fd, libc::F_OFD_SETLK, &lock),
            _ => libc::flock(fd, operation | libc::LOCK_NB),
        }
    };
    (May, number(result))
}

fn fdinfo(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let path = match caller.worker() {
        0 => format!("/proc/self/fdinfo/{fd}"),
        worker => format!("/proc/{worker}/fdinfo/{fd}"),
    };
    (May, fs::read(path).map(|text| text.len() as i64))
}

// --- memory, processes -------------------------------------------------------------------------

/// Changes mappings of watched memory in one of the ways there are.
fn change(caller: &mut Caller) -> Answer {
    let most = if caller.once_in(10) { ARENA_PAGES } else { 4 };
    let from = caller.arena_page();
    let room = (ARENA + ARENA_PAGES * PAGE - from) / PAGE;
    let pages = caller.rng.u64(1..=most.min(room));
    let to = ARENA + caller.rng.u64(0..=ARENA_PAGES - pages) * PAGE;
    let length = (pages * PAGE) as usize;
    let at = from as *mut c_void;
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let access = caller.one_of(&[libc::PROT_NONE, libc::PROT_READ, both, both]);
    let share = caller.one_of(&[libc::MAP_PRIVATE, libc::MAP_PRIVATE, libc::MAP_SHARED]);
    let advice = caller.one_of(&[
        libc::MADV_DONTNEED,
        libc::MADV_DONTNEED,
        libc::MADV_FREE,
        libc::MADV_PAGEOUT,
        libc::MADV_COLD,
        libc::MADV_DONTFORK,
        libc::MADV_DOFORK,
        libc::MADV_MERGEABLE,
        libc::MADV_UNMERGEABLE,
        crate::mem::MADV_GUARD_INSTALL,
        103, // MADV_GUARD_REMOVE
    ]);
    let fixed = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: The arena's memory is only ever accessed by the kernel.
    let result = unsafe {
        match caller.rng.u32(0..10) {
            0 | 1 => {
                let flags = share | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                number(libc::mmap(at, length, both, flags, -1, 0) as i64)
            }
            2 => number(libc::munmap(at, length)),
            3 => number(libc::mprotect(at, length, access)),
            4 => number(libc::mremap(at, length, length, fixed, to as *mut c_void) as i64),
            5..=7 => number(libc::madvise(at, length, libc::MADV_POPULATE_WRITE)),
            _ => number(libc::madvise(at, length, advice)),
        }
    };
    (May, result)
}

/// The file that a descriptor stands for now.
fn borrowed(fd: i32) -> BorrowedFd<'static> {
    // SAFETY: Nothing relies on it to stay the same file, or one at all.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Passes a file to whoever receives it, be it nobody.
fn pass(caller: &mut Caller) -> Answer {
    let file = borrowed(caller.fd());
    (May, caller.line().pass(&file).map(|()| 0))
}

fn receive(caller: &mut Caller) -> Answer {
    let target = caller.fd();
    let result = match caller.line().receive() {
        // There was a message but no file in it, as there was no descriptor free for it.
        Err(error) if error.raw_os_error().is_none() => Ok(0),
        result => result.and_then(|file| place(file, target)),
    };
    (May, result)
}

/// Passes a file over a line that is closed with the file in it.
fn lose(caller: &mut Caller) -> Answer {
    let file = borrowed(caller.fd());
    let result = Line::pair().and_then(|(one, _two)| one.pass(&file));
    (May, result.map(|()| 0))
}

/// Takes a file out of another process.
fn steal(caller: &mut Caller) -> Answer {
    let (worker, from, to) = (caller.worker(), caller.fd(), caller.fd());
    let open = |result| {
        // SAFETY: The file was just opened and is nobody else's.
        check(result).map(|fd: i64| unsafe { OwnedFd::from_raw_fd(fd as i32) })
    };
    // SAFETY: The calls take no pointer.
    let result = unsafe {
        open(libc::syscall(libc::SYS_pidfd_open, worker, 0)).and_then(|process| {
            let process = process.as_raw_fd();
            open(libc::syscall(libc::SYS_pidfd_getfd, process, from, 0))
        })
    };
    (May, result.and_then(|file| place(file, to)))
}

/// Interrupts a thread of this process or, now and then, kills another one.
fn signal(caller: &mut Caller) -> Answer {
    let (thread, worker) = (caller.thread(), caller.worker());
    // SAFETY: The calls take no pointer.
    let result = unsafe {
        if thread != 0 && !caller.once_in(100) {
            let process = libc::getpid();
            libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR1)
        } else if worker != 0 {
            libc::kill(worker, libc::SIGKILL).into()
        } else {
            0
        }
    };
    (May, number(result))
}

/// Lets a child go on with the same files, while this process does too.
fn fork(caller: &mut Caller) -> Answer {
    if caller.is_child {
        return (May, Err(io::Error::from_raw_os_error(libc::EAGAIN)));
    }
    let calls = caller.rng.u32(0..100);
    // SAFETY: The child makes calls as this process does, and ends; the C library sees to it that
    // memory can be allocated in it.
    let result = check(unsafe { libc::fork() });
    match result {
        Ok(0) => {
            caller.be_child();
            for _ in 0..calls {
                caller.call();
            }
            // SAFETY: Ends the process, without the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        Ok(_) => {
            // Those that have ended by now.
            // SAFETY: The status is of no interest.
            while unsafe { libc::waitpid(-1, ptr::null_mut(), libc::WNOHANG) } > 0 {}
        }
        Err(_) => (),
    }
    (May, result.map(i64::from))
}

/// Executes this program in a child of `vfork`, with the same files.
fn spawn(caller: &mut Caller) -> Answer {
    if caller.is_child {
        return (May, Err(io::Error::from_raw_os_error(libc::EAGAIN)));
    }
    // A thread that forks may be the one to reap it.
    let status = executed(caller.rng.u64(..)).status();
    (May, status.map(|_| 0))
}

/// This program, to go on with the files that it inherits.
pub fn executed(seed: u64) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["hammer", "--executed", &seed.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}
