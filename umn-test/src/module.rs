// SPDX-License-Identifier: GPL-2.0

//! Loads and unloads the kernel module.

use std::{
    env,
    ffi::{
        CStr,
        CString,
        OsStr, //
    },
    fs::File,
    io,
    ops::Deref, //
};

use nix::kmod::{
    delete_module,
    finit_module,
    DeleteModuleFlags,
    ModuleInitFlags, //
};

use crate::{
    device::Device,
    expect::{
        Failure,
        OrSkip,
        Outcome, //
    },
    process,
    system, //
};

/// The module's file.
pub struct Module {
    file: File,
}

impl Module {
    /// Opens the module at `path`, or the one that `$UMN_MODULE` names.
    pub fn find(path: Option<&OsStr>) -> Outcome<Self> {
        let path = path
            .map(OsStr::to_owned)
            .or_else(|| env::var_os("UMN_MODULE"))
            .ok_or_else(|| Failure::Skipped("UMN_MODULE does not name the module".into()))?;
        let file = File::open(path).or_skip("the module's file")?;
        Ok(Self { file })
    }

    /// Loads the module. Does not wait for the device.
    pub fn insert(&self, parameters: &CStr) -> io::Result<()> {
        system::may_change()?;
        Ok(finit_module(
            &self.file,
            parameters,
            ModuleInitFlags::empty(),
        )?)
    }

    /// Loads the module, and waits for the device.
    pub fn load(&self, parameters: &str) -> io::Result<()> {
        self.insert(&CString::new(parameters)?)?;
        if process::eventually(|| Device::open().is_ok()) {
            Ok(())
        } else {
            Device::open().map(drop)
        }
    }

    /// Unloads the module. Fails if it is in use.
    pub fn remove() -> io::Result<()> {
        system::may_change()?;
        Ok(delete_module(c"ummunotify", DeleteModuleFlags::O_NONBLOCK)?)
    }
}

/// The module, unloaded. Dropping this loads it again.
pub struct Unloaded(Module);

impl Unloaded {
    /// Unloads the module, if it can be loaded again later; otherwise skips the test.
    pub fn new() -> Outcome<Self> {
        Device::open().or_skip("no /dev/ummunotify to open")?;
        let module = Module::find(None)?;
        Module::remove().or_skip("unloading the module")?;
        Ok(Self(module))
    }
}

impl Deref for Unloaded {
    type Target = Module;

    fn deref(&self) -> &Module {
        &self.0
    }
}

impl Drop for Unloaded {
    fn drop(&mut self) {
        let _ = Module::remove();
        let _ = self.load("");
    }
}
