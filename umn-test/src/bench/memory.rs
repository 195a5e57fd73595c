// SPDX-License-Identifier: GPL-2.0

//! The memory of a region and of an open file.
//!
//! Run this soon after a boot: the kernel keeps some freed memory for reuse, which would distort
//! the result.

use std::fs;

use super::{
    costs::page,
    figures::{
        Figures,
        Operation,
        Peer, //
    },
    userfault,
};
use crate::{
    command,
    expect::Outcome,
    system::Cgroup,
    userfault::{
        UserFault,
        MODE_MISSING, //
    },
};

/// How many regions are registered.
const REGIONS: u64 = 1 << 19;

/// How many files are opened.
const FILES: u64 = 512;

/// Measures with the device and with userfaultfd.
pub fn measure() -> Outcome<Figures> {
    let mut figures = Figures::default();
    let cgroup = Cgroup::new("bench")?;
    cgroup.enter()?;

    let device = command::open_device()?;
    let before = Used::now(&cgroup)?;
    for index in 0..REGIONS {
        let region = page(index);
        device.register(region.start, region.end, index)?;
    }
    let each = Used::now(&cgroup)?.since(before, REGIONS);
    figures.add(Operation::Memory, Peer::Ummunotify, 1, each.slabs);
    figures.add(Operation::Charged, Peer::Ummunotify, 1, each.charged);

    let mut files = Vec::with_capacity(FILES as usize);
    let before = Used::now(&cgroup)?;
    for _ in 0..FILES {
        files.push(command::open_device()?);
    }
    let each = Used::now(&cgroup)?.since(before, FILES);
    figures.add(Operation::Open, Peer::Ummunotify, 1, each.charged);

    let uffd = UserFault::new(userfault::EVENTS)?;
    userfault::map(&(page(0).start..page(REGIONS).start))?;
    let before = Used::now(&cgroup)?;
    for index in 0..REGIONS {
        uffd.register(&page(index), MODE_MISSING)?;
    }
    let each = Used::now(&cgroup)?.since(before, REGIONS);
    figures.add(Operation::Memory, Peer::Userfaultfd, 1, each.slabs);
    figures.add(Operation::Charged, Peer::Userfaultfd, 1, each.charged);
    Ok(figures)
}

/// Memory in use, in bytes.
#[derive(Clone, Copy)]
struct Used {
    /// In slabs of any user, which is where regions are.
    slabs: f64,
    /// Charged to the cgroup.
    charged: f64,
}

impl Used {
    /// Returns the current use.
    fn now(cgroup: &Cgroup) -> Outcome<Self> {
        let info = fs::read_to_string("/proc/meminfo")?;
        let slabs = |line: &str| {
            line.strip_prefix("SUnreclaim:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        };
        let slabs: f64 = info.lines().find_map(slabs).unwrap_or(f64::NAN);
        let charged = cgroup.read("memory.current")?;
        Ok(Self {
            slabs: slabs * 1024.0,
            charged: charged.trim().parse().unwrap_or(0.0),
        })
    }

    /// The memory that each of `count` objects uses that were created since `before`.
    fn since(self, before: Self, count: u64) -> Self {
        let each = |now, before| (now - before) / count as f64;
        Self {
            slabs: each(self.slabs, before.slabs),
            charged: each(self.charged, before.charged),
        }
    }
}
