//! What the threads of a block find out together.

use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

/// A logit's key and its token's id as one number: of two, the greater one has the greater logit, or
/// of equal logits the lower id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate(u64);

impl Candidate {
    /// Less than all others.
    pub(super) const NONE: Self = Self(0);

    #[inline(always)]
    pub(super) fn new(key: u32, id: u32) -> Self {
        Self(u64::from(key) << 32 | u64::from(!id))
    }

    #[inline(always)]
    pub(super) fn key(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    pub(super) fn id(self) -> u32 {
        !(self.0 as u32)
    }
}

/// The threads of a block, in which each warp has a place to leave something for the others.
#[derive(Clone, Copy)]
pub(super) struct Block<const NUM_WARPS: u32> {
    warps: Shared<u64>, // [NUM_WARPS]
}

impl<const NUM_WARPS: u32> Block<NUM_WARPS> {
    #[inline(always)]
    pub(super) fn new(warps: Shared<u64>) -> Self {
        Self { warps }
    }

    /// The best of all threads' candidates, in every thread.
    #[inline(always)]
    pub(super) unsafe fn best(&self, own: Candidate) -> Candidate {
        Candidate(self.reduce(own.0, |a, b| a.max(b)))
    }

    /// The sum of all threads' numbers, in every thread.
    #[inline(always)]
    pub(super) unsafe fn sum(&self, own: u64) -> u64 {
        self.reduce(own, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn reduce(&self, mut value: u64, combine: impl Fn(u64, u64) -> u64) -> u64 {
        let mut lane_mask = WARP_SIZE / 2;
        while lane_mask > 0 {
            let (low, high) = (value as u32, (value >> 32) as u32);
            let (low, _) = warp::warp_shuffle_xor(FULL_MASK, low, lane_mask, WARP_SIZE);
            let (high, _) = warp::warp_shuffle_xor(FULL_MASK, high, lane_mask, WARP_SIZE);
            value = combine(value, u64::from(high) << 32 | u64::from(low));
            lane_mask /= 2;
        }
        if warp::lane_id() == 0 {
            self.warps.store((thread::thread_idx_x() / WARP_SIZE) as usize, value);
        }
        thread::sync_threads();
        let mut value = self.warps.load(0);
        for warp in 1..NUM_WARPS {
            value = combine(value, self.warps.load(warp as usize));
        }
        thread::sync_threads();
        value
    }
}
