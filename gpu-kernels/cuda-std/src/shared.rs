//! Views of a block's shared memory.
//!
//! All shared memory is dynamic: its size stands in the launch's contract, and a kernel cuts the
//! one allocation into views. On the GPU a view is a 32-bit address, so that accesses are `ld.shared`
//! and `st.shared`; on the CPU every access is checked against the size, and against reading what
//! nothing wrote.

use core::marker::PhantomData;
use core::mem::size_of;

use bytemuck::AnyBitPattern;

use crate::arch::RawShared;

/// Shared memory of this block: elements of type `T`.
pub struct Shared<T> {
    pub(crate) raw: RawShared,
    element: PhantomData<*mut T>,
}

impl<T> Clone for Shared<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

/// The block's dynamic shared memory, all of it; aligned to 1024 bytes.
#[inline(always)]
pub fn dynamic_shared_mem<T: AnyBitPattern>() -> Shared<T> {
    Shared::from_raw(RawShared::dynamic())
}

impl<T: AnyBitPattern> Shared<T> {
    #[inline(always)]
    fn from_raw(raw: RawShared) -> Self {
        Self { raw, element: PhantomData }
    }

    /// The view from element `idx` on.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn offset(self, idx: usize) -> Self {
        Self::from_raw(self.raw.offset_bytes(idx * size_of::<T>()))
    }

    /// The same view, as an address that an assembler cannot take apart. All lanes of the warp call
    /// it.
    ///
    /// ptxas 13.0 miscompiles [copies](crate::async_copy) with a cache policy whose address it splits
    /// into a lane's and a uniform part: it does not set the latter.
    #[inline(always)]
    pub unsafe fn opaque(self) -> Self {
        Self::from_raw(self.raw.opaque())
    }

    /// The same memory as elements of another type.
    #[inline(always)]
    pub fn cast<U: AnyBitPattern>(self) -> Shared<U> {
        Shared::from_raw(self.raw)
    }

    /// Element `idx`.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn load(self, idx: usize) -> T {
        self.raw.load::<T>(idx * size_of::<T>())
    }

    /// Writes element `idx`.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn store(self, idx: usize, value: T) {
        self.raw.store::<T>(idx * size_of::<T>(), value);
    }

    /// The 8 bytes that start at element `idx`, in one access; aligned to 8 bytes.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn load_x2(self, idx: usize) -> [u32; 2] {
        self.raw.load_x2(idx * size_of::<T>())
    }

    /// The 16 bytes that start at element `idx`, in one access; aligned to 16 bytes.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn load_x4(self, idx: usize) -> [u32; 4] {
        self.raw.load_x4(idx * size_of::<T>())
    }

    /// Writes the 8 bytes that start at element `idx`, in one access; aligned to 8 bytes.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn store_x2(self, idx: usize, value: [u32; 2]) {
        self.raw.store_x2(idx * size_of::<T>(), value);
    }

    /// Writes the 16 bytes that start at element `idx`, in one access; aligned to 16 bytes.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn store_x4(self, idx: usize, value: [u32; 4]) {
        self.raw.store_x4(idx * size_of::<T>(), value);
    }
}
