//! Causal attention of many queries over a paged KV cache, wherever its pages lie: whole prompts,
//! and chunks of them.
//!
//! Request `b` has `qo_len` queries, the last of its `kv_len` tokens. Query `i` sees the tokens up
//! to its own, `j <= kv_len - qo_len + i`. For each query head `h` of the group that shares KV head
//! `h / group_size`:
//!
//! ```text
//! s[j]     = sm_scale * q[i, h] . k[j]
//! out[i,h] = sum_j exp(s[j]) v[j] / sum_j exp(s[j])
//! lse[i,h] = log2(sum_j exp(s[j]))
//! ```
//!
//! # Shapes
//! `q`, `out` `[total_qo_len, num_qo_heads, head_dim]` in bf16 or f16, `lse`
//! `[total_qo_len, num_qo_heads]` in f32; request `b`'s queries are rows `qo_indptr[b]..qo_indptr[b +
//! 1]`. KV pages as in [`kv_layout`](crate::kv_layout), found through the page table of
//! [`paged_attention`](crate::paged_attention), in any location.
//!
//! # Who does what
//! The [plan](plan) cuts the batch into items, each some successive queries of one request and head.
//! An item goes through its keys in tiles, from the last to the first: only the last ones are cut
//! by the diagonal, and what lies behind it is never read.
//!
//! *baseline*: a block of 4 warps for 64 queries, tiles of 64 keys. A warp owns 16 queries; scores,
//! softmax and output stay in its registers (`mma`), while `cp.async` brings the next tile. Runs on
//! Ampere and later.
//!
//! *wgmma* (sm_90a, `head_dim` 128): one persistent block on each SM for 128 queries, tiles of 128
//! keys. One warpgroup loads: it is ahead by what the ring of tiles holds, across items too. Two
//! warpgroups own 64 queries each:
//!
//! ```text
//! S[64, 128] = Q K^T         both from shared memory, into registers
//! P = exp2(S - maximum)      in registers, rounded to 16 bits
//! O[64, 128] += P V          P from registers, V as it lies
//! ```
//!
//! The product of the next tile's S is issued together with that of this tile's O. Maxima are looked
//! for while the second of them runs; exponentials, sums and rounding follow both, so that they fill
//! each other's gaps. Named barriers let the two warpgroups issue in turn: while one does its
//! softmax, the other multiplies.
//!
//! # What bounds it
//! The tensor cores, `4 head_dim` flops for each pair of a query and a key that it sees, see
//! [`contract::PrefillShape::work`]; in long runs the power they draw, so that every instruction
//! saved is clock gained. KV comes from the L2: the heads of a group, and neighbouring queries, read
//! the same tiles at about the same time, and heads whose KV would not stay there together go one
//! after the other.
//!
//! # Whose idea
//! Tiles through on-chip memory with an online softmax: FlashAttention. Warpgroups that load and
//! warpgroups that multiply, in turns, the softmax under the products: FlashAttention-3. Equal
//! shares from a plan: FlashInfer.

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

/// How a kernel cuts queries and keys, and the threads that do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockShape {
    /// Queries of an item, at most.
    pub num_rows: u32,
    /// Keys of a tile.
    pub num_keys: u32,
    /// Tiles of K, and of V, in shared memory.
    pub num_stages: u32,
    /// Threads of a block.
    pub num_threads: u32,
}

/// Of the baseline.
pub const BASELINE: BlockShape =
    BlockShape { num_rows: 64, num_keys: 64, num_stages: 2, num_threads: 128 };

/// Of the kernel for Hopper: a warpgroup that loads, two that multiply.
pub const WGMMA: BlockShape =
    BlockShape { num_rows: 128, num_keys: 128, num_stages: 3, num_threads: 384 };

impl BlockShape {
    /// Bytes of shared memory: queries, tiles, and a page of barriers.
    pub const fn shared_bytes(self, head_dim: u32) -> u32 {
        (self.num_rows + 2 * self.num_stages * self.num_keys) * head_dim * 2 + BARRIER_BYTES
    }
}

/// Bytes that barriers have at the end of shared memory.
const BARRIER_BYTES: u32 = 128;

/// Most locations that pages can lie in: a lane of a warp holds the address of each.
pub const MAX_LOCATIONS: u32 = crate::paged_attention::MAX_LOCATIONS;

/// Most locations that the copy engine loads pages from; a kernel takes a tensor map of each.
pub const MAX_MAPPED_LOCATIONS: usize = crate::paged_attention::MAX_TILE_LOCATIONS as usize;

/// Dimensions of a pool of pages: elements of a head, tokens of a page, heads, K and V, pages.
pub const MAP_DIMENSIONS: usize = 5;

/// Pools of pages as the copy engine takes them, location by location.
pub type KvMaps = cuda_std::tensor_map::TensorMaps<u16, MAP_DIMENSIONS, MAX_MAPPED_LOCATIONS>;

/// Successive queries of one request and one head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PrefillItem {
    /// First row of `q` and `out`.
    pub first_row: u32,
    /// Rows.
    pub num_rows: u32,
    /// Query head.
    pub qo_head: u32,
    /// Position of the first row's token within its request.
    pub first_position: u32,
    /// The request's first entry of the page table.
    pub first_entry: u32,
    #[doc(hidden)]
    pub padding: [u32; 3],
}

impl PrefillItem {
    /// Words of an item in device memory.
    pub const WORDS: usize = 8;

    /// Keys that its last row sees.
    #[inline(always)]
    pub const fn num_keys(&self) -> u32 {
        self.first_position + self.num_rows
    }
}
