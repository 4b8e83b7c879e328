//! One product for each expert, of the tokens that were routed to it.
//!
//! ```text
//! C[r] = A[r] B[e]^T                    for rows r of expert e, expert_offsets[e]..[e + 1]
//! C[r] = silu(A[r] G[e]^T) * (A[r] U[e]^T)      gated: B[e] is G[e], then U[e]
//! ```
//!
//! A `[num_rows, k]`: tokens sorted by expert; B `[num_experts, n, k]`, gated `[num_experts, 2n, k]`;
//! C `[num_rows, n]`; all bf16, row-major, `n` and `k` multiples of 8. `expert_offsets`
//! `[num_experts + 1]` in i32 stays on the device: nobody waits for the host to read it. Rows before
//! the first offset and from the last on are no expert's, and stay as they are.
//!
//! # Who does what
//! *baseline* (sm_80 and later): a block for each 128 x 128 of an expert's part of C, as the
//! [`gemm`](crate::gemm) baseline; as many blocks as the worst routing takes, each of which finds its
//! expert from the offsets. The gate is a kernel of its own, in
//! [`shared_expert`](crate::shared_expert).
//!
//! *grouped* (sm_90a): the persistent [`gemm`](crate::gemm) by the copy engine, tiles of 256 rows of
//! B. A warp holds the offsets of 32 experts, a lane each, and finds the next tile by one vote. An
//! expert's rows are dealt evenly to tiles of up to 128, in steps of 16: an expert of 264 tokens
//! takes 3 tiles of 96, not 3 of 128, and one of 16 takes one of 16. Rows are not padded in memory:
//! what a tile loads beyond its expert's last row is another's, and is not stored. An expert of 193 to
//! 256 tokens has *tall* tiles, all its rows by 128 of B: its weights are then read once.
//!
//! *gated*: the tile's 256 rows of B are 128 gates and the 128 rows that they scale, in the two
//! accumulators of the same thread, so that only their product leaves it.
//!
//! # What bounds it
//! With hundreds of tokens an expert, the tensor cores; with a few, as in decoding, reading every
//! expert's weights. See [`contract::ExpertGemmShape::work`].
//!
//! # Whose idea
//! Tiles found from the offsets on the device: MegaBlocks, and CUTLASS's grouped kernel. Tokens as
//! the narrow side of the product: as in `gemm`. Tiles as even as the steps of `wgmma` allow,
//! instead of rows padded to 128 in memory: ours.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;
