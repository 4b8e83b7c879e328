//! Launchers: one for each room of [`gpu_kernels`], in the room's name.
//!
//! A launcher is made from host lists and sizes, which it checks against the room's contract and
//! uploads; what it refuses, it refuses in words and before anything is launched. It then runs any
//! number of times, on any stream of its device, and may be captured into a graph.
//!
//! Launches over KV take the [`KvMemory`](crate::kv::memory::KvMemory) that their lists were
//! checked against, and are safe.

pub mod combine;
pub mod dispatch;
pub mod embedding;
pub mod expert_gemm;
pub mod expert_gemm_fp8;
pub mod far_decode;
pub mod gemm;
pub mod gemv;
pub mod kv_append;
pub mod kv_page_copy;
pub mod kv_page_pattern;
pub mod memory_read;
pub mod memory_write;
pub mod merge_states;
pub mod moe_permute;
pub mod moe_topk;
pub mod paged_attention;
pub mod paged_prefill;
pub mod rms_norm;
pub mod sampling;
pub mod seeded_values;
pub mod shared_expert;
pub mod tensor_peak;
pub mod token_pack;
pub mod token_unpack;

use std::time::Duration;

use gpu_kernels::contract::ContractError;

use crate::comm::CommError;
use crate::device::DeviceError;

/// Why a launcher did not launch.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The room's contract refuses the sizes or lists.
    #[error(transparent)]
    Contract(#[from] ContractError),
    /// Ranks disagree, or do not reach each other.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// The device refused, or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A kernel waited for another GPU, which did not come in time.
    #[error(
        "rank {rank} waited {deadline:?} for rank {peer}: expected count {expected}, saw {seen}"
    )]
    WaitTimedOut {
        /// Who waited.
        rank: usize,
        /// For whom.
        peer: usize,
        /// For which count.
        expected: u32,
        /// What the count was at the deadline.
        seen: u32,
        /// How long.
        deadline: Duration,
    },
}
