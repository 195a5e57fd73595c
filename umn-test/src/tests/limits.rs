// SPDX-License-Identifier: GPL-2.0

//! Limits, accounting, what is visible from outside, and the module itself.

use std::{
    fs,
    os::fd::AsRawFd, //
};

use super::prelude::*;
use crate::module::{
    Module,
    Unloaded, //
};

table! {
    limit_is_documented: "fdinfo shows the limit on regions",
    limit_of_regions: "beyond the limit REGISTER_REGION gives ENOSPC; UNREGISTER makes room",
    limit_is_per_file: "the limit is per file",
    memory_is_charged: "regions are charged to the memory cgroup of the process that registers them",
    memory_is_given_back: "what was charged is given back at close",
    fdinfo_tells: "fdinfo shows regions, queued events, counter and limit",
    fdinfo_of_another_process: "fdinfo can be read by another process",
    module_is_busy: "the module cannot be unloaded while a file is open",
    module_is_busy_while_mapped: "nor while only the mapped counter is left",
    module_reloads: "the module can be unloaded and loaded many times",
}

/// The limit unless the module's parameter sets another.
pub(super) const DEFAULT_LIMIT: u64 = 2_097_152;

/// A number in fdinfo.
pub(super) fn fdinfo(text: &str, name: &str) -> Outcome<u64> {
    let prefix = format!("{name}:\t");
    text.lines()
        .find_map(|line| line.strip_prefix(&prefix)?.parse().ok())
        .ok_or_else(|| Failure::new("fdinfo", format_args!("a line '{name}:'"), text))
}

/// The fdinfo of a file of this process.
pub(super) fn fdinfo_path(device: &Device) -> String {
    format!("/proc/self/fdinfo/{}", device.as_raw_fd())
}

/// Its contents.
pub(super) fn fdinfo_text(device: &Device) -> Outcome<String> {
    fs::read_to_string(fdinfo_path(device)).or_skip("no fdinfo")
}

fn fdinfo_tells() -> Outcome {
    let bench = Bench::new(3)?;
    let is = |regions, queued, counter| -> Outcome {
        let text = fdinfo_text(&bench.device)?;
        expect::same("regions", fdinfo(&text, "regions")?, regions)?;
        expect::same("queued", fdinfo(&text, "queued")?, queued)?;
        expect::same("counter", fdinfo(&text, "counter")?, counter)
    };
    is(0, 0, 0)?;
    bench.watch_pages()?;
    is(3, 0, 0)?;
    bench.hit(0)?;
    bench.hit(0)?;
    is(3, 1, 2)?;
    mem::advise(&bench.area.all(), libc::MADV_DONTNEED)?;
    is(3, 3, 3)?;
    bench.device.read_events(1)?;
    is(3, 2, 3)?;
    bench.device.unregister(2)?;
    is(2, 1, 3)?;
    bench.reads(&[inval(3, &bench.area.page(2)), last(3)])?;
    is(2, 0, 3)?;
    bench.device.unregister(1)?;
    bench.device.unregister(3)?;
    is(0, 0, 3)
}

fn fdinfo_of_another_process() -> Outcome {
    let bench = Bench::new(2)?;
    let path = format!(
        "/proc/{}/fdinfo/{}",
        std::process::id(),
        bench.device.as_raw_fd()
    );
    let child = Child::fork(|line| {
        line.hear()?;
        let text = fs::read_to_string(&path).or_skip("another process's fdinfo")?;
        expect::same("regions", fdinfo(&text, "regions")?, 2)?;
        expect::same("queued", fdinfo(&text, "queued")?, 1)?;
        expect::same("counter", fdinfo(&text, "counter")?, 2)
    })?;
    bench.watch_pages()?;
    bench.hit(1)?;
    bench.hit(1)?;
    child.tell()?;
    child.join()?;
    bench.reads(&[whole(2, &bench.area.page(1)), last(2)])
}

fn limit_is_documented() -> Outcome {
    let text = fdinfo_text(&open()?)?;
    expect::at_least("limit", fdinfo(&text, "limit")?, 1)
}

/// The number of regions in the tests of the limit.
pub(super) const FEW: u64 = 1000;

/// Loads the module with a limit of [`FEW`] regions, unless it has this limit already.
pub(super) fn few_regions() -> Outcome<Option<Unloaded>> {
    if fdinfo(&fdinfo_text(&open()?)?, "limit")? == FEW {
        return Ok(None);
    }
    let module = Unloaded::new()?;
    expect::success(
        "loading the module",
        module.load(&format!("max_regions={FEW}")),
    )?;
    Ok(Some(module))
}

