//! New tokens in the memory of a device, as often as calls must find them cold.

use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use gpu_kernels::contract::Work;
use gpu_kernels::kv_append::contract::AppendShape;
use gpu_kernels::kv_append::reference::{Case, append_tokens, cos_sin_cache, rotate_tokens};
use rayon::prelude::*;

use super::{BatchElement, num_cold_inputs};
use crate::device::{Buffer, Device, Stream};
use crate::kernels::kv_append::{Append, AppendArgs, AppendElement, RotateQArgs};
use crate::kv::memory::KvMemory;

/// Base of the rotation's angles, as in Llama.
const THETA: f64 = 10_000.0;
/// Added to a half unit in the last place: the arithmetic in f32 before it.
const ABSOLUTE_TOLERANCE: f64 = 1e-6;
/// A value that no input holds: those are below 2.
const CORRUPTED: f32 = 1e3;

/// New tokens, the pages that they go to, and the rotation of their positions.
pub struct AppendBench<T> {
    case: Case,
    stream: Stream,
    cos_sin: Vec<f32>,
    cos_sin_cache: Buffer<f32>,
    /// `[num_tokens, num_qo_heads, head_dim]`
    q: Vec<T>,
    /// `[num_tokens, num_kv_heads, head_dim]`
    k: Vec<T>,
    /// `[num_tokens, num_kv_heads, head_dim]`
    v: Vec<T>,
    /// The same contents, each time elsewhere.
    inputs: Vec<Tokens<T>>,
    k_rotated: Buffer<T>,
    q_out: Buffer<T>,
    oracle: OnceLock<Oracle>,
}

/// New tokens and their pages in device memory.
struct Tokens<T> {
    memory: KvMemory,
    /// Takes K as it is and rotates it.
    rotating: Append,
    /// Takes K that is rotated already.
    plain: Append,
    q: Buffer<T>,
    k: Buffer<T>,
    v: Buffer<T>,
}

/// What there should be afterwards, in f64.
struct Oracle {
    q_out: Vec<f64>,
    /// `None` where nothing is written.
    pages: Vec<Option<f64>>,
}

impl<T: BatchElement + AppendElement> AppendBench<T> {
    /// Puts new tokens of a case whose pages lie in one location into the memory of `device`, so
    /// often that no cache holds all of it.
    ///
    /// # Errors
    /// Too little memory, a case that the kernels do not take.
    pub fn new(device: &Device, case: &Case, seed: u64) -> Result<Self> {
        let stream = device.new_stream()?;
        let AppendShape { page, rope, .. } = case.shape;
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut random =
            |len| -> Vec<T> { (0..len).map(|_| T::from_f32(4.0 * rng.f32() - 2.0)).collect() };
        let q = random(case.shape.q_elements(case.num_qo_heads));
        let k = random(case.shape.kv_elements());
        let v = random(case.shape.kv_elements());
        let num_max_positions = rope.map_or(0, |rope| rope.num_max_positions);
        let cos_sin = cos_sin_cache(num_max_positions, page.head_dim, THETA);
        let num_inputs = num_cold_inputs(device, work(case))?;
        let inputs = (0..num_inputs).map(|_| Tokens::new(&stream, case, [&q, &k, &v]));
        Ok(Self {
            inputs: inputs.collect::<Result<_>>()?,
            cos_sin_cache: Buffer::from_slice(&stream, &cos_sin)?,
            k_rotated: device.alloc(k.len())?,
            q_out: device.alloc(q.len())?,
            case: case.clone(),
            stream,
            cos_sin,
            q,
            k,
            v,
            oracle: OnceLock::new(),
        })
    }

    /// Where it all runs.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// How often the tokens lie in memory.
    pub fn num_inputs(&self) -> usize {
        self.inputs.len()
    }

    /// What appending them must do.
    pub fn work(&self) -> Work {
        work(&self.case)
    }

    /// Rotates q.
    ///
    /// # Errors
    /// What the device says; here and below.
    pub fn rotate_q(&self, input: usize) -> Result<()> {
        self.rotate(input, self.case.num_qo_heads, &self.inputs[input].q, &self.q_out)
    }

    /// Rotates K into a tensor of its own.
    pub fn rotate_k(&self, input: usize) -> Result<()> {
        let num_kv_heads = self.case.shape.page.num_kv_heads;
        self.rotate(input, num_kv_heads, &self.inputs[input].k, &self.k_rotated)
    }

    fn rotate(&self, input: usize, num_heads: u32, q: &Buffer<T>, q_out: &Buffer<T>) -> Result<()> {
        let args = RotateQArgs { q, q_out, cos_sin_cache: &self.cos_sin_cache };
        Ok(self.inputs[input].rotating.rotate_q(&self.stream, num_heads, &args)?)
    }

    /// Copies the K that [`rotate_k`](Self::rotate_k) left, and V, into their pages.
    pub fn append_rotated(&self, input: usize) -> Result<()> {
        let Tokens { memory, plain, v, .. } = &self.inputs[input];
        let args = AppendArgs { memory, k: &self.k_rotated, v, cos_sin_cache: None };
        Ok(plain.run(&self.stream, &args)?)
    }

