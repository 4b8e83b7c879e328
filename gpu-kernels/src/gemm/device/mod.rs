//! The kernels: baseline, exact, and those of the copy engine.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

pub(crate) mod activation;
pub(crate) mod baseline;
pub(crate) mod block_tile;
pub(crate) mod dense;
mod exact;
pub(crate) mod output;
pub(crate) mod pipeline;
pub(crate) mod split;
pub(crate) mod stream;
pub(crate) mod weights;

use cuda_std::prelude::*;
use half::bf16;

use super::baseline::{TILE_M, TILE_N};
use baseline::multiply_tile;
use block_tile::Operands;

pub use dense::*;
pub use exact::*;
pub use split::*;
pub use stream::*;

/// `c = a b^T`, a block for each tile of C.
#[kernel(threads = 256, min_blocks = 2)]
pub unsafe fn gemm_baseline_bf16(
    a: Global<bf16>, // [m, k]
    b: Global<bf16>, // [n, k]
    m: u32,
    n: u32,
    k: u32,
    c: GlobalMut<bf16>, // [m, n]
) {
    let first_row = thread::block_idx_y() * TILE_M as u32;
    let operands = Operands {
        a: a.offset(first_row as usize * k as usize),
        b,
        c: c.offset(first_row as usize * n as usize),
        num_rows: m - first_row,
        n,
        k,
    };
    multiply_tile(operands, thread::block_idx_x() * TILE_N as u32);
}
