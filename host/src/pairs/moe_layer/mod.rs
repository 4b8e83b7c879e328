//! Whole mixture-of-experts layers on several ranks: what their pairs have in common.

mod phases;
mod ranks;
mod state;

use std::fmt;
use std::sync::Arc;

use gpu_kernels::dispatch::contract::ExchangeShape;
use gpu_kernels::moe_topk::contract::TopkShape;

pub(super) use ranks::LayerRanks;

use crate::moe::{LayerOptions, LayerShape};

/// How often experts are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Popularity {
    /// Each as often as another.
    Even,
    /// A few of them much more often: logits of expert `e` are less by `ln(1 + e) / 2`.
    Skewed,
    /// Those whose number is a rank's, times any and plus the number of ranks, by that rank's tokens:
    /// as where ranks serve different languages.
    ByRank,
}

/// What is added to the logits of the experts that a rank's tokens prefer.
const PREFERRED: f32 = 1.5;

impl Popularity {
    /// What is added to an expert's logits.
    fn offset(self, expert: usize, rank: usize, num_ranks: usize) -> f32 {
        match self {
            Self::Skewed => -0.5 * ((1 + expert) as f32).ln(),
            Self::ByRank if expert % num_ranks == rank => PREFERRED,
            Self::Even | Self::ByRank => 0.0,
        }
    }
}

/// Sizes of a layer, the same on all ranks, and what its tokens are like.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    /// Ranks, experts, columns.
    pub exchange: ExchangeShape,
    /// Of each rank.
    pub num_tokens: u32,
    /// Columns between the products of an expert.
    pub intermediate: u32,
    /// The same of the shared expert.
    pub shared_intermediate: u32,
    /// How often experts are chosen.
    pub popularity: Popularity,
    /// Copies of all rows from pinned host memory that stand for a wire, before dispatch.
    pub num_host_copies: u32,
}

/// What a side does: how experts are chosen, where they are, and how the layer works.
#[derive(Clone, Debug)]
pub(super) struct SideOptions {
    /// The choice.
    pub topk: TopkShape,
    /// The expert at each place: the first ones are rank 0's. // [num_experts]
    pub placement: Arc<[usize]>,
    /// The layer's.
    pub layer: LayerOptions,
}

impl Workload {
    /// DeepSeek-V3's layer: 8 of 256 experts.
    pub(super) fn deepseek_v3(ep_size: u32, num_tokens: u32) -> Self {
        let exchange = ExchangeShape {
            ep_size,
            num_experts: 256,
            topk: 8,
            hidden: 7168,
            num_max_tokens_per_rank: num_tokens,
        };
        Self {
            exchange,
            num_tokens,
            intermediate: 2048,
            shared_intermediate: 2048,
            popularity: Popularity::Even,
            num_host_copies: 0,
        }
    }

    /// A layer for the CPU.
    pub(super) fn tiny(ep_size: u32, num_tokens: u32) -> Self {
        let exchange = ExchangeShape {
            ep_size,
            num_experts: 4 * ep_size,
            topk: 2,
            hidden: 64,
            num_max_tokens_per_rank: num_tokens,
        };
        Self {
            exchange,
            num_tokens,
            intermediate: 24,
            shared_intermediate: 40,
            popularity: Popularity::Even,
            num_host_copies: 0,
        }
    }

    /// The same sizes, a few experts much more popular.
    pub(super) fn skewed(self) -> Self {
        Self { popularity: Popularity::Skewed, ..self }
    }

    /// The same sizes, each rank's tokens with experts that they prefer.
    pub(super) fn by_rank(self) -> Self {
        Self { popularity: Popularity::ByRank, ..self }
    }

    /// Experts in the order of their numbers.
    pub(super) fn in_order(&self) -> Arc<[usize]> {
        (0..self.exchange.num_experts as usize).collect()
    }

    /// Logits of a rank's tokens, from a seed. // [num_tokens, num_experts]
    pub(super) fn logits(&self, rank: usize, seed: u64) -> Vec<f32> {
        let (num_experts, num_ranks) = (self.exchange.num_experts, self.exchange.ep_size as usize);
        let mut rng = fastrand::Rng::with_seed(!seed ^ (1 + rank as u64) << 48);
        let mut logit = |expert| -> f32 {
            let spread: f32 = (0..4).map(|_| 2.0 * rng.f32() - 1.0).sum();
            spread + self.popularity.offset(expert, rank, num_ranks)
        };
        let experts = (0..self.num_tokens).flat_map(|_| 0..num_experts as usize);
        experts.map(&mut logit).collect()
    }

    /// The layer of a side.
    pub(super) fn layer(&self, topk: TopkShape) -> LayerShape {
        LayerShape {
            exchange: self.exchange,
            num_tokens: self.num_tokens,
            intermediate: self.intermediate,
            shared_intermediate: self.shared_intermediate,
            topk: Some(topk),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ExchangeShape { ep_size, num_experts, topk, hidden, .. } = self.exchange;
        let Self { num_tokens, intermediate, .. } = self;
        write!(
            f,
            "{num_tokens} tokens x {hidden}, top {topk} of {num_experts} x {intermediate}, \
             {ep_size} rank{}",
            if ep_size == 1 { "" } else { "s" }
        )?;
        match self.popularity {
            Popularity::Even => Ok(()),
            Popularity::Skewed => f.write_str(", skewed"),
            Popularity::ByRank => f.write_str(", experts by rank"),
        }
    }
}
