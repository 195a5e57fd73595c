// SPDX-License-Identifier: GPL-2.0

//! The interface to user space, as bindgen finds it in `linux/ummunotify.h`.
//!
//! The C header says what each item means.

#![allow(
    clippy::all,
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    unreachable_pub,
    reason = "the code is generated from C"
)]

use kernel::ffi;
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes, //
};

include!(concat!(env!("UMMUNOTIFY_OBJ"), "/uapi_generated.rs"));