fn limit_of_regions() -> Outcome {
    let _module = few_regions()?;
    let bench = Bench::new(1)?;
    let page = bench.area.all();
    let text = fdinfo_text(&bench.device)?;
    expect::same("limit", fdinfo(&text, "limit")?, FEW)?;
    for cookie in 0..FEW {
        bench.watch(cookie, &page)?;
    }
    for _ in 0..3 {
        let result = bench.device.register(page.start, page.end, FEW);
        expect::error("REGISTER_REGION", result, libc::ENOSPC)?;
    }
    bench.device.unregister(7)?;
    bench.watch(FEW, &page)?;
    let result = bench.device.register(page.start, page.end, 7);
    expect::error("REGISTER_REGION", result, libc::ENOSPC)?;
    bench.hit(0)?;
    bench.counts(1)?;
    let records = bench.device.read_events(FEW as usize + 1)?.len() as u64;
    expect::same("records", records, FEW + 1)
}

fn limit_is_per_file() -> Outcome {
    let _module = few_regions()?;
    let (one, two) = (Bench::new(1)?, Bench::new(1)?);
    for bench in [&one, &two] {
        for cookie in 0..FEW {
            bench.watch(cookie, &bench.area.all())?;
        }
    }
    Ok(())
}

/// The number of regions in the tests of accounting.
const MANY: u64 = 10_000;

/// The least kernel memory that a region takes.
const REGION_SIZE: u64 = 64;

/// The charge of a cgroup before, while and after a process in it has many regions.
fn charges() -> Outcome<[u64; 3]> {
    open()?;
    let group = Cgroup::new("charge").or_skip("a memory cgroup")?;
    let child = Child::fork(|line| {
        group.enter().or_skip("entering a memory cgroup")?;
        let bench = Bench::new(1)?;
        // The memory of the very first region does not matter here.
        bench.watch(MANY, &bench.area.all())?;
        line.tell()?;
        line.hear()?;
        for cookie in 0..MANY {
            bench.watch(cookie, &bench.area.all())?;
        }
        line.tell()?;
        line.hear()?;
        drop((bench.device, bench.counter));
        line.tell()?;
        Ok(line.hear()?)
    })?;
    let charge = || {
        let text = group.read("memory.stat").or_skip("memory.stat")?;
        let kernel = text.lines().find_map(|line| line.strip_prefix("kernel "));
        kernel
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| Failure::Skipped("memory.stat has no 'kernel'".into()))
    };
    child.hear()?;
    let before = charge()?;
    child.tell()?;
    child.hear()?;
    let during: u64 = charge()?;
    child.tell()?;
    child.hear()?;
    // A closed file is freed a little later.
    let much = MANY * REGION_SIZE / 2;
    process::eventually(|| charge().is_ok_and(|after| after + much <= during));
    let after = charge()?;
    child.tell()?;
    child.join()?;
    Ok([before, during, after])
}

fn memory_is_charged() -> Outcome {
    let [before, during, _] = charges()?;
    expect::at_least(
        "bytes charged",
        during.saturating_sub(before),
        MANY * REGION_SIZE,
    )
}

fn memory_is_given_back() -> Outcome {
    let [_, during, after] = charges()?;
    expect::at_least(
        "bytes given back",
        during.saturating_sub(after),
        MANY * REGION_SIZE / 2,
    )
}

fn module_is_busy() -> Outcome {
    let bench = Bench::one_page()?;
    let busy = [libc::EWOULDBLOCK, libc::EBUSY];
    match Module::remove() {
        Err(error) if !busy.contains(&error.raw_os_error().unwrap_or(0)) => {
            Err(error).or_skip("unloading the module")?
        }
        result => expect::one_of("delete_module", result, &busy)?,
    }
    bench.hit(0)?;
    bench.reads(&[inval(1, &bench.area.all()), last(1)])
}

fn module_is_busy_while_mapped() -> Outcome {
    let bench = Bench::one_page()?;
    drop(bench.device);
    match Module::remove() {
        Err(error) if error.raw_os_error() != Some(libc::EWOULDBLOCK) => {
            Err(error).or_skip("unloading the module")?
        }
        result => expect::error("delete_module", result, libc::EWOULDBLOCK)?,
    }
    expect::same("the counter", bench.counter.get(), 0)
}

fn module_reloads() -> Outcome {
    let module = Unloaded::new()?;
    expect::error("open", Device::open().map(drop), libc::ENOENT)?;
    for _ in 0..5 {
        expect::success("loading the module", module.load(""))?;
        let bench = Bench::one_page()?;
        let text = fdinfo_text(&bench.device)?;
        expect::same("limit", fdinfo(&text, "limit")?, DEFAULT_LIMIT)?;
        bench.hit(0)?;
        bench.reads(&[inval(1, &bench.area.all()), last(1)])?;
        drop((bench.device, bench.counter));
        expect::success("unloading the module", Module::remove())?;
    }
    Ok(())
}
