// SPDX-License-Identifier: GPL-2.0

//! The memory that operations change, and for each operation what the kernel must report.
//!
//! What a system call invalidates depends on the VMAs it finds. The kernel is asked for them before
//! each call; a list kept by the model could be wrong. And whatever the call was, if a page frame
//! was mapped before it and is not mapped afterwards, that must have been reported.
//! `/proc/self/pagemap` shows this and knows nothing of MMU notifiers.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{
        FileExt,
        MetadataExt, //
    }, //
};

use super::{
    calls::{
        self,
        common,
        Entry,
        Maps,
        Pagemap,
        Uffd,
        Vma, //
    },
    effect::{
        pages,
        Effect,
        MANY, //
    },
    op::{
        Op,
        What,
        UNITS, //
    },
    other::{
        holder,
        Other, //
    },
};
use crate::{
    expect::{
        OrSkip,
        Outcome, //
    },
    mem::{
        self,
        HUGE,
        PAGE, //
    },
    process::Child,
    system::Setting,
};

/// Where the arenas are: at addresses that the kernel does not choose by itself.
///
/// The small one straddles the boundary between the ranges of two page tables.
const SMALL: u64 = (64 << 30) + 8 * HUGE - UNITS / 2 * PAGE;
const LARGE: u64 = (128 << 30) + 8 * HUGE;

/// Distance between the arenas of one world and of the next.
const APART: u64 = 1 << 30;

/// Pages of a unit of the large arena, which is three huge pages long.
const LARGE_UNIT: u64 = 3 * HUGE / UNITS / PAGE;

/// Free space around an arena.
pub const MARGIN: u64 = HUGE;

/// Length of the file, in units.
const FILE_UNITS: u64 = 96;

/// The most children that hold pages at the same time.
const MOST_CHILDREN: usize = 2;

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// The memory of a process, and the processes that can change it.
pub struct World {
    /// Where the small and the large arena are.
    places: [u64; 2],
    arena: Range<u64>,
    unit: u64,
    entries: Vec<Entry>,
    zero: Option<u64>,
    file: File,
    inode: u64,
    file_size: u64,
    /// Whether `mremap` or `UFFDIO_MOVE` has moved pages.
    has_moved: bool,
    /// Whether KSM may have merged pages.
    has_merged: bool,
    /// Whether absent pages may be marked as write-protected.
    has_markers: bool,
    scratch: File,
    maps: Maps,
    pagemap: Pagemap,
    uffd: Option<Uffd>,
    other: Child,
    children: Vec<Child>,
}

impl World {
    /// Creates a world, which any number of sequences can use one after the other.
    ///
    /// The process must have only one thread, and must not watch anything yet.
    pub fn new() -> Outcome<Self> {
        Self::with_file(0, mem::memory_file(0)?)
    }

    /// The same, with a given file. Worlds with different numbers have different arenas.
    pub fn with_file(number: u64, file: File) -> Outcome<Self> {
        let scratch = mem::memory_file(1)?;
        scratch.write_all_at(&[0x5a, 0], 0)?;
        let other = Other::start(&file, &scratch)?;
        // Pages that stay mapped, so that the upper levels of the page tables always exist.
        let pagemap = Pagemap::open()?;
        let mut zero = [Entry::default()];
        let places = [SMALL, LARGE].map(|place| place + number * APART);
        for place in places {
            let anchor = place >> 30 << 30;
            mem::map(Some(anchor), PAGE, READ_WRITE, PRIVATE, None)?;
            mem::read_byte(anchor);
            pagemap.read(anchor, &mut zero)?;
            mem::write_byte(anchor, 1);
        }
        Ok(Self {
            places,
            arena: 0..0,
            unit: PAGE,
            entries: vec![],
            zero: zero[0].frame(),
            inode: file.metadata()?.ino(),
            file,
            file_size: 0,
            has_moved: false,
            has_merged: false,
            has_markers: false,
            scratch,
            maps: Maps::open()?,
            pagemap,
            uffd: Uffd::open().ok(),
            other,
            children: vec![],
        })
    }

