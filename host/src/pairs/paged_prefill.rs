//! Pair `paged_prefill`: tiles of 64 queries on `mma`, against warpgroups in turns on `wgmma`.

use half::{bf16, f16};

use super::{AttentionSizes, BatchElement, PrefillBatch, PrefillBench, PrefillWorkload};
use crate::harness::{Pair, Shape, ShapeSet};
use crate::kernels::paged_prefill::PrefillElement;

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "paged_prefill",
    about: "causal attention of whole prompts and chunks over a paged KV cache: a block for 64 queries \
        of a head on mma, against warpgroups that load and multiply in turns on wgmma",
    sides: ["mma tiles", "wgmma in turns"],
    rooms: &["paged_prefill"],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    let usual = |requests: &[(u32, u32)]| PrefillWorkload::new(32, 8, requests);
    let whole = |len| usual(&[(len, len)]);
    match set {
        // The published chapter has no attention in its prefill.
        ShapeSet::SeedParity => Vec::new(),
        ShapeSet::Real => vec![
            shape::<bf16>("causal 1 x 4096", whole(4096)),
            shape::<bf16>("causal 1 x 8192", whole(8192)),
            shape::<bf16>("causal 1 x 32768", whole(32_768)),
            shape::<bf16>("chunks 4 x 2048 of 16384", usual(&[(2048, 16_384); 4])),
            shape::<bf16>(
                "ragged 100 to 8192",
                usual(&[(8192, 8192), (100, 100), (3000, 3000), (1000, 5000), (500, 9000)]),
            ),
            shape::<bf16>("causal 1 x 8192, pages of 1", whole(8192).page_size(1)),
            shape::<bf16>("causal 1 x 8192, pages of 64", whole(8192).page_size(64)),
            shape::<f16>("causal 1 x 8192, f16", whole(8192)),
        ],
        ShapeSet::Tiny => vec![
            shape::<bf16>("causal 1 x 150", PrefillWorkload::new(2, 1, &[(150, 150)])),
            shape::<f16>(
                "chunks 20 of 90 + 1 of 40, heads of 64, pages of 5, f16",
                PrefillWorkload::new(4, 2, &[(20, 90), (1, 40)]).head_dim(64).page_size(5),
            ),
        ],
    }
}

fn shape<T: BatchElement + PrefillElement>(name: &str, workload: PrefillWorkload) -> Shape {
    let sizes = AttentionSizes::of_prefill::<T>(&workload);
    let shape = Shape::new(name, 1, move |devices, seed| {
        PrefillBench::new(&devices[0], PrefillBatch::<T>::new(workload.clone(), seed))
    });
    shape.sizes(&sizes)
}
