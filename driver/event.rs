// SPDX-License-Identifier: GPL-2.0

//! The records that `read()` returns.

pub(super) use crate::uapi::ummunotify_event as Event;
pub(super) use crate::uapi::UMMUNOTIFY_EVENT_FLAG_HINT as HINT;
use crate::uapi::{
    UMMUNOTIFY_EVENT_TYPE_INVAL,
    UMMUNOTIFY_EVENT_TYPE_LAST, //
};

use super::hint::Span;

/// Size of a record, in bytes.
pub(super) const SIZE: usize = size_of::<Event>();

/// Returns the record that reports `what` of a region as invalidated.
///
/// `flags` are the causes and, if `what` is only a part of the region, [`HINT`].
#[inline]
pub(super) fn invalidated(cookie: u64, what: &Span, flags: u32) -> Event {
    Event {
        type_: UMMUNOTIFY_EVENT_TYPE_INVAL,
        flags,
        hint_start: what.start as u64,
        // This would overflow only for a region at the very last address, which no change hits.
        hint_end: (what.last as u64).wrapping_add(1),
        user_cookie_counter: cookie,
    }
}

/// Returns the record that reports an empty queue at generation `counter`.
pub(super) fn last(counter: u64) -> Event {
    Event {
        type_: UMMUNOTIFY_EVENT_TYPE_LAST,
        user_cookie_counter: counter,
        ..Default::default()
    }
}

#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(ummunotify_event)]
mod tests {
    use super::*;

    use crate::abstractions::kunit::expect_eq;
    use zerocopy::IntoBytes;

    /// Checks the layout of records, as 64-bit words of this machine.
    #[test]
    fn records_have_the_layout_of_v2() {
        let words = |event: Event| -> [u64; 4] { zerocopy::transmute!(event) };
        let inval =
            |cookie, start, last, flags| words(invalidated(cookie, &Span { start, last }, flags));
        expect_eq!(SIZE, 32);
        // The type is the lower half of the first word, and the flags are the upper half.
        expect_eq!(inval(9, 0x1000, 0x1fff, HINT), [1 << 32, 0x1000, 0x2000, 9]);
        expect_eq!(inval(0, 0x1001, 0x1001, 0), [0, 0x1001, 0x1002, 0]);
        expect_eq!(
            inval(u64::MAX, 0, usize::MAX - 1, 0),
            [0, 0, u64::MAX, u64::MAX]
        );
        expect_eq!(inval(9, 0, 0, 0x8003_0001), [0x8003_0001 << 32, 0, 1, 9]);
        expect_eq!(words(last(3)), [1, 0, 0, 3]);
        expect_eq!(last(0).as_bytes().len(), SIZE);
    }
}
