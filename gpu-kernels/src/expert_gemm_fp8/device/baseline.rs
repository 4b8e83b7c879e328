//! A tile of C for each block: `cp.async`, f16 in registers and `mma`, on Ampere and later.

use cuda_std::float::E4m3;
use cuda_std::prelude::*;
use half::f16;

use crate::gemm::baseline::{NUM_STAGES, ROW_BYTES};
use crate::gemm::device::block_tile::{
    self, Load, M_TILES, N_TILES, PIECES, Stage, Sums, place_of_warp, store,
};
use crate::token_unpack::SCALE_BLOCK;

/// Stages of the columns of one scale.
const STAGES_OF_SCALE: u32 = SCALE_BLOCK / ROW_BYTES as u32;

/// What a block multiplies.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub of_tile: block_tile::Operands<E4m3>,
    /// From the tile's first row on: `[num_rows, k.div_ceil(128)]`.
    pub a_scales: Global<f32>,
    /// Of the tile's rows of B: `[k.div_ceil(128)]`.
    pub b_scales: Global<f32>,
}

/// `c[.., first_column..] = a b^T`, up to [`TILE_M`](crate::gemm::baseline::TILE_M) rows and
/// [`TILE_N`](crate::gemm::baseline::TILE_N) columns.
#[inline(always)]
pub(super) unsafe fn multiply_tile(operands: Operands, first_column: u32) {
    let ring = shared::dynamic_shared_mem::<E4m3>();
    let load = Load::new(operands.of_tile, first_column);

    let num_scales = operands.of_tile.k.div_ceil(SCALE_BLOCK);
    let mut filled = Stage::first(ring);
    for step in 0..NUM_STAGES as u32 - 1 {
        load.stage(filled, step);
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
            load.stage(filled, step + NUM_STAGES as u32 - 1);
            async_copy::commit_group();
            filled = filled.next(ring);
            multiply_stage(&mut products, read);
            read = read.next(ring);
        }
        promote(&mut sums, &products, &operands, scale, num_scales);
        scale += 1;
    }
    store(&sums, &operands.of_tile, first_column);
}

/// `products += a b^T` over a stage's columns.
#[inline(always)]
unsafe fn multiply_stage(products: &mut Sums, stage: Stage<E4m3>) {
    let lane = warp::lane_id() as usize;
    let [warp_row, warp_column] = place_of_warp();
    for pieces in (0..PIECES).step_by(2) {
        // Of each piece a lane has four columns side by side, of A as of B: in which order columns are
        // summed up does not matter.
        let mut b = [[[0; 2]; 2]; N_TILES];
        for pair in 0..N_TILES / 2 {
            let row = warp_column + 16 * pair + lane / 16 * 8 + lane % 8;
            let eights = mma::load_matrix_x4(stage.of_b(row, pieces + lane / 8 % 2));
            for j in 0..2 {
                for piece in 0..2 {
                    b[2 * pair + j][piece] = float::unpack_e4m3(eights[2 * j + piece]);
                }
            }
        }
        for i in 0..M_TILES {
            let row = warp_row + 16 * i + lane % 16;
            let eights = mma::load_matrix_x4(stage.of_a(row, pieces + lane / 16));
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
    scale: u32,
    num_scales: u32,
) {
    let [warp_row, _] = place_of_warp();
    let first_row = warp_row as u32 + warp::lane_id() / 4;
    let of_b = operands.b_scales.load(scale as usize);
    for i in 0..M_TILES {
        for half in 0..2 {
            let row = first_row + (16 * i + 8 * half) as u32;
            if row < operands.of_tile.num_rows {
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
