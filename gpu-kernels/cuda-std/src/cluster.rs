//! Clusters: blocks that run at the same time, on SMs that reach each other's shared memory (sm_90).
//!
//! A kernel that says `#[kernel(cluster = 4)]` runs in clusters of 4 blocks, neighbours in x, of which
//! its grid is a multiple. Blocks of a cluster may
//!
//! - load a tile once for several of them: [`bulk::load_tile_to`](crate::bulk::load_tile_to),
//! - arrive at each other's barriers: [`Mbarrier::arrive_in`](crate::bulk::Mbarrier::arrive_in),
//! - read each other's shared memory: [`load_x4`].
//!
//! A place in another block's shared memory is named by the same place in one's own, and by the block's
//! rank. The other block has to be there: it has started once all have met, in [`sync`] or [`meet`], and
//! it has not ended before all meet again. The executor reports accesses to a block before the first meeting, or
//! after its threads have returned.

use crate::arch;
use crate::shared::Shared;

/// Place of this block in its cluster, from 0.
#[inline(always)]
pub fn block_rank() -> u32 {
    arch::cluster::block_rank()
}

/// Waits until every thread of every block of the cluster is here; what they wrote before, to shared
/// memory too, is then visible to all.
///
/// Every thread must reach the same call, as with [`thread::sync_threads`](crate::thread::sync_threads).
#[inline(always)]
#[track_caller]
pub fn sync() {
    arch::cluster::sync();
}

/// As [`sync`], without a promise about what was written: enough to know that the other blocks have
/// started, with barriers that [`bulk::fence_init`](crate::bulk::fence_init) published, or that they no
/// longer reach into this one. `sync` costs a fence of the whole GPU, this does not.
#[inline(always)]
#[track_caller]
pub fn meet() {
    arch::cluster::meet();
}

/// Reads 16 bytes at `place` in the shared memory of block `rank` of the cluster.
#[inline(always)]
#[track_caller]
pub unsafe fn load_x4<T>(place: Shared<T>, rank: u32) -> [u32; 4] {
    arch::cluster::load_x4(place.raw, rank)
}
