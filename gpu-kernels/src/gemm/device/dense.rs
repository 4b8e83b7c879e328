//! Products of one B, by the copy engine.

use cuda_std::prelude::*;
use cuda_std::tensor_map::{TensorMap, TensorMaps};
use half::bf16;

use super::output::{Meeting, Output};
use super::pipeline::{Operands, Tile, Tiles, run};
use crate::gemm::schedule::{Raster, RowTiles, split_begin};
use crate::gemm::tma::{BLOCK_ROWS, SPLIT, STAGE_COLUMNS, WIDE};

/// The tiles of one product. `ROWS` of a tile; 0: at most 128, as many as there are.
#[derive(Clone, Copy)]
pub(crate) struct DenseTiles<const ROWS: u32> {
    raster: Raster,
    rows: RowTiles,
    /// Columns of C of a tile.
    columns: u32,
    num_steps: u32,
    num_splits: u32,
    next: u32,
}

impl<const ROWS: u32> DenseTiles<ROWS> {
    /// The tiles of this block.
    #[inline(always)]
    pub fn new(m: u32, n: u32, k: u32, columns: u32, num_splits: u32) -> Self {
        let rows = if Self::RAGGED {
            RowTiles::new(m, SPLIT.max_rows as u32)
        } else {
            RowTiles { num_rows: m, num_tiles: m.div_ceil(ROWS), rows_per_tile: ROWS }
        };
        Self {
            raster: Raster { m_tiles: rows.num_tiles, n_tiles: n.div_ceil(columns) },
            rows,
            columns,
            num_steps: k.div_ceil(STAGE_COLUMNS as u32),
            num_splits,
            next: thread::block_idx_x(),
        }
    }
}

impl<const ROWS: u32> Tiles for DenseTiles<ROWS> {
    const RAGGED: bool = ROWS == 0;

    #[inline(always)]
    unsafe fn next(&mut self) -> Option<Tile> {
        let number = self.next / self.num_splits;
        let split = self.next % self.num_splits;
        if number >= self.raster.num_tiles() {
            return None;
        }
        self.next += thread::grid_dim_x();
        let (m_tile, n_tile) = self.raster.place(number);
        let (first_row, num_rows) = self.rows.tile(m_tile);
        let begin = |split| split_begin(self.num_steps, self.num_splits, split);
        Some(Tile {
            expert: 0,
            first_row,
            num_rows,
            first_column: n_tile * self.columns,
            steps: [begin(split), begin(split + 1)],
            number,
            split,
        })
    }
}

const PLAIN: bool = false;
const ALONE: bool = false;
const SHARED_TILES: bool = true;

const _: () = assert!(WIDE.blocks == 1 && WIDE.max_rows == 256 && WIDE.num_stages == 4);
const _: () = assert!(SPLIT.blocks == 1 && SPLIT.max_rows == 128 && SPLIT.num_stages == 6);

/// `c = a b^T`, tiles of 256 rows of A and 128 of B.
#[kernel(target = "sm_90a", threads = 384, min_blocks = 1)]
pub unsafe fn gemm_tma_bf16(
    a: TensorMap<bf16, 2>,          // [m, k]
    b: TensorMap<bf16, 3>,          // [1, n, k]
    c_maps: TensorMaps<bf16, 2, 4>, // [m, n]
    m: u32,
    n: u32,
    k: u32,
    c: GlobalMut<bf16>, // [m, n]
) {
    let operands = Operands { a, b, second_block: 0 };
    let output = Output { maps: c_maps, c, n, meeting: Meeting::none() };
    let tiles = DenseTiles::<256>::new(m, n, k, BLOCK_ROWS as u32, 1);
    run::<_, _, 1, 128, 4, PLAIN, ALONE>(operands, output, tiles);
}

/// `c = a b^T`, tiles of up to 128 rows of A and 128 of B, each the sum of `num_splits` blocks.
#[kernel(target = "sm_90a", threads = 384, min_blocks = 1)]
pub unsafe fn gemm_split_bf16(
    a: TensorMaps<bf16, 2, 8>,      // [m, k]
    b: TensorMap<bf16, 3>,          // [1, n, k]
    c_maps: TensorMaps<bf16, 2, 4>, // [m, n]
    m: u32,
    n: u32,
    k: u32,
    num_splits: u32,
    sums: GlobalMut<f32>,    // [tiles, num_splits, 128, up to 128]
    arrived: GlobalMut<u32>, // [tiles, 2, 2], 0 before and after
    c: GlobalMut<bf16>,      // [m, n]
) {
    let operands = Operands { a, b, second_block: 0 };
    let output = Output { maps: c_maps, c, n, meeting: Meeting { sums, arrived, num_splits } };
    let tiles = DenseTiles::<0>::new(m, n, k, BLOCK_ROWS as u32, num_splits);
    run::<_, _, 1, 64, 6, PLAIN, SHARED_TILES>(operands, output, tiles);
}
