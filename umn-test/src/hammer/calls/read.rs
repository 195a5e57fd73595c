// SPDX-License-Identifier: GPL-2.0

//! Reading in every way, and the read-like calls that the device does not support.

use std::{
    io,
    os::fd::{
        AsRawFd,
        FromRawFd,
        OwnedFd, //
    },
    ptr, //
};

use super::answer::{
    number,
    Answer,
    Verdict::{
        May,
        MustFail, //
    }, //
};
use crate::{
    device::check,
    hammer::caller::Caller,
    uapi::{
        Event,
        CAUSES_SAME_PAGES,
        CAUSE_CLEAR,
        CAUSE_DEVICE,
        CAUSE_OTHER,
        CAUSE_UNMAP,
        EVENT_CAUSES_SHIFT,
        EVENT_FLAG_HINT,
        EVENT_INVAL,
        EVENT_LAST, //
    }, //
};

/// Expects whole records.
pub fn whole_records(caller: &Caller, what: &str, result: &io::Result<i64>) {
    if let Ok(bytes) = result {
        if bytes % size_of::<Event>() as i64 != 0 {
            caller.tally.wrong(&format!("{what}: {bytes} bytes"));
        }
    }
}

pub fn read(caller: &mut Caller) -> Answer {
    let (fd, buffer, length) = (caller.fd(), caller.pointer(), caller.length());
    // SAFETY: The address is of memory that may be overwritten, or invalid.
    let result = number(unsafe { libc::read(fd, buffer, length) });
    whole_records(caller, "read", &result);
    (May, result)
}

/// The flags that an event may have, causes included.
const FLAGS: u32 = EVENT_FLAG_HINT | (CAUSES << EVENT_CAUSES_SHIFT);
const CAUSES: u32 = CAUSES_SAME_PAGES | CAUSE_UNMAP | CAUSE_CLEAR | CAUSE_DEVICE | CAUSE_OTHER;

/// Reads with valid arguments, and checks the records.
pub fn read_properly(caller: &mut Caller) -> Answer {
    let fd = caller.fd();
    let most = caller.rng.usize(1..=caller.buffer.len());
    let buffer = caller.buffer.as_mut_ptr().cast();
    // SAFETY: The buffer has room for this many.
    let result = number(unsafe { libc::read(fd, buffer, most * size_of::<Event>()) });
    whole_records(caller, "read", &result);
    if let Ok(bytes) = result {
        let records = &caller.buffer[..bytes as usize / size_of::<Event>()];
        let end = records.len().saturating_sub(1);
        for (at, record) in records.iter().enumerate() {
            let hint = record.hint_start..record.hint_end;
            let valid = match (record.kind, record.flags) {
                (EVENT_INVAL, flags) if flags & !FLAGS == 0 => !hint.is_empty(),
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

/// Buffers at several addresses.
pub fn pieces(caller: &mut Caller) -> [libc::iovec; 20] {
    [(); 20].map(|()| libc::iovec {
        iov_base: caller.pointer(),
        iov_len: caller.rng.usize(0..200),
    })
}

/// A number of buffers, usually a valid one.
pub fn piece_count(caller: &mut Caller) -> i32 {
    if caller.once_in(10) {
        caller.one_of(&[-1, 0, 1025, i32::MAX])
    } else {
        caller.rng.i32(1..=20)
    }
}

pub fn readv(caller: &mut Caller) -> Answer {
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
    // SAFETY: The addresses are of memory that may be overwritten, or invalid.
    let result = number(unsafe { libc::readv(fd, vector, count) });
    whole_records(caller, "readv", &result);
    (May, result)
}

pub fn preadv2(caller: &mut Caller) -> Answer {
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
    // SAFETY: The addresses are of memory that may be overwritten, or invalid.
    let result = number(unsafe { libc::preadv2(fd, pieces.as_ptr(), count, position, flags) });
    whole_records(caller, "preadv2", &result);
    (verdict, result)
}

pub fn write(caller: &mut Caller) -> Answer {
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

pub fn seek(caller: &mut Caller) -> Answer {
    let (offset, whence) = (caller.rng.i64(..), caller.rng.i32(-1..7));
    // SAFETY: The call takes no pointer.
    let result = unsafe { libc::lseek(caller.fd(), offset, whence) };
    (MustFail, number(result))
}

pub fn splice(caller: &mut Caller) -> Answer {
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
    // SAFETY: Any file will do, and the pointers may be null.
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

pub fn other_file(caller: &mut Caller) -> Answer {
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
