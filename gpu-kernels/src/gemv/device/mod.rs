//! The kernels: one stream of rows, and what becomes of their sums.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

mod products;

use cuda_std::bulk::Mbarrier;
use cuda_std::prelude::*;
use half::bf16;

use products::{Choice, ExpertsAdded, ExpertsGated, Gated, Rows};

use super::{
    GemvParams, HEAD_BYTES, MAX_NORMED_LEN, NUM_THREADS, NUM_WARPS, PIECE, STAGE_BYTES, SUMS_AT,
    WORD,
};
use crate::rms_norm::device::{block_sum, squares, weighted};

/// Words of a piece that a lane multiplies.
const LANE_WORDS: u32 = PIECE / WORD / warp::WARP_SIZE;
/// Stages that are on their way to a warp before the row is asked for: enough for memory to be busy, and so
/// few that the row does not wait long behind them.
const EARLY_STAGES: u32 = 2;
/// Words of a row that a thread has in registers: all of one that is normalised.
const THREAD_WORDS: usize = (MAX_NORMED_LEN / WORD / NUM_THREADS) as usize;

/// A thread's words of a row.
type Words = [[u32; 4]; THREAD_WORDS];

/// What is multiplied: units of two rows of weights each, in one or several segments of `k` elements.
trait Product: Copy {
    /// Units of the product.
    fn num_units(&self) -> u32;

    /// Segments of a unit: that many rows lie end to end in what they are multiplied with.
    fn num_segments(&self) -> u32 {
        1
    }

    /// Whether the kernels before this one take long enough that the whole ring is filled meanwhile, a
    /// few stages at a time: loads of other kernels come through between them.
    const HAS_TIME: bool = false;

    /// Whether the rows are known before the kernels before this one are done.
    fn is_known(&self, _unit: u32, _segment: u32) -> bool {
        true
    }

    /// First elements of both rows.
    unsafe fn rows(&self, unit: u32, segment: u32) -> [usize; 2];

    /// Where in the multiplied row a segment begins, and what its sums count.
    unsafe fn segment(&self, segment: u32) -> (u32, f32) {
        (segment, 1.0)
    }

    /// Stores what a unit's rows sum up to. One lane calls it.
    unsafe fn store(&self, unit: u32, sums: [f32; 2]);
}

/// A place in the sequence of a warp's pieces.
#[derive(Clone, Copy)]
struct Cursor {
    unit: u32,
    segment: u32,
    column: u32,
}

/// A place in the ring.
#[derive(Clone, Copy)]
struct Place {
    stage: u32,
    parity: u32,
}

/// A warp and its ring.
#[derive(Clone, Copy)]
struct Streamer<P> {
    product: P,
    weights: Global<bf16>,
    k: u32,
    num_stages: u32,
    barriers: Shared<u64>,
    ring: Shared<bf16>,
    row: Shared<bf16>,
}

impl<P: Product> Streamer<P> {
    /// The ring of this warp, for a multiplied row of `row_len` elements.
    #[inline(always)]
    unsafe fn new(product: P, weights: Global<bf16>, params: GemvParams, row_len: u32) -> Self {
        let GemvParams { k, num_stages, .. } = params;
        let memory = shared::dynamic_shared_mem::<u8>();
        let warp_idx = (thread::thread_idx_x() / warp::WARP_SIZE) as usize;
        let barriers = memory.cast::<u64>().offset(warp_idx * num_stages as usize);
        let row = memory.offset(HEAD_BYTES);
        let ring_bytes = num_stages as usize * STAGE_BYTES;
        let ring = row.offset(2 * row_len as usize + warp_idx * ring_bytes).cast();
        let streamer = Self { product, weights, k, num_stages, barriers, ring, row: row.cast() };
        if warp::lane_id() == 0 {
            let mut stage = 0;
            while stage < num_stages {
                streamer.full(stage).init(1);
                stage += 1;
            }
            bulk::fence_init();
        }
        streamer
    }

