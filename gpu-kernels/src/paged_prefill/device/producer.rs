//! The warpgroup that loads: queries, and tiles of keys and values ahead of those that multiply.
//! Each of its warps loads 32 rows of a tile.

use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};
use cuda_std::wgmma::SwizzledTile;

use super::loads::{PANEL, Pages, Place, copy_rows, q_address};
use super::ring::{D, Half, KV_ROWS, NUM_CONSUMERS, Q_ROWS, Turn, q_is_empty, q_is_full, q_tile};
use super::{Items, WARPGROUP};
use crate::paged_prefill::{KvMaps, MAP_DIMENSIONS, PrefillItem};

/// Registers of a thread that loads.
pub(super) const REGISTERS: u32 = 88;

/// Warps that load.
const NUM_WARPS: u32 = WARPGROUP / WARP_SIZE;
/// Rows of a tile that a warp loads.
const ROWS: usize = WARP_SIZE as usize;
const _: () = assert!(Q_ROWS == NUM_WARPS as usize * ROWS && KV_ROWS == Q_ROWS);

/// How a tile of keys or values comes to shared memory.
pub(super) trait LoadTile {
    /// Arrivals at the barrier of a tile.
    const ARRIVALS: u32;

    /// Loads the warp's rows of a turn's tile, whose stage is free: lane `i` has the place of row
    /// `i`. Rows from `num_rows` on, which may be none, become zeros.
    unsafe fn load(&self, pages: &Pages, rows: &Rows, turn: Turn, half: Half);
}

/// What a warp loads of a tile.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// Row of the tile.
    first: u32,
    /// Rows that hold a key.
    num_rows: u32,
    /// Whether all rows of the tile do.
    is_whole_tile: bool,
    kv_head: u32,
    /// Of row `lane`.
    place: Place,
}

/// Row by row, 16 bytes a lane: pages of any size.
pub(super) struct ByRows;

impl LoadTile for ByRows {
    const ARRIVALS: u32 = WARPGROUP;

    #[inline(always)]
    unsafe fn load(&self, pages: &Pages, rows: &Rows, turn: Turn, half: Half) {
        copy_warp_rows(pages, rows, turn, half);
        async_copy::arrive_when_landed(turn.is_full(half));
    }
}

#[inline(always)]
unsafe fn copy_warp_rows(pages: &Pages, rows: &Rows, turn: Turn, half: Half) {
    let v_offset = if half == Half::V { pages.v_offset() } else { 0 };
    let address = pages.k_address(rows.place, rows.kv_head) + v_offset;
    copy_rows::<u16, D, KV_ROWS, ROWS>(turn.tile(half), rows.first, address, rows.num_rows);
}

/// By the copy engine, pages or parts of them at once.
pub(super) struct ByPages<'a> {
    pub(super) maps: &'a KvMaps,
    /// Tokens that lie together, of a page and of a warp's rows: 8, 16 or 32.
    pub(super) tokens_at_once: u32,
}

impl LoadTile for ByPages<'_> {
    const ARRIVALS: u32 = NUM_WARPS;

    #[inline(always)]
    unsafe fn load(&self, pages: &Pages, rows: &Rows, turn: Turn, half: Half) {
        let lane = warp::lane_id();
        if rows.is_whole_tile {
            if lane == 0 {
                turn.is_full(half).arrive_expect_bytes((ROWS * D * 2) as u32);
            }
            if lane.is_multiple_of(self.tokens_at_once) {
                let map = self.maps.get(rows.place.location);
                let tile = SwizzledTile::<u16>::at(turn.tile(half));
                let row = (rows.first + lane) as usize;
                let Place { page, token, .. } = rows.place;
                for panel in 0..D / PANEL {
                    let coordinates: [i32; MAP_DIMENSIONS] = [
                        (panel * PANEL) as i32,
                        token as i32,
                        rows.kv_head as i32,
                        half as i32,
                        page as i32,
                    ];
                    // Panels follow each other as rows do.
                    let place = tile.place(panel * KV_ROWS + row, 0);
                    bulk::load_tile(place, &map, coordinates, turn.is_full(half));
                }
            }
        } else {
            // A page's slots past the last token may hold anything, and are not loaded.
            copy_warp_rows(pages, rows, turn, half);
            async_copy::commit_group();
            async_copy::wait_group::<0>();
            bulk::fence_proxy_async();
            warp::sync_warp(FULL_MASK);
            if lane == 0 {
                turn.is_full(half).arrive();
            }
        }
    }
}

