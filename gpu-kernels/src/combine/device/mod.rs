//! Combine: the sum alone, and the sum of what the peers push, or hold ready, meanwhile.

// A kernel is one unsafe program: its launch vouches for it.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::too_many_arguments)]

mod chunks;
mod pull_bulk;
mod push_bulk;
mod push_packets;
mod ring;
mod sender;
mod sum;

pub use pull_bulk::*;
pub use push_bulk::*;
pub use push_packets::*;
pub use sum::*;

use cuda_std::prelude::*;
use half::bf16;

use crate::dispatch::ExchangeParams;

/// Lane `k`'s entry of a token's ids; -1 for none.
#[inline(always)]
unsafe fn id_of_lane(
    ids: Global<i32>,
    token: u32,
    num_tokens: u32,
    params: &ExchangeParams,
) -> i32 {
    let lane = warp::lane_id();
    if token < num_tokens && lane < params.topk {
        ids.load(token as usize * params.topk as usize + lane as usize)
    } else {
        -1
    }
}

/// Adds 8 values of bf16.
#[inline(always)]
fn add(sum: &mut [f32; 8], [a, b, c, d]: [u32; 4]) {
    let [a0, a1] = bf16::unpack(a);
    let [b0, b1] = bf16::unpack(b);
    let [c0, c1] = bf16::unpack(c);
    let [d0, d1] = bf16::unpack(d);
    sum[0] += a0;
    sum[1] += a1;
    sum[2] += b0;
    sum[3] += b1;
    sum[4] += c0;
    sum[5] += c1;
    sum[6] += d0;
    sum[7] += d1;
}

#[inline(always)]
fn round(sum: &[f32; 8]) -> [u32; 4] {
    [
        bf16::pack(sum[0], sum[1]),
        bf16::pack(sum[2], sum[3]),
        bf16::pack(sum[4], sum[5]),
        bf16::pack(sum[6], sum[7]),
    ]
}
