//! What one writes first: a kernel that adds up what a library has brought.

use cuda_std::prelude::*;

use super::super::SUM_THREADS;
use super::{add, id_of_lane, round};
use crate::dispatch::ExchangeParams;
use crate::dispatch::device::packets::{owner_of, ranks_of};

/// A block per token; `parts` holds what the peers sent, by rank.
#[kernel(threads = 128)]
pub unsafe fn combine_sum_baseline(
    partial: Global<u32>,  // [ep_size, num_max_tokens, row_units, 4]
    parts: Global<u32>,    // [ep_size, num_max_tokens, row_units, 4]
    topk_ids: Global<i32>, // [num_tokens, topk]
    out: GlobalMut<u32>,   // [num_tokens, row_units, 4]
    params: ExchangeParams,
) {
    let token = thread::block_idx_x();
    let owner = owner_of(id_of_lane(topk_ids, token, params.num_tokens, &params), &params);
    let ranks = ranks_of(owner, &params);
    let row_words = 4 * params.row_units as usize;
    let mut unit = thread::thread_idx_x();
    while unit < params.row_units {
        let mut sum = [0.0; 8];
        for rank in 0..params.ep_size {
            if ranks >> rank & 1 != 0 {
                let slot = rank as usize * params.num_max_tokens as usize + token as usize;
                let of_rank = if rank == params.ep_rank { partial } else { parts };
                add(&mut sum, of_rank.load_x4(slot * row_words + 4 * unit as usize));
            }
        }
        out.store_x4(token as usize * row_words + 4 * unit as usize, round(&sum));
        unit += SUM_THREADS;
    }
}
