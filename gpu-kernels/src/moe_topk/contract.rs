//! What a choice of experts must be like, and what it does.

use std::format;

use super::{BASELINE_THREADS, MAX_EXPERTS, MAX_TOP_K, NUM_WARPS, Scoring, TopkParams, WARP_WORDS};
use crate::contract::{ContractError, LaunchDims, Work, require, require_up_to};

/// Experts of a lane with which a bound was seen to gain; with others nothing was measured.
const BOUNDED_LANE_EXPERTS: u32 = 8;
/// Most parts of the lanes whose two best bound a choice: where there are more, more experts reach the
/// bound than there are lanes.
const MAX_BOUNDING_PARTS: u32 = 4;

/// Only the best groups of experts are chosen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimit {
    /// Equal groups of consecutive experts.
    pub num_groups: u32,
    /// Groups that are kept.
    pub num_topk_groups: u32,
}

/// Sizes and rules of a choice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopkShape {
    /// Tokens; may be 0.
    pub num_tokens: u32,
    /// Experts to choose from.
    pub num_experts: u32,
    /// Experts of a token.
    pub top_k: u32,
    /// How a logit becomes a score.
    pub scoring: Scoring,
    /// Whether a bias is added to the scores for the choice.
    pub has_bias: bool,
    /// Whether only the best groups are chosen from.
    pub group_limit: Option<GroupLimit>,
    /// Whether weights are divided by their sum.
    pub renormalize: bool,
    /// What weights are multiplied with, last.
    pub routed_scaling_factor: f32,
}

impl TopkShape {
    /// Softmax over all experts, weights renormalized: Qwen-MoE, Mixtral.
    pub fn softmax(num_tokens: u32, num_experts: u32, top_k: u32) -> Self {
        Self {
            num_tokens,
            num_experts,
            top_k,
            scoring: Scoring::SOFTMAX,
            has_bias: false,
            group_limit: None,
            renormalize: true,
            routed_scaling_factor: 1.0,
        }
    }

    /// DeepSeek-V3: 8 of 256 experts by sigmoid and bias, out of 4 of 8 groups.
    pub fn deepseek_v3(num_tokens: u32) -> Self {
        Self {
            num_tokens,
            num_experts: 256,
            top_k: 8,
            scoring: Scoring::SIGMOID,
            has_bias: true,
            group_limit: Some(GroupLimit { num_groups: 8, num_topk_groups: 4 }),
            renormalize: true,
            routed_scaling_factor: 2.5,
        }
    }

    /// Refuses what the kernels do not take.
    ///
    /// With tensors of the shapes that the room states, no thread of a launch with
    /// [these](Self::warp_dims) [dims](Self::baseline_dims) then reaches out of bounds, whatever
    /// the logits are.
    pub fn check(&self) -> Result<(), ContractError> {
        let Self { num_tokens, num_experts, top_k, .. } = *self;
        require_up_to("num_experts", MAX_EXPERTS, num_experts)?;
        require_up_to("top_k", MAX_TOP_K, top_k)?;
        require(num_tokens <= 1 << 22, "num_tokens", "at most 2^22", num_tokens)?;
        require(
            self.routed_scaling_factor.is_finite(),
            "routed_scaling_factor",
            "finite",
            self.routed_scaling_factor,
        )?;
        let GroupLimit { num_groups, num_topk_groups } = self.groups();
        require(
            num_groups > 0 && num_experts.is_multiple_of(num_groups),
            "num_groups",
            format!("a divisor of the {num_experts} experts"),
            num_groups,
        )?;
        require_up_to("num_topk_groups", num_groups, num_topk_groups)?;
        let num_candidates = num_experts / num_groups * num_topk_groups;
        require(
            top_k <= num_candidates,
            "top_k",
            format!("at most the {num_candidates} experts that are chosen from"),
            top_k,
        )
    }

    fn groups(&self) -> GroupLimit {
        self.group_limit.unwrap_or(GroupLimit { num_groups: 1, num_topk_groups: 1 })
    }

    /// The sizes that the kernels take.
    pub fn params(&self) -> TopkParams {
        let GroupLimit { num_groups, num_topk_groups } = self.groups();
        let group_size = self.num_experts / num_groups;
        let lanes = group_size / self.lane_experts();
        let is_whole_lanes = group_size.is_multiple_of(self.lane_experts());
        let group_lanes = if is_whole_lanes && lanes.is_power_of_two() { lanes } else { 0 };
        TopkParams {
            num_tokens: self.num_tokens,
            num_experts: self.num_experts,
            top_k: self.top_k,
            num_columns: self.num_experts,
            num_shared: 0,
            num_groups,
            group_size,
            group_lanes,
            bound_lanes: self.bound_lanes(group_lanes),
            num_topk_groups,
            scoring: self.scoring,
            renormalize: u32::from(self.renormalize),
            routed_scaling_factor: self.routed_scaling_factor,
        }
    }

