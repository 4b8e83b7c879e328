//! Equal shares of the batch for all blocks: copies ahead, tensor cores, a merge over warps.

use core::marker::PhantomData;

use cuda_std::async_copy::CachePolicy;
use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

use super::handshake::Handshake;
use super::kv_format::KvFormat;
use super::merge::Parts;
use super::output_element::OutputElement;
use super::paged_kv::{page_and_token, shuffle_address};
use crate::paged_attention::{
    DecodeParams, NUM_THREADS, NUM_WARPS, RING_BYTES, TILE_TOKENS, WorkItem, merge_bytes,
    merge_row, tile_bytes,
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

/// Where 16-byte chunk `chunk` of row `row` of a tile lies, whose rows have `row_bytes`: swizzled,
/// so that eight rows of one chunk fall into different banks.
#[inline(always)]
fn tile_offset(row_bytes: u32, row: u32, chunk: u32) -> usize {
    let swizzled = match row_bytes {
        64 => chunk ^ ((row / 2) & 3),
        _ => chunk ^ (row & 7),
    };
    (row * row_bytes + swizzled * 16) as usize
}

#[inline(always)]
pub(super) unsafe fn load_item(items: Global<u32>, idx: u32) -> WorkItem {
    let item = items.offset(idx as usize * WorkItem::WORDS);
    let [request, kv_head, tile_begin, tile_end] = item.load_x4(0);
    let [kv_len, first_entry, next, part] = item.load_x4(4);
    let [part_begin, num_parts, meeting, merged] = item.load_x4(8);
    WorkItem {
        request,
        kv_head,
        tile_begin,
        tile_end,
        kv_len,
        first_entry,
        next,
        part,
        part_begin,
        num_parts,
        meeting,
        merged,
    }
}

/// Where the pages of the batch are.
#[derive(Clone, Copy)]
pub(crate) struct Pages {
    kv_indices: Global<i32>,   // [entries]
    kv_page_rank: Global<i32>, // [entries]
    /// Of location `lane`: one load less in the chain from page to address.
    pool_address: u64,
    params: DecodeParams,
}

impl Pages {
    #[inline(always)]
    pub(crate) unsafe fn new(
        kv_indices: Global<i32>,   // [entries]
        kv_page_rank: Global<i32>, // [entries]
        peer_kv_ptrs: Global<u64>, // [num_locations]
        params: DecodeParams,
    ) -> Self {
        let location = warp::lane_id().min(params.num_locations - 1);
        let pool_address = peer_kv_ptrs.load(location as usize);
        Self { kv_indices, kv_page_rank, pool_address, params }
    }

    /// Looks up one token of an item's pair, or, past the end, the last.
    #[inline(always)]
    unsafe fn place_of(&self, item: &WorkItem, token: u32) -> TokenPlace {
        let (page, in_page) =
            page_and_token(&self.params, item.kv_head, token.min(item.kv_len - 1));
        let entry = (item.first_entry + page) as usize;
        let location = self.kv_page_rank.load(entry) as u32;
        TokenPlace { location, page: self.kv_indices.load(entry) as u32, in_page }
    }

    /// Address of the K at a place, in elements of so many bytes. All lanes call it.
    #[inline(always)]
    unsafe fn k_address(&self, place: TokenPlace, element_bytes: u32) -> u64 {
        let page_elements = u64::from(self.params.strides.page);
        let first = u64::from(place.page) * page_elements + u64::from(place.in_page);
        shuffle_address(self.pool_address, place.location) + u64::from(element_bytes) * first
    }
}

/// Where a token lies: what its entry of the page table says, and the element within the page.
#[derive(Clone, Copy)]
struct TokenPlace {
    location: u32,
    page: u32,
    in_page: u32,
}

/// A warp's place in its block's list of tiles, some tiles ahead of the arithmetic.
struct Loader<F, const D: usize, const STAGES: u32> {
    pages: Pages,
    format: PhantomData<F>,
    items: Global<u32>, // [items, WorkItem::WORDS]
    item: WorkItem,
    tile: u32,
    /// Place of token `lane % 16` of the tile: looked up one tile before it is needed, so that
    /// nothing waits for it.
    token: TokenPlace,
    policy: CachePolicy,
    stage: u32,
    /// Where this lane's first chunk of the stage goes. It moves on as a whole, and is
    /// [opaque](Shared::opaque): ptxas 13.0 miscompiles copies whose address it can take apart.
    place: Shared<u8>,
    place_in_first_stage: Shared<u8>,
}

impl<F: KvFormat, const D: usize, const STAGES: u32> Loader<F, D, STAGES> {
    const ROW_BYTES: u32 = F::BYTES * D as u32;
    const CHUNKS: u32 = Self::ROW_BYTES / 16;
    /// Rows that a warp copies at once, 16 bytes a lane.
    const ROWS_PER_STEP: u32 = WARP_SIZE / Self::CHUNKS;

    #[inline(always)]
    unsafe fn start(
        pages: Pages,
        items: Global<u32>, // [items, WorkItem::WORDS]
        item: WorkItem,
        ring: Shared<u8>,
    ) -> Self {
        let (row, chunk) = (warp::lane_id() / Self::CHUNKS, warp::lane_id() % Self::CHUNKS);
        let place = ring.offset(tile_offset(Self::ROW_BYTES, row, chunk)).opaque();
        let mut loader = Self {
            pages,
            format: PhantomData,
            items,
            item,
            tile: item.tile_begin + thread::thread_idx_x() / WARP_SIZE,
            token: TokenPlace { location: 0, page: 0, in_page: 0 },
            policy: CachePolicy::evict_first(),
            stage: 0,
            place,
            place_in_first_stage: place,
        };
        loader.find_tile();
        loader
    }

    /// Whether there is no tile any more.
    #[inline(always)]
    fn is_done(&self) -> bool {
        self.tile >= self.item.tile_end
    }

    /// Goes on to the next item that has a tile for this warp, unless it stands at a tile.
    #[inline(always)]
    unsafe fn find_tile(&mut self) {
        while self.is_done() && self.item.next != WorkItem::END {
            self.item = load_item(self.items, self.item.next);
            self.tile = self.item.tile_begin + thread::thread_idx_x() / WARP_SIZE;
        }
        if !self.is_done() {
            let token = self.tile * TILE_TOKENS + warp::lane_id() % TILE_TOKENS;
            self.token = self.pages.place_of(&self.item, token);
        }
    }

    /// Starts the copies of the tile, K then V, to the next stage; closes their group, an empty one
    /// past the end. Tokens past the end become zeros, for 0 times what lay there could be NaN.
    #[inline(always)]
    unsafe fn load_tile(&mut self) {
        if !self.is_done() {
            let k_address = self.pages.k_address(self.token, F::BYTES);
            let v_offset = u64::from(F::BYTES) * u64::from(self.pages.params.strides.value);
            let num_tokens = self.item.kv_len - self.tile * TILE_TOKENS;
            let (first_row, chunk) =
                (warp::lane_id() / Self::CHUNKS, warp::lane_id() % Self::CHUNKS);
            for step in 0..TILE_TOKENS / Self::ROWS_PER_STEP {
                let row = step * Self::ROWS_PER_STEP + first_row;
                let k_row = shuffle_address(k_address, row);
                let k_chunk = k_row + u64::from(chunk) * 16;
                let k = Global::<u32>::from_address(k_chunk, 4);
                let v = Global::<u32>::from_address(k_chunk + v_offset, 4);
                let below_first = tile_offset(Self::ROW_BYTES, row, chunk)
                    - tile_offset(Self::ROW_BYTES, first_row, chunk);
                let k_place = self.place.offset(below_first);
                let v_place = k_place.offset(tile_bytes(Self::ROW_BYTES) as usize);
                let is_token = row < num_tokens;
                async_copy::copy_16_or_zero(k_place, k, is_token, self.policy);
                async_copy::copy_16_or_zero(v_place, v, is_token, self.policy);
            }
            self.stage += 1;
            if self.stage < STAGES {
                self.place = self.place.offset(2 * tile_bytes(Self::ROW_BYTES) as usize);
            } else {
                self.stage = 0;
                self.place = self.place_in_first_stage;
            }
            self.tile += NUM_WARPS;
            self.find_tile();
        }
        async_copy::commit_group();
    }
}

/// Where the rows of a tile that has landed lie in shared memory.
pub(super) trait TilePlaces: Copy {
    /// 16-byte piece `piece` of bytes `128 * block..128 * (block + 1)` of a token's K.
    unsafe fn k(self, token: u32, block: u32, piece: u32) -> Shared<u8>;
    /// The same of its V.
    unsafe fn v(self, token: u32, block: u32, piece: u32) -> Shared<u8>;
}

/// A tile whose rows are whole heads: K, then V.
#[derive(Clone, Copy)]
struct WholeRows<F, const D: usize>(Shared<u8>, PhantomData<F>);

impl<F: KvFormat, const D: usize> WholeRows<F, D> {
    const ROW_BYTES: u32 = F::BYTES * D as u32;
}

impl<F: KvFormat, const D: usize> TilePlaces for WholeRows<F, D> {
    #[inline(always)]
    unsafe fn k(self, token: u32, block: u32, piece: u32) -> Shared<u8> {
        self.0.offset(tile_offset(Self::ROW_BYTES, token, 8 * block + piece))
    }

    #[inline(always)]
    unsafe fn v(self, token: u32, block: u32, piece: u32) -> Shared<u8> {
        let v = self.0.offset(tile_bytes(Self::ROW_BYTES) as usize);
        v.offset(tile_offset(Self::ROW_BYTES, token, 8 * block + piece))
    }
}

/// The softmax of one warp's tiles so far, for `8 * HT` heads of which a lane holds, of each tile
/// of 8, heads `2 (lane % 4)` and the next. `D / 16` rows of `output` are used.
pub(super) struct Softmax<const HT: usize> {
    maximum: [[f32; 2]; HT],
    /// Of this lane's tokens only.
    sum: [[f32; 2]; HT],
    output: [[[f32; 4]; 8]; HT],
}

impl<const HT: usize> Softmax<HT> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self {
            maximum: [[f32::NEG_INFINITY; 2]; HT],
            sum: [[0.0; 2]; HT],
            output: [[[0.0; 4]; 8]; HT],
        }
    }

    /// Takes in the 16 tokens of a tile that has landed; those from `num_tokens` on count nothing.
    #[inline(always)]
    pub(super) unsafe fn add_tile<F: KvFormat, const D: usize>(
        &mut self,
        q: &[[[u32; 2]; 8]; HT],
        places: impl TilePlaces,
        num_tokens: u32,
        sm_scale_log2: f32,
    ) {
        let lane = warp::lane_id();
        let (matrix, row_of_matrix) = (lane / 8, lane % 8);

        // Steps of a load add up apart: half as many products wait for each other.
        let mut scores_of = [[[0.0f32; 4]; HT]; 2];
        let k_row = matrix % 2 * 8 + row_of_matrix;
        for load in 0..D / (16 * F::STEPS) {
            let (block, piece) = (load as u32 / 4, load as u32 % 4 * 2 + matrix / 2);
            let loaded = mma::load_matrix_x4(places.k(k_row, block, piece));
            for step in 0..F::STEPS {
                let k = F::keys(loaded, step);
                for h in 0..HT {
                    let q = q[h][F::STEPS * load + step];
                    scores_of[step][h] = mma::m16n8k16::<F::Math>(k, q, scores_of[step][h]);
                }
            }
        }
        let mut scores = scores_of[0];
        if F::STEPS == 2 {
            for h in 0..HT {
                for i in 0..4 {
                    scores[h][i] += scores_of[1][h][i];
                }
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
                mma::transpose_8x8(F::Math::pack(weight[0], weight[1])),
                mma::transpose_8x8(F::Math::pack(weight[2], weight[3])),
            ];
        }

        let v_row = matrix / 2 * 8 + row_of_matrix;
        for load in 0..D / (16 * F::STEPS) {
            let (block, piece) = (load as u32 / 4, load as u32 % 4 * 2 + matrix % 2);
            let loaded = mma::load_matrix_x4_transposed(places.v(v_row, block, piece));
            for step in 0..F::STEPS {
                let v = F::values(loaded, step);
                let rows = F::STEPS * load + step;
                for h in 0..HT {
                    let output = self.output[h][rows];
                    self.output[h][rows] = mma::m16n8k16::<F::Math>(v, weights[h], output);
                }
            }
        }
    }

    /// Leaves the result in shared memory: the output by head, times `v_scale`, then maxima and
    /// sums.
    #[inline(always)]
    pub(super) unsafe fn store<F: KvFormat, const D: usize>(
        &self,
        place: WarpResult<D>,
        v_scale: f32,
    ) {
        let lane = warp::lane_id();
        for h in 0..HT {
            for j in 0..2 {
                let head = (8 * h + j) as u32 + lane % 4 * 2;
                let sum = reduce_rows(self.sum[h][j], |a, b| a + b);
                let dims = F::output_dims(lane);
                for rows in 0..D / 16 {
                    for i in 0..2 {
                        let d = 16 * rows as u32 + dims[i];
                        place.output(head, d).store(0, self.output[h][rows][j + 2 * i] * v_scale);
                    }
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
pub(super) struct WarpResult<const D: usize> {
    pub(super) place: Shared<f32>,
    pub(super) num_heads: u32,
}

impl<const D: usize> WarpResult<D> {
    #[inline(always)]
    unsafe fn of_warp(warp_idx: u32, head_tiles: u32) -> Self {
        let rings = NUM_WARPS * RING_BYTES;
        let results = shared::dynamic_shared_mem::<u8>().offset(rings as usize);
        let place = results.offset((warp_idx * merge_bytes(D as u32, head_tiles)) as usize);
        Self { place: place.cast(), num_heads: 8 * head_tiles }
    }

    #[inline(always)]
    pub(super) unsafe fn output(self, head: u32, d: u32) -> Shared<f32> {
        self.place.offset((head * merge_row(D as u32) + d) as usize)
    }

    #[inline(always)]
    pub(super) unsafe fn maximum(self, head: u32) -> Shared<f32> {
        self.output(self.num_heads, head)
    }

    #[inline(always)]
    pub(super) unsafe fn sum(self, head: u32) -> Shared<f32> {
        self.output(self.num_heads, self.num_heads + head)
    }
}

/// Where the split kernel's results go.
#[derive(Clone, Copy)]
pub(crate) struct DecodeOutput<O> {
    pub(crate) out: GlobalMut<O>,   // [batch, num_qo_heads, D]
    pub(crate) lse: GlobalMut<f32>, // [batch, num_qo_heads]
    pub(crate) parts: Parts,
}

impl<O: OutputElement> DecodeOutput<O> {
    /// Merges what the warps left and writes it, as the result or as a part of it.
    #[inline(always)]
    unsafe fn write<const D: usize>(
        &self,
        params: &DecodeParams,
        item: &WorkItem,
        head_tiles: u32,
    ) {
        let is_whole = item.num_parts == 1;
        for_each_pair::<D>(params, |head, d| {
            let (output, log_sum) = merge_warps::<D>(head_tiles, head, d);
            if is_whole {
                self.store::<D>(params, item, head, d, output, log_sum);
            } else {
                let row = self.parts.row(item.part, head);
                self.parts.out.store_x2(row * D + d as usize, output.map(f32::to_bits));
                if d == 0 {
                    self.parts.lse.store(row, log_sum);
                }
            }
        });
        if !is_whole {
            self.merge_if_last::<D>(params, item, head_tiles);
        }
    }

    /// The block whose part arrives last merges all of them.
    #[inline(always)]
    unsafe fn merge_if_last<const D: usize>(
        &self,
        params: &DecodeParams,
        item: &WorkItem,
        head_tiles: u32,
    ) {
        let arrived_before = WarpResult::<D>::of_warp(NUM_WARPS, head_tiles).place.cast::<u32>();
        let arrived = self.parts.arrived.offset(item.meeting as usize);
        thread::sync_threads();
        if thread::thread_idx_x() == 0 {
            arrived_before.store(0, atomic::fetch_add_acq_rel_gpu(arrived, 0, 1));
        }
        thread::sync_threads();
        if arrived_before.load(0) + 1 == item.num_parts {
            for_each_pair::<D>(params, |head, d| {
                let (output, log_sum) =
                    self.parts.merge::<D>(item.part_begin, item.num_parts, head, d);
                self.store::<D>(params, item, head, d, output, log_sum);
            });
            if thread::thread_idx_x() == 0 {
                arrived.store(0, 0);
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn store<const D: usize>(
        &self,
        params: &DecodeParams,
        item: &WorkItem,
        head: u32,
        d: u32,
        output: [f32; 2],
        log_sum: f32,
    ) {
        let first_row = item.request * params.num_qo_heads + item.kv_head * params.group_size;
        let row = (first_row + head) as usize;
        O::store_pair(self.out, row * D + d as usize, output);
        if d == 0 {
            self.lse.store(row, log_sum);
        }
    }
}

/// Calls `body` for each head of the group and even dimension, dealt to the threads.
#[inline(always)]
unsafe fn for_each_pair<const D: usize>(params: &DecodeParams, body: impl Fn(u32, u32)) {
    let pairs_per_head = D as u32 / 2;
    let mut pair = thread::thread_idx_x();
    while pair < params.group_size * pairs_per_head {
        body(pair / pairs_per_head, pair % pairs_per_head * 2);
        pair += NUM_THREADS;
    }
}

/// Dimensions `d` and the next of a head, over all warps, and its log-sum-exp.
#[inline(always)]
unsafe fn merge_warps<const D: usize>(head_tiles: u32, head: u32, d: u32) -> ([f32; 2], f32) {
    let result_of = |warp_idx| WarpResult::<D>::of_warp(warp_idx, head_tiles);
    let mut maximum = f32::NEG_INFINITY;
    for warp_idx in 0..NUM_WARPS {
        maximum = maximum.max(result_of(warp_idx).maximum(head).load(0));
    }
    if maximum == f32::NEG_INFINITY {
        return ([0.0; 2], maximum);
    }
    let (mut sum, mut output) = (0.0, [0.0f32; 2]);
    for warp_idx in 0..NUM_WARPS {
        let result = result_of(warp_idx);
        let weight = float::exp2(result.maximum(head).load(0) - maximum);
        let [low, high] = result.output(head, d).load_x2(0);
        sum += weight * result.sum(head).load(0);
        output[0] += weight * f32::from_bits(low);
        output[1] += weight * f32::from_bits(high);
    }
    let normalize = float::reciprocal(sum);
    ([output[0] * normalize, output[1] * normalize], maximum + float::log2(sum))
}

/// Each block works through its items; within an item its warps take tiles in turn.
/// `AHEAD = STAGES - 1` tiles of a warp are on their way while one is worked on.
///
/// The first pages are on their way before the handshake waits for the queries.
#[inline(always)]
pub(crate) unsafe fn decode_split<
    T: HalfFloat,
    const D: usize,
    const HT: usize,
    const STAGES: u32,
    const AHEAD: u32,
    O: OutputElement,
    H: Handshake,
    F: KvFormat,
>(
    pages: Pages,
    format: F,
    items: Global<u32>, // [items, WorkItem::WORDS]
    q: Global<T>,       // [batch, num_qo_heads, D]
    output: DecodeOutput<O>,
    handshake: H,
) {
    let params = pages.params;
    let (warp_idx, lane) = (thread::thread_idx_x() / WARP_SIZE, warp::lane_id());
    let ring = shared::dynamic_shared_mem::<u8>().offset((warp_idx * RING_BYTES) as usize);
    let stage_bytes = 2 * tile_bytes(F::BYTES * D as u32);
    let stage_of = |tile: u32| ring.offset((tile % STAGES * stage_bytes) as usize);

    let mut item = load_item(items, thread::block_idx_x());
    if item.is_idle() {
        handshake.await_queries();
        handshake.tell_done();
        return;
    }
    let mut loader = Loader::<F, D, STAGES>::start(pages, items, item, ring);
    for _ in 0..AHEAD {
        loader.load_tile();
    }
    handshake.await_queries();
    let mut tiles_done = 0;
    loop {
        let q_fragments = load_q::<T, F, D, HT>(&params, q, &item, lane);
        let scales = format.scales(item.kv_head);
        let mut softmax = Softmax::<HT>::new();
        let mut tile = item.tile_begin + warp_idx;
        while tile < item.tile_end {
            loader.load_tile();
            async_copy::wait_group::<AHEAD>();
            warp::sync_warp(FULL_MASK);
            softmax.add_tile::<F, D>(
                &q_fragments,
                WholeRows::<F, D>(stage_of(tiles_done), PhantomData),
                item.kv_len - tile * TILE_TOKENS,
                params.sm_scale_log2 * scales.k,
            );
            warp::sync_warp(FULL_MASK);
            tiles_done += 1;
            tile += NUM_WARPS;
        }
        softmax.store::<F, D>(WarpResult::of_warp(warp_idx, HT as u32), scales.v);
        thread::sync_threads();
        output.write::<D>(&params, &item, HT as u32);
        if item.next == WorkItem::END {
            break;
        }
        item = load_item(items, item.next);
        thread::sync_threads();
    }
    handshake.tell_done();
}

/// Two floats in another format, rounded to nearest even.
#[inline(always)]
fn convert<T: HalfFloat, U: HalfFloat>(pair: u32) -> u32 {
    if T::IS_BF16 == U::IS_BF16 {
        return pair;
    }
    let [low, high] = T::unpack(pair);
    U::pack(low, high)
}

/// The group's queries as B operands, heads past the group as zeros.
#[inline(always)]
pub(super) unsafe fn load_q<T: HalfFloat, F: KvFormat, const D: usize, const HT: usize>(
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
            let q_row = q.offset(row as usize * D);
            let dims = F::query_dims(lane);
            for step in 0..D / 16 {
                for i in 0..2 {
                    let pair = q_row.offset(16 * step + dims[i] as usize).cast::<u32>().load(0);
                    fragment[step][i] = convert::<T, F::Math>(pair);
                }
            }
        }
    }
    fragments
}
