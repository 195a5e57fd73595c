// SPDX-License-Identifier: GPL-2.0

//! Changes to the whole machine: kernel settings and control groups.
//!
//! Tests may make them only if the user allows it; all other tests are safe on a machine in use.

use std::{
    fs,
    io,
    path::{
        Path,
        PathBuf, //
    },
    sync::atomic::{
        AtomicBool,
        Ordering, //
    }, //
};

use crate::process::eventually;

/// Whether changes are allowed.
static ALLOWED: AtomicBool = AtomicBool::new(false);

/// The environment variable that allows changes, in this process and its children.
pub const VARIABLE: &str = "UMN_SYSTEM";

/// Allows changes from now on.
pub fn allow_changes() {
    ALLOWED.store(true, Ordering::Relaxed);
}

/// Fails with `PermissionDenied` unless changes are allowed.
///
/// Anything that affects other programs must call this first.
pub fn may_change() -> io::Result<()> {
    if ALLOWED.load(Ordering::Relaxed) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        "changes the machine, which needs --system",
    ))
}

/// A new memory cgroup, removed when dropped.
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Creates a cgroup.
    pub fn new(name: &str) -> io::Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let control = root.join("cgroup.subtree_control");
        if !fs::read_to_string(&control)?
            .split_whitespace()
            .any(|controller| controller == "memory")
        {
            may_change()?;
            fs::write(control, "+memory")?;
        }
        let path = root.join(format!("umn-test-{name}-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Moves the calling process into the cgroup.
    pub fn enter(&self) -> io::Result<()> {
        self.write("cgroup.procs", "0")
    }

    /// Writes to a file of the cgroup.
    pub fn write(&self, file: &str, text: &str) -> io::Result<()> {
        fs::write(self.0.join(file), text)
    }

    /// Reads a file of the cgroup.
    pub fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.0.join(file))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that has ended counts as a member for a moment longer.
        eventually(|| fs::remove_dir(&self.0).is_ok());
    }
}

/// A changed kernel setting, restored when dropped.
pub struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    /// Changes several settings in a directory.
    pub fn change_all(directory: &str, values: &[(&str, &str)]) -> io::Result<Vec<Self>> {
        values
            .iter()
            .map(|(name, value)| Self::change(Path::new(directory).join(name), value))
            .collect()
    }

    /// Makes KSM scan all the time and skip no page, until the settings are dropped.
    ///
    /// With `smart_scan`, KSM skips most scans of a page that it could not merge. Of two equal pages that
    /// became mergeable at different times, it may skip one whenever it scans the other.
    pub fn run_ksm() -> io::Result<Vec<Self>> {
        let values = [
            ("smart_scan", "0"),
            ("sleep_millisecs", "0"),
            ("pages_to_scan", "1000"),
            ("run", "1"),
        ];
        Self::change_all("/sys/kernel/mm/ksm", &values)
    }

    /// Changes the setting in a file.
    ///
    /// Fails with `PermissionDenied` unless changes are allowed.
    pub fn change(path: impl Into<PathBuf>, value: &str) -> io::Result<Self> {
        let path = path.into();
        let before = fs::read_to_string(&path)?;
        // In a list of choices, the current one is in brackets.
        let before = match before
            .split_once('[')
            .and_then(|(_, rest)| rest.split_once(']'))
        {
            Some((chosen, _)) => chosen.to_string(),
            None => before,
        };
        may_change()?;
        fs::write(&path, value)?;
        Ok(Self { path, before })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, self.before.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_stays_as_it_is_until_changes_are_allowed() {
        let path = std::env::temp_dir().join(format!("umn-test-setting-{}", std::process::id()));
        let content = || fs::read_to_string(&path).expect("the file is there");
        fs::write(&path, "always [madvise] never\n").expect("the file can be made");
        let refused = Setting::change(&path, "never").err();
        assert_eq!(
            refused.map(|error| error.kind()),
            Some(io::ErrorKind::PermissionDenied)
        );
        assert_eq!(content(), "always [madvise] never\n");
        allow_changes();
        let setting = Setting::change(&path, "never").expect("it is allowed");
        assert_eq!(content(), "never");
        drop(setting);
        assert_eq!(content(), "madvise");
        fs::remove_file(&path).expect("the file is there");
    }
}
