//! Who reads what: the batch cut into parts, dealt to the blocks of the split kernel.
//!
//! A plan is data. It depends on the lengths of the requests, the page size, the number of blocks
//! and the [policy](SplitPolicy) alone, can be printed, and is checked without a GPU.

use std::format;
use std::ops::Range;
use std::vec;
use std::vec::Vec;

use super::contract::BatchMaxima;
use super::{MAX_GROUP_SIZE, NUM_WARPS, TILE_TOKENS, WorkItem};
use crate::contract::{ContractError, require};

/// Where (request, KV head) pairs are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SplitPolicy {
    /// Where blocks' shares of the batch end, so that every block reads the same bytes. Where that
    /// is, and with it the last bits of a result, depends on the other requests and on the GPU.
    #[default]
    Balanced,
    /// At token positions that follow from the request's own length, so that its result is the
    /// same bit for bit whatever else is in the batch, and however many SMs the GPU has.
    ///
    /// Parts have `part_tokens` tokens, doubled until a request has at most
    /// [`MAX_FIXED_PARTS`] of them.
    #[doc(alias = "fixed_split_size")]
    BatchInvariant {
        /// Tokens of a part: a multiple of [`TILE_TOKENS`].
        part_tokens: u32,
    },
}

/// Parts that a merge takes in one go.
const MERGED_AT_ONCE: u32 = 8;
/// Tiles of a part that are worth a second go.
const LONG_PART_TILES: u32 = 32;

/// Tiles that a block reads in the time that it loses at the end of an item.
pub(super) const ITEM_TILES: u64 = 8;

/// Fewest eighths of the SMs that read memory as fast as all of them do.
const MIN_WORKING_EIGHTHS: u32 = 6;

/// Most parts of a pair that [`SplitPolicy::BatchInvariant`] makes: the last block to arrive merges
/// all of them.
pub const MAX_FIXED_PARTS: u32 = 64;

impl SplitPolicy {
    /// Refuses parts that do not end where tiles do.
    pub fn check(self) -> Result<(), ContractError> {
        match self {
            Self::Balanced => Ok(()),
            Self::BatchInvariant { part_tokens } => require(
                part_tokens > 0 && part_tokens.is_multiple_of(TILE_TOKENS),
                "part_tokens",
                format!("a multiple of {TILE_TOKENS}"),
                part_tokens,
            ),
        }
    }
}

/// How items come to blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dealing {
    /// All of them by the plan.
    Planned,
    /// A first one by the plan; then a block that is about to be free claims the next of the list.
    /// Only balanced plans are made so, and only where there are pairs enough, all of which have tiles
    /// for all warps; what parts there are, and so every bit, is the plan's all the same.
    Claimed,
}

/// The split kernel's work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodePlan {
    /// Block `b` begins with item `b`, [`WorkItem::IDLE`] if it has none, and goes on with each
    /// item's `next`. Items to be claimed follow, and an idle one for each block after them.
    pub items: Vec<WorkItem>,
    /// Blocks to launch.
    pub num_blocks: u32,
    /// Rows of the workspace: parts of pairs that were cut.
    pub num_parts: u32,
    /// Pairs that were cut, each with a place where its blocks meet.
    pub num_meetings: u32,
}

