//! The online softmax of the two rows of which a thread holds a quarter: its maxima and sums.

use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

/// Rows `g` and `g + 8` of a warp's 16, `g = lane / 4`, as the accumulators of `mma` and `wgmma` have
/// them: of each four registers, two are the first row's and two the second's.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    /// Of the keys so far, in scores without their factor, or less by up to [`SLACK`].
    maximum: [f32; 2],
    /// Of this thread's keys so far.
    sum: [f32; 2],
    /// What scores are weighed against, in base 2, and scores that are too large for that.
    base: [f32; 2],
    limit: [f32; 2],
    sm_scale_log2: f32,
}

/// Independent chains in which maxima and sums are taken, so that one does not wait for the other.
const CHAINS: usize = 4;

/// What scores may exceed the maximum by that they are weighed against, in base 2. Weights are then
/// up to 256 instead of 1, which 16 and 32-bit floats hold just as well, and outputs are rarely
/// rescaled after the first tiles.
const SLACK: f32 = 8.0;

impl Softmax {
    #[inline(always)]
    pub(super) fn new(sm_scale_log2: f32) -> Self {
        Self {
            maximum: [f32::NEG_INFINITY; 2],
            sum: [0.0; 2],
            base: [0.0; 2],
            limit: [f32::NEG_INFINITY; 2],
            sm_scale_log2,
        }
    }

    /// Weighs from now on against the maxima of a tile's scores those rows that have outgrown theirs;
    /// returns by what the rows' outputs so far shrink, if some row of the warp has. What a row comes
    /// to depends on its own scores alone, not on its neighbours in the warp.
    #[inline(always)]
    pub(super) unsafe fn raise<const REGISTERS: usize>(
        &mut self,
        scores: &[f32; REGISTERS],
    ) -> Option<[f32; 2]> {
        let found = [maximum_of(scores, 0), maximum_of(scores, 1)];
        let outgrown = found[0] > self.limit[0] || found[1] > self.limit[1];
        if !warp::warp_vote_any(FULL_MASK, outgrown) {
            return None;
        }
        let mut rescale = [0.0; 2];
        for row in 0..2 {
            let found = maximum_of_row(found[row]);
            let maximum = if found > self.limit[row] { found } else { self.maximum[row] };
            let growth = (maximum - self.maximum[row]) * self.sm_scale_log2;
            // Of nothing it is 0, also if the maximum is minus infinity still.
            rescale[row] = float::exp2(if growth >= 0.0 { -growth } else { f32::NEG_INFINITY });
            self.sum[row] *= rescale[row];
            self.maximum[row] = maximum;
            self.limit[row] = maximum + SLACK * float::reciprocal(self.sm_scale_log2);
            // A row that has seen no key yet weighs nothing, and not NaN.
            self.base[row] = match maximum {
                f32::NEG_INFINITY => 0.0,
                maximum => maximum * self.sm_scale_log2,
            };
        }
        Some(rescale)
    }

    /// Makes weights of a tile's scores.
    #[inline(always)]
    pub(super) unsafe fn weigh<const REGISTERS: usize>(&mut self, scores: &mut [f32; REGISTERS]) {
        for row in 0..2 {
            let mut sums = [self.sum[row], 0.0, 0.0, 0.0];
            for i in 0..REGISTERS / 4 {
                for j in 0..2 {
                    let score = &mut scores[4 * i + 2 * row + j];
                    *score = float::exp2(*score * self.sm_scale_log2 - self.base[row]);
                    sums[i % (CHAINS / 2) * 2 + j] += *score;
                }
            }
            self.sum[row] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        }
    }

    /// The factor that makes an output of a row's, and its log-sum-exp in base 2.
    #[inline(always)]
    pub(super) unsafe fn finish(&self, row: usize) -> (f32, f32) {
        let sum = sum_of_row(self.sum[row]);
        (float::reciprocal(sum), self.maximum[row] * self.sm_scale_log2 + float::log2(sum))
    }
}

/// The maximum of a thread's scores of a row.
#[inline(always)]
fn maximum_of<const REGISTERS: usize>(scores: &[f32; REGISTERS], row: usize) -> f32 {
    let mut maxima =
        [scores[2 * row], scores[2 * row + 1], scores[4 + 2 * row], scores[5 + 2 * row]];
    for i in 2..REGISTERS / 4 {
        let chain = i % (CHAINS / 2) * 2;
        maxima[chain] = maxima[chain].max(scores[4 * i + 2 * row]);
        maxima[chain + 1] = maxima[chain + 1].max(scores[4 * i + 2 * row + 1]);
    }
    maxima[0].max(maxima[1]).max(maxima[2].max(maxima[3]))
}

/// Hides from rows `first_row..` the keys that come after their own: `position` is the first row's
/// among the keys of the tile, and may be negative or past them. A lane's rows and keys are those of
/// an accumulator.
#[inline(always)]
pub(super) fn mask<const REGISTERS: usize>(scores: &mut [f32; REGISTERS], position: i32) {
    for i in 0..REGISTERS / 4 {
        for j in 0..4 {
            let key = 8 * i as i32 + j as i32 % 2;
            if key > position + (j as i32 / 2 * 8) {
                scores[4 * i + j] = f32::NEG_INFINITY;
            }
        }
    }
}

/// Of the four lanes that share a row.
#[inline(always)]
unsafe fn maximum_of_row(value: f32) -> f32 {
    let value = value.max(neighbour(value, 1));
    value.max(neighbour(value, 2))
}

/// Of the four lanes that share a row.
#[inline(always)]
unsafe fn sum_of_row(value: f32) -> f32 {
    let value = value + neighbour(value, 1);
    value + neighbour(value, 2)
}

#[inline(always)]
unsafe fn neighbour(value: f32, lane_mask: u32) -> f32 {
    warp::warp_shuffle_xor(FULL_MASK, value, lane_mask, WARP_SIZE).0
}
