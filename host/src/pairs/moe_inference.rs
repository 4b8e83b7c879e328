//! Pair `moe_inference`: decode steps of a mixture of experts, expert by expert after the host has read
//! how many tokens each has, against routing and products that stay on the device.

use super::generation_bench::shapes_of;
use crate::harness::{Pair, Shape, ShapeSet};
use crate::model::config::{Experts, Family, FeedForward, NamedShape};
use crate::model::{Issue, ModelConfig};

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "moe_inference",
    about: "decode steps of a mixture of experts: expert by expert with counts read by the host, against \
        routing and grouped products that no host waits for",
    sides: ["expert by expert", "on the device"],
    rooms: &["moe_topk", "moe_permute", "token_pack", "expert_gemm", "gemv", "token_unpack"],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    let shape = shapes_of([Issue::ExpertByExpert, Issue::Graph]);
    let qwen = || NamedShape::QwenMoe.config();
    match set {
        ShapeSet::SeedParity => vec![
            shape("8 layers of 1024, 2 with experts", published_model(), 1, [512, 64])
                .published(&[("2xB200", 2.35), ("4xGB200", 1.65), ("B200", 2.02)]),
        ],
        ShapeSet::Real => vec![
            shape("qwen1.5-moe-a2.7b", qwen(), 1, [1024, 256]),
            shape("qwen1.5-moe-a2.7b", qwen(), 8, [1024, 256]),
            shape("qwen1.5-moe-a2.7b", qwen(), 32, [1024, 256]),
        ],
        ShapeSet::Tiny => {
            let tiny = || NamedShape::Tiny.config();
            vec![shape("tiny", tiny(), 1, [16, 7]), shape("tiny", tiny(), 3, [16, 7])]
        }
    }
}

/// As published; how many sequences there were was not.
fn published_model() -> ModelConfig {
    let dense = FeedForward::Dense { intermediate: 4096 };
    let experts = FeedForward::Experts(Experts {
        num_experts: 32,
        top_k: 2,
        intermediate: 4096,
        renormalize: true,
        shared_intermediate: None,
    });
    ModelConfig {
        family: Family::Mixtral,
        vocab_size: 16_384,
        hidden: 1024,
        num_qo_heads: 8,
        num_kv_heads: 8,
        head_dim: 128,
        feed_forward: vec![dense, dense, dense, experts, dense, dense, dense, experts],
        ..NamedShape::Llama8B.config()
    }
}
