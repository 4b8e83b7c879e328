//! Chooses the experts of each token: scores, selection, weights.
//!
//! For each token, over its experts `e` with `x[e] = gating_output[token, e]`:
//!
//! ```text
//! score[e]  = softmax(x)[e]  or  1 / (1 + exp(-x[e]))
//! choice[e] = score[e] + bias[e]                        bias steers the choice, never the weights
//! group     = its two best choices, added; the num_topk_groups best groups are kept
//! topk_ids  = the top_k best choices of the kept groups, best first
//! weight    = score[id], over the sum of the chosen if renormalize, times routed_scaling_factor
//! ```
//!
//! **Ties** go to the lower group and the lower id. Without a bias the choice is by `x` itself,
//! which orders as the scores do but never rounds two of them to one.
//!
//! **What is not a number**: a NaN in `gating_output` counts as `-inf`, which scores 0 and is
//! chosen last; `+inf` counts as the largest finite number. A choice that is NaN because of its
//! bias is chosen last, too. A sum of scores that is 0 makes all weights 0. So no output is ever
//! NaN, and every id is one of the experts, each at most once a token.
//!
//! # Shapes
//! `gating_output` `[num_tokens, num_experts]` in bf16 or f32, `bias` `[num_experts]` in f32 if
//! any; `topk_ids` `[num_tokens, top_k]` in i32, `topk_weights` `[num_tokens, top_k]` in f32. Up to
//! 512 experts, any number of them, top-k up to 16, any number of groups that divides the experts.
//! A group of one expert counts that one.
//!
//! Both may have more columns than that ([`contract::StackedTopk`]). Routers are padded to rows that a
//! product takes, and the gates of experts that every token visits are stacked below them: logits
//! then have `num_columns`, of which column `num_experts` is that gate. Such experts fill `num_shared`
//! slots behind the chosen ones, with ids from `num_experts` on and the sigmoid of their gate as weight.
//!
//! # Who does what
//! *baseline*: a block per token. Scores and choices lie in shared memory; each of the `top_k`
//! rounds is a reduction over the block.
//!
//! *warp*: a warp per token, 2, 4, 8 or 16 consecutive experts a lane. Lanes find the two best of each
//! group by shuffles (groups that are not whole lanes in number a power of two go through shared
//! memory); for 129 to 256 experts without groups, those of each quarter of the lanes. Together they
//! are `top_k` experts or more: no expert worse than the worst of them is chosen. Those that reach
//! this bound, some 15 of 256 for top 8, are laid out in the order of ids, a lane for each, and a
//! candidate's slot is the number of better ones: comparisons that wait for nobody.
//!
//! Where more than 32 reach it, `top_k` is over 8, or there are fewer or more experts, the choice is
//! made in rounds: a lane packs each choice and its place into 64 bits and sorts them by a network;
//! then a round is one maximum over the lanes' heads (`redux`), one vote, and the lowest lane that has
//! it goes on to its next. At the end the chosen are scored again from their logits, which are still
//! in the L1. For DeepSeek-V3's choice there are kernels that know sizes and rules.
//!
//! # What bounds it
//! Latency: 4096 tokens of 256 experts in bf16 are 2 MB, half a microsecond of HBM. See
//! `design.md`.
//!
//! # Whose idea
//! Group-limited choice with a bias that has no part in the weights: DeepSeek-V3. A warp per token:
//! FasterTransformer's, then vLLM's `topk_softmax`.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

/// Most experts.
pub const MAX_EXPERTS: u32 = 512;
/// Most experts of a token.
pub const MAX_TOP_K: u32 = 16;
/// Threads of a block of the baseline.
pub const BASELINE_THREADS: u32 = 256;
/// Warps of a block of the warp variant, each with a token of its own.
pub const NUM_WARPS: u32 = 4;

/// Most experts among which the warp variant chooses by comparing each with each: one a lane.
pub(crate) const MAX_CANDIDATES: u32 = 32;
/// Words of shared memory of a warp: keys and ids of candidates, and the chosen ids.
pub(crate) const WARP_WORDS: u32 = 2 * MAX_CANDIDATES + MAX_TOP_K;

/// How a logit becomes a score; what kernels take for the contract's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Scoring(u32);

impl Scoring {
    /// `exp(x)` over the sum of all experts'.
    pub const SOFTMAX: Self = Self(0);
    /// `1 / (1 + exp(-x))`.
    pub const SIGMOID: Self = Self(1);
}

/// The sizes that kernels take by value.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct TopkParams {
    /// Rows of `gating_output`.
    pub num_tokens: u32,
    /// Experts to choose from.
    pub num_experts: u32,
    /// Experts of a token that are chosen.
    pub top_k: u32,
    /// Distance between the logits of a token and of the next.
    pub num_columns: u32,
    /// Slots behind the chosen ones, for experts that every token visits.
    pub num_shared: u32,
    /// Equal groups of consecutive experts.
    pub num_groups: u32,
    /// Experts of a group.
    pub group_size: u32,
    /// Lanes that hold a group in the warp variant; 0 if groups are not whole lanes in number a
    /// power of two.
    pub group_lanes: u32,
    /// Consecutive lanes, a power of two: over all of them that are chosen from, their two best are at
    /// least `top_k` experts, so that none worse than the worst of those is chosen. 0: not so.
    pub bound_lanes: u32,
    /// Groups that are kept; all of them: no limit.
    pub num_topk_groups: u32,
    /// How a logit becomes a score.
    pub scoring: Scoring,
    /// 1: weights are divided by their sum.
    pub renormalize: u32,
    /// What weights are multiplied with, last.
    pub routed_scaling_factor: f32,
}

impl TopkParams {
    #[inline(always)]
    const fn num_slots(&self) -> u32 {
        self.top_k + self.num_shared
    }

    /// With the sizes and rules of DeepSeek-V3, but its own tokens, columns and factor.
    #[inline(always)]
    const fn of_deepseek_v3(self) -> Self {
        Self {
            num_experts: 256,
            top_k: 8,
            num_shared: 0,
            num_groups: 8,
            group_size: 32,
            group_lanes: 4,
            bound_lanes: 4,
            num_topk_groups: 4,
            scoring: Scoring::SIGMOID,
            renormalize: 1,
            ..self
        }
    }

    #[inline(always)]
    const fn has_group_limit(&self) -> bool {
        self.num_topk_groups < self.num_groups
    }
}
