// SPDX-License-Identifier: GPL-2.0

//! Causes that devices with memory of their own raise.
//!
//! The kernel's module `test_hmm` stands in for one: it moves pages to memory that only it can
//! access, and they come back when the process touches them.

use std::{
    env,
    fs::File,
    io,
    ops::Range,
    os::fd::AsRawFd, //
};

use nix::kmod::{
    delete_module,
    DeleteModuleFlags, //
};

use super::{
    causes::causes_reported,
    others::{
        in_another_process,
        let_act, //
    },
    prelude::*,
    stamp_pages::{
        stamp,
        stamp_of, //
    }, //
};
use crate::module::Module;

table! {
    causes_to_device: "pages that move to a device, also by another process: DEVICE",
    causes_from_device: "pages that come back because they are touched or the device returns them: DEVICE",
    causes_exclusive: "a page made exclusive to a device: DEVICE; access ends that: CLEAR",
}

/// The module, which is unloaded at the end if the test has loaded it.
struct Loaded(bool);

impl Drop for Loaded {
    fn drop(&mut self) {
        if self.0 {
            let _ = delete_module(c"test_hmm", DeleteModuleFlags::O_NONBLOCK);
        }
    }
}

/// A device that can access this process.
struct Hmm {
    file: File,
    _module: Loaded,
}

/// The calls, by number.
const MIGRATE_TO_DEVICE: u32 = 2;
const MIGRATE_TO_SYSTEM: u32 = 3;
const MAKE_EXCLUSIVE: u32 = 5;

impl Hmm {
    fn new() -> Outcome<Self> {
        const DEVICE: &str = "/dev/hmm_dmirror0";
        let is_loaded = File::open(DEVICE).is_ok();
        if !is_loaded {
            let path = env::var_os("UMN_TEST_HMM")
                .ok_or_else(|| Failure::Skipped("UMN_TEST_HMM does not name test_hmm.ko".into()))?;
            Module::find(Some(&path))?
                .insert(c"")
                .or_skip("loading test_hmm")?;
        }
        let module = Loaded(!is_loaded);
        process::eventually(|| File::open(DEVICE).is_ok());
        Ok(Self {
            file: File::open(DEVICE).or_skip(DEVICE)?,
            _module: module,
        })
    }

    /// Issues a call for the pages of a range.
    fn call(&self, number: u32, range: &Range<u64>) -> io::Result<()> {
        let pages = (range.end - range.start) / PAGE;
        // The device copies the content of the pages here.
        let mut content = vec![0u8; (pages * PAGE) as usize];
        let mut argument = [range.start, content.as_mut_ptr() as u64, pages, 0, 0];
        let command = 0xc028_4800 | number;
        // SAFETY: The argument is as large as the command says, and so is the buffer.
        device::check(unsafe {
            libc::ioctl(self.file.as_raw_fd(), command as _, argument.as_mut_ptr())
        })
        .map(drop)
    }
}

/// Expects the second page of some memory to raise `causes` when the device acts.
fn raises(causes: Causes, hmm: &Hmm, number: u32) -> Outcome<Guarded> {
    let area = Guarded::new(3)?;
    causes_reported(causes, &area, |page| Ok(hmm.call(number, page)?))?;
    Ok(area)
}

fn causes_to_device() -> Outcome {
    let hmm = Hmm::new()?;
    let device = open_with(Features::STAMP)?;
    let area = raises(Causes::DEVICE, &hmm, MIGRATE_TO_DEVICE)?;
    expect::same("stamp and absent", stamp(&device, &area.all())?, (0, 1))?;
    expect::same(
        "a byte",
        mem::read_byte(area.page(1).start),
        Guarded::content(1),
    )?;

    // Populated after the fork, so that the child does not share the page.
    let area = Guarded::unpopulated(3)?;
    let other = in_another_process(|_| Ok(hmm.call(MIGRATE_TO_DEVICE, &area.page(1))?))?;
    area.fill();
    causes_reported(Causes::DEVICE, &area, |_| let_act(other))
}

fn causes_from_device() -> Outcome {
    let hmm = Hmm::new()?;
    let area = Guarded::new(3)?;
    let page = area.page(1);
    hmm.call(MIGRATE_TO_DEVICE, &page)?;
    causes_reported(Causes::DEVICE, &area, |page| {
        let byte = mem::read_byte(page.start);
        expect::same("a byte", byte, Guarded::content(1))
    })?;
    hmm.call(MIGRATE_TO_DEVICE, &page)?;
    causes_reported(Causes::DEVICE, &area, |page| {
        Ok(hmm.call(MIGRATE_TO_SYSTEM, page)?)
    })?;
    let device = open_with(Features::STAMP)?;
    stamp_of(&device, &area.all()).map(drop)
}

fn causes_exclusive() -> Outcome {
    let hmm = Hmm::new()?;
    let device = open_with(Features::STAMP)?;
    let area = Guarded::new(3)?;
    let before = stamp_of(&device, &area.all())?;
    causes_reported(Causes::DEVICE, &area, |page| {
        Ok(hmm.call(MAKE_EXCLUSIVE, page)?)
    })?;
    expect::same("stamp and absent", stamp(&device, &area.all())?, (0, 1))?;
    causes_reported(Causes::CLEAR, &area, |page| {
        let byte = mem::read_byte(page.start);
        expect::same("a byte", byte, Guarded::content(1))
    })?;
    expect::same("stamp, again", stamp_of(&device, &area.all())?, before)
}
