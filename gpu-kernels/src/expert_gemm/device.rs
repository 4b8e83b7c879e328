//! The kernels: a block for each tile, and persistent blocks.

// A kernel is one unsafe program: its launch vouches for it.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc)]

use bytemuck::Pod;
use cuda_std::prelude::*;
use cuda_std::tensor_map::{TensorMap, TensorMaps};
use half::bf16;

use crate::gemm::baseline::{TILE_M, TILE_N};
use crate::gemm::device::baseline::multiply_tile;
use crate::gemm::device::block_tile;
use crate::gemm::device::output::Output;
use crate::gemm::device::pipeline::{Operands, Tile, Tiles, run};
use crate::gemm::schedule::{Raster, RowTiles};
use crate::gemm::tma::{BLOCK_ROWS, RAGGED, STAGE_COLUMNS, TALL_ROWS};

/// Where the rows of expert `expert` begin, at most `num_rows`; no experts after the last have any.
#[inline(always)]
pub(crate) unsafe fn offset_of(
    expert_offsets: Global<i32>, // [num_experts + 1]
    num_experts: u32,
    num_rows: u32,
    expert: u32,
) -> u32 {
    expert_offsets.load(expert.min(num_experts) as usize).clamp(0, num_rows as i32) as u32
}

/// Up to [`TILE_M`] rows of an expert.
pub(crate) struct ExpertRows {
    pub expert: usize,
    pub first_row: usize,
    pub num_rows: u32,
}

impl ExpertRows {
    /// What a block multiplies for these rows.
    #[inline(always)]
    pub(crate) unsafe fn operands<T: Pod>(
        &self,
        a: Global<T>,       // [num_rows, k]
        b: Global<T>,       // [num_experts, n, k]
        c: GlobalMut<bf16>, // [num_rows, n]
        n: u32,
        k: u32,
    ) -> block_tile::Operands<T> {
        block_tile::Operands {
            a: a.offset(self.first_row * k as usize),
            b: b.offset(self.expert * n as usize * k as usize),
            c: c.offset(self.first_row * n as usize),
            num_rows: self.num_rows,
            n,
            k,
        }
    }
}

/// The rows of tile `tile` of all experts' tiles, if there are so many.
#[inline(always)]
pub(crate) unsafe fn rows_of_tile(
    expert_offsets: Global<i32>, // [num_experts + 1]
    num_experts: u32,
    num_rows: u32,
    mut tile: u32,
) -> Option<ExpertRows> {
    let mut expert = 0;
    while expert < num_experts {
        let begin = offset_of(expert_offsets, num_experts, num_rows, expert);
        let end = offset_of(expert_offsets, num_experts, num_rows, expert + 1);
        let rows = end.saturating_sub(begin);
        let num_tiles = rows.div_ceil(TILE_M as u32);
        if tile < num_tiles {
            let first = tile * TILE_M as u32;
            let first_row = (begin + first) as usize;
            return Some(ExpertRows { expert: expert as usize, first_row, num_rows: rows - first });
        }
        tile -= num_tiles;
        expert += 1;
    }
    None
}

/// `c[r] = a[r] b[e]^T` for the rows of each expert, a block for each tile of 128 x 128.
#[kernel(threads = 256, min_blocks = 2)]
pub unsafe fn expert_gemm_baseline_bf16(
    a: Global<bf16>,             // [num_rows, k]
    b: Global<bf16>,             // [num_experts, n, k]
    expert_offsets: Global<i32>, // [num_experts + 1]
    num_rows: u32,
    num_experts: u32,
    n: u32,
    k: u32,
    c: GlobalMut<bf16>, // [num_rows, n]
) {
    let tile = thread::block_idx_y();
    let Some(rows) = rows_of_tile(expert_offsets, num_experts, num_rows, tile) else { return };
    multiply_tile(rows.operands(a, b, c, n, k), thread::block_idx_x() * TILE_N as u32);
}

