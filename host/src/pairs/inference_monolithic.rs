//! Pair `inference_monolithic`: decode steps launch by launch, the token chosen by the host, against the
//! same kernels as one graph, the token chosen on the device.

use super::generation_bench::shapes_of;
use crate::harness::{Pair, Shape, ShapeSet};
use crate::model::config::{FeedForward, NamedShape};
use crate::model::{Issue, ModelConfig};

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "inference_monolithic",
    about: "decode steps of a model on one GPU: kernel by kernel with the token chosen by the host, against \
        one graph that chooses it",
    sides: ["launches", "one graph"],
    rooms: &[
        "gemv",
        "gemm",
        "shared_expert",
        "rms_norm",
        "kv_append",
        "paged_attention",
        "sampling",
    ],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    let shape = shapes_of([Issue::HostSampled, Issue::Graph]);
    let dense = || NamedShape::Llama8B.config();
    let experts = || NamedShape::QwenMoe.config();
    match set {
        ShapeSet::SeedParity => {
            vec![shape("8 layers of 512", published_model(), 1, [64, 128]).published(&[
                ("2xB200", 1.16),
                ("4xGB200", 1.03),
                ("B200", 1.06),
            ])]
        }
        ShapeSet::Real => vec![
            shape("llama-8b", dense(), 1, [1024, 256]),
            shape("llama-8b", dense(), 32, [1024, 256]),
            shape("llama-8b", dense(), 32, [2048, 64]),
            shape("qwen1.5-moe-a2.7b", experts(), 1, [1024, 256]),
            shape("qwen1.5-moe-a2.7b", experts(), 32, [1024, 256]),
            shape("qwen1.5-moe-a2.7b", experts(), 32, [2048, 64]),
        ],
        ShapeSet::Tiny => {
            let tiny = || NamedShape::Tiny.config();
            vec![shape("tiny", tiny(), 1, [16, 7]), shape("tiny", tiny(), 3, [16, 7])]
        }
    }
}

/// As published, with attention, which was not.
fn published_model() -> ModelConfig {
    ModelConfig {
        vocab_size: 10_000,
        hidden: 512,
        num_qo_heads: 8,
        num_kv_heads: 8,
        head_dim: 64,
        feed_forward: vec![FeedForward::Dense { intermediate: 2048 }; 8],
        ..NamedShape::Llama8B.config()
    }
}
