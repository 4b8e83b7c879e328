//! A warp per token, `V` consecutive experts a lane.

use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

use super::candidates::BestTwo;
use super::memory::WarpMemory;
use super::score::{
    Logit, NO_KEY, Scorer, clean, key_of, mask, reciprocal_or_zero, shared_weight, value_of,
};
use crate::moe_topk::{NUM_WARPS, Scoring, TopkParams};

/// Groups whose keys are on their way between lanes at once.
const GROUPS_IN_FLIGHT: u32 = 8;

/// The experts of one token, sizes and rules being those of DeepSeek-V3. There must be a bias.
pub(super) unsafe fn select_deepseek_v3<T: Logit>(
    gating_output: Global<T>, // [num_tokens, num_columns]
    bias: Global<f32>,        // [256]
    params: TopkParams,
    topk_ids: GlobalMut<i32>,     // [num_tokens, 8]
    topk_weights: GlobalMut<f32>, // [num_tokens, 8]
) {
    core::hint::assert_unchecked(!bias.is_null());
    select_warp::<T, 8>(gating_output, bias, params.of_deepseek_v3(), topk_ids, topk_weights);
}

/// The experts of one token.
#[inline(always)]
pub(super) unsafe fn select_warp<T: Logit, const V: usize>(
    gating_output: Global<T>, // [num_tokens, num_columns]
    bias: Global<f32>,        // [num_experts], or null
    params: TopkParams,
    topk_ids: GlobalMut<i32>,     // [num_tokens, top_k + num_shared]
    topk_weights: GlobalMut<f32>, // [num_tokens, top_k + num_shared]
) {
    let warp = thread::thread_idx_x() / WARP_SIZE;
    let token = thread::block_idx_x() * NUM_WARPS + warp;
    if token >= params.num_tokens {
        return;
    }
    let lane = warp::lane_id();
    let row = gating_output.offset(token as usize * params.num_columns as usize);
    let own = Own::<V> { first: lane * V as u32, num_experts: params.num_experts };
    let has_bias = !bias.is_null();

    // Both reads are on their way before either is used.
    let biases = if has_bias { own.load(bias, 0.0) } else { [0.0; V] };
    let mut logits = own.load(row, f32::NEG_INFINITY);
    for i in 0..V {
        logits[i] = clean(logits[i]);
    }
    let scorer = scorer_of(&logits, &params, has_bias);
    let mut choices = logits;
    if has_bias {
        choices = scorer.scores(&logits);
        for i in 0..V {
            choices[i] += biases[i];
        }
    }
    let mut keys = [NO_KEY; V];
    for i in 0..V {
        keys[i] = if own.has(i) { key_of(choices[i]) } else { NO_KEY };
    }

    let memory = WarpMemory::new(warp, &params);
    memory.clear_candidates();
    let mut bound = NO_KEY;
    if params.has_group_limit() && params.group_lanes == 0 {
        let values = if has_bias { choices } else { scorer.scores(&logits) };
        let kept = memory.kept_groups(&own, &values, &params);
        for i in 0..V {
            if own.has(i) && kept.load((own.expert(i) / params.group_size) as usize) == 0 {
                keys[i] = NO_KEY;
            }
        }
    } else if params.bound_lanes > 0 || params.has_group_limit() {
        let mut best = BestTwo::of(&keys);
        if params.has_group_limit() {
            best = best.of_lanes(params.group_lanes);
            let mask = mask(is_group_kept(best, &scorer, has_bias, &params));
            for i in 0..V {
                keys[i] &= mask;
            }
            bound = best.bound(mask);
        } else {
            bound = best.of_lanes(params.bound_lanes).bound(mask(true));
        }
    }
    let chosen = memory.choose(&keys, bound, own.first, &params);
    // Asked for before the slot is known.
    let mut weight = scorer.score(clean(row.load(chosen.id as usize).to_f32()));
    if chosen.slot >= params.top_k {
        weight = 0.0;
    }
    if params.renormalize == 1 {
        weight *= reciprocal_or_zero(warp::reduce_sum(weight, WARP_SIZE));
    }
    weight *= params.routed_scaling_factor;
    let first_slot = (token * params.num_slots()) as usize;
    if chosen.slot < params.top_k {
        topk_ids.store(first_slot + chosen.slot as usize, chosen.id as i32);
        topk_weights.store(first_slot + chosen.slot as usize, weight);
    }
    if lane < params.num_shared {
        let place = first_slot + (params.top_k + lane) as usize;
        topk_ids.store(place, (params.num_experts + lane) as i32);
        topk_weights.store(place, shared_weight(row, &params));
    }
}

/// The experts of a lane.
#[derive(Clone, Copy)]
pub(super) struct Own<const V: usize> {
    pub(super) first: u32,
    num_experts: u32,
}

impl<const V: usize> Own<V> {
    #[inline(always)]
    pub(super) fn expert(&self, i: usize) -> u32 {
        self.first + i as u32
    }

    #[inline(always)]
    pub(super) fn has(&self, i: usize) -> bool {
        self.expert(i) < self.num_experts
    }

    /// Their elements of a row; `missing` beyond its end.
    #[inline(always)]
    unsafe fn load<T: Logit>(&self, row: Global<T>, missing: f32) -> [f32; V] {
        let mut values = [missing; V];
        if self.num_experts.is_multiple_of(V as u32) {
            if self.has(0) {
                values = T::load_wide(row, self.first);
            }
        } else {
            for i in 0..V {
                if self.has(i) {
                    values[i] = row.load(self.expert(i) as usize).to_f32();
                }
            }
        }
        values
    }
}

/// What all lanes score by.
#[inline(always)]
unsafe fn scorer_of<const V: usize>(
    logits: &[f32; V],
    params: &TopkParams,
    has_bias: bool,
) -> Scorer {
    if params.scoring == Scoring::SIGMOID {
        return Scorer::new(Scoring::SIGMOID, 0.0);
    }
    let mut maximum = logits[0];
    for i in 1..V {
        maximum = maximum.max(logits[i]);
    }
    let maximum = value_of(warp::warp_reduce_max(FULL_MASK, key_of(maximum)));
    let mut scorer = Scorer::new(params.scoring, maximum);
    if Scorer::needs_sum(params, has_bias) {
        let scores = scorer.scores(logits);
        let mut sum = 0.0;
        for i in 0..V {
            sum += scores[i];
        }
        scorer.scale = reciprocal_or_zero(warp::reduce_sum(sum, WARP_SIZE));
    }
    scorer
}

/// Whether this lane's group is kept, of whose experts `best` are.
#[inline(always)]
unsafe fn is_group_kept(
    best: BestTwo,
    scorer: &Scorer,
    has_bias: bool,
    params: &TopkParams,
) -> bool {
    let mut values = [value_of(best.first), value_of(best.second)];
    if !has_bias {
        values = scorer.scores(&values);
    }
    let value = key_of(values[0] + values[1]);
    let first_lane = warp::lane_id() & !(params.group_lanes - 1);
    let (mut num_better, mut begin) = (0, 0);
    while begin < params.num_groups {
        for i in 0..GROUPS_IN_FLIGHT {
            let other = (begin + i) * params.group_lanes;
            let (other_value, _) = warp::warp_shuffle_idx(FULL_MASK, value, other, WARP_SIZE);
            // Of equal groups the lower one is better. Keys are never 0.
            let is_better = other_value > value - u32::from(other < first_lane);
            num_better += u32::from(is_better & (begin + i < params.num_groups));
        }
        begin += GROUPS_IN_FLIGHT;
    }
    num_better < params.num_topk_groups
}
