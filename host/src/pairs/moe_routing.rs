//! Pair `moe_routing`: experts chosen or placed without a thought of where they are, against routing
//! that knows the ranks.
//!
//! *limited*: the choice is group-limited, a rank a group, so that a token visits few ranks. This is
//! another function: what it costs is the routing mass lost, the share of the chosen scores that the
//! best experts anywhere would have had. *placed*: the same choice, experts placed where the tokens
//! are that choose them: the same function, for routing that differs by rank.

use gpu_kernels::moe_topk::Scoring;
use gpu_kernels::moe_topk::contract::{GroupLimit, TopkShape};

use super::moe_layer::{LayerRanks, SideOptions, Workload};
use crate::harness::{Pair, Shape, ShapeSet};
use crate::moe::LayerOptions;
use crate::moe::placement::by_origin;

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "moe_routing",
    about: "a mixture-of-experts layer whose routing does not know where experts are, against a choice \
        that bounds the ranks of a token (another function), and against experts placed where \
        their tokens are",
    sides: ["blind", "topology-aware"],
    rooms: &["moe_topk", "dispatch", "expert_gemm", "combine", "shared_expert"],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    match set {
        // The published text moves nothing between devices here.
        ShapeSet::SeedParity => Vec::new(),
        ShapeSet::Real => {
            let layer = Workload::deepseek_v3;
            vec![
                limited(layer(2, 4096), 1),
                placed(layer(2, 4096)),
                limited(layer(2, 128), 1),
                limited(layer(4, 4096), 2),
                placed(layer(4, 4096)),
            ]
        }
        ShapeSet::Tiny => {
            let layer = Workload::tiny;
            vec![limited(layer(2, 20), 1), limited(layer(4, 9), 2), placed(layer(3, 16))]
        }
    }
}

/// All experts alike, each scored by itself.
fn blind(workload: &Workload) -> TopkShape {
    let (num_experts, topk) = (workload.exchange.num_experts, workload.exchange.topk);
    let softmax = TopkShape::softmax(workload.num_tokens, num_experts, topk);
    TopkShape { scoring: Scoring::SIGMOID, ..softmax }
}

/// A token visits at most `num_ranks` ranks.
fn limited(workload: Workload, num_ranks: u32) -> Shape {
    let ep_size = workload.exchange.ep_size;
    let name = format!("{workload}, limited to {num_ranks} of them");
    Shape::new(name, ep_size as usize, move |devices, seed| {
        let topk = blind(&workload);
        let limit = GroupLimit { num_groups: ep_size, num_topk_groups: num_ranks };
        let side = |topk| {
            let placement = workload.in_order();
            SideOptions { topk, placement, layer: LayerOptions::default() }
        };
        let sides = [side(topk), side(TopkShape { group_limit: Some(limit), ..topk })];
        LayerRanks::new(devices, &workload, sides, seed)
    })
}

/// Ranks prefer different experts, which are placed accordingly.
fn placed(workload: Workload) -> Shape {
    let workload = workload.by_rank();
    let num_gpus = workload.exchange.ep_size as usize;
    Shape::new(format!("{workload}, placed"), num_gpus, move |devices, seed| {
        // Placed by what was seen of other tokens.
        let counts: Vec<Vec<u32>> =
            (0..num_gpus).map(|rank| choices(&workload, rank, !seed)).collect();
        let side = |placement| {
            let topk = blind(&workload);
            SideOptions { topk, placement, layer: LayerOptions::default() }
        };
        let sides = [side(workload.in_order()), side(by_origin(&counts).into())];
        LayerRanks::new(devices, &workload, sides, seed)
    })
}

/// How often a rank's tokens choose each expert. // [num_experts]
fn choices(workload: &Workload, rank: usize, seed: u64) -> Vec<u32> {
    let num_experts = workload.exchange.num_experts as usize;
    let mut counts = vec![0; num_experts];
    for row in workload.logits(rank, seed).chunks(num_experts) {
        let mut experts: Vec<usize> = (0..num_experts).collect();
        experts.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        experts[..workload.exchange.topk as usize].iter().for_each(|&expert| counts[expert] += 1);
    }
    counts
}
