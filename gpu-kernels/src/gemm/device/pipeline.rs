//! One body for all products by the copy engine: who loads, who multiplies, in which ring.
//!
//! A block is three warpgroups. One thread of the first fills the ring; the other two multiply,
//! each 64 rows of every block of 128 rows of B, with all rows of A:
//!
//! ```text
//! stage: B [128 BLOCKS rows, 64 of k]   A [up to ROWS rows, 64 of k]
//! D[block] [64 rows of B, rows of A] += B A^T                         BLOCKS accumulators
//! ```
//!
//! A stage's `full` barrier completes when its bytes have landed, its `empty` barrier when all eight
//! warps that multiply have done so. Loads run on across tiles, so the tensor cores wait for memory
//! at the first tile only; they do wait for the epilogue, some microseconds a tile.

use cuda_std::bulk::Mbarrier;
use cuda_std::prelude::*;
use cuda_std::tensor_map::{TensorMap, TensorMaps};
use cuda_std::wgmma::SwizzledTile;
use half::bf16;

use super::activation::silu;
use super::output::{Output, OutputOf};
use crate::gemm::schedule::ROW_STEP;
use crate::gemm::tma::{BLOCK_ROWS, NUM_THREADS, STAGE_COLUMNS, Stages, TALL_ROWS};

/// Rows of B of a warpgroup's accumulator.
pub(super) const ROWS: usize = 64;
/// Warps that multiply.
const NUM_WARPS: u32 = 8;
/// The blocks of a cluster.
const BOTH: u16 = 0b11;

/// A tile of C.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// Which B.
    pub expert: u32,
    /// First row of A and C.
    pub first_row: u32,
    /// Rows that C has here, at least 1.
    pub num_rows: u32,
    /// First row of B, column of C.
    pub first_column: u32,
    /// Steps of k.
    pub num_steps: u32,
    /// Whether it has up to 256 rows of A and 128 of B, in a ring for half as many and twice as many.
    pub is_tall: bool,
}

/// The tiles of a block, one after the other.
pub(crate) trait Tiles: Copy {
    /// Whether blocks come in clusters of two, whose tiles lie side by side: each loads half of their
    /// rows of A for both, in boxes of half the height. They have as many tiles, of as many steps.
    const PAIRED: bool;
    /// Whether tiles take the rows that they have, rounded up to 16; else all are of full size.
    const RAGGED: bool;
    /// Whether some tiles are tall.
    const TALL: bool;

    /// The next tile, if there is one. All lanes of a warp call it together.
    unsafe fn next(&mut self) -> Option<Tile>;
}

/// A as the copy engine loads it, in boxes of 64 columns and all rows of a tile: one map if all tiles
/// have as many, else one for each number of steps of 16 rows, and the last one for tall tiles.
pub(crate) trait RowBoxes: Copy {
    /// The map for boxes of so many steps.
    unsafe fn of_steps(&self, num_steps: u32) -> TensorMap<bf16, 2>;

    /// Fetches the maps ahead of their use.
    unsafe fn prefetch_all(&self);
}

impl RowBoxes for TensorMap<bf16, 2> {
    #[inline(always)]
    unsafe fn of_steps(&self, _num_steps: u32) -> TensorMap<bf16, 2> {
        *self
    }

    #[inline(always)]
    unsafe fn prefetch_all(&self) {
        self.prefetch();
    }
}

impl<const N: usize> RowBoxes for TensorMaps<bf16, 2, N> {
    #[inline(always)]
    unsafe fn of_steps(&self, num_steps: u32) -> TensorMap<bf16, 2> {
        self.get((num_steps - 1).min(N as u32 - 1))
    }

    #[inline(always)]
    unsafe fn prefetch_all(&self) {
        for i in 0..N {
            self.get(i as u32).prefetch();
        }
    }
}

