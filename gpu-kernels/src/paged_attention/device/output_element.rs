//! In what results are written.

use bytemuck::AnyBitPattern;
use cuda_std::prelude::*;
use half::{bf16, f16};

/// An element type of `out`: that of the queries, or f32 for a part that is yet to be merged.
pub(crate) trait OutputElement: AnyBitPattern {
    /// Writes element `idx`, which is even, and the next.
    unsafe fn store_pair(out: GlobalMut<Self>, idx: usize, pair: [f32; 2]);
}

macro_rules! halves {
    ($($T:ty),*) => {$(
        impl OutputElement for $T {
            #[inline(always)]
            unsafe fn store_pair(out: GlobalMut<Self>, idx: usize, [low, high]: [f32; 2]) {
                out.offset(idx).cast::<u32>().store(0, <$T>::pack(low, high));
            }
        }
    )*};
}

halves!(bf16, f16);

impl OutputElement for f32 {
    #[inline(always)]
    unsafe fn store_pair(out: GlobalMut<Self>, idx: usize, pair: [f32; 2]) {
        out.store_x2(idx, pair.map(f32::to_bits));
    }
}
