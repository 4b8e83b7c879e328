//! What the products of few tokens have in common: weights that stream through a ring of stages, and
//! two warpgroups that multiply them.
//!
//! A tile is `ROWS` rows of weights, 128 or 64, by some tokens. With 128 each warpgroup takes half of
//! the weights and all tokens, with 64 all weights and half of the tokens. Accumulators hold `C^T`, each
//! warp its own 16 rows of weights; they go to C as they lie, an 8 x 8 matrix at a time transposed
//! between registers. So warps meet nowhere but at the ring.

use cuda_std::async_copy::CachePolicy;
use cuda_std::bulk::Mbarrier;
use cuda_std::prelude::*;
use cuda_std::wgmma::SwizzledTile;
use half::bf16;

use super::pipeline::ROWS as WARPGROUP_ROWS;
use crate::gemm::schedule::ROW_STEP;
use crate::gemm::stream::{BARRIERS_BYTES, NUM_WARPS, WEIGHT_ROWS, stage_bytes};
use crate::gemm::tma::STAGE_COLUMNS;

/// Rows of weights of a warp, in two halves of 8.
const WARP_ROWS: u32 = 16;
const HALF_ROWS: u32 = 8;
/// Tokens whose sums lie in four registers of a thread's accumulator.
pub(super) const TOKENS: u32 = 8;

/// What is multiplied, and in which tiles.
#[derive(Clone, Copy)]
pub(crate) struct Weights {
    /// `[m, k]`, in boxes of 64 columns and a tile's tokens.
    pub a: TensorMap<bf16, 2>,
    /// `[n / 8, parts, 8, k]`, in boxes of 64 columns and a tile's rows of weights.
    pub b: TensorMap<bf16, 4>,
    /// Tiles that the tokens take.
    pub m_tiles: u32,
    /// Steps of k of a tile.
    pub num_steps: u32,
    pub num_stages: u32,
}

/// Where sums go.
pub(crate) trait Store: Copy {
    /// Rows of B that make a column of C: they lie 8 apart in a tile.
    const PARTS: u32;

    /// Stores four sums of each lane: of rows `lane / 4` and `lane / 4 + 8` of the warp's weights, whose
    /// first is column `first_column` of C, for tokens `first_row + 2 (lane % 4)` and the next. All lanes
    /// of a warp call it together.
    unsafe fn store(&self, sums: [f32; 4], first_row: u32, first_column: u32);
}

/// A place in the ring, as one thread sees it.
#[derive(Clone, Copy)]
pub(super) struct Place {
    stage: u32,
    parity: u32,
}

impl Place {
    pub const FIRST: Self = Self { stage: 0, parity: 0 };
}

/// The step that is loaded next: what it is of its tile, and where that lies. Kept up from step to step,
/// since the one lane that loads has no time for divisions.
#[derive(Clone, Copy)]
struct Cursor {
    tile: u32,
    step: u32,
    /// Group of 8 rows of weights, times the parts.
    weights: u32,
    /// First token.
    row: u32,
}

/// A block, of whose accumulators a thread has `N` registers.
#[derive(Clone, Copy)]
pub(super) struct Block<S, const ROWS: usize, const N: usize> {
    work: Weights,
    store: S,
    barriers: Shared<u64>,
    stages: Shared<u8>,
}

impl<S: Store, const ROWS: usize, const N: usize> Block<S, ROWS, N> {
    /// Tokens of a warpgroup, and of the tile.
    const GROUP_TOKENS: usize = 2 * N;
    const TOKENS: usize = Self::GROUP_TOKENS * WEIGHT_ROWS / ROWS;
    const STAGE_BYTES: usize = stage_bytes(ROWS, Self::TOKENS);
    const WEIGHT_BYTES: usize = SwizzledTile::<bf16>::bytes(ROWS);

    #[inline(always)]
    pub unsafe fn new(work: Weights, store: S) -> Self {
        let stages = shared::dynamic_shared_mem::<u8>();
        let barriers = stages.offset(work.num_stages as usize * Self::STAGE_BYTES).cast();
        Self { work, store, barriers, stages }
    }

    /// Sets up the ring.
    #[inline(always)]
    pub unsafe fn set_up(&self) {
        let thread = thread::thread_idx_x();
        if thread == 0 {
            let mut stage = 0;
            while stage < self.work.num_stages {
                self.full(stage).init(1);
                self.empty(stage).init(NUM_WARPS);
                stage += 1;
            }
            bulk::fence_init();
        } else if thread == NUM_WARPS * warp::WARP_SIZE {
            self.work.b.prefetch();
            self.work.a.prefetch();
        }
        thread::sync_threads();
    }

