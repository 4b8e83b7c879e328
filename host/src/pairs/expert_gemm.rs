//! Pair `expert_gemm`: a block for each tile of an expert by `mma`, against persistent blocks that
//! deal an expert's tokens evenly.

use anyhow::{Context, Result};
use gpu_kernels::contract::Work;
use gpu_kernels::expert_gemm::contract::ExpertGemmShape;
use gpu_kernels::expert_gemm::reference::{offsets, random_rows, zipf_rows};
use gpu_kernels::gemm::contract::GemmShape;
use gpu_kernels::gemm::reference::Tolerance;
use gpu_kernels::shared_expert::contract::SharedExpertShape;
use gpu_kernels::shared_expert::reference::{TOLERANCE, gate};
use half::bf16;

use super::num_cold_inputs;
use super::product_bench::{ProductBench, Products, exact_product, random_in_parallel};
use crate::device::{Buffer, Device, Stream};
use crate::harness::{Pair, Shape, ShapeSet, Variant};
use crate::kernels::expert_gemm::{ExpertGemm as Kernel, ExpertGemmArgs, ExpertGemmVariant};
use crate::kernels::shared_expert::silu_mul;

/// The pair.
pub struct ExpertGemm;

/// How tokens are dealt to experts.
#[derive(Clone, Copy)]
pub(super) enum Routing {
    /// Equally many each.
    Uniform,
    /// Each token to one at random.
    Random,
    /// By Zipf's law.
    Zipf,
}

impl Routing {
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Random => "random",
            Self::Zipf => "zipf",
        }
    }

    pub fn rows_of(self, num_rows: u32, num_experts: u32, seed: u64) -> Vec<u32> {
        match self {
            Self::Uniform => vec![num_rows / num_experts; num_experts as usize],
            Self::Random => random_rows(num_rows, num_experts, seed),
            Self::Zipf => zipf_rows(num_rows, num_experts),
        }
    }
}

impl Pair for ExpertGemm {
    fn name(&self) -> &'static str {
        "expert_gemm"
    }

    fn about(&self) -> &'static str {
        "a product for each expert, of the tokens routed to it: a block for each tile by mma, against \
         persistent blocks by the copy engine and wgmma that deal an expert's tokens evenly"
    }

    fn side_name(&self, variant: Variant) -> &'static str {
        match variant {
            Variant::Baseline => "mma, tile by tile",
            Variant::Optimized => "wgmma, dealt evenly",
        }
    }

    fn rooms(&self) -> Vec<&'static str> {
        vec!["expert_gemm", "shared_expert"]
    }

    fn shapes(&self, set: ShapeSet) -> Vec<Shape> {
        use Routing::{Random, Uniform, Zipf};
        let shape = |routing: Routing, num_rows, num_experts, k, n, is_gated| {
            let shape = ExpertGemmShape { num_rows, num_experts, n, k, is_gated };
            let gated = if is_gated { ", gated" } else { "" };
            let mean = num_rows / num_experts;
            let name = format!("{num_experts} x {mean} {}, {k} -> {n}{gated}", routing.name());
            Shape::new(name, 1, move |devices, seed| {
                let rows_of = routing.rows_of(num_rows, num_experts, seed);
                Ok(ProductBench::new(Experts::new(&devices[0], shape, rows_of, seed)?))
            })
        };
        match set {
            ShapeSet::SeedParity => Vec::new(),
            // Gate and up, then down, of 32 of DeepSeek-V3's experts.
            ShapeSet::Real => vec![
                shape(Uniform, 8192, 32, 7168, 2048, true),
                shape(Uniform, 8192, 32, 7168, 4096, false),
                shape(Random, 8192, 32, 7168, 4096, false),
                shape(Zipf, 8192, 32, 7168, 4096, false),
                shape(Uniform, 8192, 32, 2048, 7168, false),
                shape(Random, 8192, 32, 2048, 7168, false),
                shape(Zipf, 8192, 32, 2048, 7168, false),
                shape(Uniform, 512, 32, 7168, 4096, false),
                shape(Uniform, 512, 32, 2048, 7168, false),
            ],
            ShapeSet::Tiny => {
                vec![shape(Random, 60, 5, 72, 136, true), shape(Zipf, 200, 4, 72, 40, false)]
            }
        }
    }
}

