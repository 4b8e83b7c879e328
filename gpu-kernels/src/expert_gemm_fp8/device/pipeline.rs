//! Persistent blocks: who loads, who multiplies, in which ring.
//!
//! ```text
//! stage: B [128 rows, 128 of k]   A [up to 128 rows, 128 of k]   a scale for each row of A
//! ```
//!
//! A stage's `full` barrier completes when its bytes have landed; its `empty` barrier when all eight
//! warps that multiply have done so. Loads run on across tiles. Beside its first stage stands what a tile
//! is, and after the last tile comes a stage of none: so those that multiply need not look for tiles.

use cuda_std::bulk::Mbarrier;
use cuda_std::float::E4m3;
use cuda_std::prelude::*;
use cuda_std::tensor_map::{TensorMap, TensorMaps};
use cuda_std::wgmma::SwizzledTile;

use crate::expert_gemm_fp8::grouped::{
    B_BYTES, BARRIERS_AT, NUM_STAGES, NUM_WARPS, ROW_BOXES, SCALES_AT, STAGE_BYTES, STAGE_COLUMNS,
    STAGING_AT, TILE_COLUMNS, TILE_ROWS, TILES_AT,
};
use crate::gemm::device::output::{Output, OutputOf};
use crate::gemm::device::pipeline::{RowBoxes, Tile, Tiles};
use crate::gemm::schedule::ROW_STEP;

/// Rows of B of a warpgroup.
const ROWS: usize = TILE_COLUMNS / 2;
/// Scales that a lane brings at a time: of so many rows, and so many steps of k.
const ROWS_EACH: usize = TILE_ROWS / warp::WARP_SIZE as usize;
const STEPS_EACH: usize = 4;

/// What is multiplied.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// `[num_rows, k]`, in boxes of 16 rows, 32, and so on.
    pub a: TensorMaps<E4m3, 2, ROW_BOXES>,
    /// `[num_experts, n, k]`, in boxes of 128 rows.
    pub b: TensorMap<E4m3, 3>,
    /// `[num_rows, k.div_ceil(128)]`
    pub a_scales: Global<f32>,
    /// `[num_experts, n.div_ceil(128), k.div_ceil(128)]`
    pub b_scales: Global<f32>,
    pub n: u32,
    pub k: u32,
}

impl Operands {
    /// Steps of k, each of one scale; at least 1.
    #[inline(always)]
    fn num_steps(&self) -> u32 {
        self.k.div_ceil(STAGE_COLUMNS as u32)
    }
}

/// A place in the ring, as one thread sees it.
#[derive(Clone, Copy)]
struct Ring {
    shared: Shared<u8>,
    stage: u32,
    parity: u32,
}

impl Ring {
    #[inline(always)]
    fn new() -> Self {
        Self { shared: shared::dynamic_shared_mem(), stage: 0, parity: 0 }
    }

    #[inline(always)]
    unsafe fn set_up(&self) {
        for stage in 0..NUM_STAGES {
            self.barrier(stage).init(1);
            self.barrier(NUM_STAGES + stage).init(NUM_WARPS as u32);
        }
        bulk::fence_init();
    }

    #[inline(always)]
    unsafe fn barrier(&self, idx: usize) -> Mbarrier {
        Mbarrier::at(self.shared.offset(BARRIERS_AT + idx * size_of::<u64>()).cast())
    }

    #[inline(always)]
    unsafe fn full(&self) -> Mbarrier {
        self.barrier(self.stage as usize)
    }

    #[inline(always)]
    unsafe fn empty(&self) -> Mbarrier {
        self.barrier(NUM_STAGES + self.stage as usize)
    }

    #[inline(always)]
    unsafe fn b(&self) -> Shared<u8> {
        self.shared.offset(self.stage as usize * STAGE_BYTES)
    }

    #[inline(always)]
    unsafe fn a(&self) -> Shared<u8> {
        self.b().offset(B_BYTES)
    }

    #[inline(always)]
    unsafe fn scales(&self) -> Shared<f32> {
        self.shared.offset(SCALES_AT).cast().offset(self.stage as usize * TILE_ROWS)
    }

