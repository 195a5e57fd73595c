// SPDX-License-Identifier: GPL-2.0

//! Which ranges can be regions, which invalidations hit them, and what their events contain.

use std::ops::Range;

use super::prelude::*;

table! {
    region_of_a_byte: "a change to its page hits a region of one byte, and the hint is that byte",
    region_not_aligned: "regions that are not page-aligned are hit by changes to their pages; hints are clamped",
    region_not_mapped: "a region may be registered before anything is mapped there",
    region_in_the_kernel: "a region at kernel addresses is accepted",
    region_overlapping: "overlapping, nested and identical regions are all hit",
    region_of_everything: "the range 0 to 2^64-1 can be a region; the hint is the invalidated range",
    region_with_end_at_start: "end equal to start watches one byte",
    region_with_end_before_start: "end before start gives EINVAL and registers nothing",
    region_across_mappings: "a region may span several mappings and holes",
    region_beyond_the_others: "a region below or above all others is hit like any other",
    region_at_tagged_addresses: "a tag in an address is ignored if the processor ignores it",
    region_at_address_zero: "changes at address 0, whose end the kernel may not report, are reported once",
    region_next_door: "a change next to a region does not hit it",
    event_hint_is_clamped: "the hint of a first hit is the invalidated part of the region",
    event_hint_of_what_is_large: "the hint covers changes of less than 512 GiB, anywhere in the region",
    event_second_hit_is_whole: "a second hit before the read clears HINT and reports the whole region",
    event_at_most_one_per_region: "a thousand hits queue one event",
    event_again_after_read: "a region stays armed; after a read the next hit has a hint again",
    event_for_each_region: "one invalidation queues an event for each region it hits",
    event_order: "events come in the order of the first hits",
    event_many_regions: "10,000 regions: exactly those that an invalidation overlaps are reported",
}

/// A part of a range, in bytes from its start.
fn part(of: &Range<u64>, bytes: Range<u64>) -> Range<u64> {
    of.start + bytes.start..of.start + bytes.end
}

fn region_of_a_byte() -> Outcome {
    let bench = Bench::new(3)?;
    let page = bench.area.page(1);
    let (first, last_byte) = (part(&page, 0..1), part(&page, PAGE - 1..PAGE));
    bench.watch(1, &first)?;
    bench.watch(2, &last_byte)?;
    bench.hit(0)?;
    bench.hit(2)?;
    bench.counts(0)?;
    bench.hit(1)?;
    bench.reads(&[inval(1, &first), inval(2, &last_byte), last(1)])?;
    bench.device.unregister(1)?;
    bench.device.unregister(2)?;

    // Each as the only region.
    for (cookie, byte) in [(2, first), (3, last_byte)] {
        bench.watch(cookie, &byte)?;
        bench.hit(1)?;
        bench.reads(&[inval(cookie, &byte), last(cookie)])?;
        bench.device.unregister(cookie)?;
    }
    Ok(())
}

fn region_not_aligned() -> Outcome {
    let bench = Bench::new(4)?;
    let region = part(&bench.area.all(), PAGE + 100..3 * PAGE + 1);
    bench.watch(1, &region)?;
    bench.hit(0)?;
    bench.counts(0)?;
    let hints = [
        (1, region.start..bench.area.page(1).end),
        (2, bench.area.page(2)),
        (3, bench.area.page(3).start..region.end),
    ];
    for (page, hint) in hints {
        bench.hit(page)?;
        bench.reads(&[inval(1, &hint), last(page)])?;
    }
    Ok(())
}

fn region_not_mapped() -> Outcome {
    let bench = Bench::new(1)?;
    let page = bench.area.all();
    mem::unmap(&page)?;
    bench.watch(1, &page)?;
    mem::map_over(&page)?;
    mem::write_byte(page.start, 1);
    bench.counts(0)?;
    mem::unmap(&page)?;
    bench.counts(1)?;
    bench.reads(&[inval(1, &page), last(1)])
}

fn region_in_the_kernel() -> Outcome {
    let bench = Bench::new(1)?;
    let kernel = 0xffff_8000_0000_0000;
    bench.watch(1, &(kernel..kernel + PAGE))?;
    bench.watch(2, &(u64::MAX - 1..u64::MAX))?;
    bench.watch(3, &(u64::MAX..u64::MAX))?;
    bench.watch(4, &(0..1))?;
    bench.hit(0)?;
    bench.counts(0)?;
    for cookie in 1..=4 {
        expect::success("UNREGISTER_REGION", bench.device.unregister(cookie))?;
    }
    Ok(())
}

