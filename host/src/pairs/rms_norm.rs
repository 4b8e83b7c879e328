//! Pair `rms_norm`: the residual added and rows normalised, in two launches against one.

use anyhow::{Context, Result, anyhow, ensure};
use gpu_kernels::contract::Work;
use gpu_kernels::rms_norm::contract::RmsNormShape;
use gpu_kernels::rms_norm::reference::RmsNormProblem;
use half::bf16;

use super::num_cold_inputs;
use crate::device::{Buffer, Device, Stream};
use crate::harness::ceilings::HBM_COPY;
use crate::harness::{
    Batch, Demand, Pair, Prepared, Sampler, Shape, ShapeSet, Variant, stream_sampler,
};
use crate::kernels::rms_norm::{RmsNormArgs, add, add_rms_norm, rms_norm};

/// Most sets of inputs: those of few rows stay in a cache.
const MAX_INPUTS: usize = 256;

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "rms_norm",
    about: "the residual added and rows divided by their root mean square: a launch for each, against \
        one that reads a row once",
    sides: ["two launches", "one launch"],
    rooms: &["rms_norm"],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    match set {
        // The published chapter has no norm.
        ShapeSet::SeedParity => Vec::new(),
        ShapeSet::Real => vec![
            shape("decode, 1 x 4096", 1, 4096),
            shape("decode, 32 x 2048", 32, 2048),
            shape("decode, 256 x 8192", 256, 8192),
            shape("prefill, 8192 x 2048", 8192, 2048),
            shape("prefill, 8192 x 4096", 8192, 4096),
            shape("prefill, 4096 x 8192", 4096, 8192),
        ],
        ShapeSet::Tiny => vec![shape("5 x 2056", 5, 2056)],
    }
}

fn shape(name: &str, num_rows: u32, row_len: u32) -> Shape {
    let shape = RmsNormShape { num_rows, row_len, eps: 1e-6 };
    Shape::new(name, 1, move |devices, seed| NormBench::new(&devices[0], shape, seed))
}

/// Rows in device memory, as often as calls must find them cold: the same contents, each time
/// elsewhere.
struct NormBench {
    problem: RmsNormProblem,
    stream: Stream,
    weight: Buffer<bf16>,
    inputs: Vec<Rows>,
}

struct Rows {
    x: Buffer<bf16>,
    delta: Buffer<bf16>,
    out: Buffer<bf16>,
}

impl NormBench {
    fn new(device: &Device, shape: RmsNormShape, seed: u64) -> Result<Self> {
        let stream = device.new_stream()?;
        let problem = RmsNormProblem::new(shape, seed);
        let rows = |_| -> Result<Rows> {
            Ok(Rows {
                x: Buffer::from_slice(&stream, &problem.x)?,
                delta: Buffer::from_slice(&stream, &problem.delta)?,
                out: device.alloc(shape.elements())?,
            })
        };
        let num_inputs = num_cold_inputs(device, shape.add_work())?.min(MAX_INPUTS);
        Ok(Self {
            inputs: (0..num_inputs).map(rows).collect::<Result<_>>()?,
            weight: Buffer::from_slice(&stream, &problem.weight)?,
            stream,
            problem,
        })
    }

    /// Each call adds to what the last one left.
    fn run(&self, variant: Variant, input: usize) -> Result<()> {
        let (shape, Rows { x, delta, out }) = (self.problem.shape, &self.inputs[input]);
        let args = RmsNormArgs { x, weight: &self.weight, out };
        match variant {
            Variant::Baseline => {
                add(&self.stream, shape, x, delta)?;
                rms_norm(&self.stream, shape, args)?;
            }
            Variant::Optimized => add_rms_norm(&self.stream, shape, delta, args)?,
        }
        Ok(())
    }
}

impl Prepared for NormBench {
    fn work(&self, _variant: Variant) -> Work {
        self.problem.shape.add_work()
    }

    fn demands(&self) -> Vec<Demand> {
        let Work { read_bytes, written_bytes, .. } = self.problem.shape.add_work();
        vec![Demand { ceiling: HBM_COPY, amount: read_bytes + written_bytes }]
    }

    fn num_inputs(&self) -> usize {
        self.inputs.len()
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        stream_sampler(&self.stream, batch, move |input| self.run(variant, input))
    }

    fn verify(&self, variant: Variant) -> Result<String> {
        let sums = self.problem.sums();
        for (i, Rows { x, out, .. }) in self.inputs.iter().enumerate() {
            self.stream.upload(&self.problem.x, x)?;
            self.stream.fill(out, bf16::NAN)?;
            self.run(variant, i)?;
            let (x, out) = (self.stream.download(x)?, self.stream.download(out)?);
            let off = x.iter().zip(&sums).position(|(got, want)| got != want);
            ensure!(off.is_none(), "inputs {i}, {variant}: x{off:?} is not the rounded sum");
            self.problem
                .check(&sums, &out)
                .map_err(|off| anyhow!("inputs {i}, {variant}: out: {off}"))?;
        }
        Ok(format!(
            "{} sums exact, and as many quotients within two roundings of f64, {} times",
            sums.len(),
            self.inputs.len()
        ))
    }

    fn corrupt(&mut self) -> Result<()> {
        let Rows { delta, .. } = self.inputs.last().context("no inputs")?;
        Ok(self.stream.fill(delta.slice(delta.len() - 1..), bf16::from_f32(1e3))?)
    }
}
