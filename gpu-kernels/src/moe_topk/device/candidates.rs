//! The choice among few: experts that reach a bound which at least `top_k` of them reach, a lane for
//! each.

use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

use super::memory::WarpMemory;
use super::score::NO_KEY;
use crate::moe_topk::{MAX_CANDIDATES, TopkParams};

/// Bits of how many of its experts a lane offers: up to 16.
const NUM_COUNT_BITS: u32 = 5;
/// Keys that lanes read together.
const QUAD: u32 = 4;

/// The keys of the two best of some experts.
#[derive(Clone, Copy)]
pub(super) struct BestTwo {
    pub(super) first: u32,
    pub(super) second: u32,
}

impl BestTwo {
    /// Of a lane's experts, a power of two and at least 2 of them.
    #[inline(always)]
    pub(super) fn of<const V: usize>(keys: &[u32; V]) -> Self {
        let mut best = [Self { first: NO_KEY, second: NO_KEY }; V];
        let mut width = V / 2;
        for i in 0..width {
            let (a, b) = (keys[i], keys[i + width]);
            best[i] = Self { first: a.max(b), second: a.min(b) };
        }
        while width > 1 {
            width /= 2;
            for i in 0..width {
                best[i] = best[i].and(best[i + width]);
            }
        }
        best[0]
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        Self {
            first: self.first.max(other.first),
            second: self.first.min(other.first).max(self.second.max(other.second)),
        }
    }

    /// Of `num_lanes` consecutive lanes, a power of two.
    #[inline(always)]
    pub(super) unsafe fn of_lanes(mut self, num_lanes: u32) -> Self {
        let mut lane_mask = 1;
        while lane_mask < num_lanes {
            let of = |value| warp::warp_shuffle_xor(FULL_MASK, value, lane_mask, WARP_SIZE).0;
            self = self.and(Self { first: of(self.first), second: of(self.second) });
            lane_mask *= 2;
        }
        self
    }

    /// The least of the second best, over lanes whose mask has all bits: all the best two reach it.
    #[inline(always)]
    pub(super) unsafe fn bound(self, mask: u32) -> u32 {
        !warp::warp_reduce_max(FULL_MASK, !self.second & mask)
    }
}

/// A lane's expert, any one if it has none, and its slot: from `top_k` on it is not chosen.
#[derive(Clone, Copy)]
pub(super) struct Chosen {
    pub(super) slot: u32,
    pub(super) id: u32,
}

impl WarpMemory {
    /// No candidate yet. Before any lane offers one there must be a barrier of the warp.
    #[inline(always)]
    pub(super) unsafe fn clear_candidates(&self) {
        self.candidate_keys.store(warp::lane_id() as usize, NO_KEY);
        warp::sync_warp(FULL_MASK);
    }

    /// The chosen experts, each with one of the lanes.
    #[inline(always)]
    pub(super) unsafe fn choose<const V: usize>(
        &self,
        keys: &[u32; V],
        bound: u32,
        first_expert: u32,
        params: &TopkParams,
    ) -> Chosen {
        if params.bound_lanes > 0 {
            let num_candidates = self.offer(keys, bound.max(NO_KEY + 1), first_expert);
            if num_candidates <= MAX_CANDIDATES {
                return self.choose_among(num_candidates);
            }
        }
        self.choose_in_rounds(keys, first_expert, params.top_k)
    }

    /// Lays out keys that reach `bound` and their experts in the order of ids, if each can have a lane;
    /// how many there are.
    #[inline(always)]
    unsafe fn offer<const V: usize>(&self, keys: &[u32; V], bound: u32, first_expert: u32) -> u32 {
        let lower_lanes = (1u32 << warp::lane_id()) - 1;
        let mut num_own = 0;
        for i in 0..V {
            num_own += u32::from(keys[i] >= bound);
        }
        let (mut place, mut num_candidates) = (0, 0);
        for bit in 0..NUM_COUNT_BITS {
            if 1 << bit <= V {
                let lanes = warp::warp_vote_ballot(FULL_MASK, num_own >> bit & 1 == 1);
                place += (lanes & lower_lanes).count_ones() << bit;
                num_candidates += lanes.count_ones() << bit;
            }
        }
        if num_candidates <= MAX_CANDIDATES {
            for i in 0..V {
                if keys[i] >= bound {
                    self.candidate_keys.store(place as usize, keys[i]);
                    self.candidate_ids.store(place as usize, first_expert + i as u32);
                }
                place += u32::from(keys[i] >= bound);
            }
            warp::sync_warp(FULL_MASK);
        }
        num_candidates
    }

    /// A candidate's slot is the number of better ones. There are `top_k` candidates at least: lanes
    /// without one come behind them.
    #[inline(always)]
    unsafe fn choose_among(&self, num_candidates: u32) -> Chosen {
        let lane = warp::lane_id();
        let own = entry(self.candidate_keys.load(lane as usize), lane);
        let id = if lane < num_candidates { self.candidate_ids.load(lane as usize) } else { 0 };
        let mut slot = self.num_better(own, 0);
        if num_candidates > MAX_CANDIDATES / 2 {
            slot += self.num_better(own, MAX_CANDIDATES / 2);
        }
        Chosen { slot, id }
    }

    /// How many of half the candidates, from `first` on, are better than an entry.
    #[inline(always)]
    unsafe fn num_better(&self, own: u64, first: u32) -> u32 {
        let mut num_better = 0;
        for quad in 0..MAX_CANDIDATES / 2 / QUAD {
            let first = first + quad * QUAD;
            let keys = self.candidate_keys.load_x4(first as usize);
            for i in 0..QUAD {
                num_better += u32::from(entry(keys[i as usize], first + i) > own);
            }
        }
        num_better
    }
}

/// A candidate's key and place as one number, of which the greater is the better one. Places ascend
/// with ids: of equals the lower id is the better one.
#[inline(always)]
fn entry(key: u32, place: u32) -> u64 {
    u64::from(key) << 32 | u64::from(MAX_CANDIDATES - 1 - place)
}
