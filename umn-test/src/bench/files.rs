// SPDX-License-Identifier: GPL-2.0

//! The cost of opening and closing many files, and of exiting with them.

use std::os::fd::{
    AsRawFd,
    FromRawFd,
    IntoRawFd,
    OwnedFd, //
};

use super::{
    costs::{
        page,
        Watch, //
    },
    count::{
        self,
        now,
        Stopwatch, //
    },
    figures::{
        Figures,
        Operation,
        Peer,
        FILES, //
    },
};
use crate::{
    device::{
        check,
        Device,
        PATH, //
    },
    expect::{
        self,
        Outcome, //
    },
    process::{
        self,
        Child, //
    },
    uapi,
};

/// How often each operation is measured.
const ROUNDS: usize = 101;
const EXITS: usize = 9;

/// Measures with files of the device and with eventfds.
pub fn measure() -> Outcome<Figures> {
    count::require()?;
    process::set_limit(libc::RLIMIT_NOFILE, FILES[FILES.len() - 1] + 100)?;
    let mut figures = Figures::default();
    for files in FILES {
        // In a separate process, so that nothing is left of the previous one.
        let child = Child::fork(|line| {
            for time in with(files)? {
                line.tell_number(time)?;
            }
            Ok(())
        })?;
        for operation in [
            Operation::OpenFile,
            Operation::FirstRegister,
            Operation::CloseFile,
        ] {
            let time = child.hear_number()?;
            figures.add(operation, Peer::Ummunotify, files, time as f64);
        }
        child.join()?;
        if files > 1 {
            for (peer, make) in [
                (Peer::Ummunotify, watched as Make),
                (Peer::Eventfd, eventfd),
            ] {
                let each = (exit(files, make)? - exit(0, make)?) / files as f64;
                figures.add(Operation::ExitFile, peer, files, each);
            }
        }
    }
    Ok(figures)
}

/// Opens a file.
type Make = fn(u64) -> Outcome<OwnedFd>;

/// A file with a region.
fn watched(number: u64) -> Outcome<OwnedFd> {
    let watch = Watch::open()?;
    watch.register(page(number), number)?;
    Ok(watch.device.file().try_clone()?.into())
}

fn eventfd(_: u64) -> Outcome<OwnedFd> {
    // SAFETY: The file was just opened and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(check(libc::eventfd(0, 0))?) })
}

/// The cost of opening a file, registering its first region, and closing it, with others open.
fn with(files: u64) -> Outcome<[u64; 3]> {
    let _others = (1..files).map(watched).collect::<Outcome<Vec<_>>>()?;
    let path = std::ffi::CString::new(PATH).map_err(std::io::Error::from)?;
    let [mut opening, mut registering, mut closing] = [(); 3].map(|()| Stopwatch::new());
    let argument = Watch::argument(page(0), 0);
    for _ in 0..ROUNDS {
        let arguments = [
            libc::AT_FDCWD as u64,
            path.as_ptr() as u64,
            libc::O_RDONLY as u64,
        ];
        let fd = opening.time(|| count::call(libc::SYS_openat, arguments));
        expect::that("open", fd >= 0, "success", fd)?;
        // SAFETY: The file was just opened and is nobody else's.
        let device = Device::from(unsafe { OwnedFd::from_raw_fd(fd as i32) });
        let arguments = [
            device.as_raw_fd() as u64,
            uapi::REGISTER_REGION.into(),
            (&raw const argument) as u64,
        ];
        let result = registering.time(|| count::call(libc::SYS_ioctl, arguments));
        expect::same("REGISTER_REGION", result, 0)?;
        let fd = OwnedFd::from(device.file().try_clone()?).into_raw_fd();
        drop(device);
        closing.time(|| count::call(libc::SYS_close, [fd as u64, 0, 0]));
    }
    Ok([opening, registering, closing].map(Stopwatch::median))
}

/// The least cost of several exits of a process with this many files, until its parent notices.
fn exit(files: u64, make: Make) -> Outcome<f64> {
    let mut least = u64::MAX;
    for _ in 0..EXITS {
        let child = Child::fork(|line| {
            let files = (0..files).map(make).collect::<Outcome<Vec<_>>>()?;
            line.tell()?;
            line.hear()?;
            std::mem::forget(files);
            Ok(())
        })?;
        child.hear()?;
        let start = now();
        child.tell()?;
        child.ended_by()?;
        least = least.min(now() - start);
        child.join()?;
    }
    Ok(least as f64)
}
