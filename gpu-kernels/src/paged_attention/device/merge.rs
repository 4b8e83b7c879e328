//! Parts of a pair that the plan cut, combined.

use cuda_std::prelude::*;

/// Parts whose loads are on their way at once.
const IN_FLIGHT: usize = 4;

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
}
