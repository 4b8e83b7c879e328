//! Pair `disaggregated_inference`: every rank serves its requests from prompt to end, against half
//! of them computing prompts for the other half.
//!
//! A call's time is the time per output token that 99 of 100 requests stay below: what other
//! requests' prompts do to those that decode. The numbers beside it say what it costs. On the CPU
//! ranks share the machine's cores: there the ratio says little.

use std::env;

use super::cluster_bench::{ClusterCase, Timed};
use super::serving_model::{PAGE_SIZE, ServingModel};
use crate::harness::{Pair, Shape, ShapeSet};
use crate::model::config::NamedShape;
use crate::serve::Policy;
use crate::serve::disagg::{ClusterOptions, HandOver, Roles};
use crate::serve::load::{LogNormal, PoissonLoad};

/// Says how many ranks there are, an even number, instead of 2 and 4.
const WORLD_SIZE: &str = "AISP_DISAGG_WORLD_SIZE";

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "disaggregated_inference",
    about: "serves a load on several ranks, each for itself, against half of them computing prompts \
        for the other half; the time is p99 of the time per output token",
    sides: ["monolithic, p99 TPOT", "disaggregated, p99 TPOT"],
    rooms: &[],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    let shape = match set {
        // Published for a model whose KV is never read.
        ShapeSet::SeedParity => return Vec::new(),
        ShapeSet::Real => real_shape,
        ShapeSet::Tiny => tiny_shape,
    };
    let Ok(asked) = env::var(WORLD_SIZE) else {
        let sizes: &[usize] = if set == ShapeSet::Tiny { &[2] } else { &[2, 4] };
        return sizes.iter().map(|&size| shape(size)).collect();
    };
    match asked.parse() {
        Ok(size) if size >= 2 && size % 2 == 0 => vec![shape(size)],
        _ => {
            let why = format!("{WORLD_SIZE} needs an even number of ranks, got `{asked}`");
            vec![Shape::refused(format!("{WORLD_SIZE}={asked}"), why)]
        }
    }
}

/// Prompts that keep a rank busy for most of the time, and answers of several tokens each.
fn real_shape(num_ranks: usize) -> Shape {
    let (model, num_requests) = (NamedShape::Llama8B, 24 * num_ranks);
    let prompt = LogNormal { median: 1536.0, sigma: 0.4, max: 3072 };
    let output = LogNormal { median: 64.0, sigma: 0.4, max: 128 };
    let load = PoissonLoad::at_once(num_requests, prompt, output, model.config().vocab_size);
    let rate_per_s = Some(6.0 * num_ranks as f64);
    shape(model, num_ranks, PoissonLoad { rate_per_s, ..load }, [32, 544, 2048])
}

fn tiny_shape(num_ranks: usize) -> Shape {
    let (model, num_requests) = (NamedShape::Tiny, 3 * num_ranks);
    let prompt = LogNormal { median: 24.0, sigma: 0.4, max: 40 };
    let output = LogNormal { median: 4.0, sigma: 0.4, max: 8 };
    let load = PoissonLoad::at_once(num_requests, prompt, output, model.config().vocab_size);
    shape(model, num_ranks, load, [4, 36, 64])
}

/// With so many slots a rank, and so many tokens in a step: one that decodes too, and one of prompts
/// only.
fn shape(
    shape: NamedShape,
    num_ranks: usize,
    load: PoissonLoad,
    [num_slots, mixed_tokens, prompt_tokens]: [usize; 3],
) -> Shape {
    let policy =
        |num_tokens| Policy { shares_prefixes: false, ..Policy::continuous(num_slots, num_tokens) };
    let options = |roles| ClusterOptions {
        roles,
        policy: policy(mixed_tokens),
        prefill_policy: policy(prompt_tokens),
        network: None,
        stop: None,
    };
    let num_max_context = load.prompt.max + load.output.max;
    let case = ClusterCase {
        model: ServingModel {
            shape,
            num_max_context,
            num_max_sequences: num_slots,
            num_max_tokens_per_step: prompt_tokens,
            num_pages: [num_slots * num_max_context.div_ceil(PAGE_SIZE), 1],
        },
        num_ranks,
        load,
        baseline: options(Roles::Monolithic),
        optimized: options(Roles::Disaggregated(HandOver::ByLayer)),
        timed: Timed::TpotP99,
    };
    case.shape(format!("{}, {num_ranks} ranks, {} requests", shape.name(), load.num_requests))
}
