//! Rows of the output, from accumulators.

use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

use super::softmax::Softmax;
use crate::paged_prefill::PrefillItem;

/// Where results go.
#[derive(Clone, Copy)]
pub(super) struct Output<T> {
    pub(super) out: GlobalMut<T>,   // [total_qo_len, num_qo_heads, D]
    pub(super) lse: GlobalMut<f32>, // [total_qo_len, num_qo_heads]
    pub(super) num_qo_heads: u32,
}

impl<T: HalfFloat> Output<T> {
    /// Writes the 16 rows that a warp has in `D / 2` registers a thread, from row `first_row` of an
    /// item on; those past its end not.
    #[inline(always)]
    pub(super) unsafe fn write<const D: usize, const REGISTERS: usize>(
        &self,
        item: &PrefillItem,
        first_row: u32,
        softmax: &Softmax,
        output: &[f32; REGISTERS],
    ) {
        let (g, t) = (warp::lane_id() / 4, warp::lane_id() % 4);
        for half in 0..2 {
            let (normalize, lse) = softmax.finish(half);
            let row_of_item = first_row + g + 8 * half as u32;
            let is_row = row_of_item < item.num_rows;
            let row = ((item.first_row + row_of_item) * self.num_qo_heads + item.qo_head) as usize;
            for i in 0..D / 32 {
                let mut words = [0; 4];
                for j in 0..4 {
                    let register = 4 * (4 * i + j) + 2 * half;
                    let [low, high] = [output[register], output[register + 1]];
                    words[j] = T::pack(low * normalize, high * normalize);
                }
                let words = transpose_4x4(words, t);
                if is_row {
                    self.out.store_x4(row * D + 32 * i + 8 * t as usize, words);
                }
            }
            if is_row && t == 0 {
                self.lse.store(row, lse);
            }
        }
    }
}

/// Of the words that four neighbouring lanes hold, lane `t` receives word `t` of each: eight columns
/// that lie side by side.
#[inline(always)]
unsafe fn transpose_4x4(words: [u32; 4], t: u32) -> [u32; 4] {
    let [a, b, c, d] = words;
    let ([a, b], [c, d]) = (exchange(a, b, t, 1), exchange(c, d, t, 1));
    let ([a, c], [b, d]) = (exchange(a, c, t, 2), exchange(b, d, t, 2));
    [a, b, c, d]
}

/// Exchanges `high` of the lane without `bit` for `low` of the lane with it.
#[inline(always)]
unsafe fn exchange(low: u32, high: u32, t: u32, bit: u32) -> [u32; 2] {
    let is_low = t & bit == 0;
    let sent = if is_low { high } else { low };
    let (received, _) = warp::warp_shuffle_xor(FULL_MASK, sent, bit, WARP_SIZE);
    if is_low { [low, received] } else { [received, high] }
}
