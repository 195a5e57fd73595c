// SPDX-License-Identifier: GPL-2.0

//! Other processes and threads that a test needs: forked children, children that share the address
//! space, sleeping threads.

use std::{
    ffi::c_void,
    fs,
    io::{
        self,
        IoSlice,
        IoSliceMut,
        Read,
        Write, //
    },
    os::{
        fd::{
            AsFd,
            AsRawFd,
            FromRawFd,
            OwnedFd,
            RawFd, //
        },
        unix::{
            net::UnixStream,
            process::ExitStatusExt, //
        },
    },
    process::ExitStatus,
    ptr,
    sync::atomic::{
        AtomicI32,
        Ordering, //
    },
    thread,
    time::{
        Duration,
        Instant, //
    }, //
};

use nix::{
    cmsg_space,
    poll::{
        poll,
        PollFd,
        PollFlags,
        PollTimeout, //
    },
    sched::{
        clone,
        sched_getcpu,
        sched_setaffinity,
        CloneFlags,
        CpuSet, //
    },
    sys::{
        prctl::set_dumpable,
        socket::{
            recvmsg,
            sendmsg,
            ControlMessage,
            ControlMessageOwned,
            MsgFlags, //
        },
        wait::{
            waitid,
            waitpid,
            Id,
            WaitPidFlag,
            WaitStatus, //
        },
    },
    unistd::{
        dup2_stdout,
        fork,
        gettid,
        setgid,
        setgroups,
        setuid,
        ForkResult,
        Pid, //
    },
};

use crate::{
    device::check,
    exit,
    expect::{
        self,
        Failure,
        Outcome, //
    },
};

/// A channel between two processes, to wait for each other and to pass files.
pub struct Channel(UnixStream);

impl Channel {
    /// Creates both ends of a channel.
    pub fn pair() -> io::Result<(Self, Self)> {
        UnixStream::pair().map(|(a, b)| (Self(a), Self(b)))
    }

    /// Lets the other side continue.
    pub fn tell(&self) -> io::Result<()> {
        (&self.0).write_all(b".")
    }

    /// Waits until the other side calls [`Self::tell`].
    pub fn hear(&self) -> io::Result<()> {
        (&self.0).read_exact(&mut [0])
    }

    /// Sends a number to the other side.
    pub fn tell_number(&self, number: u64) -> io::Result<()> {
        (&self.0).write_all(&number.to_ne_bytes())
    }

    /// Waits for a number.
    pub fn hear_number(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        (&self.0).read_exact(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Passes an open file.
    pub fn pass(&self, file: &impl AsRawFd) -> io::Result<()> {
        let files = [file.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&files)];
        let byte = [IoSlice::new(b".")];
        let flags = MsgFlags::empty();
        sendmsg::<()>(self.0.as_raw_fd(), &byte, &rights, flags, None)?;
        Ok(())
    }

    /// Receives an open file.
    pub fn receive(&self) -> io::Result<OwnedFd> {
        let mut byte = [0];
        let mut bytes = [IoSliceMut::new(&mut byte)];
        let mut space = cmsg_space!(RawFd);
        let flags = MsgFlags::empty();
        let message = recvmsg::<()>(self.0.as_raw_fd(), &mut bytes, Some(&mut space), flags)?;
        // The message has no file if there was no free descriptor for it.
        match message.cmsgs().ok().and_then(|mut all| all.next()) {
            Some(ControlMessageOwned::ScmRights(files)) if files.len() == 1 => {
                // SAFETY: The file was just received and is nobody else's.
                Ok(unsafe { OwnedFd::from_raw_fd(files[0]) })
            }
            _ => Err(io::Error::other("no file was passed")),
        }
    }
}

impl From<OwnedFd> for Channel {
    /// Takes over an end, given its descriptor.
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

/// A forked child that runs part of a test.
///
/// It is killed if the test ends without [`Self::join`].
pub struct Child {
    pid: Pid,
    line: Channel,
    report: UnixStream,
}

impl Child {
    /// Forks. The child runs `body` with its end of the channel to the parent, and exits.
    ///
    /// The process must have only one thread.
    pub fn fork(body: impl FnOnce(&Channel) -> Outcome) -> io::Result<Self> {
        let (line, its_line) = Channel::pair()?;
        let (report, its_report) = UnixStream::pair()?;
        // SAFETY: There is only this thread, so the child may do whatever the parent may.
        match unsafe { fork() }? {
            ForkResult::Child => {
                drop((line, report));
                // A program that the child executes reports on standard output.
                let _ = dup2_stdout(&its_report);
                let (code, text) = exit::encode(exit::catch(|| body(&its_line)));
                let _ = (&its_report).write_all(text.as_bytes());
                // SAFETY: Ends the process, without the parent's exit handlers.
                unsafe { libc::_exit(code.into()) }
            }
            ForkResult::Parent { child: pid } => Ok(Self { pid, line, report }),
        }
    }

