//! A warp's shared memory, and groups that do not fill lanes.

use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

use super::score::key_of;
use super::select::Own;
use crate::moe_topk::{MAX_CANDIDATES, NUM_WARPS, TopkParams, WARP_WORDS};

/// A warp's shared memory.
#[derive(Clone, Copy)]
pub(super) struct WarpMemory {
    pub(super) ids: Shared<u32>,            // [MAX_TOP_K], best first
    pub(super) candidate_keys: Shared<u32>, // [MAX_CANDIDATES], NO_KEY where there is none
    pub(super) candidate_ids: Shared<u32>,  // [MAX_CANDIDATES]
    values: Shared<f32>, // [num_experts], where groups are not whole lanes; here and below
    group_keys: Shared<u32>, // [num_experts], one for each group
}

impl WarpMemory {
    #[inline(always)]
    pub(super) unsafe fn new(warp: u32, params: &TopkParams) -> Self {
        let num_experts = params.num_experts as usize;
        let words = shared::dynamic_shared_mem::<u32>();
        let candidate_keys = words.offset((warp * WARP_WORDS) as usize);
        let candidate_ids = candidate_keys.offset(MAX_CANDIDATES as usize);
        let groups =
            words.offset((NUM_WARPS * WARP_WORDS + warp * 2 * params.num_experts) as usize);
        Self {
            ids: candidate_ids.offset(MAX_CANDIDATES as usize),
            candidate_keys,
            candidate_ids,
            values: groups.cast(),
            group_keys: groups.offset(num_experts),
        }
    }

    /// Which groups are kept, 1 or 0: `[num_groups]`.
    #[inline(always)]
    pub(super) unsafe fn kept_groups<const V: usize>(
        &self,
        own: &Own<V>,
        values: &[f32; V],
        params: &TopkParams,
    ) -> Shared<u32> {
        for i in 0..V {
            if own.has(i) {
                let number = values[i].max(f32::NEG_INFINITY);
                self.values.store(own.expert(i) as usize, number);
            }
        }
        warp::sync_warp(FULL_MASK);
        let (lane, group_size) = (warp::lane_id(), params.group_size);
        let mut group = lane;
        while group < params.num_groups {
            let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
            for i in 0..group_size {
                let value = self.values.load((group * group_size + i) as usize);
                second = first.min(value).max(second);
                first = first.max(value);
            }
            let value = if group_size == 1 { first } else { first + second };
            self.group_keys.store(group as usize, key_of(value));
            group += WARP_SIZE;
        }
        warp::sync_warp(FULL_MASK);
        // The values have been read: flags take their place.
        let kept = self.values.cast::<u32>();
        let mut group = lane;
        while group < params.num_groups {
            let own = self.group_keys.load(group as usize);
            let mut num_better = 0;
            for other in 0..params.num_groups {
                let value = self.group_keys.load(other as usize);
                num_better += u32::from(value > own - u32::from(other < group));
            }
            kept.store(group as usize, u32::from(num_better < params.num_topk_groups));
            group += WARP_SIZE;
        }
        warp::sync_warp(FULL_MASK);
        kept
    }
}
