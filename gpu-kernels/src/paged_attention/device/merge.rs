//! The parts of pairs that the plan cut, combined.

use cuda_std::prelude::*;

use crate::paged_attention::{DecodeParams, MergeItem, NUM_THREADS};

/// A block for each cut pair: combines its parts in their order.
#[inline(always)]
pub(super) unsafe fn merge<T: HalfFloat, const D: usize>(
    params: DecodeParams,
    merge_items: Global<u32>, // [merges, MergeItem::WORDS]
    partial_out: Global<f32>, // [partials, group_size, D]
    partial_lse: Global<f32>, // [partials, group_size]
    out: GlobalMut<T>,        // [batch, num_qo_heads, D]
    lse: GlobalMut<f32>,      // [batch, num_qo_heads]
) {
    let item = merge_items.offset(thread::block_idx_x() as usize * MergeItem::WORDS);
    let (request, kv_head) = (item.load(0), item.load(1));
    let (partial_begin, partial_end) = (item.load(2), item.load(3));
    let pairs_per_head = D as u32 / 2;
    let mut pair = thread::thread_idx_x();
    while pair < params.group_size * pairs_per_head {
        let (head, d) = (pair / pairs_per_head, pair % pairs_per_head * 2);
        let (mut maximum, mut sum, mut output) = (f32::NEG_INFINITY, 0.0, [0.0f32; 2]);
        let mut partial = partial_begin;
        while partial < partial_end {
            let row = (partial * params.group_size + head) as usize;
            let part_lse = partial_lse.load(row);
            let [low, high] = partial_out.load_x2(row * D + d as usize);
            let new_maximum = maximum.max(part_lse);
            let (rescale, weight) =
                (float::exp2(maximum - new_maximum), float::exp2(part_lse - new_maximum));
            sum = sum * rescale + weight;
            output[0] = output[0] * rescale + weight * f32::from_bits(low);
            output[1] = output[1] * rescale + weight * f32::from_bits(high);
            maximum = new_maximum;
            partial += 1;
        }
        let normalize = float::reciprocal(sum);
        let row = (request * params.num_qo_heads + kv_head * params.group_size + head) as usize;
        out.offset(row * D + d as usize)
            .cast::<u32>()
            .store(0, T::pack(output[0] * normalize, output[1] * normalize));
        if d == 0 {
            lse.store(row, maximum + float::log2(sum));
        }
        pair += NUM_THREADS;
    }
}
