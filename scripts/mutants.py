# SPDX-License-Identifier: GPL-2.0
"""One-line ways to break the driver, each of which some test must notice.

A mutant is a name, a file, and pairs of what to replace in it (which must be there exactly once) and
by what.
"""

FILE = "driver/file.rs"
REGIONS = "driver/regions.rs"
GATE = "driver/gate.rs"
HINT = "driver/hint.rs"
EVENT = "driver/event.rs"
IOCTL = "driver/ioctl.rs"
DRIVER = "driver/mod.rs"
CHAR_FILE = "abstractions/char_file.rs"
PAGE = "abstractions/shared_page.rs"
FIFO = "abstractions/fifo.rs"
DESTINATION = "abstractions/destination.rs"
CACHE = "abstractions/kmem_cache.rs"

MUTANTS = [
    # Opening and the device node.
    ("open-for-writing", FILE, "if file.flags() & O_ACCMODE != O_RDONLY {", "if false {"),
    ("open-for-reading-refused", FILE, "if file.flags() & O_ACCMODE != O_RDONLY {", "if file.flags() & O_ACCMODE == O_RDONLY {"),
    ("module-not-held", CHAR_FILE, "owner: this_module::<T::OwnerModule>().as_ptr(),", "owner: core::ptr::null_mut(),"),
    ("node-for-root-only", DRIVER, "0o666", "0o600"),
    # Commands.
    ("enotty-is-einval", IOCTL, "_ => Err(ENOTTY)", "_ => Err(EINVAL)"),
    ("grant-all-features", FILE, "mask.read()? & FEATURES", "mask.read()? | FEATURES"),
    ("features-any-time", FILE, "if self.state.lock().used {", "if false {"),
    ("features-used-up-by-fault", FILE, "let granted = mask.read()? & FEATURES;",
     "self.state.lock().used = true; let granted = mask.read()? & FEATURES;"),
    ("features-any-time-in-race", FILE,
     "if core::mem::replace(&mut self.state.lock().used, true) {", "if false {"),
    ("register-does-not-use", FILE,
     "let new = NewRegion::new(&self.cache)?;\n        let mut state = self.state.lock();\n        state.used = true;",
     "let new = NewRegion::new(&self.cache)?;\n        let mut state = self.state.lock();"),
    ("failed-register-uses", FILE, "let bounds = ioctl::read_bounds(arg)?;",
     "self.state.lock().used = true; let bounds = ioctl::read_bounds(arg)?;"),
    ("cookie-twice", FILE, "result.map(|()| 0).map_err(|_| EINVAL)", "let _ = result; Ok(0)"),
    ("end-below-start", IOCTL, "end if end < start => return Err(EINVAL),", "end if end < start => start,"),
    ("empty-region-refused", IOCTL, "end if end == start => start,",
     "end if end == start => return Err(EINVAL),"),
    ("end-is-inside", IOCTL, "end => end - 1,", "end => end,"),
    ("end-too-early", IOCTL, "end => end - 1,", "end => end.saturating_sub(4097).max(start),"),
    ("flags-refused", IOCTL, "Ok(Self {\n            start,",
     "if region.flags != 0 || region.reserved != 0 { return Err(EINVAL); }\n        Ok(Self {\n            start,"),
    ("cookie-zero-refused", IOCTL, "Ok(Self {\n            start,",
     "if region.user_cookie == 0 { return Err(EINVAL); }\n        Ok(Self {\n            start,"),
    ("page-aligned-only", IOCTL, "Ok(Self {\n            start,",
     "if start % 4096 != 0 { return Err(EINVAL); }\n        Ok(Self {\n            start,"),
    ("user-addresses-only", IOCTL, "Ok(Self {\n            start,",
     "if end > 0x7fff_ffff_f000 { return Err(EINVAL); }\n        Ok(Self {\n            start,"),
    ("bad-pointer-is-no-cookie", IOCTL, "UserSlice::new(arg, size_of::<u64>()).reader().read()",
     "UserSlice::new(arg, size_of::<u64>()).reader().read().or(Ok(!0))"),
    ("unknown-cookie-is-fine", FILE, "old.map(|_| 0).ok_or(EINVAL)", "let _ = old; Ok(0)"),
    ("queued-stays-registered", FILE, "let old = self.state.lock().regions.unregister(&self.gate, cookie);",
     "let mut state = self.state.lock();\n        if state.regions.queued() > 0 { return Ok(0); }\n        let old = state.regions.unregister(&self.gate, cookie);\n        drop(state);"),
    ("no-limit", FILE, "if state.regions.len() >= self.limit {", "if false {"),
    ("limit-is-enomem", FILE, "return Err(ENOSPC);", "return Err(ENOMEM);"),
    ("memory-not-charged", CACHE, "self.cache.as_ptr(), bindings::GFP_KERNEL_ACCOUNT", "self.cache.as_ptr(), bindings::GFP_KERNEL"),
    ("compat-missing", CHAR_FILE, "compat_ioctl: bindings::compat_ptr_ioctl,", "compat_ioctl: None,"),
    # Whose address space it is.
    ("anybody-ioctl", FILE, "let command = Command::new(cmd, arg)?;\n        if !self.is_ours() {",
     "let command = Command::new(cmd, arg)?;\n        if false {"),
    ("anybody-read", FILE, "if !self.is_ours() && !self.state.lock().dead {", "if false {"),
    ("nobody-reads-the-dead", FILE, "if !self.is_ours() && !self.state.lock().dead {", "if !self.is_ours() {"),
    ("death-unnoticed", FILE, "        state.dead = true;\n", ""),
    ("death-wakes-nobody", FILE, "drop(state);\n        self.waiters.notify_all();", "drop(state);"),
    ("others-are-ignored", FILE, "fn invalidate_range_start(&self, range: &Range) {",
     "fn invalidate_range_start(&self, range: &Range) {\n        if !self.is_ours() { self.state.lock().regions.hit(0, 0); return; }"),
    # Reading.
    ("read-zero-bytes", FILE, "if destination.len() == 0 {\n            return Ok(0);", "if destination.len() == 0 {\n            return Err(EINVAL);"),
    ("read-too-short", FILE, "if destination.len() < event::SIZE {\n            return Err(EINVAL);", "if destination.len() < event::SIZE {\n            return Ok(0);"),
    ("quiet-for-ever", FILE, "        self.quiet.store(false, Relaxed);\n        let counter", "        let counter"),
    ("quiet-in-death", FILE, "        self.quiet.store(false, Relaxed);\n        drop(state);", "        drop(state);"),
    ("quiet-for-others", FILE, " && len >= event::SIZE && self.is_ours()", " && len >= event::SIZE"),
    ("quiet-for-too-short", FILE, " && len >= event::SIZE && self.is_ours()", " && self.is_ours()"),
    ("read-always-waits", CHAR_FILE, "file_flags & O_NONBLOCK != 0", "false"),
    ("nowait-ignored", CHAR_FILE, "flags & IOCB_NOWAIT != 0 ||", "false ||"),
    ("read-never-waits", FILE, "if nonblocking {", "if true {"),
    ("eagain-is-zero", FILE, "return Err(EAGAIN);", "return Ok(None);"),
    ("no-restart", FILE, "return Err(ERESTARTSYS);", "return Err(EINTR);"),
    ("read-waits-for-more", FILE, "if state.dead || has_read {", "if state.dead {"),
    ("read-does-not-use", FILE, "let mut state = self.state.lock();\n        state.used = true;\n        while", "let mut state = self.state.lock();\n        while"),
    ("one-batch-only", FILE, "while destination.len() >= event::SIZE {", "for _ in 0..1 {"),
    ("fault-loses-events", FILE, "state.regions.take(&self.gate, records);", "state.regions.take(&self.gate, count);"),
    ("faults-not-served", FILE, "(tries == 0 || !destination.fault_in(event::SIZE))", "true"),
    ("fault-drops-the-rest", FILE, "return if read > 0 { Ok(read) } else { Err(EFAULT) };", "return Err(EFAULT);"),
    ("torn-records", DESTINATION, "unsafe { self.revert(partial) };", "unsafe { self.revert(0) };"),
    ("torn-records-of-read", DESTINATION, "self.start.wrapping_byte_add(copied * size_of::<T>())", "self.start.wrapping_byte_add(bytes.len() - left)"),
    ("newest-first", FIFO, "self.front\n    }", "self.back\n    }"),
    # Events.
    ("inval-has-another-type", EVENT, "type_: UMMUNOTIFY_EVENT_TYPE_INVAL,", "type_: 7,"),
    ("hint-flag-missing", EVENT, "flags: if hint { UMMUNOTIFY_EVENT_FLAG_HINT } else { 0 },", "flags: 0,"),
    ("hint-flag-always", EVENT, "flags: if hint { UMMUNOTIFY_EVENT_FLAG_HINT } else { 0 },", "flags: UMMUNOTIFY_EVENT_FLAG_HINT | (hint as u32),"),
    ("hint-end-inside", EVENT, "(last as u64).wrapping_add(1)", "(last as u64)"),
    ("cookie-missing", EVENT, "user_cookie_counter: cookie,", "user_cookie_counter: cookie & 0xffff_ffff,"),
    ("last-without-counter", EVENT, "user_cookie_counter: counter,", "user_cookie_counter: counter & 0,"),
    ("last-one-behind", EVENT, "user_cookie_counter: counter,", "user_cookie_counter: counter - 1,"),
    ("hint-not-clamped", REGIONS, "(start.max(entry.start()), last.min(entry.last()))", "(start, last)"),
    ("hint-is-the-region", REGIONS, "(start.max(entry.start()), last.min(entry.last()))", "(entry.start(), entry.last())"),
    ("hull-with-hint", REGIONS, "} else {\n        Hint::WHOLE\n    };", "} else {\n        region.value().bounds().map_or(Hint::WHOLE, |(a, b)| Hint::new(a.min(start), b.max(last)))\n    };"),
    ("first-hint-kept", REGIONS, "} else {\n        Hint::WHOLE\n    };", "} else {\n        *region.value()\n    };"),
    ("no-last-after-unregister", REGIONS, "self.counter != self.reported", "self.map.queue_len() > 0"),
    ("last-never", REGIONS, "if self.is_readable() {\n                    records", "if false {\n                    records"),
    ("last-again-and-again", REGIONS, "self.reported = self.counter;", ""),
    ("more-after-last", FILE, "if batch.ended {", "if false {"),
    ("one-shot", REGIONS, "*region.value() = if region.enqueue() {", "*region.value() = if *region.value() != Hint::WHOLE && !region.is_queued() {\n        return;\n    } else if region.enqueue() {"),
    # The counter.
    ("counter-not-published", FILE, "self.page.word::<COUNTER>().store(counter, Release);", "let _ = counter;"),
    ("page-starts-at-one", FILE, "let page = SharedPage::new()?;",
     "let page = SharedPage::new()?;\n        page.word::<COUNTER>().store(1, Release);"),
    ("counter-elsewhere", FILE, "const COUNTER: usize = 0;", "const COUNTER: usize = 1;"),
    ("counter-starts-at-one", REGIONS, "counter: 0,\n            reported: 0,", "counter: 1,\n            reported: 1,"),
    ("counts-each-region", REGIONS, "let mut any = false;", "let mut any = 0;", "any |= hit(&mut entry, start, last);",
     "any += u64::from(hit(&mut entry, start, last));", "self.counter += u64::from(any);\n        any", "self.counter += any;\n        any > 0"),
    ("queued-does-not-count", REGIONS, "hit(entry, start, last);\n            true", "let is_new = !entry.is_queued();\n            hit(entry, start, last);\n            is_new"),
    # Being told.
    ("poll-does-not-wait", FILE, "table.register_wait(file, &self.waiters);", "let _ = (file, table);"),
    ("poll-rdnorm-missing", CHAR_FILE, "bindings::POLLIN | bindings::POLLRDNORM", "bindings::POLLIN"),
    ("poll-always", FILE, "if state.regions.is_readable() {\n            mask", "if true {\n            mask"),
    ("poll-never", FILE, "if state.regions.is_readable() {\n            mask", "if false {\n            mask"),
    ("poll-not-for-last", FILE, "if state.regions.is_readable() {\n            mask", "if state.regions.queued() > 0 {\n            mask"),
    ("poll-no-hup", FILE, "mask |= POLL_READABLE | POLL_HUNG_UP;", "mask |= POLL_READABLE;"),
    ("poll-hup-alone", FILE, "mask |= POLL_READABLE | POLL_HUNG_UP;", "mask |= POLL_HUNG_UP;"),
    ("nobody-woken", FILE, "if has_waiters {\n", "if has_waiters && false {\n"),
    ("sleepers-forgotten", FILE, "state.polled || state.sleepers > 0", "state.polled"),
    ("polls-forgotten", FILE, "state.polled || state.sleepers > 0", "state.sleepers > 0"),
    ("sigio-after-close", CHAR_FILE, "drop(unsafe { <T::Ptr as ForeignOwnable>::from_foreign((*file).private_data) });",
     "core::mem::forget(unsafe { <T::Ptr as ForeignOwnable>::from_foreign((*file).private_data) });",
     "from_result(|| unsafe { this.fasync().update(fd, file, on) }.map(|()| 0))",
     "if on == 0 { return 0; }\n        from_result(|| unsafe { this.fasync().update(fd, file, on) }.map(|()| 0))"),
    ("no-sigio", FILE, "self.fasync.notify_readable();", ""),
    # The mapped page.
    ("map-any-size", PAGE, "offset != 0 || vma.end() - vma.start() != PAGE_SIZE", "offset != 0"),
    ("map-any-offset", PAGE, "offset != 0 || vma.end()", "vma.end()"),
    ("map-writable", PAGE, "vma.try_clear_maywrite().map_err(|_| EACCES)?;", ""),
    ("map-writable-error", PAGE, ".map_err(|_| EACCES)?", "?"),
    ("map-expands", PAGE, "vma.set_dontexpand();", ""),
    ("map-gone-after-dontneed", PAGE, "Ok(()) | Err(EBUSY) => bindings::vm_fault_reason_VM_FAULT_NOPAGE",
     "Ok(()) | Err(EBUSY) => bindings::vm_fault_reason_VM_FAULT_SIGBUS"),
    # Invalidations.
    ("start-ignored", FILE, "if self.gate.start(range.start(), range.end()) {", "if self.gate.start(range.start(), range.end()) && range.start() > range.end() {"),
    ("end-ignored", FILE, "if self.gate.finish() {", "if self.gate.finish() && false {"),
    ("register-does-not-rearm", REGIONS, "gate.widen(start, last);\n        gate.note_rearmed();", "gate.widen(start, last);"),
    ("read-does-not-rearm", REGIONS, "if events > 0 {\n            gate.note_rearmed();", "if events > 0 {\n            let _ = gate;"),
    ("one-page-too-many", FILE, "regions.hit(range.start(), range.last())", "regions.hit(range.start(), range.last() + 1)"),
    ("one-page-too-few", FILE, "regions.hit(range.start(), range.last())",
     "regions.hit(range.start(), range.last().saturating_sub(4096).max(range.start()))"),
    ("hit-again-unless-queued", REGIONS, "entry.is_queued() && entry.value().covers(start, last)", "entry.is_queued()"),
    ("hit-again-always", REGIONS, "entry.is_queued() && entry.value().covers(start, last)", "false"),
    # What is found out without the lock.
    ("gate-never-widens-down", GATE, "if start < self.first.read_once() {", "if self.first.read_once() == usize::MAX {"),
    ("gate-never-widens-up", GATE, "if last > self.last.read_once() {", "if self.last.read_once() == 0 {"),
    ("gate-closes-too-early", REGIONS, "if self.map.len() == 0 {", "if self.map.len() <= 1 {"),
    ("gate-misses-the-edges", GATE, "self.first.read_once() < end && start <= self.last.read_once()",
     "self.first.read_once() + 1 < end && start < self.last.read_once()"),
    ("gate-counts-only-hits", GATE, "self.word.fetch_add(1, Full);\n        self.first.read_once() < end && start <= self.last.read_once()",
     "let open = self.first.read_once() < end && start <= self.last.read_once();\n        if open { self.word.fetch_add(1, Full); }\n        open",
     "let before = self.word.fetch_sub(1, Full);",
     "if self.word.load(Acquire) & !REARMED == 0 { return false; }\n        let before = self.word.fetch_sub(1, Full);"),
    ("rearmed-forgotten-too-early", GATE, "let _ = self.word.cmpxchg(REARMED, 0, Full);",
     "while self.word.load(Acquire) & REARMED != 0 {\n            let word = self.word.load(Acquire);\n            let _ = self.word.cmpxchg(word, word & !REARMED, Full);\n        }"),
    # How much a hint can tell.
    ("hint-loses-high-bits", HINT, "if count >> COUNT_BITS != 0 || first >> (u64::BITS - COUNT_BITS) != 0 {", "if false {"),
    ("hint-one-page-short", HINT, "let count = last - first + 1;", "let count = (last - first).max(1);"),
    # What can be looked at.
    ("fdinfo-without-limit", FILE, 'seq_print!(out, "limit:\\t{}\\n", self.limit);', ""),
    ("fdinfo-counts-wrong", REGIONS, "self.map.queue_len()\n    }\n\n    /// Returns the generation counter.", "self.map.queue_len() + 1\n    }\n\n    /// Returns the generation counter."),
    ("parameter-ignored", FILE, "module_parameters::max_regions.value() as usize", "module_parameters::max_regions.value() as usize + 7"),
]
