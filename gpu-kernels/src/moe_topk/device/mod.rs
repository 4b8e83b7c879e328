//! The kernels: a block per token, and a warp per token; an entry for each type and size.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll; iterators put them into local memory.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

mod baseline;
mod candidates;
mod memory;
mod rounds;
pub(crate) mod score;
mod select;

use cuda_std::prelude::*;
use half::bf16;

use super::TopkParams;
use baseline::select_baseline;
use select::{select_deepseek_v3, select_warp};

macro_rules! entries {
    ($threads:literal, early = $early:literal, $($(#[$doc:meta])* $name:ident: $body:expr, $T:ty;)*) => {$(
        $(#[$doc])*
        #[kernel(threads = $threads, early = $early)]
        pub unsafe fn $name(
            gating_output: Global<$T>,    // [num_tokens, num_columns]
            bias: Global<f32>,            // [num_experts], or null
            params: TopkParams,
            topk_ids: GlobalMut<i32>,     // [num_tokens, top_k + num_shared]
            topk_weights: GlobalMut<f32>, // [num_tokens, top_k + num_shared]
        ) {
            if $early {
                grid::launch_dependents();
                grid::wait_prerequisites();
            }
            $body(gating_output, bias, params, topk_ids, topk_weights);
        }
    )*};
}

entries! {
    256, early = false,
    /// A block per token.
    moe_topk_select_baseline_bf16: select_baseline::<bf16>, bf16;
    /// A block per token.
    moe_topk_select_baseline_f32: select_baseline::<f32>, f32;
}

entries! {
    128, early = false,
    /// A warp per token, up to 128 experts.
    moe_topk_select_warp_bf16_e128: select_warp::<bf16, 4>, bf16;
    /// A warp per token, up to 256 experts.
    moe_topk_select_warp_bf16_e256: select_warp::<bf16, 8>, bf16;
    /// A warp per token, up to 128 experts.
    moe_topk_select_warp_f32_e128: select_warp::<f32, 4>, f32;
    /// A warp per token, up to 256 experts.
    moe_topk_select_warp_f32_e256: select_warp::<f32, 8>, f32;
}

// Where starting early was seen to gain; with 256 experts of which nothing is known it loses.
entries! {
    128, early = true,
    /// A warp per token, DeepSeek-V3's choice.
    moe_topk_select_warp_bf16_deepseek_v3: select_deepseek_v3::<bf16>, bf16;
    /// A warp per token, DeepSeek-V3's choice.
    moe_topk_select_warp_f32_deepseek_v3: select_deepseek_v3::<f32>, f32;
    /// A warp per token, up to 64 experts.
    moe_topk_select_warp_bf16_e64: select_warp::<bf16, 2>, bf16;
    /// A warp per token, up to 512 experts.
    moe_topk_select_warp_bf16_e512: select_warp::<bf16, 16>, bf16;
    /// A warp per token, up to 64 experts.
    moe_topk_select_warp_f32_e64: select_warp::<f32, 2>, f32;
    /// A warp per token, up to 512 experts.
    moe_topk_select_warp_f32_e512: select_warp::<f32, 16>, f32;
}