/// What is multiplied.
#[derive(Clone, Copy)]
pub(crate) struct Operands<A> {
    /// `[m, k]`
    pub a: A,
    /// `[experts, n, k]`, in boxes of 64 columns and 128 rows.
    pub b: TensorMap<bf16, 3>,
    /// From the first row of B of a tile's first block of 128 to that of its second.
    pub second_block: u32,
}

/// A place in the ring, as one thread sees it.
#[derive(Clone, Copy)]
struct Ring<const BLOCKS: usize, const REGISTERS: usize, const STAGES: usize> {
    stages: Shared<u8>,
    barriers: Shared<u64>,
    stage: u32,
    parity: u32,
}

impl<const BLOCKS: usize, const REGISTERS: usize, const STAGES: usize>
    Ring<BLOCKS, REGISTERS, STAGES>
{
    const LAYOUT: Stages = Stages { blocks: BLOCKS, max_rows: 2 * REGISTERS, num_stages: STAGES };

    #[inline(always)]
    unsafe fn new() -> Self {
        let stages = shared::dynamic_shared_mem::<u8>();
        let barriers = stages.offset(Self::LAYOUT.barriers_at()).cast();
        Self { stages, barriers, stage: 0, parity: 0 }
    }

    #[inline(always)]
    unsafe fn set_up(&self, num_blocks: u32) {
        for stage in 0..STAGES {
            Mbarrier::at(self.barriers.offset(stage)).init(1);
            Mbarrier::at(self.barriers.offset(STAGES + stage)).init(NUM_WARPS * num_blocks);
        }
        bulk::fence_init();
    }

    #[inline(always)]
    unsafe fn full(&self) -> Mbarrier {
        Mbarrier::at(self.barriers.offset(self.stage as usize))
    }

    #[inline(always)]
    unsafe fn empty(&self, stage: u32) -> Mbarrier {
        Mbarrier::at(self.barriers.offset(STAGES + stage as usize))
    }

    #[inline(always)]
    unsafe fn b(&self) -> Shared<u8> {
        self.stages.offset(self.stage as usize * Self::LAYOUT.stage_bytes())
    }

    /// A, after so many blocks of B.
    #[inline(always)]
    unsafe fn a(&self, num_blocks: usize) -> Shared<u8> {
        self.b().offset(num_blocks * SwizzledTile::<bf16>::bytes(BLOCK_ROWS))
    }

    #[inline(always)]
    fn advance(&mut self) {
        self.stage += 1;
        if self.stage == STAGES as u32 {
            self.stage = 0;
            self.parity ^= 1;
        }
    }
}

/// All tiles of a block. With `GATED`, the two blocks of 128 rows of B are gates and what they let
/// pass.
#[inline(always)]
pub(crate) unsafe fn run<
    A: RowBoxes,
    T: Tiles,
    const BLOCKS: usize,
    const REGISTERS: usize,
    const STAGES: usize,
    const GATED: bool,
>(
    operands: Operands<A>,
    output: Output,
    tiles: T,
) {
    let ring = Ring::<BLOCKS, REGISTERS, STAGES>::new();
    let thread = thread::thread_idx_x();
    if thread == 0 {
        ring.set_up(num_blocks::<T>());
        operands.a.prefetch_all();
        operands.b.prefetch();
        output.maps.prefetch_all();
    }
    meet::<T>();
    if thread < wgmma::NUM_THREADS {
        wgmma::give_registers::<40>();
        if thread < 32 {
            fill(ring, operands, tiles);
        }
    } else {
        wgmma::take_registers::<232>();
        let staging = shared::dynamic_shared_mem::<u8>()
            .offset(Ring::<BLOCKS, REGISTERS, STAGES>::LAYOUT.staging_at());
        let output = output.of_warpgroup(staging, thread - wgmma::NUM_THREADS);
        let mut warpgroup = Warpgroup::<BLOCKS, REGISTERS, STAGES, GATED> { ring, output };
        warpgroup.run(tiles);
    }
    if T::PAIRED {
        // Until then the other block loads for this one, and frees its stages.
        cluster::meet();
    }
}

