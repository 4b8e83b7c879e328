//! The kernels: a block for each tile, and persistent blocks.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

mod baseline;
mod pipeline;

use cuda_std::float::E4m3;
use cuda_std::prelude::*;
use cuda_std::tensor_map::{TensorMap, TensorMaps};
use half::bf16;

use super::grouped::TILE_COLUMNS;
use crate::expert_gemm::device::{ExpertTiles, NONE_TALL, rows_of_tile};
use crate::gemm::baseline::TILE_N;
use crate::gemm::device::output::Output;
use crate::token_unpack::SCALE_BLOCK;

/// `c[r] = a[r] b[e]^T` for the rows of each expert, a block for each tile of 128 x 128.
#[kernel(threads = 256, min_blocks = 1)]
pub unsafe fn expert_gemm_fp8_baseline(
    a: Global<E4m3>,             // [num_rows, k]
    a_scales: Global<f32>,       // [num_rows, k.div_ceil(128)]
    b: Global<E4m3>,             // [num_experts, n, k]
    b_scales: Global<f32>,       // [num_experts, n.div_ceil(128), k.div_ceil(128)]
    expert_offsets: Global<i32>, // [num_experts + 1]
    num_rows: u32,
    num_experts: u32,
    n: u32,
    k: u32,
    c: GlobalMut<bf16>, // [num_rows, n]
) {
    let tile = thread::block_idx_y();
    let Some(rows) = rows_of_tile(expert_offsets, num_experts, num_rows, tile) else { return };
    let row_scales = k.div_ceil(SCALE_BLOCK) as usize;
    let (blocks, block) = (n.div_ceil(SCALE_BLOCK) as usize, thread::block_idx_x() as usize);
    let operands = baseline::Operands {
        of_tile: rows.operands(a, b, c, n, k),
        a_scales: a_scales.offset(rows.first_row * row_scales),
        b_scales: b_scales.offset((rows.expert * blocks + block) * row_scales),
    };
    baseline::multiply_tile(operands, (block * TILE_N) as u32);
}

/// `c[r] = a[r] b[e]^T` for the rows of each expert.
#[kernel(target = "sm_90a", threads = 288, min_blocks = 1)]
pub unsafe fn expert_gemm_fp8_grouped(
    a: TensorMaps<E4m3, 2, 8>,      // [num_rows, k]
    b: TensorMap<E4m3, 3>,          // [num_experts, n, k]
    c_maps: TensorMaps<bf16, 2, 4>, // [num_rows, n]
    a_scales: Global<f32>,          // [num_rows, k.div_ceil(128)]
    b_scales: Global<f32>,          // [num_experts, n.div_ceil(128), k.div_ceil(128)]
    expert_offsets: Global<i32>,    // [num_experts + 1]
    num_rows: u32,
    num_experts: u32,
    n: u32,
    k: u32,
    c: GlobalMut<bf16>, // [num_rows, n]
) {
    let operands = pipeline::Operands { a, b, a_scales, b_scales, n, k };
    let output = Output { maps: c_maps, c, n };
    let columns = TILE_COLUMNS as u32;
    pipeline::run(operands, output, || {
        ExpertTiles::<NONE_TALL>::new(expert_offsets, num_experts, num_rows, n, k, columns)
    });
}
