//! Pair `paged_attention`: one block for each (request, KV head), against equal shares for all SMs.

use std::rc::Rc;

use half::{bf16, f16};

use super::{AttentionSizes, BatchElement, DecodeBatch, DecodeBench, DecodeWorkload};
use crate::harness::{Pair, Shape, ShapeSet};

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "paged_attention",
    about: "decode over a paged KV cache: one block for each (request, KV head), against equal shares \
        for all SMs on the tensor cores",
    sides: ["block per head", "split"],
    rooms: &["paged_attention"],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    let of_heads = DecodeWorkload::new;
    let usual = |kv_lens| of_heads(64, 8, kv_lens);
    let middling = || usual(vec![4096; 16]);
    match set {
        // The published chapter decodes from contiguous caches only.
        ShapeSet::SeedParity => Vec::new(),
        ShapeSet::Real => vec![
            shape::<bf16>("batch 1 x 1024", usual(vec![1024])),
            shape::<bf16>("batch 1 x 8192", usual(vec![8192])),
            shape::<bf16>("batch 1 x 131072", usual(vec![131_072])),
            shape::<bf16>("batch 16 x 4096", middling()),
            shape::<bf16>("batch 64 x 8192", usual(vec![8192; 64])),
            shape::<bf16>("batch 256 x 1024", usual(vec![1024; 256])),
            shape::<bf16>(
                "ragged 63 x 1024 + 131072",
                usual([vec![1024; 63], vec![131_072]].concat()),
            ),
            shape::<bf16>("batch 16 x 4096, batch-invariant", middling().batch_invariant(512)),
            shape::<bf16>(
                "batch 64 x 8192, batch-invariant",
                usual(vec![8192; 64]).batch_invariant(512),
            ),
            shape::<bf16>("batch 16 x 4096, pages of 1", middling().page_size(1)),
            shape::<bf16>("batch 16 x 4096, pages of 8", middling().page_size(8)),
            shape::<bf16>("batch 16 x 4096, pages of 64", middling().page_size(64)),
            shape::<bf16>("batch 32 x 4096, 32/8 heads", of_heads(32, 8, vec![4096; 32])),
            shape::<bf16>("batch 16 x 4096, 128/8 heads", of_heads(128, 8, vec![4096; 16])),
            shape::<bf16>("batch 16 x 4096, heads of 64", middling().head_dim(64)),
            shape::<f16>("batch 16 x 4096, f16", middling()),
            shape::<bf16>("batch 16 x 4096, over e4m3", middling().over_e4m3()),
            shape::<bf16>("batch 64 x 8192, over e4m3", usual(vec![8192; 64]).over_e4m3()),
        ],
        ShapeSet::Tiny => vec![
            shape::<bf16>("ragged 5 + 90, over e4m3", of_heads(8, 2, vec![5, 90]).over_e4m3()),
            shape::<bf16>("batch 3 x 100", of_heads(16, 2, vec![100; 3])),
            shape::<bf16>("ragged 1 + 300", of_heads(8, 1, vec![1, 300])),
            shape::<f16>(
                "batch 2 x 40, 16/1 heads of 64, pages of 5, f16",
                of_heads(16, 1, vec![40; 2]).head_dim(64).page_size(5),
            ),
        ],
    }
}

fn shape<T: BatchElement>(name: &str, workload: DecodeWorkload) -> Shape {
    let sizes = AttentionSizes::of_decode::<T>(&workload);
    let shape = Shape::new(name, 1, move |devices, seed| {
        let batch = Rc::new(DecodeBatch::<T>::new(workload.clone(), seed));
        DecodeBench::new(devices, &batch, |_| 0)
    });
    shape.sizes(&sizes)
}
