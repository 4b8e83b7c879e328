//! Pair `kv_cache_management`: memory for the longest context reserved for each request, against
//! pages as tokens come, shared prefixes, and eviction to the host's memory and back.
//!
//! Both sides batch continuously, with the same engine and the same memory. The baseline's
//! reservations fill it with a few requests; the other side runs until pages are wanting, preempts
//! the youngest, and finds again what it had computed.

use super::serve_bench::{ServeBench, ServeCase};
use crate::harness::{Pair, Shape, ShapeSet, Variant};
use crate::serve::load::{LogNormal, PoissonLoad};
use crate::serve::{Policy, Reserve, SIMULATED, SimulatedModel};

/// The pair.
pub struct KvCacheManagement;

impl Pair for KvCacheManagement {
    fn name(&self) -> &'static str {
        "kv_cache_management"
    }

    fn about(&self) -> &'static str {
        "serves a load in little KV memory: the longest context reserved for each request, against \
         pages, shared prefixes, eviction and promotion"
    }

    fn side_name(&self, variant: Variant) -> &'static str {
        match variant {
            Variant::Baseline => "whole contexts",
            Variant::Optimized => "pages",
        }
    }

    fn rooms(&self) -> Vec<&'static str> {
        Vec::new()
    }

    fn shapes(&self, set: ShapeSet) -> Vec<Shape> {
        match set {
            // Published without attention: its KV is never read.
            ShapeSet::SeedParity => Vec::new(),
            ShapeSet::Real => vec![shape(256, 64, 2048, [(512.0, 1536), (128.0, 512)])],
            ShapeSet::Tiny => vec![shape(32, 12, 256, [(96.0, 160), (24.0, 96)])],
        }
    }
}

/// Requests with these medians and most tokens of prompts and answers, in memory for six whole
/// contexts, with three times that in the host.
fn shape(
    num_requests: usize,
    num_slots: usize,
    num_max_context: usize,
    lengths: [(f64, usize); 2],
) -> Shape {
    let model = SimulatedModel { num_max_context, ..SimulatedModel::dense_8b() };
    let [prompt, output] = lengths.map(|(median, max)| LogNormal { median, sigma: 0.8, max });
    let num_local = 6 * num_max_context.div_ceil(model.page_size);
    let load = PoissonLoad {
        seed: 0,
        num_requests,
        rate_per_s: None,
        prompt,
        output,
        num_families: 4,
        num_shared_tokens: prompt.median as usize / 2,
        vocab_size: model.vocab_size,
    };
    let pages = Policy::continuous(num_slots, num_slots + 128);
    let whole = Policy { reserve: Reserve::WholeContext, shares_prefixes: false, ..pages };
    let case = ServeCase {
        model,
        num_pages: [num_local, 3 * num_local],
        load,
        baseline: whole,
        optimized: pages,
    };
    let name = format!("{SIMULATED}, {num_requests} requests in {num_local} pages");
    Shape::new(name, 1, move |_devices, seed| ServeBench::new(case, seed)).sizes(&case)
}
