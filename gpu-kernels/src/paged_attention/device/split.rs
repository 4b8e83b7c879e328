//! Equal shares of the batch for all blocks: copies ahead, tensor cores, a merge over warps.

use core::marker::PhantomData;

use cuda_std::async_copy::CachePolicy;
use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

use super::handshake::Handshake;
use super::kv_format::KvFormat;
use super::output::{DecodeOutput, OutputElement};
use super::paged_kv::{page_and_token, shuffle_address};
use super::softmax::{Softmax, TilePlaces, WarpResult, load_q};
use super::work_item::load_item;
use crate::paged_attention::{
    AttentionParams, NUM_THREADS, NUM_WARPS, RING_BYTES, TILE_TOKENS, WorkItem, merge_bytes,
    num_stages, tile_bytes,
};

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

/// Where the pages of the batch are.
#[derive(Clone, Copy)]
pub(crate) struct Pages {
    kv_indices: Global<i32>,   // [entries]
    kv_page_rank: Global<i32>, // [entries]
    /// Of location `lane`: one load less in the chain from page to address.
    pool_address: u64,
    params: AttentionParams,
}

impl Pages {
    #[inline(always)]
    pub(crate) unsafe fn new(
        kv_indices: Global<i32>,   // [entries]
        kv_page_rank: Global<i32>, // [entries]
        peer_kv_ptrs: Global<u64>, // [num_locations]
        params: AttentionParams,
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

/// Where a warp leaves its result: behind the rings.
#[inline(always)]
unsafe fn result_of_warp<const D: usize>(warp_idx: u32, head_tiles: u32) -> WarpResult<D> {
    let rings = NUM_WARPS * RING_BYTES;
    let results = shared::dynamic_shared_mem::<u8>().offset(rings as usize);
    let place = results.offset((warp_idx * merge_bytes(D as u32, head_tiles)) as usize);
    WarpResult { place: place.cast(), num_heads: 8 * head_tiles }
}

impl<O: OutputElement> DecodeOutput<O> {
    /// Merges what the warps left and writes it, as the result or as a part of it.
    #[inline(always)]
    unsafe fn write<const D: usize>(
        &self,
        params: &AttentionParams,
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
        params: &AttentionParams,
        item: &WorkItem,
        head_tiles: u32,
    ) {
        let arrived_before = result_of_warp::<D>(NUM_WARPS, head_tiles).place.cast::<u32>();
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
}

/// Calls `body` for each head of the group and even dimension, dealt to the threads.
#[inline(always)]
unsafe fn for_each_pair<const D: usize>(params: &AttentionParams, body: impl Fn(u32, u32)) {
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
    let result_of = |warp_idx| result_of_warp::<D>(warp_idx, head_tiles);
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
/// What the host wrote is read before the handshake waits for the pages, and the first pages are on
/// their way before it waits for the queries.
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
    const { assert!(STAGES == num_stages(F::BYTES * D as u32) && AHEAD + 1 == STAGES) };
    let params = pages.params;
    let (warp_idx, lane) = (thread::thread_idx_x() / WARP_SIZE, warp::lane_id());
    let ring = shared::dynamic_shared_mem::<u8>().offset((warp_idx * RING_BYTES) as usize);
    let stage_bytes = 2 * tile_bytes(F::BYTES * D as u32);
    let stage_of = |tile: u32| ring.offset((tile % STAGES * stage_bytes) as usize);

    grid::launch_dependents();
    let mut item = load_item(items, thread::block_idx_x());
    if item.is_idle() {
        handshake.await_pages();
        handshake.await_queries();
        handshake.tell_done();
        return;
    }
    let mut loader = Loader::<F, D, STAGES>::start(pages, items, item, ring);
    handshake.await_pages();
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
        softmax.store::<F, D>(result_of_warp(warp_idx, HT as u32), scales.v);
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
