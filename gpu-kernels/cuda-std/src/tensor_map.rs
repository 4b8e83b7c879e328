//! Tensor maps: tensors in device memory that the copy engine moves by tiles (sm_90).
//!
//! A map says how a tensor of 2 to 5 dimensions lies in memory, and which box of it is a tile. One
//! thread moves a tile with one instruction, [`bulk::load_tile`](crate::bulk::load_tile) or
//! [`bulk::store_tile`](crate::bulk::store_tile), by the coordinates of the box's first element. In
//! shared memory the box is dense, innermost dimension first. Elements outside of the tensor,
//! before its first as after its last, are read as zeros and not written.
//!
//! Dimensions are numbered from the innermost: sizes, strides, tiles and coordinates all begin with
//! the dimension whose elements lie side by side.
//!
//! A map is made on the host, from a view and a `Tiling`, and passed to a kernel by value:
//!
//! ```ignore
//! #[kernel(threads = 128, target = "sm_90a")]
//! pub unsafe fn copy_tile(x: TensorMap<f32, 2>, y: GlobalMut<f32>) { … }
//! ```
//!
//! [`TensorMaps`] are several maps in one parameter, of which the kernel picks at run time.
//! `#[kernel]` knows both by their names, so a parameter's type is written so and not as an alias.
//! What a map covers stays allocated for the launch, as what a view covers does.
//!
//! # Swizzle
//! With `Swizzle::Bytes128` a row of the box is 128 bytes, and its 16-byte piece `i` lies in place
//! of piece `i ^ (row % 8)`, where `row` counts the 128-byte rows of shared memory from address 0.
//! In a tile that is aligned to 1024 bytes those are the tile's own rows, and the layout is that of
//! [`wgmma::SwizzledTile`](crate::wgmma::SwizzledTile).

use core::marker::PhantomData;

use bytemuck::AnyBitPattern;

use crate::arch;

#[cfg(not(target_arch = "nvptx64"))]
pub use crate::cpu::tensor_map::{L2Promotion, Swizzle, TensorElement, Tiling, TilingError};

/// A tensor of `RANK` dimensions in device memory, and the tile in which it moves. A kernel
/// parameter of 128 bytes.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct TensorMap<T, const RANK: usize> {
    pub(crate) raw: arch::tensor_map::RawTensorMap<RANK>,
    element: PhantomData<*const T>,
}

/// Several tensor maps, of which a kernel picks at run time. A kernel parameter of `128 N` bytes.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct TensorMaps<T, const RANK: usize, const N: usize> {
    raw: arch::tensor_map::RawTensorMaps<RANK, N>,
    element: PhantomData<*const T>,
}

// SAFETY: a map is an address with a description; what may be done with it, and from where, is the
// business of the unsafe functions that move tiles.
unsafe impl<T, const RANK: usize> Send for TensorMap<T, RANK> {}
// SAFETY: as above.
unsafe impl<T, const RANK: usize> Sync for TensorMap<T, RANK> {}
// SAFETY: as above.
unsafe impl<T, const RANK: usize, const N: usize> Send for TensorMaps<T, RANK, N> {}
// SAFETY: as above.
unsafe impl<T, const RANK: usize, const N: usize> Sync for TensorMaps<T, RANK, N> {}

impl<T: AnyBitPattern, const RANK: usize> TensorMap<T, RANK> {
    #[inline(always)]
    pub(crate) fn from_raw(raw: arch::tensor_map::RawTensorMap<RANK>) -> Self {
        const { assert!(RANK >= 2 && RANK <= 5, "a tensor map has 2 to 5 dimensions") }
        Self { raw, element: PhantomData }
    }

    /// Fetches the map itself ahead of its first use. One thread of a block calls it, early.
    #[inline(always)]
    pub unsafe fn prefetch(&self) {
        arch::tensor_map::prefetch(&self.raw);
    }
}

