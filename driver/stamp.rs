// SPDX-License-Identifier: GPL-2.0

//! Stamps: numbers that are equal if the same page frames are mapped.
//!
//! A stamp is a hash of the frames of all pages of a range, and of the range. It is computed in two
//! steps:
//!
//! - The frames, as numbers m_1 ... m_n below the prime p = 2⁶¹ - 1, are the coefficients of a
//!   polynomial, which is evaluated modulo p at a secret random point. Two different sequences of n
//!   frames differ by a polynomial of degree below n, which has fewer than n roots. So they have
//!   the same value with a probability below n / p. This takes a few instructions per page.
//! - That value, the first page and the number of pages are hashed with SipHash, under a secret
//!   key. So the stamp reveals only whether they are the same: neither the address of a frame, nor
//!   how two ranges overlap.
//!
//! The stamps of different files cannot be compared, since each file has its own key.

use kernel::{
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    uaccess::UserPtr, //
};

use crate::abstractions::{
    page_frames,
    signals,
    siphash, //
};

use super::ioctl;

/// The number of pages that are looked up before a signal ends the call.
const PAGES_PER_SIGNAL: usize = 1 << 16;

/// The most pages of a range: 16 GiB.
const MOST_PAGES: usize = (16 << 30) / PAGE_SIZE;

/// The modulus.
const PRIME: u64 = (1 << 61) - 1;

/// The secrets of a file's stamps.
#[derive(Clone, Copy)]
pub(super) struct Key {
    point: u64,
    siphash: siphash::Key,
}

impl Key {
    /// Creates a random key.
    pub(super) fn new() -> Self {
        Self {
            point: siphash::random() % PRIME,
            siphash: siphash::Key::random(),
        }
    }
}

/// The value of a polynomial whose coefficients are frames.
struct Polynomial {
    point: u64,
    value: u64,
}

impl Polynomial {
    const fn new(point: u64) -> Self {
        Self { point, value: 0 }
    }

    /// Adds the next coefficient.
    #[inline]
    fn add(&mut self, number: usize) {
        // Addresses of the kernel have the same bits above these.
        let number = number as u64 & PRIME;
        // No overflow: this is below 2¹²² + 2⁶¹.
        let value = u128::from(self.value) * u128::from(self.point) + u128::from(number);
        // 2⁶¹ is 1 modulo the prime.
        let value = (value as u64 & PRIME) + (value >> 61) as u64;
        self.value = if value >= PRIME { value - PRIME } else { value };
    }
}

/// A range of pages.
struct Pages {
    first: usize,
    count: usize,
}

impl Pages {
    /// Returns the pages that contain a byte of `start .. end`, or of `start` if this is empty.
    ///
    /// Fails with `EINVAL` if `end` is below `start`, or if there are too many pages.
    fn new(start: usize, end: usize) -> Result<Self> {
        if end < start {
            return Err(EINVAL);
        }
        let first = start >> PAGE_SHIFT;
        let last = end.wrapping_sub(usize::from(end > start)) >> PAGE_SHIFT;
        let count = last - first + 1;
        if count > MOST_PAGES {
            return Err(EINVAL);
        }
        Ok(Self { first, count })
    }

    /// Returns the stamp of the pages of the current task, and the number of pages that could not
    /// be looked up. If there are any, the stamp is 0.
    ///
    /// Fails with `EINTR`.
    fn stamp(&self, key: &Key) -> Result<(u64, usize)> {
        let mut polynomial = Polynomial::new(key.point);
        let mut absent = 0;
        for done in (0..self.count).step_by(PAGES_PER_SIGNAL) {
            if done > 0 && signals::is_pending() {
                return Err(EINTR);
            }
            let count = PAGES_PER_SIGNAL.min(self.count - done);
            let start = (self.first + done) << PAGE_SHIFT;
            absent += page_frames::look_up(start, count, |frame| polynomial.add(frame.id()));
        }
        if absent > 0 {
            return Ok((0, absent));
        }
        let numbers = [polynomial.value, self.first as u64, self.count as u64];
        Ok((key.siphash.hash(numbers), 0))
    }
}

/// Carries out `UMMUNOTIFY_STAMP` for the current task. `untag` removes the tag of an address.
///
/// Fails with `EFAULT`, `EINVAL` and `EINTR`, in this order, and then with `EFAULT` if the result
/// cannot be written.
pub(super) fn stamp(key: &Key, arg: UserPtr, untag: impl Fn(usize) -> usize) -> Result {
    let range = ioctl::read_range(arg)?;
    if range.flags != 0 {
        return Err(EINVAL);
    }
    let pages = Pages::new(untag(range.start as usize), untag(range.end as usize))?;
    let (stamp, absent) = pages.stamp(key)?;
    ioctl::write_stamp(arg, range, stamp, absent)
}

#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(ummunotify_stamp)]
mod tests {
    use super::*;

    use crate::abstractions::kunit::expect_eq;

    /// The product of two numbers below the prime, by additions alone.
    fn product(mut a: u64, b: u64) -> u64 {
        let mut sum = 0;
        for bit in 0..61 {
            if b >> bit & 1 == 1 {
                sum = (sum + a) % PRIME;
            }
            a = 2 * a % PRIME;
        }
        sum
    }

    /// The value at `point`, by another method.
    fn evaluate(point: u64, numbers: &[u64]) -> u64 {
        numbers
            .iter()
            .fold(0, |value, number| (product(value, point) + number) % PRIME)
    }

    #[test]
    fn polynomials_are_evaluated() {
        for point in [0, 1, 2, 12345, PRIME - 1, PRIME / 2, PRIME / 3 * 2] {
            for numbers in [
                [0, 0, 0],
                [1, 2, 3],
                [PRIME - 1, PRIME - 1, PRIME - 1],
                [PRIME / 2, 1 << 60, 7],
            ] {
                let mut polynomial = Polynomial::new(point);
                for number in numbers {
                    polynomial.add(number as usize);
                }
                expect_eq!(polynomial.value, evaluate(point, &numbers));
            }
        }
    }

    #[test]
    fn ranges_are_rounded_outwards() {
        const P: usize = PAGE_SIZE;
        const END: usize = usize::MAX;
        for (start, end, pages) in [
            (0, 0, Some((0, 1))),
            (P, P, Some((1, 1))),
            (P, 2 * P, Some((1, 1))),
            (2 * P - 1, 2 * P - 1, Some((1, 1))),
            (2 * P - 1, 2 * P, Some((1, 1))),
            (2 * P - 1, 2 * P + 1, Some((1, 2))),
            (END, END, Some((END / P, 1))),
            (END - P, END, Some((END / P - 1, 2))),
            (1, 0, None),
            (0, MOST_PAGES * P, Some((0, MOST_PAGES))),
            (0, MOST_PAGES * P + 1, None),
            (P - 1, MOST_PAGES * P + P - 1, None),
            (0, END, None),
        ] {
            let found = Pages::new(start, end);
            expect_eq!(
                found.map(|found| (found.first, found.count)),
                pages.ok_or(EINVAL)
            );
        }
    }

    #[test]
    fn keys_differ() {
        let stamp = |key: Key| key.siphash.hash([key.point, 1, 2]);
        assert!(stamp(Key::new()) != stamp(Key::new()));
    }
}
