//! Equal shares of the batch for all blocks: copies ahead, tensor cores, a merge over warps.

use cuda_std::async_copy::CachePolicy;
use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

use super::paged_kv::{PagedKv, Tokens, shuffle_address};
use crate::paged_attention::{
    DecodeParams, NUM_THREADS, NUM_WARPS, TILE_TOKENS, WorkItem, merge_bytes, merge_row,
    ring_bytes, tile_bytes,
};

/// Combines what lanes of equal `lane % 4` hold: the rows of an accumulator column.
#[inline(always)]
unsafe fn reduce_rows(mut value: f32, combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lane_mask = 4;
    while lane_mask < WARP_SIZE {
        let (other, _) = warp::warp_shuffle_xor(FULL_MASK, value, lane_mask, WARP_SIZE);
        value = combine(value, other);
        lane_mask *= 2;
    }
    value
}

/// Where 16-byte chunk `chunk` of row `row` of a tile lies: swizzled, so that eight rows of one
/// chunk fall into different banks.
#[inline(always)]
fn tile_offset<const D: usize>(row: u32, chunk: u32) -> usize {
    (row * (2 * D as u32) + (chunk ^ (row & 7)) * 16) as usize
}

#[inline(always)]
unsafe fn load_item(items: Global<u32>, idx: u32) -> WorkItem {
    let item = items.offset(idx as usize * WorkItem::WORDS);
    WorkItem {
        request: item.load(0),
        kv_head: item.load(1),
        tile_begin: item.load(2),
        tile_end: item.load(3),
        partial: item.load(4),
    }
}

/// A warp's place in its block's list of tiles, some tiles ahead of the arithmetic.
struct Loader {
    kv: PagedKv,
    items: Global<u32>, // [items, WorkItem::WORDS]
    item_idx: u32,
    item_end: u32,
    tile: u32,
    tile_end: u32,
    kv_head: u32,
    tokens: Tokens,
    /// Address of the K of token `lane % 16` of the tile: looked up one tile before it is needed.
    k_address: u64,
    policy: CachePolicy,
}

impl Loader {
    #[inline(always)]
    unsafe fn start(kv: PagedKv, items: Global<u32>, item_begin: u32, item_end: u32) -> Self {
        let mut loader = Self {
            kv,
            items,
            item_idx: item_begin,
            item_end,
            tile: 0,
            tile_end: 0,
            kv_head: 0,
            tokens: Tokens { first_entry: 0, kv_len: 0 },
            k_address: 0,
            policy: CachePolicy::evict_first(),
        };
        loader.find_tile();
        loader
    }

    /// Goes to this warp's first tile from item `item_idx` on, unless it stands at one.
    #[inline(always)]
    unsafe fn find_tile(&mut self) {
        while self.tile >= self.tile_end && self.item_idx < self.item_end {
            let item = load_item(self.items, self.item_idx);
            self.item_idx += 1;
            self.tile = item.tile_begin + thread::thread_idx_x() / WARP_SIZE;
            self.tile_end = item.tile_end;
            self.kv_head = item.kv_head;
            self.tokens = self.kv.tokens_of(item.request);
        }
        if self.tile < self.tile_end {
            let token = self.tile * TILE_TOKENS + warp::lane_id() % TILE_TOKENS;
            self.k_address = self.kv.k_address(self.tokens, self.kv_head, token);
        }
    }

    /// Starts the copies of the tile, K then V, to `stage`; closes their group, an empty one past
    /// the end. Tokens past the end become zeros, for 0 times what lay there could be NaN.
    #[inline(always)]
    unsafe fn load_tile<const D: usize>(&mut self, stage: Shared<u8>) {
        if self.tile < self.tile_end {
            let chunks = D as u32 / 8;
            let rows_per_step = WARP_SIZE / chunks;
            let (row_of_step, chunk) = (warp::lane_id() / chunks, warp::lane_id() % chunks);
            for step in 0..D as u32 / 16 {
                let row = step * rows_per_step + row_of_step;
                let k_row = shuffle_address(self.k_address, row);
                let k_stage = stage.offset(tile_offset::<D>(row, chunk));
                let v_stage = k_stage.offset(tile_bytes(D as u32) as usize);
                if k_row != 0 {
                    let k_chunk = k_row + u64::from(chunk) * 16;
                    let k = Global::<u32>::from_address(k_chunk, 4);
                    let v = Global::<u32>::from_address(k_chunk + self.kv.v_offset(), 4);
                    async_copy::copy_16(k_stage, k, self.policy);
                    async_copy::copy_16(v_stage, v, self.policy);
                } else {
                    async_copy::zero_16(k_stage);
                    async_copy::zero_16(v_stage);
                }
            }
            self.tile += NUM_WARPS;
            self.find_tile();
        }
        async_copy::commit_group();
    }
}

