// SPDX-License-Identifier: GPL-2.0

//! Slab caches: memory for objects of one type.
//!
//! C header: [`include/linux/slab.h`](srctree/include/linux/slab.h)

use core::{
    marker::PhantomData,
    mem::{
        ManuallyDrop,
        MaybeUninit, //
    },
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::NonNull, //
};

use kernel::{
    bindings,
    prelude::*, //
};

/// A cache of memory for objects of type `T`, with no more overhead than the slab allocator has.
///
/// Objects borrow it, so all of them are freed before it is dropped. Callers of
/// [`CacheBox::into_raw`] must ensure this themselves.
///
/// # Invariants
///
/// `cache` is a slab cache for objects with the size and the alignment of `T`.
pub(crate) struct KmemCache<T> {
    cache: NonNull<bindings::kmem_cache>,
    _objects: PhantomData<fn() -> T>,
}

// SAFETY: Any thread may call the functions of the slab allocator, concurrently.
unsafe impl<T> Send for KmemCache<T> {}
// SAFETY: As above.
unsafe impl<T> Sync for KmemCache<T> {}

impl<T> KmemCache<T> {
    /// Creates a cache named `name` in `/proc/slabinfo`. May sleep.
    pub(crate) fn new(name: &'static CStr) -> Result<Self> {
        let mut args = bindings::kmem_cache_args {
            align: align_of::<T>() as c_uint,
            ..pin_init::zeroed()
        };
        // SAFETY: The name is static, and the arguments are only read.
        let cache = unsafe {
            bindings::__kmem_cache_create_args(
                kernel::str::as_char_ptr_in_const_context(name),
                size_of::<T>() as c_uint,
                &mut args,
                0,
            )
        };
        // INVARIANT: It was created with the size and the alignment of `T`.
        Ok(Self {
            cache: NonNull::new(cache).ok_or(ENOMEM)?,
            _objects: PhantomData,
        })
    }

    /// Allocates memory for an object, charged to the memory cgroup of the current task.
    ///
    /// May sleep.
    #[inline]
    pub(crate) fn alloc(&self) -> Result<CacheBox<'_, MaybeUninit<T>>> {
        // SAFETY: The cache is valid by the type invariant.
        let object = unsafe {
            bindings::kmem_cache_alloc_noprof(self.cache.as_ptr(), bindings::GFP_KERNEL_ACCOUNT)
        };
        // INVARIANT: By the type invariant of the cache, the memory fits a `T`; nobody else owns
        // it.
        Ok(CacheBox(
            NonNull::new(object.cast()).ok_or(ENOMEM)?,
            PhantomData,
        ))
    }
}

impl<T> Drop for KmemCache<T> {
    fn drop(&mut self) {
        // SAFETY: The cache is valid by the type invariant, and not used for allocations any more.
        // All objects have been freed: they borrow it, or were given away on that condition.
        unsafe { bindings::kmem_cache_destroy(self.cache.as_ptr()) };
    }
}

/// A value of type `T`, or room for one, in memory from a [`KmemCache`].
///
/// Dropping it frees the memory.
///
/// # Invariants
///
/// The pointer refers to memory for a `T` from a [`KmemCache`] that outlives `'c`. The memory
/// contains a valid `T` and has no other owner.
pub(crate) struct CacheBox<'c, T>(NonNull<T>, PhantomData<&'c ()>);

// SAFETY: It owns the `T`, and any thread may free the memory.
unsafe impl<T: Send> Send for CacheBox<'_, T> {}
// SAFETY: A shared reference gives only a shared reference to the `T`.
unsafe impl<T: Sync> Sync for CacheBox<'_, T> {}

impl<'c, T> CacheBox<'c, MaybeUninit<T>> {
    /// Moves a value to the memory.
    #[inline]
    pub(crate) fn write(mut self, value: T) -> CacheBox<'c, T> {
        MaybeUninit::write(&mut *self, value);
        // INVARIANT: The memory is the same, and now contains a `T`.
        CacheBox(ManuallyDrop::new(self).0.cast(), PhantomData)
    }
}

impl<T> CacheBox<'_, T> {
    /// Gives up ownership of the memory. [`Self::from_raw`] takes it back.
    #[inline]
    pub(crate) fn into_raw(self) -> NonNull<T> {
        ManuallyDrop::new(self).0
    }

    /// Takes back what [`Self::into_raw`] gave away.
    ///
    /// # Safety
    ///
    /// `object` must have come from [`Self::into_raw`], and nothing may use it any more. Its cache
    /// must outlive the lifetime of the returned box.
    #[inline]
    pub(crate) unsafe fn from_raw(object: NonNull<T>) -> Self {
        // INVARIANT: By the safety requirement.
        Self(object, PhantomData)
    }
}

impl<T> Deref for CacheBox<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: The pointer is valid by the type invariant, and borrowed with `self`.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for CacheBox<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: As above.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for CacheBox<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The value is valid by the type invariant, and not used any more. `kfree()`
        // accepts memory of any slab cache.
        unsafe {
            self.0.drop_in_place();
            bindings::kfree(self.0.as_ptr().cast());
        }
    }
}

#[cfg(CONFIG_UMMUNOTIFY_KUNIT_TEST)]
#[kernel::prelude::kunit_tests(ummunotify_kmem_cache)]
mod tests {
    use super::*;

    use crate::abstractions::kunit::expect_eq;

    /// An example of how to use a cache.
    #[test]
    fn objects_come_from_the_cache_and_go_back() -> Result {
        let cache = KmemCache::new(c"ummunotify_kmem_cache_test")?;
        let one = cache.alloc()?.write(1u64);
        let mut other = cache.alloc()?.write(2u64);
        *other += *one;
        expect_eq!((*one, *other), (1, 3));

        let raw = other.into_raw();
        // SAFETY: It came from `into_raw`, nothing else uses it, and the cache lives longer.
        drop(unsafe { CacheBox::from_raw(raw) });
        drop(one);
        // The kernel warns if the cache is destroyed with objects in it.
        drop(cache);
        Ok(())
    }
}
