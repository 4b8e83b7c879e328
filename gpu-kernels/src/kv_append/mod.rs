//! Writes K and V of new tokens into their pages, K rotated on the way if asked.
//!
//! Each request's new tokens are its last: with `kv_len` its length including them, token `t` of
//! request `b` (`append_indptr[b] <= t < append_indptr[b + 1]`) has
//!
//! ```text
//! position   = kv_len - (append_indptr[b + 1] - t)
//! page entry = kv_indptr[b] + position / page_size      token of the page = position % page_size
//! ```
//!
//! Rotary embedding turns the pair `(x, y)` of dimensions `(i, i + head_dim / 2)` (half-split, as
//! in NeoX) or `(2i, 2i + 1)` (interleaved, as in GPT-J) by the angle of its position:
//!
//! ```text
//! (x cos[i] - y sin[i],  y cos[i] + x sin[i])     cos, sin = halves of cos_sin_cache[position]
//! ```
//!
//! in f32, rounded once. Into pages of e4m3, K and V go over a factor of their head:
//!
//! ```text
//! stored = e4m3(k / k_scale[head])     stored = e4m3(v / v_scale[head])
//! ```
//!
//! to nearest even, saturating at 448, after a rotated K has become bf16 or f16. *rotate_q* rotates the
//! queries of the new tokens, in place or into another tensor.
//!
//! *qkv* does all of it in one launch, from the rows that one product with the weights of q, K and V
//! together makes, and what models do in between: it adds a bias, and divides each head of q and of K
//! by its root mean square, with a weight for each dimension (Qwen2 has the one, Qwen3 the other):
//!
//! ```text
//! x = bf16(x + bias)        x = bf16(bf16(x / sqrt(mean over the head of x^2 + eps)) * weight)
//! ```
//!
//! A request without pages, as a graph that is replayed for fewer requests has them, appends nothing.
//!
//! # Shapes
//! `k`, `v` `[num_tokens, num_kv_heads, head_dim]`, `q`, `q_out` `[num_tokens, num_qo_heads,
//! head_dim]` in bf16 or f16; `append_indptr` `[batch + 1]`; `cos_sin_cache`
//! `[num_max_positions, head_dim]` in f32, cosines then sines; `k_scale`, `v_scale`
//! `[num_kv_heads]` in f32; `qkv` `[num_tokens, (num_qo_heads + 2 num_kv_heads) * head_dim]`, its
//! `qkv_bias` a row of it, `q_norm`, `k_norm` `[head_dim]`. `head_dim` is a multiple of 16, and where
//! heads are normalised a power of two. The page table and the pages are those of
//! [`paged_attention`](crate::paged_attention); pages may lie in any location.
//!
//! # Who does what
//! A thread takes 16 dimensions of a head: 8 of its first half and the 8 that lie half a head
//! further, of K and of V. These hold whole pairs in either style, and move as 16-byte words.
//! Each thread finds its request by bisection of `append_indptr`. *qkv* has such threads for the heads
//! of q, of K and of V; those of a head are neighbours in a warp, where their squares add up.
//!
//! # What bounds it
//! Memory, and launch latency in decode: a batch of 64 with 8 heads of 128 moves half a megabyte.
//!
//! # Whose idea
//! The semantics are those of FlashInfer's `append_paged_kv_cache`, the cache that of vLLM's
//! rotary embedding; RoPE is from RoFormer.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

use crate::kv_layout::KvStrides;

/// Threads of a block.
pub const NUM_THREADS: u32 = 128;
/// Dimensions of a head that a thread takes.
pub const THREAD_DIMS: u32 = 16;

/// How K and q are rotated; what kernels take for the contract's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Rotation(u32);

impl Rotation {
    /// Not at all.
    pub const NONE: Self = Self(0);
    /// Pairs `(i, i + head_dim / 2)`.
    pub const HALF_SPLIT: Self = Self(1);
    /// Pairs `(2i, 2i + 1)`.
    pub const INTERLEAVED: Self = Self(2);
}

/// The sizes that kernels take by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct AppendParams {
    /// Requests.
    pub batch: u32,
    /// New tokens of all requests.
    pub num_tokens: u32,
    /// Heads of K and of V, or of q.
    pub num_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Tokens of a page.
    pub page_size: u32,
    /// How K or q is rotated.
    pub rotation: Rotation,
    /// Where a page's elements lie.
    pub strides: KvStrides,
}

/// The sizes that the kernels from joint rows take by value.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct QkvParams {
    /// Sizes of the append.
    pub append: AppendParams,
    /// Heads of q.
    pub num_qo_heads: u32,
    /// Added to a head's mean square.
    pub norm_eps: f32,
}