    /// Sets up an arena anew, with populated pages.
    pub fn reset(&mut self, huge: bool) -> Outcome {
        self.children.clear();
        if !self.arena.is_empty() {
            mem::unmap(&self.arena)?;
        }
        self.choose(huge);
        self.populate()
    }

    /// Selects an arena, which a world with the same number has set up.
    pub fn choose(&mut self, huge: bool) {
        let (start, unit) = if huge {
            (self.places[1], LARGE_UNIT * PAGE)
        } else {
            (self.places[0], PAGE)
        };
        self.unit = unit;
        self.arena = start..start + UNITS * unit;
        self.entries = calls::entries(&self.arena);
        self.file_size = FILE_UNITS * unit;
    }

    fn populate(&mut self) -> Outcome {
        let (start, unit) = (self.arena.start, self.unit);
        self.has_moved = false;
        self.has_merged = false;
        self.has_markers = false;
        self.file.set_len(0)?;
        self.file.set_len(self.file_size)?;
        // Half of it, and a quarter each of the file, shared and private.
        let part = UNITS / 4 * unit;
        let files = [
            (start + 2 * part, libc::MAP_SHARED),
            (start + 3 * part, libc::MAP_PRIVATE),
        ];
        mem::map(Some(start), 2 * part, READ_WRITE, PRIVATE, None)?;
        for (at, flags) in files {
            mem::map(Some(at), part, READ_WRITE, flags, Some(&self.file))?;
        }
        for number in (0..UNITS).step_by(2) {
            // Another process may have truncated the file.
            let _ = calls::store(&self.scratch, start + number * unit);
        }
        self.pagemap.read(self.arena.start, &mut self.entries)?;
        Ok(())
    }

    /// Ends the processes, and checks that they succeeded.
    pub fn end(self) -> Outcome {
        self.other.tell_number(0)?;
        self.other.join()
    }

    /// The arena.
    pub fn arena(&self) -> &Range<u64> {
        &self.arena
    }

    /// The addresses that an operation applies to.
    pub fn range(&self, op: Op) -> Range<u64> {
        let at = u64::from(op.at);
        let end = (at + u64::from(op.len)).min(UNITS);
        self.arena.start + at * self.unit..self.arena.start + end * self.unit
    }

    /// Whether the arena has huge pages.
    pub fn is_huge(&self) -> bool {
        self.unit > PAGE
    }

    /// Changes the memory. The operation may fail.
    ///
    /// Use [`Self::look`] to find out which pages were lost.
    pub fn perform(&mut self, op: Op) -> Outcome<Effect> {
        let mut effect = self.act(op)?;
        if self.is_huge() {
            // Splitting a huge page, or a VMA that could contain one, affects the whole huge page.
            effect.one_by_one = false;
            let ranges = effect
                .sure
                .iter()
                .chain(effect.maybe.iter().map(|(range, _)| range));
            let places = ranges.map(|range| {
                let start = range.start.max(self.arena.start) / HUGE * HUGE;
                let end = range.end.min(self.arena.end).next_multiple_of(HUGE);
                (start..end, MANY)
            });
            let mut places: Vec<_> = places
                .filter(|(place, _)| place.start < place.end)
                .collect();
            places.dedup();
            if self.has_moved {
                // Parts of a huge page may be mapped elsewhere; it is split everywhere.
                places.push((self.arena.clone(), MANY));
            }
            effect.maybe.extend(places);
        }
        Ok(effect)
    }

    /// Looks up all pages; returns those that are no longer mapped where they were.
    pub fn look(&mut self) -> Outcome<Vec<Range<u64>>> {
        let mut now = calls::entries(&self.arena);
        self.pagemap.read(self.arena.start, &mut now)?;
        let pages = (self.arena.start..).step_by(PAGE as usize);
        let lost = self.entries.iter().zip(&now).zip(pages);
        let lost = lost.filter(|((before, now), _)| before.is_lost(**now));
        let lost = lost.map(|(_, page)| page..page + PAGE).collect();
        self.entries = now;
        Ok(lost)
    }