impl DecodePlan {
    /// Cuts requests of `kv_lens` tokens with `num_kv_heads` heads, and deals the parts to
    /// `num_blocks` blocks, at least one. Requests without tokens have an item too: it writes
    /// zeros.
    ///
    /// # Panics
    /// If the policy does not [check](SplitPolicy::check) out.
    pub fn new(
        kv_lens: &[u32],
        page_size: u32,
        num_kv_heads: u32,
        num_blocks: u32,
        policy: SplitPolicy,
        dealing: Dealing,
    ) -> Self {
        let num_blocks = num_blocks.max(1);
        let is_balanced = policy == SplitPolicy::Balanced;
        let first_entries = first_entries(kv_lens, page_size);
        if is_balanced && dealing == Dealing::Claimed {
            let claims = Claims::new(kv_lens, num_kv_heads, num_blocks);
            if let Some(claims) = claims {
                return claims.plan(kv_lens, &first_entries);
            }
        }
        let item_tiles = if is_balanced && !is_even(kv_lens) { ITEM_TILES } else { 0 };
        let num_blocks_of_shares = match is_balanced {
            true => num_working_blocks(kv_lens, num_kv_heads, num_blocks),
            false => num_blocks,
        };
        let shares = Shares::new(kv_lens, num_kv_heads, item_tiles, num_blocks_of_shares);

        let mut parts = Parts::default();
        let mut cost_before = 0;
        // Head by head: the blocks of a head go through the requests as those of the others do, and
        // the heads of a page are read at about the same time.
        for kv_head in 0..num_kv_heads {
            for (request, (&kv_len, &first_entry)) in (0..).zip(kv_lens.iter().zip(&first_entries))
            {
                let cuts = match policy {
                    SplitPolicy::Balanced => shares.cuts(cost_before, kv_len),
                    SplitPolicy::BatchInvariant { part_tokens } => fixed_cuts(kv_len, part_tokens),
                };
                let merged = match policy {
                    SplitPolicy::Balanced => WorkItem::BY_LAST_PART,
                    SplitPolicy::BatchInvariant { .. } => WorkItem::BY_LAST_TO_ARRIVE,
                };
                parts.add_pair(
                    WorkItem { request, kv_head, kv_len, first_entry, merged, ..WorkItem::IDLE },
                    cuts,
                );
                cost_before += shares.cost(kv_len);
            }
        }
        let blocks = shares.deal(&parts.items, num_blocks);
        Self {
            items: link(&blocks),
            num_blocks,
            num_parts: parts.num_parts,
            num_meetings: parts.num_meetings,
        }
    }

    /// The items of a block, in the order in which it works on them.
    pub fn items_of(&self, block: u32) -> impl Iterator<Item = &WorkItem> {
        let mut next = block;
        core::iter::from_fn(move || {
            let item = self.items.get(next as usize).filter(|item| !item.is_idle())?;
            next = item.next;
            Some(item)
        })
    }
}

/// How large the plans of batches up to some maxima get: what their memory must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanMaxima {
    /// Items, idle ones included.
    pub num_max_items: u32,
    /// Rows of the workspace.
    pub num_max_parts: u32,
    /// Pairs that are cut.
    pub num_max_meetings: u32,
}

impl PlanMaxima {
    /// Of plans for these batches, as [`DecodePlan::new`] makes them.
    ///
    /// # Errors
    /// More parts than kernels count.
    pub fn new(
        batch: BatchMaxima,
        page_size: u32,
        num_kv_heads: u32,
        num_blocks: u32,
        policy: SplitPolicy,
    ) -> Result<Self, ContractError> {
        let num_blocks = u64::from(num_blocks.max(1));
        let num_requests = u64::from(batch.num_max_requests);
        let num_pairs = num_requests * u64::from(num_kv_heads);
        let (items, parts, meetings) = match policy {
            // A share's end makes two parts of one, and may do so to a pair of its own.
            SplitPolicy::Balanced => {
                let num_cuts = num_blocks - 1;
                let num_parts = u64::from(MAX_CLAIMED_PARTS_OF_BLOCK) * num_blocks;
                let num_max_parts = num_parts.max(2 * num_cuts);
                (num_pairs + num_max_parts + num_blocks, num_max_parts, num_pairs)
            }
            // The last page, tile and part of each request may have room left.
            SplitPolicy::BatchInvariant { part_tokens } => {
                let tokens = u64::from(batch.num_max_pages) * u64::from(page_size);
                let part_tokens = u64::from(part_tokens.max(1));
                let of_head = (tokens / part_tokens + num_requests)
                    .min(num_requests * u64::from(MAX_FIXED_PARTS));
                let parts = of_head * u64::from(num_kv_heads);
                (parts, parts, num_pairs)
            }
        };
        // Words of items, and rows of parts, are counted in 32 bits.
        let most = u64::from(u32::MAX / MAX_GROUP_SIZE.max(WorkItem::WORDS as u32));
        let countable = |what: &str, count: u64| {
            require(count <= most, what, format!("at most {most} for these maxima"), count)
                .map(|()| count as u32)
        };
        Ok(Self {
            num_max_items: countable("items", items + num_blocks)?,
            num_max_parts: countable("parts", parts)?,
            num_max_meetings: countable("meetings", meetings)?,
        })
    }
}

