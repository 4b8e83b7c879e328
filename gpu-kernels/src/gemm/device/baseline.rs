//! A tile of C for each block: `cp.async` and `mma`, on Ampere and later.

use cuda_std::prelude::*;
use half::bf16;

use super::block_tile::{Load, M_TILES, N_TILES, Operands, Stage, place_of_warp, store};
use crate::gemm::baseline::{NUM_STAGES, TILE_K};

/// `c[.., first_column..] = a b^T`, up to [`TILE_M`](crate::gemm::baseline::TILE_M) rows and
/// [`TILE_N`](crate::gemm::baseline::TILE_N) columns.
#[inline(always)]
pub(crate) unsafe fn multiply_tile(operands: Operands<bf16>, first_column: u32) {
    let lane = warp::lane_id() as usize;
    let [warp_row, warp_column] = place_of_warp();
    let ring = shared::dynamic_shared_mem::<bf16>();
    let load = Load::new(operands, first_column);

    let num_steps = operands.k.div_ceil(TILE_K as u32);
    let mut filled = Stage::first(ring);
    for step in 0..NUM_STAGES as u32 - 1 {
        load.stage(filled, step);
        async_copy::commit_group();
        filled = filled.next(ring);
    }

    let mut d = [[[0.0; 4]; N_TILES]; M_TILES];
    let mut read = Stage::first(ring);
    let mut step = 0;
    while step < num_steps {
        async_copy::wait_group::<{ NUM_STAGES as u32 - 2 }>();
        thread::sync_threads();
        load.stage(filled, step + NUM_STAGES as u32 - 1);
        async_copy::commit_group();
        filled = filled.next(ring);
        for k in 0..TILE_K / 16 {
            let mut a = [[0; 4]; M_TILES];
            for i in 0..M_TILES {
                let row = warp_row + 16 * i + lane % 16;
                a[i] = mma::load_matrix_x4(read.of_a(row, 2 * k + lane / 16));
            }
            for pair in 0..N_TILES / 2 {
                let row = warp_column + 16 * pair + lane / 16 * 8 + lane % 8;
                let b = mma::load_matrix_x4(read.of_b(row, 2 * k + lane / 8 % 2));
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
    store(&d, &operands, first_column);
}
