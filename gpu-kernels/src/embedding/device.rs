//! The kernel.

// A kernel is one unsafe program: its launch vouches for it.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc)]

use cuda_std::prelude::*;
use half::bf16;

use super::{EmbeddingParams, WORD};

/// Gathers rows.
#[kernel(threads = 128)]
pub unsafe fn embedding_gather_bf16(
    table: Global<bf16>,  // [num_rows, row_len]
    row_ids: Global<i32>, // [num_ids]
    params: EmbeddingParams,
    out: GlobalMut<bf16>, // [num_ids, row_len]
) {
    let words_per_row = params.row_len / WORD;
    let place = thread::index_1d() / words_per_row;
    if place >= params.num_ids {
        return;
    }
    let column = (thread::index_1d() - place * words_per_row) * WORD;
    let row = row_ids.load(place as usize) as u32;
    let is_row = row < params.num_rows;
    let element = |row: u32| row as usize * params.row_len as usize + column as usize;
    let word = if is_row { table.load_x4(element(row)) } else { [0; 4] };
    out.store_x4(element(place), word);
}
