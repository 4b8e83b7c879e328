//! Tiles of the KV of one warp, loaded by tensor maps.

use cuda_std::async_copy::CachePolicy;
use cuda_std::bulk::Mbarrier;
use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

use super::softmax::TilePlaces;
use super::work_item::WorkList;
use crate::paged_attention::{
    AttentionParams, MAX_TILE_LOCATIONS, NUM_WARPS, TILE_TOKENS, WorkItem, box_tokens, tile_bytes,
};

/// Rank of the map of a pool: 64 elements, tokens, blocks of 64 elements, heads, K and V of pages.
pub(crate) const POOL_RANK: usize = 5;

/// A coordinate outside of every pool, whose box is zeros.
const NO_PAGE: i32 = -1;

/// The pages of the batch, for the copy engine.
#[derive(Clone, Copy)]
pub(crate) struct TilePages<T> {
    pub(crate) pools: TensorMaps<T, POOL_RANK, { MAX_TILE_LOCATIONS as usize }>,
    pub(crate) kv_indices: Global<i32>,   // [entries]
    pub(crate) kv_page_rank: Global<i32>, // [entries]
    pub(crate) params: AttentionParams,
}

/// A stage that has landed: one box of 16 tokens, or two of 8, each K then V, by blocks of 64
/// columns, token after token.
#[derive(Clone, Copy)]
pub(super) struct Boxes<const D: usize> {
    stage: Shared<u8>,
    /// Bytes from tokens to the eighth next.
    eighth_token: u32,
    /// Bytes from a block of columns to the next.
    block: u32,
    /// Bytes from K to V.
    value: u32,
}

const ROW_BYTES: u32 = 128;

/// Steps to find the next batch: ask for its item, find it, look its pages up.
const STEPS_AHEAD: u32 = 3;

impl<const D: usize> Boxes<D> {
    #[inline(always)]
    pub(super) fn new(stage: Shared<u8>, page_size: u32) -> Self {
        let block = box_tokens(page_size) * ROW_BYTES;
        let value = block * (D as u32 / 64);
        let eighth_token = if box_tokens(page_size) == 8 { 2 * value } else { 8 * ROW_BYTES };
        Self { stage, eighth_token, block, value }
    }

    #[inline(always)]
    unsafe fn place(self, token: u32, block: u32, piece: u32) -> Shared<u8> {
        let row = token / 8 * self.eighth_token + token % 8 * ROW_BYTES;
        self.stage.offset((row + block * self.block + (piece ^ (token % 8)) * 16) as usize)
    }

    /// Writes zeros to the tokens from `num_tokens` on, of which the page holds anything: 0 times a
    /// V could be NaN. All lanes call it.
    #[inline(always)]
    unsafe fn clear_from(self, num_tokens: u32) {
        let lane = warp::lane_id();
        for token in num_tokens..TILE_TOKENS {
            if lane < D as u32 / 8 {
                self.k(token, lane / 8, lane % 8).store_x4(0, [0; 4]);
                self.v(token, lane / 8, lane % 8).store_x4(0, [0; 4]);
            }
        }
        bulk::fence_proxy_async();
    }
}

impl<const D: usize> TilePlaces for Boxes<D> {
    #[inline(always)]
    unsafe fn k(self, token: u32, block: u32, piece: u32) -> Shared<u8> {
        self.place(token, block, piece)
    }

    #[inline(always)]
    unsafe fn v(self, token: u32, block: u32, piece: u32) -> Shared<u8> {
        self.place(token, block, piece).offset(self.value as usize)
    }
}

/// Up to 32 tiles of a warp in one item: the pages of tile `i` lie with lane `i`.
#[derive(Clone, Copy)]
struct Batch {
    item: WorkItem,
    first_tile: u32,
    /// Of the first eight tokens, which for boxes of 16 is the page of all, and of the others.
    pages: [i32; 2],
    locations: [i32; 2],
}

impl Batch {
    /// One past the last tile, unless the warp has more of them in the item.
    #[inline(always)]
    fn end(&self) -> u32 {
        self.item.tile_end.min(self.first_tile + WARP_SIZE * NUM_WARPS)
    }

    /// Looks the pages up.
    #[inline(always)]
    unsafe fn load_pages<T: HalfFloat>(&mut self, pages: &TilePages<T>) {
        let tile = self.first_tile + warp::lane_id() * NUM_WARPS;
        let page_size = pages.params.page_size;
        for i in 0..2 {
            let token = tile * TILE_TOKENS + 8 * i as u32;
            let has_page = tile < self.item.tile_end && token < self.item.kv_len;
            (self.pages[i], self.locations[i]) = (NO_PAGE, 0);
            if has_page && (i == 0 || box_tokens(page_size) == 8) {
                let entry = (self.item.first_entry + token / page_size) as usize;
                self.pages[i] = pages.kv_indices.load(entry);
                self.locations[i] = pages.kv_page_rank.load(entry);
            }
        }
    }
}

/// A warp's ring of stages, and its place in its block's list of tiles, some tiles ahead of the
/// arithmetic. What the next tiles need to be found is on its way while these are.
pub(super) struct TileLoader<T, const D: usize, const STAGES: u32> {
    pages: TilePages<T>,
    list: WorkList,
    /// Of the next batch's item in the block, or, before it is found, of this one's.
    number: u32,
    batch: Batch,
    tile: u32,
    next: Batch,
    policy: CachePolicy,
    ring: Shared<u8>,
    /// `[STAGES]`, of this warp.
    full: Shared<u64>,
    num_taken: u32,
}

