//! Products of few tokens: the weights stream through all SMs, an equal share through each.
//!
//! A block is two warpgroups that multiply and a warp that loads. Its share is a run of steps of k,
//! of one tile or of several: [`Shares`] says which. What it has of a tile that others share, it
//! leaves in a workspace; the last to come adds up all of it, in the order of k, so that results
//! repeat bit by bit. Nobody waits for anybody.
//!
//! Accumulators go to C as they lie, `C^T`, each warp its own rows of weights: an 8 x 8 matrix at a
//! time is transposed between registers. So warps meet nowhere but at the ring.
//!
//! The next launch's blocks start early: as a block that is not the last of its tile leaves an SM, the
//! next one there fills its ring, while the last ones add up.

use cuda_std::async_copy::CachePolicy;
use cuda_std::bulk::Mbarrier;
use cuda_std::prelude::*;
use cuda_std::wgmma::SwizzledTile;
use half::bf16;

use super::pipeline::ROWS;
use crate::gemm::schedule::{ROW_STEP, Shares};
use crate::gemm::stream::{BARRIERS_BYTES, NUM_WARPS, WEIGHT_ROWS, stage_bytes};
use crate::gemm::tma::STAGE_COLUMNS;

/// Rows of weights of a warp, in two halves of 8.
const WARP_ROWS: u32 = 16;
const HALF_ROWS: u32 = 8;
/// Tokens whose sums lie in four registers of a thread's accumulator.
const TOKENS: u32 = 8;

/// What is multiplied, and how it is dealt.
#[derive(Clone, Copy)]
pub(crate) struct Streamed {
    /// `[m, k]`, in boxes of 64 columns and `tile_rows` rows.
    pub a: TensorMap<bf16, 2>,
    /// `[n / 8, parts, 8, k]`, in boxes of 64 columns and 128 rows.
    pub b: TensorMap<bf16, 4>,
    /// Rows of A of a tile: 16, 32, 64 or 128.
    pub tile_rows: u32,
    /// Tiles that A's rows take.
    pub m_tiles: u32,
    pub shares: Shares,
    pub num_stages: u32,
    /// `[blocks, 2, 8 warps, tile_rows / 8, 32 lanes, 4]`: what a block has of its first tile, if that
    /// begins in another block, and of its last, if it ends in another.
    pub sums: GlobalMut<f32>,
    /// `[tiles, 8 warps]`: who left sums; 0 before and after.
    pub arrived: GlobalMut<u32>,
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

/// This block's share.
#[inline(always)]
pub(crate) unsafe fn run<S: Store>(work: Streamed, store: S) {
    match work.tile_rows {
        16 => Block::<S, 8>::new(work, store).run(),
        32 => Block::<S, 16>::new(work, store).run(),
        64 => Block::<S, 32>::new(work, store).run(),
        _ => Block::<S, 64>::new(work, store).run(),
    }
}

/// A place in the ring, as one thread sees it.
#[derive(Clone, Copy)]
struct Place {
    stage: u32,
    parity: u32,
}

/// A block, of whose accumulators a thread has `N` registers: `2 N` rows of A.
#[derive(Clone, Copy)]
struct Block<S, const N: usize> {
    work: Streamed,
    store: S,
    barriers: Shared<u64>,
    stages: Shared<u8>,
}

impl<S: Store, const N: usize> Block<S, N> {
    const STAGE_BYTES: usize = stage_bytes(2 * N);
    const WEIGHT_BYTES: usize = SwizzledTile::<bf16>::bytes(WEIGHT_ROWS);

    #[inline(always)]
    unsafe fn new(work: Streamed, store: S) -> Self {
        let stages = shared::dynamic_shared_mem::<u8>();
        let barriers = stages.offset(work.num_stages as usize * Self::STAGE_BYTES).cast();
        Self { work, store, barriers, stages }
    }

