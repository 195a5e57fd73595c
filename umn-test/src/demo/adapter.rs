// SPDX-License-Identifier: GPL-2.0

//! A network adapter that sends from pinned memory, simulated with io_uring.
//!
//! Registering a buffer with io_uring affects memory in the same way as `ibv_reg_mr`: the kernel
//! looks up the pages that are mapped at this moment and pins them for a long time. Sending from
//! the buffer reads these pages, whatever has been mapped at the address since. An RDMA adapter
//! could take the place of this one without other changes.

use std::{
    io,
    ops::Range,
    os::fd::AsRawFd,
    ptr, //
};

use io_uring::{
    opcode,
    types,
    IoUring, //
};
use ummunotify::cache::Pin;

/// Identifies pinned memory to the adapter, like an `lkey`.
pub type Key = u16;

/// An adapter with a table of pinned memory.
pub struct Adapter {
    ring: IoUring,
    free: Vec<Key>,
}

impl Adapter {
    /// Opens an adapter with the keys `0 .. keys`.
    pub fn open(keys: u16) -> io::Result<Self> {
        let ring = IoUring::new(1)?;
        ring.submitter().register_buffers_sparse(keys.into())?;
        Ok(Self {
            ring,
            free: (0..keys).collect(),
        })
    }

    fn set(&self, key: Key, buffer: libc::iovec) -> io::Result<()> {
        // SAFETY: The kernel checks the address and holds its own references to the pages it pins.
        // Only [`Self::send`] uses them, and it only reads.
        unsafe {
            self.ring
                .submitter()
                .register_buffers_update(key.into(), &[buffer], None)
        }
    }

    /// Sends the contents of the pages that were pinned as `key` at `memory`, and waits until they
    /// are sent.
    pub fn send(&mut self, key: Key, memory: &Range<u64>, to: &impl AsRawFd) -> io::Result<()> {
        let length = length(memory);
        let send = opcode::WriteFixed::new(
            types::Fd(to.as_raw_fd()),
            memory.start as *const u8,
            length as u32,
            key,
        )
        .build();
        // SAFETY: The request refers to the pinned pages, which the kernel keeps, and to a file
        // that stays open until the request completes below.
        unsafe { self.ring.submission().push(&send) }.map_err(io::Error::other)?;
        self.ring.submit_and_wait(1)?;
        let completion = self.ring.completion().next();
        match completion.map_or(0, |completion| completion.result()) {
            error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            sent if sent as usize == length => Ok(()),
            sent => Err(io::Error::other(format!(
                "only {sent} of {length} bytes were sent"
            ))),
        }
    }
}

impl Pin for Adapter {
    type Key = Key;

    fn pin(&mut self, memory: &Range<u64>) -> io::Result<Key> {
        let key = *self
            .free
            .last()
            .ok_or_else(|| io::Error::other("the adapter has no keys"))?;
        self.set(
            key,
            libc::iovec {
                iov_base: memory.start as *mut _,
                iov_len: length(memory),
            },
        )?;
        self.free.pop();
        Ok(key)
    }

    fn unpin(&mut self, key: Key) -> io::Result<()> {
        self.set(
            key,
            libc::iovec {
                iov_base: ptr::null_mut(),
                iov_len: 0,
            },
        )?;
        self.free.push(key);
        Ok(())
    }
}

fn length(memory: &Range<u64>) -> usize {
    (memory.end - memory.start) as usize
}
