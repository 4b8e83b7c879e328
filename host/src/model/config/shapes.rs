//! Named shapes, for models without a folder.

use super::{Experts, Family, FeedForward, ModelConfig, RopeConfig, RopeScaling};

/// A shape whose weights are made from a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NamedShape {
    /// A few thousand weights, with experts and a shared one: for the CPU.
    Tiny,
    /// Qwen1.5-MoE-A2.7B.
    QwenMoe,
    /// Llama 3.1 8B.
    Llama8B,
}

impl NamedShape {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tiny, Self::QwenMoe, Self::Llama8B];

    /// Its name on command lines and in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::QwenMoe => "qwen1.5-moe-a2.7b",
            Self::Llama8B => "llama-8b",
        }
    }

    /// The shape of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.name() == name)
    }

    /// What the model is made of.
    pub fn config(self) -> ModelConfig {
        match self {
            Self::Tiny => ModelConfig {
                vocab_size: 256,
                hidden: 64,
                num_qo_heads: 2,
                num_kv_heads: 1,
                head_dim: 64,
                num_max_positions: 512,
                feed_forward: vec![
                    FeedForward::Dense { intermediate: 128 },
                    FeedForward::Experts(Experts {
                        num_experts: 6,
                        top_k: 2,
                        intermediate: 32,
                        renormalize: false,
                        shared_intermediate: Some(64),
                    }),
                ],
                ..qwen_moe()
            },
            Self::QwenMoe => qwen_moe(),
            Self::Llama8B => ModelConfig {
                family: Family::Llama,
                vocab_size: 128_256,
                hidden: 4096,
                num_qo_heads: 32,
                num_kv_heads: 8,
                head_dim: 128,
                num_max_positions: 131_072,
                norm_eps: 1e-5,
                rope: RopeConfig {
                    theta: 500_000.0,
                    scaling: RopeScaling::Llama3 {
                        factor: 8.0,
                        low_freq_factor: 1.0,
                        high_freq_factor: 4.0,
                        num_original_positions: 8192.0,
                    },
                },
                has_qkv_bias: false,
                has_qk_norm: false,
                ties_embeddings: false,
                feed_forward: vec![FeedForward::Dense { intermediate: 14_336 }; 32],
                end_tokens: Vec::new(),
            },
        }
    }
}

fn qwen_moe() -> ModelConfig {
    let experts = Experts {
        num_experts: 60,
        top_k: 4,
        intermediate: 1408,
        renormalize: false,
        shared_intermediate: Some(5632),
    };
    ModelConfig {
        family: Family::Qwen2Moe,
        vocab_size: 151_936,
        hidden: 2048,
        num_qo_heads: 16,
        num_kv_heads: 16,
        head_dim: 128,
        num_max_positions: 8192,
        norm_eps: 1e-6,
        rope: RopeConfig { theta: 1e6, scaling: RopeScaling::None },
        has_qkv_bias: true,
        has_qk_norm: false,
        ties_embeddings: false,
        feed_forward: vec![FeedForward::Experts(experts); 24],
        end_tokens: Vec::new(),
    }
}
