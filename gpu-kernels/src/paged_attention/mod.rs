//! Decode attention over a paged KV cache, wherever its pages lie.
//!
//! For each request `b`, each query head `h` of the group that shares KV head `h / group_size`,
//! over the request's `kv_len` tokens `j`:
//!
//! ```text
//! s[j]     = sm_scale * q[b, h] . k[j]
//! out[b,h] = sum_j exp(s[j]) v[j] / sum_j exp(s[j])
//! lse[b,h] = log2(sum_j exp(s[j]))
//! ```
//!
//! A request without tokens has `out = 0` and `lse = -inf`, which is what merging wants.
//!
//! # Shapes
//! `q`, `out` `[batch, num_qo_heads, head_dim]` in bf16 or f16, `lse` `[batch, num_qo_heads]` in
//! f32. KV pages as in [`kv_layout`](crate::kv_layout); the page table is CSR: entries
//! `kv_indptr[b]..kv_indptr[b + 1]` are request `b`'s pages in order, each at
//! `peer_kv_ptrs[kv_page_rank] + kv_indices * page_bytes`. A location is a GPU's memory (this
//! one's, or a peer's over NVLink) or pinned host memory: the kernel reads all of them in place.
//!
//! # Who does what
//! *baseline*: a block per (request, KV head), a warp per query head. Lanes take 32 tokens at a
//! time for the scores, then own head dimensions for the values. Each query head reads the KV of
//! its group again.
//!
//! *split* and *tiles*: one persistent block per SM, 8 warps. The [plan](plan) cuts the batch's
//! (request, KV head) pairs, laid end to end in tiles of 16 tokens, into equal shares, so that every
//! SM reads the same bytes whatever the lengths; or, on request, at fixed token positions, so that a
//! request's result does not depend on the batch it came in. Within an item the warps take tiles in
//! turn, each with its own ring of stages that runs on across items, so nothing drains at a
//! boundary. A tile is two products on the tensor cores with the grouped heads as the narrow side,
//! so that a group of 8 wastes no lane:
//!
//! ```text
//! S^T[16 tokens, 8 heads] = K[16, head_dim] Q^T     softmax down the tokens
//! O^T[head_dim, 8 heads] += V^T[head_dim, 16] P^T   P^T by one transpose in registers
//! ```
//!
//! *split* loads with `cp.async`, 16 bytes a lane, pages of any size on any GPU. Its warps merge in
//! shared memory, between block barriers. Parts of a pair that was cut go to a workspace in f32; the
//! block whose part arrives last merges them, in the order of the parts whoever it is, so that
//! results repeat bit by bit.
//!
//! *tiles*, on Hopper, loads with tensor maps: one lane asks for K and V of a tile at once. No warp
//! waits for the block. It leaves its result of an item in shared memory, goes on to the next item,
//! and after a tile of that merges one head over all warps. Rows of parts are their own flags, absent
//! until written: the block of the last part merges as soon as it sees them, without a fence. Where
//! there are more pairs than blocks, SMs do not get equal shares, for they do not read at equal rates:
//! a block that is about to be free claims the next item of a list that gets finer towards its end.
//!
//! Both start [early](cuda_std::grid): what the host wrote, plan and page table, is read while the
//! kernel before ends. KV and queries are not.
//!
//! # What bounds it
//! Memory: 1 flop a byte and query head that shares it, far below the ridge. The floor is KV bytes over the
//! rate of where they lie (HBM, NVLink or PCIe), see [`contract::DecodeShape::work`].
//!
//! # Whose idea
//! Paging: vLLM. Split KV with a merge by log-sum-exp: Flash-Decoding. Equal shares from a plan:
//! FlashInfer. Scores transposed, so that few heads fill a tensor-core tile: XQA. Data that is its
//! own flag: NCCL's low-latency protocol.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod plan;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

use crate::kv_layout::{KvPageShape, KvStrides};

/// Tokens of a tile: the unit in which the split kernel reads and the plan cuts.
pub const TILE_TOKENS: u32 = 16;
/// Warps of a block, all variants.
pub const NUM_WARPS: u32 = 8;
/// Threads of a block, all variants.
pub const NUM_THREADS: u32 = 32 * NUM_WARPS;
/// Largest group of query heads that share a KV head.
pub const MAX_GROUP_SIZE: u32 = 16;
/// Most query heads, whatever is done to them.
pub const MAX_QO_HEADS: u32 = 1 << 16;

