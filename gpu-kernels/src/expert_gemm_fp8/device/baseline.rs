//! A tile of C for each block: `cp.async`, f16 in registers and `mma`, on Ampere and later.

use cuda_std::float::E4m3;
use cuda_std::prelude::*;
use half::{bf16, f16};

use crate::expert_gemm_fp8::baseline::{NUM_STAGES, NUM_THREADS, TILE_K, TILE_M, TILE_N};
use crate::token_unpack::SCALE_BLOCK;

/// Rows and columns of C of a warp, of which a block has 2 x 4.
const WARP_M: usize = 64;
const WARP_N: usize = 32;
const M_TILES: usize = WARP_M / 16;
const N_TILES: usize = WARP_N / 8;

/// Elements of a 16-byte piece, and pieces of a stage's row.
const PIECE: usize = 16;
const PIECES: usize = TILE_K / PIECE;

const A_STAGE: usize = TILE_M * TILE_K;
const STAGE: usize = (TILE_M + TILE_N) * TILE_K;
/// Stages of the columns of one scale.
const STAGES_OF_SCALE: u32 = SCALE_BLOCK / TILE_K as u32;

type Sums = [[[f32; 4]; N_TILES]; M_TILES];

/// What a block multiplies: its rows of A with all of B, of whose rows it takes a tile.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// From the tile's first row on: `[num_rows, k]`.
    pub a: Global<E4m3>,
    /// From the tile's first row on: `[num_rows, k.div_ceil(128)]`.
    pub a_scales: Global<f32>,
    /// `[n, k]`
    pub b: Global<E4m3>,
    /// Of the tile's rows of B: `[k.div_ceil(128)]`.
    pub b_scales: Global<f32>,
    /// From the tile's first row on: `[num_rows, n]`.
    pub c: GlobalMut<bf16>,
    pub num_rows: u32,
    pub n: u32,
    pub k: u32,
}

/// `c[.., first_column..] = a b^T`, up to [`TILE_M`] rows and [`TILE_N`] columns.
#[inline(always)]
pub(super) unsafe fn multiply_tile(operands: Operands, first_column: u32) {
    let (thread, lane) = (thread::thread_idx_x() as usize, warp::lane_id() as usize);
    let warp_row = thread / 32 / 4 * WARP_M;
    let warp_column = thread / 32 % 4 * WARP_N;
    let ring = shared::dynamic_shared_mem::<E4m3>();
    let load = Load::new(operands, first_column, thread);

    let num_scales = operands.k.div_ceil(SCALE_BLOCK);
    let mut filled = Stage::first(ring);
    for step in 0..NUM_STAGES as u32 - 1 {
        load.stage(filled.place, step);
        async_copy::commit_group();
        filled = filled.next(ring);
    }

    let mut sums: Sums = [[[0.0; 4]; N_TILES]; M_TILES];
    let mut read = Stage::first(ring);
    let mut scale = 0;
    while scale < num_scales {
        let mut products: Sums = [[[0.0; 4]; N_TILES]; M_TILES];
        for half in 0..STAGES_OF_SCALE {
            async_copy::wait_group::<{ NUM_STAGES as u32 - 2 }>();
            thread::sync_threads();
            let step = scale * STAGES_OF_SCALE + half;
            load.stage(filled.place, step + NUM_STAGES as u32 - 1);
            async_copy::commit_group();
            filled = filled.next(ring);
            multiply_stage(&mut products, read.place, warp_row, warp_column);
            read = read.next(ring);
        }
        promote(&mut sums, &products, &operands, (warp_row + lane / 4) as u32, scale, num_scales);
        scale += 1;
    }
    store(&sums, &operands, warp_row, first_column as usize + warp_column);
}

/// `products += a b^T` over a stage's columns.
#[inline(always)]
unsafe fn multiply_stage(
    products: &mut Sums,
    stage: Shared<E4m3>,
    warp_row: usize,
    warp_column: usize,
) {
    let lane = warp::lane_id() as usize;
    for pieces in (0..PIECES).step_by(2) {
        // Of each piece a lane has four columns side by side, of A as of B: in which order columns are
        // summed up does not matter.
        let mut b = [[[0; 2]; 2]; N_TILES];
        for pair in 0..N_TILES / 2 {
            let row = warp_column + 16 * pair + lane / 16 * 8 + lane % 8;
            let of_b = place(stage.offset(A_STAGE), row, pieces + lane / 8 % 2);
            let eights = mma::load_matrix_x4(of_b);
            for j in 0..2 {
                for piece in 0..2 {
                    b[2 * pair + j][piece] = float::unpack_e4m3(eights[2 * j + piece]);
                }
            }
        }
        for i in 0..M_TILES {
            let row = warp_row + 16 * i + lane % 16;
            let eights = mma::load_matrix_x4(place(stage, row, pieces + lane / 16));
            for piece in 0..2 {
                let [top_left, top_right] = float::unpack_e4m3(eights[2 * piece]);
                let [bottom_left, bottom_right] = float::unpack_e4m3(eights[2 * piece + 1]);
                let a = [top_left, bottom_left, top_right, bottom_right];
                for j in 0..N_TILES {
                    products[i][j] = mma::m16n8k16::<f16>(a, b[j][piece], products[i][j]);
                }
            }
        }
    }
}

