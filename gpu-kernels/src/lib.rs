//! Device kernels of Farpage: Rust, compiled to PTX for the GPU and run as it stands on the CPU.
//!
//! One kernel, one room. A room is a folder named in the field's words, and every room has the
//! same files:
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | the essay: formula, shapes, which thread does what, what bounds it |
//! | `contract.rs` | the sizes of a launch; refuses wrong ones in words, yields grid, block, shared memory, bytes and FLOPs |
//! | `device.rs` | the kernels, baseline first, named `<room>_<what>_<variant>` |
//! | `reference.rs` | the oracle in f64, and `cases()`: the shapes that tests and benches share |
//! | `tests.rs` | the kernels on the CPU executor against the oracle |
//! | `design.md` | what was predicted, measured, tried, won and lost |
//!
//! A file that grows long becomes a folder of its name. What several rooms share stands beside
//! them, in files of its own.
//!
//! A contract's promise: after `check` is `Ok`, and with arguments of the shapes it states, no
//! thread of the launch reaches out of bounds. On the GPU nothing else stands guard; on the CPU
//! every access is checked, which is how the promise itself is tested.

#![no_std]

#[cfg(feature = "host")]
extern crate std;

pub mod combine;
#[cfg(feature = "host")]
pub mod contract;
pub mod dispatch;
pub mod embedding;
pub mod expert_gemm;
pub mod expert_gemm_fp8;
pub mod far_decode;
pub mod gemm;
pub mod gemv;
pub mod kv_append;
pub mod kv_layout;
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
#[cfg(test)]
mod testing;
pub mod token_pack;
#[cfg(feature = "host")]
pub mod token_rows;
pub mod token_unpack;