    fn act(&mut self, op: Op) -> Outcome<Effect> {
        let range = self.range(op);
        let vmas = self.maps.of(&range)?;
        let parts = || vmas.iter().filter_map(|vma| vma.part_of(&range));
        let with = u64::from(op.with);
        Ok(match op.what {
            What::Load => {
                let _ = calls::load(&self.scratch, range.start);
                Effect::of_pages(self.touched(&range), 1)
            }
            What::Store => {
                let touched = self.touched(&range);
                for page in &touched {
                    let _ = calls::store(&self.scratch, page.start + with * 8);
                }
                Effect::of_pages(touched, 2)
            }
            What::Munmap => {
                mem::unmap(&range)?;
                Effect::sure((!vmas.is_empty()).then_some(range))
            }
            What::Map => {
                self.map_over(&range, op.with)?;
                Effect::sure((!vmas.is_empty()).then_some(range))
            }
            What::Move => self.remap(&range, self.length(&range), op.with, 0)?,
            What::MoveKept => {
                self.remap(&range, self.length(&range), op.with, libc::MREMAP_DONTUNMAP)?
            }
            What::MoveGrown => {
                let more = (1 + with % 3) * self.unit;
                self.remap(&range, self.length(&range) + more, op.with, 0)?
            }
            What::Shrink => {
                let keep = self.unit;
                let result = calls::remap(&range, keep, 0, 0);
                // The part that is unmapped may belong to another VMA than the part that is kept.
                let rest = range.start + keep..range.end;
                let mapped = vmas.iter().any(|vma| vma.part_of(&rest).is_some());
                Effect::sure(mapped.then_some(rest)).unless(&result)
            }
            What::Grow => {
                if range.end < self.arena.end {
                    let _ = calls::remap(&range, self.length(&range) + self.unit, 0, 0);
                }
                Effect::default()
            }
            What::Protect => {
                let access = [libc::PROT_NONE, libc::PROT_READ, READ_WRITE, READ_WRITE];
                let access = access[op.with as usize % 4];
                let result = mem::protect(&range, access);
                let others = vmas.iter().filter(|vma| vma.access != access);
                let effect = Effect::sure(others.filter_map(|vma| vma.part_of(&range)));
                effect.unless(&result)
            }
            What::Dontneed => {
                // If the range has a hole, the call fails but does the rest.
                let _ = mem::advise(&range, libc::MADV_DONTNEED);
                Effect::sure(parts())
            }
            What::Free => {
                let _ = mem::advise(&range, libc::MADV_FREE);
                // The call stops at the first VMA that is not anonymous.
                let anonymous = vmas.iter().take_while(|vma| vma.inode == 0);
                Effect::sure(anonymous.filter_map(|vma| vma.part_of(&range)))
            }
            What::Remove => {
                let _ = mem::advise(&range, libc::MADV_REMOVE);
                // The call stops at the first VMA that is not a shared file.
                let shared = vmas.iter().take_while(|vma| vma.inode != 0 && vma.shared);
                let parts = shared.filter_map(|vma| Some((vma, vma.part_of(&range)?)));
                let mut sure = vec![];
                for (vma, part) in parts {
                    let start = vma.offset + (part.start - vma.range.start);
                    sure.extend(self.of_file(&(start..start + self.length(&part)))?);
                }
                Effect::sure(sure)
            }
            What::Pageout => {
                let _ = mem::advise(&range, libc::MADV_PAGEOUT);
                Effect::of_pages(self.same_frames(&range)?, 4)
            }
            What::Advise => {
                let advice = [
                    libc::MADV_COLD,
                    libc::MADV_WILLNEED,
                    libc::MADV_NORMAL,
                    libc::MADV_RANDOM,
                    libc::MADV_SEQUENTIAL,
                    libc::MADV_DONTDUMP,
                    libc::MADV_DODUMP,
                    libc::MADV_HUGEPAGE,
                    libc::MADV_NOHUGEPAGE,
                    libc::MADV_MERGEABLE,
                ];
                let _ = mem::advise(&range, advice[op.with as usize % advice.len()]);
                self.only_if_huge(&range)
            }
            What::Populate => {
                let _ = mem::advise(&range, libc::MADV_POPULATE_WRITE);
                Effect::of_pages(pages(&range), 2)
            }
            // The kernel would retry for ever to install a guard where a userfaultfd has left a
            // marker.
            What::Guard if self.has_markers => Effect::default(),
            What::Guard => {
                let result = mem::advise(&range, mem::MADV_GUARD_INSTALL);
                let (full, empty): (Vec<_>, Vec<_>) = parts().partition(|part| {
                    let entries = self.of(part).iter();
                    entries.copied().any(|entry| entry.frame().is_some())
                });
                Effect {
                    sure: full,
                    maybe: empty.into_iter().map(|part| (part, 1)).collect(),
                    ..Effect::default()
                }
                .unless(&result)
            }
            What::Unguard => {
                /// The opposite of [`mem::MADV_GUARD_INSTALL`].
                const MADV_GUARD_REMOVE: i32 = 103;
                let _ = mem::advise(&range, MADV_GUARD_REMOVE);
                self.only_if_huge(&range)
            }
            What::Lock => {
                let _ = mem::lock(&range);
                // SAFETY: The call accesses no memory.
                unsafe { libc::munlock(range.start as *const _, self.length(&range) as usize) };
                Effect::of_pages(pages(&range), 2)
            }
            What::Collapse => {
                let _ = mem::advise(&range, libc::MADV_COLLAPSE);
                self.only_if_huge(&range)
            }
            What::Truncate | What::OtherTruncate => {
                let size = with % FILE_UNITS * self.unit;
                if op.what == What::Truncate {
                    self.file.set_len(size)?;
                } else {
                    self.ask(Other::TRUNCATE, size, 0)?;
                }
                let shrinks = size < self.file_size;
                self.file_size = size;
                let gone = self.of_file(&(size..u64::MAX))?;
                // Once before the pages are removed from the file, and once afterwards.
                Effect::sure(
                    [gone.clone(), gone]
                        .concat()
                        .into_iter()
                        .filter(|_| shrinks),
                )
            }
            What::Punch | What::OtherPunch => {
                let start = u64::from(op.at);
                let hole = start..start + u64::from(op.len);
                let bytes = hole.start * self.unit..hole.end * self.unit;
                if op.what == What::Punch {
                    mem::punch_hole(&self.file, bytes.start / PAGE..bytes.end / PAGE)?;
                } else {
                    self.ask(Other::PUNCH, bytes.start, bytes.end)?;
                }
                Effect::sure(self.of_file(&bytes)?)
            }
            What::Fork => {
                let all = self.maps.of(&self.arena)?;
                let fits = self.children.len() < MOST_CHILDREN;
                if fits {
                    self.children.push(holder(&self.scratch)?);
                }
                let (sure, maybe) = all
                    .into_iter()
                    .filter(|vma| fits && !vma.shared)
                    .map(|vma| vma.range)
                    .partition(|range| self.has_own_pages(range));
                let maybe: Vec<Range<u64>> = maybe;
                Effect {
                    sure,
                    maybe: maybe.into_iter().map(|range| (range, 1)).collect(),
                    ..Effect::default()
                }
            }
            What::ChildStore => {
                if let Some(child) = self.children.last() {
                    child.tell_number(range.start)?;
                    child.hear_number()?;
                }
                Effect::default()
            }
            What::ChildEnd => {
                if let Some(child) = self.children.pop() {
                    child.tell_number(0)?;
                    child.join()?;
                }
                Effect::default()
            }
            What::Migrate => {
                let pages: Vec<u64> = pages(&range).map(|page| page.start).collect();
                let _ = calls::move_pages(0, &pages, i32::from(op.with % 2));
                Effect::of_pages(self.same_frames(&range)?, MANY)
            }
            What::OtherMigrate => {
                self.ask(Other::MIGRATE + with % 2, range.start, range.end)?;
                Effect::of_pages(self.same_frames(&range)?, MANY)
            }
            What::Bind => {
                let _ = calls::bind(&range, i32::from(op.with % 2));
                Effect::of_pages(self.same_frames(&range)?, MANY)
            }
            What::SoftDirty => {
                let done = std::fs::write("/proc/self/clear_refs", "4").is_ok();
                Effect::sure(done.then_some(0..u64::MAX))
            }
            What::OtherAdvise => {
                let advice = Other::ADVISE + with % Other::ADVICE.len() as u64;
                self.ask(advice, range.start, range.end)?;
                let mut effect = Effect::of_pages(self.same_frames(&range)?, 4);
                effect.maybe.extend(self.only_if_huge(&range).maybe);
                effect
            }
            What::OtherStore => {
                self.ask(Other::STORE, range.start, 0)?;
                Effect::of_pages(pages(&range).take(1), 2)
            }
            What::UffdProtect => match &self.uffd {
                Some(uffd) if uffd.register(&range).is_ok() => {
                    self.has_markers = true;
                    // `mlock` may have merged VMAs.
                    let vmas = self.maps.of(&range)?;
                    let result = uffd.protect(&range, op.with % 4 != 0);
                    let parts = vmas.iter().filter_map(|vma| vma.part_of(&range));
                    Effect::sure(parts).unless(&result)
                }
                _ => Effect::default(),
            },
            What::UffdMove => {
                let to = self.target(&range, self.length(&range), op.with);
                if let Some(uffd) = &self.uffd {
                    let _ = uffd.register(&to);
                    let _ = uffd.move_to(&range, to.start);
                    self.has_moved = true;
                }
                Effect {
                    // Adjacent pages may be moved together.
                    one_by_one: false,
                    ..Effect::of_pages(pages(&range), MANY)
                }
            }
            What::Merge => {
                // If nothing can be merged, KSM does not scan, and waiting for a scan would never
                // end.
                let private = parts().any(|part| self.has_own_pages(&part));
                if private && mem::advise(&range, libc::MADV_MERGEABLE).is_ok() {
                    merge()?;
                    self.has_merged = true;
                }
                Effect::of_pages(pages(&self.arena), MANY)
            }
            // These concern the file of the device, not the memory.
            What::Register
            | What::RegisterMany
            | What::Read
            | What::Unregister
            | What::UnregisterMany
            | What::Poll
            | What::Reopen => Effect::default(),
        })
    }

