//! Pair `moe_permute`: pairs sorted by expert, tokens packed in that order, and added up again.

use anyhow::{Context, Result, anyhow, ensure};
use cuda_std::float::E4m3;
use gpu_kernels::contract::Work;
use gpu_kernels::moe_permute::contract::PermuteShape;
use gpu_kernels::moe_permute::reference::{Case, Permutation as Expected, Routing, permute};
use gpu_kernels::token_pack::contract::PackShape;
use gpu_kernels::token_rows::{RowFormat, TokenRows};
use gpu_kernels::token_unpack::SCALE_BLOCK;
use gpu_kernels::token_unpack::contract::UnpackShape;
use gpu_kernels::token_unpack::reference as token_unpack;
use half::bf16;
use rayon::prelude::*;

use super::num_cold_inputs;
use crate::device::{Buffer, Device, Stream};
use crate::harness::ceilings::HBM_COPY;
use crate::harness::results::Phase;
use crate::harness::{
    Batch, Demand, Mode, Pair, Prepared, Sampler, Shape, ShapeSet, Variant, statistics,
    stream_sampler,
};
use crate::kernels::moe_permute::{Permutation, Permute, PermuteVariant};
use crate::kernels::token_pack::{Pack, PackArgs, PackVariant};
use crate::kernels::token_unpack::{Unpack, UnpackArgs, UnpackElement, UnpackVariant};

/// Most sets of inputs: those of few small tokens stay in a cache.
const MAX_INPUTS: usize = 128;
/// Samples of a phase, and calls of a sample.
const PHASE_SAMPLES: usize = 9;
const PHASE_CALLS: usize = 32;
/// An element that no token has: those are below 1.
const CORRUPTED: f32 = 1e3;

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "moe_permute",
    about: "sorts (token, slot) pairs by expert, packs tokens in that order, adds them up by weight: \
        histogram, scan, scatter, gather, and sums by element, against one sort, a fan-out, and \
        sums of 16 bytes",
    sides: ["seven steps", "three launches"],
    rooms: &["moe_permute", "token_pack", "token_unpack"],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    use Routing::{Skewed, Uniform};
    let sizes = PermuteShape::new;
    match set {
        // The published chapter gathers once for each expert, with counts on the host.
        ShapeSet::SeedParity => Vec::new(),
        ShapeSet::Real => vec![
            shape::<bf16>("DeepSeek-V3, 128 tokens", sizes(128, 8, 256), 7168, Uniform),
            shape::<bf16>("DeepSeek-V3, 4096 tokens", sizes(4096, 8, 256), 7168, Uniform),
            shape::<bf16>("DeepSeek-V3, 4096, skewed", sizes(4096, 8, 256), 7168, Skewed),
            shape::<bf16>("Qwen1.5-MoE, 4096 tokens", sizes(4096, 4, 60), 2048, Uniform),
            shape::<E4m3>("DeepSeek-V3, 128 tokens, fp8", sizes(128, 8, 256), 7168, Uniform),
            shape::<E4m3>("DeepSeek-V3, 4096 tokens, fp8", sizes(4096, 8, 256), 7168, Uniform),
        ],
        ShapeSet::Tiny => vec![
            shape::<bf16>("40 tokens, 16 experts", sizes(40, 4, 16), 64, Uniform),
            shape::<bf16>("9 tokens, 60 experts, skewed", sizes(9, 8, 60), 136, Skewed),
            shape::<E4m3>("40 tokens, 16 experts, fp8", sizes(40, 4, 16), 272, Uniform),
        ],
    }
}

fn shape<T: TokenElement>(
    name: &str,
    permute: PermuteShape,
    hidden: u32,
    routing: Routing,
) -> Shape {
    Shape::new(name, 1, move |devices, seed| {
        PermuteBench::<T>::new(&devices[0], permute, hidden, routing, seed)
    })
}

/// An element of tokens that are drawn here.
pub trait TokenElement: UnpackElement + Send + Sync {
    /// Not a number.
    const NAN: Self;

    /// The nearest.
    fn from_f32(value: f32) -> Self;

    /// Exact, without the scale.
    fn to_f64(self) -> f64;
}