fn region_overlapping() -> Outcome {
    let bench = Bench::new(5)?;
    let regions = [
        (1, bench.area.span(0..3)),
        (2, bench.area.span(2..5)),
        (3, bench.area.page(2)),
        (4, bench.area.page(2)),
        (5, bench.area.all()),
        (6, bench.area.span(3..5)),
        (7, part(&bench.area.page(2), 10..20)),
    ];
    for (cookie, region) in &regions {
        bench.watch(*cookie, region)?;
    }
    mem::unmap(&bench.area.page(2))?;
    bench.counts(1)?;
    let mut events = bench.device.read_events(16)?;
    events.sort_unstable_by_key(|event| (event.kind, event.user_cookie_counter));
    let page = bench.area.page(2);
    let mut wanted: Vec<_> = (1..=5).map(|cookie| inval(cookie, &page)).collect();
    wanted.extend([inval(7, &regions[6].1), last(1)]);
    expect::events("events", &events, &wanted)
}

fn region_of_everything() -> Outcome {
    let bench = Bench::new(3)?;
    bench.watch(1, &(0..u64::MAX))?;
    bench.watch(2, &(0..u64::MAX))?;
    mem::unmap(&bench.area.page(1))?;
    bench.counts(1)?;
    let hint = bench.area.page(1);
    let events = bench.device.read_events(1)?;
    let cookie = events[0].user_cookie_counter;
    expect::events("the first", &events, &[inval(cookie, &hint)])?;
    bench.device.unregister(1)?;
    bench.device.unregister(2).map_err(Into::into)
}

fn region_with_end_at_start() -> Outcome {
    let bench = Bench::new(2)?;
    let at = bench.area.page(1).start;
    bench.watch(1, &(at..at))?;
    bench.hit(0)?;
    bench.counts(0)?;
    bench.hit(1)?;
    bench.reads(&[inval(1, &(at..at + 1)), last(1)])?;
    bench.hit(1)?;
    bench.hit(1)?;
    bench.reads(&[whole(1, &(at..at + 1)), last(3)])
}

fn region_with_end_before_start() -> Outcome {
    let bench = Bench::new(2)?;
    let page = bench.area.page(1);
    for (start, end) in [
        (page.end, page.start),
        (page.start, page.start - 1),
        (1, 0),
        (u64::MAX, 0),
    ] {
        let result = bench.device.register(start, end, 1);
        expect::error("REGISTER_REGION", result, libc::EINVAL)?;
    }
    mem::unmap(&bench.area.all())?;
    bench.counts(0)?;
    let result = bench.device.unregister(1);
    expect::error("UNREGISTER_REGION", result, libc::EINVAL)
}

fn region_across_mappings() -> Outcome {
    let bench = Bench::new(6)?;
    mem::unmap(&bench.area.page(2))?;
    mem::protect(&bench.area.page(4), libc::PROT_READ)?;
    let all = bench.area.all();
    bench.watch(1, &all)?;
    mem::unmap(&bench.area.page(5))?;
    bench.reads(&[inval(1, &bench.area.page(5)), last(1)])?;
    mem::unmap(&bench.area.page(0))?;
    bench.reads(&[inval(1, &bench.area.page(0)), last(2)])?;
    // From the second page to the last, there are mappings and holes.
    mem::unmap(&bench.area.span(1..6))?;
    let events = bench.device.read_events(2)?;
    expect::same("cookie", events[0].user_cookie_counter, 1)?;
    expect::events("after it", &events[1..], &[last(bench.counter.get())])
}

fn region_beyond_the_others() -> Outcome {
    let bench = Bench::new(3)?;
    for (cookie, index) in [(1, 1), (2, 0), (3, 2)] {
        let page = bench.area.page(index);
        bench.watch(cookie, &page)?;
        bench.hit(index)?;
        bench.reads(&[inval(cookie, &page), last(cookie)])?;
    }
    Ok(())
}

/// Makes the processor ignore tags in addresses, if it can; returns a tag.
fn tag() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        const ARCH_ENABLE_TAGGED_ADDR: u64 = 0x4002;
        const BITS: u64 = 6;
        // SAFETY: The call takes no pointer.
        let ignored = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_ENABLE_TAGGED_ADDR, BITS) };
        if ignored == 0 {
            return 0x15 << 57;
        }
    }
    0
}