/// Waits for all threads that use the barriers.
#[inline(always)]
fn meet<T: Tiles>() {
    if T::PAIRED { cluster::meet() } else { thread::sync_threads() }
}

/// Blocks that load to a stage.
const fn num_blocks<T: Tiles>() -> u32 {
    if T::PAIRED { 2 } else { 1 }
}

const _: () = assert!(NUM_THREADS == 3 * wgmma::NUM_THREADS);

/// Loads the operands of all tiles, as fast as stages become free.
#[inline(always)]
unsafe fn fill<
    A: RowBoxes,
    T: Tiles,
    const BLOCKS: usize,
    const REGISTERS: usize,
    const STAGES: usize,
>(
    mut ring: Ring<BLOCKS, REGISTERS, STAGES>,
    Operands { a, b, second_block }: Operands<A>,
    mut tiles: T,
) {
    let is_first_lane = warp::lane_id() == 0;
    let rank = if T::PAIRED { cluster::block_rank() } else { 0 };
    while let Some(tile) = tiles.next() {
        if !is_first_lane {
            continue;
        }
        let is_tall = T::TALL && tile.is_tall;
        let num_blocks = if is_tall { 1 } else { BLOCKS };
        let row_steps = if is_tall {
            TALL_ROWS as u32 / ROW_STEP
        } else if T::RAGGED {
            tile.num_rows.div_ceil(ROW_STEP)
        } else {
            2 * REGISTERS as u32 / ROW_STEP
        };
        let a = a.of_steps(row_steps);
        let a_bytes = SwizzledTile::<bf16>::bytes((row_steps * ROW_STEP) as usize);
        let b_bytes = SwizzledTile::<bf16>::bytes(BLOCK_ROWS);
        let bytes = (a_bytes + num_blocks * b_bytes) as u32;
        let mut step = 0;
        while step < tile.num_steps {
            ring.empty(ring.stage).wait(ring.parity ^ 1);
            let full = ring.full();
            full.arrive_expect_bytes(bytes);
            let column = (step * STAGE_COLUMNS as u32) as i32;
            for block in 0..num_blocks {
                let row = tile.first_column + block as u32 * second_block;
                let place = ring.b().offset(block * b_bytes);
                bulk::load_tile(place, &b, [column, row as i32, tile.expert as i32], full);
            }
            let place = ring.a(num_blocks);
            if T::PAIRED {
                let row = tile.first_row + rank * (row_steps * ROW_STEP / 2);
                let half = place.offset(rank as usize * a_bytes / 2);
                bulk::load_tile_to(BOTH, half, &a, [column, row as i32], full);
            } else {
                bulk::load_tile(place, &a, [column, tile.first_row as i32], full);
            }
            ring.advance();
            step += 1;
        }
    }
}

/// A warpgroup that multiplies.
struct Warpgroup<
    const BLOCKS: usize,
    const REGISTERS: usize,
    const STAGES: usize,
    const GATED: bool,
> {
    ring: Ring<BLOCKS, REGISTERS, STAGES>,
    output: OutputOf,
}

