//! Probabilities in fixed point.

use cuda_std::prelude::*;

/// The weight of the most likely token: 1.
const ONE: f32 = (1u32 << 31) as f32;

/// `exp(logit - maximum)` in units of `2^-31`, 0 for minus infinity.
#[inline(always)]
pub(super) fn weight(logit: f32, maximum: f32) -> u32 {
    let exponential = float::exp2((logit - maximum) * core::f32::consts::LOG2_E);
    // NaN, where all logits are minus infinity, becomes 0.
    (exponential * ONE + 0.5) as u32
}

/// The logarithm of the probability of `logit` in a row of this maximum and sum of weights.
#[inline(always)]
pub(super) fn logprob(logit: f32, maximum: f32, sum: u64) -> f32 {
    if maximum == f32::NEG_INFINITY {
        return maximum;
    }
    let log_sum = float::log2(sum as f32) - 31.0;
    logit - maximum - log_sum * core::f32::consts::LN_2
}