/// The softmax of one warp's tiles so far, for `8 * HT` heads of which a lane holds, of each tile
/// of 8, heads `2 (lane % 4)` and the next. `D / 16` rows of `output` are used.
struct Softmax<const HT: usize> {
    maximum: [[f32; 2]; HT],
    /// Of this lane's tokens only.
    sum: [[f32; 2]; HT],
    output: [[[f32; 4]; 8]; HT],
}

impl<const HT: usize> Softmax<HT> {
    #[inline(always)]
    fn new() -> Self {
        Self {
            maximum: [[f32::NEG_INFINITY; 2]; HT],
            sum: [[0.0; 2]; HT],
            output: [[[0.0; 4]; 8]; HT],
        }
    }

    /// Takes in the 16 tokens of a tile that has landed; those from `num_tokens` on count nothing.
    #[inline(always)]
    unsafe fn add_tile<T: HalfFloat, const D: usize>(
        &mut self,
        q: &[[[u32; 2]; 8]; HT],
        stage: Shared<u8>,
        num_tokens: u32,
        sm_scale_log2: f32,
    ) {
        let lane = warp::lane_id();
        let (matrix, row_of_matrix) = (lane / 8, lane % 8);

        let mut scores = [[0.0f32; 4]; HT];
        let k_row = matrix % 2 * 8 + row_of_matrix;
        for step in 0..D / 16 {
            let chunk = 2 * step as u32 + matrix / 2;
            let k = mma::load_matrix_x4(stage.offset(tile_offset::<D>(k_row, chunk)));
            for h in 0..HT {
                scores[h] = mma::m16n8k16::<T>(k, q[h][step], scores[h]);
            }
        }

        let mut weights = [[0u32; 2]; HT];
        let is_token = [lane / 4 < num_tokens, lane / 4 + 8 < num_tokens];
        for h in 0..HT {
            let mut weight = [0.0f32; 4];
            for j in 0..2 {
                let score_of = |row: usize| match is_token[row] {
                    true => scores[h][2 * row + j] * sm_scale_log2,
                    false => f32::NEG_INFINITY,
                };
                let score = [score_of(0), score_of(1)];
                let maximum = self.maximum[h][j].max(reduce_rows(score[0].max(score[1]), f32::max));
                let rescale = float::exp2(self.maximum[h][j] - maximum);
                weight[j] = float::exp2(score[0] - maximum);
                weight[j + 2] = float::exp2(score[1] - maximum);
                self.sum[h][j] = self.sum[h][j] * rescale + weight[j] + weight[j + 2];
                self.maximum[h][j] = maximum;
                for rows in 0..D / 16 {
                    self.output[h][rows][j] *= rescale;
                    self.output[h][rows][j + 2] *= rescale;
                }
            }
            weights[h] = [
                mma::transpose_8x8(T::pack(weight[0], weight[1])),
                mma::transpose_8x8(T::pack(weight[2], weight[3])),
            ];
        }

        let v_stage = stage.offset(tile_bytes(D as u32) as usize);
        let v_row = matrix / 2 * 8 + row_of_matrix;
        for rows in 0..D / 16 {
            let chunk = 2 * rows as u32 + matrix % 2;
            let v = mma::load_matrix_x4_transposed(v_stage.offset(tile_offset::<D>(v_row, chunk)));
            for h in 0..HT {
                self.output[h][rows] = mma::m16n8k16::<T>(v, weights[h], self.output[h][rows]);
            }
        }
    }

