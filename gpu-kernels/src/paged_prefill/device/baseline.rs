//! 64 queries against tiles of 64 keys, a warp for each 16 queries, on `mma`.

use cuda_std::prelude::*;
use cuda_std::warp::WARP_SIZE;
use cuda_std::wgmma::SwizzledTile;

use super::Items;
use super::loads::{PANEL, Pages, copy_rows, q_address};
use super::output::Output;
use super::softmax::{Softmax, mask};
use crate::paged_prefill::{BASELINE, PrefillItem};

/// Rows of the queries' tile, and of one of keys or values.
const Q_ROWS: usize = BASELINE.num_rows as usize;
const KV_ROWS: usize = BASELINE.num_keys as usize;
/// Of a warp.
const WARP_ROWS: usize = 16;

/// A tile in shared memory: panels of 64 columns, `[D / 64, ROWS, 64]`.
#[derive(Clone, Copy)]
struct Tile<T, const ROWS: usize>(Shared<T>);

impl<T: HalfFloat, const ROWS: usize> Tile<T, ROWS> {
    /// Where the piece of eight elements from `column` on lies.
    #[inline(always)]
    unsafe fn piece(self, row: usize, column: usize) -> Shared<T> {
        let panel = SwizzledTile::at(self.0.offset(column / PANEL * ROWS * PANEL));
        panel.place(row, column % PANEL)
    }
}

/// Starts the copies of a tile of keys and of values to the stage that it takes turns with.
struct Loader<T, const D: usize> {
    pages: Pages,
    stages: Shared<T>,
    first_row: u32,
}

impl<T: HalfFloat, const D: usize> Loader<T, D> {
    #[inline(always)]
    unsafe fn keys(&self, tile: u32) -> Tile<T, KV_ROWS> {
        let stage = (tile % BASELINE.num_stages) as usize;
        Tile(self.stages.offset(2 * stage * KV_ROWS * D))
    }

    #[inline(always)]
    unsafe fn values(&self, tile: u32) -> Tile<T, KV_ROWS> {
        Tile(self.keys(tile).0.offset(KV_ROWS * D))
    }

    #[inline(always)]
    unsafe fn load(&self, item: &PrefillItem, tile: u32) {
        let first_key = tile * KV_ROWS as u32 + self.first_row;
        let place = self.pages.place(item, first_key + warp::lane_id() % WARP_ROWS as u32);
        let address = self.pages.k_address(place, item.qo_head / self.pages.params.group_size);
        let num_keys = item.num_keys().saturating_sub(first_key);
        let (keys, values) = (self.keys(tile).0, self.values(tile).0);
        copy_rows::<T, D, KV_ROWS, WARP_ROWS>(keys, self.first_row, address, num_keys);
        let address = address + self.pages.v_offset();
        copy_rows::<T, D, KV_ROWS, WARP_ROWS>(values, self.first_row, address, num_keys);
    }
}

/// Works through the block's items.
#[inline(always)]
pub(super) unsafe fn attend_baseline<T: HalfFloat, const D: usize>(
    pages: Pages,
    items: Items,
    q: Global<T>, // [total_qo_len, num_qo_heads, D]
    output: Output<T>,
) {
    let (mut idx, end) = items.of_block();
    while idx < end {
        attend::<T, D>(pages, &items.load(idx), q, &output);
        thread::sync_threads();
        idx += 1;
    }
}

