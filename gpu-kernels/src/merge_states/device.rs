//! The kernels.

// A kernel is one unsafe program: its launch vouches for it. Arrays stay in registers as long as
// constants index them, in loops that unroll.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::needless_range_loop)]

use cuda_std::prelude::*;
use half::{bf16, f16};

use super::{DIMS_PER_THREAD, MergeParams};

/// States whose loads are on their way at once.
const IN_FLIGHT: usize = 4;

/// Dimensions that a thread has.
const DIMS: usize = DIMS_PER_THREAD as usize;

/// What a thread has merged so far: a sum relative to the largest log-sum-exp.
struct Merged {
    maximum: f32,
    sum: f32,
    output: [f32; DIMS],
}

impl Merged {
    #[inline(always)]
    fn add(&mut self, lse: f32, output: [f32; DIMS]) {
        // Nothing has a weight, and infinities must not meet.
        if lse == f32::NEG_INFINITY {
            return;
        }
        let maximum = self.maximum.max(lse);
        let rescale = float::exp2(self.maximum - maximum);
        let weight = float::exp2(lse - maximum);
        self.sum = self.sum * rescale + weight;
        for d in 0..DIMS {
            self.output[d] = self.output[d] * rescale + weight * output[d];
        }
        self.maximum = maximum;
    }
}

/// Merges the states of this thread's part of a row.
#[inline(always)]
pub(crate) unsafe fn merge_rows<T: HalfFloat>(
    params: MergeParams,
    states_out: Global<f32>, // [num_states, num_rows, head_dim]
    states_lse: Global<f32>, // [num_states, num_rows]
    out: GlobalMut<T>,       // [num_rows, head_dim]
    lse: GlobalMut<f32>,     // [num_rows]
) {
    let threads_per_row = params.head_dim / DIMS_PER_THREAD;
    let row = thread::index_1d() / threads_per_row;
    if row >= params.num_rows {
        return;
    }
    let first_dim = thread::index_1d() % threads_per_row * DIMS_PER_THREAD;
    let place = (row * params.head_dim + first_dim) as usize;
    let state_elements = params.num_rows as usize * params.head_dim as usize;

    let mut merged = Merged { maximum: f32::NEG_INFINITY, sum: 0.0, output: [0.0; DIMS] };
    let mut first = 0;
    while first < params.num_states {
        let mut state_lse = [f32::NEG_INFINITY; IN_FLIGHT];
        let mut state_out = [[0u32; DIMS]; IN_FLIGHT];
        for i in 0..IN_FLIGHT {
            let state = (first + i as u32).min(params.num_states - 1) as usize;
            state_lse[i] = states_lse.load(state * params.num_rows as usize + row as usize);
            state_out[i] = states_out.load_x4(state * state_elements + place);
        }
        for i in 0..IN_FLIGHT {
            if first + (i as u32) < params.num_states {
                merged.add(state_lse[i], state_out[i].map(f32::from_bits));
            }
        }
        first += IN_FLIGHT as u32;
    }

    let is_empty = merged.maximum == f32::NEG_INFINITY;
    let normalize = if is_empty { 0.0 } else { float::reciprocal(merged.sum) };
    let [a, b, c, d] = merged.output.map(|output| output * normalize);
    out.store_x2(place, [T::pack(a, b), T::pack(c, d)]);
    if first_dim == 0 {
        let log_sum = if is_empty { 0.0 } else { float::log2(merged.sum) };
        lse.store(row as usize, merged.maximum + log_sum);
    }
}

macro_rules! entries {
    ($($(#[$doc:meta])* $name:ident: $T:ty;)*) => {$(
        $(#[$doc])*
        #[kernel(threads = 256)]
        pub unsafe fn $name(
            params: MergeParams,
            states_out: Global<f32>, // [num_states, num_rows, head_dim]
            states_lse: Global<f32>, // [num_states, num_rows]
            out: GlobalMut<$T>,      // [num_rows, head_dim]
            lse: GlobalMut<f32>,     // [num_rows]
        ) {
            merge_rows::<$T>(params, states_out, states_lse, out, lse);
        }
    )*};
}

entries! {
    /// Merges the states of every row.
    merge_states_bf16: bf16;
    /// Merges the states of every row.
    merge_states_f16: f16;
}
