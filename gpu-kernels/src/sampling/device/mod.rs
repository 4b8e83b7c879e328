//! The kernels: an entry for each type of logits.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

mod block;
mod draw;
mod row;
mod split;
mod weight;

use cuda_std::prelude::*;
use half::bf16;

use super::{SamplingRule, SplitParams};
use row::{argmax_row, choose_row};
use split::{Workspace, choose_split};

macro_rules! entries {
    ($($T:ty: $argmax:ident, $choose:ident, $split:ident;)*) => {$(
        /// The most likely token of each request, a block per request.
        #[kernel(threads = 512, early = true)]
        pub unsafe fn $argmax(
            logits: Global<$T>, // [batch, vocab_size]
            vocab_size: u32,
            token_ids: GlobalMut<i32>, // [batch]
            logprobs: GlobalMut<f32>,  // [batch]
        ) {
            grid::wait_prerequisites();
            argmax_row(logits, vocab_size, token_ids, logprobs);
        }

        /// A token of each request by its rule, a block per request.
        #[kernel(threads = 512, early = true)]
        pub unsafe fn $choose(
            logits: Global<$T>, // [batch, vocab_size]
            vocab_size: u32,
            rules: Global<SamplingRule>, // [batch]
            token_ids: GlobalMut<i32>,   // [batch]
            logprobs: GlobalMut<f32>,    // [batch]
        ) {
            grid::wait_prerequisites();
            choose_row(logits, vocab_size, rules, token_ids, logprobs);
        }

        /// A token of each request by its rule, several blocks per request.
        #[kernel(threads = 512, early = true)]
        pub unsafe fn $split(
            logits: Global<$T>,          // [batch, vocab_size]
            rules: Global<SamplingRule>, // [batch], or null for the most likely tokens
            params: SplitParams,
            arrived: GlobalMut<u32>,    // [num_groups, 2], 0 before and after
            candidates: GlobalMut<u64>, // [num_groups, 2, MAX_SLICES]
            sums: GlobalMut<u64>,       // [num_groups, MAX_SLICES]
            histograms: GlobalMut<u32>, // [num_groups, 2, MAX_SLICES, NUM_BINS]
            token_ids: GlobalMut<i32>,  // [batch]
            logprobs: GlobalMut<f32>,   // [batch]
        ) {
            let workspace = Workspace { arrived, candidates, sums, histograms };
            grid::wait_prerequisites();
            choose_split(logits, rules, params, workspace, token_ids, logprobs);
        }
    )*};
}

entries! {
    bf16: sampling_argmax_row_bf16, sampling_choose_row_bf16, sampling_choose_split_bf16;
    f32: sampling_argmax_row_f32, sampling_choose_row_f32, sampling_choose_split_f32;
}
