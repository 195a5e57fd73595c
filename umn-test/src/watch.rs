// SPDX-License-Identifier: GPL-2.0

//! Shows which events the device reports for which system calls.

use std::{
    io,
    ops::Range,
    process::ExitCode, //
};

use ummunotify::{
    Causes,
    Features, //
};

use crate::{
    command::{
        self,
        failed, //
    },
    device::{
        Counter,
        Device, //
    },
    expect::Outcome,
    mem::{
        self,
        Guarded,
        PAGE, //
    },
    process::Child,
    uapi::{
        Event,
        EVENT_CAUSES_SHIFT,
        EVENT_FLAG_HINT,
        EVENT_LAST, //
    },
};

/// Change watched memory, and print the resulting events.
///
/// Watches private anonymous memory as one region, and changes it in one way after the other. The
/// columns are:
///
///   counter    the mapped counter before and after the change
///   done       the change, and the pages of the region that it affected
///   event      a record that was read afterwards: INVAL with the cookie of the region and the
///              hint, in pages of the region and as addresses, and the causes; LAST, which ends
///              the queue, with the counter it carries; or nothing
///
/// If the region was hit again before its event was read, one event reports both hits. It has the
/// causes of both, and a hint that encloses both. With --v2 it has neither, which is called "whole".
#[derive(clap::Args)]
#[command(verbatim_doc_comment, after_help = command::EXIT_STATUS)]
pub struct Args {
    /// Pages of the region
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(6..))]
    pages: u16,

    /// Request no features, as programs for version 2 of the interface do
    #[arg(long)]
    v2: bool,
}

/// Runs the viewer.
pub fn run(args: &Args) -> ExitCode {
    command::exit(show(args))
}

/// Cookie of the region.
const COOKIE: u64 = 1;

fn show(args: &Args) -> Outcome {
    command::open_device()?;
    let features = if args.v2 {
        Features::NONE
    } else {
        Features::ALL
    };
    let device = Device::open_with(features).map_err(failed("opening the device"))?;
    let counter = device
        .map_counter()
        .map_err(failed("mapping the counter"))?;
    let pages = args.pages.into();
    let area = Guarded::unpopulated(pages).map_err(failed("mapping memory"))?;
    let Range { start, end } = area.all();
    println!("Region: {pages} pages of private anonymous memory, {start:#x}-{end:#x}");
    println!("Features: {:#x}\n", device.features().bits());
    Viewer {
        device,
        counter,
        area,
    }
    .show_all()
}

/// The watched region, and the file that watches it.
struct Viewer {
    device: Device,
    counter: Counter,
    area: Guarded,
}

impl Viewer {
    fn show_all(&self) -> Outcome {
        const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
        let all = 0..self.area.pages();
        let beyond = all.end..all.end + 1;
        let elsewhere = Guarded::unpopulated(all.end).map_err(failed("mapping memory"))?;
        let elsewhere = elsewhere.span(2..4);
        let mut child = None;

        println!("{:11}{:42}event", "counter", "done");
        self.step("REGISTER_REGION", all.clone(), |range| {
            self.device.register(range.start, range.end, COOKIE)
        })?;
        self.step("first write", all.clone(), write)?;
        self.step("madvise(MADV_COLD)", 2..4, advise(libc::MADV_COLD))?;
        self.step("madvise(MADV_DONTNEED)", 2..4, advise(libc::MADV_DONTNEED))?;
        self.step("write again", 2..4, write)?;
        self.step("madvise(MADV_FREE)", 0..1, advise(libc::MADV_FREE))?;
        self.step("madvise(MADV_PAGEOUT)", 5..6, advise(libc::MADV_PAGEOUT))?;
        self.step("mprotect(PROT_READ)", 1..3, protect(libc::PROT_READ))?;
        self.step("mprotect(PROT_READ|WRITE)", 1..3, protect(READ_WRITE))?;
        self.step("mprotect, not in the region", beyond, protect(READ_WRITE))?;
        self.step("fork", all.clone(), |_| {
            child = Some(Child::fork(|line| Ok(line.hear()?))?);
            Ok(())
        })?;
        self.step("write, copies it for the parent", 4..5, write)?;
        drop(child);
        self.step("mremap away", 2..4, |range| mem::move_to(range, &elsewhere))?;
        self.step("mremap back", 2..4, |range| mem::move_to(&elsewhere, range))?;
        self.step("mmap(MAP_FIXED) over it", 1..2, mem::map_over)?;
        self.step("MADV_DONTNEED of first and last", all.clone(), |range| {
            for page in [range.start, range.end - PAGE] {
                mem::advise(&(page..page + PAGE), libc::MADV_DONTNEED)?;
            }
            Ok(())
        })?;
        self.step("munmap", 3..5, mem::unmap)?;
        self.step("munmap", all.clone(), mem::unmap)?;
        self.step("UNREGISTER_REGION", all, |_| self.device.unregister(COOKIE))
    }

    /// Makes a change to some pages, and prints what is reported.
    fn step(
        &self,
        what: &str,
        pages: Range<u64>,
        action: impl FnOnce(&Range<u64>) -> io::Result<()>,
    ) -> Outcome {
        let start = self.area.all().start;
        let before = self.counter.get();
        let result = action(&(start + pages.start * PAGE..start + pages.end * PAGE));
        let after = self.counter.get();
        let mut reports = self.read().map_err(failed("reading events"))?;
        if let Err(error) = result {
            reports.push(format!("not supported here: {error}"));
        } else if reports.is_empty() {
            reports.push("nothing".into());
        }
        let mut left = format!(
            "{before:>3} -> {after:<3} {what:32}{:10}",
            format!("{}..{}", pages.start, pages.end)
        );
        for report in reports {
            println!("{left}{report}");
            left = " ".repeat(left.len());
        }
        Ok(())
    }

    /// Reads everything.
    fn read(&self) -> io::Result<Vec<String>> {
        match self.device.read_events(16) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
            result => Ok(result?.iter().map(|event| self.name(event)).collect()),
        }
    }

    fn name(&self, event: &Event) -> String {
        let number = event.user_cookie_counter;
        if event.kind == EVENT_LAST {
            return format!("LAST   counter {number}");
        }
        let page = |address: u64| (address - self.area.all().start) / PAGE;
        let (start, end) = (event.hint_start, event.hint_end);
        let whole = if event.flags & EVENT_FLAG_HINT == 0 {
            ", whole"
        } else {
            ""
        };
        let causes = Causes::from_bits(event.flags >> EVENT_CAUSES_SHIFT);
        let causes = if causes.is_empty() {
            String::new()
        } else {
            format!(": {causes}")
        };
        format!(
            "INVAL  cookie {number}, pages {}..{} ({start:#x}-{end:#x}){whole}{causes}",
            page(start),
            page(end)
        )
    }
}

fn write(range: &Range<u64>) -> io::Result<()> {
    for page in range.clone().step_by(PAGE as usize) {
        mem::write_byte(page, 1);
    }
    Ok(())
}

fn advise(advice: i32) -> impl FnOnce(&Range<u64>) -> io::Result<()> {
    move |range| mem::advise(range, advice)
}

fn protect(access: i32) -> impl FnOnce(&Range<u64>) -> io::Result<()> {
    move |range| mem::protect(range, access)
}
