//! Pair `kv_cache_management`: memory for the longest context reserved for each request, against
//! pages as tokens come, shared prefixes, and eviction to the host's memory and back.
//!
//! Both sides batch continuously, with the same engine and the same memory. The baseline's
//! reservations fill it with a few requests; the other side runs until pages are wanting, preempts
//! the youngest, and finds again what it had computed.

use super::serve_bench::ServeCase;
use super::serving_model::{PAGE_SIZE, ServingModel};
use crate::harness::{Pair, Shape, ShapeSet};
use crate::model::config::NamedShape;
use crate::serve::load::{LogNormal, PoissonLoad};
use crate::serve::{Policy, Reserve};

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "kv_cache_management",
    about: "serves a load in little KV memory: the longest context reserved for each request, against \
        pages, shared prefixes, eviction and promotion",
    sides: ["whole contexts", "pages"],
    rooms: &[],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    match set {
        // Published without attention: its KV is never read.
        ShapeSet::SeedParity => Vec::new(),
        ShapeSet::Real => {
            let memory = Memory { num_contexts: 8, num_max_context: 1024 };
            vec![shape(NamedShape::Llama8B, 128, 32, memory, [(384.0, 768), (32.0, 128)])]
        }
        ShapeSet::Tiny => {
            let memory = Memory { num_contexts: 3, num_max_context: 64 };
            vec![shape(NamedShape::Tiny, 6, 4, memory, [(24.0, 48), (4.0, 12)])]
        }
    }
}

/// How much local KV memory there is: so many whole contexts of so many tokens.
struct Memory {
    num_contexts: usize,
    num_max_context: usize,
}

/// Requests with these medians and most tokens of prompts and answers, in so much memory, with three times
/// that in the host.
fn shape(
    shape: NamedShape,
    num_requests: usize,
    num_slots: usize,
    Memory { num_contexts, num_max_context }: Memory,
    lengths: [(f64, usize); 2],
) -> Shape {
    let [prompt, output] = lengths.map(|(median, max)| LogNormal { median, sigma: 0.8, max });
    let num_local = num_contexts * num_max_context.div_ceil(PAGE_SIZE);
    let load = PoissonLoad {
        num_families: 4,
        num_shared_tokens: prompt.median as usize / 2,
        ..PoissonLoad::at_once(num_requests, prompt, output, shape.config().vocab_size)
    };
    let pages = Policy::continuous(num_slots, num_slots + 480);
    let whole = Policy { reserve: Reserve::WholeContext, shares_prefixes: false, ..pages };
    let case = ServeCase {
        model: ServingModel {
            shape,
            num_max_context,
            num_max_sequences: num_slots,
            num_max_tokens_per_step: 2048,
            num_pages: [num_local, 3 * num_local],
        },
        load,
        baseline: whole,
        optimized: pages,
    };
    let name = format!("{}, {num_requests} requests in {num_local} pages", shape.name());
    case.shape(name)
}