    fn length(&self, range: &Range<u64>) -> u64 {
        range.end - range.start
    }

    /// The first page of each unit of a range.
    fn touched(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let units = range.clone().step_by(self.unit as usize);
        units.map(|page| page..page + PAGE).collect()
    }

    /// The page-map entries of a range, as last looked up.
    fn of(&self, range: &Range<u64>) -> &[Entry] {
        let index = |at: u64| ((at - self.arena.start) / PAGE) as usize;
        &self.entries[index(range.start)..index(range.end)]
    }

    /// Whether a private mapping has pages of its own, which a fork shares with the child.
    fn has_own_pages(&self, range: &Range<u64>) -> bool {
        let entries = self.of(range).iter();
        entries
            .copied()
            .any(|entry| entry.frame().is_some() && entry.frame() != self.zero && !entry.is_file())
    }

    /// The pages of a range, and all other places where the kernel looks for the same page frames.
    ///
    /// It invalidates each place before it knows whether the page is mapped there. For a page of
    /// the file, these are all places where that part of the file is mapped. For an anonymous page,
    /// it is the place itself, unless `mremap` has left VMAs behind that could map it too.
    fn same_frames(&self, range: &Range<u64>) -> Outcome<Vec<Range<u64>>> {
        let vmas = self.maps.of(&self.arena)?;
        let mut ranges = vec![range.clone()];
        for vma in &vmas {
            let Some(part) = vma.part_of(range) else {
                continue;
            };
            if vma.inode != 0 {
                let start = vma.offset + (part.start - vma.range.start);
                let bytes = start..start + self.length(&part);
                ranges.extend(vmas.iter().filter_map(|vma| vma.of_file(&bytes)));
            }
            if !vma.shared && self.has_moved {
                let private = vmas.iter().filter(|vma| !vma.shared);
                ranges.extend(private.map(|vma| vma.range.clone()));
            }
        }
        Ok(pages(&self.arena)
            .filter(|page| ranges.iter().any(|range| common(page, range).is_some()))
            .collect())
    }