    /// The child's process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Lets the child continue.
    pub fn tell(&self) -> Outcome {
        self.line.tell().map_err(|_| self.lost())
    }

    /// Waits until the child calls `tell`. Fails with the child's failure if it ends instead.
    pub fn hear(&self) -> Outcome {
        self.line.hear().map_err(|_| self.lost())
    }

    /// Sends the child a number.
    pub fn tell_number(&self, number: u64) -> Outcome {
        self.line.tell_number(number).map_err(|_| self.lost())
    }

    /// Waits for a number from the child.
    pub fn hear_number(&self) -> Outcome<u64> {
        self.line.hear_number().map_err(|_| self.lost())
    }

    /// Receives a file that the child passes.
    pub fn receive(&self) -> Outcome<OwnedFd> {
        self.line.receive().map_err(|_| self.lost())
    }

    /// Passes a file to the child.
    pub fn pass(&self, file: &impl AsRawFd) -> Outcome {
        self.line.pass(file).map_err(|_| self.lost())
    }

    /// Explains why a child no longer answers.
    fn lost(&self) -> Failure {
        let silent = || Failure::new("child process", "an answer", "its end");
        self.outcome().err().unwrap_or_else(silent)
    }

    /// Waits for the child to end, without reaping it; returns its outcome.
    fn outcome(&self) -> Outcome {
        let status = match self.wait()? {
            WaitStatus::Exited(_, code) => code << 8,
            WaitStatus::Signaled(_, signal, _) => signal as i32,
            other => {
                return Err(Failure::new(
                    "child process",
                    "its end",
                    format!("{other:?}"),
                ));
            }
        };
        let mut text = String::new();
        let _ = (&self.report).read_to_string(&mut text);
        exit::judge(ExitStatus::from_raw(status), &text)
    }

    /// Waits for the child to end, without reaping it.
    fn wait(&self) -> io::Result<WaitStatus> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        Ok(waitid(Id::Pid(self.pid), flags)?)
    }

    /// Waits for the child to end; returns its outcome.
    pub fn join(self) -> Outcome {
        self.outcome()
    }

    /// Whether the child is still running.
    pub fn is_alive(&self) -> io::Result<bool> {
        wait_for_exit(self.pid.as_raw(), Duration::ZERO).map(|ended| !ended)
    }

    /// Sends the child a signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: The child has not been reaped, so the process ID is still its own.
        check(unsafe { libc::kill(self.pid(), signal) }).map(drop)
    }