    /// First row of A, rows, first column of C; of no tile there are no rows.
    #[inline(always)]
    unsafe fn tile(&self) -> Shared<u32> {
        self.shared.offset(TILES_AT).cast().offset(4 * self.stage as usize)
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.stage += 1;
        if self.stage == NUM_STAGES as u32 {
            self.stage = 0;
            self.parity ^= 1;
        }
    }
}

/// All tiles of a block.
#[inline(always)]
pub(super) unsafe fn run<T: Tiles>(operands: Operands, output: Output, tiles: impl FnOnce() -> T) {
    let ring = Ring::new();
    let thread = thread::thread_idx_x();
    if thread == 0 {
        ring.set_up();
        for i in 0..ROW_BOXES {
            operands.a.get(i as u32).prefetch();
        }
        operands.b.prefetch();
        output.maps.prefetch_all();
    }
    thread::sync_threads();
    if thread / warp::WARP_SIZE == NUM_WARPS as u32 {
        fill(ring, operands, tiles());
    } else {
        let output = output.of_warpgroup(ring.shared.offset(STAGING_AT), thread);
        Warpgroup { ring, output, num_steps: operands.num_steps() }.run();
    }
}

const _: () = assert!(NUM_WARPS as u32 * warp::WARP_SIZE == 2 * wgmma::NUM_THREADS);

/// Scales of a tile, of some steps: each lane's those of every 32nd row, and those of the block of B.
/// They are multiplied where they are stored: until then nobody waits for them.
#[derive(Clone, Copy)]
struct Scales {
    of_rows: [[f32; STEPS_EACH]; ROWS_EACH],
    of_block: [f32; STEPS_EACH],
}

/// Loads the operands of all tiles, as fast as stages become free. All lanes of a warp call it.
#[inline(always)]
unsafe fn fill<T: Tiles>(mut ring: Ring, operands: Operands, mut tiles: T) {
    let lane = warp::lane_id();
    let num_steps = operands.num_steps();
    while let Some(tile) = tiles.next() {
        let row_steps = tile.num_rows.div_ceil(ROW_STEP);
        let a = operands.a.get(row_steps - 1);
        let a_bytes = SwizzledTile::<E4m3>::bytes((row_steps * ROW_STEP) as usize);
        let mut next_scales = scales_of(&operands, &tile, 0);
        let mut first_step = 0;
        while first_step < num_steps {
            let scales = next_scales;
            if first_step + (STEPS_EACH as u32) < num_steps {
                next_scales = scales_of(&operands, &tile, first_step + STEPS_EACH as u32);
            }
            for j in 0..STEPS_EACH {
                let step = first_step + j as u32;
                if step < num_steps {
                    ring.empty().wait(ring.parity ^ 1);
                    for i in 0..ROWS_EACH {
                        let row = i * warp::WARP_SIZE as usize + lane as usize;
                        ring.scales().store(row, scales.of_rows[i][j] * scales.of_block[j]);
                    }
                    if step == 0 && lane == 0 {
                        let Tile { first_row, num_rows, first_column, .. } = tile;
                        ring.tile().store_x4(0, [first_row, num_rows, first_column, 0]);
                    }
                    warp::sync_warp(warp::FULL_MASK);
                    if lane == 0 {
                        let full = ring.full();
                        full.arrive_expect_bytes((B_BYTES + a_bytes) as u32);
                        let column = (step * STAGE_COLUMNS as u32) as i32;
                        let of_b = [column, tile.first_column as i32, tile.expert as i32];
                        bulk::load_tile(ring.b(), &operands.b, of_b, full);
                        bulk::load_tile(ring.a(), &a, [column, tile.first_row as i32], full);
                    }
                    ring.advance();
                }
            }
            first_step += STEPS_EACH as u32;
        }
    }
    ring.empty().wait(ring.parity ^ 1);
    if lane == 0 {
        ring.tile().store_x4(0, [0; 4]);
        ring.full().arrive();
    }
}