fn region_at_tagged_addresses() -> Outcome {
    let tag = tag();
    let bench = Bench::new(2)?;
    let page = bench.area.page(0);
    // With an invalid tag, it is the address of nothing.
    let other = if tag == 0 { 0x15 << 57 } else { tag };
    let tagged = page.start | other..page.end | other;
    bench.watch(1, &tagged)?;
    bench.hit(1)?;
    bench.counts(0)?;
    bench.hit(0)?;
    let mixed = bench.device.register(tagged.start, page.end, 2);
    if tag == 0 {
        bench.counts(0)?;
        bench.is_silent()?;
        return expect::error("the end without the tag", mixed, libc::EINVAL);
    }
    bench.counts(1)?;
    // Hints either keep the tag or have none.
    let hint_tag = match bench.device.read_events(1)?.first() {
        Some(event) => event.hint_start & tag,
        None => 0,
    };
    expect::that(
        "tag of a hint",
        hint_tag == 0 || hint_tag == tag,
        "all or none",
        hint_tag,
    )?;
    bench.reads(&[last(1)])?;
    expect::success("the end without the tag", mixed)?;
    bench.device.unregister(2)?;
    bench.device.unregister(1)?;
    let all = tagged.start + 5..(bench.area.page(1).end | tag) - 5;
    bench.watch(3, &all)?;
    bench.hit(1)?;
    let with = |address: u64| address & !tag | hint_tag;
    let hint = with(tagged.end)..with(all.end);
    bench.reads(&[inval(3, &hint), last(2)])
}

fn region_at_address_zero() -> Outcome {
    let bench = Bench::new(2)?;
    bench.watch(5, &bench.area.page(0))?;
    let _setting =
        Setting::change("/proc/sys/vm/mmap_min_addr", "0").or_skip("a mapping at address 0")?;
    let (low, first) = (0..4 * PAGE, 0..PAGE);
    mem::map_over(&low).or_skip("a mapping at address 0")?;
    mem::advise(&low, libc::MADV_POPULATE_WRITE)?;
    bench.watch(1, &first)?;
    bench.watch(2, &(2 * PAGE..3 * PAGE))?;
    let mut counter = 0;
    for round in 0..200 {
        let access = [libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE][round % 2];
        mem::protect(&(0..2 * PAGE), access)?;
        counter += 1;
        bench.reads(&[inval(1, &first), last(counter)])?;
        // Regions that are registered and read afterwards must not be taken for ones that were
        // during it.
        bench.watch(3, &first)?;
        bench.hit(0)?;
        counter += 1;
        bench.reads(&[inval(5, &bench.area.page(0)), last(counter)])?;
        bench.hit(1)?;
        bench.counts(counter)?;
        bench.device.unregister(3)?;
    }
    mem::advise(&low, libc::MADV_DONTNEED)?;
    let second = inval(2, &(2 * PAGE..3 * PAGE));
    bench.reads(&[inval(1, &first), second, last(counter + 1)])?;
    mem::unmap(&low)?;
    bench.counts(counter + 2)
}

fn region_next_door() -> Outcome {
    let bench = Bench::new(3)?;
    let page = bench.area.page(1);
    bench.watch(1, &page)?;
    bench.hit(0)?;
    bench.hit(2)?;
    mem::unmap(&bench.area.page(0))?;
    mem::unmap(&bench.area.page(2))?;
    bench.counts(0)?;
    bench.is_silent()
}

fn event_hint_is_clamped() -> Outcome {
    let bench = Bench::new(6)?;
    bench.watch(1, &bench.area.span(2..4))?;
    for (invalidated, hint) in [(0..3, 2..3), (3..6, 3..4), (1..5, 2..4), (2..4, 2..4)] {
        bench.area.fill();
        mem::advise(&bench.area.span(invalidated), libc::MADV_DONTNEED)?;
        let counter = bench.counter.get();
        bench.reads(&[inval(1, &bench.area.span(hint)), last(counter)])?;
    }
    bench.counts(4)
}

fn event_hint_of_what_is_large() -> Outcome {
    const GIB: u64 = 1 << 30;
    const TIB: u64 = 1 << 40;
    const SIZE: u64 = 20 * TIB;
    if cfg!(target_pointer_width = "32") {
        return Err(Failure::Skipped("no address space of 20 TiB".into()));
    }
    let bench = Bench::new(1)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let start =
        mem::map(None, SIZE, libc::PROT_NONE, flags, None).or_skip("address space of 20 TiB")?;
    let region = start..start + SIZE;
    bench.watch(1, &region)?;
    for (count, (part, is_reported)) in (1..).zip([
        (0..PAGE, true),
        (GIB..3 * GIB, true),
        (4 * GIB..4 * GIB + PAGE, true),
        (TIB..TIB + 512 * GIB - PAGE, true),
        (16 * TIB..16 * TIB + PAGE, true),
        (17 * TIB..17 * TIB + 512 * GIB, false),
    ]) {
        let part = start + part.start..start + part.end;
        mem::unmap(&part)?;
        let event = if is_reported {
            inval(1, &part)
        } else {
            whole(1, &region)
        };
        bench.reads(&[event, last(count)])?;
    }
    Ok(())
}