    /// Whether this thread multiplies; else its warp loads.
    #[inline(always)]
    pub fn multiplies() -> bool {
        thread::thread_idx_x() < NUM_WARPS * warp::WARP_SIZE
    }

    /// Where stages begin: shared memory for other things once all are read.
    #[inline(always)]
    pub fn stages(&self) -> Shared<u8> {
        self.stages
    }

    #[inline(always)]
    unsafe fn full(&self, stage: u32) -> Mbarrier {
        Mbarrier::at(self.barriers.offset(2 * stage as usize))
    }

    #[inline(always)]
    unsafe fn empty(&self, stage: u32) -> Mbarrier {
        Mbarrier::at(self.barriers.offset(2 * stage as usize + 1))
    }

    #[inline(always)]
    unsafe fn weights(&self, stage: u32) -> Shared<u8> {
        self.stages.offset(stage as usize * Self::STAGE_BYTES)
    }

    #[inline(always)]
    unsafe fn rows(&self, stage: u32) -> Shared<u8> {
        self.weights(stage).offset(Self::WEIGHT_BYTES)
    }

    #[inline(always)]
    fn advance(&self, place: &mut Place) {
        place.stage += 1;
        if place.stage == self.work.num_stages {
            place.stage = 0;
            place.parity ^= 1;
        }
    }

    /// Loads what all steps multiply: weights as far ahead as the ring reaches, and rows, which the
    /// kernel before may still be writing, after that. Steps are counted over all tiles. One lane of the
    /// warp that loads calls it.
    #[inline(always)]
    pub unsafe fn fill(&self, [begin, end]: [u32; 2]) {
        let num_steps = self.work.num_steps;
        let ahead = end.min(begin + self.work.num_stages);
        let first = self.start_of(begin / num_steps, begin % num_steps);
        let (mut place, mut cursor) = (Place::FIRST, first);
        let mut step = begin;
        while step < ahead {
            self.load_weights(cursor, place.stage);
            place.stage += 1;
            cursor = self.after(cursor);
            step += 1;
        }
        grid::wait_prerequisites();
        (place, cursor, step) = (Place::FIRST, first, begin);
        while step < end {
            if step >= ahead {
                self.empty(place.stage).wait(place.parity ^ 1);
                self.load_weights(cursor, place.stage);
            }
            self.load_rows(cursor, place.stage);
            self.advance(&mut place);
            cursor = self.after(cursor);
            step += 1;
        }
    }

    #[inline(always)]
    fn start_of(&self, tile: u32, step: u32) -> Cursor {
        let m_tiles = self.work.m_tiles;
        let groups = ROWS as u32 / HALF_ROWS / S::PARTS;
        let (weights, row) = (tile / m_tiles * groups, tile % m_tiles * Self::TOKENS as u32);
        Cursor { tile, step, weights, row }
    }

    #[inline(always)]
    fn after(&self, cursor: Cursor) -> Cursor {
        if cursor.step + 1 == self.work.num_steps {
            self.start_of(cursor.tile + 1, 0)
        } else {
            Cursor { step: cursor.step + 1, ..cursor }
        }
    }

    /// Arms a stage for both of its loads, and starts the first.
    #[inline(always)]
    unsafe fn load_weights(&self, cursor: Cursor, stage: u32) {
        let Weights { b, m_tiles, .. } = self.work;
        let column = cursor.step * STAGE_COLUMNS as u32;
        let place = [column as i32, 0, 0, cursor.weights as i32];
        let full = self.full(stage);
        full.arrive_expect_bytes(Self::STAGE_BYTES as u32);
        if m_tiles == 1 {
            let once = CachePolicy::evict_first();
            bulk::load_tile_with_policy(self.weights(stage), &b, place, full, once);
        } else {
            bulk::load_tile(self.weights(stage), &b, place, full);
        }
    }

    #[inline(always)]
    unsafe fn load_rows(&self, cursor: Cursor, stage: u32) {
        let column = cursor.step * STAGE_COLUMNS as u32;
        let place = [column as i32, cursor.row as i32];
        bulk::load_tile(self.rows(stage), &self.work.a, place, self.full(stage));
    }

