// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

//! UCX's functions, and the parts of its structures that the library uses.

use std::{
    ffi::{
        c_char,
        c_int,
        c_uint,
        c_void,
        CStr,
        CString, //
    },
    mem,
    ptr,
    sync::OnceLock, //
};

/// `ucs_status_t`, a packed enum.
pub type Status = i8;

/// `UCS_OK`.
pub const OK: Status = 0;
/// `UCS_ERR_UNSUPPORTED`.
pub const UNSUPPORTED: Status = -22;
/// `UCM_EVENT_VM_UNMAPPED`.
pub const VM_UNMAPPED: c_int = 1 << 17;
/// `UCS_RCACHE_FLAG_PURGE_ON_FORK`, of the flags in `ucs_rcache_params_t`.
const PURGE_ON_FORK: usize = 1 << 1;
/// All events that UCX's caches can subscribe to; `ucm_event_type_t`.
const EVENTS: c_int = 0x33_0000;

/// `mem_reg` of `ucs_rcache_ops_t`.
pub type MemReg =
    unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void, *const Region, u16) -> Status;
/// `mem_dereg` of `ucs_rcache_ops_t`.
pub type MemDereg = unsafe extern "C" fn(*mut c_void, *mut c_void, *const Region);

/// The start of `ucs_rcache_region_t`, which is a `ucs_pgt_region_t`.
#[repr(C)]
pub struct Region {
    /// First address of the memory.
    pub start: u64,
    /// First address after it.
    pub end: u64,
}

/// The most functions that any version has in `ucs_rcache_ops_t`.
pub const MAX_OPS: usize = 4;
/// The most words that any version has in `ucs_rcache_params_t`.
pub const MAX_PARAMS: usize = 10;

/// `ucs_rcache_ops_t`: `mem_reg`, `mem_dereg`, and others.
pub type Ops = [usize; MAX_OPS];
/// `ucs_rcache_params_t` in words.
pub type Params = [usize; MAX_PARAMS];

/// Positions in the structures of some versions.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// The number of words in `ucs_rcache_params_t`.
    pub params: usize,
    /// The index of the word with the events, in its lower half, and their priority.
    pub events: usize,
    /// The index of the word that points to the functions.
    pub ops: usize,
    /// The number of functions.
    pub ops_count: usize,
}

impl Layout {
    /// The layout of a version. Each of these was checked against the sources.
    pub fn of(major: c_uint, minor: c_uint) -> Option<&'static Self> {
        /// With `alignment` and `max_alignment` among the parameters.
        const ALIGNED: Layout = Layout {
            params: 10,
            events: 3,
            ops: 4,
            ops_count: 3,
        };
        /// Without them: the alignment is an argument of `ucs_rcache_get`.
        const PLAIN: Layout = Layout {
            params: 8,
            events: 1,
            ops: 2,
            ops_count: 3,
        };
        /// With `merge` among the functions.
        const MERGING: Layout = Layout {
            ops_count: 4,
            ..PLAIN
        };
        match (major, minor) {
            (1, 12..=16) => Some(&ALIGNED),
            (1, 17) => Some(&PLAIN),
            (1, 18..=22) => Some(&MERGING),
            _ => None,
        }
    }

    /// Copies the parameters and the functions they point to, if they are plausible.
    ///
    /// # Safety
    ///
    /// `params` points to a `ucs_rcache_params_t` of any layout.
    pub unsafe fn read(&self, params: *const usize) -> Option<(Params, Ops)> {
        let mut copy = [0; MAX_PARAMS];
        // SAFETY: No version has a shorter structure than the shortest known one.
        unsafe { ptr::copy_nonoverlapping(params, copy.as_mut_ptr(), self.params) };
        let events = *copy.get(self.events)? as c_int;
        let ops = *copy.get(self.ops)?;
        let sizes_are_sane = (64..65536).contains(copy.first()?)
            && copy
                .get(1..self.events)?
                .iter()
                .all(|alignment| alignment.is_power_of_two() && *alignment <= 1 << 21);
        if !sizes_are_sane || events & !EVENTS != 0 || ops % 8 != 0 || !is_loaded(ops) {
            return None;
        }
        let mut functions = [0; MAX_OPS];
        // SAFETY: It points into a loaded object, and is aligned.
        unsafe {
            ptr::copy_nonoverlapping(ops as *const usize, functions.as_mut_ptr(), self.ops_count)
        };
        functions
            .iter()
            .take(self.ops_count)
            .all(|it| is_loaded(*it))
            .then_some((copy, functions))
    }

    /// Keeps a cache from dropping everything whenever the process forks.
    pub fn keep_on_fork(&self, params: &mut Params) {
        if let Some(flags) = params.get_mut(self.ops + 2) {
            *flags &= !PURGE_ON_FORK;
        }
    }

    /// The events that parameters request.
    pub fn events(&self, params: &Params) -> c_int {
        params.get(self.events).map_or(0, |word| *word as c_int)
    }
}