    /// Waits for the child to end; returns the signal that killed it, if one did.
    pub fn ended_by(&self) -> io::Result<Option<i32>> {
        Ok(match self.wait()? {
            WaitStatus::Signaled(_, signal, _) => Some(signal as i32),
            _ => None,
        })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.signal(libc::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// Runs `body` in a process that shares this one's address space, as a child of `vfork` does, and
/// waits for it to end.
pub fn in_vfork_child(body: impl FnOnce() -> Outcome) -> Outcome {
    /// Enough for any body.
    const STACK: usize = 256 << 10;
    let mut stack = vec![0; STACK];
    let (mut body, mut outcome) = (Some(body), Ok(()));
    let run = Box::new(|| {
        if let Some(body) = body.take() {
            outcome = body();
        }
        0
    });
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: The child has its own stack, and this thread sleeps until the child has ended.
    let pid = unsafe { clone(run, &mut stack, flags, Some(libc::SIGCHLD)) }?;
    let status = waitpid(pid, None)?;
    expect::same(
        "status of the vfork child",
        status,
        WaitStatus::Exited(pid, 0),
    )?;
    outcome
}

/// Waits until a child has ended, without reaping it; returns whether it ended in time.
pub fn wait_for_exit(pid: i32, timeout: Duration) -> io::Result<bool> {
    // SAFETY: The call takes no pointer.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })? as i32;
    // SAFETY: The file was just opened and is nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    let ready = poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout)?;
    Ok(ready == 1)
}

/// The ID of a thread, for other threads to wait for.
#[derive(Default)]
pub struct Tid(AtomicI32);

impl Tid {
    /// Publishes the ID of this thread.
    pub fn set(&self) {
        self.0.store(gettid().as_raw(), Ordering::Release);
    }

    /// Waits for the ID; returns it.
    pub fn get(&self) -> i32 {
        eventually(|| self.0.load(Ordering::Acquire) != 0);
        self.0.load(Ordering::Acquire)
    }

    /// Waits until the thread sleeps in the system call with this number.
    pub fn asleep_in(&self, number: libc::c_long) -> Outcome {
        asleep_in(self.get(), number)
    }
}

/// Waits until a thread sleeps in the system call with this number.
pub fn asleep_in(tid: i32, number: libc::c_long) -> Outcome {
    let call = format!("{number} ");
    let asleep = eventually(|| {
        fs::read_to_string(format!("/proc/{tid}/syscall")).is_ok_and(|text| text.starts_with(&call))
            && fs::read_to_string(format!("/proc/{tid}/stat"))
                .is_ok_and(|text| text.contains(") S "))
    });
    expect::that(
        "thread",
        asleep,
        format_args!("the thread to sleep in system call {number}"),
        "that it does not",
    )
}

/// Waits up to thirty seconds for a condition; returns whether it came true.
pub fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        if holds() {
            return true;
        }
        thread::sleep(Duration::from_micros(200));
    }
    false
}

/// Pins this thread, and the threads it starts, to the current processor.
pub fn stay_here() -> io::Result<()> {
    let mut here = CpuSet::new();
    here.set(sched_getcpu()?)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &here)?)
}

/// Gives a thread a real-time priority, which threads it starts do not inherit.
///
/// It preempts threads of lower priority as soon as it wakes up. `tid` 0 is this thread.
pub fn set_priority(tid: i32, priority: i32) -> io::Result<()> {
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    let parameter = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: The parameter is valid.
    check(unsafe { libc::sched_setscheduler(tid, policy, &parameter) }).map(drop)
}

/// Allows or forbids NUMA balancing of the memory of this thread and of the threads it starts.
///
/// NUMA balancing may invalidate pages at any time.
pub fn balance_numa(may: bool) -> io::Result<()> {
    /// `MPOL_F_MEMS_ALLOWED` of `linux/mempolicy.h`, which the crate `libc` lacks.
    const MPOL_F_MEMS_ALLOWED: i32 = 4;
    const WORDS: usize = 16;
    const BITS: usize = 64 * WORDS + 1;
    let mut nodes = [0u64; WORDS];
    let nowhere = ptr::null::<c_void>();
    let mode = ptr::null_mut::<i32>();
    // A policy that names nodes, even all of them, exempts the memory from balancing.
    let policy = if may {
        libc::MPOL_DEFAULT
    } else {
        libc::MPOL_BIND
    };
    // SAFETY: The mask has as many bits as the calls are passed, and the other pointers may be
    // null.
    unsafe {
        check(libc::syscall(
            libc::SYS_get_mempolicy,
            mode,
            nodes.as_mut_ptr(),
            BITS,
            nowhere,
            MPOL_F_MEMS_ALLOWED,
        ))?;
        let nodes = if may { ptr::null() } else { nodes.as_ptr() };
        check(libc::syscall(
            libc::SYS_set_mempolicy,
            policy,
            nodes,
            if may { 0 } else { BITS },
        ))?;
    }
    Ok(())
}

/// Sets both limits on a resource of this process.
pub fn set_limit(resource: libc::__rlimit_resource_t, most: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: most as libc::rlim_t,
        rlim_max: most as libc::rlim_t,
    };
    // SAFETY: `limit` is valid.
    check(unsafe { libc::setrlimit(resource, &limit) }).map(drop)
}

/// Becomes an unprivileged user who owns nothing.
pub fn drop_privilege() -> io::Result<()> {
    const NOBODY: u32 = 65534;
    become_user(NOBODY)
}

/// Becomes an unprivileged user whose `/proc` entries this process can still read.
pub fn become_user(user: u32) -> io::Result<()> {
    setgroups(&[])?;
    setgid(user.into())?;
    setuid(user.into())?;
    Ok(set_dumpable(true)?)
}
