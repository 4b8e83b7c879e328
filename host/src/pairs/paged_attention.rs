//! Pair `paged_attention`: one block for each (request, KV head), against equal shares for all SMs.

use std::rc::Rc;

use anyhow::Result;
use gpu_kernels::contract::Work;

use super::{DecodeBatch, DecodeBench, DecodeWorkload};
use crate::harness::ceilings::HBM_READ;
use crate::harness::{Batch, Demand, Pair, Prepared, Sampler, Shape, ShapeSet, Variant};
use crate::kernels::paged_attention::DecodeVariant;

/// The pair.
pub struct PagedAttention;

impl Pair for PagedAttention {
    fn name(&self) -> &'static str {
        "paged_attention"
    }

    fn about(&self) -> &'static str {
        "decode over a paged KV cache: one block for each (request, KV head), against equal shares \
         for all SMs on the tensor cores"
    }

    fn side_name(&self, variant: Variant) -> &'static str {
        match variant {
            Variant::Baseline => "block per head",
            Variant::Optimized => "split",
        }
    }

    fn shapes(&self, set: ShapeSet) -> Vec<Shape> {
        let shape = |name: &str, num_qo_heads, num_kv_heads, kv_lens: Vec<u32>| {
            let workload = DecodeWorkload::new(num_qo_heads, num_kv_heads, kv_lens);
            Shape::new(name, 1, move |devices, seed| {
                let batch = Rc::new(DecodeBatch::new(workload.clone(), seed));
                Ok(OneGpu { bench: DecodeBench::new(devices, &batch, |_| 0)?, batch })
            })
        };
        match set {
            // The published chapter decodes from contiguous caches only.
            ShapeSet::SeedParity => Vec::new(),
            ShapeSet::Real => vec![
                shape("batch 1 x 1024", 64, 8, vec![1024]),
                shape("batch 1 x 8192", 64, 8, vec![8192]),
                shape("batch 16 x 4096", 64, 8, vec![4096; 16]),
                shape("batch 64 x 8192", 64, 8, vec![8192; 64]),
                shape("ragged 63 x 1024 + 131072", 64, 8, [vec![1024; 63], vec![131_072]].concat()),
            ],
            ShapeSet::Tiny => vec![
                shape("batch 3 x 100", 16, 2, vec![100; 3]),
                shape("ragged 1 + 300", 8, 1, vec![1, 300]),
            ],
        }
    }
}

/// Both kernels over the same pages.
struct OneGpu {
    batch: Rc<DecodeBatch>,
    bench: DecodeBench,
}

fn kernel(variant: Variant) -> DecodeVariant {
    match variant {
        Variant::Baseline => DecodeVariant::Baseline,
        Variant::Optimized => DecodeVariant::Split,
    }
}

impl Prepared for OneGpu {
    fn work(&self, _variant: Variant) -> Work {
        self.batch.workload().work()
    }

    fn demands(&self) -> Vec<Demand> {
        vec![Demand { ceiling: HBM_READ, amount: self.batch.workload().work().read_bytes }]
    }

    fn num_inputs(&self) -> usize {
        self.bench.num_inputs()
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        self.bench.sampler(kernel(variant), batch)
    }

    fn verify(&self, variant: Variant) -> Result<String> {
        self.bench.verify(kernel(variant))
    }

    fn corrupt(&mut self) -> Result<()> {
        self.bench.corrupt()
    }
}