/// Most locations that pages can lie in: a lane of a warp holds the address of each.
pub const MAX_LOCATIONS: u32 = 32;

/// The sizes that kernels take by value, of decode and of prefill.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct AttentionParams {
    /// Heads of `q` and `out`.
    pub num_qo_heads: u32,
    /// Query heads that share a KV head.
    pub group_size: u32,
    /// Tokens of a page.
    pub page_size: u32,
    /// Entries of `peer_kv_ptrs`.
    pub num_locations: u32,
    /// `sm_scale * log2(e)`: scores in the base of `exp2`.
    pub sm_scale_log2: f32,
    /// Where a page's elements lie.
    pub strides: KvStrides,
}

impl AttentionParams {
    /// Of heads and pages that were checked, in `num_locations` places.
    pub fn new(page: &KvPageShape, num_qo_heads: u32, sm_scale: f32, num_locations: usize) -> Self {
        Self {
            num_qo_heads,
            group_size: num_qo_heads / page.num_kv_heads,
            page_size: page.page_size,
            num_locations: num_locations as u32,
            sm_scale_log2: sm_scale * core::f32::consts::LOG2_E,
            strides: page.strides(),
        }
    }
}

/// One piece of the split kernel's work: some tiles of one (request, KV head) pair.
///
/// It repeats what the page table says of lengths, so that a block finds its first page with one
/// load less in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct WorkItem {
    /// Row of the batch.
    pub request: u32,
    /// KV head.
    pub kv_head: u32,
    /// First tile of 16 tokens.
    pub tile_begin: u32,
    /// One past the last tile.
    pub tile_end: u32,
    /// Tokens of the request.
    pub kv_len: u32,
    /// The request's first entry of the page table.
    pub first_entry: u32,
    /// The block's next item, [`CLAIMED`](Self::CLAIMED), or [`END`](Self::END).
    pub next: u32,
    /// Which part of the pair this is: a row of the workspace, if there are several.
    pub part: u32,
    /// First part of the pair.
    pub part_begin: u32,
    /// Parts of the pair; the result of a single one goes straight to `out`. 0 if this is
    /// [no work](Self::IDLE).
    pub num_parts: u32,
    /// Where the blocks that have the parts meet: the last to arrive merges them.
    pub meeting: u32,
    /// Who merges the parts: [`BY_LAST_TO_ARRIVE`](Self::BY_LAST_TO_ARRIVE) or
    /// [`BY_LAST_PART`](Self::BY_LAST_PART).
    pub merged: u32,
}

impl WorkItem {
    /// `next` of a block's last item.
    pub const END: u32 = u32::MAX;
    /// `next` where the block claims an item that no block has from the start. Each of these has a
    /// tile for every warp.
    pub const CLAIMED: u32 = u32::MAX - 1;
    /// Words of an item in device memory.
    pub const WORDS: usize = 12;
    /// `merged`: the block whose part arrives last, whichever it is.
    pub const BY_LAST_TO_ARRIVE: u32 = 0;
    /// `merged`: the block that has the last part, as its first item. The other parts are with lower
    /// blocks, so it may wait for them: they run before it does.
    pub const BY_LAST_PART: u32 = 1;
    /// What a block without work finds: it leaves at once.
    pub const IDLE: Self = Self {
        request: 0,
        kv_head: 0,
        tile_begin: 0,
        tile_end: 0,
        kv_len: 0,
        first_entry: 0,
        next: Self::END,
        part: 0,
        part_begin: 0,
        num_parts: 0,
        meeting: 0,
        merged: Self::BY_LAST_TO_ARRIVE,
    };

    /// What the last block that claims finds: the list is over for all of them.
    pub const LAST_CLAIM: Self = Self { part: 1, ..Self::IDLE };

    /// Whether this is [`LAST_CLAIM`](Self::LAST_CLAIM).
    #[inline(always)]
    pub const fn is_last_claim(&self) -> bool {
        self.is_idle() && self.part == 1
    }

    /// Whether this is no work.
    #[inline(always)]
    pub const fn is_idle(&self) -> bool {
        self.num_parts == 0
    }

    /// Whether the block that has this merges the parts of its pair, once it has done all its items.
    #[inline(always)]
    pub const fn merges_at_end(&self) -> bool {
        self.merged == Self::BY_LAST_PART
            && self.num_parts > 1
            && self.part + 1 == self.part_begin + self.num_parts
    }

