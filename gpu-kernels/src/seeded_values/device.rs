//! The kernel.

// A kernel is one unsafe program: its launch vouches for it.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc)]

use cuda_std::float::HalfFloat;
use cuda_std::prelude::*;
use half::bf16;

use super::{ELEMENTS_OF_HASH, SeededValuesParams, WORD, hash_of, spread};

/// Makes a part of a tensor.
#[kernel(threads = 256)]
pub unsafe fn seeded_values_fill_bf16(
    out: GlobalMut<bf16>, // [num_rows, num_columns] from `first_out` on
    params: SeededValuesParams,
) {
    let words_per_row = params.num_columns / WORD;
    let row = thread::index_1d() / words_per_row;
    if row >= params.num_rows {
        return;
    }
    let column = (thread::index_1d() - row * words_per_row) * WORD;
    let element =
        params.first_element + u64::from(row) * u64::from(params.row_len) + u64::from(column);
    let [a, b] = two(hash_of(params.key, element), params.reach);
    let [c, d] = two(hash_of(params.key, element + ELEMENTS_OF_HASH), params.reach);
    let place = u64::from(row) * u64::from(params.num_columns) + u64::from(column);
    out.store_x4((params.first_out + place) as usize, [a, b, c, d]);
}

/// The four elements of a hash, two to a register.
#[inline(always)]
fn two(hash: u64, reach: f32) -> [u32; 2] {
    let pair =
        |bits: u32| bf16::pack(spread(bits as u16, reach), spread((bits >> 16) as u16, reach));
    [pair(hash as u32), pair((hash >> 32) as u32)]
}