impl<const BLOCKS: usize, const REGISTERS: usize, const STAGES: usize, const GATED: bool>
    Warpgroup<BLOCKS, REGISTERS, STAGES, GATED>
{
    #[inline(always)]
    unsafe fn run<T: Tiles>(&mut self, mut tiles: T) {
        while let Some(tile) = tiles.next() {
            if T::TALL && tile.is_tall {
                let mut d = [[0.0; TALL_ROWS / 2]];
                self.multiply::<T, _, _>(&mut d, tile.num_steps);
                self.output.store::<{ TALL_ROWS / 2 }>(|register| d[0][register], &tile, 0);
            } else if T::RAGGED {
                match tile.num_rows.div_ceil(ROW_STEP) {
                    1 => self.tile::<T, 8>(tile),
                    2 => self.tile::<T, 16>(tile),
                    3 => self.tile::<T, 24>(tile),
                    4 => self.tile::<T, 32>(tile),
                    5 => self.tile::<T, 40>(tile),
                    6 => self.tile::<T, 48>(tile),
                    7 => self.tile::<T, 56>(tile),
                    _ => self.tile::<T, 64>(tile),
                }
            } else {
                self.tile::<T, REGISTERS>(tile);
            }
        }
        self.output.finish();
    }

    /// One tile of `2 N` rows of A.
    #[inline(always)]
    unsafe fn tile<T: Tiles, const N: usize>(&mut self, tile: Tile) {
        if T::PAIRED && !self.output.has_columns(&tile) {
            return self.pass::<T>(tile.num_steps);
        }
        let mut d = [[0.0; N]; BLOCKS];
        self.multiply::<T, _, _>(&mut d, tile.num_steps);
        if GATED {
            let [gates, ups] = [&d[0], &d[BLOCKS - 1]];
            self.output.store::<N>(|register| silu(gates[register]) * ups[register], &tile, 0);
        } else {
            for block in 0..BLOCKS {
                let d = &d[block];
                self.output.store::<N>(|register| d[register], &tile, block * BLOCK_ROWS);
            }
        }
    }

    #[inline(always)]
    unsafe fn multiply<T: Tiles, const N: usize, const NUM_BLOCKS: usize>(
        &mut self,
        d: &mut [[f32; N]; NUM_BLOCKS],
        num_steps: u32,
    ) {
        let first_row = self.output.warpgroup as usize * ROWS;
        let mut step = 0;
        let mut previous = self.ring.stage;
        // There is a step. Were the loop one that asks first, ptxas would see a path on which nothing
        // is multiplied, and serialize.
        loop {
            let ring = self.ring;
            ring.full().wait(ring.parity);
            let a = SwizzledTile::<bf16>::at(ring.a(NUM_BLOCKS).cast());
            let b = SwizzledTile::<bf16>::at(ring.b().cast()).from_row(first_row);
            for block in 0..NUM_BLOCKS {
                wgmma::fence(&mut d[block]);
            }
            for k in (0..STAGE_COLUMNS).step_by(16) {
                for block in 0..NUM_BLOCKS {
                    let b = b.from_row(block * BLOCK_ROWS).from_column(k);
                    wgmma::multiply(&mut d[block], b, a.from_column(k), step > 0 || k > 0);
                }
            }
            wgmma::commit_group();
            for block in 0..NUM_BLOCKS {
                wgmma::wait_group::<1, _>(&mut d[block]);
            }
            if step > 0 {
                self.release::<T>(previous);
            }
            previous = ring.stage;
            self.ring.advance();
            step += 1;
            if step == num_steps {
                break;
            }
        }
        for block in 0..NUM_BLOCKS {
            wgmma::wait_group::<0, _>(&mut d[block]);
        }
        self.release::<T>(previous);
    }

    /// Frees stages of which this warpgroup needs nothing.
    #[inline(always)]
    unsafe fn pass<T: Tiles>(&mut self, num_steps: u32) {
        for _ in 0..num_steps {
            let ring = self.ring;
            ring.full().wait(ring.parity);
            self.release::<T>(ring.stage);
            self.ring.advance();
        }
    }

    /// Says that this warp has read a stage, to all that load to it.
    #[inline(always)]
    unsafe fn release<T: Tiles>(&self, stage: u32) {
        warp::sync_warp(warp::FULL_MASK);
        let (lane, empty) = (warp::lane_id(), self.ring.empty(stage));
        if T::PAIRED {
            if lane < num_blocks::<T>() {
                empty.arrive_in(lane);
            }
        } else if lane == 0 {
            empty.arrive();
        }
    }
}