    /// Multiplies `num_steps` steps, at least 1, of one tile. All warps that multiply call it.
    #[inline(always)]
    pub unsafe fn multiply(&self, d: &mut [f32; N], num_steps: u32, place: &mut Place) {
        let warpgroup = (thread::thread_idx_x() / wgmma::NUM_THREADS) as usize;
        let first_weight = if ROWS == WEIGHT_ROWS { warpgroup * WARPGROUP_ROWS } else { 0 };
        let first_token = if ROWS == WEIGHT_ROWS { 0 } else { warpgroup * Self::GROUP_TOKENS };
        let mut step = 0;
        let mut previous = place.stage;
        // There is a step; as in the pipeline, the loop does not ask first.
        loop {
            let stage = place.stage;
            self.full(stage).wait(place.parity);
            let weights = SwizzledTile::<bf16>::at(self.weights(stage).cast());
            let weights = weights.from_row(first_weight);
            let rows = SwizzledTile::<bf16>::at(self.rows(stage).cast()).from_row(first_token);
            wgmma::fence(d);
            for k in (0..STAGE_COLUMNS).step_by(16) {
                let (weights, rows) = (weights.from_column(k), rows.from_column(k));
                wgmma::multiply(d, weights, rows, step > 0 || k > 0);
            }
            wgmma::commit_group();
            wgmma::wait_group::<1, _>(d);
            if step > 0 {
                self.release(previous);
            }
            previous = stage;
            self.advance(place);
            step += 1;
            if step == num_steps {
                break;
            }
        }
        wgmma::wait_group::<0, _>(d);
        self.release(previous);
    }

    /// Says that this warp has read a stage.
    #[inline(always)]
    unsafe fn release(&self, stage: u32) {
        warp::sync_warp(warp::FULL_MASK);
        if warp::lane_id() == 0 {
            self.empty(stage).arrive();
        }
    }

    /// Stores four registers of the accumulator of `tile`, those from register `4 idx` on.
    #[inline(always)]
    pub unsafe fn store(&self, four: [f32; 4], idx: usize, tile: u32) {
        let Weights { m_tiles, .. } = self.work;
        let warp_idx = thread::thread_idx_x() / warp::WARP_SIZE;
        let warps_down = (ROWS as u32) / WARP_ROWS;
        let row_of_b = tile / m_tiles * ROWS as u32 + warp_idx % warps_down * WARP_ROWS;
        let first_row = tile % m_tiles * Self::TOKENS as u32
            + warp_idx / warps_down * Self::GROUP_TOKENS as u32
            + idx as u32 * TOKENS;
        self.store.store(four, first_row, row_of_b / S::PARTS);
    }

    #[inline(always)]
    pub unsafe fn store_all(&self, d: &[f32; N], tile: u32) {
        for i in 0..N / 4 {
            self.store([d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]], i, tile);
        }
    }
}

/// C in bf16.
#[derive(Clone, Copy)]
pub(crate) struct Rounded {
    pub c: GlobalMut<bf16>, // [m, n]
    pub m: u32,
    pub n: u32,
}

impl Rounded {
    /// Stores an 8 x 8 matrix of C, of which each lane brings column `lane / 4`, rows `2 (lane % 4)` and
    /// the next. All lanes of a warp call it together.
    #[inline(always)]
    pub unsafe fn store(&self, column: [f32; 2], first_row: u32, first_column: u32) {
        let lane = warp::lane_id();
        let pair = mma::transpose_8x8(bf16::pack(column[0], column[1]));
        let row = first_row + lane / 4;
        if row < self.m && first_column < self.n {
            let place = row as usize * self.n as usize + (first_column + lane % 4 * 2) as usize;
            self.c.offset(place).cast::<u32>().store(0, pair);
        }
    }
}

/// Sums are C.
#[derive(Clone, Copy)]
pub(crate) struct Plain(pub Rounded);

impl Store for Plain {
    const PARTS: u32 = 1;

    #[inline(always)]
    unsafe fn store(&self, sums: [f32; 4], first_row: u32, first_column: u32) {
        self.0.store([sums[0], sums[1]], first_row, first_column);
        self.0.store([sums[2], sums[3]], first_row, first_column + HALF_ROWS);
    }
}

const _: () = assert!(NUM_WARPS as usize * WARP_ROWS as usize == WEIGHT_ROWS);
const _: () = assert!(ROW_STEP == 2 * TOKENS && BARRIERS_BYTES.is_multiple_of(16));
