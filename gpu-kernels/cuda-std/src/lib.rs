//! What a GPU thread can do, once for PTX and once for the CPU.
//!
//! A kernel is written once, against the names of this crate. On `nvptx64` each name is an
//! instruction; everywhere else it is a step of the [SIMT executor](cpu), which runs every GPU
//! thread of a block as a coroutine. Same names, same semantics: what a kernel computes here is
//! what it computes there, and the executor reports what a GPU leaves undefined (a divergent
//! barrier, an access out of bounds, a read of memory that nothing wrote, a data race).
//!
//! The API is that of rust-cuda's `cuda_std` where it has one ([`thread`], [`warp`], [`shared`],
//! `#[kernel]`), and continues in its manner where it has none:
//!
//! | module | what |
//! |---|---|
//! | [`thread`] | indices, block barrier, clocks |
//! | [`grid`] | launches that overlap (sm_90) |
//! | [`cluster`] | blocks that reach each other's shared memory (sm_90) |
//! | [`warp`] | lanes, shuffles, votes, reductions |
//! | [`global`] | views of device memory: this GPU's, a peer's, pinned host memory |
//! | [`shared`] | views of a block's shared memory |
//! | [`async_copy`] | `cp.async`, global to shared without registers |
//! | [`bulk`] | bulk copies and the `mbarrier`s they complete on (sm_90) |
//! | [`tensor_map`] | tensors that bulk copies move by tiles (sm_90) |
//! | [`atomic`] | read-modify-write, release and acquire at GPU and system scope |
//! | [`mma`] | tile operations of the tensor cores |
//! | [`wgmma`] | tile operations of a warpgroup (sm_90a) |
//! | [`float`] | bf16 and f16 conversion, fast exp2 and log2 |
//!
//! Views do not check bounds on the GPU: a launch is sound because its contract was checked. On
//! the CPU every access is checked, and so is the contract's promise.

#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(target_arch = "nvptx64", allow(internal_features))]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(asm_experimental_arch, link_llvm_intrinsics, stdarch_nvptx)
)]
// Every operation here is part of one kernel thread's program, and its safety is the launch's:
// views in bounds, collective operations reached by the lanes they name.
#![allow(clippy::missing_safety_doc, unsafe_op_in_unsafe_fn)]

#[cfg(target_arch = "nvptx64")]
#[path = "ptx/mod.rs"]
mod arch;

#[cfg(not(target_arch = "nvptx64"))]
pub mod cpu;
#[cfg(not(target_arch = "nvptx64"))]
use cpu::arch;

pub mod async_copy;
pub mod atomic;
pub mod bulk;
pub mod cluster;
pub mod float;
pub mod global;
pub mod grid;
mod kernel;
pub mod mma;
pub mod shared;
pub mod tensor_map;
pub mod thread;
pub mod warp;
pub mod wgmma;

pub use cuda_std_macros::kernel;
#[cfg(target_arch = "nvptx64")]
#[doc(hidden)]
pub use kernel::launch_bounds;
#[cfg(not(target_arch = "nvptx64"))]
pub use kernel::{Kernel, KernelArg, PtxTarget};

/// What a kernel file imports.
pub mod prelude {
    pub use crate::float::HalfFloat;
    pub use crate::global::{Global, GlobalMut};
    pub use crate::shared::Shared;
    pub use crate::tensor_map::{TensorMap, TensorMaps};
    pub use crate::{
        async_copy, atomic, bulk, cluster, float, global, grid, kernel, mma, shared, thread, warp,
        wgmma,
    };
}