    /// Leaves the result in shared memory: the output by head, then maxima and sums.
    #[inline(always)]
    unsafe fn store<const D: usize>(&self, place: WarpResult<D>) {
        let lane = warp::lane_id();
        for h in 0..HT {
            for j in 0..2 {
                let head = (8 * h + j) as u32 + lane % 4 * 2;
                let sum = reduce_rows(self.sum[h][j], |a, b| a + b);
                for rows in 0..D / 16 {
                    let d = 16 * rows as u32 + lane / 4;
                    place.output(head, d).store(0, self.output[h][rows][j]);
                    place.output(head, d + 8).store(0, self.output[h][rows][j + 2]);
                }
                if lane < 4 {
                    place.maximum(head).store(0, self.maximum[h][j]);
                    place.sum(head).store(0, sum);
                }
            }
        }
    }
}

/// Where a warp leaves its result for the block: `[heads, D]` output, padded, `[heads]` maxima,
/// `[heads]` sums.
#[derive(Clone, Copy)]
struct WarpResult<const D: usize> {
    place: Shared<f32>,
    num_heads: u32,
}

impl<const D: usize> WarpResult<D> {
    #[inline(always)]
    unsafe fn of_warp(warp_idx: u32, head_tiles: u32) -> Self {
        let results =
            shared::dynamic_shared_mem::<u8>().offset((NUM_WARPS * ring_bytes(D as u32)) as usize);
        let place = results.offset((warp_idx * merge_bytes(D as u32, head_tiles)) as usize);
        Self { place: place.cast(), num_heads: 8 * head_tiles }
    }

    #[inline(always)]
    unsafe fn output(self, head: u32, d: u32) -> Shared<f32> {
        self.place.offset((head * merge_row(D as u32) + d) as usize)
    }

    #[inline(always)]
    unsafe fn maximum(self, head: u32) -> Shared<f32> {
        self.output(self.num_heads, head)
    }

    #[inline(always)]
    unsafe fn sum(self, head: u32) -> Shared<f32> {
        self.output(self.num_heads, self.num_heads + head)
    }
}

/// Where the split kernel's results go.
#[derive(Clone, Copy)]
pub(super) struct DecodeOutput<T> {
    pub(super) out: GlobalMut<T>,           // [batch, num_qo_heads, D]
    pub(super) lse: GlobalMut<f32>,         // [batch, num_qo_heads]
    pub(super) partial_out: GlobalMut<f32>, // [partials, group_size, D]
    pub(super) partial_lse: GlobalMut<f32>, // [partials, group_size]
}

impl<T: HalfFloat> DecodeOutput<T> {
    /// Merges what the warps left and writes it: a thread for each two dimensions of a head.
    #[inline(always)]
    unsafe fn merge_warps<const D: usize>(
        &self,
        params: &DecodeParams,
        item: &WorkItem,
        head_tiles: u32,
    ) {
        let pairs_per_head = D as u32 / 2;
        let mut pair = thread::thread_idx_x();
        while pair < params.group_size * pairs_per_head {
            let (head, d) = (pair / pairs_per_head, pair % pairs_per_head * 2);
            let mut maximum = f32::NEG_INFINITY;
            for warp_idx in 0..NUM_WARPS {
                maximum = maximum
                    .max(WarpResult::<D>::of_warp(warp_idx, head_tiles).maximum(head).load(0));
            }
            let (mut sum, mut output) = (0.0, [0.0f32; 2]);
            if maximum > f32::NEG_INFINITY {
                for warp_idx in 0..NUM_WARPS {
                    let result = WarpResult::<D>::of_warp(warp_idx, head_tiles);
                    let weight = float::exp2(result.maximum(head).load(0) - maximum);
                    let [low, high] = result.output(head, d).load_x2(0);
                    sum += weight * result.sum(head).load(0);
                    output[0] += weight * f32::from_bits(low);
                    output[1] += weight * f32::from_bits(high);
                }
            }
            let normalize = if sum > 0.0 { float::reciprocal(sum) } else { 0.0 };
            let (low, high) = (output[0] * normalize, output[1] * normalize);
            let log_sum = maximum + float::log2(sum);
            if item.partial == WorkItem::WHOLE {
                let row =
                    item.request * params.num_qo_heads + item.kv_head * params.group_size + head;
                self.out
                    .offset(row as usize * D + d as usize)
                    .cast::<u32>()
                    .store(0, T::pack(low, high));
                if d == 0 {
                    self.lse.store(row as usize, log_sum);
                }
            } else {
                let row = (item.partial * params.group_size + head) as usize;
                self.partial_out.store_x2(row * D + d as usize, [low.to_bits(), high.to_bits()]);
                if d == 0 {
                    self.partial_lse.store(row, log_sum);
                }
            }
            pair += NUM_THREADS;
        }
    }
}

