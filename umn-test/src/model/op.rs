// SPDX-License-Identifier: GPL-2.0

//! The operations of a sequence: as text, and chosen at random.
//!
//! All operations have the same form, so that any sequence can be printed, parsed and shortened:
//! what to do, from which unit of the arena on, for how many units, and a number that selects a
//! variant.

use std::{
    fmt,
    str::FromStr, //
};

use clap::ValueEnum;
use proptest::{
    collection,
    strategy::{
        SBoxedStrategy,
        Strategy,
        ValueTree, //
    },
    test_runner::{
        Config,
        RngAlgorithm,
        TestRng,
        TestRunner, //
    },
};
use ummunotify::Causes;

/// The number of units in an arena.
pub const UNITS: u64 = 48;

/// The operations. The simplest come first, since shortening replaces operations by simpler ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum What {
    /// Read from memory.
    Load,
    /// Write to memory.
    Store,
    /// REGISTER_REGION.
    Register,
    /// `read` or `readv`.
    Read,
    /// UNREGISTER_REGION.
    Unregister,
    /// `poll`.
    Poll,
    /// Close the file and open it again.
    Reopen,
    /// `munmap`.
    Munmap,
    /// `mmap` with `MAP_FIXED`.
    Map,
    /// `mremap` to another place.
    Move,
    /// `mremap` to another place, with a greater length.
    MoveGrown,
    /// `mremap` with `MREMAP_DONTUNMAP`.
    MoveKept,
    /// `mremap` to a shorter length.
    Shrink,
    /// `mremap` to a longer length, in place.
    Grow,
    /// `mprotect`.
    Protect,
    /// `MADV_DONTNEED`.
    Dontneed,
    /// `MADV_FREE`.
    Free,
    /// `MADV_REMOVE`.
    Remove,
    /// `MADV_PAGEOUT`.
    Pageout,
    /// Advice that changes no mapping.
    Advise,
    /// `MADV_POPULATE_WRITE`.
    Populate,
    /// `MADV_GUARD_INSTALL`.
    Guard,
    /// `MADV_GUARD_REMOVE`.
    Unguard,
    /// `mlock`, and `munlock`.
    Lock,
    /// `MADV_COLLAPSE`.
    Collapse,
    /// `ftruncate` of the mapped file.
    Truncate,
    /// `fallocate` punches a hole into the mapped file.
    Punch,
    /// `fork` of a child that holds the pages.
    Fork,
    /// A write by such a child.
    ChildStore,
    /// The end of such a child.
    ChildEnd,
    /// `move_pages` to the other node.
    Migrate,
    /// `mbind` to one node.
    Bind,
    /// `clear_refs 4`.
    SoftDirty,
    /// Another process truncates the file.
    OtherTruncate,
    /// Another process punches a hole into the file.
    OtherPunch,
    /// Another process gives advice.
    OtherAdvise,
    /// Another process writes, as a debugger does.
    OtherStore,
    /// Another process moves pages to the other node.
    OtherMigrate,
    /// Write-protect with userfaultfd, or remove the protection.
    UffdProtect,
    /// Move pages with userfaultfd.
    UffdMove,
    /// Let KSM merge equal pages.
    Merge,
    /// REGISTER_REGION of more regions than a change visits at once.
    RegisterMany,
    /// UNREGISTER_REGION of many regions.
    UnregisterMany,
}

impl What {
    /// The last operation.
    pub const LAST: Self = Self::UnregisterMany;

    /// The cause of what an operation certainly invalidates.
    pub fn cause(self) -> Causes {
        match self {
            Self::Munmap
            | Self::Map
            | Self::Move
            | Self::MoveGrown
            | Self::MoveKept
            | Self::Shrink => Causes::UNMAP,
            Self::Protect | Self::UffdProtect => Causes::PROTECT_AREA,
            Self::Fork => Causes::PROTECT_PAGES,
            Self::SoftDirty => Causes::SOFT_DIRTY,
            _ => Causes::CLEAR,
        }
    }

    /// The cause of an operation that leaves the page frames as they are; `None` for all others.
    pub fn same_pages(self) -> Option<Causes> {
        Some(self.cause()).filter(|cause| Causes::SAME_PAGES.contains(*cause))
    }
}

/// How often each operation is chosen, relative to the others.
const WEIGHTS: &[(What, u32)] = &[
    (What::Load, 30),
    (What::Store, 120),
    (What::Register, 170),
    (What::Read, 150),
    (What::Unregister, 60),
    (What::Poll, 25),
    (What::Reopen, 1),
    (What::Munmap, 40),
    (What::Map, 70),
    (What::Move, 25),
    (What::MoveGrown, 8),
    (What::MoveKept, 10),
    (What::Shrink, 12),
    (What::Grow, 8),
    (What::Protect, 40),
    (What::Dontneed, 40),
    (What::Free, 20),
    (What::Remove, 15),
    (What::Pageout, 12),
    (What::Advise, 15),
    (What::Populate, 20),
    (What::Guard, 8),
    (What::Unguard, 8),
    (What::Lock, 8),
    (What::Collapse, 3),
    (What::Truncate, 12),
    (What::Punch, 12),
    (What::Fork, 8),
    (What::ChildStore, 8),
    (What::ChildEnd, 6),
    (What::Migrate, 10),
    (What::Bind, 5),
    (What::SoftDirty, 5),
    (What::OtherTruncate, 6),
    (What::OtherPunch, 8),
    (What::OtherAdvise, 8),
    (What::OtherStore, 6),
    (What::OtherMigrate, 4),
    (What::UffdProtect, 10),
    (What::UffdMove, 6),
];

