//! Pair `disaggregated_inference`: every rank serves its requests from prompt to end, against half
//! of them computing prompts for the other half.
//!
//! A call's time is the time per output token that 99 of 100 requests stay below: what other
//! requests' prompts do to those that decode. The numbers beside it say what it costs. Ranks run on
//! the wall's clock and share this machine's cores: on a busy one the ratio says little.

use std::env;

use anyhow::{Result, bail};

use super::cluster_bench::{ClusterBench, ClusterCase, Timed, paced_model};
use crate::harness::{Pair, Shape, ShapeSet, Variant};
use crate::serve::disagg::{ClusterOptions, HandOver, Roles, SimulatedNetwork};
use crate::serve::load::{LogNormal, PoissonLoad};
use crate::serve::{Policy, SIMULATED};

/// Says how many ranks there are, an even number, instead of 2 and 4.
const WORLD_SIZE: &str = "AISP_DISAGG_WORLD_SIZE";

/// The pair.
pub struct DisaggregatedInference;

impl Pair for DisaggregatedInference {
    fn name(&self) -> &'static str {
        "disaggregated_inference"
    }

    fn about(&self) -> &'static str {
        "serves a load on several ranks, each for itself, against half of them computing prompts \
         for the other half; the time is p99 of the time per output token"
    }

    fn side_name(&self, variant: Variant) -> &'static str {
        match variant {
            Variant::Baseline => "monolithic, p99 TPOT",
            Variant::Optimized => "disaggregated, p99 TPOT",
        }
    }

    fn rooms(&self) -> Vec<&'static str> {
        Vec::new()
    }

    fn shapes(&self, set: ShapeSet) -> Vec<Shape> {
        let requests_a_rank = match set {
            // Published for a model whose KV is never read.
            ShapeSet::SeedParity => return Vec::new(),
            ShapeSet::Real => 64,
            ShapeSet::Tiny => 12,
        };
        let Ok(asked) = env::var(WORLD_SIZE) else {
            return [2, 4].map(|size| shape(size, requests_a_rank)).into();
        };
        match asked.parse() {
            Ok(size) if size >= 2 && size % 2 == 0 => vec![shape(size, requests_a_rank)],
            _ => vec![refused(asked)],
        }
    }
}

/// Stands for the shapes where their number of ranks is none, and says so when it is run.
fn refused(asked: String) -> Shape {
    let name = format!("{WORLD_SIZE}={asked}");
    Shape::new(name, 1, move |_devices, _seed| -> Result<ClusterBench> {
        bail!("{WORLD_SIZE} needs an even number of ranks, got `{asked}`")
    })
}

/// A simulated network between ranks.
const NETWORK: SimulatedNetwork = SimulatedNetwork { gb_s: 20.0, latency_us: 20.0 };

fn shape(num_ranks: usize, requests_a_rank: usize) -> Shape {
    let model = paced_model();
    let load = PoissonLoad {
        seed: 0,
        num_requests: num_ranks * requests_a_rank,
        rate_per_s: Some(60.0 * num_ranks as f64),
        prompt: LogNormal { median: 512.0, sigma: 0.5, max: 1500 },
        output: LogNormal { median: 32.0, sigma: 0.5, max: 128 },
        num_families: 1,
        num_shared_tokens: 0,
        vocab_size: model.vocab_size,
    };
    let policy = Policy { shares_prefixes: false, ..Policy::continuous(32, 544) };
    let options = |roles| ClusterOptions {
        roles,
        policy,
        prefill_policy: policy,
        network: Some(NETWORK),
        stop: None,
    };
    let case = ClusterCase {
        model,
        num_ranks,
        num_pages: 4096,
        load,
        baseline: options(Roles::Monolithic),
        optimized: options(Roles::Disaggregated(HandOver::ByLayer)),
        timed: Timed::TpotP99,
    };
    let SimulatedNetwork { gb_s, latency_us } = NETWORK;
    let name = format!(
        "{SIMULATED}, {num_ranks} ranks, {} requests, network of {gb_s} GB/s and {latency_us} µs",
        load.num_requests
    );
    Shape::new(name, num_ranks, move |_devices, seed| ClusterBench::new(case, seed)).sizes(&case)
}
