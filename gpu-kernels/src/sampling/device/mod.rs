//! The kernels: an entry for each type of logits.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

mod block;
mod row;
mod weight;

use cuda_std::prelude::*;
use half::bf16;

use row::argmax_row;

macro_rules! entries {
    ($($name:ident: $T:ty;)*) => {$(
        /// The most likely token of each request, a block per request.
        #[kernel(threads = 512)]
        pub unsafe fn $name(
            logits: Global<$T>, // [batch, vocab_size]
            vocab_size: u32,
            token_ids: GlobalMut<i32>, // [batch]
            logprobs: GlobalMut<f32>,  // [batch]
        ) {
            argmax_row(logits, vocab_size, token_ids, logprobs);
        }
    )*};
}

entries! {
    sampling_argmax_row_bf16: bf16;
    sampling_argmax_row_f32: f32;
}