/// Adds products over the columns of one scale to sums, times the scales of their row and of B.
#[inline(always)]
unsafe fn promote(
    sums: &mut Sums,
    products: &Sums,
    operands: &Operands,
    first_row: u32,
    scale: u32,
    num_scales: u32,
) {
    let of_b = operands.b_scales.load(scale as usize);
    for i in 0..M_TILES {
        for half in 0..2 {
            let row = first_row + (16 * i + 8 * half) as u32;
            if row < operands.num_rows {
                let place = row * num_scales + scale;
                let both = operands.a_scales.load(place as usize) * of_b;
                for j in 0..N_TILES {
                    for register in 2 * half..2 * half + 2 {
                        sums[i][j][register] += both * products[i][j][register];
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn store(sums: &Sums, operands: &Operands, warp_row: usize, first_column: usize) {
    let (g, t) = (warp::lane_id() as usize / 4, warp::lane_id() as usize % 4);
    for i in 0..M_TILES {
        for j in 0..N_TILES {
            for half in 0..2 {
                let row = (warp_row + 16 * i + g + 8 * half) as u32;
                let column = (first_column + 8 * j + 2 * t) as u32;
                if row < operands.num_rows && column < operands.n {
                    let pair = bf16::pack(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
                    let place = row * operands.n + column;
                    operands.c.cast::<u32>().store(place as usize / 2, pair);
                }
            }
        }
    }
}

/// A stage of the ring. Its place moves as a whole: see the room paged_attention for what an
/// address computed from an index does to `cp.async`.
#[derive(Clone, Copy)]
struct Stage {
    place: Shared<E4m3>,
    idx: usize,
}

impl Stage {
    #[inline(always)]
    fn first(ring: Shared<E4m3>) -> Self {
        Self { place: ring, idx: 0 }
    }

    #[inline(always)]
    unsafe fn next(self, ring: Shared<E4m3>) -> Self {
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
unsafe fn place(stage: Shared<E4m3>, row: usize, piece: usize) -> Shared<E4m3> {
    stage.offset(row * TILE_K + (piece ^ (row / 2 % PIECES)) * PIECE)
}

/// What a thread copies of each stage: the same piece of several rows.
struct Load {
    /// B from the tile's first row on.
    operands: Operands,
    first_column: u32,
    row: usize,
    piece: usize,
}

impl Load {
    const ROWS: usize = NUM_THREADS as usize / PIECES;

    #[inline(always)]
    unsafe fn new(operands: Operands, first_column: u32, thread: usize) -> Self {
        let (row, piece) = (thread / PIECES, thread % PIECES);
        let b = operands.b.offset(first_column as usize * operands.k as usize);
        Self { operands: Operands { b, ..operands }, first_column, row, piece }
    }

    /// Copies step `step`'s columns; zeros beyond the last row and the last column.
    #[inline(always)]
    unsafe fn stage(&self, stage: Shared<E4m3>, step: u32) {
        let Operands { a, b, num_rows, n, k, .. } = self.operands;
        let column = step * TILE_K as u32 + (self.piece * PIECE) as u32;
        for i in 0..TILE_M / Self::ROWS {
            let row = self.row + i * Self::ROWS;
            copy(place(stage, row, self.piece), a, row as u32, num_rows, column, k);
        }
        for i in 0..TILE_N / Self::ROWS {
            let row = self.row + i * Self::ROWS;
            let dst = place(stage.offset(A_STAGE), row, self.piece);
            copy(dst, b, row as u32, n - self.first_column, column, k);
        }
    }
}

#[inline(always)]
unsafe fn copy(
    dst: Shared<E4m3>,
    x: Global<E4m3>, // [num_rows, k]
    row: u32,
    num_rows: u32,
    column: u32,
    k: u32,
) {
    let exists = row < num_rows && column < k;
    let element = if exists { row * k + column } else { 0 };
    async_copy::copy_shared_16_or_zero(dst, x.offset(element as usize), exists);
}
