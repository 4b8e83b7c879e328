//! What one writes first: a buffer for each destination, for a library to send.

use cuda_std::prelude::*;

use super::super::{ExchangeParams, PACK_THREADS};
use super::packets::owner_of;

/// A block for each (token, rank): the row, if it goes there, and the routing of its slot. What
/// this rank keeps goes to where it is received.
#[kernel(threads = 128)]
pub unsafe fn dispatch_pack_baseline(
    x: Global<u32>,                    // [num_tokens, row_units, 4]
    topk_ids: Global<i32>,             // [num_tokens, topk]
    topk_weights: Global<f32>,         // [num_tokens, topk]
    send_x: GlobalMut<u32>,            // [ep_size, num_max_tokens, row_units, 4]
    send_topk_ids: GlobalMut<i32>,     // [ep_size, num_max_tokens, topk]
    send_topk_weights: GlobalMut<f32>, // [ep_size, num_max_tokens, topk]
    recv_x: GlobalMut<u32>,            // [ep_size, num_max_tokens, row_units, 4]
    recv_topk_ids: GlobalMut<i32>,     // [ep_size, num_max_tokens, topk]
    recv_topk_weights: GlobalMut<f32>, // [ep_size, num_max_tokens, topk]
    params: ExchangeParams,
) {
    let (token, rank) = (thread::block_idx_x(), thread::block_idx_y());
    let lane = warp::lane_id();
    let keeps = rank == params.ep_rank;
    let row_words = 4 * params.row_units as usize;
    let slot = rank as usize * params.num_max_tokens as usize + token as usize;

    let has_entry = token < params.num_tokens && lane < params.topk;
    let entry = token as usize * params.topk as usize + lane as usize;
    let id = if has_entry { topk_ids.load(entry) } else { -1 };
    let is_theirs = owner_of(id, &params) == rank;
    let goes = warp::warp_vote_any(warp::FULL_MASK, is_theirs);
    if thread::thread_idx_x() < params.topk {
        let ids = if keeps { recv_topk_ids } else { send_topk_ids };
        let weights = if keeps { recv_topk_weights } else { send_topk_weights };
        let local_id = if is_theirs { id - (rank * params.experts_per_rank) as i32 } else { -1 };
        let weight = if has_entry { topk_weights.load(entry) } else { 0.0 };
        let place = slot * params.topk as usize + lane as usize;
        ids.store(place, local_id);
        weights.store(place, weight);
    }
    if goes {
        let destination = if keeps { recv_x } else { send_x };
        let (from, to) =
            (x.offset(token as usize * row_words), destination.offset(slot * row_words));
        let mut unit = thread::thread_idx_x();
        while unit < params.row_units {
            to.store_x4(4 * unit as usize, from.load_x4(4 * unit as usize));
            unit += PACK_THREADS;
        }
    }
}
