// SPDX-License-Identifier: GPL-2.0

//! One large watched region with many pinned parts.

use std::{
    io,
    ops::Range,
    os::unix::net::UnixStream, //
};

use ummunotify::{
    cache::Pin,
    Causes,
    Features,
    Options,
    Stamp,
    Watcher, //
};

use super::{
    adapter::Adapter,
    vain::{
        frames,
        is_stale,
        Lost, //
    },
};
use crate::{
    command::failed,
    expect::{
        OrSkip,
        Outcome, //
    },
    mem::{
        self,
        Guarded,
        PAGE, //
    },
};

/// The number of pinned parts, and of pages in each.
const PARTS: u64 = 32;
const PAGES: u64 = 4;

/// A part of the region.
struct Part {
    memory: Range<u64>,
    /// The pin, and its stamp.
    pinned: Option<(u16, Option<Stamp>)>,
    frames: Vec<u64>,
}

/// The region, which is watched as a whole, with one cookie.
struct Region {
    watcher: Watcher,
    adapter: Adapter,
    parts: Vec<Part>,
}

impl Region {
    /// Unpins the parts that have changed.
    fn catch_up(&mut self) -> io::Result<()> {
        while let Some(change) = self.watcher.next_change()? {
            for part in &mut self.parts {
                let Some((key, stamp)) = part.pinned else {
                    continue;
                };
                let hit = change.addresses();
                if part.memory.end <= hit.start || hit.end <= part.memory.start {
                    continue;
                }
                let now = self.watcher.stamp(part.memory.clone())?;
                let is_same = stamp.zip(now).is_some_and(|(was, now)| was.is_same(now));
                if !(change.may_keep_pages() && is_same) {
                    self.adapter.unpin(key)?;
                    part.pinned = None;
                }
            }
        }
        Ok(())
    }

    /// Pins a part, and keeps the pin if nothing has changed meanwhile.
    fn pin(&mut self, index: usize) -> io::Result<u16> {
        let memory = self.parts[index].memory.clone();
        loop {
            let before = self.watcher.stamp(memory.clone())?;
            let key = self.adapter.pin(&memory)?;
            let after = self.watcher.stamp(memory.clone())?;
            let is_same = before.zip(after).is_some_and(|(a, b)| a.is_same(b));
            self.parts[index].pinned = Some((key, after.filter(|_| is_same)));
            self.catch_up()?;
            if self.parts[index].pinned.is_some() {
                self.parts[index].frames = frames(&memory)?;
                return Ok(key);
            }
        }
    }
}

/// In each step, punches holes into two adjacent parts.
pub fn punched(features: Features) -> Outcome<Lost> {
    const STEPS: u64 = 10;
    let adapter = Adapter::open(PARTS as u16).or_skip("io_uring with sparse buffer tables")?;
    let device = Options::new().features(features).open();
    let watcher = Watcher::new(device.or_skip("no /dev/ummunotify to open")?)
        .map_err(failed("mapping the counter"))?;
    let file = mem::memory_file(PARTS * PAGES)?;
    let area = Guarded::of_file(&file, PARTS * PAGES)?;
    watcher.watch_ignoring(area.all(), 1, Causes::SAME_PAGES)?;
    let part = |part: u64| part * PAGES..(part + 1) * PAGES;
    let mut region = Region {
        watcher,
        adapter,
        parts: (0..PARTS)
            .map(|index| Part {
                memory: area.span(part(index)),
                pinned: None,
                frames: vec![],
            })
            .collect(),
    };
    let (sender, mut receiver) = UnixStream::pair()?;
    let mut lost = Lost::default();
    for step in 0..=STEPS {
        if step > 0 {
            let first = step % (PARTS - 1);
            for index in [first, first + 1] {
                mem::punch_hole(&file, part(index).start..part(index).start + 1)?;
            }
        }
        for index in 0..PARTS as usize {
            let memory = region.parts[index].memory.clone();
            let is_same = frames(&memory)? == region.parts[index].frames;
            for page in memory.clone().step_by(PAGE as usize) {
                mem::write_byte(page, step as u8);
            }
            region.catch_up()?;
            let found = region.parts[index].pinned;
            let key = match found {
                Some((key, _)) => key,
                None => region.pin(index)?,
            };
            if step > 0 {
                lost.looked_up += 1;
                lost.in_vain += u64::from(found.is_none() && is_same);
            }
            let line = (&sender, &mut receiver);
            lost.stale += u64::from(is_stale(&mut region.adapter, key, &memory, line)?);
        }
    }
    Ok(lost)
}
