//! Logits, scores, and keys that order as they do.

use bytemuck::Pod;
use cuda_std::prelude::*;
use half::bf16;

use crate::moe_topk::{Scoring, TopkParams};

const LOG2_E: f32 = core::f32::consts::LOG2_E;

/// What no candidate has as its key: all of theirs are greater.
pub(super) const NO_KEY: u32 = 0;

/// A type of `gating_output`.
pub(crate) trait Logit: Pod {
    fn to_f32(self) -> f32;

    /// The `V` elements from `first` on, `V` a power of two, aligned to all of them up to 16 bytes.
    unsafe fn load_wide<const V: usize>(row: Global<Self>, first: u32) -> [f32; V];
}

impl Logit for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn load_wide<const V: usize>(row: Global<Self>, first: u32) -> [f32; V] {
        let mut values = [0.0; V];
        if V == 2 {
            let words = row.load_x2(first as usize);
            for i in 0..2 {
                values[i] = Self::from_bits(words[i]);
            }
        }
        for quarter in 0..V / 4 {
            let words = row.load_x4(first as usize + 4 * quarter);
            for i in 0..4 {
                values[4 * quarter + i] = Self::from_bits(words[i]);
            }
        }
        values
    }
}

impl Logit for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    unsafe fn load_wide<const V: usize>(row: Global<Self>, first: u32) -> [f32; V] {
        let mut values = [0.0; V];
        if V == 2 {
            let word: u32 = row.offset(first as usize).cast().load(0);
            [values[0], values[1]] = Self::unpack(word);
        }
        if V == 4 {
            let words = row.load_x2(first as usize);
            for i in 0..2 {
                [values[2 * i], values[2 * i + 1]] = Self::unpack(words[i]);
            }
        }
        for eighth in 0..V / 8 {
            let words = row.load_x4(first as usize + 8 * eighth);
            for i in 0..4 {
                let pair = Self::unpack(words[i]);
                values[8 * eighth + 2 * i] = pair[0];
                values[8 * eighth + 2 * i + 1] = pair[1];
            }
        }
        values
    }
}

/// The logit as the choice counts it: NaN is minus infinity, infinity the largest finite number.
#[inline(always)]
pub(crate) fn clean(logit: f32) -> f32 {
    let number = logit.max(f32::NEG_INFINITY);
    number.min(f32::MAX)
}

/// A key that orders as the value does, zeros alike, NaN as minus infinity; never [`NO_KEY`].
#[inline(always)]
pub(crate) fn key_of(value: f32) -> u32 {
    let bits = (value.max(f32::NEG_INFINITY) + 0.0).to_bits();
    bits ^ (((bits as i32) >> 31) as u32 | 1 << 31)
}

/// The value of a key.
#[inline(always)]
pub(crate) fn value_of(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key ^ 1 << 31 } else { !key })
}

/// All bits, or none: with it arrays are changed by arithmetic. Of a choice between two elements LLVM
/// makes one between their addresses, and the array goes to local memory.
#[inline(always)]
pub(super) fn mask(condition: bool) -> u32 {
    0u32.wrapping_sub(u32::from(condition))
}

/// Makes scores of the logits of one token.
#[derive(Clone, Copy)]
pub(super) struct Scorer {
    pub(super) scoring: Scoring,
    /// Softmax: the largest logit.
    pub(super) maximum: f32,
    /// Softmax: one over the sum of all, or 1 where that cancels.
    pub(super) scale: f32,
}

impl Scorer {
    /// Whether scores must add up to 1: not if weights are divided by their sum anyway, and
    /// nothing is added to them.
    #[inline(always)]
    pub(super) fn needs_sum(params: &TopkParams, has_bias: bool) -> bool {
        params.scoring == Scoring::SOFTMAX && (has_bias || params.renormalize == 0)
    }

    /// For a token whose largest logit is `maximum`, its scores not scaled yet.
    #[inline(always)]
    pub(super) fn new(scoring: Scoring, maximum: f32) -> Self {
        let maximum = if maximum > f32::NEG_INFINITY { maximum } else { 0.0 };
        Self { scoring, maximum, scale: 1.0 }
    }

    /// Scores of [clean] logits.
    #[inline(always)]
    pub(super) fn scores<const V: usize>(&self, logits: &[f32; V]) -> [f32; V] {
        let mut scores = [0.0; V];
        // One branch for all, where a choice for each would compute both.
        if self.scoring == Scoring::SIGMOID {
            for i in 0..V {
                scores[i] = sigmoid(logits[i]);
            }
        } else {
            for i in 0..V {
                scores[i] = self.exponential(logits[i]);
            }
        }
        scores
    }

    #[inline(always)]
    fn exponential(&self, logit: f32) -> f32 {
        float::exp2((logit - self.maximum) * LOG2_E) * self.scale
    }

    /// Score of a [clean] logit.
    #[inline(always)]
    pub(super) fn score(&self, logit: f32) -> f32 {
        if self.scoring == Scoring::SIGMOID { sigmoid(logit) } else { self.exponential(logit) }
    }
}

#[inline(always)]
fn sigmoid(logit: f32) -> f32 {
    float::reciprocal(1.0 + float::exp2(-logit * LOG2_E))
}

/// `1 / sum`, or 0 for 0.
#[inline(always)]
pub(super) fn reciprocal_or_zero(sum: f32) -> f32 {
    if sum > 0.0 { float::reciprocal(sum) } else { 0.0 }
}

/// Weight of the slots behind the chosen ones.
#[inline(always)]
pub(super) unsafe fn shared_weight<T: Logit>(
    row: Global<T>, // [num_columns]
    params: &TopkParams,
) -> f32 {
    let gate = clean(row.load(params.num_experts as usize).to_f32());
    Scorer::new(Scoring::SIGMOID, 0.0).score(gate)
}
