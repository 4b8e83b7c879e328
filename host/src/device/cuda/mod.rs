//! The CUDA side: thin owners of the driver's handles.
//!
//! The driver's library is found at run time, so the same executable starts without it. Handles
//! are usable from any thread: each call binds the GPU's primary context first, which is what
//! NCCL and other libraries in the process use too.

mod context;
mod driver;
mod event;
mod memory;
mod module;
mod stream;
mod tensor_map;

pub(super) use context::Gpu;
pub(super) use driver::{DriverState, state, version};
pub(super) use event::GpuEvent;
pub(super) use memory::GpuMemory;
pub(super) use stream::{FillPattern, GpuGraph, GpuStream, StreamFailure};