/// The tiles of all experts, of whom each lane holds one of 32. With `TALL`, an expert whose rows
/// nearly fill tall tiles has those: its weights are then read half as often.
#[derive(Clone, Copy)]
pub(crate) struct ExpertTiles<const TALL: bool> {
    expert_offsets: Global<i32>, // [num_experts + 1]
    num_experts: u32,
    num_rows: u32,
    n: u32,
    /// Columns of C of a tile, of a tall one half as many.
    columns: u32,
    num_steps: u32,
    /// The block's next tile.
    next: u32,
    /// The first lane's expert.
    first_expert: u32,
    /// Of this lane's expert: first row, rows, and the number of the tile after its last.
    begin: u32,
    rows: u32,
    tiles_end: u32,
}

const WARP: u32 = warp::WARP_SIZE;

/// Lane `lane`'s value.
#[inline(always)]
unsafe fn of_lane(value: u32, lane: u32) -> u32 {
    warp::warp_shuffle_idx(warp::FULL_MASK, value, lane, WARP).0
}

impl<const TALL: bool> ExpertTiles<TALL> {
    /// The tiles of this block. All lanes of a warp call it together.
    #[inline(always)]
    pub(crate) unsafe fn new(
        expert_offsets: Global<i32>, // [num_experts + 1]
        num_experts: u32,
        num_rows: u32,
        n: u32,
        k: u32,
        columns: u32,
    ) -> Self {
        let mut tiles = Self {
            expert_offsets,
            num_experts,
            num_rows,
            n,
            columns,
            num_steps: k.div_ceil(STAGE_COLUMNS as u32),
            next: thread::block_idx_x(),
            first_expert: 0,
            begin: 0,
            rows: 0,
            tiles_end: 0,
        };
        tiles.hold(0, 0);
        tiles
    }

    #[inline(always)]
    fn is_tall(rows: u32) -> bool {
        let num_tiles = rows.div_ceil(TALL_ROWS as u32);
        let fewest = if num_tiles == 1 { FEWEST_TALL_ROWS } else { FEWEST_ROWS_OF_SEVERAL };
        TALL && rows > num_tiles * fewest
    }

    /// How the rows of an expert of `rows` are dealt, and its tiles of columns.
    #[inline(always)]
    fn tiles_of(&self, rows: u32) -> (RowTiles, Raster) {
        let (max_rows, columns) = match Self::is_tall(rows) {
            true => (TALL_ROWS as u32, self.columns / 2),
            false => (RAGGED.max_rows as u32, self.columns),
        };
        let row_tiles = RowTiles::new(rows, max_rows);
        (row_tiles, Raster { m_tiles: row_tiles.num_tiles, n_tiles: self.n.div_ceil(columns) })
    }

    /// Takes the 32 experts from `first_expert` on, before whom there are `tiles_before` tiles.
    #[inline(always)]
    unsafe fn hold(&mut self, first_expert: u32, tiles_before: u32) {
        let expert = first_expert + warp::lane_id();
        let offset =
            |expert| offset_of(self.expert_offsets, self.num_experts, self.num_rows, expert);
        self.first_expert = first_expert;
        self.begin = offset(expert);
        self.rows = offset(expert + 1).saturating_sub(self.begin);
        let (_, raster) = self.tiles_of(self.rows);
        let mut tiles = raster.num_tiles();
        let mut distance = 1;
        while distance < WARP {
            let (before, exists) = warp::warp_shuffle_up(warp::FULL_MASK, tiles, distance, WARP);
            tiles += if exists { before } else { 0 };
            distance *= 2;
        }
        self.tiles_end = tiles_before + tiles;
    }
}

impl<const TALL: bool> Tiles for ExpertTiles<TALL> {
    const PAIRED: bool = false;
    const RAGGED: bool = true;
    const TALL: bool = TALL;