/// Each request's first entry of the page table.
fn first_entries(kv_lens: &[u32], page_size: u32) -> Vec<u32> {
    let entries = kv_lens.iter().scan(0, |entries, kv_len| {
        let first = *entries;
        *entries += kv_len.div_ceil(page_size);
        Some(first)
    });
    entries.collect()
}

/// Tiles of a pair that one block works on.
type Cut = Range<u32>;

/// All parts of the batch, pair by pair.
#[derive(Default)]
struct Parts {
    items: Vec<WorkItem>,
    num_parts: u32,
    num_meetings: u32,
}

impl Parts {
    /// Adds the parts of one pair, whose request, head and length `pair` says.
    fn add_pair(&mut self, pair: WorkItem, cuts: Vec<Cut>) {
        let num_parts = cuts.len() as u32;
        let part_begin = self.num_parts;
        self.items.extend(cuts.into_iter().zip(part_begin..).map(|(tiles, part)| WorkItem {
            tile_begin: tiles.start,
            tile_end: tiles.end,
            part,
            part_begin,
            num_parts,
            meeting: self.num_meetings,
            ..pair
        }));
        if num_parts > 1 {
            self.num_parts += num_parts;
            self.num_meetings += 1;
        }
    }
}

/// Fewest tiles of a part that is cut off for others to claim.
const MIN_CLAIMED_TILES: u64 = 64;

/// Percent of a share that the parts which blocks begin with have at most.
const FIRST_PERCENT: u64 = 80;

/// Pairs of one length for each block that whole pairs, dealt by the plan, are as good for.
const MIN_EVEN_PAIRS_OF_BLOCK: u64 = 3;

/// Most parts of pairs that were cut, for each block.
const MAX_CLAIMED_PARTS_OF_BLOCK: u32 = 8;

/// A list of parts that gets finer towards its end: long pairs first, each cut in parts of what is
/// left for a block.
struct Claims {
    num_kv_heads: u32,
    num_blocks: u64,
    /// Tiles of the batch.
    num_tiles: u64,
}

impl Claims {
    /// None where claiming does not pay, or does not work: few pairs of one length, fewer pairs than
    /// blocks, pairs without a tile for each warp.
    fn new(kv_lens: &[u32], num_kv_heads: u32, num_blocks: u32) -> Option<Self> {
        let num_pairs = kv_lens.len() as u64 * u64::from(num_kv_heads);
        let num_tiles = |&kv_len: &u32| kv_len.div_ceil(TILE_TOKENS);
        let fewest = kv_lens.iter().map(num_tiles).min()?;
        let fewest_pairs = if is_even(kv_lens) { MIN_EVEN_PAIRS_OF_BLOCK } else { 1 };
        let is_useful = num_pairs > fewest_pairs * u64::from(num_blocks) && fewest >= NUM_WARPS;
        let of_head: u64 = kv_lens.iter().map(|kv_len| u64::from(num_tiles(kv_len))).sum();
        let num_tiles = of_head * u64::from(num_kv_heads);
        is_useful.then_some(Self { num_kv_heads, num_blocks: num_blocks.into(), num_tiles })
    }