    #[inline(always)]
    unsafe fn run(&self) {
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
        grid::launch_dependents();
        let steps = self.work.shares.steps_of(thread::block_idx_x());
        if thread < NUM_WARPS * warp::WARP_SIZE {
            grid::wait_prerequisites();
            self.multiply_all(steps);
        } else if warp::lane_id() == 0 {
            self.fill(steps);
        } else {
            grid::wait_prerequisites();
        }
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
    /// kernel before may still be writing, after that.
    #[inline(always)]
    unsafe fn fill(&self, [begin, end]: [u32; 2]) {
        let ahead = end.min(begin + self.work.num_stages);
        let mut place = Place { stage: 0, parity: 0 };
        let mut step = begin;
        while step < ahead {
            self.load_weights(step, place.stage);
            place.stage += 1;
            step += 1;
        }
        grid::wait_prerequisites();
        place.stage = 0;
        step = begin;
        while step < end {
            if step >= ahead {
                self.empty(place.stage).wait(place.parity ^ 1);
                self.load_weights(step, place.stage);
            }
            self.load_rows(step, place.stage);
            self.advance(&mut place);
            step += 1;
        }
    }

    /// Arms a stage for both of its loads, and starts the first.
    #[inline(always)]
    unsafe fn load_weights(&self, step: u32, stage: u32) {
        let Streamed { b, shares, m_tiles, .. } = self.work;
        let (tile, step_of_tile) = (step / shares.num_steps, step % shares.num_steps);
        let groups = WEIGHT_ROWS as u32 / HALF_ROWS / S::PARTS;
        let column = (step_of_tile * STAGE_COLUMNS as u32) as i32;
        let place = [column, 0, 0, (tile / m_tiles * groups) as i32];
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
    unsafe fn load_rows(&self, step: u32, stage: u32) {
        let Streamed { a, shares, m_tiles, .. } = self.work;
        let (tile, step_of_tile) = (step / shares.num_steps, step % shares.num_steps);
        let column = (step_of_tile * STAGE_COLUMNS as u32) as i32;
        let row = (tile % m_tiles * 2 * N as u32) as i32;
        bulk::load_tile(self.rows(stage), &a, [column, row], self.full(stage));
    }

    #[inline(always)]
    unsafe fn multiply_all(&self, [begin, end]: [u32; 2]) {
        let mut place = Place { stage: 0, parity: 0 };
        let shares = self.work.shares;
        let mut step = begin;
        while step < end {
            let tile = step / shares.num_steps;
            let tile_end = end.min((tile + 1) * shares.num_steps);
            let mut d = [0.0; N];
            self.multiply(&mut d, tile_end - step, &mut place);
            if self.is_complete(&mut d, tile) {
                self.store_all(&d, tile);
            }
            step = tile_end;
        }
    }

    #[inline(always)]
    unsafe fn multiply(&self, d: &mut [f32; N], num_steps: u32, place: &mut Place) {
        let first_row = (thread::thread_idx_x() / wgmma::NUM_THREADS) as usize * ROWS;
        let mut step = 0;
        // There is a step; as in the pipeline, the loop does not ask first.
        loop {
            let stage = place.stage;
            self.full(stage).wait(place.parity);
            let weights = SwizzledTile::<bf16>::at(self.weights(stage).cast()).from_row(first_row);
            let rows = SwizzledTile::<bf16>::at(self.rows(stage).cast());
            wgmma::fence(d);
            for k in (0..STAGE_COLUMNS).step_by(16) {
                let (weights, rows) = (weights.from_column(k), rows.from_column(k));
                wgmma::multiply(d, weights, rows, step > 0 || k > 0);
            }
            wgmma::commit_group();
            // A stage that is free at once is worth more here than tensor cores that never pause.
            wgmma::wait_group::<0, _>(d);
            self.release(stage);
            self.advance(place);
            step += 1;
            if step == num_steps {
                break;
            }
        }
    }

    /// Says that this warp has read a stage.
    #[inline(always)]
    unsafe fn release(&self, stage: u32) {
        warp::sync_warp(warp::FULL_MASK);
        if warp::lane_id() == 0 {
            self.empty(stage).arrive();
        }
    }

    /// Where this lane's share of what block `block` has of a tile lies.
    #[inline(always)]
    unsafe fn sums_of(&self, block: u32, begins_here: bool) -> GlobalMut<f32> {
        let warp_idx = thread::thread_idx_x() / warp::WARP_SIZE;
        let slot = (2 * block + begins_here as u32) * NUM_WARPS + warp_idx;
        let lanes_registers = N * warp::WARP_SIZE as usize;
        self.work.sums.offset(slot as usize * lanes_registers + 4 * warp::lane_id() as usize)
    }

    /// Whether `d`, which held this block's sums, now holds those of the whole tile. If others share it
    /// and some of them have not come yet, one of them stores it.
    #[inline(always)]
    unsafe fn is_complete(&self, d: &mut [f32; N], tile: u32) -> bool {
        let [first, last] = self.work.shares.blocks_of(tile);
        if first == last {
            return true;
        }
        let block = thread::block_idx_x();
        let own = self.sums_of(block, block == first);
        for i in 0..N / 4 {
            let four = [d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]];
            own.store_x4(i * SUMS_ROW, four.map(f32::to_bits));
        }
        warp::sync_warp(warp::FULL_MASK);
        let num_blocks = last - first + 1;
        let arrived = (tile * NUM_WARPS + thread::thread_idx_x() / warp::WARP_SIZE) as usize;
        let mut earlier = 0;
        if warp::lane_id() == 0 {
            earlier = atomic::fetch_add_acq_rel_gpu(self.work.arrived, arrived, 1);
        }
        let (earlier, _) = warp::warp_shuffle_idx(warp::FULL_MASK, earlier, 0, warp::WARP_SIZE);
        if earlier + 1 < num_blocks {
            return false;
        }
        warp::sync_warp(warp::FULL_MASK);
        if warp::lane_id() == 0 {
            self.work.arrived.store(arrived, 0);
        }
        match N {
            8 => self.add_up::<8>(d, first, num_blocks),
            16 => self.add_up::<4>(d, first, num_blocks),
            32 => self.add_up::<2>(d, first, num_blocks),
            _ => self.add_up::<1>(d, first, num_blocks),
        }
        true
    }

    /// Adds up what `num_blocks` blocks have of a tile, in their order; `TOGETHER` of them are on their
    /// way at a time.
    #[inline(always)]
    unsafe fn add_up<const TOGETHER: usize>(&self, d: &mut [f32; N], first: u32, num_blocks: u32) {
        for i in 0..N {
            d[i] = 0.0;
        }
        let mut idx = 0;
        while idx < num_blocks {
            let mut theirs = [[0.0; N]; TOGETHER];
            for i in 0..TOGETHER {
                let exists = idx + (i as u32) < num_blocks;
                let idx = if exists { idx + i as u32 } else { idx };
                let sums = self.sums_of(first + idx, idx == 0);
                for j in 0..N / 4 {
                    let four = sums.load_x4(j * SUMS_ROW);
                    for l in 0..4 {
                        theirs[i][4 * j + l] = if exists { f32::from_bits(four[l]) } else { 0.0 };
                    }
                }
            }
            for i in 0..TOGETHER {
                for j in 0..N {
                    d[j] += theirs[i][j];
                }
            }
            idx += TOGETHER as u32;
        }
    }

    #[inline(always)]
    unsafe fn store_all(&self, d: &[f32; N], tile: u32) {
        let Streamed { m_tiles, .. } = self.work;
        let warp_idx = thread::thread_idx_x() / warp::WARP_SIZE;
        let row_of_b = tile / m_tiles * WEIGHT_ROWS as u32 + warp_idx * WARP_ROWS;
        let first_row = tile % m_tiles * 2 * N as u32;
        for i in 0..N / 4 {
            let four = [d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]];
            self.store.store(four, first_row + i as u32 * TOKENS, row_of_b / S::PARTS);
        }
    }
}

/// Sums of a warp that lie side by side, four a lane.
const SUMS_ROW: usize = 4 * warp::WARP_SIZE as usize;

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
struct Plain(Rounded);

impl Store for Plain {
    const PARTS: u32 = 1;