    #[inline(always)]
    unsafe fn full(&self, stage: u32) -> Mbarrier {
        Mbarrier::at(self.barriers.offset(stage as usize))
    }

    #[inline(always)]
    unsafe fn stage(&self, stage: u32) -> Shared<bf16> {
        self.ring.offset(stage as usize * STAGE_BYTES / 2)
    }

    /// The first unit of this warp: neighbours go to different SMs.
    #[inline(always)]
    fn start(&self) -> Cursor {
        let warp_idx = thread::thread_idx_x() / warp::WARP_SIZE;
        let unit = warp_idx * thread::grid_dim_x() + thread::block_idx_x();
        Cursor { unit, segment: 0, column: 0 }
    }

    #[inline(always)]
    fn is_done(&self, cursor: Cursor) -> bool {
        cursor.unit >= self.product.num_units()
    }

    #[inline(always)]
    fn advance(&self, cursor: &mut Cursor) {
        cursor.column += PIECE;
        if cursor.column < self.k {
            return;
        }
        cursor.column = 0;
        cursor.segment += 1;
        if cursor.segment == self.product.num_segments() {
            cursor.segment = 0;
            cursor.unit += thread::grid_dim_x() * NUM_WARPS;
        }
    }

    /// Starts the loads of a piece of both rows. The stage is free.
    #[inline(always)]
    unsafe fn load(&self, cursor: Cursor, stage: u32) {
        if warp::lane_id() != 0 {
            return;
        }
        let len = PIECE.min(self.k - cursor.column);
        let [first, second] = self.product.rows(cursor.unit, cursor.segment);
        let (place, full, column) = (self.stage(stage), self.full(stage), cursor.column as usize);
        full.arrive_expect_bytes(4 * len);
        bulk::load(place, self.weights.offset(first + column), 2 * len, full);
        let second_place = place.offset(PIECE as usize);
        bulk::load(second_place, self.weights.offset(second + column), 2 * len, full);
    }

    /// Both rows' sums over a segment, of this lane's elements.
    #[inline(always)]
    unsafe fn multiply(
        &self,
        row: Shared<bf16>,
        ahead: &mut Cursor,
        place: &mut Place,
    ) -> [f32; 2] {
        let mut sums = [[0.0; 2]; 2];
        let mut column = 0;
        while column < self.k {
            let num_words = PIECE.min(self.k - column) / WORD;
            let weights = self.stage(place.stage);
            self.full(place.stage).wait(place.parity);
            for i in 0..LANE_WORDS {
                let word = i * warp::WARP_SIZE + warp::lane_id();
                if word < num_words {
                    let at = (word * WORD) as usize;
                    let values = row.load_x4(column as usize + at);
                    let first = weights.load_x4(at);
                    let second = weights.load_x4(PIECE as usize + at);
                    for j in 0..4 {
                        let value = bf16::unpack(values[j]);
                        let (first, second) = (bf16::unpack(first[j]), bf16::unpack(second[j]));
                        for l in 0..2 {
                            sums[0][l] += first[l] * value[l];
                            sums[1][l] += second[l] * value[l];
                        }
                    }
                }
            }
            warp::sync_warp(warp::FULL_MASK);
            if !self.is_done(*ahead) {
                self.load(*ahead, place.stage);
                self.advance(ahead);
            }
            place.stage += 1;
            if place.stage == self.num_stages {
                *place = Place { stage: 0, parity: place.parity ^ 1 };
            }
            column += PIECE;
        }
        [sums[0][0] + sums[0][1], sums[1][0] + sums[1][1]]
    }

