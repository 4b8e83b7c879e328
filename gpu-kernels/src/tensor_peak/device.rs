//! The kernels.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

use core::hint::assert_unchecked;

use cuda_std::prelude::*;
use cuda_std::wgmma::SwizzledTile;
use half::bf16;

use super::{MMA_TILE, NUM_THREADS, WGMMA_TILE};

/// Columns that lie together in shared memory: one row of a tile.
const STAGE_COLUMNS: usize = SwizzledTile::<bf16>::ROW_ELEMENTS;
const NUM_STAGES: usize = WGMMA_TILE.k / STAGE_COLUMNS;
const A_STAGE_BYTES: usize = SwizzledTile::<bf16>::bytes(WGMMA_TILE.m);
const B_STAGE_BYTES: usize = SwizzledTile::<bf16>::bytes(WGMMA_TILE.n);

/// Rows of A of a warpgroup, and of a warp.
const ROWS: usize = 64;

/// `out[block] = num_steps * a b^T`, from shared memory.
#[kernel(target = "sm_90a", threads = 256, min_blocks = 1)]
pub unsafe fn tensor_peak_wgmma(
    a: Global<bf16>, // [128, 256]
    b: Global<bf16>, // [256, 256]
    num_steps: u32,
    out: GlobalMut<f32>, // [blocks, 128, 256]
) {
    // The contract's word; without it ptxas keeps a path on which nothing is multiplied, and
    // serializes.
    assert_unchecked(num_steps > 0);
    let shared = shared::dynamic_shared_mem::<u8>();
    let a_stage = |stage| SwizzledTile::<bf16>::at(shared.offset(stage * A_STAGE_BYTES).cast());
    let b_first = shared.offset(NUM_STAGES * A_STAGE_BYTES);
    let b_stage = |stage| SwizzledTile::<bf16>::at(b_first.offset(stage * B_STAGE_BYTES).cast());
    for stage in 0..NUM_STAGES {
        load_stage(a_stage(stage), a, WGMMA_TILE.m, stage);
        load_stage(b_stage(stage), b, WGMMA_TILE.n, stage);
    }
    bulk::fence_proxy_async();
    thread::sync_threads();

    let thread = thread::thread_idx_x();
    let first_row = (thread / wgmma::NUM_THREADS) as usize * ROWS;
    let mut d = [0.0; 128];
    for step in 0..num_steps {
        wgmma::fence(&mut d);
        for stage in 0..NUM_STAGES {
            let (a, b) = (a_stage(stage).from_row(first_row), b_stage(stage));
            for k in (0..STAGE_COLUMNS).step_by(16) {
                let accumulate = step > 0 || stage > 0 || k > 0;
                wgmma::m64n256k16(&mut d, a.from_column(k), b.from_column(k), accumulate);
            }
        }
        wgmma::commit_group();
        wgmma::wait_group::<1, _>(&mut d);
    }
    wgmma::wait_group::<0, _>(&mut d);

    let out_row = thread::block_idx_x() as usize * WGMMA_TILE.m + first_row;
    for register in (0..d.len()).step_by(2) {
        let (row, column) = wgmma::place_of(thread % wgmma::NUM_THREADS, register);
        let pair = [d[register].to_bits(), d[register + 1].to_bits()];
        out.store_x2((out_row + row) * WGMMA_TILE.n + column, pair);
    }
}

/// Copies the columns of a stage to its tile.
#[inline(always)]
unsafe fn load_stage(
    tile: SwizzledTile<bf16>,
    x: Global<bf16>, // [num_rows, k]
    num_rows: usize,
    stage: usize,
) {
    const PIECE: usize = 8;
    const PIECES: usize = STAGE_COLUMNS / PIECE;
    let mut i = thread::thread_idx_x() as usize;
    while i < num_rows * PIECES {
        let (row, column) = (i / PIECES, i % PIECES * PIECE);
        let piece = x.load_x4(row * WGMMA_TILE.k + stage * STAGE_COLUMNS + column);
        tile.store_x4(row, column, piece);
        i += NUM_THREADS as usize;
    }
}

/// Tiles of m16n8k16 in a warp's product.
const M_TILES: usize = ROWS / 16;
const N_TILES: usize = MMA_TILE.n / 8;
const K_TILES: usize = MMA_TILE.k / 16;

/// `out[block] = num_steps * a b^T`, from registers.
#[kernel(threads = 256, min_blocks = 1)]
pub unsafe fn tensor_peak_mma(
    a: Global<bf16>, // [512, 32]
    b: Global<bf16>, // [64, 32]
    num_steps: u32,
    out: GlobalMut<f32>, // [blocks, 512, 64]
) {
    let first_row = (thread::thread_idx_x() / 32) as usize * ROWS;
    let (g, t) = (warp::lane_id() as usize / 4, warp::lane_id() as usize % 4);
    let pair = |x: Global<bf16>, row: usize, column: usize| {
        x.cast::<u32>().load((row * MMA_TILE.k + column) / 2)
    };
    let mut a_registers = [[[0; 4]; K_TILES]; M_TILES];
    for i in 0..M_TILES {
        for k in 0..K_TILES {
            for register in 0..4 {
                let row = first_row + 16 * i + g + register % 2 * 8;
                a_registers[i][k][register] = pair(a, row, 16 * k + 2 * t + register / 2 * 8);
            }
        }
    }
    let mut b_registers = [[[0; 2]; K_TILES]; N_TILES];
    for j in 0..N_TILES {
        for k in 0..K_TILES {
            for register in 0..2 {
                b_registers[j][k][register] = pair(b, 8 * j + g, 16 * k + 2 * t + 8 * register);
            }
        }
    }

    let mut d = [[[0.0; 4]; N_TILES]; M_TILES];
    for _ in 0..num_steps {
        for k in 0..K_TILES {
            for i in 0..M_TILES {
                for j in 0..N_TILES {
                    d[i][j] = mma::m16n8k16::<bf16>(a_registers[i][k], b_registers[j][k], d[i][j]);
                }
            }
        }
    }

    let out_row = thread::block_idx_x() as usize * MMA_TILE.m + first_row;
    for i in 0..M_TILES {
        for j in 0..N_TILES {
            for half in 0..2 {
                let row = out_row + 16 * i + g + 8 * half;
                let pair = [d[i][j][2 * half].to_bits(), d[i][j][2 * half + 1].to_bits()];
                out.store_x2(row * MMA_TILE.n + 8 * j + 2 * t, pair);
            }
        }
    }
}
