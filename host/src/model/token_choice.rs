//! Tokens from logits, by the rules of their sequences.

use gpu_kernels::sampling::contract::SamplingShape;
use half::bf16;
use rayon::prelude::*;

use crate::device::{Buffer, Device, Stream};
use crate::kernels::KernelError;
use crate::kernels::sampling::{ChooseArgs, Sampler, SamplingRule};

/// Logits, the rules of those whose they are, and the tokens that follow.
pub(super) struct TokenChoice {
    sampler: Sampler<bf16>,
    logits: Buffer<bf16>,
    rules: Buffer<SamplingRule>,
    token_ids: Buffer<i32>,
    logprobs: Buffer<f32>,
}

impl TokenChoice {
    pub(super) fn new(device: &Device, shape: SamplingShape) -> Result<Self, KernelError> {
        let batch = shape.batch as usize;
        Ok(Self {
            sampler: Sampler::new(device, shape)?,
            logits: device.alloc(shape.logits_elements())?,
            rules: device.alloc(batch)?,
            token_ids: device.alloc(batch)?,
            logprobs: device.alloc(batch)?,
        })
    }

    /// `[batch, vocab_size]`, to be written before [`run`](Self::run).
    pub(super) fn logits(&self) -> &Buffer<bf16> {
        &self.logits
    }

    /// `[batch]`, to be written before.
    pub(super) fn rules(&self) -> &Buffer<SamplingRule> {
        &self.rules
    }

    /// Tokens and the logarithms of their probabilities: `[batch]` each.
    pub(super) fn chosen(&self) -> (&Buffer<i32>, &Buffer<f32>) {
        (&self.token_ids, &self.logprobs)
    }

    pub(super) fn run(&self, stream: &Stream) -> Result<(), KernelError> {
        let Self { sampler, logits, rules, token_ids, logprobs } = self;
        sampler.choose(stream, ChooseArgs { logits, rules, token_ids, logprobs })
    }
}

/// The likeliest token of each of `batch` rows, the lowest id among equals, by the host; no
/// probabilities.
pub(super) fn likeliest(logits: &[bf16], batch: usize) -> (Vec<i32>, Vec<f32>) {
    let vocab_size = logits.len() / batch.max(1);
    let of_row = |row: &[bf16]| {
        let mut best = (-1, f32::NEG_INFINITY);
        for (id, logit) in row.iter().enumerate() {
            if logit.to_f32() > best.1 {
                best = (id as i32, logit.to_f32());
            }
        }
        best.0
    };
    (logits.par_chunks(vocab_size).map(of_row).collect(), vec![f32::NAN; batch])
}
