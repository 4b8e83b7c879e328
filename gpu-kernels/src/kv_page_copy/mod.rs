//! Moves KV pages between memories: this GPU's, its peers' and pinned host memory.
//!
//! For each move `m` of a list, all `page_bytes` bytes:
//!
//! ```text
//! page(m.dst) = page(m.src)      page(p) = peer_kv_ptrs[p.rank] + p.index * page_bytes
//! ```
//!
//! Gather (scattered pages to a staging buffer), scatter (back) and migration (page to page) are
//! the same list: a staging buffer is one more location, see [`gather`](contract::gather) and
//! [`scatter`](contract::scatter). Moves run in any order and at the same time, so no page may be
//! written twice, nor written and read; [`contract::CopyShape::check_moves`] refuses such lists.
//!
//! # Shapes
//! `moves` `[num_moves]`, `peer_kv_ptrs` `[num_locations]`. `page_bytes` is a multiple of 16.
//!
//! # Who does what
//! A page is cut into equal pieces of at most 16 KiB.
//!
//! *baseline*: a block per piece. Each of its 128 threads moves up to eight times 16 bytes, all
//! loads before the first store.
//!
//! *bulk* (sm_90): few blocks of one thread. A block takes consecutive pieces of the list and
//! passes them through a ring of 12 in shared memory: bulk load, wait for its `mbarrier`, bulk
//! store. Loads run 8 pieces ahead of the stores, and a stage is loaded again once the store of 4
//! pieces before has read it. Consecutive, because the thread that issues also looks up the
//! moves, and neighbours in the list share a cache line.
//!
//! # What bounds it
//! The wire: about 370 GB/s over NVLink, 368 when both ways are busy and pages are pushed (338
//! when they are pulled). A piece costs the issuing thread 120 to 145 ns, so pages below 8 KiB
//! cost more than their bytes.
//!
//! # How many blocks
//! 8 blocks push as fast as all SMs do and leave the others to compute
//! ([`OVERLAP_BLOCKS`](contract::OVERLAP_BLOCKS)): an SM pushes 46 GB/s at most. From 9 to 16
//! blocks the rate *falls*, to 340 GB/s, and 132 are needed to get it back; the contract refuses
//! those counts.
//!
//! # Whose idea
//! Copies by few threads through the copy engine of an SM: DeepEP's and CUTLASS's bulk transport.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

use crate::kv_layout::KvPagePlace;

/// Bytes of a piece at most.
pub const MAX_PIECE_BYTES: u32 = 16 * 1024;
/// Threads of a block of the baseline.
pub const BASELINE_THREADS: u32 = 128;
/// Pieces in a block's ring, bulk variant.
pub const NUM_STAGES: u32 = 12;
/// Stores that may still read their stage while loads run ahead.
pub const NUM_STORES_IN_FLIGHT: u32 = 4;

/// One page to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct KvPageMove {
    /// Where it lies.
    pub src: KvPagePlace,
    /// Where it is copied to.
    pub dst: KvPagePlace,
}

/// The sizes that kernels take by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct CopyParams {
    /// Pages to copy.
    pub num_moves: u32,
    /// Bytes of a page.
    pub page_bytes: u32,
    /// Bytes of each piece of a page but the last, which may be shorter.
    pub piece_bytes: u32,
    /// Pieces of a page.
    pub pieces_per_page: u32,
}

/// Bytes of shared memory of the bulk variant: the ring, and a barrier for each stage.
pub const BULK_SHARED_BYTES: u32 = NUM_STAGES * (MAX_PIECE_BYTES + 8);