    /// The block's share, with a row that `vector` stages.
    #[inline(always)]
    unsafe fn run(&self, vector: Vector, row_len: u32) {
        thread::sync_threads();
        grid::launch_dependents();
        let mut ahead = self.start();
        let mut num_loaded = 0;
        let most = if P::HAS_TIME { self.num_stages } else { EARLY_STAGES.min(self.num_stages) };
        while num_loaded < most
            && !self.is_done(ahead)
            && self.product.is_known(ahead.unit, ahead.segment)
        {
            if num_loaded >= EARLY_STAGES {
                self.full(num_loaded - EARLY_STAGES).wait(0);
            }
            self.load(ahead, num_loaded);
            self.advance(&mut ahead);
            num_loaded += 1;
        }
        let norm_weights = vector.norm_weights(row_len);
        grid::wait_prerequisites();
        // Asked for before the rest of the ring, which would keep it waiting.
        let words = vector.load(row_len);
        while num_loaded < self.num_stages && !self.is_done(ahead) {
            self.load(ahead, num_loaded);
            self.advance(&mut ahead);
            num_loaded += 1;
        }
        vector.stage(self.row, row_len, words, norm_weights);
        let mut place = Place { stage: 0, parity: 0 };
        let mut unit = self.start().unit;
        while unit < self.product.num_units() {
            let mut sums = [0.0; 2];
            let mut segment = 0;
            while segment < self.product.num_segments() {
                let (row_idx, weight) = self.product.segment(segment);
                let row = self.row.offset((row_idx * self.k) as usize);
                let of_segment = self.multiply(row, &mut ahead, &mut place);
                sums = [sums[0] + weight * of_segment[0], sums[1] + weight * of_segment[1]];
                segment += 1;
            }
            let first = warp::reduce_sum(sums[0], warp::WARP_SIZE);
            let second = warp::reduce_sum(sums[1], warp::WARP_SIZE);
            if warp::lane_id() == 0 {
                self.product.store(unit, [first, second]);
            }
            unit += thread::grid_dim_x() * NUM_WARPS;
        }
    }
}

/// The row that weights are multiplied with.
#[derive(Clone, Copy)]
struct Vector {
    x: Global<bf16>,
    /// Null where `x` is taken as it is.
    norm_weight: Global<bf16>,
    eps: f32,
}

impl Vector {
    #[inline(always)]
    fn plain(x: Global<bf16>) -> Self {
        Self { x, norm_weight: Global::null(), eps: 0.0 }
    }

    /// This thread's first element of its word `i`.
    #[inline(always)]
    fn column(i: usize) -> u32 {
        (i as u32 * NUM_THREADS + thread::thread_idx_x()) * WORD
    }

    /// This thread's words of the norm's weights, which no kernel writes.
    #[inline(always)]
    unsafe fn norm_weights(&self, len: u32) -> Words {
        let mut weights = [[0; 4]; THREAD_WORDS];
        if !self.norm_weight.is_null() {
            for i in 0..THREAD_WORDS {
                if Self::column(i) < len {
                    weights[i] = self.norm_weight.load_x4(Self::column(i) as usize);
                }
            }
        }
        weights
    }

    /// This thread's first words of the row.
    #[inline(always)]
    unsafe fn load(&self, len: u32) -> Words {
        let mut words = [[0; 4]; THREAD_WORDS];
        for i in 0..THREAD_WORDS {
            if Self::column(i) < len {
                words[i] = self.x.load_x4(Self::column(i) as usize);
            }
        }
        words
    }

    /// Puts the row into shared memory, for all threads.
    #[inline(always)]
    unsafe fn stage(&self, row: Shared<bf16>, len: u32, words: Words, norm_weights: Words) {
        if self.norm_weight.is_null() {
            for i in 0..THREAD_WORDS {
                if Self::column(i) < len {
                    row.store_x4(Self::column(i) as usize, words[i]);
                }
            }
            let mut column = Self::column(THREAD_WORDS);
            while column < len {
                row.store_x4(column as usize, self.x.load_x4(column as usize));
                column += NUM_THREADS * WORD;
            }
        } else {
            self.stage_normed(row, len, words, norm_weights);
        }
        thread::sync_threads();
    }