impl TokenElement for bf16 {
    const NAN: Self = bf16::NAN;

    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }

    fn to_f64(self) -> f64 {
        bf16::to_f64(self)
    }
}

impl TokenElement for E4m3 {
    const NAN: Self = E4m3::NAN;

    fn from_f32(value: f32) -> Self {
        E4m3::from_f32(value)
    }

    fn to_f64(self) -> f64 {
        E4m3::to_f32(self).into()
    }
}

/// Tokens in device memory, as often as calls must find them cold, and what they become.
pub struct PermuteBench<T> {
    stream: Stream,
    permute: Permute,
    pack: Pack,
    unpack: Unpack,
    inputs: Vec<Input<T>>,
    permutation: Permutation,
    rows: Buffer<T>,
    row_scales: Buffer<f32>,
    out: Buffer<bf16>,
}

struct Input<T> {
    expected: Expected,
    x: Vec<T>,
    /// None in bf16.
    x_scales: Vec<f32>,
    topk_weights: Vec<f32>,
    topk_ids_buffer: Buffer<i32>,
    x_buffer: Buffer<T>,
    x_scales_buffer: Buffer<f32>,
    topk_weights_buffer: Buffer<f32>,
}

impl<T: TokenElement> Input<T> {
    fn new(stream: &Stream, case: &Case, rows: &TokenRows, seed: u64) -> Result<Self> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let shape = &case.shape;
        let x: Vec<T> =
            (0..rows.x_elements()).map(|_| T::from_f32(2.0 * rng.f32() - 1.0)).collect();
        let x_scales: Vec<f32> = (0..rows.x_scales()).map(|_| rng.f32()).collect();
        let topk_weights: Vec<f32> = (0..shape.num_pairs()).map(|_| rng.f32()).collect();
        let topk_ids = case.topk_ids(seed);
        Ok(Self {
            expected: permute(shape, &topk_ids),
            topk_ids_buffer: Buffer::from_slice(stream, &topk_ids)?,
            x_buffer: Buffer::from_slice(stream, &x)?,
            x_scales_buffer: Buffer::from_slice(stream, &x_scales)?,
            topk_weights_buffer: Buffer::from_slice(stream, &topk_weights)?,
            x,
            x_scales,
            topk_weights,
        })
    }

    /// An element of a token, with its scale.
    fn element(&self, rows: &TokenRows, token: usize, i: usize) -> f64 {
        let element = self.x[token * rows.hidden as usize + i].to_f64();
        let first_scale = token * rows.num_scales() as usize;
        match self.x_scales.get(first_scale + i / SCALE_BLOCK as usize) {
            Some(&scale) => element * f64::from(scale),
            None => element,
        }
    }
}

/// A part of what both sides do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Sorts the pairs.
    Permute,
    /// Copies tokens to their rows.
    Pack,
    /// Adds rows up.
    Unpack,
}

impl Part {
    const ALL: [Self; 3] = [Self::Permute, Self::Pack, Self::Unpack];

    fn name(self) -> &'static str {
        match self {
            Self::Permute => "permute",
            Self::Pack => "pack",
            Self::Unpack => "unpack",
        }
    }
}

impl<T: TokenElement> PermuteBench<T> {
    /// Draws tokens of `hidden` elements that go where `routing` says.
    ///
    /// # Errors
    /// Too little memory, sizes that the kernels do not take.
    pub fn new(
        device: &Device,
        shape: PermuteShape,
        hidden: u32,
        routing: Routing,
        seed: u64,
    ) -> Result<Self> {
        let stream = device.new_stream()?;
        let rows = TokenRows {
            num_tokens: shape.num_tokens,
            top_k: shape.top_k,
            hidden,
            format: T::FORMAT,
            num_max_rows: shape.num_max_rows() as u32,
        };
        let num_local_experts = shape.num_local_experts() as u32;
        let pack = Pack::new(PackShape { rows, num_local_experts, zero_padding: false })?;
        let unpack = Unpack::new(UnpackShape { rows, has_addend: false })?;
        let case = Case { name: "pair", shape, num_experts: shape.end_expert, routing };
        let num_inputs = num_cold_inputs(device, pack.shape().work(0))?.min(MAX_INPUTS);
        let mut rng = fastrand::Rng::with_seed(seed);
        let inputs = (0..num_inputs).map(|_| Input::new(&stream, &case, &rows, rng.u64(..)));
        Ok(Self {
            inputs: inputs.collect::<Result<_>>()?,
            permute: Permute::new(device, shape)?,
            permutation: Permutation::new(device, shape)?,
            rows: device.alloc_zeroed(rows.rows_elements())?,
            row_scales: device.alloc_zeroed(rows.rows_scales())?,
            out: device.alloc(rows.x_elements())?,
            pack,
            unpack,
            stream,
        })
    }

