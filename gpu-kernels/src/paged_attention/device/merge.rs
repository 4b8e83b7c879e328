//! Parts of a pair that the plan cut, combined.

use cuda_std::prelude::*;
use cuda_std::warp::FULL_MASK;

/// Parts whose loads are on their way at once.
const IN_FLIGHT: usize = 4;
/// The same where a warp merges a whole head.
const ROWS_IN_FLIGHT: usize = 8;

/// A word of a row that is not there yet: bits that no arithmetic gives. So a row tells by itself
/// that it is complete, and between launches all are absent.
const ABSENT: u32 = u32::MAX;

/// Where parts wait to be merged.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) out: GlobalMut<f32>,     // [parts, group_size, D]
    pub(crate) lse: GlobalMut<f32>,     // [parts, group_size]
    pub(crate) arrived: GlobalMut<u32>, // [meetings], 0 between launches
    pub(crate) group_size: u32,
}

impl Parts {
    /// Row of a head of a part.
    #[inline(always)]
    pub(super) fn row(&self, part: u32, head: u32) -> usize {
        (part * self.group_size + head) as usize
    }

    /// Dimensions `d` and the next of a head, over all its parts, and its log-sum-exp.
    #[inline(always)]
    pub(super) unsafe fn merge<const D: usize>(
        &self,
        part_begin: u32,
        num_parts: u32,
        head: u32,
        d: u32,
    ) -> ([f32; 2], f32) {
        let (mut maximum, mut sum, mut output) = (f32::NEG_INFINITY, 0.0, [0.0f32; 2]);
        let mut merged = 0;
        while merged < num_parts {
            let mut lse = [f32::NEG_INFINITY; IN_FLIGHT];
            let mut out = [[0u32; 2]; IN_FLIGHT];
            for i in 0..IN_FLIGHT {
                let part = (merged + i as u32).min(num_parts - 1);
                let row = self.row(part_begin + part, head);
                lse[i] = self.lse.load(row);
                out[i] = self.out.load_x2(row * D + d as usize);
            }
            for i in 0..IN_FLIGHT {
                if merged + (i as u32) < num_parts {
                    let new_maximum = maximum.max(lse[i]);
                    let rescale = float::exp2(maximum - new_maximum);
                    let weight = float::exp2(lse[i] - new_maximum);
                    sum = sum * rescale + weight;
                    output[0] = output[0] * rescale + weight * f32::from_bits(out[i][0]);
                    output[1] = output[1] * rescale + weight * f32::from_bits(out[i][1]);
                    maximum = new_maximum;
                }
            }
            merged += IN_FLIGHT as u32;
        }
        let normalize = float::reciprocal(sum);
        ([output[0] * normalize, output[1] * normalize], maximum + float::log2(sum))
    }

    /// Writes a head of a part, `D / 32` dimensions a lane, in pairs 64 apart.
    #[inline(always)]
    pub(super) unsafe fn store_row<const D: usize>(
        &self,
        part: u32,
        head: u32,
        values: [[f32; 2]; 2],
        log_sum: f32,
    ) {
        let lane = warp::lane_id() as usize;
        let row = self.row(part, head);
        for i in 0..D / 64 {
            let place = row * D + 64 * i + 2 * lane;
            let words = [present(values[i][0]), present(values[i][1])];
            atomic::store_x2_relaxed_gpu(self.out.cast(), place, words);
        }
        if lane == 0 {
            atomic::store_relaxed_gpu(self.lse.cast(), row, present(log_sum));
        }
    }

    /// As [`merge`](Self::merge), of a whole head by one warp: waits for each part, and makes its
    /// row absent again. All lanes get the log-sum-exp.
    #[inline(always)]
    pub(super) unsafe fn take_row<const D: usize>(
        &self,
        part_begin: u32,
        num_parts: u32,
        head: u32,
    ) -> ([[f32; 2]; 2], f32) {
        let lane = warp::lane_id() as usize;
        let (out, lse) = (self.out.cast::<u32>(), self.lse.cast::<u32>());
        let (mut maximum, mut sum, mut values) = (f32::NEG_INFINITY, 0.0, [[0.0f32; 2]; 2]);
        let mut merged = 0;
        while merged < num_parts {
            let mut rows = [0usize; ROWS_IN_FLIGHT];
            for i in 0..ROWS_IN_FLIGHT {
                let part = (merged + i as u32).min(num_parts - 1);
                rows[i] = self.row(part_begin + part, head);
            }
            let mut log_sums = [ABSENT; ROWS_IN_FLIGHT];
            let mut pairs = [[[ABSENT; 2]; 2]; ROWS_IN_FLIGHT];
            loop {
                let mut is_complete = true;
                for i in 0..ROWS_IN_FLIGHT {
                    log_sums[i] = atomic::load_relaxed_gpu(lse.as_const(), rows[i]);
                    for half in 0..D / 64 {
                        let place = rows[i] * D + 64 * half + 2 * lane;
                        pairs[i][half] = atomic::load_x2_relaxed_gpu(out.as_const(), place);
                    }
                }
                for i in 0..ROWS_IN_FLIGHT {
                    is_complete &= log_sums[i] != ABSENT;
                    for half in 0..D / 64 {
                        is_complete &= pairs[i][half][0] != ABSENT && pairs[i][half][1] != ABSENT;
                    }
                }
                if warp::warp_vote_all(FULL_MASK, is_complete) {
                    break;
                }
                thread::spin_pause();
            }
            let mut new_maximum = maximum;
            for i in 0..ROWS_IN_FLIGHT {
                new_maximum = new_maximum.max(f32::from_bits(log_sums[i]));
            }
            let rescale = float::exp2(maximum - new_maximum);
            sum *= rescale;
            for half in 0..D / 64 {
                values[half] = [values[half][0] * rescale, values[half][1] * rescale];
            }
            for i in 0..ROWS_IN_FLIGHT {
                if merged + (i as u32) < num_parts {
                    let weight = float::exp2(f32::from_bits(log_sums[i]) - new_maximum);
                    sum += weight;
                    for half in 0..D / 64 {
                        for j in 0..2 {
                            values[half][j] += weight * f32::from_bits(pairs[i][half][j]);
                        }
                    }
                }
            }
            maximum = new_maximum;
            for i in 0..ROWS_IN_FLIGHT {
                if merged + (i as u32) < num_parts {
                    for half in 0..D / 64 {
                        let place = rows[i] * D + 64 * half + 2 * lane;
                        atomic::store_x2_relaxed_gpu(out, place, [ABSENT; 2]);
                    }
                    if lane == 0 {
                        atomic::store_relaxed_gpu(lse, rows[i], ABSENT);
                    }
                }
            }
            merged += ROWS_IN_FLIGHT as u32;
        }
        let normalize = float::reciprocal(sum);
        for half in 0..D / 64 {
            values[half] = [values[half][0] * normalize, values[half][1] * normalize];
        }
        (values, maximum + float::log2(sum))
    }
}

/// The bits of a value that is there.
#[inline(always)]
fn present(value: f32) -> u32 {
    if value.to_bits() == ABSENT { f32::NAN.to_bits() } else { value.to_bits() }
}
