//! The paired benchmarks: what a competent engineer ships first, against the optimized kernel.
//!
//! Both sides of a pair compute the same function of the same inputs. Before any time is taken,
//! the whole output of each is compared with the f64 oracle. A pair is a file with a `PAIR`; it is
//! known to every command once it stands in [`ALL`].
#![forbid(unsafe_code)]

mod append_bench;
mod attention_output;
mod attention_sizes;
mod cluster_bench;
mod continuous_batching;
mod decode_batch;
mod decode_bench;
mod disaggregated_inference;
mod expert_gemm;
mod expert_gemm_fp8;
mod far_bench;
mod far_grid;
mod gemm;
mod generation_bench;
mod inference_monolithic;
pub(crate) mod kv_append;
mod kv_cache_management;
mod kv_cache_nvlink_pool;
mod moe_inference;
mod moe_layer;
mod moe_overlap;
pub(crate) mod moe_permute;
mod moe_routing;
pub(crate) mod moe_topk;
mod paged_attention;
mod paged_prefill;
mod placed_kv;
mod prefill_batch;
mod prefill_bench;
mod prefill_decode_disagg;
mod product_bench;
mod rank_clock;
mod rank_team;
mod rms_norm;
mod routed_rows;
mod sampling;
mod select;
mod serve_bench;
mod serving_bench;
mod serving_model;
mod shared_expert;
mod wide_ep;

pub use far_grid::{FarGrid, FarGridRow, far_grid, measured_costs};
pub use select::{UnknownTarget, select};

pub(crate) use append_bench::AppendBench;
pub(crate) use decode_batch::{BatchElement, DecodeBatch, DecodeWorkload};
pub(crate) use decode_bench::DecodeBench;
pub(crate) use far_bench::{FarBench, FarWay};
pub(crate) use far_grid::is_far;
pub(crate) use prefill_batch::{PrefillBatch, PrefillWorkload};
pub(crate) use prefill_bench::PrefillBench;

use attention_sizes::AttentionSizes;
use far_bench::FarRun;

use anyhow::Result;
use gpu_kernels::contract::Work;

use crate::device::Device;
use crate::harness::Pair;

/// Every pair.
pub const ALL: &[Pair] = &[
    paged_attention::PAIR,
    paged_prefill::PAIR,
    kv_cache_nvlink_pool::PAIR,
    kv_append::PAIR,
    moe_topk::PAIR,
    moe_permute::PAIR,
    gemm::PAIR,
    shared_expert::PAIR,
    expert_gemm::PAIR,
    expert_gemm_fp8::PAIR,
    wide_ep::PAIR,
    rms_norm::PAIR,
    sampling::PAIR,
    continuous_batching::PAIR,
    kv_cache_management::PAIR,
    moe_overlap::PAIR,
    moe_routing::PAIR,
    prefill_decode_disagg::PAIR,
    disaggregated_inference::PAIR,
    inference_monolithic::PAIR,
    moe_inference::PAIR,
];

/// How much more than an L2 cache holds all inputs have together.
const CACHES_EXCEEDED: u64 = 2;
/// Sets of inputs on the CPU, enough to see that each is used.
const NUM_CPU_INPUTS: usize = 2;

/// Sets of inputs of which calls that do this work, each with the next one, find none in a cache.
fn num_cold_inputs(device: &Device, work: Work) -> Result<usize> {
    Ok(match device.properties()?.l2_bytes {
        Some(l2_bytes) => (CACHES_EXCEEDED * l2_bytes as u64).div_ceil(work.read_bytes) as usize,
        None => NUM_CPU_INPUTS,
    })
}