#[inline(always)]
unsafe fn attend<T: HalfFloat, const D: usize>(
    pages: Pages,
    item: &PrefillItem,
    q: Global<T>, // [total_qo_len, num_qo_heads, D]
    output: &Output<T>,
) {
    let lane = warp::lane_id();
    let first_row = thread::thread_idx_x() / WARP_SIZE * WARP_ROWS as u32;
    let queries = Tile::<T, Q_ROWS>(shared::dynamic_shared_mem());
    let stages = queries.0.offset(Q_ROWS * D);
    let loader = Loader::<T, D> { pages, stages, first_row };

    let row = first_row + lane % WARP_ROWS as u32;
    let address = q_address::<T, D>(q, item, pages.params.num_qo_heads, row);
    let num_rows = item.num_rows.saturating_sub(first_row);
    copy_rows::<T, D, Q_ROWS, WARP_ROWS>(queries.0, first_row, address, num_rows);
    let mut tile = item.num_keys().div_ceil(KV_ROWS as u32);
    loader.load(item, tile - 1);
    async_copy::commit_group();

    let mut softmax = Softmax::new(pages.params.sm_scale_log2);
    let mut outputs = [0.0f32; 64];
    while tile > 0 {
        tile -= 1;
        if tile > 0 {
            loader.load(item, tile - 1);
        }
        async_copy::commit_group();
        async_copy::wait_group::<1>();
        thread::sync_threads();

        let mut scores = scores_of::<T, D>(queries, first_row, loader.keys(tile));
        let position = item.first_position + first_row + lane / 4;
        let position = position as i32 - (tile * KV_ROWS as u32) as i32 - (lane % 4 * 2) as i32;
        mask(&mut scores, position);
        if let Some(rescale) = softmax.raise(&scores) {
            for i in 0..D / 2 {
                outputs[i] *= rescale[i / 2 % 2];
            }
        }
        softmax.weigh(&mut scores);
        add_values::<T, D>(&mut outputs, &scores, loader.values(tile));
        thread::sync_threads();
    }
    output.write::<D, _>(item, first_row, &softmax, &outputs);
}

/// `Q K^T` for the warp's 16 queries.
#[inline(always)]
unsafe fn scores_of<T: HalfFloat, const D: usize>(
    queries: Tile<T, Q_ROWS>,
    first_row: u32,
    keys: Tile<T, KV_ROWS>,
) -> [f32; KV_ROWS / 2] {
    let (matrix, row) = (warp::lane_id() as usize / 8, warp::lane_id() as usize % 8);
    let mut scores = [0.0; KV_ROWS / 2];
    for column in (0..D).step_by(16) {
        let q_row = first_row as usize + matrix % 2 * 8 + row;
        let q = mma::load_matrix_x4(queries.piece(q_row, column + matrix / 2 * 8));
        for pair in 0..KV_ROWS / 16 {
            let k_row = 16 * pair + matrix / 2 * 8 + row;
            let k = mma::load_matrix_x4(keys.piece(k_row, column + matrix % 2 * 8));
            for half in 0..2 {
                let b = [k[2 * half], k[2 * half + 1]];
                multiply::<T, _>(&mut scores, 2 * pair + half, q, b);
            }
        }
    }
    scores
}

/// `outputs += P V`.
#[inline(always)]
unsafe fn add_values<T: HalfFloat, const D: usize>(
    outputs: &mut [f32; 64],
    weights: &[f32; KV_ROWS / 2],
    values: Tile<T, KV_ROWS>,
) {
    let (matrix, row) = (warp::lane_id() as usize / 8, warp::lane_id() as usize % 8);
    for step in 0..KV_ROWS / 16 {
        let mut p = [0; 4];
        for pair in 0..4 {
            let register = 8 * step + 2 * pair;
            p[pair] = T::pack(weights[register], weights[register + 1]);
        }
        for pair in 0..D / 16 {
            let v_row = 16 * step + matrix % 2 * 8 + row;
            let piece = values.piece(v_row, 16 * pair + matrix / 2 * 8);
            let v = mma::load_matrix_x4_transposed(piece);
            for half in 0..2 {
                let b = [v[2 * half], v[2 * half + 1]];
                multiply::<T, _>(outputs, 2 * pair + half, p, b);
            }
        }
    }
}

/// `a * b`, added to the accumulator's eight columns `8 idx..`.
#[inline(always)]
unsafe fn multiply<T: HalfFloat, const REGISTERS: usize>(
    accumulator: &mut [f32; REGISTERS],
    idx: usize,
    a: [u32; 4],
    b: [u32; 2],
) {
    let mut c = [0.0; 4];
    for i in 0..4 {
        c[i] = accumulator[4 * idx + i];
    }
    let d = mma::m16n8k16::<T>(a, b, c);
    for i in 0..4 {
        accumulator[4 * idx + i] = d[i];
    }
}