    /// Where it all runs.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Does one part for one set of inputs; parts after the first take what those before left.
    ///
    /// # Errors
    /// What the device says.
    pub fn run(&self, variant: Variant, part: Part, input: usize) -> Result<()> {
        let (stream, permutation) = (&self.stream, &self.permutation);
        let is_baseline = variant == Variant::Baseline;
        let Input { topk_ids_buffer, x_buffer, x_scales_buffer, topk_weights_buffer, .. } =
            &self.inputs[input];
        let has_scales = T::FORMAT == RowFormat::Fp8;
        let row_scales = has_scales.then_some(&self.row_scales);
        match part {
            Part::Permute => {
                let variant =
                    if is_baseline { PermuteVariant::Baseline } else { PermuteVariant::Grid };
                self.permute.run(stream, variant, topk_ids_buffer, permutation)?;
            }
            Part::Pack => {
                let variant = if is_baseline { PackVariant::Baseline } else { PackVariant::Fanout };
                let (x, rows) = (x_buffer, &self.rows);
                let x_scales = has_scales.then_some(x_scales_buffer);
                let args = PackArgs { x, x_scales, permutation, rows, row_scales };
                self.pack.run(stream, variant, &args)?;
            }
            Part::Unpack => {
                let variant =
                    if is_baseline { UnpackVariant::Baseline } else { UnpackVariant::Wide };
                let args = UnpackArgs {
                    rows: &self.rows,
                    row_scales,
                    pair_rows: permutation.pair_rows(),
                    topk_weights: topk_weights_buffer,
                    addend: None,
                    out: &self.out,
                };
                self.unpack.run(stream, variant, &args)?;
            }
        }
        Ok(())
    }

    fn run_all(&self, variant: Variant, input: usize) -> Result<()> {
        Part::ALL.into_iter().try_for_each(|part| self.run(variant, part, input))
    }

    fn num_rows(&self) -> u64 {
        let input = &self.inputs[0];
        input.expected.pair_rows.iter().filter(|&&row| row >= 0).count() as u64
    }

