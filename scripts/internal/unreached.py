# SPDX-License-Identifier: GPL-2.0
"""The code of the driver that no suite of scripts/coverage reaches, and why.

Each entry is a reason and the places that it holds for. A place is a file, and the line with the
region that is not reached; more lines follow where the first is not there exactly once.
"""

CHAR_FILE = "abstractions/char_file.rs"
KMEM_CACHE = "abstractions/kmem_cache.rs"
TREE = "abstractions/interval_tree.rs"
PAGE = "abstractions/shared_page.rs"
DRIVER = "driver/mod.rs"
FILE = "driver/file.rs"
GATE = "driver/gate.rs"

UNREACHED = [
    ("it runs when the module is unloaded, and the counters go with it; see the test module_reloads", [
        (CHAR_FILE, "fn drop(self: Pin<&mut Self>) {"),
    ]),
    ("a module that cannot be loaded for want of memory leaves no counters; see the test faults_module", [
        (DRIVER, 'let cache = Arc::new(RegionCache::new(c"ummunotify_region")?, GFP_KERNEL)?;'),
        (KMEM_CACHE, "cache: NonNull::new(cache).ok_or(ENOMEM)?,"),
    ]),
    ("the function of the kernel that is called returns an error to nobody", [
        (CHAR_FILE, "to_result(unsafe { bindings::stream_open(inode, file) })?;"),
    ]),
    ("an allocation of the size of a page has a page", [
        (PAGE, "let page = words.page_iter().next().ok_or(ENOMEM)?;"),
        (PAGE, "let page = NonNull::new(page.as_ptr()).ok_or(ENOMEM)?;"),
    ]),
    ("mmap has mapped the page, so a fault finds a page table and, at most, the page there again", [
        (PAGE, "Err(ENOMEM) => bindings::vm_fault_reason_VM_FAULT_OOM,"),
        (PAGE, "Err(_) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,"),
    ]),
    ("the stock kernel has no debug assertions, and its module is the one that is measured", [
        (TREE, "debug_assert!(start <= last);"),
        (GATE, "debug_assert!(before & !REARMED > 0);"),
    ]),
    ("only a thread of the kernel has no address space, and none opens the device", [
        (FILE, "let mm = task.mm().ok_or(ESRCH)?;"),
    ]),
    ("nothing reads through the box, but whoever may write through it must be able to", [
        (KMEM_CACHE, "fn deref(&self) -> &T {"),
    ]),
]
