//! Count, scan, scatter: a launch each.

use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

use crate::moe_permute::{BASELINE_THREADS, PermuteParams, SCAN_THREADS, SKIPPED};

/// Each pair counts itself.
#[kernel(threads = 256)]
pub unsafe fn moe_permute_count_baseline(
    topk_ids: Global<i32>, // [num_pairs]
    params: PermuteParams,
    expert_counts: GlobalMut<i32>, // [num_local_experts], 0 before
) {
    let pair = thread::index_1d();
    if pair < params.num_pairs {
        let expert = params.local_expert(topk_ids.load(pair as usize));
        if expert != SKIPPED {
            atomic::fetch_add_relaxed_gpu(expert_counts.cast(), expert as usize, 1);
        }
    }
}

/// One block adds up the rows of the experts.
#[kernel(threads = 512)]
pub unsafe fn moe_permute_scan_baseline(
    params: PermuteParams,
    expert_counts: Global<i32>,     // [num_local_experts]
    expert_offsets: GlobalMut<i32>, // [num_local_experts + 1]
) {
    let sums = shared::dynamic_shared_mem::<u32>();
    let t = thread::thread_idx_x();
    let is_expert = t < params.num_local_experts;
    let count = if is_expert { expert_counts.load(t as usize) as u32 } else { 0 };
    let mut sum = params.num_rows(count);
    sums.store(t as usize, sum);
    thread::sync_threads();
    let mut distance = 1;
    while distance < SCAN_THREADS {
        let before = if t >= distance { sums.load((t - distance) as usize) } else { 0 };
        thread::sync_threads();
        sum += before;
        sums.store(t as usize, sum);
        thread::sync_threads();
        distance *= 2;
    }
    if is_expert {
        expert_offsets.store(t as usize + 1, sum as i32);
    }
    if t == 0 {
        expert_offsets.store(0, 0);
    }
}

/// A block per expert walks over all pairs and ranks its own.
#[kernel(threads = 256)]
pub unsafe fn moe_permute_scatter_baseline(
    topk_ids: Global<i32>, // [num_pairs]
    params: PermuteParams,
    expert_offsets: Global<i32>, // [num_local_experts + 1]
    pair_rows: GlobalMut<i32>,   // [num_pairs], -1 before
    row_pairs: GlobalMut<i32>,   // [num_max_rows]
) {
    let warp_counts = shared::dynamic_shared_mem::<u32>();
    let (t, lane) = (thread::thread_idx_x(), warp::lane_id());
    let (warp, expert) = (t / WARP_SIZE, thread::block_idx_x());
    let mut row = expert_offsets.load(expert as usize) as u32;
    let end = expert_offsets.load(expert as usize + 1) as u32;
    let mut begin = 0;
    while begin < params.num_pairs {
        let pair = begin + t;
        let is_own =
            pair < params.num_pairs && params.local_expert(topk_ids.load(pair as usize)) == expert;
        let own = warp::warp_vote_ballot(FULL_MASK, is_own);
        if lane == 0 {
            warp_counts.store(warp as usize, own.count_ones());
        }
        thread::sync_threads();
        let mut rank = (own & ((1 << lane) - 1)).count_ones();
        let mut total = 0;
        for other in 0..BASELINE_THREADS / WARP_SIZE {
            let count = warp_counts.load(other as usize);
            rank += if other < warp { count } else { 0 };
            total += count;
        }
        if is_own {
            pair_rows.store(pair as usize, (row + rank) as i32);
            row_pairs.store((row + rank) as usize, pair as i32);
        }
        row += total;
        begin += BASELINE_THREADS;
        thread::sync_threads();
    }
    let mut padding = row + t;
    while padding < end {
        row_pairs.store(padding as usize, -1);
        padding += BASELINE_THREADS;
    }
}