/// Whether an address is in the program or one of its libraries.
fn is_loaded(address: usize) -> bool {
    let mut info = mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: `dladdr` takes any address, and fills the structure.
    address != 0 && unsafe { libc::dladdr(address as *const c_void, info.as_mut_ptr()) } != 0
}

/// The start of `ucm_global_config_t`, which all supported versions have in common.
#[repr(C)]
pub struct GlobalOptions {
    /// How much is logged; `ucm_log_level_t`.
    pub log_level: c_int,
    /// Whether changes of mappings are noticed at all.
    pub enable_events: c_int,
    /// How they are noticed; `ucm_mmap_hook_mode_t`.
    pub mmap_hook_mode: c_int,
}

impl GlobalOptions {
    /// `UCM_MMAP_HOOK_RELOC`: by addresses of functions in tables, when somebody asks for it.
    const TABLES: c_int = 1;
    /// `UCM_MMAP_HOOK_BISTRO`: by overwriting functions, as soon as UCX is loaded.
    const TEXT: c_int = 2;

    /// Keeps UCX from overwriting functions. Returns whether it would have done so.
    pub fn keep_text(&mut self) -> bool {
        let is_as_known = (0..32).contains(&self.log_level) && self.enable_events == 1;
        let would = is_as_known && self.mmap_hook_mode == Self::TEXT;
        if would {
            self.mmap_hook_mode = Self::TABLES;
        }
        would
    }
}

type Create =
    unsafe extern "C" fn(*const usize, *const c_char, *mut c_void, *mut *mut c_void) -> Status;

/// UCX's own functions. A version may lack some of them.
pub struct Ucx {
    /// `ucs_rcache_create`.
    pub create: Option<Create>,
    /// `ucs_rcache_destroy`.
    pub destroy: Option<unsafe extern "C" fn(*mut c_void)>,
    /// `ucs_rcache_get`, which has six or seven arguments.
    pub get: Option<
        unsafe extern "C" fn(*mut c_void, *mut c_void, usize, usize, usize, usize, usize) -> Status,
    >,
    /// `ucs_pgtable_lookup`.
    pub lookup: Option<unsafe extern "C" fn(*const c_void, usize) -> *mut c_void>,
    /// `ucm_set_global_opts`.
    pub set_global_opts: Option<unsafe extern "C" fn(*mut GlobalOptions)>,
    /// What is needed to take over a cache.
    pub events: Option<Events>,
}

/// UCX's functions for other sources of events.
pub struct Events {
    /// `ucm_vm_munmap`: makes each cache drop what overlaps a range.
    pub vm_munmap: unsafe extern "C" fn(*mut c_void, usize),
    /// `ucm_set_external_event`: declares that another source reports these events.
    pub set_external: unsafe extern "C" fn(c_int),
    /// `ucm_unset_external_event`.
    pub unset_external: unsafe extern "C" fn(c_int),
}

impl Ucx {
    /// The UCX of this process, which has been loaded once one of its functions was called.
    #[inline]
    pub fn get() -> Option<&'static Self> {
        static UCX: OnceLock<Option<Ucx>> = OnceLock::new();
        UCX.get_or_init(Self::find).as_ref()
    }

    fn find() -> Option<Self> {
        let library = find_library(b"libucs")?;
        // SAFETY: Each of these functions has this type in all versions. Functions of libraries
        // that libucs is linked to, such as libucm, are found through it.
        unsafe {
            Some(Self {
                create: function(library, c"ucs_rcache_create"),
                destroy: function(library, c"ucs_rcache_destroy"),
                get: function(library, c"ucs_rcache_get"),
                lookup: function(library, c"ucs_pgtable_lookup"),
                set_global_opts: function(library, c"ucm_set_global_opts"),
                events: Events::find(library),
            })
        }
    }

    /// Whether a fork leaves registered pages to the parent, as libibverbs finds out by asking the
    /// kernel. Otherwise the registered memory may have to be kept from children.
    pub fn parent_keeps_pages(&self) -> bool {
        /// `IBV_FORK_UNNEEDED`
        const UNNEEDED: c_int = 2;
        let Some(library) = find_library(b"libibverbs") else {
            return false;
        };
        // SAFETY: The function has this type. Older versions do not have it.
        unsafe {
            let status: Option<unsafe extern "C" fn() -> c_int> =
                function(library, c"ibv_is_fork_initialized");
            status.is_some_and(|status| status() == UNNEEDED)
        }
    }

    /// Major, minor and release number. Only libucp has them, and it may not be loaded.
    pub fn version(&self) -> Option<(c_uint, c_uint, c_uint)> {
        let library = find_library(b"libucp")?;
        let (mut major, mut minor, mut release) = (0, 0, 0);
        // SAFETY: Both functions have this type, in all versions.
        unsafe {
            let version: unsafe extern "C" fn(*mut c_uint, *mut c_uint, *mut c_uint) =
                function(library, c"ucp_get_version")?;
            let its_create: Create = function(library, c"ucs_rcache_create")?;
            // It could belong to another copy.
            if its_create as usize != self.create? as usize {
                return None;
            }
            version(&mut major, &mut minor, &mut release);
        }
        Some((major, minor, release))
    }
}