    /// Tiles of 16 tokens.
    #[inline(always)]
    pub const fn num_tiles(&self) -> u32 {
        self.tile_end - self.tile_begin
    }
}

/// Bytes of shared memory that the split kernel asks for.
pub const fn split_shared_bytes(head_dim: u32, head_tiles: u32) -> u32 {
    NUM_WARPS * (RING_BYTES + merge_bytes(head_dim, head_tiles)) + ARRIVED_BYTES
}

/// Bytes in which a thread tells its block how many parts of a pair arrived before.
const ARRIVED_BYTES: u32 = 16;

/// Bytes of a warp's ring of tiles: 128 KiB are on their way to an SM.
const RING_BYTES: u32 = 16 * 1024;

/// Stages of a warp's ring, for heads of `row_bytes`: one is worked on, the others are on their
/// way. Heads of 64 bytes could have 8 of them, but with a prologue that long ptxas 13.0 splits the
/// address of copies, and does not set one of its parts.
const fn num_stages(row_bytes: u32) -> u32 {
    if row_bytes == 256 { 2 } else { 4 }
}

/// Most locations whose pages tensor maps load: as many maps are a kernel's parameter.
pub const MAX_TILE_LOCATIONS: u32 = 9;

/// Words of a block's ring of claims: more than its warps are ever apart.
const NUM_CLAIM_WORDS: u32 = 64;

/// Slots in which warps leave their results of an item to each other: as many as have room.
const fn num_result_slots(head_tiles: u32) -> u32 {
    if head_tiles == 1 { 2 } else { 1 }
}

/// Tokens that one tensor-map load brings: a tile, or half of one.
pub const fn box_tokens(page_size: u32) -> u32 {
    if page_size.is_multiple_of(TILE_TOKENS) { TILE_TOKENS } else { 8 }
}

/// The shared memory of the tiles kernel: rings, results, barriers.
#[derive(Clone, Copy, Debug)]
pub struct TilesLayout {
    ring_bytes: u32,
    results_bytes: u32,
    num_slots: u32,
    stages: u32,
}

impl TilesLayout {
    const BARRIER_BYTES: u32 = 8;

    /// For heads of `head_dim` elements in `head_tiles` tiles of 8, and `stages` tiles in flight.
    pub const fn new(head_dim: u32, head_tiles: u32, stages: u32) -> Self {
        let num_slots = num_result_slots(head_tiles);
        Self {
            ring_bytes: stages * 2 * tile_bytes(2 * head_dim),
            results_bytes: num_slots * NUM_WARPS * merge_bytes(head_dim, head_tiles),
            num_slots,
            stages,
        }
    }

    /// Where a warp's ring starts.
    const fn ring(self, warp_idx: u32) -> u32 {
        warp_idx * self.ring_bytes
    }

    /// Where the results start.
    const fn results(self) -> u32 {
        self.ring(NUM_WARPS)
    }

    /// Where the barriers of a warp's ring start.
    const fn full(self, warp_idx: u32) -> u32 {
        self.results() + self.results_bytes + warp_idx * self.stages * Self::BARRIER_BYTES
    }

    /// Where the barriers of slots that are filled start.
    const fn filled(self) -> u32 {
        self.full(NUM_WARPS)
    }

    /// Where the barriers of slots that are drained start.
    const fn drained(self) -> u32 {
        self.filled() + self.num_slots * Self::BARRIER_BYTES
    }

    /// Where the block's claims start.
    const fn claims(self) -> u32 {
        self.drained() + self.num_slots * Self::BARRIER_BYTES
    }

    /// All of it.
    pub const fn bytes(self) -> u32 {
        self.claims() + 4 * NUM_CLAIM_WORDS
    }
}

/// Bytes of one tile of K, or of V, of heads of `row_bytes`.
const fn tile_bytes(row_bytes: u32) -> u32 {
    TILE_TOKENS * row_bytes
}

/// Distance between the heads of a warp's output in shared memory, in f32: padded, so that the
/// lanes of an accumulator write to different banks.
const fn merge_row(head_dim: u32) -> u32 {
    head_dim + 4
}

/// Bytes where a warp leaves its output, maxima and sums, in f32, to be merged.
const fn merge_bytes(head_dim: u32, head_tiles: u32) -> u32 {
    8 * head_tiles * (merge_row(head_dim) + 2) * 4
}
