// SPDX-License-Identifier: GPL-2.0

//! Opening the device while a page fault holds the opener's mmap lock.

use std::{
    ffi::OsStr,
    fs::{
        self,
        File, //
    },
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        mpsc::{
            self,
            Receiver,
            Sender, //
        },
        Mutex, //
    },
    thread,
    time::{
        Duration,
        SystemTime, //
    },
};

use fuser::{
    BackgroundSession,
    Config,
    Errno,
    FileAttr,
    FileHandle,
    FileType,
    Filesystem,
    Generation,
    INodeNo,
    LockOwner,
    OpenFlags,
    ReplyAttr,
    ReplyData,
    ReplyEntry,
    Request,
    SessionACL, //
};

use super::prelude::*;
use crate::system;

table! {
    stalled_open: "an open that a page fault delays does not delay opens of other devices",
}

/// The time limit of each operation.
const TIME: Duration = Duration::from_secs(20);

/// A file system with one file of one page, whose read waits until the test allows it.
struct SlowFile {
    asked: Mutex<Sender<()>>,
    answer: Mutex<Receiver<()>>,
}

impl SlowFile {
    const NAME: &str = "page";

    fn attributes(number: INodeNo) -> FileAttr {
        let time = SystemTime::UNIX_EPOCH;
        let is_root = number == INodeNo::ROOT;
        FileAttr {
            ino: number,
            size: PAGE,
            blocks: 1,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: if is_root {
                FileType::Directory
            } else {
                FileType::RegularFile
            },
            perm: if is_root { 0o755 } else { 0o444 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: PAGE as u32,
            flags: 0,
        }
    }
}

impl Filesystem for SlowFile {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == Self::NAME {
            reply.entry(&TIME, &Self::attributes(INodeNo(2)), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TIME, &Self::attributes(number));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _ = self.asked.lock().map(|asked| asked.send(()));
        let _ = self.answer.lock().map(|answer| answer.recv());
        reply.data(&[0; PAGE as usize]);
    }
}

/// The mounted file system.
struct Mounted {
    _session: BackgroundSession,
    path: PathBuf,
    asked: Receiver<()>,
    answer: Sender<()>,
}

impl Mounted {
    fn new() -> Outcome<Self> {
        system::may_change().or_skip("mounting a file system")?;
        File::open("/dev/fuse").or_skip("/dev/fuse")?;
        let path = std::env::temp_dir().join(format!("umn-test-{}", std::process::id()));
        fs::create_dir(&path)?;
        let (asked, is_asked) = mpsc::channel();
        let (answer, is_answered) = mpsc::channel();
        let file = SlowFile {
            asked: Mutex::new(asked),
            answer: Mutex::new(is_answered),
        };
        let mut config = Config::default();
        config.acl = SessionACL::All;
        let session = fuser::spawn_mount(file, &path, &config).or_skip("mounting FUSE")?;
        Ok(Self {
            _session: session,
            path,
            asked: is_asked,
            answer,
        })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Nothing may wait for the page when the file system goes away.
        let _ = self.answer.send(());
        let path = self.path.clone();
        let _ = nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(path);
    }
}

/// Returns whether a task is in an uninterruptible sleep.
fn is_blocked(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| {
        text.rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" D"))
    })
}

fn stalled_open() -> Outcome {
    const OTHER: &str = "/dev/cpu_dma_latency";
    File::open(OTHER).or_skip(OTHER)?;
    let mounted = Mounted::new()?;
    let path = mounted.path.join(SlowFile::NAME);
    let opener = as_ordinary_user(u64::MAX, |line| {
        let file = File::open(path)?;
        let page = mem::map(None, PAGE, libc::PROT_READ, libc::MAP_PRIVATE, Some(&file))?;
        line.tell_number(page)?;
        line.hear()?;
        let bench = Bench::one_page()?;
        bench.hit(0)?;
        bench.reads(&[inval(1, &bench.area.all()), last(1)])
    })?;
    let page = opener.hear_number()?;
    // A debugger's access holds the mmap lock until the fault is served.
    let debugger = Child::fork(|_| {
        let memory = File::open(format!("/proc/{}/mem", opener.pid()))?;
        memory.read_exact_at(&mut [0], page)?;
        Ok(())
    })?;
    mounted
        .asked
        .recv_timeout(TIME)
        .map_err(|error| Failure::new("the page fault", "a read of the file", error))?;
    opener.tell()?;
    let is_stalled = process::eventually(|| is_blocked(opener.pid()));

    let (done, is_done) = mpsc::channel();
    thread::spawn(move || done.send(File::open(OTHER).map(drop)));
    let other = is_done.recv_timeout(TIME);
    let was_stalled = is_stalled && is_blocked(opener.pid()) && debugger.is_alive()?;

    mounted
        .answer
        .send(())
        .map_err(|error| Failure::new("the page", "read", error))?;
    debugger.join()?;
    opener.join()?;
    expect::same("the open of the device was delayed", was_stalled, true)?;
    match other {
        Ok(result) => Ok(expect::success(OTHER, result)?),
        Err(_) => Err(Failure::new(
            OTHER,
            "an open",
            format_args!("none within {TIME:?}"),
        )),
    }
}