fn event_second_hit_is_whole() -> Outcome {
    let bench = Bench::new(4)?;
    let region = bench.area.all();
    bench.watch(1, &region)?;
    bench.hit(1)?;
    bench.hit(2)?;
    bench.counts(2)?;
    bench.reads(&[whole(1, &region), last(2)])?;
    // A second hit of the same page makes no difference.
    bench.hit(3)?;
    bench.hit(3)?;
    bench.hit(3)?;
    bench.counts(5)?;
    bench.reads(&[whole(1, &region), last(5)])
}

fn event_at_most_one_per_region() -> Outcome {
    let bench = Bench::new(2)?;
    bench.watch_pages()?;
    for _ in 0..1000 {
        bench.hit(0)?;
    }
    bench.counts(1000)?;
    bench.reads(&[whole(1, &bench.area.page(0)), last(1000)])?;
    bench.is_silent()
}

fn event_again_after_read() -> Outcome {
    let bench = Bench::new(3)?;
    bench.watch(1, &bench.area.all())?;
    for round in 0..30 {
        bench.hit(round % 3)?;
        bench.reads(&[inval(1, &bench.area.page(round % 3)), last(round + 1)])?;
    }
    bench.hit(0)?;
    bench.hit(1)?;
    bench.reads(&[whole(1, &bench.area.all()), last(32)])?;
    bench.hit(2)?;
    bench.reads(&[inval(1, &bench.area.page(2)), last(33)])
}

fn event_for_each_region() -> Outcome {
    let bench = Bench::new(8)?;
    bench.watch_pages()?;
    mem::unmap(&bench.area.span(2..6))?;
    bench.counts(1)?;
    let events = bench.device.read_events(9)?;
    let mut wanted: Vec<_> = (2..6)
        .map(|page| inval(page + 1, &bench.area.page(page)))
        .collect();
    wanted.push(last(1));
    expect::events("events", &events, &wanted)
}

fn event_order() -> Outcome {
    let bench = Bench::new(6)?;
    bench.watch_pages()?;
    let order = [3, 0, 5, 1, 4, 2];
    for page in order {
        bench.hit(page)?;
    }
    // Further hits do not change the order.
    bench.hit(5)?;
    bench.hit(3)?;
    let events = bench.device.read_events(6)?;
    let wanted: Vec<_> = order
        .iter()
        .map(|page| match page {
            3 | 5 => whole(page + 1, &bench.area.page(*page)),
            _ => inval(page + 1, &bench.area.page(*page)),
        })
        .collect();
    expect::events("events", &events, &wanted)?;
    bench.reads(&[last(8)])
}

fn event_many_regions() -> Outcome {
    const REGIONS: u64 = 10_000;
    const STEP: u64 = 64;
    let pages = REGIONS * STEP / PAGE + 1;
    let bench = Bench::over(super::open()?, Guarded::new(pages)?)?;
    let region = |index: u64| part(&bench.area.all(), index * STEP..index * STEP + 100);
    // In an order that is neither ascending nor descending.
    for index in (0..REGIONS).map(|index| index * 7919 % REGIONS) {
        bench.watch(index, &region(index))?;
    }
    for page in [0, 1, pages / 2, pages - 2] {
        bench.hit(page)?;
        let hint = bench.area.page(page);
        let mut seen: Vec<u64> = Vec::new();
        for event in bench.device.read_events(400)? {
            let inside = event.hint_start >= hint.start && event.hint_end <= hint.end;
            expect::same("hint inside the page", inside || event.hint_end == 0, true)?;
            seen.push(event.user_cookie_counter);
        }
        seen.pop();
        seen.sort_unstable();
        let wanted: Vec<u64> = (0..REGIONS)
            .filter(|index| region(*index).start < hint.end && hint.start < region(*index).end)
            .collect();
        expect::same("the right regions are hit", seen == wanted, true)?;
    }
    bench.counts(4)
}
