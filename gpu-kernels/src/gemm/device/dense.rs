//! Products of one B, by the copy engine.

use cuda_std::prelude::*;
use cuda_std::tensor_map::{TensorMap, TensorMaps};
use half::bf16;

use super::output::Output;
use super::pipeline::{Operands, Tile, Tiles, run};
use crate::gemm::schedule::{Raster, RowTiles};
use crate::gemm::tma::{BLOCK_ROWS, STAGE_COLUMNS, WIDE};

/// The tiles of one product, of `ROWS` rows of A.
#[derive(Clone, Copy)]
pub(crate) struct DenseTiles<const ROWS: u32> {
    raster: Raster,
    rows: RowTiles,
    /// Columns of C of a tile.
    columns: u32,
    num_steps: u32,
    next: u32,
}

impl<const ROWS: u32> DenseTiles<ROWS> {
    /// The tiles of this block.
    #[inline(always)]
    pub fn new(m: u32, n: u32, k: u32, columns: u32) -> Self {
        let rows = RowTiles { num_rows: m, num_tiles: m.div_ceil(ROWS), rows_per_tile: ROWS };
        Self {
            raster: Raster { m_tiles: rows.num_tiles, n_tiles: n.div_ceil(columns) },
            rows,
            columns,
            num_steps: k.div_ceil(STAGE_COLUMNS as u32),
            next: thread::block_idx_x(),
        }
    }
}

impl<const ROWS: u32> Tiles for DenseTiles<ROWS> {
    const PAIRED: bool = false;
    const RAGGED: bool = false;
    const TALL: bool = false;

    #[inline(always)]
    unsafe fn next(&mut self) -> Option<Tile> {
        if self.next >= self.raster.num_tiles() {
            return None;
        }
        let (m_tile, n_tile) = self.raster.place(self.next);
        self.next += thread::grid_dim_x();
        let (first_row, num_rows) = self.rows.tile(m_tile);
        Some(Tile {
            expert: 0,
            first_row,
            num_rows,
            first_column: n_tile * self.columns,
            num_steps: self.num_steps,
            is_tall: false,
        })
    }
}

/// The tiles of one product, in pairs that lie side by side, a pair a cluster.
#[derive(Clone, Copy)]
struct PairedTiles {
    /// Of pairs.
    raster: Raster,
    rows: RowTiles,
    num_steps: u32,
    rank: u32,
    cluster: u32,
    num_clusters: u32,
    /// Pairs that all clusters have had.
    taken: u32,
}

impl PairedTiles {
    #[inline(always)]
    fn new(m: u32, n: u32, k: u32) -> Self {
        let rows_per_tile = WIDE.max_rows as u32;
        let num_tiles = m.div_ceil(rows_per_tile);
        Self {
            raster: Raster { m_tiles: num_tiles, n_tiles: n.div_ceil(2 * BLOCK_ROWS as u32) },
            rows: RowTiles { num_rows: m, num_tiles, rows_per_tile },
            num_steps: k.div_ceil(STAGE_COLUMNS as u32),
            rank: cluster::block_rank(),
            cluster: thread::block_idx_x() / 2,
            num_clusters: thread::grid_dim_x() / 2,
            taken: 0,
        }
    }
}

impl Tiles for PairedTiles {
    const PAIRED: bool = true;
    const RAGGED: bool = false;
    const TALL: bool = false;

    /// There and back: who comes last in one round is first in the next. So the short pairs at the end,
    /// of a few columns, are dealt to as few clusters as can be.
    #[inline(always)]
    unsafe fn next(&mut self) -> Option<Tile> {
        let pair = self.taken + self.cluster;
        if pair >= self.raster.num_tiles() {
            return None;
        }
        self.taken += self.num_clusters;
        self.cluster = self.num_clusters - 1 - self.cluster;
        let (m_tile, n_pair) = self.raster.place(pair);
        let (first_row, num_rows) = self.rows.tile(m_tile);
        Some(Tile {
            expert: 0,
            first_row,
            num_rows,
            first_column: (2 * n_pair + self.rank) * BLOCK_ROWS as u32,
            num_steps: self.num_steps,
            is_tall: false,
        })
    }
}

const PLAIN: bool = false;

const _: () = assert!(WIDE.blocks == 1 && WIDE.max_rows == 256 && WIDE.num_stages == 4);

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
    let output = Output { maps: c_maps, c, n };
    let tiles = DenseTiles::<256>::new(m, n, k, BLOCK_ROWS as u32);
    run::<_, _, 1, 128, 4, PLAIN>(operands, output, tiles);
}

/// `c = a b^T`, tiles as those of [`gemm_tma_bf16`], in pairs that share loads of A.
#[kernel(target = "sm_90a", cluster = 2, threads = 384, min_blocks = 1)]
pub unsafe fn gemm_paired_bf16(
    a: TensorMap<bf16, 2>,          // [m, k]
    b: TensorMap<bf16, 3>,          // [1, n, k]
    c_maps: TensorMaps<bf16, 2, 4>, // [m, n]
    m: u32,
    n: u32,
    k: u32,
    c: GlobalMut<bf16>, // [m, n]
) {
    let operands = Operands { a, b, second_block: 0 };
    let output = Output { maps: c_maps, c, n };
    run::<_, _, 1, 128, 4, PLAIN>(operands, output, PairedTiles::new(m, n, k));
}
