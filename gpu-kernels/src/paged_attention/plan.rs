//! Who reads what: the batch cut into equal shares, one for each block of the split kernel.
//!
//! A plan is data. It depends on the lengths of the requests, the page size and the number of
//! blocks alone, can be printed, and is checked without a GPU.

use std::vec::Vec;

use super::{TILE_TOKENS, WorkItem};

/// The split kernel's work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodePlan {
    /// Block `b` begins with item `b`, and goes on with each item's `next`.
    pub items: Vec<WorkItem>,
    /// Blocks to launch.
    pub num_blocks: u32,
    /// Rows of the workspace: parts of pairs that were cut.
    pub num_parts: u32,
    /// Pairs that were cut, each with a place where its blocks meet.
    pub num_meetings: u32,
}

impl DecodePlan {
    /// Cuts requests of `kv_lens` tokens with `num_kv_heads` heads into at most `num_max_blocks`
    /// shares, equal to a tile. Requests without tokens have an item too: it writes zeros.
    pub fn new(kv_lens: &[u32], page_size: u32, num_kv_heads: u32, num_max_blocks: u32) -> Self {
        let tiles_of = |kv_len: u32| u64::from(kv_len.div_ceil(TILE_TOKENS));
        let num_tiles: u64 =
            kv_lens.iter().map(|&len| tiles_of(len) * u64::from(num_kv_heads)).sum();
        let num_blocks = u64::from(num_max_blocks.max(1)).min(num_tiles.max(1));

        let mut cutter = Cutter {
            share_end: |block: usize| num_tiles * (block as u64 + 1) / num_blocks,
            blocks: std::vec![Vec::new()],
            num_tiles_dealt: 0,
            num_parts: 0,
            num_meetings: 0,
        };
        let mut first_entry = 0;
        for (request, &kv_len) in kv_lens.iter().enumerate() {
            for kv_head in 0..num_kv_heads {
                cutter.deal(request as u32, kv_head, kv_len, first_entry);
            }
            first_entry += kv_len.div_ceil(page_size);
        }
        Self {
            num_blocks: num_blocks as u32,
            num_parts: cutter.num_parts,
            num_meetings: cutter.num_meetings,
            items: link(cutter.blocks),
        }
    }

    /// The items of a block, in the order in which it works on them.
    pub fn items_of(&self, block: u32) -> impl Iterator<Item = &WorkItem> {
        let mut next = block;
        core::iter::from_fn(move || {
            let item = self.items.get(next as usize)?;
            next = item.next;
            Some(item)
        })
    }
}

/// Deals pairs to blocks, one share after the other.
struct Cutter<F> {
    /// One past a block's last tile, counted over all pairs.
    share_end: F,
    blocks: Vec<Vec<WorkItem>>,
    num_tiles_dealt: u64,
    num_parts: u32,
    num_meetings: u32,
}

impl<F: Fn(usize) -> u64> Cutter<F> {
    fn deal(&mut self, request: u32, kv_head: u32, kv_len: u32, first_entry: u32) {
        let num_tiles = kv_len.div_ceil(TILE_TOKENS);
        let mut parts = Vec::new();
        let mut tile_begin = 0;
        loop {
            let block = self.blocks.len() - 1;
            let room = (self.share_end)(block) - self.num_tiles_dealt;
            let taken = room.min(u64::from(num_tiles - tile_begin)) as u32;
            let tile_end = tile_begin + taken;
            if taken > 0 || num_tiles == 0 {
                parts.push((block, tile_begin, tile_end));
            }
            self.num_tiles_dealt += u64::from(taken);
            tile_begin = tile_end;
            if tile_begin == num_tiles {
                break;
            }
            self.blocks.push(Vec::new());
        }
        let num_parts = parts.len() as u32;
        for ((block, tile_begin, tile_end), part) in parts.into_iter().zip(self.num_parts..) {
            self.blocks[block].push(WorkItem {
                request,
                kv_head,
                tile_begin,
                tile_end,
                kv_len,
                first_entry,
                next: WorkItem::END,
                part,
                part_begin: self.num_parts,
                num_parts,
                meeting: self.num_meetings,
                padding: 0,
            });
        }
        if num_parts > 1 {
            self.num_parts += num_parts;
            self.num_meetings += 1;
        }
    }
}

/// Puts the blocks' first items first, and chains the others to them.
fn link(blocks: Vec<Vec<WorkItem>>) -> Vec<WorkItem> {
    let mut items: Vec<WorkItem> = blocks.iter().map(|block| block[0]).collect();
    for (block, block_items) in blocks.iter().enumerate() {
        let mut last = block;
        for &item in &block_items[1..] {
            items[last].next = items.len() as u32;
            last = items.len();
            items.push(item);
        }
    }
    items
}
