// SPDX-License-Identifier: GPL-2.0

//! SipHash, a keyed hash function whose results reveal nothing about the input or the key.
//!
//! C header: [`include/linux/siphash.h`](srctree/include/linux/siphash.h)

use kernel::bindings;

/// A key of SipHash.
#[derive(Clone, Copy)]
pub(crate) struct Key(bindings::siphash_key_t);

impl Key {
    /// Creates a random key.
    pub(crate) fn random() -> Self {
        Self(bindings::siphash_key_t {
            key: [random(), random()],
        })
    }

    /// Returns the hash of three numbers.
    pub(crate) fn hash(&self, numbers: [u64; 3]) -> u64 {
        let [a, b, c] = numbers;
        // SAFETY: The key is valid.
        unsafe { bindings::siphash_3u64(a, b, c, &self.0) }
    }
}

/// Returns an unpredictable random number.
pub(crate) fn random() -> u64 {
    // SAFETY: This may be called anywhere.
    unsafe { bindings::get_random_u64() }
}

#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(ummunotify_siphash)]
mod tests {
    use super::*;

    use crate::abstractions::kunit::expect_eq;

    /// An example of how to use a key.
    #[test]
    fn depends_on_the_key_and_the_numbers() {
        let (key, other) = (Key::random(), Key::random());
        expect_eq!(key.hash([1, 2, 3]), key.hash([1, 2, 3]));
        assert!(key.hash([1, 2, 3]) != key.hash([3, 2, 1]));
        assert!(key.hash([1, 2, 3]) != other.hash([1, 2, 3]));
    }
}
