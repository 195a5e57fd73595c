// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! Links the library so that it stays loaded, and needs nothing but libc.

use std::{
    env,
    fs,
    path::PathBuf, //
};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // UCX keeps addresses of its functions.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // What the standard library wants of libgcc_s, to print backtraces, libgcc_eh has as well.
    let directory = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    if fs::write(directory.join("libgcc_s.so"), "INPUT(-lgcc_eh)\n").is_ok() {
        println!("cargo:rustc-link-search=native={}", directory.display());
    }
}
