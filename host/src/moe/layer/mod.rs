//! A mixture-of-experts layer over several ranks: as a plan, and at work.
//!
//! ```text
//! out[t] = shared(x[t]) + sum over slots k of topk_weights[t, k] * expert[topk_ids[t, k]](x[t])
//! expert(x) = down (silu(gate x) * (up x))
//! ```
//!
//! Each rank has tokens of its own, the experts `r * n .. (r + 1) * n`, and the shared expert, which
//! every token visits where it is. An id of -1 is none. Ranks may have different numbers of tokens,
//! none among them.
//!
//! | step | what | rooms |
//! |---|---|---|
//! | route | logits to ids and weights; left out where those are given | `moe_topk` |
//! | dispatch | rows to the ranks of their experts | `dispatch` |
//! | permute | received slots sorted by expert | `moe_permute` |
//! | pack | rows in that order | `token_pack` |
//! | expert gate-up, expert down | grouped products, the gate in the first | `expert_gemm` |
//! | unpack | a weighted sum for each slot | `token_unpack` |
//! | combine | sums back to their ranks, and added | `combine` |
//! | shared gate-up, shared down | dense products, the gate in the first | `shared_expert` |
//! | add | routed and shared results | `token_unpack` |
//!
//! [`LayerPlan`] says on which stream each step runs, what it waits for, on how many multiprocessors,
//! by which kernels, and what it moves and computes. It is made without a device. [`Layer`] holds one
//! rank's memory and plays the plan: nothing is read by the host, so that a call can be captured into
//! a graph (by NCCL on GPUs only) and replayed.
//!
//! # What is rounded where
//! `silu(g) * u`, each expert's output, each rank's weighted sum, the sum of ranks, the shared
//! expert's output, and `out`, each to bf16; all sums run in f32. See
//! [`reference::TOLERANCE`].

mod args;
#[cfg(test)]
mod gpu_tests;
mod plan;
mod play;
pub mod reference;
mod shape;
#[cfg(test)]
mod tests;

pub use args::{Arriving, LayerArgs, LayerWeights, RoutingArgs};
pub use plan::{Lane, LayerOptions, LayerPlan, Op, PlannedFor, Schedule, SharedBeside, Step};
pub use play::Layer;
pub use shape::LayerShape;