    #[inline(always)]
    unsafe fn next(&mut self) -> Option<Tile> {
        loop {
            let owners = warp::warp_vote_ballot(warp::FULL_MASK, self.next < self.tiles_end);
            if owners != 0 {
                return Some(self.tile_of(owners.trailing_zeros()));
            }
            if self.first_expert + WARP >= self.num_experts {
                return None;
            }
            self.hold(self.first_expert + WARP, of_lane(self.tiles_end, WARP - 1));
        }
    }
}

impl<const TALL: bool> ExpertTiles<TALL> {
    /// The block's next tile, which is of the expert that `lane` holds.
    #[inline(always)]
    unsafe fn tile_of(&mut self, lane: u32) -> Tile {
        let (rows, raster) = self.tiles_of(of_lane(self.rows, lane));
        let is_tall = Self::is_tall(rows.num_rows);
        let columns = if is_tall { self.columns / 2 } else { self.columns };
        let in_expert = self.next + raster.num_tiles() - of_lane(self.tiles_end, lane);
        let (m_tile, n_tile) = raster.place(in_expert);
        let (first_row, num_rows) = rows.tile(m_tile);
        self.next += thread::grid_dim_x();
        Tile {
            expert: self.first_expert + lane,
            first_row: of_lane(self.begin, lane) + first_row,
            num_rows,
            first_column: n_tile * columns,
            num_steps: self.num_steps,
            is_tall,
        }
    }
}

const PLAIN: bool = false;
const GATED: bool = true;
const SOME_TALL: bool = true;
pub(crate) const NONE_TALL: bool = false;
/// Rows from which on an expert has a tall tile: fewer waste more than they save.
const FEWEST_TALL_ROWS: u32 = 192;
/// The same for each of several: those save less, as other tiles would still share weights.
const FEWEST_ROWS_OF_SEVERAL: u32 = 240;

/// `c[r] = a[r] b[e]^T` for the rows of each expert.
#[kernel(target = "sm_90a", threads = 384, min_blocks = 1)]
pub unsafe fn expert_gemm_grouped_bf16(
    a: TensorMaps<bf16, 2, 9>,      // [num_rows, k]
    b: TensorMap<bf16, 3>,          // [num_experts, n, k]
    c_maps: TensorMaps<bf16, 2, 4>, // [num_rows, n]
    expert_offsets: Global<i32>,    // [num_experts + 1]
    num_rows: u32,
    num_experts: u32,
    n: u32,
    k: u32,
    c: GlobalMut<bf16>, // [num_rows, n]
) {
    let operands = Operands { a, b, second_block: BLOCK_ROWS as u32 };
    let output = Output { maps: c_maps, c, n };
    let columns = 2 * BLOCK_ROWS as u32;
    let tiles = ExpertTiles::<SOME_TALL>::new(expert_offsets, num_experts, num_rows, n, k, columns);
    run::<_, _, 2, 64, 4, PLAIN>(operands, output, tiles);
}

/// `c[r] = silu(a[r] g[e]^T) * (a[r] u[e]^T)` for the rows of each expert; `b[e]` is `g[e]`, then
/// `u[e]`.
#[kernel(target = "sm_90a", threads = 384, min_blocks = 1)]
pub unsafe fn expert_gemm_gated_bf16(
    a: TensorMaps<bf16, 2, 9>,      // [num_rows, k]
    b: TensorMap<bf16, 3>,          // [num_experts, 2 n, k]
    c_maps: TensorMaps<bf16, 2, 4>, // [num_rows, n]
    expert_offsets: Global<i32>,    // [num_experts + 1]
    num_rows: u32,
    num_experts: u32,
    n: u32,
    k: u32,
    c: GlobalMut<bf16>, // [num_rows, n]
) {
    let operands = Operands { a, b, second_block: n };
    let output = Output { maps: c_maps, c, n };
    let columns = BLOCK_ROWS as u32;
    let tiles = ExpertTiles::<NONE_TALL>::new(expert_offsets, num_experts, num_rows, n, k, columns);
    run::<_, _, 2, 64, 4, GATED>(operands, output, tiles);
}
