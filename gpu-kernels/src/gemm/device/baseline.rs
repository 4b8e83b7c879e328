//! A tile of C for each block: `cp.async` and `mma`, on Ampere and later.

use cuda_std::prelude::*;
use half::bf16;

use crate::gemm::baseline::{NUM_STAGES, NUM_THREADS, TILE_K, TILE_M, TILE_N};

/// Rows and columns of C of a warp, of which a block has 2 x 4.
const WARP_M: usize = 64;
const WARP_N: usize = 32;
const M_TILES: usize = WARP_M / 16;
const N_TILES: usize = WARP_N / 8;

/// Elements of a 16-byte piece, and pieces of a stage's row.
const PIECE: usize = 8;
const PIECES: usize = TILE_K / PIECE;

const A_STAGE: usize = TILE_M * TILE_K;
const STAGE: usize = (TILE_M + TILE_N) * TILE_K;

/// What a block multiplies: its rows of A with all of B, of whose rows it takes a tile.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// From the tile's first row on: `[num_rows, k]`.
    pub a: Global<bf16>,
    /// `[n, k]`
    pub b: Global<bf16>,
    /// From the tile's first row on: `[num_rows, n]`.
    pub c: GlobalMut<bf16>,
    pub num_rows: u32,
    pub n: u32,
    pub k: u32,
}

/// `c[.., first_column..] = a b^T`, up to [`TILE_M`] rows and [`TILE_N`] columns.
#[inline(always)]
pub(crate) unsafe fn multiply_tile(operands: Operands, first_column: u32) {
    let (thread, lane) = (thread::thread_idx_x() as usize, warp::lane_id() as usize);
    let warp_row = thread / 32 / 4 * WARP_M;
    let warp_column = thread / 32 % 4 * WARP_N;
    let ring = shared::dynamic_shared_mem::<bf16>();
    let load = Load::new(operands, first_column, thread);

    let num_steps = operands.k.div_ceil(TILE_K as u32);
    let mut filled = Stage::first(ring);
    for step in 0..NUM_STAGES as u32 - 1 {
        load.stage(filled.place, step);
        async_copy::commit_group();
        filled = filled.next(ring);
    }

    let mut d = [[[0.0; 4]; N_TILES]; M_TILES];
    let mut read = Stage::first(ring);
    let mut step = 0;
    while step < num_steps {
        async_copy::wait_group::<{ NUM_STAGES as u32 - 2 }>();
        thread::sync_threads();
        load.stage(filled.place, step + NUM_STAGES as u32 - 1);
        async_copy::commit_group();
        filled = filled.next(ring);
        for k in 0..TILE_K / 16 {
            let mut a = [[0; 4]; M_TILES];
            for i in 0..M_TILES {
                let row = warp_row + 16 * i + lane % 16;
                a[i] = mma::load_matrix_x4(place(read.place, row, 2 * k + lane / 16));
            }
            for pair in 0..N_TILES / 2 {
                let row = warp_column + 16 * pair + lane / 16 * 8 + lane % 8;
                let b_stage = read.place.offset(A_STAGE);
                let b = mma::load_matrix_x4(place(b_stage, row, 2 * k + lane / 8 % 2));
                for i in 0..M_TILES {
                    for j in 0..2 {
                        let of_b = [b[2 * j], b[2 * j + 1]];
                        d[i][2 * pair + j] = mma::m16n8k16::<bf16>(a[i], of_b, d[i][2 * pair + j]);
                    }
                }
            }
        }
        read = read.next(ring);
        step += 1;
    }

    let (g, t) = (lane / 4, lane % 4);
    for i in 0..M_TILES {
        for j in 0..N_TILES {
            for half in 0..2 {
                let row = (warp_row + 16 * i + g + 8 * half) as u32;
                let column = first_column + (warp_column + 8 * j + 2 * t) as u32;
                if row < operands.num_rows && column < operands.n {
                    let place = row as usize * operands.n as usize + column as usize;
                    let pair = bf16::pack(d[i][j][2 * half], d[i][j][2 * half + 1]);
                    operands.c.cast::<u32>().store(place / 2, pair);
                }
            }
        }
    }
}

/// A stage of the ring. Its place moves as a whole: see the room paged_attention for what an
/// address computed from an index does to `cp.async`.
#[derive(Clone, Copy)]
struct Stage {
    place: Shared<bf16>,
    idx: usize,
}

impl Stage {
    #[inline(always)]
    fn first(ring: Shared<bf16>) -> Self {
        Self { place: ring, idx: 0 }
    }

    #[inline(always)]
    unsafe fn next(self, ring: Shared<bf16>) -> Self {
        if self.idx + 1 == NUM_STAGES {
            Self::first(ring)
        } else {
            Self { place: self.place.offset(STAGE), idx: self.idx + 1 }
        }
    }
}

/// Where a piece of a row lies in a stage: two rows fill 128 bytes, and the pieces of every other
/// two change places, so that the eight rows which a matrix is loaded from lie in different banks.
#[inline(always)]
unsafe fn place(stage: Shared<bf16>, row: usize, piece: usize) -> Shared<bf16> {
    stage.offset(row * TILE_K + (piece ^ (row / 2 % PIECES)) * PIECE)
}

/// What a thread copies of each stage: the same piece of several rows.
struct Load {
    operands: Operands,
    first_column: u32,
    row: usize,
    piece: usize,
}

impl Load {
    const ROWS: usize = NUM_THREADS as usize / PIECES;

    #[inline(always)]
    fn new(operands: Operands, first_column: u32, thread: usize) -> Self {
        let (row, piece) = (thread / PIECES, thread % PIECES);
        Self { operands, first_column, row, piece }
    }

    /// Copies step `step`'s columns; zeros beyond the last row and the last column.
    #[inline(always)]
    unsafe fn stage(&self, stage: Shared<bf16>, step: u32) {
        let Operands { a, b, num_rows, n, k, .. } = self.operands;
        let column = step * TILE_K as u32 + (self.piece * PIECE) as u32;
        for i in 0..TILE_M / Self::ROWS {
            let row = self.row + i * Self::ROWS;
            self.copy(place(stage, row, self.piece), a, row as u32, num_rows, column, k);
        }
        for i in 0..TILE_N / Self::ROWS {
            let row = self.row + i * Self::ROWS;
            let b_row = self.first_column + row as u32;
            self.copy(place(stage.offset(A_STAGE), row, self.piece), b, b_row, n, column, k);
        }
    }

    #[inline(always)]
    unsafe fn copy(
        &self,
        dst: Shared<bf16>,
        x: Global<bf16>, // [num_rows, k]
        row: u32,
        num_rows: u32,
        column: u32,
        k: u32,
    ) {
        let exists = row < num_rows && column < k;
        let element = if exists { row as usize * k as usize + column as usize } else { 0 };
        async_copy::copy_shared_16_or_zero(dst, x.offset(element), exists);
    }
}
