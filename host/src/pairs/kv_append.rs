//! Pair `kv_append`: K of new tokens rotated in a launch of its own, against on its way to the page.

use anyhow::Result;
use gpu_kernels::contract::Work;
use gpu_kernels::kv_append::contract::RopeStyle;
use gpu_kernels::kv_append::reference::Case;
use half::{bf16, f16};

use super::placed_kv::pages_of;
use super::{AppendBench, BatchElement};
use crate::harness::ceilings::HBM_COPY;
use crate::harness::{
    Batch, Demand, Pair, Prepared, Sampler, Shape, ShapeSet, Variant, stream_sampler,
};
use crate::kernels::kv_append::AppendElement;

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "kv_append",
    about: "rotates q, and K and V of new tokens go to their pages: K rotated in a launch of its own, \
        against on its way",
    sides: ["three launches", "two launches"],
    rooms: &["kv_append"],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    match set {
        // The published chapter appends nothing.
        ShapeSet::SeedParity => Vec::new(),
        ShapeSet::Real => vec![
            shape::<bf16>("decode, batch 64", real_case(&decode(64))),
            shape::<bf16>("decode, batch 256", real_case(&decode(256))),
            shape::<bf16>("prefill, 1 x 8192", real_case(&[(0, 8192)])),
            shape::<bf16>("chunks, 8 x 1024 after 1000", real_case(&[(1000, 1024); 8])),
            shape::<f16>("prefill, 1 x 8192, f16", real_case(&[(0, 8192)])),
        ],
        ShapeSet::Tiny => vec![
            shape::<bf16>("decode, batch 5", tiny_case(&decode(5))),
            shape::<f16>("prefill, 13 + 2 after 4, f16", tiny_case(&[(0, 13), (4, 2)])),
        ],
    }
}

/// One new token for each request, after different numbers of tokens.
fn decode(batch: u32) -> Vec<(u32, u32)> {
    (0..batch).map(|request| (request * 37 % 64, 1)).collect()
}

/// `(tokens before, new tokens)` of each request, with 64 query and 8 KV heads of 128.
pub fn real_case(requests: &[(u32, u32)]) -> Case {
    case(64, 8, 128, requests)
}

/// The same with few small heads.
pub fn tiny_case(requests: &[(u32, u32)]) -> Case {
    case(4, 2, 64, requests)
}

fn case(num_qo_heads: u32, num_kv_heads: u32, head_dim: u32, requests: &[(u32, u32)]) -> Case {
    let page = pages_of(num_kv_heads, head_dim);
    let case = Case::new("pair", page, Some(RopeStyle::HalfSplit), 1, requests);
    Case { num_qo_heads, ..case }
}

fn shape<T: BatchElement + AppendElement>(name: &str, case: Case) -> Shape {
    Shape::new(name, 1, move |devices, seed| {
        Ok(OneGpu { bench: AppendBench::<T>::new(&devices[0], &case, seed)? })
    })
}

struct OneGpu<T> {
    bench: AppendBench<T>,
}

impl<T: BatchElement + AppendElement> OneGpu<T> {
    fn run(&self, variant: Variant, input: usize) -> Result<()> {
        self.bench.rotate_q(input)?;
        match variant {
            Variant::Baseline => {
                self.bench.rotate_k(input)?;
                self.bench.append_rotated(input)
            }
            Variant::Optimized => self.bench.rotate_and_append(input),
        }
    }
}

impl<T: BatchElement + AppendElement> Prepared for OneGpu<T> {
    fn work(&self, _variant: Variant) -> Work {
        self.bench.work()
    }

    fn demands(&self) -> Vec<Demand> {
        let Work { read_bytes, written_bytes, .. } = self.bench.work();
        vec![Demand { ceiling: HBM_COPY, amount: read_bytes + written_bytes }]
    }

    fn num_inputs(&self) -> usize {
        self.bench.num_inputs()
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        stream_sampler(self.bench.stream(), batch, move |input| self.run(variant, input))
    }

    fn verify(&self, variant: Variant) -> Result<String> {
        self.bench.verify(|input| self.run(variant, input))
    }

    fn corrupt(&mut self) -> Result<()> {
        self.bench.corrupt()
    }
}