/// A warp of those that load.
pub(super) struct Producer<T, L> {
    pages: Pages,
    loads: L,
    q: Global<T>, // [total_qo_len, num_qo_heads, D]
    /// The first of the rows of each tile that this warp loads.
    first_row: u32,
    k_turn: Turn,
    v_turn: Turn,
}

impl<T: HalfFloat, L: LoadTile> Producer<T, L> {
    #[inline(always)]
    pub(super) unsafe fn new(pages: Pages, loads: L, q: Global<T>) -> Self {
        let first_row = thread::thread_idx_x() / WARP_SIZE * WARP_SIZE;
        Self { pages, loads, q, first_row, k_turn: Turn::FIRST, v_turn: Turn::FIRST }
    }

    /// Loads what the block works on, as fast as it is used, and in the order in which it is: the
    /// keys of a tile before the values of the one before.
    #[inline(always)]
    pub(super) unsafe fn run(mut self, items: Items) {
        let mut q_parity = 1;
        let (mut idx, end) = items.of_block();
        while idx < end {
            let item = items.load(idx);
            let mut tile = item.num_keys().div_ceil(KV_ROWS as u32) - 1;
            let mut rows = self.rows(&item, tile);
            self.load_k(&rows);
            let mut next_rows = self.rows(&item, tile.saturating_sub(1));
            q_is_empty(self.consumer()).wait(q_parity);
            q_parity ^= 1;
            self.load_q(&item);
            while tile > 0 {
                tile -= 1;
                self.load_k(&next_rows);
                // The next tile's pages are looked up while this one waits for its stage.
                let after_next = self.rows(&item, tile.saturating_sub(1));
                self.load_v(&rows);
                (rows, next_rows) = (next_rows, after_next);
            }
            self.load_v(&rows);
            idx += 1;
        }
    }

    /// What this warp loads of a tile.
    #[inline(always)]
    unsafe fn rows(&self, item: &PrefillItem, tile: u32) -> Rows {
        let first_key = tile * KV_ROWS as u32;
        let num_keys = item.num_keys() - first_key;
        Rows {
            first: self.first_row,
            num_rows: num_keys.saturating_sub(self.first_row),
            is_whole_tile: num_keys >= KV_ROWS as u32,
            kv_head: item.qo_head / self.pages.params.group_size,
            place: self.pages.place(item, first_key + self.first_row + warp::lane_id()),
        }
    }

    #[inline(always)]
    unsafe fn load_q(&self, item: &PrefillItem) {
        let num_qo_heads = self.pages.params.num_qo_heads;
        let row = self.first_row + warp::lane_id();
        let address = q_address::<T, D>(self.q, item, num_qo_heads, row);
        let num_rows = item.num_rows.saturating_sub(self.first_row);
        copy_rows::<T, D, Q_ROWS, ROWS>(q_tile(), self.first_row, address, num_rows);
        async_copy::arrive_when_landed(q_is_full(self.consumer()));
    }

    /// The warpgroup whose queries this warp loads.
    #[inline(always)]
    fn consumer(&self) -> u32 {
        self.first_row / (Q_ROWS as u32 / NUM_CONSUMERS)
    }

    #[inline(always)]
    unsafe fn load_k(&mut self, rows: &Rows) {
        self.k_turn.is_empty(Half::K).wait(self.k_turn.parity() ^ 1);
        self.loads.load(&self.pages, rows, self.k_turn, Half::K);
        self.k_turn = self.k_turn.next();
    }

    #[inline(always)]
    unsafe fn load_v(&mut self, rows: &Rows) {
        self.v_turn.is_empty(Half::V).wait(self.v_turn.parity() ^ 1);
        self.loads.load(&self.pages, rows, self.v_turn, Half::V);
        self.v_turn = self.v_turn.next();
    }
}
