//! Pair `continuous_batching`: batches that are filled, drained and refilled, against requests that
//! join and leave at every step.
//!
//! Both sides have the same engine, slots and requests. The continuous side's steps are bounded
//! such that a prompt's chunk beside decoding requests takes no longer than reading the weights,
//! so that tokens come as regularly as on the other side.

use super::serve_bench::{ServeBench, ServeCase};
use crate::harness::{Pair, Shape, ShapeSet, Variant};
use crate::serve::load::{LogNormal, PoissonLoad};
use crate::serve::{Order, Policy, SIMULATED, SimulatedModel, Slo};

/// The pair.
pub struct ContinuousBatching;

impl Pair for ContinuousBatching {
    fn name(&self) -> &'static str {
        "continuous_batching"
    }

    fn about(&self) -> &'static str {
        "serves a load: batches that are filled, drained and refilled, against requests that join \
         and leave at every step"
    }

    fn side_name(&self, variant: Variant) -> &'static str {
        match variant {
            Variant::Baseline => "static",
            Variant::Optimized => "continuous",
        }
    }

    fn rooms(&self) -> Vec<&'static str> {
        Vec::new()
    }

    fn shapes(&self, set: ShapeSet) -> Vec<Shape> {
        match set {
            // Those are an MLP's requests, and wait for an engine that launches kernels.
            ShapeSet::SeedParity => Vec::new(),
            ShapeSet::Real => {
                let lengths = [(512.0, 2048), (128.0, 512)];
                vec![
                    shape("256 requests, 60 a second", 32, load(256, Some(60.0), lengths)),
                    shape("256 requests at once", 32, load(256, None, lengths)),
                ]
            }
            ShapeSet::Tiny => {
                let lengths = [(64.0, 256), (24.0, 96)];
                vec![
                    shape("32 requests, 100 a second", 8, load(32, Some(100.0), lengths)),
                    shape("32 requests at once", 8, load(32, None, lengths)),
                ]
            }
        }
    }
}

/// Requests with these medians and most tokens of prompts and answers.
fn load(num_requests: usize, rate_per_s: Option<f64>, lengths: [(f64, usize); 2]) -> PoissonLoad {
    let [prompt, output] = lengths.map(|(median, max)| LogNormal { median, sigma: 0.8, max });
    PoissonLoad {
        seed: 0,
        num_requests,
        rate_per_s,
        prompt,
        output,
        num_families: 1,
        num_shared_tokens: 0,
        vocab_size: SimulatedModel::dense_8b().vocab_size,
    }
}

fn shape(name: &str, num_slots: usize, load: PoissonLoad) -> Shape {
    let model = SimulatedModel::dense_8b();
    let most = load.prompt.max + load.output.max;
    // Room for the longest requests in all slots, so that what differs is when they join.
    let num_local = num_slots * most.div_ceil(model.page_size);
    let order = Order::FirstTokenDeadline {
        ttft_us: Slo::default().ttft_us,
        prompt_token_us: model.costs.flops_per_token / (model.costs.tflops * 1e6),
    };
    let case = ServeCase {
        model: SimulatedModel { num_max_context: most, ..model },
        num_pages: [num_local, 1],
        load,
        baseline: Policy::static_batches(num_slots),
        optimized: Policy::continuous(num_slots, num_slots + 128).ordered(order),
    };
    let name = format!("{SIMULATED}, {name}, {num_slots} slots");
    Shape::new(name, 1, move |_devices, seed| ServeBench::new(case, seed)).sizes(&case)
}
