// SPDX-License-Identifier: GPL-2.0

//! Shows an administrator what is still missing for MPI libraries to use the device.

use std::{
    collections::BTreeMap,
    fs,
    io,
    path::PathBuf,
    process::{
        Command,
        ExitCode, //
    }, //
};

use crate::{
    command::{
        self,
        failed, //
    },
    device::{
        self,
        Device, //
    },
    expect::{
        Failure,
        Outcome, //
    },
    mem::{
        self,
        Guarded, //
    },
};

/// Check whether the device works here, and whether libfabric and UCX use it.
///
/// To find out, fi_info and ucx_info are run with the environment of this command. The results hold
/// for programs that are started in the same way. With --pid, also shows which processes of a
/// running job watch memory.
#[derive(clap::Args)]
#[command(after_help = command::EXIT_STATUS)]
pub struct Args {
    /// Also check this process, such as mpirun, and its descendants
    #[arg(long)]
    pid: Option<u32>,
}

/// Runs the checks.
pub fn run(args: &Args) -> ExitCode {
    command::exit(check(args))
}

fn check(args: &Args) -> Outcome {
    let mut sound = true;
    let mut show = |what: &str, finding: Finding| {
        let (mark, text) = match finding {
            Finding::Fine(text) => ("ok", text),
            Finding::Unknown(text) => ("--", text),
            Finding::Bad(text) => {
                sound = false;
                ("NO", text)
            }
        };
        println!("{mark:4}{what:12}{text}");
    };
    show("device", device_works());
    show("limit", limit());
    show("libfabric", libfabric());
    show("UCX", ucx());
    if let Some(pid) = args.pid {
        for (process, finding) in tree(pid).map_err(failed("reading /proc"))? {
            show(&process, finding);
        }
    }
    if sound {
        Ok(())
    } else {
        Err(Failure::Failed("see the lines with NO".into()))
    }
}

/// The result of one check.
#[derive(Debug, PartialEq)]
enum Finding {
    Fine(String),
    Bad(String),
    /// It does not apply, or could not be determined.
    Unknown(String),
}

use Finding::{
    Bad,
    Fine,
    Unknown, //
};

fn device_works() -> Finding {
    let path = device::PATH;
    let device = match Device::open_nonblocking() {
        Ok(device) => device,
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => "this user lacks permission; see the udev rules",
                _ => "load the module: modprobe ummunotify",
            };
            return Bad(format!("{path} cannot be opened: {error}; {remedy}"));
        }
    };
    match sees_a_change(&device) {
        Ok(true) => Fine(format!("{path} notices when memory is unmapped")),
        Ok(false) => Bad(format!("{path} did not notice that memory was unmapped")),
        Err(error) => Bad(format!("{path} cannot watch memory: {error}")),
    }
}

fn sees_a_change(device: &Device) -> io::Result<bool> {
    let counter = device.map_counter()?;
    let page = Guarded::unpopulated(1)?;
    let range = page.all();
    device.register(range.start, range.end, 1)?;
    mem::write_byte(range.start, 1);
    let before = counter.get();
    mem::unmap(&range)?;
    Ok(counter.get() != before)
}

fn limit() -> Finding {
    let mut limit = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: The argument is a `struct rlimit64` to write to.
    if unsafe { libc::getrlimit64(libc::RLIMIT_MEMLOCK, &mut limit) } != 0 {
        return Unknown(format!("not known: {}", io::Error::last_os_error()));
    }
    judge_limit(limit.rlim_cur)
}

fn judge_limit(bytes: u64) -> Finding {
    /// Below this limit, a few messages are enough to exhaust it.
    const SUFFICIENT: u64 = 64 << 20;
    if bytes == u64::MAX {
        Fine("memory may be locked without limit".into())
    } else if bytes >= SUFFICIENT {
        Fine(format!("{} MiB of memory may be locked", bytes >> 20))
    } else {
        Bad(format!(
            "only {} KiB of memory may be locked, for what is watched and for what is sent from; raise \
             it (ulimit -l unlimited, /etc/security/limits.conf)",
            bytes >> 10
        ))
    }
}

/// Runs a program with the log on; returns its standard output and its standard error.
fn ask(program: &str, args: &[&str]) -> io::Result<(String, String)> {
    let output = Command::new(program)
        .args(args)
        .env("UMMUNOTIFY_LOG", "1")
        .output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((text(&output.stdout), text(&output.stderr)))
}

fn libfabric() -> Finding {
    let version = match ask("fi_info", &["--version"]) {
        Ok((out, _)) => word_after(&out, "libfabric:").to_string(),
        Err(_) => return Unknown("cannot check: fi_info is not installed".into()),
    };
    match ask("fi_info", &["--list"]) {
        Ok((_, log)) => judge_log(
            &format!("libfabric {version}"),
            &log,
            "ummunotify-fi[",
            "uses /dev/ummunotify",
            "install libummunotify-fi.so in its provider directory, or set FI_PROVIDER_PATH to the directory that has it",
        ),
        Err(error) => Unknown(format!("fi_info: {error}")),
    }
}