    #[inline(always)]
    unsafe fn store(&self, sums: [f32; 4], first_row: u32, first_column: u32) {
        self.0.store([sums[0], sums[1]], first_row, first_column);
        self.0.store([sums[2], sums[3]], first_row, first_column + HALF_ROWS);
    }
}

/// `c = a b^T` for few rows of A.
#[kernel(target = "sm_90a", threads = 288, min_blocks = 1, early = true)]
pub unsafe fn gemm_stream_bf16(
    a: TensorMap<bf16, 2>, // [m, k]
    b: TensorMap<bf16, 4>, // [n / 8, 1, 8, k]
    m: u32,
    n: u32,
    k: u32,
    tile_rows: u32,
    steps_per_block: u32,
    num_stages: u32,
    sums: GlobalMut<f32>,    // [blocks, 2, 128, tile_rows]
    arrived: GlobalMut<u32>, // [tiles, 8], 0 before and after
    c: GlobalMut<bf16>,      // [m, n]
) {
    let m_tiles = m.div_ceil(tile_rows);
    let shares = Shares::of_product(n, m_tiles, k, steps_per_block);
    let work = Streamed { a, b, tile_rows, m_tiles, shares, num_stages, sums, arrived };
    run(work, Plain(Rounded { c, m, n }));
}

const _: () = assert!(NUM_WARPS as usize * WARP_ROWS as usize == WEIGHT_ROWS);
const _: () = assert!(ROW_STEP == 2 * TOKENS && BARRIERS_BYTES.is_multiple_of(16));
