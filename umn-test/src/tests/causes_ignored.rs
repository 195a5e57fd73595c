// SPDX-License-Identifier: GPL-2.0

//! Regions that ignore causes: ignored changes do not affect them.

use std::{
    fs,
    ops::Range,
    time::Duration, //
};

use super::{
    causes::page_out,
    crowd::{
        deferred,
        merged, //
    },
    prelude::*, //
};
use crate::userfault::{
    self,
    UserFault, //
};

table! {
    ignored_by_all: "if all regions ignore a cause, the counter does not move",
    ignored_wakes_nobody: "poll, a blocked read and SIGIO do not notice an ignored change",
    ignored_one_by_one: "each of the three causes can be ignored without the others",
    ignored_by_some: "in a range, only regions that do not ignore the cause are hit",
    ignored_after_an_event: "an ignored change does not affect the hint and causes of a queued event",
    ignored_before_an_event: "after an ignored change, the first hit has a hint and one cause",
    ignored_by_register_again: "a region that is registered again ignores only its new causes",
    ignored_of_other_files: "what one file ignores, another reports",
    ignored_but_not_the_rest: "UNMAP, CLEAR and every change that moves pages are reported nevertheless",
    ignored_by_many: "a change of 1,000 regions that all ignore it defers nothing",
    ignored_by_half: "a change visits 128 regions in all, whatever they ignore",
    ignored_by_many_but_one: "among 1,000 regions that ignore a change, the one that does not is hit",
    ignored_and_unregistered: "after UNREGISTER, the regions that are left ignore what they did before",
    ignored_after_deferred: "a change after one that is deferred counts only if a region does not ignore it",
    ignored_when_the_log_is_full: "changes that are merged: each region reports just the causes it heeds",
    ignored_fork_of_pinned_memory: "a fork is ignored, the copy on write after it is reported",
}

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Calls a test with each cause that can be ignored, and a function that raises it.
fn each(mut test: impl FnMut(Causes, &dyn Fn(&Range<u64>) -> Outcome) -> Outcome) -> Outcome {
    test(Causes::PROTECT_AREA, &|range| {
        mem::protect(range, libc::PROT_READ)?;
        Ok(mem::protect(range, READ_WRITE)?)
    })?;
    test(Causes::PROTECT_PAGES, &|_| Child::fork(|_| Ok(()))?.join())?;
    test(Causes::SOFT_DIRTY, &|_| {
        fs::write("/proc/self/clear_refs", "4").or_skip("clear_refs")
    })
}

/// Memory and a file that can ignore causes.
fn bench(pages: u64) -> Outcome<Bench> {
    Bench::over(open_with(Features::CAUSE)?, Guarded::new(pages)?)
}

/// Watches a range, with ignored causes.
#[track_caller]
fn watch(bench: &Bench, cookie: u64, range: &Range<u64>, ignored: Causes) -> Outcome {
    let result = bench.device.watch_ignoring(range.clone(), cookie, ignored);
    expect::success("REGISTER_REGION", result)
}

/// The cookies and causes of the queued events.
fn reported(bench: &Bench) -> Outcome<Vec<(u64, Causes)>> {
    let events = bench.drain()?;
    let events = events.iter().filter(|event| event.kind == EVENT_INVAL);
    let reported = events.map(|event| (event.user_cookie_counter, causes_of(event)));
    Ok(reported.collect())
}

fn ignored_by_all() -> Outcome {
    each(|cause, raise| {
        let bench = bench(4)?;
        watch(&bench, 1, &bench.area.all(), cause)?;
        watch(&bench, 2, &bench.area.page(1), Causes::SAME_PAGES)?;
        raise(&bench.area.all())?;
        bench.counts(0)?;
        bench.is_silent()?;
        bench.hit(1)?;
        bench.counts(1)
    })?;
    // userfaultfd changes protections, too.
    let fault = UserFault::new(userfault::FEATURE_WRITE_PROTECT)?;
    let bench = bench(2)?;
    fault.register(&bench.area.all(), userfault::MODE_WRITE_PROTECT)?;
    watch(&bench, 1, &bench.area.all(), Causes::SAME_PAGES)?;
    fault.write_protect(&bench.area.page(1))?;
    bench.counts(0)?;
    bench.is_silent()
}