    fn verify_input(&self, variant: Variant, input: usize) -> Result<()> {
        let stream = &self.stream;
        let Input { expected, x, x_scales, topk_weights, .. } = &self.inputs[input];
        stream.fill(self.permutation.pair_rows(), -7)?;
        stream.fill(self.permutation.row_pairs(), -7)?;
        stream.fill(&self.rows, T::NAN)?;
        stream.fill(&self.row_scales, f32::NAN)?;
        stream.fill(&self.out, bf16::NAN)?;
        self.run_all(variant, input)?;
        let mut got = Expected {
            expert_counts: stream.download(self.permutation.expert_counts())?,
            expert_offsets: stream.download(self.permutation.expert_offsets())?,
            pair_rows: stream.download(self.permutation.pair_rows())?,
            row_pairs: stream.download(self.permutation.row_pairs())?,
        };
        let beyond = got.row_pairs.split_off(expected.row_pairs.len());
        ensure!(beyond.iter().all(|&pair| pair == -7), "rows beyond the end have pairs");
        ensure!(got == *expected, "the permutation is another one");

        let rows = stream.download(&self.rows)?;
        let sizes = self.pack.shape().rows;
        let (hidden, top_k) = (sizes.hidden as usize, sizes.top_k as usize);
        let wrong = rows.par_chunks(hidden).enumerate().find_first(|(row, got)| {
            match expected.row_pairs.get(*row) {
                Some(&pair) => {
                    let token = pair as usize / top_k;
                    let want = &x[token * hidden..][..hidden];
                    bytemuck::cast_slice::<_, u8>(got) != bytemuck::cast_slice::<_, u8>(want)
                }
                None => got.iter().any(|element| !element.to_f64().is_nan()),
            }
        });
        ensure!(wrong.is_none(), "row {} is not its token", wrong.map_or(0, |(row, _)| row));
        let row_scales = stream.download(&self.row_scales)?;
        let num_scales = sizes.num_scales() as usize;
        for (row, &pair) in expected.row_pairs.iter().enumerate() {
            let token = pair as usize / top_k;
            let (got, want) = (row * num_scales, token * num_scales);
            let is_right = row_scales[got..][..num_scales] == x_scales[want..][..num_scales];
            ensure!(is_right, "scales of row {row} are not its token's");
        }

        let out = stream.download(&self.out)?;
        let shape = self.unpack.shape();
        let one = UnpackShape { rows: TokenRows { num_tokens: 1, ..shape.rows }, ..*shape };
        out.par_chunks(hidden).enumerate().try_for_each(|(token, out)| {
            let pairs = token * top_k..(token + 1) * top_k;
            let out: Vec<f64> = out.iter().map(|element| element.to_f64()).collect();
            let element = |_: usize, i: usize| self.inputs[input].element(&sizes, token, i);
            let (rows, weights) = (&expected.pair_rows[pairs.clone()], &topk_weights[pairs]);
            token_unpack::check(&one, rows, weights, element, &[], &out)
                .map_err(|off| anyhow!("of token {token}: {off}"))
        })
    }
}

impl<T: TokenElement> Prepared for PermuteBench<T> {
    fn work(&self, _variant: Variant) -> Work {
        let num_rows = self.num_rows();
        let (permute, pack) = (self.permute.shape().work(), self.pack.shape().work(num_rows));
        let unpack = self.unpack.shape().work(num_rows);
        Work {
            read_bytes: permute.read_bytes + pack.read_bytes + unpack.read_bytes,
            written_bytes: permute.written_bytes + pack.written_bytes + unpack.written_bytes,
            flops: unpack.flops,
        }
    }

    fn demands(&self) -> Vec<Demand> {
        let Work { read_bytes, written_bytes, .. } = Prepared::work(self, Variant::Optimized);
        vec![Demand { ceiling: HBM_COPY, amount: read_bytes + written_bytes }]
    }

    fn num_inputs(&self) -> usize {
        self.inputs.len()
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        stream_sampler(&self.stream, batch, move |input| self.run_all(variant, input))
    }

    fn verify(&self, variant: Variant) -> Result<String> {
        for input in 0..self.inputs.len() {
            self.verify_input(variant, input)
                .with_context(|| format!("inputs {input}, {variant}"))?;
        }
        Ok(format!(
            "permutation and {} rows exactly, {} sums within {} of f64, {} times",
            self.num_rows(),
            self.out.len(),
            token_unpack::RELATIVE_TOLERANCE,
            self.inputs.len()
        ))
    }

    fn corrupt(&mut self) -> Result<()> {
        let input = self.inputs.last().context("no inputs")?;
        let last = input.x_buffer.len() - 1;
        let corrupted = [T::from_f32(CORRUPTED)];
        Ok(self.stream.upload(&corrupted, input.x_buffer.slice(last..))?)
    }

    /// Each part again and again. Rows and sums of another input's permutation take as long.
    fn phases(&self) -> Result<Vec<Phase>> {
        let num_inputs = self.inputs.len();
        let num_calls = PHASE_CALLS.next_multiple_of(num_inputs);
        let batch = Batch { mode: Mode::Steady, num_calls, num_inputs };
        let phase = |part: Part| {
            let mut sample = stream_sampler(&self.stream, batch, move |input| {
                self.run(Variant::Optimized, part, input)
            })?;
            let samples = (0..PHASE_SAMPLES).map(|_| sample()).collect::<Result<Vec<_>>>()?;
            Ok(Phase { name: part.name().to_owned(), us: statistics::estimate(&samples).median })
        };
        Part::ALL.into_iter().map(phase).collect()
    }
}
