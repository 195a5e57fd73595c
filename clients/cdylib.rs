// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! Links the library so that it needs nothing but libc, and stays loaded.

use std::{
    env,
    fs,
    path::PathBuf, //
};

fn main() {
    println!("cargo:rerun-if-changed=../cdylib.rs");
    // libfabric unloads a provider that provides nothing, and UCX keeps addresses of functions.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");

    // The standard library links to libgcc_s for backtraces of panics. The compiler's static
    // library is sufficient.
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let script = out.join("libgcc_s.so");
    if fs::write(&script, "INPUT(-lgcc_eh)\n").is_ok() {
        println!("cargo:rustc-link-search=native={}", out.display());
    }
}