/// One in this many sequences also merges pages, which takes as long as many other operations.
const MERGING: u64 = 50;

/// One in this many sequences has many regions, and reads few of their events.
const CROWDED: u64 = 4;

/// The operations that are chosen more or less often in such a sequence.
const CROWDED_WEIGHTS: &[(What, u32)] = &[
    (What::Register, 12),
    (What::RegisterMany, 20),
    (What::Read, 40),
    (What::Unregister, 20),
    (What::UnregisterMany, 6),
];

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// What to do.
    pub what: What,
    /// The first unit of the arena that it applies to.
    pub at: u8,
    /// The number of units.
    pub len: u8,
    /// The variant.
    pub with: u8,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            at,
            len,
            with,
        } = self;
        let name = what.to_possible_value().expect("none is hidden");
        write!(f, "{} {at}+{len}/{with}", name.get_name())
    }
}

impl FromStr for Op {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not like 'munmap 3+2/0'");
        let (what, rest) = text.trim().split_once(' ').ok_or_else(wrong)?;
        let (at, rest) = rest.split_once('+').ok_or_else(wrong)?;
        let (len, with) = rest.split_once('/').ok_or_else(wrong)?;
        let number = |text: &str| text.parse().map_err(|_| wrong());
        let op = Self {
            what: What::from_str(what, false)?,
            at: number(at)?,
            len: number(len)?,
            with: number(with)?,
        };
        if u64::from(op.at) < UNITS && op.len > 0 {
            Ok(op)
        } else {
            Err(wrong())
        }
    }
}

/// A sequence of operations, and the kind of arena it runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Whether the arena has several huge pages; otherwise it has no room for any.
    pub huge: bool,
    /// The operations.
    pub ops: Vec<Op>,
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.huge { "huge: " } else { "small: " })?;
        for (index, op) in self.ops.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{op}")?;
        }
        Ok(())
    }
}

impl FromStr for Sequence {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, ops) = text
            .split_once(':')
            .ok_or("'small:' or 'huge:' is missing")?;
        let huge = match kind.trim() {
            "small" => false,
            "huge" => true,
            other => return Err(format!("'{other}' is neither 'small' nor 'huge'")),
        };
        let ops = ops.split(',').filter(|op| !op.trim().is_empty());
        let ops = ops.map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { huge, ops })
    }
}

/// Random sequences of up to a given length.
pub struct Sequences {
    seed: u64,
    plain: SBoxedStrategy<Sequence>,
    merging: SBoxedStrategy<Sequence>,
    crowded: SBoxedStrategy<Sequence>,
}

impl Sequences {
    /// The sequences of a seed.
    pub fn new(seed: u64, length: usize) -> Self {
        let strategy = |other: &[(What, u32)]| {
            let is_other = |what: &What| other.iter().any(|(other, _)| other == what);
            let table: Vec<What> = WEIGHTS
                .iter()
                .filter(|(what, _)| !is_other(what))
                .chain(other)
                .flat_map(|(what, weight)| std::iter::repeat_n(*what, *weight as usize))
                .collect();
            let op = (0..table.len(), 0..UNITS as u8, length_of_range(), 0..=255u8);
            let op = op.prop_map(move |(index, at, len, with)| Op {
                what: table[index],
                at,
                len,
                with,
            });
            (0..8u8, collection::vec(op, 1..=length))
                .prop_map(|(kind, ops)| Sequence {
                    huge: kind == 7,
                    ops,
                })
                .sboxed()
        };
        Self {
            seed,
            plain: strategy(&[]),
            merging: strategy(&[(What::Merge, 15)]),
            crowded: strategy(CROWDED_WEIGHTS),
        }
    }

    /// The sequence with this number, and all simpler ones. It is always the same.
    pub fn tree(&self, number: u64) -> impl ValueTree<Value = Sequence> + use<> {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&number.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let strategy = if number % MERGING == MERGING - 1 {
            &self.merging
        } else if number % CROWDED == CROWDED - 1 {
            &self.crowded
        } else {
            &self.plain
        };
        strategy
            .new_tree(&mut runner)
            .expect("nothing is filtered out")
    }
}

/// The length of a range: mostly short, sometimes long.
fn length_of_range() -> impl Strategy<Value = u8> {
    (1..=4u8, 0..=9u8).prop_map(|(short, long)| if long == 9 { short * 11 } else { short })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_can_be_written_down_and_read_back() {
        let sequences = Sequences::new(1, 60);
        for number in 0..100 {
            let sequence = sequences.tree(number).current();
            assert_eq!(sequence.to_string().parse(), Ok(sequence));
        }
        assert!("small: munmap 48+1/0".parse::<Sequence>().is_err());
        assert!("small: munmap 3".parse::<Sequence>().is_err());
        assert!("munmap 3+1/0".parse::<Sequence>().is_err());
    }

    #[test]
    fn a_seed_makes_the_same_sequences_again() {
        let sequence = |seed, number| Sequences::new(seed, 60).tree(number).current();
        assert_eq!(sequence(1, 2), sequence(1, 2));
        assert_ne!(sequence(1, 2), sequence(1, 3));
        assert_ne!(sequence(1, 2), sequence(2, 2));
    }

    #[test]
    fn each_operation_comes_and_has_a_weight() {
        for what in What::value_variants() {
            let mut weighted = WEIGHTS.iter().chain(CROWDED_WEIGHTS);
            let comes = weighted.any(|(weighted, _)| weighted == what);
            assert_eq!(comes, *what != What::Merge);
            assert!(*what <= What::LAST);
        }
    }
}
