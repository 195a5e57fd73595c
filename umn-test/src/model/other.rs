// SPDX-License-Identifier: GPL-2.0

//! The processes that share memory with a world: one that changes it on request, and children that
//! hold its pages.

use std::{
    fs::File,
    io,
    ops::Range,
    os::{
        fd::OwnedFd,
        unix::fs::FileExt, //
    },
    sync::Mutex, //
};

use super::{
    calls,
    effect::pages, //
};
use crate::{
    mem::{
        self,
        PAGE, //
    },
    process::Child,
};

/// A child that keeps the pages it was forked with, except those it is asked to write to.
pub fn holder(scratch: &File) -> io::Result<Child> {
    /// No child may be forked while another thread holds the ends of a channel that the child must
    /// not inherit.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    Child::fork(|line| loop {
        let address = line.hear_number()?;
        if address == 0 {
            return Ok(());
        }
        let _ = calls::store(scratch, address);
        line.tell_number(0)?;
    })
}

/// The requests to the other process.
pub struct Other;

impl Other {
    /// Set the length of the file.
    pub const TRUNCATE: u64 = 1;
    /// Punch a hole into the file, at this range.
    pub const PUNCH: u64 = 2;
    /// Write the byte of the scratch file to an address.
    pub const STORE: u64 = 3;
    /// Move pages to a node, whose number is added to this code.
    pub const MIGRATE: u64 = 4;
    /// Give advice, whose index in [`Self::ADVICE`] is added to this code.
    pub const ADVISE: u64 = 16;
    /// The advice it can give.
    pub const ADVICE: [i32; 5] = [
        libc::MADV_PAGEOUT,
        libc::MADV_PAGEOUT,
        libc::MADV_COLD,
        libc::MADV_WILLNEED,
        libc::MADV_COLLAPSE,
    ];

    /// Starts a process that carries out requests until one of them is 0.
    pub fn start(file: &File, scratch: &File) -> io::Result<Child> {
        let parent = std::process::id() as i32;
        Child::fork(|line| {
            let memory = File::options()
                .write(true)
                .open(format!("/proc/{parent}/mem"))?;
            let pidfd = calls::pidfd(parent)?;
            loop {
                let code = line.hear_number()?;
                if code == 0 {
                    return Ok(());
                }
                let (one, two) = (line.hear_number()?, line.hear_number()?);
                let _ = Self::act(file, scratch, &memory, (&pidfd, parent), code, one..two);
                line.tell_number(0)?;
            }
        })
    }

    fn act(
        file: &File,
        scratch: &File,
        memory: &File,
        (pidfd, parent): (&OwnedFd, i32),
        code: u64,
        range: Range<u64>,
    ) -> io::Result<()> {
        match code {
            Self::TRUNCATE => file.set_len(range.start),
            Self::PUNCH => mem::punch_hole(file, range.start / PAGE..range.end / PAGE),
            Self::STORE => {
                let mut byte = [0];
                scratch.read_exact_at(&mut byte, 0)?;
                memory.write_all_at(&byte, range.start)
            }
            Self::ADVISE.. => {
                let advice = Self::ADVICE[(code - Self::ADVISE) as usize];
                calls::advise_other(pidfd, &range, advice)
            }
            _ => {
                let pages: Vec<u64> = pages(&range).map(|page| page.start).collect();
                calls::move_pages(parent, &pages, (code - Self::MIGRATE) as i32)
            }
        }
    }
}
