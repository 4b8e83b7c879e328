//! The gate: as a kernel of its own, and in the first product.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

use cuda_std::prelude::*;
use cuda_std::tensor_map::{TensorMap, TensorMaps};
use half::bf16;

use crate::gemm::device::activation::silu;
use crate::gemm::device::dense::DenseTiles;
use crate::gemm::device::output::Output;
use crate::gemm::device::pipeline::{Operands, run};
use crate::gemm::device::split;
use crate::gemm::device::stream::{self, Streamed};
use crate::gemm::device::weights::{Rounded, Store, Weights};
use crate::gemm::schedule::Shares;
use crate::gemm::tma::{BLOCK_ROWS, STAGE_COLUMNS};

/// Threads of a block of the gate alone.
pub const SILU_MUL_THREADS: u32 = 128;
/// Elements of a thread.
pub const PIECE: u32 = 8;

/// `h[t, i] = silu(gate_up[t, i]) * gate_up[t, n + i]`; a row of the grid for each token.
#[kernel(threads = 128)]
pub unsafe fn shared_expert_silu_mul_bf16(
    gate_up: Global<bf16>, // [num_tokens, 2 n]
    n: u32,
    h: GlobalMut<bf16>, // [num_tokens, n]
) {
    let column = thread::index_1d() * PIECE;
    if column >= n {
        return;
    }
    let token = thread::block_idx_y() as usize;
    let row = gate_up.offset(token * 2 * n as usize + column as usize);
    let (gates, ups) = (row.load_x4(0), row.load_x4(n as usize));
    let mut products = [0; 4];
    for word in 0..4 {
        let [g0, g1] = bf16::unpack(gates[word]);
        let [u0, u1] = bf16::unpack(ups[word]);
        products[word] = bf16::pack(silu(g0) * u0, silu(g1) * u1);
    }
    h.store_x4(token * n as usize + column as usize, products);
}

/// `h = silu(x g^T) * (x u^T)`, where `gate_up` is `g`, then `u`.
#[kernel(target = "sm_90a", threads = 384, min_blocks = 1)]
pub unsafe fn shared_expert_gate_up_bf16(
    x: TensorMap<bf16, 2>,          // [num_tokens, k]
    gate_up: TensorMap<bf16, 3>,    // [1, 2 n, k]
    h_maps: TensorMaps<bf16, 2, 4>, // [num_tokens, n]
    num_tokens: u32,
    n: u32,
    k: u32,
    h: GlobalMut<bf16>, // [num_tokens, n]
) {
    let operands = Operands { a: x, b: gate_up, second_block: n };
    let output = Output { maps: h_maps, c: h, n };
    let tiles = DenseTiles::<128>::new(num_tokens, n, k, BLOCK_ROWS as u32);
    run::<_, _, 2, 64, 4, true>(operands, output, tiles);
}

/// Rows of gates beside those of what they scale: 8 of the one, 8 of the other.
#[derive(Clone, Copy)]
struct Gated(Rounded);

impl Store for Gated {
    const PARTS: u32 = 2;

    #[inline(always)]
    unsafe fn store(&self, [g0, g1, u0, u1]: [f32; 4], first_row: u32, first_column: u32) {
        self.0.store([silu(g0) * u0, silu(g1) * u1], first_row, first_column);
    }
}

/// `h = silu(x g^T) * (x u^T)` for few tokens.
#[kernel(target = "sm_90a", threads = 288, min_blocks = 1, early = true)]
pub unsafe fn shared_expert_stream_bf16(
    x: TensorMap<bf16, 2>,       // [num_tokens, k]
    gate_up: TensorMap<bf16, 4>, // [n / 8, 2, 8, k]
    num_tokens: u32,
    n: u32,
    k: u32,
    tile_rows: u32,
    steps_per_block: u32,
    num_stages: u32,
    sums: GlobalMut<f32>,    // [blocks, 2, 128, tile_rows]
    arrived: GlobalMut<u32>, // [tiles, 8], 0 before and after
    h: GlobalMut<bf16>,      // [num_tokens, n]
) {
    let m_tiles = num_tokens.div_ceil(tile_rows);
    let shares = Shares::of_product(Gated::PARTS * n, m_tiles, k, steps_per_block);
    let (a, b, num_steps) = (x, gate_up, shares.num_steps);
    let weights = Weights { a, b, m_tiles, num_steps, num_stages };
    let work = Streamed { weights, tile_rows, shares, sums, arrived };
    stream::run(work, Gated(Rounded { c: h, m: num_tokens, n }));
}

/// `h = silu(x g^T) * (x u^T)` for few tokens, in tiles of 32 gates and the 32 rows that they scale, 2 blocks
/// each.
#[kernel(target = "sm_90a", cluster = 2, threads = 288, min_blocks = 1, early = true)]
pub unsafe fn shared_expert_split_bf16(
    x: TensorMap<bf16, 2>,       // [num_tokens, k]
    gate_up: TensorMap<bf16, 4>, // [n / 8, 2, 8, k]
    num_tokens: u32,
    n: u32,
    k: u32,
    tile_rows: u32,
    num_stages: u32,
    h: GlobalMut<bf16>, // [num_tokens, n]
) {
    let (m_tiles, num_steps) = (num_tokens.div_ceil(tile_rows), k.div_ceil(STAGE_COLUMNS as u32));
    let weights = Weights { a: x, b: gate_up, m_tiles, num_steps, num_stages };
    split::run::<_, 64, 2>(weights, tile_rows, Gated(Rounded { c: h, m: num_tokens, n }));
}
