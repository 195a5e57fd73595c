// SPDX-License-Identifier: GPL-2.0

//! Compiles a C file which asserts that the crate agrees with the C header, so that any difference
//! breaks the build. Also compiles the cache in C, which tests compare with the one in Rust.

use std::{
    env,
    fs,
    mem::{
        offset_of,
        size_of, //
    },
    path::PathBuf, //
};

#[path = "../clients/ummunotify/src/uapi.rs"]
mod uapi;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let include = PathBuf::from("../uapi");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../clients/ummunotify/src/uapi.rs");
    println!("cargo:rerun-if-changed=../uapi/linux/ummunotify.h");

    let mut c = String::from("#include <stddef.h>\n#include <linux/ummunotify.h>\n");
    let mut same = |expression: String, value: u64| {
        c.push_str(&format!(
            "_Static_assert(({expression}) == {value}ULL, \"uapi.rs and linux/ummunotify.h differ: {expression}\");\n"
        ));
    };
    macro_rules! same_layout {
        ($rust:ident, $c:literal, $($field:ident),+) => {
            same(format!("sizeof({})", $c), size_of::<uapi::$rust>() as u64);
            $(same(
                format!("offsetof({}, {})", $c, stringify!($field)),
                offset_of!(uapi::$rust, $field) as u64,
            );)+
        };
    }
    macro_rules! same_number {
        ($($name:ident = $c:literal),+ $(,)?) => {
            $(same($c.to_string(), uapi::$name as u64);)+
        };
    }
    same_layout!(
        Register,
        "struct ummunotify_register_ioctl",
        start,
        end,
        user_cookie,
        flags,
        reserved
    );
    same_layout!(
        Event,
        "struct ummunotify_event",
        kind,
        flags,
        hint_start,
        hint_end,
        user_cookie_counter
    );
    same_layout!(
        Stamp,
        "struct ummunotify_stamp_ioctl",
        start,
        end,
        stamp,
        absent,
        flags
    );
    same_number!(
        EXCHANGE_FEATURES = "UMMUNOTIFY_EXCHANGE_FEATURES",
        REGISTER_REGION = "UMMUNOTIFY_REGISTER_REGION",
        UNREGISTER_REGION = "UMMUNOTIFY_UNREGISTER_REGION",
        EVENT_INVAL = "UMMUNOTIFY_EVENT_TYPE_INVAL",
        EVENT_LAST = "UMMUNOTIFY_EVENT_TYPE_LAST",
        EVENT_FLAG_HINT = "UMMUNOTIFY_EVENT_FLAG_HINT",
        EVENT_CAUSES_SHIFT = "UMMUNOTIFY_EVENT_CAUSES_SHIFT",
        STAMP = "UMMUNOTIFY_STAMP",
        FEATURE_CAUSE = "UMMUNOTIFY_FEATURE_CAUSE",
        FEATURE_HULL = "UMMUNOTIFY_FEATURE_HULL",
        FEATURE_STAMP = "UMMUNOTIFY_FEATURE_STAMP",
        CAUSE_UNMAP = "UMMUNOTIFY_CAUSE_UNMAP",
        CAUSE_CLEAR = "UMMUNOTIFY_CAUSE_CLEAR",
        CAUSE_PROTECT_AREA = "UMMUNOTIFY_CAUSE_PROTECT_AREA",
        CAUSE_PROTECT_PAGES = "UMMUNOTIFY_CAUSE_PROTECT_PAGES",
        CAUSE_SOFT_DIRTY = "UMMUNOTIFY_CAUSE_SOFT_DIRTY",
        CAUSE_DEVICE = "UMMUNOTIFY_CAUSE_DEVICE",
        CAUSE_OTHER = "UMMUNOTIFY_CAUSE_OTHER",
        CAUSES_SAME_PAGES = "UMMUNOTIFY_CAUSES_SAME_PAGES",
    );

    // The field that C calls `type` cannot have that name in Rust.
    let c = c.replace(
        "struct ummunotify_event, kind",
        "struct ummunotify_event, type",
    );
    let file = out.join("uapi_check.c");
    fs::write(&file, c).expect("OUT_DIR is writable");
    cc::Build::new()
        .file(&file)
        .include(&include)
        .warnings_into_errors(true)
        .compile("uapi_check");

    for file in ["umn_cache.h", "example.h", "example.c"] {
        println!("cargo:rerun-if-changed=../clients/c/{file}");
    }
    cc::Build::new()
        .file("../clients/c/example.c")
        .include(&include)
        .warnings_into_errors(true)
        .compile("cache_example");
}
