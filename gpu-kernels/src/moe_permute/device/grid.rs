//! One launch whose blocks meet once.

use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

use crate::moe_permute::{NUM_THREADS, NUM_WARPS, PermuteParams, SKIPPED};

/// Counts of other warps, or blocks, that a thread has on their way at once.
const COUNTS_IN_FLIGHT: u32 = 8;

macro_rules! grid_entries {
    ($($(#[$doc:meta])* $name:ident: $PAIRS:literal;)*) => {$(
        $(#[$doc])*
        #[kernel(threads = 1024)]
        pub unsafe fn $name(
            topk_ids: Global<i32>,          // [num_pairs]
            params: PermuteParams,
            block_counts: GlobalMut<u32>,   // [blocks, num_local_experts]
            arrived: GlobalMut<u32>,        // [2], 0 before and after
            expert_counts: GlobalMut<i32>,  // [num_local_experts]
            expert_offsets: GlobalMut<i32>, // [num_local_experts + 1]
            pair_rows: GlobalMut<i32>,      // [num_pairs]
            row_pairs: GlobalMut<i32>,      // [num_max_rows]
        ) {
            let pairs = Pairs::<$PAIRS>::load(topk_ids, &params);
            let block = Block::new(params);
            let ranks = block.rank(&pairs);
            block.meet(block_counts, arrived);
            block.place_experts(block_counts, expert_counts, expert_offsets);
            block.write(&pairs, &ranks, pair_rows, row_pairs);
            leave(arrived);
        }
    )*};
}

grid_entries! {
    /// The whole permutation, a pair a thread.
    moe_permute_sort_grid_x1: 1;
    /// The whole permutation, four pairs a thread.
    moe_permute_sort_grid_x4: 4;
}

/// Pairs of a thread; those of a warp are consecutive, and each of its reads takes 32.
struct Pairs<const N: usize> {
    first: u32,
    experts: [u32; N],
}

impl<const N: usize> Pairs<N> {
    #[inline(always)]
    unsafe fn load(topk_ids: Global<i32>, params: &PermuteParams) -> Self {
        let t = thread::thread_idx_x();
        let first_of_warp = (thread::block_idx_x() * NUM_WARPS + t / WARP_SIZE) * WARP_SIZE;
        let first = first_of_warp * N as u32 + warp::lane_id();
        let mut experts = [SKIPPED; N];
        for i in 0..N {
            let pair = first + i as u32 * WARP_SIZE;
            if pair < params.num_pairs {
                experts[i] = params.local_expert(topk_ids.load(pair as usize));
            }
        }
        Self { first, experts }
    }
}

/// A block's shared memory, and what all its parts need to know.
#[derive(Clone, Copy)]
struct Block {
    params: PermuteParams,
    t: u32,
    columns: u32,
    warp_counts: Shared<u16>, // [NUM_WARPS, columns], then pairs before, within the block
    before: Shared<u32>,      // [columns], pairs of earlier blocks
    totals: Shared<u32>,      // [columns], pairs of all blocks
    offsets: Shared<u32>,     // [columns], first row of an expert
    warp_sums: Shared<u32>,   // [NUM_WARPS]
}

impl Block {
    /// Everything that is added to is 0.
    #[inline(always)]
    unsafe fn new(params: PermuteParams) -> Self {
        let (t, columns) = (thread::thread_idx_x(), params.num_columns());
        let counts = shared::dynamic_shared_mem::<u16>();
        let words = counts.offset((NUM_WARPS * columns) as usize).cast::<u32>();
        let zeroed_words = NUM_WARPS * columns / 2 + 2 * columns;
        let mut word = 4 * t;
        while word < zeroed_words {
            counts.cast::<u32>().store_x4(word as usize, [0; 4]);
            word += 4 * NUM_THREADS;
        }
        thread::sync_threads();
        Self {
            params,
            t,
            columns,
            warp_counts: counts,
            before: words,
            totals: words.offset(columns as usize),
            offsets: words.offset(2 * columns as usize),
            warp_sums: words.offset(3 * columns as usize),
        }
    }

    #[inline(always)]
    unsafe fn counts_of_warp(&self, warp: u32) -> Shared<u16> {
        self.warp_counts.offset((warp * self.columns) as usize)
    }

    /// How many pairs of the same expert this thread's warp has before each of its own.
    #[inline(always)]
    unsafe fn rank<const N: usize>(&self, pairs: &Pairs<N>) -> [u32; N] {
        let counts = self.counts_of_warp(self.t / WARP_SIZE);
        let lower_lanes = (1 << warp::lane_id()) - 1;
        let mut ranks = [0; N];
        for i in 0..N {
            let expert = pairs.experts[i];
            let same = warp::warp_match_any(FULL_MASK, expert);
            let rank = (same & lower_lanes).count_ones();
            let column = if expert == SKIPPED { 0 } else { expert as usize };
            let counted = u32::from(counts.load(column));
            ranks[i] = counted + rank;
            warp::sync_warp(FULL_MASK);
            if expert != SKIPPED && rank == 0 {
                counts.store(column, (counted + same.count_ones()) as u16);
            }
            warp::sync_warp(FULL_MASK);
        }
        ranks
    }

    /// Makes of the warps' counts what lies before each of them, publishes their sums, and waits
    /// for those of all blocks.
    #[inline(always)]
    unsafe fn meet(
        &self,
        block_counts: GlobalMut<u32>, // [blocks, num_local_experts]
        arrived: GlobalMut<u32>,      // [2]
    ) {
        thread::sync_threads();
        if self.t < self.params.num_local_experts {
            let (mut sum, mut begin) = (0, 0);
            while begin < NUM_WARPS {
                let mut counts = [0; COUNTS_IN_FLIGHT as usize];
                for i in 0..COUNTS_IN_FLIGHT {
                    counts[i as usize] = self.counts_of_warp(begin + i).load(self.t as usize);
                }
                for i in 0..COUNTS_IN_FLIGHT {
                    self.counts_of_warp(begin + i).store(self.t as usize, sum);
                    sum += counts[i as usize];
                }
                begin += COUNTS_IN_FLIGHT;
            }
            let place = thread::block_idx_x() * self.params.num_local_experts + self.t;
            block_counts.store(place as usize, u32::from(sum));
        }
        thread::sync_threads();
        if thread::grid_dim_x() > 1 {
            if self.t == 0 {
                atomic::fetch_add_acq_rel_gpu(arrived, 0, 1);
                while atomic::load_acquire_gpu(arrived.as_const(), 0) < thread::grid_dim_x() {
                    thread::spin_pause();
                }
            }
            thread::sync_threads();
        }
    }

    /// Adds up the blocks' counts, and the rows of the experts.
    #[inline(always)]
    unsafe fn place_experts(
        &self,
        block_counts: GlobalMut<u32>,   // [blocks, num_local_experts]
        expert_counts: GlobalMut<i32>,  // [num_local_experts]
        expert_offsets: GlobalMut<i32>, // [num_local_experts + 1]
    ) {
        let num_experts = self.params.num_local_experts;
        let (expert, part) = (self.t % self.columns, self.t / self.columns);
        let num_parts = NUM_THREADS / self.columns;
        if expert < num_experts {
            let (mut before, mut total, mut begin) = (0, 0, part);
            while begin < thread::grid_dim_x() {
                let mut counts = [0; COUNTS_IN_FLIGHT as usize];
                for i in 0..COUNTS_IN_FLIGHT {
                    let block = begin + i * num_parts;
                    if block < thread::grid_dim_x() {
                        counts[i as usize] =
                            block_counts.load((block * num_experts + expert) as usize);
                    }
                }
                for i in 0..COUNTS_IN_FLIGHT {
                    let is_before = begin + i * num_parts < thread::block_idx_x();
                    before += if is_before { counts[i as usize] } else { 0 };
                    total += counts[i as usize];
                }
                begin += COUNTS_IN_FLIGHT * num_parts;
            }
            atomic::fetch_add_shared(self.before, expert as usize, before);
            atomic::fetch_add_shared(self.totals, expert as usize, total);
        }
        thread::sync_threads();
        let is_expert = self.t < num_experts;
        let count = if is_expert { self.totals.load(self.t as usize) } else { 0 };
        let num_rows = self.params.num_rows(count);
        let end = self.sum_up_to_here(num_rows);
        if is_expert {
            self.offsets.store(self.t as usize, end - num_rows);
            if thread::block_idx_x() == 0 {
                expert_counts.store(self.t as usize, count as i32);
                expert_offsets.store(self.t as usize + 1, end as i32);
                if self.t == 0 {
                    expert_offsets.store(0, 0);
                }
            }
        }
        thread::sync_threads();
    }

    /// Sum of the values of this thread and those before it.
    #[inline(always)]
    unsafe fn sum_up_to_here(&self, value: u32) -> u32 {
        let (lane, warp) = (warp::lane_id(), self.t / WARP_SIZE);
        let of_warp = sum_over_lower_lanes(value);
        if lane == WARP_SIZE - 1 {
            self.warp_sums.store(warp as usize, of_warp);
        }
        thread::sync_threads();
        let sums = sum_over_lower_lanes(self.warp_sums.load(lane as usize));
        let (before, _) =
            warp::warp_shuffle_idx(FULL_MASK, sums, warp.saturating_sub(1), WARP_SIZE);
        if warp == 0 { of_warp } else { before + of_warp }
    }

    /// Writes the rows of this block's pairs, and its share of the rows without one.
    #[inline(always)]
    unsafe fn write<const N: usize>(
        &self,
        pairs: &Pairs<N>,
        ranks: &[u32; N],
        pair_rows: GlobalMut<i32>, // [num_pairs]
        row_pairs: GlobalMut<i32>, // [num_max_rows]
    ) {
        let counts = self.counts_of_warp(self.t / WARP_SIZE);
        for i in 0..N {
            let (pair, expert) = (pairs.first + i as u32 * WARP_SIZE, pairs.experts[i]);
            let mut row = -1;
            if expert != SKIPPED {
                let expert = expert as usize;
                let first = self.offsets.load(expert) + self.before.load(expert);
                row = (first + u32::from(counts.load(expert)) + ranks[i]) as i32;
                row_pairs.store(row as usize, pair as i32);
            }
            if pair < self.params.num_pairs {
                pair_rows.store(pair as usize, row);
            }
        }
        if self.params.row_alignment > 1 {
            let mut expert = thread::block_idx_x() * NUM_WARPS + self.t / WARP_SIZE;
            while expert < self.params.num_local_experts {
                let count = self.totals.load(expert as usize);
                let mut padding = count + warp::lane_id();
                while padding < self.params.num_rows(count) {
                    let row = self.offsets.load(expert as usize) + padding;
                    row_pairs.store(row as usize, -1);
                    padding += WARP_SIZE;
                }
                expert += thread::grid_dim_x() * NUM_WARPS;
            }
        }
    }
}

/// Sum of the values of this lane and those below.
#[inline(always)]
unsafe fn sum_over_lower_lanes(mut value: u32) -> u32 {
    let mut distance = 1;
    while distance < WARP_SIZE {
        let (below, is_lane) = warp::warp_shuffle_up(FULL_MASK, value, distance, WARP_SIZE);
        value += if is_lane { below } else { 0 };
        distance *= 2;
    }
    value
}

/// Makes the counters ready for the next launch, once all blocks have met.
#[inline(always)]
unsafe fn leave(arrived: GlobalMut<u32>) {
    if thread::thread_idx_x() == 0 && thread::grid_dim_x() > 1 {
        let num_left = atomic::fetch_add_relaxed_gpu(arrived, 1, 1);
        if num_left + 1 == thread::grid_dim_x() {
            atomic::store_relaxed_gpu(arrived, 0, 0);
            atomic::store_relaxed_gpu(arrived, 1, 0);
        }
    }
}