    /// See [`TopkParams::bound_lanes`]; groups are `group_lanes` wide, or 0.
    fn bound_lanes(&self, group_lanes: u32) -> u32 {
        let GroupLimit { num_groups, num_topk_groups } = self.groups();
        let has_limit = num_topk_groups < num_groups;
        let num_parts =
            if has_limit { num_topk_groups } else { self.top_k.div_ceil(2).next_power_of_two() };
        let is_measured = self.lane_experts() == BOUNDED_LANE_EXPERTS;
        if !is_measured || num_parts > MAX_BOUNDING_PARTS || 2 * num_parts < self.top_k {
            return 0;
        }
        if has_limit { group_lanes } else { 32 / num_parts }
    }

    /// Elements of `gating_output`.
    pub fn gating_elements(&self) -> usize {
        self.num_tokens as usize * self.num_experts as usize
    }

    /// Elements of `bias`: none without one.
    pub fn bias_elements(&self) -> usize {
        if self.has_bias { self.num_experts as usize } else { 0 }
    }

    /// Elements of `topk_ids`, and of `topk_weights`.
    pub fn topk_elements(&self) -> usize {
        self.num_tokens as usize * self.top_k as usize
    }

    /// Experts of a lane of the warp variant: what a kernel exists for.
    pub fn lane_experts(&self) -> u32 {
        self.num_experts.div_ceil(32).next_power_of_two().max(2)
    }

    /// Launch of the baseline: a block for each token. There must be some.
    pub fn baseline_dims(&self) -> LaunchDims {
        let shared_words = 3 * self.num_experts + 2 * BASELINE_THREADS + 2 * MAX_TOP_K;
        LaunchDims {
            grid: [self.num_tokens, 1, 1],
            block: [BASELINE_THREADS, 1, 1],
            shared_bytes: 4 * shared_words,
        }
    }

    /// Launch of the warp variant: a warp for each token. There must be some.
    pub fn warp_dims(&self) -> LaunchDims {
        let params = self.params();
        let has_uneven_groups = params.has_group_limit() && params.group_lanes == 0;
        let group_words = if has_uneven_groups { 2 * self.num_experts } else { 0 };
        LaunchDims {
            grid: [self.num_tokens.div_ceil(NUM_WARPS), 1, 1],
            block: [32 * NUM_WARPS, 1, 1],
            shared_bytes: 4 * NUM_WARPS * (WARP_WORDS + group_words),
        }
    }

    /// What a launch moves, with logits of `logit_bytes` bytes.
    pub fn work(&self, logit_bytes: usize) -> Work {
        let read = self.gating_elements() * logit_bytes + 4 * self.bias_elements();
        Work { read_bytes: read as u64, written_bytes: 8 * self.topk_elements() as u64, flops: 0 }
    }
}

/// A choice from logits that have further columns, and slots for experts that every token visits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StackedTopk {
    /// The choice.
    pub choice: TopkShape,
    /// Columns of `gating_output`: the experts', the gate of the shared ones, padding.
    pub num_columns: u32,
    /// Experts that every token visits, by one gate.
    pub num_shared: u32,
}

impl StackedTopk {
    /// What a row of logits starts at a multiple of.
    pub const COLUMN_STEP: u32 = 8;

    /// A choice from logits without any further columns.
    pub fn plain(choice: TopkShape) -> Self {
        Self { choice, num_columns: choice.num_experts, num_shared: 0 }
    }

    /// Refuses what the kernels do not take; promises what [`TopkShape::check`] does.
    pub fn check(&self) -> Result<(), ContractError> {
        let Self { choice, num_columns, num_shared } = *self;
        choice.check()?;
        let num_gates = u32::from(num_shared > 0);
        let is_padded = num_columns >= choice.num_experts + num_gates
            && num_columns.is_multiple_of(Self::COLUMN_STEP);
        let is_plain = num_shared == 0 && num_columns == choice.num_experts;
        require(
            is_plain || is_padded && num_columns <= 2 * MAX_EXPERTS,
            "num_columns",
            format!(
                "{}, or a multiple of {} up to {} with room for {num_gates} gate",
                choice.num_experts,
                Self::COLUMN_STEP,
                2 * MAX_EXPERTS
            ),
            num_columns,
        )?;
        let needed = format!("at most {MAX_TOP_K} with the chosen ones");
        require(num_shared <= MAX_TOP_K - choice.top_k, "num_shared", needed, num_shared)
    }

    /// The sizes that the kernels take.
    pub fn params(&self) -> TopkParams {
        let Self { choice, num_columns, num_shared } = *self;
        TopkParams { num_columns, num_shared, ..choice.params() }
    }

    /// Whether it is DeepSeek-V3's, for which there are kernels that know sizes and rules.
    pub fn is_deepseek_v3(&self) -> bool {
        let params = self.params();
        self.choice.has_bias && params == params.of_deepseek_v3()
    }

    /// Elements of `gating_output`.
    pub fn gating_elements(&self) -> usize {
        self.choice.num_tokens as usize * self.num_columns as usize
    }

    /// Elements of `topk_ids`, and of `topk_weights`.
    pub fn topk_elements(&self) -> usize {
        self.choice.num_tokens as usize * (self.choice.top_k + self.num_shared) as usize
    }
}
