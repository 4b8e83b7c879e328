//! Pair `moe_overlap`: a mixture-of-experts layer step by step over NCCL, against the same layer
//! whose exchange runs under the shared expert.

use gpu_kernels::dispatch::contract::ExchangeShape;
use gpu_kernels::moe_topk::contract::TopkShape;

use super::moe_layer::{LayerRanks, Popularity, SideOptions, Workload};
use crate::harness::{Pair, Shape, ShapeSet};
use crate::moe::layer::{Lane, Schedule, SharedBeside};
use crate::moe::{LayerOptions, Transport};

/// Multiprocessors that one-sided kernels need to fill the wire.
const ONE_SIDED_SMS: u32 = 16;
/// Multiprocessors that NCCL's kernels take between two GPUs: a block for each channel.
const NCCL_SMS: u32 = 32;

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "moe_overlap",
    about: "a mixture-of-experts layer: dispatch, experts, combine, shared expert on one stream by NCCL, \
        against the exchange under the shared expert, by NCCL or straight into the peers' memory",
    sides: ["in turn, NCCL", "overlapped"],
    rooms: &[
        "moe_topk",
        "dispatch",
        "moe_permute",
        "token_pack",
        "expert_gemm",
        "token_unpack",
        "combine",
        "shared_expert",
    ],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    match set {
        // Experts and ids of a token were not published; neither was the text's one GPU a wire:
        // 12 copies from pinned host memory stand for it, on both sides.
        ShapeSet::SeedParity => {
            vec![shape(published_sizes(), Transport::OneSided).published(&[
                ("2xB200", 1.06),
                ("4xGB200", 1.04),
                ("B200", 1.09),
            ])]
        }
        ShapeSet::Real => {
            let layer = Workload::deepseek_v3;
            vec![
                shape(layer(2, 4096), Transport::OneSided),
                shape(layer(2, 4096), Transport::Nccl),
                shape(layer(2, 4096).skewed(), Transport::OneSided),
                shape(layer(2, 128), Transport::OneSided),
                shape(layer(2, 128), Transport::Nccl),
                shape(layer(4, 4096), Transport::OneSided),
                shape(layer(4, 4096), Transport::Nccl),
                shape(layer(4, 128), Transport::OneSided),
                shape(layer(1, 4096), Transport::OneSided),
            ]
        }
        ShapeSet::Tiny => vec![
            shape(Workload::tiny(1, 20), Transport::OneSided),
            shape(Workload::tiny(2, 20), Transport::OneSided),
            shape(Workload::tiny(2, 20), Transport::Nccl),
            shape(Workload::tiny(4, 9).skewed(), Transport::OneSided),
        ],
    }
}

/// The published sizes.
fn published_sizes() -> Workload {
    let exchange = ExchangeShape {
        ep_size: 1,
        num_experts: 16,
        topk: 2,
        hidden: 2048,
        num_max_tokens_per_rank: 8192,
    };
    Workload {
        exchange,
        num_tokens: 8192,
        intermediate: 128,
        shared_intermediate: 8192,
        popularity: Popularity::Even,
        num_host_copies: 12,
    }
}

/// The layer with its exchange by `transport`, against the same one in turn.
fn shape(workload: Workload, transport: Transport) -> Shape {
    let name = match transport {
        Transport::OneSided => workload.to_string(),
        Transport::Nccl => format!("{workload}, NCCL too"),
    };
    let num_gpus = workload.exchange.ep_size as usize;
    Shape::new(name, num_gpus, move |devices, seed| {
        let topk = choice(&workload);
        let exchange_sms = match transport {
            Transport::OneSided => ONE_SIDED_SMS,
            Transport::Nccl => NCCL_SMS,
        };
        let overlapped =
            Schedule::Overlapped { shared: SharedBeside::Both, exchange_sms, pack: Lane::Compute };
        let side = |transport, schedule| SideOptions {
            topk,
            placement: workload.in_order(),
            layer: LayerOptions { transport, schedule, ..LayerOptions::default() },
        };
        let sides = [side(Transport::Nccl, Schedule::Sequential), side(transport, overlapped)];
        LayerRanks::new(devices, &workload, sides, seed)
    })
}

/// DeepSeek-V3's choice where there are as many experts, else by softmax.
fn choice(workload: &Workload) -> TopkShape {
    match workload.exchange.num_experts {
        256 => TopkShape::deepseek_v3(workload.num_tokens),
        num_experts => TopkShape::softmax(workload.num_tokens, num_experts, workload.exchange.topk),
    }
}