/// Operands, the weights as often as calls must find them cold.
struct Experts {
    shape: ExpertGemmShape,
    rows_of: Vec<u32>,
    stream: Stream,
    baseline: Kernel,
    grouped: Kernel,
    host_operands: [Vec<bf16>; 2],
    expert_offsets: Buffer<i32>,
    a: Buffer<bf16>,
    bs: Vec<Buffer<bf16>>,
    /// Of the baseline, where there is a gate.
    gate_up: Buffer<bf16>,
    c: Buffer<bf16>,
}

impl Experts {
    fn new(device: &Device, shape: ExpertGemmShape, rows_of: Vec<u32>, seed: u64) -> Result<Self> {
        let stream = device.new_stream()?;
        let a = random_in_parallel(seed, shape.a_elements(), 1.0);
        let b = random_in_parallel(!seed, shape.b_elements(), 1.0 / f64::from(shape.k));
        let num_inputs = num_cold_inputs(device, shape.work(&rows_of))?;
        let bs = (0..num_inputs).map(|_| Buffer::from_slice(&stream, &b));
        let without_gate = ExpertGemmShape { n: shape.b_rows(), is_gated: false, ..shape };
        let gate_up_len = if shape.is_gated { without_gate.c_elements() } else { 0 };
        Ok(Self {
            baseline: Kernel::with_variant(&stream, without_gate, ExpertGemmVariant::Baseline)?,
            grouped: Kernel::with_variant(&stream, shape, ExpertGemmVariant::Grouped)?,
            expert_offsets: Buffer::from_slice(&stream, &offsets(&rows_of))?,
            a: Buffer::from_slice(&stream, &a)?,
            bs: bs.collect::<Result<_, _>>()?,
            gate_up: device.alloc(gate_up_len)?,
            c: device.alloc(shape.c_elements())?,
            host_operands: [a, b],
            shape,
            rows_of,
            stream,
        })
    }

    /// The first product and the gate, apart from each other.
    fn run_baseline(&self, args: ExpertGemmArgs<'_>) -> Result<()> {
        if !self.shape.is_gated {
            return Ok(self.baseline.run(&self.stream, args)?);
        }
        self.baseline.run(&self.stream, ExpertGemmArgs { c: &self.gate_up, ..args })?;
        let ExpertGemmShape { num_rows, n, k, .. } = self.shape;
        let gate = SharedExpertShape { num_tokens: num_rows, hidden: k, intermediate: n };
        Ok(silu_mul(&self.stream, gate, &self.gate_up, &self.c)?)
    }
}

impl Products for Experts {
    type Weight = bf16;

    fn stream(&self) -> &Stream {
        &self.stream
    }

    fn work(&self) -> Work {
        self.shape.work(&self.rows_of)
    }

    fn num_inputs(&self) -> usize {
        self.bs.len()
    }

    fn last_weights(&self) -> (&Buffer<bf16>, usize) {
        (&self.bs[self.bs.len() - 1], self.shape.k as usize)
    }

    fn output(&self) -> &Buffer<bf16> {
        &self.c
    }

    fn num_columns(&self) -> usize {
        self.shape.n as usize
    }

    fn tolerance(&self) -> Tolerance {
        if self.shape.is_gated { TOLERANCE } else { Tolerance::BF16 }
    }

    fn run(&self, variant: Variant, input: usize) -> Result<()> {
        let args = ExpertGemmArgs {
            a: &self.a,
            b: &self.bs[input],
            expert_offsets: &self.expert_offsets,
            c: &self.c,
        };
        match variant {
            Variant::Baseline => self.run_baseline(args),
            Variant::Optimized => Ok(self.grouped.run(&self.stream, args)?),
        }
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        let [a, b] = &self.host_operands;
        let (n, k) = (self.shape.b_rows(), self.shape.k);
        let mut rest = a.as_slice();
        let mut c = Vec::with_capacity(self.shape.c_elements());
        for (&m, b) in self.rows_of.iter().zip(b.chunks_exact(n as usize * k as usize)) {
            let rows = rest.split_off(..m as usize * k as usize).context("rows of all experts")?;
            if m == 0 {
                continue;
            }
            let of_expert = exact_product(&self.stream, GemmShape { m, n, k }, rows, b)?;
            match self.shape.is_gated {
                true => c.extend(gate(&of_expert, self.shape.n as usize)),
                false => c.extend(of_expert),
            }
        }
        Ok(c)
    }
}
