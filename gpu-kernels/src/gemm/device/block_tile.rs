//! What products with a tile of C for each block share, whatever they multiply: A and B by `cp.async`
//! through a ring in shared memory, and sums in the fragments of `mma` to C.

use bytemuck::Pod;
use cuda_std::prelude::*;
use half::bf16;

use crate::gemm::baseline::{NUM_STAGES, NUM_THREADS, ROW_BYTES, TILE_M, TILE_N};

/// Rows and columns of C of a warp, of which a block has 2 x 4.
const WARP_M: usize = 64;
const WARP_N: usize = 32;
pub(crate) const M_TILES: usize = WARP_M / 16;
pub(crate) const N_TILES: usize = WARP_N / 8;

const PIECE_BYTES: usize = 16;
/// Pieces of 16 bytes of a stage's row.
pub(crate) const PIECES: usize = ROW_BYTES / PIECE_BYTES;

/// Sums of a warp.
pub(crate) type Sums = [[[f32; 4]; N_TILES]; M_TILES];

/// What a block multiplies: its rows of A with all of B, of whose rows it takes a tile.
#[derive(Clone, Copy)]
pub(crate) struct Operands<T> {
    /// From the tile's first row on: `[num_rows, k]`.
    pub a: Global<T>,
    /// `[n, k]`
    pub b: Global<T>,
    /// From the tile's first row on: `[num_rows, n]`.
    pub c: GlobalMut<bf16>,
    pub num_rows: u32,
    pub n: u32,
    pub k: u32,
}

/// First row and first column of this warp, in the tile.
#[inline(always)]
pub(crate) fn place_of_warp() -> [usize; 2] {
    let warp = thread::thread_idx_x() as usize / 32;
    [warp / 4 * WARP_M, warp % 4 * WARP_N]
}

/// A stage of the ring. Its place moves as a whole: see the room paged_attention for what an
/// address computed from an index does to `cp.async`.
#[derive(Clone, Copy)]
pub(crate) struct Stage<T> {
    place: Shared<T>,
    idx: usize,
}

impl<T: Pod> Stage<T> {
    /// Elements of a piece, of a row, of the rows of A, and of a stage.
    const PIECE: usize = PIECE_BYTES / size_of::<T>();
    const ROW: usize = ROW_BYTES / size_of::<T>();
    const A: usize = TILE_M * Self::ROW;
    const ALL: usize = (TILE_M + TILE_N) * Self::ROW;

    #[inline(always)]
    pub(crate) fn first(ring: Shared<T>) -> Self {
        Self { place: ring, idx: 0 }
    }

    #[inline(always)]
    pub(crate) unsafe fn next(self, ring: Shared<T>) -> Self {
        if self.idx + 1 == NUM_STAGES {
            Self::first(ring)
        } else {
            Self { place: self.place.offset(Self::ALL), idx: self.idx + 1 }
        }
    }

    /// Where a piece of a row of A lies.
    #[inline(always)]
    pub(crate) unsafe fn of_a(self, row: usize, piece: usize) -> Shared<T> {
        Self::piece(self.place, row, piece)
    }

    /// Where a piece of a row of B lies.
    #[inline(always)]
    pub(crate) unsafe fn of_b(self, row: usize, piece: usize) -> Shared<T> {
        Self::piece(self.place.offset(Self::A), row, piece)
    }

    /// Two rows fill 128 bytes, and the pieces of every other two change places, so that the eight
    /// rows which a matrix is loaded from lie in different banks.
    #[inline(always)]
    unsafe fn piece(rows: Shared<T>, row: usize, piece: usize) -> Shared<T> {
        rows.offset(row * Self::ROW + (piece ^ (row / 2 % PIECES)) * Self::PIECE)
    }
}

/// What a thread copies of each stage: the same piece of several rows.
pub(crate) struct Load<T> {
    operands: Operands<T>,
    first_column: u32,
    row: usize,
    piece: usize,
}

impl<T: Pod> Load<T> {
    const ROWS: usize = NUM_THREADS as usize / PIECES;

    #[inline(always)]
    pub(crate) fn new(operands: Operands<T>, first_column: u32) -> Self {
        let thread = thread::thread_idx_x() as usize;
        Self { operands, first_column, row: thread / PIECES, piece: thread % PIECES }
    }

    /// Copies step `step`'s columns; zeros beyond the last row and the last column.
    #[inline(always)]
    pub(crate) unsafe fn stage(&self, stage: Stage<T>, step: u32) {
        let Operands { a, b, num_rows, n, k, .. } = self.operands;
        let column = step * Stage::<T>::ROW as u32 + (self.piece * Stage::<T>::PIECE) as u32;
        for i in 0..TILE_M / Self::ROWS {
            let row = self.row + i * Self::ROWS;
            copy(stage.of_a(row, self.piece), a, row as u32, num_rows, column, k);
        }
        for i in 0..TILE_N / Self::ROWS {
            let row = self.row + i * Self::ROWS;
            let b_row = self.first_column + row as u32;
            copy(stage.of_b(row, self.piece), b, b_row, n, column, k);
        }
    }
}

#[inline(always)]
unsafe fn copy<T: Pod>(
    dst: Shared<T>,
    x: Global<T>, // [num_rows, k]
    row: u32,
    num_rows: u32,
    column: u32,
    k: u32,
) {
    let exists = row < num_rows && column < k;
    let element = if exists { row as usize * k as usize + column as usize } else { 0 };
    async_copy::copy_shared_16_or_zero(dst, x.offset(element), exists);
}

/// Rounds a warp's sums and stores those that C has room for.
#[inline(always)]
pub(crate) unsafe fn store<T>(sums: &Sums, operands: &Operands<T>, first_column: u32) {
    let [warp_row, warp_column] = place_of_warp();
    let (g, t) = (warp::lane_id() as usize / 4, warp::lane_id() as usize % 4);
    for i in 0..M_TILES {
        for j in 0..N_TILES {
            for half in 0..2 {
                let row = (warp_row + 16 * i + g + 8 * half) as u32;
                let column = first_column + (warp_column + 8 * j + 2 * t) as u32;
                if row < operands.num_rows && column < operands.n {
                    let place = row as usize * operands.n as usize + column as usize;
                    let pair = bf16::pack(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
                    operands.c.cast::<u32>().store(place / 2, pair);
                }
            }
        }
    }
}
