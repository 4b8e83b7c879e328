//! Weighted sums of rows: element by element, then 16 bytes of eight rows at once.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll; iterators put them into local memory.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

use cuda_std::prelude::*;
use half::bf16;

use super::{BASELINE_THREADS, NUM_THREADS, UnpackParams};

/// Rows of a token whose loads are on their way at once.
const ROWS_IN_FLIGHT: usize = 8;

/// A block per token, element by element.
#[kernel(threads = 256)]
pub unsafe fn token_unpack_sum_baseline_bf16(
    rows: Global<bf16>,        // [num_max_rows, hidden]
    pair_rows: Global<i32>,    // [num_tokens, top_k]
    topk_weights: Global<f32>, // [num_tokens, top_k]
    addend: Global<bf16>,      // [num_tokens, hidden], or null
    params: UnpackParams,
    out: GlobalMut<bf16>, // [num_tokens, hidden]
) {
    let token = thread::block_idx_x() as usize;
    let of_token = token * params.top_k as usize;
    let hidden = params.hidden as usize;
    let to_f32 = |x: bf16| f32::from_bits(u32::from(x.to_bits()) << 16);
    let mut i = thread::thread_idx_x() as usize;
    while i < hidden {
        let place = token * hidden + i;
        let mut sum = if addend.is_null() { 0.0 } else { to_f32(addend.load(place)) };
        for slot in 0..params.top_k as usize {
            let row = pair_rows.load(of_token + slot) as u32;
            if row < params.num_max_rows {
                let element = to_f32(rows.load(row as usize * hidden + i));
                sum += topk_weights.load(of_token + slot) * element;
            }
        }
        out.store(place, bf16::from_bits(bf16::pack(sum, 0.0) as u16));
        i += BASELINE_THREADS as usize;
    }
}

/// A thread per 16 bytes of a row.
#[kernel(threads = 128)]
pub unsafe fn token_unpack_sum_wide_bf16(
    rows: Global<bf16>,        // [num_max_rows, hidden]
    pair_rows: Global<i32>,    // [num_tokens, top_k]
    topk_weights: Global<f32>, // [num_tokens, top_k]
    addend: Global<bf16>,      // [num_tokens, hidden], or null
    params: UnpackParams,
    out: GlobalMut<bf16>, // [num_tokens, hidden]
) {
    let token = thread::block_idx_x() / params.pieces_of_row;
    let piece = thread::block_idx_x() - token * params.pieces_of_row;
    let first = 8 * (piece * NUM_THREADS + thread::thread_idx_x());
    if first >= params.hidden {
        return;
    }
    let place = token as usize * params.hidden as usize + first as usize;
    let mut sums = [0.0; 8];
    if !addend.is_null() {
        add(&mut sums, 1.0, addend.load_x4(place));
    }
    let mut begin = 0;
    while begin < params.top_k {
        let mut weights = [0.0; ROWS_IN_FLIGHT];
        let mut is_there = [false; ROWS_IN_FLIGHT];
        let mut words = [[0; 4]; ROWS_IN_FLIGHT];
        for i in 0..ROWS_IN_FLIGHT {
            let slot = begin + i as u32;
            if slot < params.top_k {
                let pair = (token * params.top_k + slot) as usize;
                let row = pair_rows.load(pair) as u32;
                // -1 is beyond all rows, too.
                is_there[i] = row < params.num_max_rows;
                if is_there[i] {
                    weights[i] = topk_weights.load(pair);
                    words[i] = rows.load_x4(row as usize * params.hidden as usize + first as usize);
                }
            }
        }
        for i in 0..ROWS_IN_FLIGHT {
            if is_there[i] {
                add(&mut sums, weights[i], words[i]);
            }
        }
        begin += ROWS_IN_FLIGHT as u32;
    }
    let mut packed = [0; 4];
    for i in 0..4 {
        packed[i] = bf16::pack(sums[2 * i], sums[2 * i + 1]);
    }
    out.store_x4(place, packed);
}

/// Adds 8 elements in bf16, weighted.
#[inline(always)]
fn add(sums: &mut [f32; 8], weight: f32, words: [u32; 4]) {
    for i in 0..4 {
        let [low, high] = bf16::unpack(words[i]);
        sums[2 * i] += weight * low;
        sums[2 * i + 1] += weight * high;
    }
}
