//! Where results are written, and in what.

use bytemuck::AnyBitPattern;
use cuda_std::prelude::*;
use half::{bf16, f16};

use super::merge::Parts;
use crate::paged_attention::{AttentionParams, WorkItem};

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

/// Where the split kernel's results go.
#[derive(Clone, Copy)]
pub(crate) struct DecodeOutput<O> {
    pub(crate) out: GlobalMut<O>,   // [batch, num_qo_heads, D]
    pub(crate) lse: GlobalMut<f32>, // [batch, num_qo_heads]
    pub(crate) parts: Parts,
}

impl<O: OutputElement> DecodeOutput<O> {
    /// Writes dimensions `d` and the next of a head of an item's result.
    #[inline(always)]
    pub(super) unsafe fn store<const D: usize>(
        &self,
        params: &AttentionParams,
        item: &WorkItem,
        head: u32,
        d: u32,
        output: [f32; 2],
        log_sum: f32,
    ) {
        let first_row = item.request * params.num_qo_heads + item.kv_head * params.group_size;
        let row = (first_row + head) as usize;
        O::store_pair(self.out, row * D + d as usize, output);
        if d == 0 {
            self.lse.store(row, log_sum);
        }
    }
}
