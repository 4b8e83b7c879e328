//! The expert that every token visits, or a dense feed-forward layer: SwiGLU.
//!
//! ```text
//! h = silu(x G^T) * (x U^T)        y = h D^T        silu(g) = g / (1 + exp(-g))
//! ```
//!
//! `x`, `y` `[num_tokens, hidden]`, `h` `[num_tokens, intermediate]`; `gate_up`
//! `[2 intermediate, hidden]`: G, then U, as checkpoints with merged weights hold them; `down`
//! `[hidden, intermediate]`. bf16, row-major, sizes multiples of 8; `h` is rounded to bf16.
//!
//! # Who does what
//! Both products are those of the room [`gemm`](crate::gemm). What is added here is the gate:
//!
//! *baseline* ([`silu_mul`](device::shared_expert_silu_mul_bf16)): a kernel of its own between the
//! products, eight elements a thread, which reads gates and what they scale from memory.
//!
//! *fused* ([`gate_up`](device::shared_expert_gate_up_bf16), sm_90a): the persistent product, in
//! whose tile 128 rows of G and the same 128 of U lie one after the other. A warpgroup multiplies 64
//! of each, so that a gate and what it scales are in one thread, and only their product leaves it:
//! a third of the bytes, and a launch less.
//!
//! *stream* ([`stream`](device::shared_expert_stream_bf16), sm_90a): the streamed product, for few
//! tokens. The tensor map puts 8 rows of G beside the same 8 of U, so that a thread of the last block
//! of a tile, which adds up, holds both.
//!
//! *split* ([`split`](device::shared_expert_split_bf16), sm_90a): the same tiles in clusters of two, which
//! share their steps, where all of them run at a time: sums then never leave the SMs.
//!
//! # What bounds it
//! The tensor cores with thousands of tokens; with a hundred, reading the weights.
//!
//! # Whose idea
//! Gate and up in one product: everybody's; interleaved by tile for the epilogue's sake: CUTLASS's
//! dual GEMM.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;
