//! Pair `continuous_batching`: batches that are filled, drained and refilled, against requests that
//! join and leave at every step.
//!
//! Both sides have the same engine, slots and requests, which arrive faster than either serves them. The
//! continuous side's steps are bounded such that a prompt's chunk beside decoding requests takes little
//! longer than reading the weights, so that tokens come as regularly as on the other side, and are long
//! enough that prompts keep the slots filled.
//!
//! The engine is batch-invariant, so that both sides run the same kernels and every request must get the
//! same tokens from both: what differs is who is in a step, and nothing else.

use super::serve_bench::ServeCase;
use super::serving_model::{PAGE_SIZE, PROMPT_TOKEN_US, ServingModel};
use crate::harness::{Pair, Shape, ShapeSet};
use crate::model::config::NamedShape;
use crate::serve::load::{LogNormal, PoissonLoad};
use crate::serve::{Order, Policy, Slo};

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "continuous_batching",
    about: "serves a load: batches that are filled, drained and refilled, against requests that join \
        and leave at every step",
    sides: ["static", "continuous"],
    rooms: &[],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    match set {
        // Those are an MLP's requests, which have no KV.
        ShapeSet::SeedParity => Vec::new(),
        ShapeSet::Real => {
            // So many that a batch is filled several times, and the last ones weigh little.
            let lengths = [(256.0, 768), (32.0, 128)];
            [NamedShape::Llama8B, NamedShape::QwenMoe]
                .map(|model| shape(model, 16, load(model, 96, Some(40.0), lengths)))
                .into()
        }
        ShapeSet::Tiny => {
            let model = NamedShape::Tiny;
            vec![shape(model, 2, load(model, 5, None, [(20.0, 40), (3.0, 9)]))]
        }
    }
}

/// Requests with these medians and most tokens of prompts and answers.
fn load(
    model: NamedShape,
    num_requests: usize,
    rate_per_s: Option<f64>,
    lengths: [(f64, usize); 2],
) -> PoissonLoad {
    let [prompt, output] = lengths.map(|(median, max)| LogNormal { median, sigma: 0.8, max });
    let at_once = PoissonLoad::at_once(num_requests, prompt, output, model.config().vocab_size);
    PoissonLoad { rate_per_s, ..at_once }
}

fn shape(shape: NamedShape, num_slots: usize, load: PoissonLoad) -> Shape {
    let most = load.prompt.max + load.output.max;
    let order = Order::FirstTokenDeadline {
        ttft_us: Slo::default().ttft_us,
        prompt_token_us: PROMPT_TOKEN_US,
    };
    let case = ServeCase {
        model: ServingModel {
            shape,
            num_max_context: most,
            num_max_sequences: num_slots,
            num_max_tokens_per_step: 2048,
            // Room for the longest requests in all slots, so that what differs is when they join.
            num_pages: [num_slots * most.div_ceil(PAGE_SIZE), 1],
        },
        load,
        baseline: Policy::static_batches(num_slots),
        optimized: Policy::continuous(num_slots, num_slots + 240).ordered(order),
    };
    let arrival = match load.rate_per_s {
        Some(rate) => format!("{rate} a second"),
        None => "at once".to_owned(),
    };
    let name =
        format!("{}, {} requests {arrival}, {num_slots} slots", shape.name(), load.num_requests);
    case.shape(name)
}
