//! Views of device memory: this GPU's, a peer's over NVLink, or pinned host memory.
//!
//! On the GPU a view is its pointer, and a kernel parameter of 8 bytes. On the CPU, and on the
//! host side of a launch, it also carries its length, and every access is checked.

use core::marker::PhantomData;
use core::mem::size_of;

use bytemuck::AnyBitPattern;

use crate::arch::RawGlobal;

/// Device memory that a kernel reads: elements of type `T`.
#[repr(transparent)]
pub struct Global<T> {
    pub(crate) raw: RawGlobal,
    element: PhantomData<*const T>,
}

/// Device memory that a kernel reads and writes: elements of type `T`.
#[repr(transparent)]
pub struct GlobalMut<T> {
    pub(crate) raw: RawGlobal,
    element: PhantomData<*mut T>,
}

// SAFETY: a view is an address; what may be done with it, and from where, is the business of the
// unsafe functions that read and write through it.
unsafe impl<T> Send for Global<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Global<T> {}
// SAFETY: as above.
unsafe impl<T> Send for GlobalMut<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for GlobalMut<T> {}

macro_rules! view {
    ($View:ident) => {
        impl<T> Clone for $View<T> {
            #[inline(always)]
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<T> Copy for $View<T> {}

        impl<T: AnyBitPattern> $View<T> {
            #[inline(always)]
            pub(crate) fn from_raw(raw: RawGlobal) -> Self {
                Self { raw, element: PhantomData }
            }

            /// The `len` elements at `address`: a peer's memory, from a table of pointers.
            ///
            /// # Safety
            /// `address` must be readable (and, for a mutable view, writable) from this device
            /// for `len` elements, and aligned for `T`.
            #[inline(always)]
            #[track_caller]
            pub unsafe fn from_address(address: u64, len: usize) -> Self {
                Self::from_raw(RawGlobal::from_address(address, len * size_of::<T>()))
            }

            /// A view of nothing, for an argument that a launch does not use.
            #[inline(always)]
            pub fn null() -> Self {
                Self::from_raw(RawGlobal::null())
            }

            /// Whether this is the view of nothing.
            #[inline(always)]
            pub fn is_null(self) -> bool {
                self.raw.is_null()
            }

            /// The device address of the first element.
            #[inline(always)]
            pub fn address(self) -> u64 {
                self.raw.address()
            }

            /// The view from element `idx` on.
            #[inline(always)]
            #[track_caller]
            pub unsafe fn offset(self, idx: usize) -> Self {
                Self::from_raw(self.raw.offset_bytes(idx * size_of::<T>()))
            }

            /// The same memory as elements of another type.
            #[inline(always)]
            pub fn cast<U: AnyBitPattern>(self) -> $View<U> {
                $View::from_raw(self.raw)
            }

            /// Element `idx`.
            #[inline(always)]
            #[track_caller]
            pub unsafe fn load(self, idx: usize) -> T {
                self.raw.load::<T>(idx * size_of::<T>())
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
        }
    };
}

view!(Global);
view!(GlobalMut);

impl<T: AnyBitPattern> GlobalMut<T> {
    /// Writes element `idx`.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn store(self, idx: usize, value: T) {
        self.raw.store::<T>(idx * size_of::<T>(), value);
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

    /// The same memory, for reading.
    #[inline(always)]
    pub fn as_const(self) -> Global<T> {
        Global::from_raw(self.raw)
    }
}
