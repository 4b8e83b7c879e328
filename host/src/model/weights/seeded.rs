//! Weights made from a seed, which keep activations near 1.

use gpu_kernels::seeded_values::{mix, value};
use half::bf16;
use rayon::prelude::*;

use super::{Part, WeightSource};
use crate::kernels::seeded_values::SeededTensor;
use crate::model::ModelError;

/// Weights of any shape, the same for the same seed on every machine.
///
/// A product of a row of such weights with values near 1 is near 1. What is added to the residual
/// stream is smaller with more layers, so that the stream stays near 1 too. Every tensor, of experts
/// too, has values of its own.
#[derive(Clone, Copy, Debug)]
pub struct Seeded {
    seed: u64,
    num_layers: usize,
}

/// Elements that one thread makes in a row.
const MADE_AT_ONCE: usize = 1 << 16;

/// Logits spread by this much, so that the likeliest token stands out.
const LOGIT_SPREAD: f32 = 3.0;

impl Seeded {
    /// Weights for a model of `num_layers` layers.
    pub fn new(seed: u64, num_layers: usize) -> Self {
        Self { seed, num_layers }
    }

    /// The mean of a tensor's values, and what its deviations from it follow from: evenly spread over
    /// a reach on either side, they have the standard deviation wanted.
    fn distribution(&self, part: &Part) -> (f32, SeededTensor) {
        let (mean, deviation) = self.moments(part);
        let key = part.tensor.bytes().fold(self.seed, |hash, byte| mix(hash ^ u64::from(byte)));
        (mean, SeededTensor { key, reach: deviation * 3_f32.sqrt() })
    }

    /// Mean and standard deviation of a tensor's values.
    fn moments(&self, part: &Part) -> (f32, f32) {
        let inputs = part.shape.last().copied().unwrap_or(1) as f32;
        let tensor = part.tensor.as_str();
        if tensor.ends_with("norm.weight") {
            return (1.0, 0.1);
        }
        let deviation = if tensor.ends_with("embed_tokens.weight") {
            1.0
        } else if tensor.ends_with(".bias") {
            0.1
        } else if tensor.ends_with("lm_head.weight") {
            LOGIT_SPREAD / inputs.sqrt()
        } else if tensor.ends_with("o_proj.weight") || tensor.ends_with("down_proj.weight") {
            1.0 / (inputs * self.num_layers as f32).sqrt()
        } else {
            1.0 / inputs.sqrt()
        };
        (0.0, deviation)
    }
}

impl WeightSource for Seeded {
    fn check(&self, _: &Part) -> Result<(), ModelError> {
        Ok(())
    }

    fn check_complete(&self, _: &[Part]) -> Result<(), ModelError> {
        Ok(())
    }

    fn read(&self, part: &Part, start: usize, values: &mut [bf16]) -> Result<(), ModelError> {
        let (mean, SeededTensor { key, reach }) = self.distribution(part);
        let pieces = values.par_chunks_mut(MADE_AT_ONCE).enumerate();
        pieces.for_each(|(piece, mut values)| {
            for run in part.runs(start + piece * MADE_AT_ONCE, values.len()) {
                let (of_run, rest) = values.split_at_mut(run.len());
                for (value_of, element) in of_run.iter_mut().zip(run) {
                    *value_of = bf16::from_f32(mean + value(key, element as u64, reach));
                }
                values = rest;
            }
        });
        Ok(())
    }

    fn seeded(&self, part: &Part) -> Option<SeededTensor> {
        let (mean, tensor) = self.distribution(part);
        (mean == 0.0).then_some(tensor)
    }
}
