//! The oracle of a layer, weights from a seed, and what ranks bring: what tests and pairs share.

use std::ops::Range;

use gpu_kernels::contract::Work;
use gpu_kernels::dispatch::reference::RankTokens;
use gpu_kernels::gemm::contract::GemmShape;
use gpu_kernels::gemm::reference::{Tolerance, product, random};
use gpu_kernels::shared_expert::reference::gate;
use half::bf16;
use rayon::prelude::*;

use super::{LayerShape, LayerWeights};
use crate::device::{Buffer, DeviceError, Stream};

/// How far `out` may be from the oracle's, of weights and tokens from here. `h` and each sum are
/// rounded to bf16 on the way, by 2^-9 at most each; the absolute part is for sums that cancel.
pub const TOLERANCE: Tolerance = Tolerance { relative: 1e-2, absolute: 3e-2 };

/// Elements between the weights of one expert and of the next, but for a row.
const SHIFT: usize = 8;

/// The weights of all experts, such that outputs are of order 1.
///
/// Experts are windows of one long random sequence, a row and some columns apart: no two of them
/// compute the same, and 256 of a large model fit into the host's memory and are soon made.
#[derive(Clone)]
pub struct HostWeights {
    shape: LayerShape,
    gate_up: Vec<bf16>,
    down: Vec<bf16>,
    shared_gate_up: Vec<bf16>,
    shared_down: Vec<bf16>,
}

impl HostWeights {
    /// Weights from a seed, drawn by `draw`: seed, elements, variance.
    pub fn with(
        shape: &LayerShape,
        seed: u64,
        draw: impl Fn(u64, usize, f64) -> Vec<bf16>,
    ) -> Self {
        let hidden = shape.exchange.hidden;
        let last = shape.exchange.num_experts as usize - 1;
        // silu(g) * u has a third of the variance of its factors.
        let variances =
            |intermediate: u32| [1.0 / f64::from(hidden), 3.0 / f64::from(intermediate)];
        let [up, down] = variances(shape.intermediate);
        let [shared_up, shared_down] = variances(shape.shared_intermediate);
        let of = |n: u32| n as usize * hidden as usize;
        let [up_stride, down_stride] = strides(shape);
        Self {
            gate_up: draw(seed, 2 * of(shape.intermediate) + last * up_stride, up),
            down: draw(!seed, of(shape.intermediate) + last * down_stride, down),
            shared_gate_up: draw(seed ^ 1 << 40, 2 * of(shape.shared_intermediate), shared_up),
            shared_down: draw(seed ^ 1 << 41, of(shape.shared_intermediate), shared_down),
            shape: *shape,
        }
    }

    /// Weights from a seed.
    pub fn new(shape: &LayerShape, seed: u64) -> Self {
        Self::with(shape, seed, random)
    }

    /// Gate and up `[2 intermediate, hidden]`, and down `[hidden, intermediate]`, of an expert.
    fn expert(&self, expert: usize) -> [Window; 2] {
        let [up_stride, down_stride] = strides(&self.shape);
        let len = self.shape.intermediate as usize * self.shape.exchange.hidden as usize;
        let window = |sequence, begin, len| Window { sequence, elements: begin..begin + len };
        [window(0, expert * up_stride, 2 * len), window(1, expert * down_stride, len)]
    }

    /// The same of the shared expert.
    fn shared(&self) -> [Window; 2] {
        let whole =
            |sequence: usize| Window { sequence, elements: 0..self.sequences()[sequence].len() };
        [whole(2), whole(3)]
    }

    /// All there is: what [`Window`]s are of.
    pub fn sequences(&self) -> [&[bf16]; 4] {
        [&self.gate_up, &self.down, &self.shared_gate_up, &self.shared_down]
    }

    /// The weights of a window.
    pub fn window(&self, window: &Window) -> &[bf16] {
        &self.sequences()[window.sequence][window.elements.clone()]
    }

    /// The weights of a rank that has these experts, in its memory.
    ///
    /// # Errors
    /// Too little memory.
    pub fn of_rank(&self, stream: &Stream, experts: &[usize]) -> Result<LayerWeights, DeviceError> {
        let [up_stride, down_stride] = strides(&self.shape);
        let windows = |all: &[bf16], len: usize, stride: usize| {
            let all = Buffer::from_slice(stream, all)?;
            let weights = stream.device().alloc(experts.len() * len)?;
            for (place, expert) in experts.iter().enumerate() {
                let window = all.slice(expert * stride..expert * stride + len);
                stream.copy(window, weights.slice(place * len..(place + 1) * len))?;
            }
            stream.synchronize()?;
            Ok::<_, DeviceError>(weights)
        };
        let len = self.shape.intermediate as usize * self.shape.exchange.hidden as usize;
        Ok(LayerWeights {
            gate_up: windows(&self.gate_up, 2 * len, up_stride)?,
            down: windows(&self.down, len, down_stride)?,
            shared_gate_up: Buffer::from_slice(stream, &self.shared_gate_up)?,
            shared_down: Buffer::from_slice(stream, &self.shared_down)?,
        })
    }
}

