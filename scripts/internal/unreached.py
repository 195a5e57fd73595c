# SPDX-License-Identifier: GPL-2.0
"""The code of the driver that no suite of scripts/coverage reaches, and why.

Each entry is a reason and the places that it applies to. A place is a file and the line that is not
reached, followed by more lines if the first is not unique.
"""

CHAR_FILE = "abstractions/char_file.rs"
KMEM_CACHE = "abstractions/kmem_cache.rs"
TREE = "abstractions/interval_tree.rs"
PAGE = "abstractions/shared_page.rs"
DRIVER = "driver/mod.rs"
FILE = "driver/file.rs"
GATE = "driver/gate.rs"

UNREACHED = [
    ("runs when the module is unloaded, which discards the counters; see the test module_reloads", [
        (CHAR_FILE, "fn drop(self: Pin<&mut Self>) {"),
    ]),
    ("a module that fails to load leaves no counters; see the test faults_module", [
        (DRIVER, 'let cache = Arc::new(RegionCache::new(c"ummunotify_region")?, GFP_KERNEL)?;'),
        (KMEM_CACHE, "cache: NonNull::new(cache).ok_or(ENOMEM)?,"),
    ]),
    ("the called kernel function never returns an error", [
        (CHAR_FILE, "to_result(unsafe { bindings::stream_open(inode, file) })?;"),
    ]),
    ("an allocation of the size of a page always has a page", [
        (PAGE, "let page = words.page_iter().next().ok_or(ENOMEM)?;"),
        (PAGE, "let page = NonNull::new(page.as_ptr()).ok_or(ENOMEM)?;"),
    ]),
    ("mmap has mapped the page, so a fault finds a page table, and at most the page itself", [
        (PAGE, "Err(ENOMEM) => bindings::vm_fault_reason_VM_FAULT_OOM,"),
        (PAGE, "Err(_) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,"),
    ]),
    ("the stock kernel, whose module is measured, has no debug assertions", [
        (TREE, "debug_assert!(start <= last);"),
        (GATE, "debug_assert!(before & !REARMED > 0);"),
    ]),
    ("only kernel threads have no address space, and they do not open the device", [
        (FILE, "let mm = task.mm()?;"),
    ]),
    ("nothing reads through the box, but DerefMut requires Deref", [
        (KMEM_CACHE, "fn deref(&self) -> &T {"),
    ]),
]
