//! Shared memory: queries, and a ring of tiles of keys and values, each with the barriers at which
//! the warpgroup that loads and those that multiply wait for each other.

use bytemuck::AnyBitPattern;
use cuda_std::bulk::Mbarrier;
use cuda_std::prelude::*;

use super::WARPGROUP;
use crate::paged_prefill::WGMMA;

/// Elements of a head.
pub(super) const D: usize = 128;
/// Rows of the queries' tile, and of one of keys or values.
pub(super) const Q_ROWS: usize = WGMMA.num_rows as usize;
pub(super) const KV_ROWS: usize = WGMMA.num_keys as usize;

const NUM_STAGES: u32 = WGMMA.num_stages;
const Q_BYTES: usize = 2 * Q_ROWS * D;
const KV_BYTES: usize = 2 * KV_ROWS * D;
const RING_BYTES: usize = NUM_STAGES as usize * KV_BYTES;
const BARRIERS: usize = Q_BYTES + 2 * RING_BYTES;

/// Warpgroups that multiply.
pub(super) const NUM_CONSUMERS: u32 = WGMMA.num_threads / WARPGROUP - 1;

/// Queries in shared memory: panels of 64 columns, `[2, 128, 64]`.
#[inline(always)]
pub(super) unsafe fn q_tile<T: HalfFloat>() -> Shared<T> {
    shared::dynamic_shared_mem()
}

/// Whoever has something in shared memory waits for the others here.
#[inline(always)]
unsafe fn barrier(idx: u32) -> Mbarrier {
    let barriers = shared::dynamic_shared_mem::<u8>().offset(BARRIERS).cast();
    Mbarrier::at(barriers.offset(idx as usize))
}

/// The barrier that the queries of warpgroup `consumer` are there.
#[inline(always)]
pub(super) unsafe fn q_is_full(consumer: u32) -> Mbarrier {
    barrier(consumer)
}

/// The barrier that the queries of warpgroup `consumer` are done with.
#[inline(always)]
pub(super) unsafe fn q_is_empty(consumer: u32) -> Mbarrier {
    barrier(NUM_CONSUMERS + consumer)
}

/// Where in the ring a thread is: the stage of the next tile, and the parity of the phase that
/// completes when the stage is filled for it.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    stage: u32,
    parity: u32,
}

/// K or V.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    K = 0,
    V = 1,
}

impl Turn {
    pub(super) const FIRST: Self = Self { stage: 0, parity: 0 };

    #[inline(always)]
    pub(super) fn next(self) -> Self {
        match self.stage + 1 {
            NUM_STAGES => Self { stage: 0, parity: self.parity ^ 1 },
            stage => Self { stage, ..self },
        }
    }

    #[inline(always)]
    pub(super) fn parity(self) -> u32 {
        self.parity
    }

    /// The tile: panels of 64 columns, `[2, 128, 64]`.
    #[inline(always)]
    pub(super) unsafe fn tile<T: AnyBitPattern>(self, half: Half) -> Shared<T> {
        let ring = Q_BYTES + half as usize * RING_BYTES;
        let stage = self.stage as usize * KV_BYTES;
        shared::dynamic_shared_mem::<u8>().offset(ring).offset(stage).cast()
    }

    #[inline(always)]
    pub(super) unsafe fn is_full(self, half: Half) -> Mbarrier {
        barrier(2 * NUM_CONSUMERS + half as u32 * 2 * NUM_STAGES + self.stage)
    }

    #[inline(always)]
    pub(super) unsafe fn is_empty(self, half: Half) -> Mbarrier {
        barrier(2 * NUM_CONSUMERS + (half as u32 * 2 + 1) * NUM_STAGES + self.stage)
    }
}

/// All threads of the block: the barriers are ready when it returns. A tile is there after
/// `kv_arrivals` arrivals.
#[inline(always)]
pub(super) unsafe fn set_up_barriers(kv_arrivals: u32) {
    if thread::thread_idx_x() == 0 {
        for consumer in 0..NUM_CONSUMERS {
            q_is_full(consumer).init(WARPGROUP / NUM_CONSUMERS);
            q_is_empty(consumer).init(1);
        }
        let mut turn = Turn::FIRST;
        for _ in 0..NUM_STAGES {
            turn.is_full(Half::K).init(kv_arrivals);
            turn.is_full(Half::V).init(kv_arrivals);
            turn.is_empty(Half::K).init(NUM_CONSUMERS);
            turn.is_empty(Half::V).init(NUM_CONSUMERS);
            turn = turn.next();
        }
        bulk::fence_init();
    }
    thread::sync_threads();
}