impl<T: HalfFloat, const D: usize, const STAGES: u32> TileLoader<T, D, STAGES> {
    /// Sets up the barriers of this warp's ring.
    #[inline(always)]
    pub(super) unsafe fn init(full: Shared<u64>) {
        if warp::lane_id() == 0 {
            for stage in 0..STAGES {
                Mbarrier::at(full.offset(stage as usize)).init(1);
            }
            bulk::fence_init();
        }
        warp::sync_warp(FULL_MASK);
    }

    /// Finds the warp's first tiles. All lanes call it.
    #[inline(always)]
    pub(super) unsafe fn start(
        pages: TilePages<T>,
        list: WorkList,
        item: WorkItem,
        ring: Shared<u8>,
        full: Shared<u64>,
    ) -> Self {
        let first_tile = item.tile_begin + thread::thread_idx_x() / WARP_SIZE;
        let mut batch = Batch { item, first_tile, pages: [NO_PAGE; 2], locations: [0; 2] };
        let mut number = 0;
        if first_tile >= item.tile_end {
            batch = Self::after(&list, &mut number, &batch);
        }
        batch.load_pages(&pages);
        Self {
            pages,
            list,
            number,
            batch,
            tile: batch.first_tile,
            next: batch,
            policy: CachePolicy::evict_first(),
            ring,
            full,
            num_taken: 0,
        }
    }

    /// The tiles after a batch, whose pages are not looked up yet; past the end, none.
    #[inline(always)]
    unsafe fn after(list: &WorkList, number: &mut u32, batch: &Batch) -> Batch {
        let mut next = Batch { first_tile: batch.first_tile + WARP_SIZE * NUM_WARPS, ..*batch };
        while next.first_tile >= next.item.tile_end && next.item.next != WorkItem::END {
            next.item = list.item_after(&next.item, *number);
            *number += 1;
            next.first_tile = next.item.tile_begin + thread::thread_idx_x() / WARP_SIZE;
        }
        next
    }

    /// Starts the load of the next tile, if there is one: so many tiles ahead of the one that is
    /// [taken](Self::take) next.
    #[inline(always)]
    pub(super) unsafe fn load_tile(&mut self, tiles_ahead: u32) {
        if self.tile < self.batch.item.tile_end {
            self.issue(self.num_taken + tiles_ahead);
            let steps_before = match self.tile == self.batch.first_tile {
                true => 0,
                false => self.steps_at(self.tile),
            };
            self.tile += NUM_WARPS;
            let mut step = steps_before;
            while step < self.steps_at(self.tile) {
                self.look_ahead(step);
                step += 1;
            }
            if self.tile >= self.batch.end() {
                self.batch = self.next;
                self.tile = self.batch.first_tile;
            }
        }
    }

    /// Steps towards the next batch that are done before a tile of this one is loaded.
    #[inline(always)]
    fn steps_at(&self, tile: u32) -> u32 {
        let left = self.batch.end().saturating_sub(tile).div_ceil(NUM_WARPS);
        STEPS_AHEAD.saturating_sub(left)
    }

    /// A step towards the next batch, which starts what the one after it waits for. As late as
    /// possible: what a block has claimed, no other takes.
    #[inline(always)]
    unsafe fn look_ahead(&mut self, step: u32) {
        match step {
            0 if self.batch.end() == self.batch.item.tile_end => {
                self.list.prepare_item_after(&self.batch.item, self.number);
            }
            0 => {}
            1 => self.next = Self::after(&self.list, &mut self.number, &self.batch),
            _ => self.next.load_pages(&self.pages),
        }
    }

    #[inline(always)]
    unsafe fn issue(&self, number: u32) {
        let idx = (self.tile - self.batch.first_tile) / NUM_WARPS;
        let params = &self.pages.params;
        let box_tokens = box_tokens(params.page_size);
        let stage = number % STAGES;
        let full = Mbarrier::at(self.full.offset(stage as usize));
        let place = self.ring.offset((stage * 2 * tile_bytes(2 * D as u32)) as usize);
        for i in 0..2 {
            let (page, _) =
                warp::warp_shuffle_idx(FULL_MASK, self.batch.pages[i] as u32, idx, WARP_SIZE);
            let (location, _) =
                warp::warp_shuffle_idx(FULL_MASK, self.batch.locations[i] as u32, idx, WARP_SIZE);
            if warp::lane_id() == 0 && (i == 0 || box_tokens == 8) {
                if i == 0 {
                    full.arrive_expect_bytes(2 * tile_bytes(2 * D as u32));
                }
                let token = self.tile * TILE_TOKENS + 8 * i as u32;
                let at = [
                    0,
                    (token % params.page_size) as i32,
                    0,
                    self.batch.item.kv_head as i32,
                    2 * page as i32,
                ];
                let place = place.offset(i * tile_bytes(2 * D as u32) as usize);
                let pool = self.pages.pools.get(location);
                bulk::load_tile_with_policy(place, &pool, at, full, self.policy);
            }
        }
    }

    /// Waits for the oldest tile that was not taken yet, of which `num_tokens` count. All lanes call
    /// it, and [`release`](Self::release) when they are done.
    #[inline(always)]
    pub(super) unsafe fn take(&mut self, num_tokens: u32) -> Boxes<D> {
        let stage = self.num_taken % STAGES;
        let full = Mbarrier::at(self.full.offset(stage as usize));
        full.wait(self.num_taken / STAGES % 2);
        self.num_taken += 1;
        let place = self.ring.offset((stage * 2 * tile_bytes(2 * D as u32)) as usize);
        let boxes = Boxes::new(place, self.pages.params.page_size);
        if num_tokens < TILE_TOKENS {
            boxes.clear_from(num_tokens);
            warp::sync_warp(FULL_MASK);
        }
        boxes
    }

    /// Gives the stage that was taken last back to be loaded again.
    #[inline(always)]
    pub(super) unsafe fn release(&self) {
        warp::sync_warp(FULL_MASK);
    }
}