    fn plan(self, kv_lens: &[u32], first_entries: &[u32]) -> DecodePlan {
        let mut requests: Vec<u32> = (0..kv_lens.len() as u32).collect();
        requests.sort_by_key(|&request| core::cmp::Reverse(kv_lens[request as usize]));
        let mut parts = Parts::default();
        let mut left = self.num_tiles;
        let pairs = requests.iter().flat_map(|&r| (0..self.num_kv_heads).map(move |h| (r, h)));
        for (request, kv_head) in pairs {
            let (kv_len, first_entry) =
                (kv_lens[request as usize], first_entries[request as usize]);
            let merged = WorkItem::BY_LAST_TO_ARRIVE;
            let num_tiles = kv_len.div_ceil(TILE_TOKENS);
            let part_tiles = self.part_tiles(left, parts.items.len() as u64);
            let budget = u64::from(MAX_CLAIMED_PARTS_OF_BLOCK) * self.num_blocks;
            let num_parts = u64::from(num_tiles)
                .div_ceil(part_tiles)
                .min(budget - u64::from(parts.num_parts))
                .clamp(1, u64::from(num_tiles / NUM_WARPS));
            parts.add_pair(
                WorkItem { request, kv_head, kv_len, first_entry, merged, ..WorkItem::IDLE },
                equal_cuts(num_tiles, num_parts as u32),
            );
            left -= u64::from(num_tiles);
        }
        for item in &mut parts.items {
            item.next = WorkItem::CLAIMED;
        }
        let idle = WorkItem::IDLE;
        parts.items.extend((1..self.num_blocks).map(|_| idle).chain([WorkItem::LAST_CLAIM]));
        DecodePlan {
            items: parts.items,
            num_blocks: self.num_blocks as u32,
            num_parts: parts.num_parts,
            num_meetings: parts.num_meetings,
        }
    }

    /// Tiles of parts when `left` tiles are left. The ends of parts cost something, so they are as
    /// long as they can be without one being the last of all; the first ones are a bit less than a
    /// share of the batch.
    fn part_tiles(&self, left: u64, num_items: u64) -> u64 {
        let share = match num_items < self.num_blocks {
            true => self.num_tiles * FIRST_PERCENT / 100,
            false => left,
        };
        (share / self.num_blocks).max(MIN_CLAIMED_TILES)
    }
}

/// Cuts a pair in parts that all warps have as many tiles of, but for the last.
fn equal_cuts(num_tiles: u32, num_parts: u32) -> Vec<Cut> {
    let rounds = num_tiles.div_ceil(NUM_WARPS);
    let end = |part: u32| {
        let rounds = u64::from(rounds) * u64::from(part) / u64::from(num_parts);
        (rounds as u32 * NUM_WARPS).min(num_tiles)
    };
    (0..num_parts).map(|part| end(part)..end(part + 1)).collect()
}

/// Whether all requests have as many tiles.
fn is_even(kv_lens: &[u32]) -> bool {
    kv_lens.windows(2).all(|two| two[0].div_ceil(TILE_TOKENS) == two[1].div_ceil(TILE_TOKENS))
}

/// Blocks that share the batch, of `num_blocks`: for requests of one length fewer than all, if then
/// every block has whole pairs, or every pair whole blocks, of a tile a warp at least. What that saves
/// of merging is more than the memory's rate loses by some idle SMs: nothing, down to
/// [`MIN_WORKING_EIGHTHS`]; for short pairs it gains by merging in one go, too.
fn num_working_blocks(kv_lens: &[u32], num_kv_heads: u32, num_blocks: u32) -> u32 {
    let num_tiles = |kv_len: &u32| kv_len.div_ceil(TILE_TOKENS);
    let num_pairs = kv_lens.len() as u32 * num_kv_heads;
    if !is_even(kv_lens) || num_pairs == 0 {
        return num_blocks;
    }
    let fewest = (num_blocks * MIN_WORKING_EIGHTHS).div_ceil(8);
    let blocks_of_pair = num_blocks / num_pairs;
    if blocks_of_pair > 0 {
        let num_tiles = num_tiles(&kv_lens[0]);
        let most = match num_tiles >= LONG_PART_TILES * blocks_of_pair {
            true => blocks_of_pair,
            false => blocks_of_pair.min(MERGED_AT_ONCE),
        };
        let useful = (num_tiles / NUM_WARPS).clamp(1, most);
        let working = num_pairs * useful;
        return if useful < blocks_of_pair || working >= fewest { working } else { num_blocks };
    }
    let has_whole_pairs = |blocks: &u32| num_pairs.is_multiple_of(*blocks);
    (fewest..=num_blocks).rev().find(has_whole_pairs).unwrap_or(num_blocks)
}

/// What the batch costs, laid end to end, in equal shares: the blocks' differ by a tile at most.
struct Shares {
    /// Counted in tiles.
    cost: u64,
    /// What the end of an item costs.
    item_tiles: u64,
    num_blocks: u64,
}

