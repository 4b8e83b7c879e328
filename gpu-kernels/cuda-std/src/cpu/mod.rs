//! The SIMT executor: kernels on the CPU, one coroutine for each GPU thread.
//!
//! # How it runs a launch
//! A launch hands the blocks of its grid to worker threads, those of a cluster together. A worker runs
//! a block on one OS thread: each of its GPU threads is a coroutine with a stack of its own, which runs until it has
//! to wait. What it waits for decides who makes it ready again:
//!
//! | waits in | until |
//! |---|---|
//! | a warp operation | the lanes of its mask are there; the last to come computes for all |
//! | `sync_threads` | all threads of the block are there |
//! | `cluster::sync` | all threads of the cluster are there |
//! | `sync_some` | as many threads as it names are there |
//! | a multiplication of `wgmma` | the 128 threads of the warpgroup are there |
//! | an `mbarrier` wait | the arrival or the load that completes the phase |
//! | `spin_pause` | nothing else in the block can run; then the block is put aside |
//!
//! Blocks that were put aside are looked at again and again, and while none gets on the worker
//! begins further blocks. So blocks of a grid may wait for each other as if all were resident, and
//! ranks, each an OS thread with its own executor, may wait for each other's memory.
//!
//! Between two waits a thread runs alone on its OS thread, so the state that a block's threads
//! share takes no locks, and a switch costs some nanoseconds.
//!
//! # What it guarantees
//! Every launch ends, unless the kernel itself loops without ever waiting. It ends well, or with a
//! [`Fault`] that names kernel, block, threads and the line:
//!
//! - **Barriers.** Threads that wait at different calls, or for threads that have returned, are a
//!   divergent barrier. So are lanes that meet in different warp operations, and masks that name
//!   lanes which cannot come.
//! - **Bounds.** Every access to device memory is checked against its view and against the live
//!   [allocations](memory::Allocation), and every access to shared memory against the block's size;
//!   both against their alignment.
//! - **Clusters.** A block that reaches into another's shared memory has met it before, and the other
//!   has not ended.
//! - **Initialisation.** Shared memory starts as poison for each block, and reading a byte of it
//!   that nothing wrote is a fault; likewise device memory that
//!   [keeps track](memory::Allocation::with_init_check).
//! - **Early starts.** Launches follow each other, but a kernel that is meant to
//!   [start early](crate::grid) may not write, or read what a kernel wrote, before it waits.
//! - **Lateness.** Asynchronous copies land as late as the rules allow: at the wait that covers
//!   them. A missing wait reads what was there before. A warpgroup's multiplications read their
//!   tiles at that wait, too, and until then their accumulator is NaN.
//! - **Races.** Two accesses to a byte, one of them a store and not both atomic, have something between
//!   them that orders them: a barrier of the block, the cluster or the warp, an mbarrier, the wait for a
//!   copy or for a multiplication; between blocks and ranks a release and an acquire, or fences, whose
//!   scope reaches the other; between launches and copies their [queue](Queue), an event or a wait of the
//!   host. For what threads store and the async proxy reads (bulk copies, multiplications) or overwrites,
//!   that includes [`fence_proxy_async`](crate::bulk::fence_proxy_async). A missing one is reported with
//!   both lines, in whatever order things happened to run.
//! - **Order.** Nothing promises in which order threads run between two waits. A
//!   [seed](LaneOrder::Seeded) shuffles it, repeatably: results must not change.
//! - **Deadline.** A launch in which all blocks only poll ends after the executor's
//!   [deadline](ExecutorConfig::deadline). Writes to device memory, and threads that return, count
//!   as getting on.
//!
//! A fault unwinds the kernel's threads (the program must be built with `panic = "unwind"`), so
//! nothing leaks, and a panic in a kernel is a fault too.
//!
//! # What it does not model
//! Time, caches, shared memory banks, and what a race would read: atomic operations are seen at once and
//! by all. A kernel that overflows its stack of 256 KiB runs into a guard page, and the process ends.

pub(crate) mod async_copy;
pub(crate) mod atomic;
mod block;
pub(crate) mod bulk;
pub(crate) mod cluster;
mod element;
mod executor;
mod fault;
pub(crate) mod float;
mod global;
pub(crate) mod grid;
mod groups;
mod lane;
mod mapping;
pub mod memory;
pub(crate) mod mma;
mod named_barrier;
mod order;
mod race;
mod shared;
mod stack;
pub(crate) mod tensor_map;
pub(crate) mod thread;
mod tile;
pub(crate) mod warp;
pub(crate) mod wgmma;

pub use executor::{Executor, ExecutorConfig, LaunchDims, MAX_SHARED_BYTES};
pub use fault::{
    Access, BlockIdx, Fault, OrderedBy, Race, Refusal, Site, ThreadsWait, Violation, Waits,
    WaitsFor,
};
pub use order::LaneOrder;
pub use race::{Mark, Queue};

/// The names that the PTX side has, too.
pub(crate) mod arch {
    pub(crate) use super::global::RawGlobal;
    pub(crate) use super::shared::RawShared;
    pub(crate) use super::{
        async_copy, atomic, bulk, cluster, float, grid, mma, tensor_map, thread, warp, wgmma,
    };
}
