//! Where keys and values lie, and copies of some of their rows to shared memory.

use bytemuck::AnyBitPattern;
use cuda_std::prelude::*;
use cuda_std::warp::WARP_SIZE;
use cuda_std::wgmma::SwizzledTile;

use crate::paged_attention::AttentionParams;
use crate::paged_attention::device::paged_kv::shuffle_address;
use crate::paged_prefill::PrefillItem;

/// Columns of a panel: what the swizzle takes of a row.
pub(super) const PANEL: usize = SwizzledTile::<u16>::ROW_ELEMENTS;
/// Elements that are copied at once: 16 bytes.
const PIECE: u32 = 8;

/// Where a token lies.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) location: u32,
    pub(super) page: u32,
    /// Of the page.
    pub(super) token: u32,
}

/// Where the pages of the batch are.
#[derive(Clone, Copy)]
pub(super) struct Pages {
    kv_indices: Global<i32>,   // [entries]
    kv_page_rank: Global<i32>, // [entries]
    /// Of location `lane`: one load less in the chain from page to address.
    pool_address: u64,
    pub(super) params: AttentionParams,
}

impl Pages {
    #[inline(always)]
    pub(super) unsafe fn new(
        kv_indices: Global<i32>,   // [entries]
        kv_page_rank: Global<i32>, // [entries]
        peer_kv_ptrs: Global<u64>, // [num_locations]
        params: AttentionParams,
    ) -> Self {
        let location = warp::lane_id().min(params.num_locations - 1);
        let pool_address = peer_kv_ptrs.load(location as usize);
        Self { kv_indices, kv_page_rank, pool_address, params }
    }

    /// Where an item's token lies, or, past what the item sees, the last that it does.
    #[inline(always)]
    pub(super) unsafe fn place(&self, item: &PrefillItem, token: u32) -> Place {
        let token = token.min(item.num_keys() - 1);
        let page_of_request = token / self.params.page_size;
        let entry = (item.first_entry + page_of_request) as usize;
        Place {
            location: self.kv_page_rank.load(entry) as u32,
            page: self.kv_indices.load(entry) as u32,
            token: token - page_of_request * self.params.page_size,
        }
    }

    /// Address of the K of a token and head. All lanes call it.
    #[inline(always)]
    pub(super) unsafe fn k_address(&self, place: Place, kv_head: u32) -> u64 {
        let strides = self.params.strides;
        let in_page = place.token * strides.token + kv_head * strides.head;
        let first = u64::from(place.page) * u64::from(strides.page) + u64::from(in_page);
        shuffle_address(self.pool_address, place.location) + 2 * first
    }

    /// Bytes from a token's K to its V.
    #[inline(always)]
    pub(super) fn v_offset(&self) -> u64 {
        2 * u64::from(self.params.strides.value)
    }
}

/// Address of the query of a row and an item's head, or, past the item's rows, of its last row.
#[inline(always)]
pub(super) unsafe fn q_address<T: HalfFloat, const D: usize>(
    q: Global<T>, // [total_qo_len, num_qo_heads, D]
    item: &PrefillItem,
    num_qo_heads: u32,
    row: u32,
) -> u64 {
    let row = item.first_row + row.min(item.num_rows - 1);
    q.offset((row * num_qo_heads + item.qo_head) as usize * D).address()
}

/// Starts a warp's copies of `ROWS` rows of `D` elements to rows `first_row..` of a tile of
/// `TILE_ROWS` rows, panel after panel. Lane `i` has the address of row `i`; rows from `num_rows` on
/// become zeros, for 0 times what lay there could be NaN.
#[inline(always)]
pub(super) unsafe fn copy_rows<
    T: AnyBitPattern,
    const D: usize,
    const TILE_ROWS: usize,
    const ROWS: usize,
>(
    tile: Shared<T>,
    first_row: u32,
    address: u64,
    num_rows: u32,
) {
    let lanes_of_row = D as u32 / PIECE;
    let rows_at_once = WARP_SIZE / lanes_of_row;
    let (row_of_lane, piece) = (warp::lane_id() / lanes_of_row, warp::lane_id() % lanes_of_row);
    let column = (piece * PIECE) as usize;
    let panel = SwizzledTile::at(tile.offset(column / PANEL * TILE_ROWS * PANEL));
    for step in 0..ROWS as u32 / rows_at_once {
        let row = step * rows_at_once + row_of_lane;
        let src = shuffle_address(address, row) + u64::from(piece) * 16;
        let place = panel.place((first_row + row) as usize, column % PANEL);
        let src = Global::<u32>::from_address(src, 4);
        async_copy::copy_reused_16_or_zero(place, src, row < num_rows);
    }
}
