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

    /// What blocks leave for each other.
    #[inline(always)]
    pub(super) fn to_bits(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub(super) fn from_bits(bits: u64) -> Self {
        Self(bits)
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

    /// The sum of the numbers of this thread and those before it, and that of all.
    #[inline(always)]
    pub(super) unsafe fn sums_up_to_here(&self, own: u64) -> (u64, u64) {
        let (lane, own_warp) = (warp::lane_id(), thread::thread_idx_x() / WARP_SIZE);
        let sum = sum_over_lower_lanes(own);
        if lane == WARP_SIZE - 1 {
            self.warps.store(own_warp as usize, sum);
        }
        thread::sync_threads();
        let of_warp = if lane < NUM_WARPS { self.warps.load(lane as usize) } else { 0 };
        let sums = sum_over_lower_lanes(of_warp);
        let of_lane =
            |lane| halves(sums, |half| warp::warp_shuffle_idx(FULL_MASK, half, lane, WARP_SIZE).0);
        let (before, total) = (of_lane(own_warp.saturating_sub(1)), of_lane(WARP_SIZE - 1));
        thread::sync_threads();
        (if own_warp == 0 { sum } else { before + sum }, total)
    }

    #[inline(always)]
    unsafe fn reduce(&self, own: u64, combine: impl Fn(u64, u64) -> u64) -> u64 {
        let value = butterfly(own, WARP_SIZE, &combine);
        let lane = warp::lane_id();
        if lane == 0 {
            self.warps.store((thread::thread_idx_x() / WARP_SIZE) as usize, value);
        }
        thread::sync_threads();
        let value = butterfly(self.warps.load((lane % NUM_WARPS) as usize), NUM_WARPS, &combine);
        thread::sync_threads();
        value
    }
}

/// Combines the numbers of each group of `width` lanes.
#[inline(always)]
unsafe fn butterfly(mut value: u64, width: u32, combine: &impl Fn(u64, u64) -> u64) -> u64 {
    let mut lane_mask = width / 2;
    while lane_mask > 0 {
        let other =
            halves(value, |half| warp::warp_shuffle_xor(FULL_MASK, half, lane_mask, WARP_SIZE).0);
        value = combine(value, other);
        lane_mask /= 2;
    }
    value
}

/// Sum of the numbers of this lane and those below.
#[inline(always)]
unsafe fn sum_over_lower_lanes(mut sum: u64) -> u64 {
    let mut distance = 1;
    while distance < WARP_SIZE {
        let below =
            halves(sum, |half| warp::warp_shuffle_up(FULL_MASK, half, distance, WARP_SIZE).0);
        sum += if warp::lane_id() >= distance { below } else { 0 };
        distance *= 2;
    }
    sum
}

/// Moves a number as two registers.
#[inline(always)]
fn halves(value: u64, of_half: impl Fn(u32) -> u32) -> u64 {
    let (low, high) = (of_half(value as u32), of_half((value >> 32) as u32));
    u64::from(high) << 32 | u64::from(low)
}