    #[inline(always)]
    unsafe fn stage_normed(&self, row: Shared<bf16>, len: u32, words: Words, norm_weights: Words) {
        let mut sum = 0.0;
        for i in 0..THREAD_WORDS {
            sum += squares(words[i]);
        }
        let sums = shared::dynamic_shared_mem::<u8>().offset(SUMS_AT).cast();
        let mean = block_sum(sums, sum) / len as f32;
        let scale = float::reciprocal_sqrt(mean + self.eps);
        for i in 0..THREAD_WORDS {
            let column = Self::column(i);
            if column < len {
                row.store_x4(column as usize, weighted(words[i], scale, norm_weights[i]));
            }
        }
    }
}

/// `out = b y`.
#[kernel(target = "sm_90a", threads = 256, min_blocks = 1, early = true)]
pub unsafe fn gemv_rows_bf16(
    x: Global<bf16>,           // [k]
    norm_weight: Global<bf16>, // [k], or null
    b: Global<bf16>,           // [n, k]
    params: GemvParams,
    out: GlobalMut<bf16>, // [n]
) {
    let GemvParams { n, k, eps, .. } = params;
    let product = Rows { n, k, out, adds: false };
    Streamer::new(product, b, params, k).run(Vector { x, norm_weight, eps }, k);
}

/// `h = silu(g y) * (u y)`, where `b` is `g`, then `u`.
#[kernel(target = "sm_90a", threads = 256, min_blocks = 1, early = true)]
pub unsafe fn gemv_gated_bf16(
    x: Global<bf16>,           // [k]
    norm_weight: Global<bf16>, // [k], or null
    b: Global<bf16>,           // [2 n, k]
    params: GemvParams,
    h: GlobalMut<bf16>, // [n]
) {
    let GemvParams { n, k, eps, .. } = params;
    let product = Gated { n, k, h };
    Streamer::new(product, b, params, k).run(Vector { x, norm_weight, eps }, k);
}

/// `x += b h`.
#[kernel(target = "sm_90a", threads = 256, min_blocks = 1, early = true)]
pub unsafe fn gemv_added_bf16(
    h: Global<bf16>, // [k]
    b: Global<bf16>, // [n, k]
    params: GemvParams,
    x: GlobalMut<bf16>, // [n]
) {
    let GemvParams { n, k, .. } = params;
    let product = Rows { n, k, out: x, adds: true };
    Streamer::new(product, b, params, k).run(Vector::plain(h), k);
}

/// `h[s] = silu(g y) * (u y)` for each slot, where `b` is each expert's `g`, then its `u`.
#[kernel(target = "sm_90a", threads = 256, min_blocks = 1, early = true)]
pub unsafe fn gemv_experts_gated_bf16(
    x: Global<bf16>,           // [k]
    norm_weight: Global<bf16>, // [k], or null
    b: Global<bf16>,           // [num_experts + num_shared, 2 n, k]
    topk_ids: Global<i32>,     // [top_k + num_shared]
    params: GemvParams,
    h: GlobalMut<bf16>, // [top_k + num_shared, n]
) {
    let GemvParams { k, eps, .. } = params;
    let choice = Choice { topk_ids, topk_weights: Global::null(), params };
    let product = ExpertsGated { choice, h };
    Streamer::new(product, b, params, k).run(Vector { x, norm_weight, eps }, k);
}

/// `x += sum of topk_weights[s] (b h[s])` over the slots, with each slot's expert's `b`.
#[kernel(target = "sm_90a", threads = 256, min_blocks = 1, early = true)]
pub unsafe fn gemv_experts_added_bf16(
    h: Global<bf16>,           // [top_k + num_shared, k]
    b: Global<bf16>,           // [num_experts + num_shared, n, k]
    topk_ids: Global<i32>,     // [top_k + num_shared]
    topk_weights: Global<f32>, // [top_k + num_shared]
    params: GemvParams,
    x: GlobalMut<bf16>, // [n]
) {
    let row_len = params.num_slots() * params.k;
    let choice = Choice { topk_ids, topk_weights, params };
    let product = ExpertsAdded { choice, x };
    Streamer::new(product, b, params, row_len).run(Vector::plain(h), row_len);
}