/// Each block works through its items; within an item its warps take tiles in turn.
/// `AHEAD` tiles of a warp are on their way while one is worked on.
#[inline(always)]
pub(super) unsafe fn decode_split<
    T: HalfFloat,
    const D: usize,
    const HT: usize,
    const AHEAD: u32,
>(
    kv: PagedKv,
    items: Global<u32>,       // [items, WorkItem::WORDS]
    block_items: Global<u32>, // [blocks + 1]
    q: Global<T>,             // [batch, num_qo_heads, D]
    output: DecodeOutput<T>,
) {
    let (warp_idx, lane) = (thread::thread_idx_x() / WARP_SIZE, warp::lane_id());
    let item_begin = block_items.load(thread::block_idx_x() as usize);
    let item_end = block_items.load(thread::block_idx_x() as usize + 1);
    let ring =
        shared::dynamic_shared_mem::<u8>().offset((warp_idx * ring_bytes(D as u32)) as usize);
    let stage_of =
        |tile: u32| ring.offset((tile % (AHEAD + 1) * 2 * tile_bytes(D as u32)) as usize);

    let mut loader = Loader::start(kv, items, item_begin, item_end);
    for tile in 0..AHEAD {
        loader.load_tile::<D>(stage_of(tile));
    }
    let mut tiles_done = 0;
    let mut item_idx = item_begin;
    while item_idx < item_end {
        let item = load_item(items, item_idx);
        let tokens = kv.tokens_of(item.request);
        let q_fragments = load_q::<T, D, HT>(&kv.params, q, &item, lane);
        let mut softmax = Softmax::<HT>::new();
        let mut tile = item.tile_begin + warp_idx;
        while tile < item.tile_end {
            loader.load_tile::<D>(stage_of(tiles_done + AHEAD));
            async_copy::wait_group::<AHEAD>();
            warp::sync_warp(FULL_MASK);
            let num_tokens = tokens.kv_len - tile * TILE_TOKENS;
            softmax.add_tile::<T, D>(
                &q_fragments,
                stage_of(tiles_done),
                num_tokens,
                kv.params.sm_scale_log2,
            );
            warp::sync_warp(FULL_MASK);
            tiles_done += 1;
            tile += NUM_WARPS;
        }
        softmax.store(WarpResult::<D>::of_warp(warp_idx, HT as u32));
        thread::sync_threads();
        output.merge_warps::<D>(&kv.params, &item, HT as u32);
        thread::sync_threads();
        item_idx += 1;
    }
}

/// The group's queries as B operands, heads past the group as zeros.
#[inline(always)]
unsafe fn load_q<T: HalfFloat, const D: usize, const HT: usize>(
    params: &DecodeParams,
    q: Global<T>, // [batch, num_qo_heads, D]
    item: &WorkItem,
    lane: u32,
) -> [[[u32; 2]; 8]; HT] {
    let mut fragments = [[[0u32; 2]; 8]; HT];
    for (h, fragment) in fragments.iter_mut().enumerate() {
        let head = 8 * h as u32 + lane / 4;
        if head < params.group_size {
            let row = item.request * params.num_qo_heads + item.kv_head * params.group_size + head;
            let pairs = q.offset(row as usize * D).cast::<u32>().offset((lane % 4) as usize);
            for step in 0..D / 16 {
                fragment[step] = [pairs.load(8 * step), pairs.load(8 * step + 4)];
            }
        }
    }
    fragments
}