    /// An invalidation that happens only where there can be huge pages.
    fn only_if_huge(&self, range: &Range<u64>) -> Effect {
        Effect::maybe(self.is_huge().then(|| range.clone()), MANY)
    }

    /// The addresses in the arena where these bytes of the file are mapped.
    fn of_file(&self, bytes: &Range<u64>) -> Outcome<Vec<Range<u64>>> {
        let vmas = self.maps.of(&self.arena)?;
        let of_file = vmas.iter().filter(|vma| vma.inode == self.inode);
        Ok(of_file.filter_map(|vma| vma.of_file(bytes)).collect())
    }

    fn map_over(&self, range: &Range<u64>, with: u8) -> io::Result<()> {
        let (access, flags, file) = match with % 8 {
            0 | 1 => (READ_WRITE, PRIVATE, None),
            2 => (READ_WRITE, PRIVATE | libc::MAP_POPULATE, None),
            3 => (READ_WRITE, libc::MAP_SHARED, Some(&self.file)),
            4 => (READ_WRITE, libc::MAP_PRIVATE, Some(&self.file)),
            5 => (libc::PROT_READ, PRIVATE, None),
            6 => (libc::PROT_NONE, PRIVATE, None),
            _ => (
                READ_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                Some(&self.file),
            ),
        };
        mem::map(Some(range.start), self.length(range), access, flags, file).map(drop)
    }

