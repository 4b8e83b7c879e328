//! Who attends to what: the batch cut into items, dealt to blocks.
//!
//! A plan is data. It depends on the lengths of the requests, the shape of heads and pages, and the
//! number of blocks alone, can be printed, and is checked without a GPU.

use core::cmp::Reverse;
use std::collections::BinaryHeap;
use std::vec::Vec;

use super::contract::PrefillShape;
use super::{BlockShape, PrefillItem};

/// The items of a batch, block by block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefillPlan {
    /// All items; those of a block follow each other.
    pub items: Vec<PrefillItem>,
    /// Where a block's items start: `[num_blocks + 1]`.
    pub block_items: Vec<u32>,
}

/// What an item costs beside its tiles, in tiles: its first loads, and its output.
const COST_OF_ITEM: u32 = 1;

/// Bytes of KV that stay in an L2 cache of 50 MB, beside queries and outputs that pass through.
const CACHED_BYTES: u64 = 32 << 20;

impl PrefillPlan {
    /// Cuts requests of `qo_lens` queries and `kv_lens` tokens into items of at most
    /// `block.num_rows` queries, and deals them to at most `num_max_blocks` blocks.
    ///
    /// Heads go in as many rounds as it takes for the KV of each round to stay in the L2 cache. In
    /// a round the heaviest items go first, each to the block that is free first, so that all
    /// blocks end at about the same time. Among items of equal weight those that read the same KV
    /// are neighbours.
    pub fn new(
        shape: &PrefillShape,
        qo_lens: &[u32],
        kv_lens: &[u32],
        block: BlockShape,
        num_max_blocks: u32,
    ) -> Self {
        let mut items = cut(shape, qo_lens, kv_lens, block.num_rows);
        let heads_at_once = heads_at_once(shape, kv_lens);
        let cost = |item: &PrefillItem| item.num_keys().div_ceil(block.num_keys) + COST_OF_ITEM;
        items.sort_by_key(|item| (item.qo_head / heads_at_once, Reverse(cost(item))));
        let num_blocks = (items.len()).min(num_max_blocks as usize);
        let mut blocks = std::vec![Vec::new(); num_blocks];
        let mut free: BinaryHeap<_> = (0..num_blocks).map(|idx| Reverse((0, idx))).collect();
        for item in items {
            let mut first_free = free.peek_mut().expect("as many blocks as items, or fewer");
            let Reverse((busy_until, idx)) = &mut *first_free;
            *busy_until += u64::from(cost(&item));
            blocks[*idx].push(item);
        }
        let ends = blocks.iter().scan(0, |end, items| {
            *end += items.len() as u32;
            Some(*end)
        });
        Self { block_items: [0].into_iter().chain(ends).collect(), items: blocks.concat() }
    }

    /// Blocks to launch.
    pub fn num_blocks(&self) -> u32 {
        self.block_items.len() as u32 - 1
    }

    /// The items of a block, in the order in which it works on them.
    pub fn items_of(&self, block: u32) -> &[PrefillItem] {
        let [begin, end] = [block, block + 1].map(|i| self.block_items[i as usize] as usize);
        &self.items[begin..end]
    }
}

/// Query heads whose keys and values stay in the cache together, or those of one KV head.
fn heads_at_once(shape: &PrefillShape, kv_lens: &[u32]) -> u32 {
    let num_tokens: u64 = kv_lens.iter().map(|&len| u64::from(len)).sum();
    let head_bytes = 2 * num_tokens * u64::from(shape.page.element.bytes() * shape.page.head_dim);
    let num_kv_heads = CACHED_BYTES.checked_div(head_bytes).unwrap_or(CACHED_BYTES);
    shape.group_size() * num_kv_heads.clamp(1, shape.page.num_kv_heads.into()) as u32
}

/// Items request by request, the heads of the same queries together.
fn cut(shape: &PrefillShape, qo_lens: &[u32], kv_lens: &[u32], num_rows: u32) -> Vec<PrefillItem> {
    let (mut items, mut first_row, mut first_entry) = (Vec::new(), 0, 0);
    for (&qo_len, &kv_len) in qo_lens.iter().zip(kv_lens) {
        for begin in (0..qo_len).step_by(num_rows as usize) {
            items.extend((0..shape.num_qo_heads).map(|qo_head| PrefillItem {
                first_row: first_row + begin,
                num_rows: num_rows.min(qo_len - begin),
                qo_head,
                first_position: kv_len - qo_len + begin,
                first_entry,
                padding: [0; 3],
            }));
        }
        first_row += qo_len;
        first_entry += kv_len.div_ceil(shape.page.page_size);
    }
    items
}
