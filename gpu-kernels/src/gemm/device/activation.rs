//! What is done to sums before they are stored.

use cuda_std::prelude::*;

/// `x / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x * float::reciprocal(1.0 + float::exp2(-core::f32::consts::LOG2_E * x))
}