    /// Writes K into its pages, rotated on the way, and V.
    pub fn rotate_and_append(&self, input: usize) -> Result<()> {
        let Tokens { memory, rotating, k, v, .. } = &self.inputs[input];
        let args = AppendArgs { memory, k, v, cos_sin_cache: Some(&self.cos_sin_cache) };
        Ok(rotating.run(&self.stream, &args)?)
    }

    /// Compares what `run` makes of every set of inputs with the oracle: all of q, and all of the
    /// pages, which hold NaN before, and still where no new token lies.
    ///
    /// # Errors
    /// The first element that is off.
    pub fn verify(&self, run: impl Fn(usize) -> Result<()>) -> Result<String> {
        let oracle = self.oracle.get_or_init(|| self.rotate_and_append_in_f64());
        let nan = T::from_f32(f32::NAN);
        for (i, Tokens { memory, .. }) in self.inputs.iter().enumerate() {
            self.stream.fill(&self.q_out, nan)?;
            self.stream.fill(memory.pages(0, 0, memory.pool_pages()[0]), bits(nan))?;
            run(i)?;
            let q_out = self.stream.download(&self.q_out)?;
            let pages = self.stream.download(memory.pages(0, 0, memory.pool_pages()[0]))?;
            let q_out_off = first_off(q_out.len(), |j| (q_out[j], Some(oracle.q_out[j])));
            let pages_off =
                first_off(pages.len(), |j| (bytemuck::cast::<u16, T>(pages[j]), oracle.pages[j]));
            for (what, off) in [("q_out", q_out_off), ("pages", pages_off)] {
                ensure!(off.is_none(), "inputs {i}: {what}{}", off.unwrap_or_default());
            }
        }
        Ok(format!(
            "{} elements of q and {} of pages rounded once from f64, {} times",
            oracle.q_out.len(),
            oracle.pages.iter().flatten().count(),
            self.inputs.len(),
        ))
    }

    fn rotate_and_append_in_f64(&self) -> Oracle {
        let values =
            |tensor: &[T]| -> Vec<f32> { tensor.iter().map(|x| x.to_f64() as f32).collect() };
        let (shape, lists, cos_sin) = (&self.case.shape, &self.case.lists(), &self.cos_sin);
        let (k, v) = (values(&self.k), values(&self.v));
        let pool_pages = &self.case.table.pages_of;
        let pages = append_tokens(shape, lists, pool_pages, &k, &v, cos_sin).concat();
        Oracle { q_out: rotate_tokens(shape, lists, &values(&self.q), cos_sin), pages }
    }

    /// Overwrites the last element of K, in the last of its places.
    ///
    /// # Errors
    /// What the device says.
    pub fn corrupt(&mut self) -> Result<()> {
        let Tokens { k, .. } = self.inputs.last().context("no inputs")?;
        Ok(self.stream.fill(k.slice(k.len() - 1..), T::from_f32(CORRUPTED))?)
    }
}

impl<T: BatchElement> Tokens<T> {
    fn new(stream: &Stream, case: &Case, [q, k, v]: [&[T]; 3]) -> Result<Self> {
        let (shape, lists) = (case.shape, case.lists());
        let device = std::slice::from_ref(stream.device());
        let memory = KvMemory::new(stream, device, shape.page, &case.table.pages_of, 0)?;
        Ok(Self {
            rotating: Append::upload(stream, shape, &lists, &memory)?,
            plain: Append::upload(stream, AppendShape { rope: None, ..shape }, &lists, &memory)?,
            memory,
            q: Buffer::from_slice(stream, q)?,
            k: Buffer::from_slice(stream, k)?,
            v: Buffer::from_slice(stream, v)?,
        })
    }
}

fn work(case: &Case) -> Work {
    let (append, rotate) = (case.shape.work(), case.shape.rotate_q_work(case.num_qo_heads));
    Work {
        read_bytes: append.read_bytes + rotate.read_bytes,
        written_bytes: append.written_bytes + rotate.written_bytes,
        flops: append.flops + rotate.flops,
    }
}

fn bits<T: BatchElement>(value: T) -> u16 {
    bytemuck::cast(value)
}

/// The first of `len` elements that is not what it should be, `None` being NaN.
fn first_off<T: BatchElement>(
    len: usize,
    element: impl Fn(usize) -> (T, Option<f64>) + Sync,
) -> Option<String> {
    let half_unit = if T::IS_BF16 { 1.0 / 256.0 } else { 1.0 / 2048.0 };
    let is_right = |i| {
        let (got, want) = element(i);
        let got = got.to_f64();
        match want {
            Some(want) => (got - want).abs() <= half_unit * want.abs() + ABSOLUTE_TOLERANCE,
            None => got.is_nan(),
        }
    };
    (0..len).into_par_iter().find_first(|&i| !is_right(i)).map(|i| match element(i) {
        (got, Some(want)) => format!("[{i}] is {}, should be {want}", got.to_f64()),
        (got, None) => format!("[{i}] is {}, should be untouched", got.to_f64()),
    })
}