fn ignored_wakes_nobody() -> Outcome {
    signals::catch_signal(libc::SIGIO, 0)?;
    each(|_, raise| {
        let bench = bench(2)?;
        watch(&bench, 1, &bench.area.all(), Causes::SAME_PAGES)?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&bench.device);
        // SAFETY: The calls take no pointer.
        unsafe {
            check(libc::fcntl(fd, libc::F_SETOWN, libc::getpid()))?;
            let flags = check(libc::fcntl(fd, libc::F_GETFL))?;
            check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_ASYNC))?;
        }
        let before = signals::caught().count;
        raise(&bench.area.all())?;
        let seen = bench.device.poll(libc::POLLIN, Duration::ZERO)?;
        expect::same("poll", seen, 0)?;
        expect::same("signals", signals::caught().count, before)?;
        // Nor does it use up the single notification.
        bench.hit(0)?;
        expect::same("signals after a hit", signals::caught().count, before + 1)
    })
}

fn ignored_one_by_one() -> Outcome {
    let others = |cause: Causes| Causes::from_bits(Causes::SAME_PAGES.bits() & !cause.bits());
    each(|cause, raise| {
        let bench = bench(3)?;
        watch(&bench, 1, &bench.area.all(), cause)?;
        watch(&bench, 2, &bench.area.all(), others(cause))?;
        watch(&bench, 3, &bench.area.all(), Causes::NONE)?;
        raise(&bench.area.all())?;
        let mut reported = reported(&bench)?;
        reported.sort_by_key(|(cookie, _)| *cookie);
        expect::same("cookies and causes", reported, vec![(2, cause), (3, cause)])
    })
}

fn ignored_by_some() -> Outcome {
    each(|cause, raise| {
        let bench = bench(40)?;
        for page in 0..40 {
            let ignored = if page % 3 == 0 { Causes::NONE } else { cause };
            watch(&bench, page, &bench.area.page(page), ignored)?;
        }
        raise(&bench.area.all())?;
        expect::at_least("the counter", bench.counter.get(), 1)?;
        let wanted: Vec<_> = (0..40).filter(|page| page % 3 == 0).collect();
        let mut reported: Vec<_> = reported(&bench)?
            .iter()
            .map(|(cookie, _)| *cookie)
            .collect();
        reported.sort_unstable();
        expect::same("cookies", reported, wanted)
    })
}

fn ignored_after_an_event() -> Outcome {
    each(|cause, raise| {
        let bench = bench(4)?;
        watch(&bench, 1, &bench.area.all(), cause)?;
        bench.hit(2)?;
        raise(&bench.area.all())?;
        bench.counts(1)?;
        let events = bench.drain()?;
        let reported = (events[0].hint_start..events[0].hint_end, events[0].flags);
        let flags = 1 | (Causes::CLEAR.bits() << 16);
        expect::same("hint and flags", reported, (bench.area.page(2), flags))
    })
}

fn ignored_before_an_event() -> Outcome {
    each(|cause, raise| {
        let bench = bench(4)?;
        watch(&bench, 1, &bench.area.all(), cause)?;
        raise(&bench.area.all())?;
        mem::unmap(&bench.area.page(1))?;
        bench.counts(1)?;
        let events = bench.drain()?;
        let reported = (events[0].hint_start..events[0].hint_end, events[0].flags);
        let flags = 1 | (Causes::UNMAP.bits() << 16);
        expect::same("hint and flags", reported, (bench.area.page(1), flags))
    })
}

