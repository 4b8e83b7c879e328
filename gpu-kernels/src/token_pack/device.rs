//! Copies of tokens to their rows: gathered by rows, then fanned out by tokens.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll; iterators put them into local memory.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

use cuda_std::prelude::*;

use super::{BASELINE_THREADS, NUM_THREADS, PackParams};

/// Rows of a token that a thread looks up before it writes to them.
const ROWS_AT_ONCE: usize = 8;

/// A block per row fetches its token.
#[kernel(threads = 256)]
pub unsafe fn token_pack_rows_baseline(
    x: Global<u8>,         // [num_tokens, 16 * row_units]
    x_scales: Global<f32>, // [num_tokens, num_scales]
    params: PackParams,
    row_pairs: Global<i32>,      // [num_max_rows]
    expert_offsets: Global<i32>, // [num_local_experts + 1]
    rows: GlobalMut<u8>,         // [num_max_rows, 16 * row_units]
    row_scales: GlobalMut<f32>,  // [num_max_rows, num_scales]
) {
    let (row, t) = (thread::block_idx_x(), thread::thread_idx_x());
    if row >= expert_offsets.load(params.num_local_experts as usize) as u32 {
        return;
    }
    let pair = row_pairs.load(row as usize);
    let token = pair as u32 / params.top_k;
    if pair < 0 && params.zero_padding == 1 {
        clear(row, BASELINE_THREADS, &params, rows, row_scales);
    }
    if pair < 0 || token >= params.num_tokens {
        return;
    }
    let mut unit = t;
    while unit < params.row_units {
        rows.store_x4(byte_of(row, unit, &params), x.load_x4(byte_of(token, unit, &params)));
        unit += BASELINE_THREADS;
    }
    let mut scale = t;
    while scale < params.num_scales {
        let value = x_scales.load((token * params.num_scales + scale) as usize);
        row_scales.store(scale_of(row, scale, &params), value);
        scale += BASELINE_THREADS;
    }
}

/// A block per piece of a token writes it to all of the token's rows; blocks after those clear what
/// fills up an expert.
#[kernel(threads = 128)]
pub unsafe fn token_pack_rows_fanout(
    x: Global<u8>,         // [num_tokens, 16 * row_units]
    x_scales: Global<f32>, // [num_tokens, num_scales]
    params: PackParams,
    pair_rows: Global<i32>,      // [num_tokens, top_k]
    expert_counts: Global<i32>,  // [num_local_experts]
    expert_offsets: Global<i32>, // [num_local_experts + 1]
    rows: GlobalMut<u8>,         // [num_max_rows, 16 * row_units]
    row_scales: GlobalMut<f32>,  // [num_max_rows, num_scales]
) {
    let t = thread::thread_idx_x();
    let token = thread::block_idx_x() / params.pieces_of_row;
    if token >= params.num_tokens {
        let expert = thread::block_idx_x() - params.num_tokens * params.pieces_of_row;
        let first = expert_offsets.load(expert as usize);
        let mut row = (first + expert_counts.load(expert as usize)) as u32;
        let end = expert_offsets.load(expert as usize + 1) as u32;
        while row < end.min(params.num_max_rows) {
            clear(row, NUM_THREADS, &params, rows, row_scales);
            row += 1;
        }
        return;
    }
    let piece = thread::block_idx_x() - token * params.pieces_of_row;
    let unit = piece * NUM_THREADS + t;
    if unit < params.row_units {
        let value = x.load_x4(byte_of(token, unit, &params));
        for_each_row(token, pair_rows, &params, |row| {
            rows.store_x4(byte_of(row, unit, &params), value);
        });
    }
    let mut scale = piece * NUM_THREADS + t;
    while scale < params.num_scales {
        let value = x_scales.load((token * params.num_scales + scale) as usize);
        for_each_row(token, pair_rows, &params, |row| {
            row_scales.store(scale_of(row, scale, &params), value);
        });
        scale += params.pieces_of_row * NUM_THREADS;
    }
}

/// Calls `write` with each row of a token that there is.
#[inline(always)]
unsafe fn for_each_row(
    token: u32,
    pair_rows: Global<i32>, // [num_tokens, top_k]
    params: &PackParams,
    write: impl Fn(u32),
) {
    let of_token = pair_rows.offset((token * params.top_k) as usize);
    let mut begin = 0;
    while begin < params.top_k {
        let mut rows = [u32::MAX; ROWS_AT_ONCE];
        for i in 0..ROWS_AT_ONCE {
            let slot = begin + i as u32;
            if slot < params.top_k {
                rows[i] = of_token.load(slot as usize) as u32;
            }
        }
        for i in 0..ROWS_AT_ONCE {
            // -1 is beyond all rows, too.
            if rows[i] < params.num_max_rows {
                write(rows[i]);
            }
        }
        begin += ROWS_AT_ONCE as u32;
    }
}

/// A block of `num_threads` threads sets a row to zero.
#[inline(always)]
unsafe fn clear(
    row: u32,
    num_threads: u32,
    params: &PackParams,
    rows: GlobalMut<u8>,        // [num_max_rows, 16 * row_units]
    row_scales: GlobalMut<f32>, // [num_max_rows, num_scales]
) {
    let mut unit = thread::thread_idx_x();
    while unit < params.row_units {
        rows.store_x4(byte_of(row, unit, params), [0; 4]);
        unit += num_threads;
    }
    let mut scale = thread::thread_idx_x();
    while scale < params.num_scales {
        row_scales.store(scale_of(row, scale, params), 0.0);
        scale += num_threads;
    }
}

#[inline(always)]
fn byte_of(row: u32, unit: u32, params: &PackParams) -> usize {
    16 * (row as usize * params.row_units as usize + unit as usize)
}

#[inline(always)]
fn scale_of(row: u32, scale: u32, params: &PackParams) -> usize {
    row as usize * params.num_scales as usize + scale as usize
}
