//! Products of one row: a token alone with the weights of a layer.
//!
//! ```text
//! out[i] = y . b[i]                                             (rows)
//! h[i] = silu(y . g[i]) * (y . u[i])                            (gated)
//! x[i] += h . b[i]                                              (added)
//! h[s, i] = silu(y . g[e_s, i]) * (y . u[e_s, i])               (experts_gated)
//! x[i] += sum over s of w_s (h[s] . b[e_s, i])                  (experts_added)
//! ```
//!
//! where `y` is `x` `[k]`, or `bf16(x / sqrt(mean(x^2) + eps)) * norm_weight` as in the room
//! [`rms_norm`](crate::rms_norm), and `e_s`, `w_s` are the token's choice of experts from the room
//! [`moe_topk`](crate::moe_topk), slot by slot: `top_k` that it chose, then `num_shared` that every
//! token visits, whose weights lie behind those of the others. So a layer that decodes one token takes
//! six launches, eight with experts: the norm is in the product behind it, the sum with the residual
//! stream in the product before it, and nobody sorts or copies rows.
//!
//! # Shapes
//! All bf16: `b` `[n, k]`, gated `[2 n, k]`, gates first; of experts `[experts, ..]`; `x` and `out` by
//! their roles; `topk_ids` `[top_k + num_shared]` in i32, -1 for a slot without an expert,
//! `topk_weights` in f32. `n` and `k` are multiples of 8; the row that is multiplied has at most 32768
//! elements, with a norm 16384. Sums in f32, rounded once: an `x` that is added to is rounded after the sum.
//!
//! # Who does what
//! A block for each SM, of 8 warps that meet only when the row is staged in shared memory. A warp takes
//! two rows of weights at a time, of all warps' in turn, and streams them through a ring of its own by
//! bulk copies of up to 2 KiB each: 192 KiB of weights are on their way to an SM. Lanes multiply 16
//! bytes each, and the warp adds up at the end of the rows.
//!
//! A block starts while the kernels before it still run, and fills its rings with weights before it
//! waits for them; of experts, with the shared ones', which the choice has no part in.
//!
//! # What bounds it
//! Memory: each weight is read once, in whole rows, for two flops.
//!
//! # Whose idea
//! Norms and sums within decode's products: as in the persistent decode kernels of
//! Hazy Research's megakernels. Prefetch across launches: CUTLASS's weight prefetch for GEMM.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

/// Threads of a block.
pub const NUM_THREADS: u32 = 256;
/// Warps of a block.
pub const NUM_WARPS: u32 = NUM_THREADS / 32;
/// Elements that a lane multiplies at once.
pub const WORD: u32 = 8;
/// Elements of each of the two rows of a stage, at most.
pub const PIECE: u32 = 1024;
/// Bytes of a stage.
pub const STAGE_BYTES: usize = 2 * 2 * PIECE as usize;
/// Most stages of a warp's ring.
pub const MAX_STAGES: u32 = 6;
/// Longest row that is multiplied, in elements.
pub const MAX_ROW_LEN: u32 = 32_768;
/// Longest row that is normalised.
pub const MAX_NORMED_LEN: u32 = 16_384;

/// Bytes before the row in shared memory: barriers, and a sum of each warp.
pub const HEAD_BYTES: usize = 512;
const SUMS_AT: usize = 8 * (NUM_WARPS * MAX_STAGES) as usize;
const _: () = assert!(SUMS_AT + 4 * NUM_WARPS as usize <= HEAD_BYTES);

/// The sizes that kernels take by value.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct GemvParams {
    /// Results of an expert, or of all.
    pub n: u32,
    /// Elements of a row of weights.
    pub k: u32,
    /// Stages of a warp's ring.
    pub num_stages: u32,
    /// Added to the mean square, with a norm.
    pub eps: f32,
    /// Experts that a token chooses among.
    pub num_experts: u32,
    /// Slots of those it chooses.
    pub top_k: u32,
    /// Slots behind them, of experts that every token visits.
    pub num_shared: u32,
}

impl GemvParams {
    /// Slots of both kinds.
    pub const fn num_slots(&self) -> u32 {
        self.top_k + self.num_shared
    }
}