/// One matrix of the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Which of [`HostWeights::sequences`].
    pub sequence: usize,
    /// Its elements.
    pub elements: Range<usize>,
}

/// From one expert's weights to the next one's.
fn strides(shape: &LayerShape) -> [usize; 2] {
    [shape.exchange.hidden as usize + SHIFT, shape.intermediate as usize + SHIFT]
}

/// What a layer of one rank's tokens gives, in f64; `h` rounded to bf16. `[num_tokens, hidden]`
///
/// `multiply` gives `a b^T` for a shape, `b` being a window of the weights, exactly or nearly so.
///
/// # Errors
/// What `multiply` says.
pub fn outputs<E>(
    weights: &HostWeights,
    tokens: &RankTokens,
    mut multiply: impl FnMut(GemmShape, &[bf16], &Window) -> Result<Vec<f64>, E>,
) -> Result<Vec<f64>, E> {
    let shape = &weights.shape;
    let (hidden, topk) = (shape.exchange.hidden, shape.exchange.topk as usize);
    let width = hidden as usize;
    let mut expert = |x: &[bf16], [gate_up, down]: [Window; 2], intermediate: u32| {
        let m = (x.len() / width) as u32;
        let gates = multiply(GemmShape { m, n: 2 * intermediate, k: hidden }, x, &gate_up)?;
        let of_row = |row| gate(row, intermediate as usize).into_iter().map(bf16::from_f64);
        let rows = gates.par_chunks_exact(2 * intermediate as usize);
        let h: Vec<bf16> = rows.flat_map_iter(of_row).collect();
        multiply(GemmShape { m, n: hidden, k: intermediate }, &h, &down)
    };
    if tokens.x.is_empty() {
        return Ok(Vec::new());
    }
    let mut out = expert(&tokens.x, weights.shared(), shape.shared_intermediate)?;
    for id in 0..shape.exchange.num_experts as usize {
        let pairs: Vec<usize> =
            (0..tokens.topk_ids.len()).filter(|&pair| tokens.topk_ids[pair] == id as i32).collect();
        if pairs.is_empty() {
            continue;
        }
        let rows: Vec<&[bf16]> =
            pairs.iter().map(|pair| &tokens.x[pair / topk * width..][..width]).collect();
        let y = expert(&rows.concat(), weights.expert(id), shape.intermediate)?;
        out.par_chunks_exact_mut(width).enumerate().for_each(|(token, sums)| {
            let first = pairs.partition_point(|&pair| pair < token * topk);
            let own = pairs[first..].iter().take_while(|&&pair| pair < (token + 1) * topk);
            for (&pair, y) in own.zip(y[first * width..].chunks_exact(width)) {
                let weight = f64::from(tokens.topk_weights[pair]);
                sums.iter_mut().zip(y).for_each(|(sum, y)| *sum += weight * y);
            }
        });
    }
    Ok(out)
}

/// As [`outputs`], multiplied here.
pub fn exact_outputs(weights: &HostWeights, tokens: &RankTokens) -> Vec<f64> {
    let multiplied: Result<_, std::convert::Infallible> =
        outputs(weights, tokens, |shape, a, b| Ok(product(a, weights.window(b), shape.k as usize)));
    let Ok(out) = multiplied;
    out
}

/// What the experts compute of the rows that come to a rank, and the shared expert of its tokens:
/// weights of experts that have rows, and all activations, each once.
pub fn work(shape: &LayerShape, rows_of: &[u32]) -> Work {
    let shared = shape.shared().map_or(Work::default(), |shared| shared.work());
    let [gate_up, down] = [shape.expert_gate_up(), shape.expert_down()].map(|of| of.work(rows_of));
    let parts = [shared, gate_up, down];
    Work {
        read_bytes: parts.iter().map(|part| part.read_bytes).sum(),
        written_bytes: parts.iter().map(|part| part.written_bytes).sum(),
        flops: parts.iter().map(|part| part.flops).sum(),
    }
}
