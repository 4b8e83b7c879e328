//! Sorts (token, slot) pairs by expert: counts, offsets, and the permutation both ways.
//!
//! With `pair = token * top_k + slot`, over the pairs whose expert lies in
//! `first_expert..end_expert` (local expert `e = topk_ids[pair] - first_expert`):
//!
//! ```text
//! expert_counts[e]      = pairs of e
//! expert_offsets[e + 1] = expert_offsets[e] + expert_counts[e], rounded up to a multiple of row_alignment
//! pair_rows[pair]       = expert_offsets[e] + pairs of e before this one
//! row_pairs[row]        = the pair whose row it is, -1 for the rows that only fill up an expert
//! ```
//!
//! Rows of an expert are in the order of their pairs, so the permutation is one and the same
//! however it is found. Pairs of any other id, -1 among them, are skipped: their `pair_rows` is -1.
//! A token may name an expert twice, and has a row for each. `row_pairs` is written up to
//! `expert_offsets[num_local_experts]`, and left as it is beyond.
//!
//! # Shapes
//! All i32: `topk_ids`, `pair_rows` `[num_tokens, top_k]`, `expert_counts` `[num_local_experts]`,
//! `expert_offsets` `[num_local_experts + 1]`, `row_pairs` `[num_max_rows]`, where
//! [`num_max_rows`](contract::PermuteShape::num_max_rows) is what the worst routing needs. Nothing is
//! read back by the host.
//!
//! # Who does what
//! *baseline*: three launches after two fills. Each pair counts itself with an atomic; one block
//! scans; a block per expert walks over all pairs and ranks its own.
//!
//! *grid*: one launch, 1024 consecutive pairs a block and one a thread (or 4096 and 4). Lanes of a
//! warp that have the same expert find each other with one `match`; warps keep their counts in
//! shared memory, which a column sum turns into ranks within the block. Then the blocks publish
//! their counts, meet at one counter, and each adds up those of all others: what lies before its
//! own pairs, and the total, which it scans. So no block waits for a chain of others, but all of
//! them must be on the device at once: a launch has no more blocks than there are multiprocessors.
//! If another kernel holds all of those until this one ends, neither does.
//!
//! # What bounds it
//! Latency: a launch, a read, the meeting, a read, a write. See `design.md`.
//!
//! # Whose idea
//! The sort by counting is vLLM's and SGLang's `moe_align_block_size`; ranks by `match` are those
//! of CUB's radix sort.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

/// Most experts of a range.
pub const MAX_LOCAL_EXPERTS: u32 = 512;
/// Most blocks of the grid variant.
pub const MAX_BLOCKS: u32 = 128;
/// Pairs of a thread of the grid variant, where one is too few.
pub const MANY_PAIRS: u32 = 4;
/// Most pairs.
pub const MAX_PAIRS: u32 = MAX_BLOCKS * NUM_THREADS * MANY_PAIRS;
/// Largest multiple that an expert's rows are rounded up to.
pub const MAX_ROW_ALIGNMENT: u32 = 1024;
/// Threads of a block of the grid variant.
pub const NUM_THREADS: u32 = 1024;
/// Threads of a block of the baseline.
pub const BASELINE_THREADS: u32 = 256;
/// Threads of the one block of the baseline's scan: one for each expert.
pub const SCAN_THREADS: u32 = MAX_LOCAL_EXPERTS;

const NUM_WARPS: u32 = NUM_THREADS / 32;

/// The sizes that kernels take by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PermuteParams {
    /// Elements of `topk_ids`.
    pub num_pairs: u32,
    /// First expert of the range.
    pub first_expert: u32,
    /// Experts of the range.
    pub num_local_experts: u32,
    /// What the rows of an expert are rounded up to a multiple of.
    pub row_alignment: u32,
}

/// The local expert of a pair that is skipped.
const SKIPPED: u32 = u32::MAX;

impl PermuteParams {
    /// Local expert of an id, or [`SKIPPED`].
    #[inline(always)]
    const fn local_expert(&self, id: i32) -> u32 {
        let local = (id as u32).wrapping_sub(self.first_expert);
        if id >= 0 && local < self.num_local_experts { local } else { SKIPPED }
    }

    /// Rows that an expert of `count` pairs takes.
    #[inline(always)]
    const fn num_rows(&self, count: u32) -> u32 {
        count.div_ceil(self.row_alignment) * self.row_alignment
    }

    /// Experts as the grid variant lays them out: a power of two, whole warps.
    #[inline(always)]
    const fn num_columns(&self) -> u32 {
        let columns = self.num_local_experts.next_power_of_two();
        if columns < 32 { 32 } else { columns }
    }
}

/// Bytes of shared memory of the grid variant: 16-bit counts of each warp, three words for each
/// expert, a word for each warp.
const fn grid_shared_bytes(num_columns: u32) -> u32 {
    NUM_WARPS * num_columns * 2 + 3 * num_columns * 4 + NUM_WARPS * 4
}