impl Shares {
    fn new(kv_lens: &[u32], num_kv_heads: u32, item_tiles: u64, num_blocks: u32) -> Self {
        let mut shares = Self { cost: 0, item_tiles, num_blocks: num_blocks.into() };
        let of_head: u64 = kv_lens.iter().map(|&kv_len| shares.cost(kv_len)).sum();
        shares.cost = of_head * u64::from(num_kv_heads);
        shares
    }

    /// What a pair of `kv_len` tokens costs: its tiles, and before them what an item does.
    fn cost(&self, kv_len: u32) -> u64 {
        match kv_len {
            0 => 0,
            _ => self.item_tiles + u64::from(kv_len.div_ceil(TILE_TOKENS)),
        }
    }

    /// Where a block's share ends.
    fn end(&self, block: u64) -> u64 {
        self.cost * (block + 1) / self.num_blocks
    }

    /// The block in whose share a tile begins; for the end of all shares, the last block.
    fn block_of(&self, begin: u64) -> u64 {
        let blocks_to_its_end = ((begin + 1) * self.num_blocks).div_ceil(self.cost.max(1));
        (blocks_to_its_end - 1).min(self.num_blocks - 1)
    }

    /// Cuts a pair of `kv_len` tokens, before which the batch costs `cost_before`, where shares end.
    fn cuts(&self, cost_before: u64, kv_len: u32) -> Vec<Cut> {
        let end = cost_before + self.cost(kv_len);
        let start = end - u64::from(kv_len.div_ceil(TILE_TOKENS));
        let mut cuts = Vec::new();
        let mut begin = start;
        loop {
            let cut_end = self.end(self.block_of(begin)).min(end);
            cuts.push((begin - start) as u32..(cut_end - start) as u32);
            begin = cut_end;
            if begin == end {
                return cuts;
            }
        }
    }

    /// Gives each item to the block that has its first tile, of `num_launched` blocks, and then items
    /// without tiles, which take a moment all the same, to all blocks in turn.
    ///
    /// Parts of a pair follow each other in one block or in neighbours, so that merges fall to all
    /// blocks alike: were they dealt in turn, a block that merges would come last to its next part,
    /// and have to merge again.
    fn deal(&self, items: &[WorkItem], num_launched: u32) -> Vec<Vec<WorkItem>> {
        let mut blocks = vec![Vec::new(); num_launched as usize];
        let (empty, full): (Vec<WorkItem>, Vec<WorkItem>) =
            items.iter().partition(|item| item.num_tiles() == 0);
        let mut cost_before = 0;
        for item in full {
            if item.tile_begin == 0 {
                cost_before += self.item_tiles;
            }
            blocks[self.block_of(cost_before) as usize].push(item);
            cost_before += u64::from(item.num_tiles());
        }
        for (block, item) in (0..num_launched as usize).cycle().zip(empty) {
            blocks[block].push(item);
        }
        blocks
    }
}

/// Cuts a pair at multiples of `part_tokens`, or of the least doubling of it that makes few enough
/// parts.
fn fixed_cuts(kv_len: u32, part_tokens: u32) -> Vec<Cut> {
    let num_tiles = kv_len.div_ceil(TILE_TOKENS);
    let mut part_tiles = part_tokens / TILE_TOKENS;
    assert!(part_tiles > 0, "a policy that was checked");
    while num_tiles.div_ceil(part_tiles) > MAX_FIXED_PARTS {
        part_tiles *= 2;
    }
    let num_parts = num_tiles.div_ceil(part_tiles).max(1);
    (0..num_parts).map(|i| i * part_tiles..((i + 1) * part_tiles).min(num_tiles)).collect()
}

/// Puts the blocks' first items first, and chains the others to them.
fn link(blocks: &[Vec<WorkItem>]) -> Vec<WorkItem> {
    let mut items: Vec<WorkItem> =
        blocks.iter().map(|block| block.first().copied().unwrap_or(WorkItem::IDLE)).collect();
    for (block, block_items) in blocks.iter().enumerate() {
        let mut last = block;
        for &item in block_items.iter().skip(1) {
            items[last].next = items.len() as u32;
            last = items.len();
            items.push(item);
        }
    }
    items
}
