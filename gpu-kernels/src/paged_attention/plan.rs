//! Who reads what: the batch cut into equal shares, one for each block of the split kernel.
//!
//! A plan is data. It depends on the lengths of the requests and the number of blocks alone, can
//! be printed, and is checked without a GPU.

use std::vec::Vec;

use super::{MergeItem, TILE_TOKENS, WorkItem};

/// The split kernel's work, and what is left to merge after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodePlan {
    /// Pieces of work, a block's pieces one after the other.
    pub items: Vec<WorkItem>,
    /// Where each block's items start: `[blocks + 1]`.
    pub block_items: Vec<u32>,
    /// Pairs that were cut.
    pub merges: Vec<MergeItem>,
    /// Rows of the workspace.
    pub num_partials: u32,
}

impl DecodePlan {
    /// Cuts requests of `kv_lens` tokens with `num_kv_heads` heads into at most `num_max_blocks`
    /// shares, equal to a tile. Requests without tokens have an item too: it writes zeros.
    pub fn new(kv_lens: &[u32], num_kv_heads: u32, num_max_blocks: u32) -> Self {
        let tiles_of = |kv_len: u32| u64::from(kv_len.div_ceil(TILE_TOKENS));
        let num_tiles: u64 =
            kv_lens.iter().map(|&len| tiles_of(len) * u64::from(num_kv_heads)).sum();
        let num_blocks = u64::from(num_max_blocks.max(1)).min(num_tiles.max(1));

        let mut plan = Self {
            items: Vec::new(),
            block_items: std::vec![0],
            merges: Vec::new(),
            num_partials: 0,
        };
        let mut tiles_done = 0;
        for (request, &kv_len) in kv_lens.iter().enumerate() {
            for kv_head in 0..num_kv_heads {
                let pair = (request as u32, kv_head, tiles_of(kv_len) as u32);
                plan.cut_pair(pair, &mut tiles_done, |block| num_tiles * block / num_blocks);
            }
        }
        plan.block_items.resize(num_blocks as usize + 1, plan.items.len() as u32);
        plan
    }

    /// Blocks to launch.
    pub fn num_blocks(&self) -> u32 {
        self.block_items.len() as u32 - 1
    }

    /// Deals the tiles of one pair to the blocks; `share_begin(block)` is a block's first tile,
    /// counted over all pairs.
    fn cut_pair(
        &mut self,
        (request, kv_head, num_tiles): (u32, u32, u32),
        tiles_done: &mut u64,
        share_begin: impl Fn(u64) -> u64,
    ) {
        let first_item = self.items.len();
        let first_partial = self.num_partials;
        let mut tile_begin = 0;
        loop {
            let room = share_begin(self.block_items.len() as u64) - *tiles_done;
            let taken = room.min(u64::from(num_tiles - tile_begin)) as u32;
            let tile_end = tile_begin + taken;
            if taken > 0 || num_tiles == 0 {
                let partial = self.num_partials;
                self.items.push(WorkItem { request, kv_head, tile_begin, tile_end, partial });
                self.num_partials += 1;
            }
            *tiles_done += u64::from(taken);
            tile_begin = tile_end;
            if tile_begin == num_tiles {
                break;
            }
            self.block_items.push(self.items.len() as u32);
        }
        if self.items.len() - first_item == 1 {
            self.items[first_item].partial = WorkItem::WHOLE;
            self.num_partials = first_partial;
        } else {
            self.merges.push(MergeItem {
                request,
                kv_head,
                partial_begin: first_partial,
                partial_end: self.num_partials,
            });
        }
    }
}
