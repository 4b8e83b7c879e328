//! The kernels: one body, with the sum in front of it or without.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

use cuda_std::prelude::*;
use cuda_std::warp::WARP_SIZE;
use half::bf16;

use super::{NUM_THREADS, RmsNormParams, WORD};

const NUM_WARPS: u32 = NUM_THREADS / WARP_SIZE;

/// `x += delta`, and nothing else.
#[kernel(threads = 256, early = true)]
pub unsafe fn rms_norm_add_bf16(
    x: GlobalMut<bf16>,  // [8 num_words]
    delta: Global<bf16>, // [8 num_words]
    num_words: u32,
) {
    grid::launch_dependents();
    grid::wait_prerequisites();
    let word = thread::index_1d();
    if word < num_words {
        let first = (word * WORD) as usize;
        x.store_x4(first, sum(x.load_x4(first), delta.load_x4(first)));
    }
}

macro_rules! entries {
    ($($words:literal: $rows:ident, $add_rows:ident;)*) => {$(
        #[doc = concat!("Normalises rows of up to ", $words, " * 2048 elements.")]
        #[kernel(threads = 256, early = true)]
        pub unsafe fn $rows(
            x: Global<bf16>,      // [num_rows, row_len]
            weight: Global<bf16>, // [row_len]
            params: RmsNormParams,
            out: GlobalMut<bf16>, // [num_rows, row_len]
        ) {
            grid::launch_dependents();
            let row = Row::<$words>::of_block(params.row_len);
            grid::wait_prerequisites();
            row.normalize(row.load(x), weight, params, out);
        }

        #[doc = concat!("Adds to rows of up to ", $words, " * 2048 elements, and normalises them.")]
        #[kernel(threads = 256, early = true)]
        pub unsafe fn $add_rows(
            x: GlobalMut<bf16>,   // [num_rows, row_len]
            delta: Global<bf16>,  // [num_rows, row_len]
            weight: Global<bf16>, // [row_len]
            params: RmsNormParams,
            out: GlobalMut<bf16>, // [num_rows, row_len]
        ) {
            grid::launch_dependents();
            let row = Row::<$words>::of_block(params.row_len);
            grid::wait_prerequisites();
            let mut words = row.load(x.as_const());
            let deltas = row.load(delta);
            for i in 0..$words {
                words[i] = sum(words[i], deltas[i]);
            }
            row.store(x, words);
            row.normalize(words, weight, params, out);
        }
    )*};
}

entries! {
    1: rms_norm_rows_bf16_x1, rms_norm_add_rows_bf16_x1;
    2: rms_norm_rows_bf16_x2, rms_norm_add_rows_bf16_x2;
    4: rms_norm_rows_bf16_x4, rms_norm_add_rows_bf16_x4;
    8: rms_norm_rows_bf16_x8, rms_norm_add_rows_bf16_x8;
}

/// Element by element, rounded.
#[inline(always)]
pub(crate) fn sum(a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
    let mut sums = [0; 4];
    for i in 0..4 {
        let ([a0, a1], [b0, b1]) = (bf16::unpack(a[i]), bf16::unpack(b[i]));
        sums[i] = bf16::pack(a0 + b0, a1 + b1);
    }
    sums
}

/// Sum of the squares of a word's elements.
#[inline(always)]
pub(crate) fn squares(word: [u32; 4]) -> f32 {
    let mut squares = 0.0;
    for j in 0..4 {
        let [a, b] = bf16::unpack(word[j]);
        squares += a * a + b * b;
    }
    squares
}

/// A word's elements times `scale`, rounded, then times their weights.
#[inline(always)]
pub(crate) fn weighted(mut word: [u32; 4], scale: f32, weights: [u32; 4]) -> [u32; 4] {
    for j in 0..4 {
        let [a, b] = bf16::unpack(word[j]);
        let [a, b] = bf16::unpack(bf16::pack(a * scale, b * scale));
        let [weight_a, weight_b] = bf16::unpack(weights[j]);
        word[j] = bf16::pack(a * weight_a, b * weight_b);
    }
    word
}

/// The row of a block, of which a thread has up to `WORDS` words.
#[derive(Clone, Copy)]
struct Row<const WORDS: usize> {
    start: usize,
    len: u32,
}

impl<const WORDS: usize> Row<WORDS> {
    #[inline(always)]
    fn of_block(len: u32) -> Self {
        Self { start: thread::block_idx_x() as usize * len as usize, len }
    }

    /// First element of this thread's word `i`; beyond the row there may be none.
    #[inline(always)]
    fn column(&self, i: usize) -> u32 {
        (i as u32 * NUM_THREADS + thread::thread_idx_x()) * WORD
    }

    /// This thread's words of the row; zeros beyond its end.
    #[inline(always)]
    unsafe fn load(&self, tensor: Global<bf16>) -> [[u32; 4]; WORDS] {
        self.load_from(tensor.offset(self.start))
    }

    #[inline(always)]
    unsafe fn load_from(&self, row: Global<bf16>) -> [[u32; 4]; WORDS] {
        let mut words = [[0; 4]; WORDS];
        for i in 0..WORDS {
            if self.column(i) < self.len {
                words[i] = row.load_x4(self.column(i) as usize);
            }
        }
        words
    }

    #[inline(always)]
    unsafe fn store(&self, tensor: GlobalMut<bf16>, words: [[u32; 4]; WORDS]) {
        for i in 0..WORDS {
            if self.column(i) < self.len {
                tensor.store_x4(self.start + self.column(i) as usize, words[i]);
            }
        }
    }

    #[inline(always)]
    unsafe fn normalize(
        &self,
        mut words: [[u32; 4]; WORDS],
        weight: Global<bf16>, // [row_len]
        params: RmsNormParams,
        out: GlobalMut<bf16>, // [num_rows, row_len]
    ) {
        let weights = self.load_from(weight);
        let mut sum = 0.0;
        for i in 0..WORDS {
            sum += squares(words[i]);
        }
        let mean = block_sum(shared::dynamic_shared_mem(), sum) / params.row_len as f32;
        let scale = float::reciprocal_sqrt(mean + params.eps);
        for i in 0..WORDS {
            words[i] = weighted(words[i], scale, weights[i]);
        }
        self.store(out, words);
    }
}

/// Sum over a block of as many threads as here, in a fixed order, in every thread; each warp has a place
/// in `warp_sums`.
#[inline(always)]
pub(crate) unsafe fn block_sum(warp_sums: Shared<f32>, value: f32) -> f32 {
    let value = warp::reduce_sum(value, WARP_SIZE);
    if warp::lane_id() == 0 {
        warp_sums.store((thread::thread_idx_x() / WARP_SIZE) as usize, value);
    }
    thread::sync_threads();
    let mut sum = 0.0;
    for warp in 0..NUM_WARPS {
        sum += warp_sums.load(warp as usize);
    }
    sum
}