/// The scales of a tile from step `step` on; 0 for rows and steps that do not exist.
#[inline(always)]
unsafe fn scales_of(operands: &Operands, tile: &Tile, step: u32) -> Scales {
    let num_steps = operands.num_steps();
    let blocks = operands.n.div_ceil(TILE_COLUMNS as u32);
    let block = tile.expert * blocks + tile.first_column / TILE_COLUMNS as u32;
    let of_block = operands.b_scales.offset(block as usize * num_steps as usize);
    let of_block = next_scales(of_block, step, num_steps);
    let mut of_rows = [[0.0; STEPS_EACH]; ROWS_EACH];
    for i in 0..ROWS_EACH {
        let row = i as u32 * warp::WARP_SIZE + warp::lane_id();
        if row < tile.num_rows {
            let of_row = (tile.first_row + row) as usize * num_steps as usize;
            of_rows[i] = next_scales(operands.a_scales.offset(of_row), step, num_steps);
        }
    }
    Scales { of_rows, of_block }
}

/// The scales of a row from step `step` on, of those that there are.
#[inline(always)]
unsafe fn next_scales(
    scales: Global<f32>, // [num_steps]
    step: u32,
    num_steps: u32,
) -> [f32; STEPS_EACH] {
    let place = step as usize;
    if num_steps.is_multiple_of(STEPS_EACH as u32) {
        let [s0, s1, s2, s3] = scales.load_x4(place);
        return [f32::from_bits(s0), f32::from_bits(s1), f32::from_bits(s2), f32::from_bits(s3)];
    }
    let mut of_steps = [0.0; STEPS_EACH];
    for j in 0..STEPS_EACH {
        if step + (j as u32) < num_steps {
            of_steps[j] = scales.load(place + j);
        }
    }
    of_steps
}

/// A warpgroup that multiplies.
struct Warpgroup {
    ring: Ring,
    output: OutputOf,
    num_steps: u32,
}

impl Warpgroup {
    #[inline(always)]
    unsafe fn run(&mut self) {
        loop {
            self.ring.full().wait(self.ring.parity);
            let [first_row, num_rows, first_column, _] = self.ring.tile().load_x4(0);
            if num_rows == 0 {
                break;
            }
            let num_steps = self.num_steps;
            let tile =
                Tile { expert: 0, first_row, num_rows, first_column, num_steps, is_tall: false };
            match num_rows.div_ceil(ROW_STEP) {
                1 => self.tile::<8>(tile),
                2 => self.tile::<16>(tile),
                3 => self.tile::<24>(tile),
                4 => self.tile::<32>(tile),
                5 => self.tile::<40>(tile),
                6 => self.tile::<48>(tile),
                7 => self.tile::<56>(tile),
                _ => self.tile::<64>(tile),
            }
        }
        self.output.finish();
    }

    /// One tile of `2 N` rows of A.
    #[inline(always)]
    unsafe fn tile<const N: usize>(&mut self, tile: Tile) {
        let first_row = self.output.warpgroup as usize * ROWS;
        let column = warp::lane_id() as usize % 4 * 2;
        let (mut sums, mut product) = ([0.0; N], [0.0; N]);
        let mut step = 0;
        // There is a step; as in the room gemm, the loop does not ask first.
        loop {
            let ring = self.ring;
            ring.full().wait(ring.parity);
            let a = SwizzledTile::<E4m3>::at(ring.a().cast());
            let b = SwizzledTile::<E4m3>::at(ring.b().cast()).from_row(first_row);
            wgmma::fence(&mut product);
            for k in (0..STAGE_COLUMNS).step_by(32) {
                let (a, b) = (a.from_column(k), b.from_column(k));
                wgmma::multiply_e4m3(&mut product, b, a, k > 0);
            }
            wgmma::commit_group();
            wgmma::wait_group::<0, _>(&mut product);
            for j in 0..N / 4 {
                let [left, right] = ring.scales().load_x2(8 * j + column).map(f32::from_bits);
                sums[4 * j] += left * product[4 * j];
                sums[4 * j + 1] += right * product[4 * j + 1];
                sums[4 * j + 2] += left * product[4 * j + 2];
                sums[4 * j + 3] += right * product[4 * j + 3];
            }
            wgmma::settle(&mut sums);
            self.release();
            self.ring.advance();
            step += 1;
            if step == self.num_steps {
                break;
            }
        }
        self.output.store::<N>(|register| sums[register], &tile, 0);
    }

    /// Says that this warp has read the stage.
    #[inline(always)]
    unsafe fn release(&self) {
        warp::sync_warp(warp::FULL_MASK);
        if warp::lane_id() == 0 {
            self.ring.empty().arrive();
        }
    }
}
