//! The paired benchmarks: what a competent engineer ships first, against the optimized kernel.
//!
//! Both sides of a pair compute the same function of the same inputs. Before any time is taken,
//! the whole output of each is compared with the f64 oracle. A pair is a file that implements
//! [`Pair`]; it is known to every command once it stands in [`ALL`].
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
mod serve_bench;
mod serving_bench;
mod serving_model;
mod shared_expert;
mod wide_ep;

pub use continuous_batching::ContinuousBatching;
pub use disaggregated_inference::DisaggregatedInference;
pub use expert_gemm::ExpertGemm;
pub use expert_gemm_fp8::ExpertGemmFp8;
pub use far_grid::{FarGrid, FarGridRow, far_grid, measured_costs};
pub use gemm::Gemm;
pub use inference_monolithic::InferenceMonolithic;
pub use kv_append::KvAppend;
pub use kv_cache_management::KvCacheManagement;
pub use kv_cache_nvlink_pool::KvCacheNvlinkPool;
pub use moe_inference::MoeInference;
pub use moe_overlap::MoeOverlap;
pub use moe_permute::MoePermute;
pub use moe_routing::MoeRouting;
pub use moe_topk::MoeTopk;
pub use paged_attention::PagedAttention;
pub use paged_prefill::PagedPrefill;
pub use prefill_decode_disagg::PrefillDecodeDisagg;
pub use rms_norm::RmsNorm;
pub use sampling::Sampling;
pub use shared_expert::SharedExpert;
pub use wide_ep::WideEp;

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
pub const ALL: &[&dyn Pair] = &[
    &PagedAttention,
    &PagedPrefill,
    &KvCacheNvlinkPool,
    &KvAppend,
    &MoeTopk,
    &MoePermute,
    &Gemm,
    &SharedExpert,
    &ExpertGemm,
    &ExpertGemmFp8,
    &WideEp,
    &RmsNorm,
    &Sampling,
    &ContinuousBatching,
    &KvCacheManagement,
    &MoeOverlap,
    &MoeRouting,
    &PrefillDecodeDisagg,
    &DisaggregatedInference,
    &InferenceMonolithic,
    &MoeInference,
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