fn ucx() -> Finding {
    let version = match ask("ucx_info", &["-v"]) {
        Ok((out, _)) => word_after(&out, "version:").to_string(),
        Err(_) => return Unknown("cannot check: ucx_info is not installed".into()),
    };
    // UCX creates its caches only with a context.
    match ask("ucx_info", &["-p", "-u", "t"]) {
        Ok((_, log)) => judge_log(
            &format!("UCX {version}"),
            &log,
            "ummunotify-ucx[",
            "took over",
            "set LD_PRELOAD to the full path of libummunotify-ucx.so",
        ),
        Err(error) => Unknown(format!("ucx_info: {error}")),
    }
}

fn word_after<'a>(text: &'a str, what: &str) -> &'a str {
    text.split_once(what)
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .unwrap_or("")
}

/// Derives a finding from the log of one of our libraries, whose lines begin with `tag`.
fn judge_log(name: &str, log: &str, tag: &str, success: &str, remedy: &str) -> Finding {
    let lines = log
        .lines()
        .filter(|line| line.starts_with(tag))
        .filter_map(|line| line.split_once("]: ").map(|(_, text)| text));
    let mut why = None;
    for line in lines {
        if line.contains(success) {
            return Fine(format!("{name} uses {}", device::PATH));
        }
        why.get_or_insert(line);
    }
    match why {
        Some(why) => Bad(format!("{name} does not use {}: {why}", device::PATH)),
        None => Unknown(format!(
            "{name} does not use {}; to enable it, {remedy}",
            device::PATH
        )),
    }
}

/// The processes of a tree that watch memory, or should.
fn tree(root: u32) -> io::Result<Vec<(String, Finding)>> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if let Some(parent) = parent_in(&stat) {
            parents.insert(pid, parent);
        }
    }
    if !parents.contains_key(&root) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    let belongs = |mut pid: u32| loop {
        if pid == root {
            return true;
        }
        match parents.get(&pid) {
            Some(parent) => pid = *parent,
            None => return false,
        }
    };
    let mut findings = Vec::new();
    for pid in parents.keys().copied().filter(|pid| belongs(*pid)) {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let name = fs::read_to_string(directory.join("comm")).unwrap_or_default();
        let maps = fs::read_to_string(directory.join("maps")).unwrap_or_default();
        let regions = watched_by(&directory).unwrap_or_default();
        if let Some(finding) = judge_process(name.trim(), &maps, &regions) {
            findings.push((format!("pid {pid}"), finding));
        }
    }
    if findings.is_empty() {
        let nobody = "neither this process nor a descendant has libfabric or UCX loaded";
        findings.push((format!("pid {root}"), Unknown(nobody.into())));
    }
    Ok(findings)
}

/// Finds the parent in `/proc/PID/stat`. The name in it may contain anything.
fn parent_in(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// The number of regions of each file of the device that a process has open.
fn watched_by(process: &std::path::Path) -> io::Result<Vec<u64>> {
    let mut regions = Vec::new();
    for fd in fs::read_dir(process.join("fd"))? {
        let fd = fd?;
        if fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == device::PATH) {
            let info = fs::read_to_string(process.join("fdinfo").join(fd.file_name()))?;
            regions.push(word_after(&info, "regions:").parse().unwrap_or(0));
        }
    }
    Ok(regions)
}

fn judge_process(name: &str, maps: &str, regions: &[u64]) -> Option<Finding> {
    let users: Vec<_> = [("/libfabric", "libfabric"), ("/libucs", "UCX")]
        .into_iter()
        .filter(|(file, _)| maps.contains(file))
        .map(|(_, user)| user)
        .collect();
    if !regions.is_empty() {
        let sum: u64 = regions.iter().sum();
        Some(Fine(format!("{name} watches {sum} regions")))
    } else if !users.is_empty() {
        Some(Unknown(format!(
            "{name} has {} loaded but watches nothing",
            users.join(" and ")
        )))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_a_message_uses_up_are_bad() {
        assert!(matches!(judge_limit(u64::MAX), Fine(_)));
        assert!(matches!(judge_limit(64 << 20), Fine(_)));
        assert!(matches!(judge_limit(8 << 20), Bad(_)));
    }

    #[test]
    fn what_the_libraries_log_is_understood() {
        let judge = |log| judge_log("UCX 1", log, "ummunotify-ucx[", "took over", "REMEDY");
        assert!(matches!(
            judge("ummunotify-ucx[7]: took over the cache \"a\"\n"),
            Fine(_)
        ));
        assert!(matches!(judge("ummunotify-ucx[7]: UCX 9 is not known\n"),
            Bad(why) if why.ends_with("UCX 9 is not known")));
        assert!(matches!(judge("took over\n"), Unknown(text) if text.contains("REMEDY")));
    }

    #[test]
    fn a_process_with_any_name_has_its_parent() {
        assert_eq!(parent_in("7 (a b) c) S 42 7 7"), Some(42));
        assert_eq!(parent_in(""), None);
    }

    #[test]
    fn only_processes_that_could_watch_something_are_listed() {
        assert_eq!(judge_process("sh", "/lib/libc.so.6", &[]), None);
        assert!(matches!(
            judge_process("a", "/lib/libfabric.so.1", &[]),
            Some(Unknown(_))
        ));
        assert!(matches!(judge_process("a", "", &[3, 4]),
            Some(Fine(text)) if text.contains("7 regions")));
    }
}