fn ignored_by_register_again() -> Outcome {
    each(|cause, raise| {
        let bench = bench(2)?;
        for (round, ignored) in [cause, Causes::NONE, cause].into_iter().enumerate() {
            watch(&bench, 1, &bench.area.all(), ignored)?;
            raise(&bench.area.all())?;
            let expected = match ignored {
                Causes::NONE => vec![(1, cause)],
                _ => vec![],
            };
            expect::same(
                &format!("causes in round {round}"),
                reported(&bench)?,
                expected,
            )?;
            bench.device.unregister(1)?;
        }
        Ok(())
    })
}

fn ignored_of_other_files() -> Outcome {
    each(|cause, raise| {
        let one = bench(2)?;
        let other = open_with(Features::CAUSE)?;
        let version_2 = open()?;
        watch(&one, 1, &one.area.all(), cause)?;
        other.watch(one.area.all(), 1)?;
        version_2.watch(one.area.all(), 1)?;
        raise(&one.area.all())?;
        one.counts(0)?;
        expect::same("causes", causes_of(&other.read_events(1)?[0]), cause)?;
        expect::same(
            "causes",
            causes_of(&version_2.read_events(1)?[0]),
            Causes::NONE,
        )
    })
}

fn ignored_but_not_the_rest() -> Outcome {
    let cause_is = |cause: Causes, raise: &dyn Fn(&Range<u64>) -> Outcome| -> Outcome {
        let bench = bench(2)?;
        watch(&bench, 1, &bench.area.page(1), Causes::SAME_PAGES)?;
        raise(&bench.area.page(1))?;
        expect::at_least("the counter", bench.counter.get(), 1)?;
        expect::same("causes", reported(&bench)?, vec![(1, cause)])
    };
    cause_is(Causes::UNMAP, &|page| Ok(mem::unmap(page)?))?;
    cause_is(Causes::UNMAP, &|page| Ok(mem::map_over(page)?))?;
    cause_is(Causes::CLEAR, &|page| {
        Ok(mem::advise(page, libc::MADV_DONTNEED)?)
    })?;
    // The protection change is ignored; the page is moved afterwards.
    cause_is(Causes::CLEAR, &|page| {
        mem::protect(page, libc::PROT_READ)?;
        Ok(mem::advise(page, libc::MADV_DONTNEED)?)
    })?;
    cause_is(Causes::CLEAR, &|page| {
        page_out(page, || mem::advise(page, libc::MADV_PAGEOUT))
    })
}

/// More regions than a change visits.
const MANY: u64 = 1000;

fn ignored_by_many() -> Outcome {
    each(|cause, raise| {
        let bench = bench(MANY)?;
        for page in 0..MANY {
            watch(&bench, page, &bench.area.page(page), cause)?;
        }
        raise(&bench.area.all())?;
        bench.counts(0)?;
        expect::same("deferred changes", deferred(&bench.device)?, 0)?;
        bench.is_silent()
    })
}

fn ignored_by_half() -> Outcome {
    const AT_ONCE: u64 = 128;
    for (more, expected) in [(0, 0), (1, 1)] {
        let bench = bench(1)?;
        for cookie in 0..AT_ONCE + more {
            let ignored = [Causes::NONE, Causes::SAME_PAGES][cookie as usize % 2];
            watch(&bench, cookie, &bench.area.all(), ignored)?;
        }
        mem::advise(&bench.area.all(), libc::MADV_DONTNEED)?;
        expect::same("deferred changes", deferred(&bench.device)?, expected)?;
        expect::same("events", reported(&bench)?.len() as u64, AT_ONCE + more)?;
    }
    Ok(())
}

fn ignored_by_many_but_one() -> Outcome {
    each(|cause, raise| {
        let bench = bench(MANY)?;
        for page in 0..MANY {
            let ignored = if page == 700 { Causes::NONE } else { cause };
            watch(&bench, page, &bench.area.page(page), ignored)?;
        }
        raise(&bench.area.all())?;
        expect::same("cookies and causes", reported(&bench)?, vec![(700, cause)])
    })
}