impl Events {
    /// # Safety
    ///
    /// The library is libucs, and stays open.
    unsafe fn find(library: *mut c_void) -> Option<Self> {
        // SAFETY: As in `Ucx::find`.
        unsafe {
            Some(Self {
                vm_munmap: function(library, c"ucm_vm_munmap")?,
                set_external: function(library, c"ucm_set_external_event")?,
                unset_external: function(library, c"ucm_unset_external_event")?,
            })
        }
    }
}

/// Finds a function of a library, or of one that it is linked to.
///
/// # Safety
///
/// The library is open and stays open. `T` is the function pointer type of the function with this
/// name.
unsafe fn function<T: Copy>(library: *mut c_void, name: &CStr) -> Option<T> {
    // SAFETY: The library is open, and the name a C string.
    let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
    // SAFETY: The caller vouches for the type.
    (!symbol.is_null()).then(|| unsafe { mem::transmute_copy(&symbol) })
}

/// Finds a loaded library. Programs that bring their own may call it `libucs-NUMBER.so.0`.
fn find_library(name: &'static [u8]) -> Option<*mut c_void> {
    struct Search {
        name: &'static [u8],
        found: Option<CString>,
    }
    unsafe extern "C" fn look(
        info: *mut libc::dl_phdr_info,
        _: libc::size_t,
        search: *mut c_void,
    ) -> c_int {
        // SAFETY: Both are what is passed below.
        let (search, path) = unsafe { (&mut *search.cast::<Search>(), (*info).dlpi_name) };
        if path.is_null() {
            return 0;
        }
        // SAFETY: It is a C string.
        let path = unsafe { CStr::from_ptr(path) };
        let file = path.to_bytes().rsplit(|byte| *byte == b'/').next();
        if matches!(
            file.and_then(|file| file.strip_prefix(search.name)?.first()),
            Some(b'.' | b'-')
        ) {
            search.found = Some(path.to_owned());
            return 1;
        }
        0
    }
    let mut search = Search { name, found: None };
    // SAFETY: `look` expects what is passed to it.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    let path = search.found?;
    // SAFETY: The path is a C string.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
    (!handle.is_null()).then_some(handle)
}

#[cfg(test)]
#[expect(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_nobody_looked_at_have_no_layout() {
        for (major, minor) in [(0, 13), (1, 0), (1, 11), (1, 23), (2, 13)] {
            assert_eq!(Layout::of(major, minor), None, "{major}.{minor}");
        }
        for minor in 12..=22 {
            let layout = Layout::of(1, minor).unwrap();
            assert!(layout.params <= MAX_PARAMS && layout.ops_count <= MAX_OPS);
        }
    }

    #[test]
    fn only_options_that_overwrite_text_are_changed() {
        let options = |log_level, enable_events, mmap_hook_mode| GlobalOptions {
            log_level,
            enable_events,
            mmap_hook_mode,
        };
        let mut known = options(3, 1, GlobalOptions::TEXT);
        assert!(known.keep_text());
        assert_eq!(known.mmap_hook_mode, GlobalOptions::TABLES);
        assert!(!known.keep_text());
        for mut other in [
            options(3, 1, 0),
            options(3, 0, GlobalOptions::TEXT),
            options(3, 7, GlobalOptions::TEXT),
            options(1 << 20, 1, GlobalOptions::TEXT),
        ] {
            let before = other.mmap_hook_mode;
            assert!(!other.keep_text());
            assert_eq!(other.mmap_hook_mode, before);
        }
    }

    #[test]
    fn parameters_of_another_layout_are_refused() {
        extern "C" fn function() {}
        static OPS: [extern "C" fn(); MAX_OPS] = [function; MAX_OPS];
        let ops = OPS.as_ptr() as usize;
        let events = (1000 << 32) | VM_UNMAPPED as usize;
        let (aligned, plain) = (Layout::of(1, 13).unwrap(), Layout::of(1, 18).unwrap());
        let of_aligned = [200, 16, 4096, events, ops, 1, 0, 0, 0, 0];
        let of_plain = [200, events, ops, 1, 0, 0, 0, 0, 0, 0];
        // SAFETY: All are as long as the longest layout.
        unsafe {
            assert!(aligned.read(of_aligned.as_ptr()).is_some());
            assert!(plain.read(of_plain.as_ptr()).is_some());
            assert!(aligned.read(of_plain.as_ptr()).is_none());
            assert!(plain.read(of_aligned.as_ptr()).is_none());
            assert!(plain
                .read([200, events, 8, 1, 0, 0, 0, 0, 0, 0].as_ptr())
                .is_none());
        }
        assert_eq!(plain.events(&of_plain), VM_UNMAPPED);
        let mut with_flags = [200, events, ops, 1, 0x5_0000_0007, 9, 8, 7, 0, 0];
        plain.keep_on_fork(&mut with_flags);
        assert_eq!(
            with_flags,
            [200, events, ops, 1, 0x5_0000_0005, 9, 8, 7, 0, 0]
        );
    }
}
