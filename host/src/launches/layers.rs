//! Kernels of the rooms `rms_norm`, `embedding`, `sampling` and `seeded_values`: a prompt of 4096 tokens,
//! the logits of 32 requests, and the weights of a product.

use anyhow::Result;
use gpu_kernels::embedding::contract::EmbeddingShape;
use gpu_kernels::rms_norm::contract::RmsNormShape;
use gpu_kernels::sampling::contract::SamplingShape;
use gpu_kernels::seeded_values::contract::SeededValuesShape;
use half::bf16;

use super::{KernelLaunch, Setting, kernel};
use crate::device::{Buffer, Stream};
use crate::kernels::embedding::{GatherArgs, gather_rows};
use crate::kernels::rms_norm::{RmsNormArgs, add, add_rms_norm, rms_norm};
use crate::kernels::sampling::SamplingVariant::{self, Row, Split};
use crate::kernels::sampling::{
    ArgmaxArgs, ChooseArgs, LogitElement, Sampler, SamplingRule, argmax,
};
use crate::kernels::seeded_values::{SeededTensor, fill};

pub(super) fn launches() -> Vec<KernelLaunch> {
    vec![
        kernel("rms_norm_rows_bf16_x1", norm_of(2048)),
        kernel("rms_norm_rows_bf16_x2", norm_of(4096)),
        kernel("rms_norm_rows_bf16_x4", norm_of(8192)),
        kernel("rms_norm_rows_bf16_x8", norm_of(16_384)),
        kernel("rms_norm_add_rows_bf16_x1", norm_of_sum(2048)),
        kernel("rms_norm_add_rows_bf16_x2", norm_of_sum(4096)),
        kernel("rms_norm_add_rows_bf16_x4", norm_of_sum(8192)),
        kernel("rms_norm_add_rows_bf16_x8", norm_of_sum(16_384)),
        kernel("rms_norm_add_bf16", sum),
        kernel("embedding_gather_bf16", gather),
        kernel("sampling_argmax_row_bf16", most_likely::<bf16>),
        kernel("sampling_argmax_row_f32", most_likely::<f32>),
        kernel("sampling_choose_row_bf16", drawn::<bf16>(Row)),
        kernel("sampling_choose_row_f32", drawn::<f32>(Row)),
        kernel("sampling_choose_split_bf16", drawn::<bf16>(Split)),
        kernel("sampling_choose_split_f32", drawn::<f32>(Split)),
        kernel("seeded_values_fill_bf16", seeded),
    ]
}

/// Zeros: what is normalised does not matter here.
fn rows(setting: &Setting<'_>, row_len: u32) -> Result<(Stream, RmsNormShape, [Buffer<bf16>; 3])> {
    let stream = setting.stream()?;
    let shape = RmsNormShape { num_rows: setting.pick(4096, 3), row_len, eps: 1e-6 };
    let zeros = || stream.device().alloc_zeroed(shape.elements());
    let buffers = [zeros()?, zeros()?, zeros()?];
    Ok((stream, shape, buffers))
}

fn norm_of(row_len: u32) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let (stream, shape, [x, out, _]) = rows(setting, row_len)?;
        let weight = stream.device().alloc_zeroed(row_len as usize)?;
        let args = RmsNormArgs { x: &x, weight: &weight, out: &out };
        setting.repeat(&stream, |_| Ok(rms_norm(&stream, shape, args)?))
    }
}

fn norm_of_sum(row_len: u32) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let (stream, shape, [x, out, delta]) = rows(setting, row_len)?;
        let weight = stream.device().alloc_zeroed(row_len as usize)?;
        let args = RmsNormArgs { x: &x, weight: &weight, out: &out };
        setting.repeat(&stream, |_| Ok(add_rms_norm(&stream, shape, &delta, args)?))
    }
}

fn sum(setting: &Setting<'_>) -> Result<()> {
    let (stream, shape, [x, delta, _]) = rows(setting, 4096)?;
    setting.repeat(&stream, |_| Ok(add(&stream, shape, &x, &delta)?))
}

fn gather(setting: &Setting<'_>) -> Result<()> {
    let stream = setting.stream()?;
    let (num_rows, row_len, num_ids) = setting.pick((128_256, 4096, 4096), (10, 64, 5));
    let shape = EmbeddingShape { num_rows, row_len, num_ids };
    let ids: Vec<i32> = (0..num_ids).map(|i| (i * 7919 % num_rows) as i32).collect();
    let row_ids = Buffer::from_slice(&stream, &ids)?;
    let table = stream.device().alloc_zeroed(shape.table_elements())?;
    let out = stream.device().alloc(shape.out_elements())?;
    let args = GatherArgs { table: &table, row_ids: &row_ids, out: &out };
    setting.repeat(&stream, |_| Ok(gather_rows(&stream, shape, args)?))
}

fn seeded(setting: &Setting<'_>) -> Result<()> {
    let stream = setting.stream()?;
    let len = setting.pick(16_384, 64);
    let shape = SeededValuesShape {
        row_len: len,
        first_row: 0,
        num_rows: len,
        first_column: 0,
        num_columns: len,
        first_out: 0,
    };
    let out = stream.device().alloc(shape.out_elements())?;
    let tensor = SeededTensor { key: 1, reach: 0.02 };
    setting.repeat(&stream, |_| Ok(fill(&stream, shape, tensor, &out)?))
}

/// Logits that are all equal, and where to put the tokens.
struct Logits<T> {
    stream: Stream,
    shape: SamplingShape,
    logits: Buffer<T>,
    token_ids: Buffer<i32>,
    logprobs: Buffer<f32>,
}

impl<T: LogitElement> Logits<T> {
    fn new(setting: &Setting<'_>) -> Result<Self> {
        let stream = setting.stream()?;
        let (batch, vocab_size) = setting.pick((32, 151_936), (2, 200));
        let shape = SamplingShape { batch, vocab_size };
        Ok(Self {
            logits: stream.device().alloc_zeroed(shape.logits_elements())?,
            token_ids: stream.device().alloc(batch as usize)?,
            logprobs: stream.device().alloc(batch as usize)?,
            stream,
            shape,
        })
    }
}

fn most_likely<T: LogitElement>(setting: &Setting<'_>) -> Result<()> {
    let Logits::<T> { stream, shape, logits, token_ids, logprobs } = &Logits::new(setting)?;
    let args = ArgmaxArgs { logits, token_ids, logprobs };
    setting.repeat(stream, |_| Ok(argmax(stream, *shape, args)?))
}

fn drawn<T: LogitElement>(variant: SamplingVariant) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let Logits::<T> { stream, shape, logits, token_ids, logprobs } = &Logits::new(setting)?;
        let rule = SamplingRule { seed: 1, position: 2, top_k: 50, temperature: 0.8, top_p: 0.9 };
        let rules = &Buffer::from_slice(stream, &vec![rule; shape.batch as usize])?;
        let args = ChooseArgs { logits, rules, token_ids, logprobs };
        let sampler = Sampler::with_variant(stream.device(), *shape, variant)?;
        setting.repeat(stream, |_| Ok(sampler.choose(stream, args)?))
    }
}