fn ignored_and_unregistered() -> Outcome {
    let bench = bench(1)?;
    let page = bench.area.all();
    watch(&bench, 1, &page, Causes::SAME_PAGES)?;
    watch(&bench, 2, &page, Causes::NONE)?;
    watch(&bench, 3, &page, Causes::NONE)?;
    let reports = |wanted| expect::same("cookies and causes", reported(&bench)?, wanted);
    // A region that ignores the same causes is left.
    bench.device.unregister(3)?;
    mem::protect(&page, libc::PROT_READ)?;
    reports(vec![(2, Causes::PROTECT_AREA)])?;
    bench.device.unregister(2)?;
    mem::protect(&page, READ_WRITE)?;
    bench.counts(1)?;
    mem::advise(&page, libc::MADV_DONTNEED)?;
    reports(vec![(1, Causes::CLEAR)])?;
    mem::write_byte(page.start, 1);
    watch(&bench, 4, &page, Causes::NONE)?;
    bench.device.unregister(1)?;
    mem::protect(&page, libc::PROT_READ)?;
    reports(vec![(4, Causes::PROTECT_AREA)])
}

fn ignored_after_deferred() -> Outcome {
    let bench = bench(3)?;
    for cookie in 0..MANY {
        watch(&bench, cookie, &bench.area.page(0), Causes::NONE)?;
    }
    let page = bench.area.page(2);
    watch(&bench, MANY, &page, Causes::SAME_PAGES)?;
    bench.hit(0)?;
    expect::at_least("deferred changes", deferred(&bench.device)?, 1)?;
    mem::protect(&page, libc::PROT_READ)?;
    bench.counts(1)?;
    mem::advise(&page, libc::MADV_DONTNEED)?;
    bench.counts(2)?;
    let wanted: Vec<_> = (0..=MANY).map(|cookie| (cookie, Causes::CLEAR)).collect();
    expect::same("cookies and causes", reported(&bench)?, wanted)
}

fn ignored_when_the_log_is_full() -> Outcome {
    /// Several times as many as the log has room for.
    const CHANGES: u64 = 80;
    let bench = bench(CHANGES)?;
    let all = bench.area.all();
    for cookie in 0..MANY {
        watch(&bench, cookie, &all, Causes::NONE)?;
    }
    let (area, pages) = (Causes::PROTECT_AREA, Causes::PROTECT_PAGES);
    watch(&bench, MANY, &all, area)?;
    watch(&bench, MANY + 1, &all, pages)?;
    watch(&bench, MANY + 2, &all, area | pages)?;
    for page in 0..CHANGES {
        // Only one of the changes in the middle, which are merged, is a fork.
        if page == CHANGES / 2 {
            Child::fork(|_| Ok(()))?.join()?;
        }
        mem::protect(&bench.area.page(page), libc::PROT_READ)?;
    }
    expect::at_least("changes that were merged", merged(&bench.device)?, 1)?;
    let mut found = reported(&bench)?;
    found.sort_by_key(|(cookie, _)| *cookie);
    let mut wanted: Vec<_> = (0..MANY).map(|cookie| (cookie, area | pages)).collect();
    wanted.extend([(MANY, pages), (MANY + 1, area)]);
    expect::same("cookies and causes", found, wanted)
}

fn ignored_fork_of_pinned_memory() -> Outcome {
    let bench = bench(3)?;
    watch(&bench, 1, &bench.area.all(), Causes::SAME_PAGES)?;
    let child = Child::fork(|line| Ok(line.hear()?))?;
    bench.counts(0)?;
    mem::write_byte(bench.area.page(1).start, 1);
    bench.counts(1)?;
    let events = bench.drain()?;
    let reported = (
        events[0].hint_start..events[0].hint_end,
        causes_of(&events[0]),
    );
    let wanted = (bench.area.page(1), Causes::CLEAR);
    expect::same("hint and causes", reported, wanted)?;
    drop(child);
    Ok(())
}
