//! Pair `prefill_decode_disagg`: KV handed over when the prompt is computed, against layer by layer
//! while it is.
//!
//! Between a rank that computes prompts and one that goes on with them. A call's time is that of a
//! few prompts and two tokens each: what of the hand-over is not hidden behind prefill, shows.

use super::cluster_bench::{ClusterBench, ClusterCase, Timed, paced_model};
use crate::harness::{Pair, Shape, ShapeSet, Variant};
use crate::serve::disagg::{ClusterOptions, HandOver, Roles, SimulatedNetwork};
use crate::serve::load::{LogNormal, PoissonLoad};
use crate::serve::{Policy, SIMULATED};

/// The pair.
pub struct PrefillDecodeDisagg;

impl Pair for PrefillDecodeDisagg {
    fn name(&self) -> &'static str {
        "prefill_decode_disagg"
    }

    fn about(&self) -> &'static str {
        "prompts computed on one rank for another: their KV handed over when they are computed, \
         against layer by layer meanwhile"
    }

    fn side_name(&self, variant: Variant) -> &'static str {
        match variant {
            Variant::Baseline => "after prefill",
            Variant::Optimized => "by layer",
        }
    }

    fn rooms(&self) -> Vec<&'static str> {
        Vec::new()
    }

    fn shapes(&self, set: ShapeSet) -> Vec<Shape> {
        match set {
            // Published for one product as a prefill, whose result decays to zeros.
            ShapeSet::SeedParity => Vec::new(),
            ShapeSet::Real => [512, 1024, 2000].map(|prompt| shape(4, prompt)).into(),
            ShapeSet::Tiny => vec![shape(2, 512)],
        }
    }
}

/// A simulated network that takes about two thirds as long for a prompt's KV as the prompt does.
const NETWORK: SimulatedNetwork = SimulatedNetwork { gb_s: 4.0, latency_us: 20.0 };

fn shape(num_requests: usize, prompt: usize) -> Shape {
    let model = paced_model();
    let load = PoissonLoad {
        seed: 0,
        num_requests,
        rate_per_s: None,
        prompt: LogNormal::exactly(prompt),
        output: LogNormal::exactly(2),
        num_families: 1,
        num_shared_tokens: 0,
        vocab_size: model.vocab_size,
    };
    let options = |hand_over| ClusterOptions {
        roles: Roles::Disaggregated(hand_over),
        policy: Policy::continuous(8, 512),
        prefill_policy: Policy { shares_prefixes: false, ..Policy::continuous(1, 2048) },
        network: Some(NETWORK),
        stop: None,
    };
    let case = ClusterCase {
        model,
        num_ranks: 2,
        num_pages: 4 * num_requests * (prompt + 2).div_ceil(model.page_size),
        load,
        baseline: options(HandOver::AfterPrefill),
        optimized: options(HandOver::ByLayer),
        timed: Timed::Duration,
    };
    let SimulatedNetwork { gb_s, latency_us } = NETWORK;
    let name = format!(
        "{SIMULATED}, {num_requests} prompts of {prompt}, network of {gb_s} GB/s and {latency_us} µs"
    );
    Shape::new(name, 2, move |_devices, seed| ClusterBench::new(case, seed)).sizes(&case)
}
