// SPDX-License-Identifier: GPL-2.0

//! The interfaces of `clients/` for programs: the watcher in Rust, and the caches in Rust and C.

use std::{
    iter,
    sync::atomic::{
        AtomicBool,
        AtomicU64,
        Ordering, //
    },
    thread,
    time::Duration, //
};

use ummunotify::Watcher;

use super::prelude::*;

table! {
    client_names_changes: "the watcher names what has changed, and then reports no change",
    client_cookie_reused: "no change is returned for a region that was unwatched in the meantime",
    client_rest_is_kept: "changes that were not taken are returned the next time",
    client_unwatch_of_the_only_event: "unwatching discards the only event, and the watcher catches up",
    client_child_is_refused: "in a forked child, however forked, every call of the watcher fails",
    client_waits: "waiting ends with a change or a timeout",
    client_checker: "another thread sees what the reader did without being notified",
    client_blocking_file: "a watcher rejects a file whose reads block",
}

/// A watcher, and an area whose pages are watched with cookies 1, 2, …
fn watch(pages: u64) -> Outcome<(Watcher, Guarded)> {
    let watcher = Watcher::new(open()?.into_inner())?;
    let area = Guarded::new(pages)?;
    for page in 0..pages {
        watcher.watch(area.page(page), page + 1)?;
    }
    Ok((watcher, area))
}

fn discard(area: &Guarded, page: u64) -> Outcome {
    mem::advise(&area.page(page), libc::MADV_DONTNEED)?;
    mem::write_byte(area.page(page).start, 1);
    Ok(())
}

/// Expects these changes and no others.
#[track_caller]
fn changes(watcher: &mut Watcher, expected: &[u64]) -> Outcome {
    let seen = iter::from_fn(|| watcher.next_change().transpose())
        .map(|change| change.map(|change| change.cookie()))
        .collect::<Result<Vec<_>, _>>()?;
    expect::same("the changes", seen.as_slice(), expected)?;
    expect::same("changed", watcher.changed(), false)
}

fn client_names_changes() -> Outcome {
    let (mut watcher, area) = watch(3)?;
    changes(&mut watcher, &[])?;
    discard(&area, 2)?;
    discard(&area, 0)?;
    expect::same("changed", watcher.changed(), true)?;
    let change = watcher.next_change()?;
    let change = change.ok_or_else(|| Failure::new("next_change", "a change", "none"))?;
    expect::same("the cookie", change.cookie(), 3)?;
    expect::same("the addresses", change.addresses(), area.page(2))?;
    expect::same("is_exact", change.is_exact(), true)?;
    // It is up to date only after all changes were taken.
    expect::same("changed", watcher.changed(), true)?;
    changes(&mut watcher, &[1])?;

    // More than one call reads.
    let (mut watcher, area) = watch(300)?;
    for page in 0..300 {
        discard(&area, page)?;
    }
    changes(&mut watcher, &(1..=300).collect::<Vec<_>>())
}

fn client_cookie_reused() -> Outcome {
    let (mut watcher, area) = watch(3)?;
    for page in 0..3 {
        discard(&area, page)?;
    }
    // The others were read together with this one.
    expect::same(
        "the first",
        watcher.next_change()?.map(|it| it.cookie()),
        Some(1),
    )?;
    let other = Guarded::new(1)?;
    watcher.unwatch(2)?;
    watcher.watch(other.page(0), 2)?;
    changes(&mut watcher, &[3])?;
    discard(&other, 0)?;
    changes(&mut watcher, &[2])
}

fn client_rest_is_kept() -> Outcome {
    let (mut watcher, area) = watch(2)?;
    discard(&area, 0)?;
    discard(&area, 1)?;
    let first = watcher.changes().next().transpose()?;
    expect::same("the first", first.map(|it| it.cookie()), Some(1))?;
    expect::same(
        "wait returns at once",
        watcher.wait(Some(Duration::from_secs(30)))?,
        true,
    )?;
    changes(&mut watcher, &[2])
}

fn client_unwatch_of_the_only_event() -> Outcome {
    let (mut watcher, area) = watch(1)?;
    discard(&area, 0)?;
    watcher.unwatch(1)?;
    expect::same("changed", watcher.changed(), true)?;
    changes(&mut watcher, &[])
}

fn client_child_is_refused() -> Outcome {
    let (mut watcher, area) = watch(3)?;
    discard(&area, 0)?;
    discard(&area, 1)?;
    // The second one was read, but not returned.
    watcher.next_change()?;

    let refused = |watcher: &mut Watcher| {
        let eperm = |what, result| expect::error(what, result, libc::EPERM);
        expect::same("changed", watcher.changed(), true)?;
        let inherited = watcher.checker().is_inherited();
        expect::same("is_inherited", inherited, true)?;
        eperm("next_change", watcher.next_change().map(drop))?;
        eperm("watch", watcher.watch(area.page(0), 9))?;
        eperm("unwatch", watcher.unwatch(3))
    };
    Child::fork(|_| refused(&mut watcher))?.join()?;
    // libc's `fork` runs handlers; the bare system call does not.
    // SAFETY: There is only this thread, so the child may do whatever the parent may.
    match check(unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) })? {
        0 => {
            let passed = refused(&mut watcher).is_ok();
            // SAFETY: Ends the process, without the parent's exit handlers.
            unsafe { libc::_exit(i32::from(!passed)) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: `status` may be written to.
            check(unsafe { libc::waitpid(pid as i32, &mut status, 0) })?;
            expect::same("the child's status", status, 0)?;
        }
    }

    expect::same("is_inherited", watcher.checker().is_inherited(), false)?;
    let next = watcher.next_change()?.map(|it| it.cookie());
    expect::same("the second", next, Some(2))
}

fn client_waits() -> Outcome {
    let (mut watcher, area) = watch(1)?;
    let short = Some(Duration::from_millis(20));
    expect::same("a short wait", watcher.wait(short)?, false)?;
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(50));
            discard(&area, 0).expect("memory can be discarded");
        });
        expect::same("a wait", watcher.wait(None)?, true)
    })?;
    changes(&mut watcher, &[1])?;
    expect::same("a short wait", watcher.wait(short)?, false)
}

fn client_checker() -> Outcome {
    const ROUNDS: u64 = 2000;
    let (mut watcher, area) = watch(1)?;
    let (checker, page) = (watcher.checker(), area.page(0));
    let (taken, done) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let reader = scope.spawn(|| -> Outcome {
            while !done.load(Ordering::Relaxed) {
                while watcher.next_change()?.is_some() {
                    taken.fetch_add(1, Ordering::Relaxed);
                }
                thread::yield_now();
            }
            Ok(())
        });
        let changes = (1..=ROUNDS).try_for_each(|round| {
            mem::advise(&page, libc::MADV_DONTNEED)?;
            mem::write_byte(page.start, 1);
            while checker.changed() && !reader.is_finished() {
                thread::yield_now();
            }
            expect::at_least("changes taken", taken.load(Ordering::Relaxed), round)
        });
        done.store(true, Ordering::Relaxed);
        reader
            .join()
            .expect("the thread does not panic")
            .and(changes)
    })
}

fn client_blocking_file() -> Outcome {
    let watcher = Watcher::new(open_blocking()?.into_inner());
    expect::error("Watcher::new", watcher, libc::EINVAL)
}
