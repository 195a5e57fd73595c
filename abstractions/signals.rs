// SPDX-License-Identifier: GPL-2.0

//! Signals of the current task.
//!
//! C header: [`include/linux/sched/signal.h`](srctree/include/linux/sched/signal.h)

use kernel::{
    bindings,
    prelude::*, //
};

use super::compat::PF_NO_NOTIFY_SIGNAL;

/// All signals except `SIGKILL`: a task that is being killed must not wait.
const ALL_BUT_KILL: bindings::sigset_t = {
    let mut set = bindings::sigset_t {
        sig: [c_ulong::MAX; bindings::_NSIG_WORDS as usize],
    };
    set.sig[0] &= !(1 << (bindings::SIGKILL - 1));
    set
};

/// Returns whether a signal is pending, so that an operation should end soon.
#[inline]
pub(crate) fn is_pending() -> bool {
    kernel::current!().signal_pending()
}

/// Returns whether the current task is being killed.
pub(crate) fn is_killed() -> bool {
    let kill = 1 << (bindings::SIGKILL - 1);
    is_pending()
        // SAFETY: The current task is valid. Others may change the field, so the load is volatile.
        && unsafe { (&raw const (*bindings::get_current()).pending.signal.sig[0]).read_volatile() }
            & kill
            != 0
}

/// Calls `f` while only `SIGKILL` makes a signal pending for the current task.
///
/// This is for operations that give up when a signal is pending, and would never succeed under a
/// fast timer. Signals that arrive in the meantime are handled afterwards. Stopping and freezing
/// still make a signal pending, and may be over when this returns.
pub(crate) fn without_signals<R>(f: impl FnOnce() -> R) -> R {
    let mut all = ALL_BUT_KILL;
    let mut before = bindings::sigset_t::default();
    // SAFETY: Both sets are valid.
    unsafe { bindings::sigprocmask(bindings::SIG_SETMASK as c_int, &mut all, &mut before) };
    // Work that other tasks want this one to do (`TIF_NOTIFY_SIGNAL`) counts as a signal, too. What
    // follows is `no_notify_signal_save()` and `no_notify_signal_restore()`.
    //
    // SAFETY: The current task is valid, and only the task itself writes to its flags.
    let flags = unsafe { &raw mut (*bindings::get_current()).flags };
    // SAFETY: As above.
    let had = unsafe {
        let had = *flags & PF_NO_NOTIFY_SIGNAL;
        *flags |= PF_NO_NOTIFY_SIGNAL;
        had
    };
    let result = f();
    // SAFETY: As above.
    unsafe {
        *flags = *flags & !PF_NO_NOTIFY_SIGNAL | had;
        bindings::sigprocmask(
            bindings::SIG_SETMASK as c_int,
            &mut before,
            core::ptr::null_mut(),
        );
    }
    result
}