impl<T: AnyBitPattern, const RANK: usize, const N: usize> TensorMaps<T, RANK, N> {
    /// Map `idx`.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn get(&self, idx: u32) -> TensorMap<T, RANK> {
        TensorMap::from_raw(self.raw.get(idx))
    }
}

#[cfg(target_arch = "nvptx64")]
mod parameter {
    use super::{AnyBitPattern, PhantomData, TensorMap, TensorMaps, arch};

    /// What `#[kernel]` puts in place of a map in the signature of the entry: the bytes that the
    /// driver passes, which stay where they are.
    #[doc(hidden)]
    pub trait Parameter {
        /// As many bytes as the map, aligned to 16; `cuda_builder` raises that to 64.
        type Bytes;

        /// The map that is parameter `INDEX` of the entry that calls this.
        unsafe fn at<const INDEX: usize>() -> Self;
    }

    impl<T: AnyBitPattern, const RANK: usize> Parameter for TensorMap<T, RANK> {
        type Bytes = [[u128; 8]; 1];

        #[inline(always)]
        unsafe fn at<const INDEX: usize>() -> Self {
            Self::from_raw(arch::tensor_map::RawTensorMap::parameter::<INDEX>())
        }
    }

    impl<T, const RANK: usize, const N: usize> Parameter for TensorMaps<T, RANK, N> {
        type Bytes = [[u128; 8]; N];

        #[inline(always)]
        unsafe fn at<const INDEX: usize>() -> Self {
            let raw = arch::tensor_map::RawTensorMaps::parameter::<INDEX>();
            Self { raw, element: PhantomData }
        }
    }
}

#[cfg(target_arch = "nvptx64")]
pub use parameter::Parameter;

#[cfg(not(target_arch = "nvptx64"))]
mod host {
    use super::{PhantomData, TensorElement, TensorMap, TensorMaps, Tiling, TilingError};
    use crate::arch::tensor_map::{CudaTensorMap, RawTensorMap, RawTensorMaps};
    use crate::global::Global;

    impl<T: TensorElement, const RANK: usize> TensorMap<T, RANK> {
        /// The map of a tensor that begins with the first element of `view`, for a launch on the
        /// CPU; [`for_cuda_launch`](Self::for_cuda_launch) makes it one for the GPU.
        ///
        /// # Errors
        /// A tiling that the copy engine does not take, or that reaches outside of the view.
        pub fn new(view: Global<T>, tiling: &Tiling<RANK>) -> Result<Self, TilingError> {
            tiling.check::<T>(view.address(), view.raw.num_bytes())?;
            Ok(Self::from_raw(RawTensorMap::new(view.raw, tiling, size_of::<T>())))
        }

        /// A map of nothing, in place of one that a launch does not use.
        pub fn null() -> Self {
            Self::from_raw(RawTensorMap::null())
        }

        /// The same map with what `cuTensorMapEncodeTiled` made of it.
        pub fn for_cuda_launch(mut self, encoded: CudaTensorMap) -> Self {
            self.raw.encoded = encoded;
            self
        }

        /// The same map of elements of another type of the same size.
        pub fn cast<U: TensorElement>(self) -> TensorMap<U, RANK> {
            const { assert!(size_of::<T>() == size_of::<U>(), "elements of the same size") }
            TensorMap::from_raw(self.raw)
        }
    }

    impl<T: TensorElement, const RANK: usize, const N: usize> TensorMaps<T, RANK, N> {
        /// These maps, at most `N`. To use a map that is not there is a fault on the CPU.
        ///
        /// # Panics
        /// If there are more.
        pub fn new(maps: &[TensorMap<T, RANK>]) -> Self {
            assert!(maps.len() <= N, "{} tensor maps where {N} have room", maps.len());
            let raw = RawTensorMaps::new(maps.iter().map(|map| map.raw));
            Self { raw, element: PhantomData }
        }
    }
}
