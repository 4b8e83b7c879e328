//! Pair `prefill_decode_disagg`: KV handed over when the prompt is computed, through pinned memory of
//! the host, against layer by layer while it is computed, straight into the other rank's pages.
//!
//! Between a rank that computes prompts and one that goes on with them. A call's time is what of the
//! hand-over shows: from a prompt's first token to when the other rank can go on from it.

use super::cluster_bench::{ClusterCase, Timed};
use super::serving_model::{PAGE_SIZE, ServingModel};
use crate::harness::{Pair, Shape, ShapeSet};
use crate::model::config::NamedShape;
use crate::serve::Policy;
use crate::serve::disagg::{ClusterOptions, HandOver, Roles};
use crate::serve::load::{LogNormal, PoissonLoad};

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "prefill_decode_disagg",
    about: "prompts computed on one rank for another: their KV handed over when they are computed, \
        through the host, against layer by layer meanwhile; the time is what of it shows",
    sides: ["through the host", "by layer"],
    rooms: &[],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    match set {
        // Published for one product as a prefill, whose result decays to zeros.
        ShapeSet::SeedParity => Vec::new(),
        ShapeSet::Real => {
            [4096, 16_384, 32_768].map(|prompt| shape(NamedShape::Llama8B, prompt, 4096)).into()
        }
        ShapeSet::Tiny => vec![shape(NamedShape::Tiny, 96, 32)],
    }
}

fn shape(shape: NamedShape, prompt: usize, num_max_tokens_per_step: usize) -> Shape {
    let [of_prompt, output] = [prompt, 4].map(LogNormal::exactly);
    let load = PoissonLoad::at_once(1, of_prompt, output, shape.config().vocab_size);
    let one_prompt = Policy::continuous(1, num_max_tokens_per_step);
    let options = |hand_over| ClusterOptions {
        roles: Roles::Disaggregated(hand_over),
        policy: one_prompt,
        prefill_policy: Policy { shares_prefixes: false, ..one_prompt },
        network: None,
        stop: None,
    };
    let num_max_context = prompt + load.output.max;
    let case = ClusterCase {
        model: ServingModel {
            shape,
            num_max_context,
            num_max_sequences: 1,
            num_max_tokens_per_step,
            num_pages: [num_max_context.div_ceil(PAGE_SIZE), 1],
        },
        num_ranks: 2,
        load,
        baseline: options(HandOver::ThroughHost),
        optimized: options(HandOver::ByLayer),
        timed: Timed::HandOver,
    };
    case.shape(format!("{}, a prompt of {prompt}", shape.name()))
}