    /// A range of the given length that begins at some unit, cut at the end of the arena.
    fn target(&self, from: &Range<u64>, length: u64, with: u8) -> Range<u64> {
        let room = self.length(&self.arena).saturating_sub(length) / self.unit + 1;
        let mut start = self.arena.start + u64::from(with) % room * self.unit;
        if common(from, &(start..start + length)).is_some() {
            let free = [from.end, from.start.saturating_sub(length)];
            let fits = |at: &u64| *at >= self.arena.start && at + length <= self.arena.end;
            start = free.into_iter().find(fits).unwrap_or(start);
        }
        start..start + length
    }

    /// `mremap` onto another place.
    fn remap(&mut self, from: &Range<u64>, length: u64, with: u8, flags: i32) -> Outcome<Effect> {
        let to = self.target(from, length, with);
        if to.end > self.arena.end {
            return Ok(Effect::default());
        }
        let sources = self.maps.of(from)?;
        let targets = self.maps.of(&to)?;
        let flags = flags | libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let result = calls::remap(from, length, flags, to.start);
        self.has_moved = true;

        // Each VMA is moved separately: its target is unmapped, its pages are moved, and the place
        // they came from is unmapped.
        let mut sure = vec![];
        for vma in &sources {
            let Some(part) = vma.part_of(from) else {
                continue;
            };
            let length = if part == *from {
                length
            } else {
                self.length(&part)
            };
            let target = to.start + (part.start - from.start);
            let target = target..target + length;
            let mapped = |vma: &Vma| vma.part_of(&target).is_some();
            sure.extend(targets.iter().any(mapped).then_some(target));
            let times = if flags & libc::MREMAP_DONTUNMAP == 0 {
                2
            } else {
                1
            };
            sure.extend(std::iter::repeat_n(part, times));
        }
        let refused = Effect::maybe([to], 1);
        let mut effect = match result {
            Ok(()) => Effect::sure(sure),
            Err(_) if sure.is_empty() => refused,
            Err(_) => Effect::sure(sure).unless(&result),
        };
        if self.has_merged {
            // Pages that KSM has merged are not moved; each is first copied in place.
            effect.maybe.extend(pages(from).map(|page| (page, 1)));
        }
        Ok(effect)
    }

    /// Sends the other process a request, and waits until it was carried out.
    fn ask(&self, code: u64, one: u64, two: u64) -> Outcome {
        for number in [code, one, two] {
            self.other.tell_number(number)?;
        }
        // Success does not matter: changes are visible in the page map.
        self.other.hear_number().map(drop)
    }
}

/// Makes KSM scan everything, and waits until it has.
fn merge() -> Outcome {
    let scans = || -> io::Result<u64> {
        let text = std::fs::read_to_string("/sys/kernel/mm/ksm/full_scans")?;
        text.trim().parse().map_err(io::Error::other)
    };
    let Ok(before) = scans() else { return Ok(()) };
    let _settings = Setting::run_ksm().or_skip("KSM")?;
    // The first scan may have begun earlier, and KSM merges only pages that the second finds
    // unchanged.
    crate::process::eventually(|| scans().is_ok_and(|now| now >= before + 3));
    Ok(())
}
