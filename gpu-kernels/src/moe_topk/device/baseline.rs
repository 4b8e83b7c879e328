//! A block per token, everything in shared memory.

use cuda_std::prelude::*;

use super::score::{Logit, NO_KEY, Scorer, clean, key_of, reciprocal_or_zero, shared_weight};
use crate::moe_topk::{BASELINE_THREADS, MAX_TOP_K, Scoring, TopkParams};

/// Where things lie in the block's shared memory.
#[derive(Clone, Copy)]
struct Places {
    scores: Shared<f32>,      // [num_experts]
    keys: Shared<u32>,        // [num_experts], NO_KEY once chosen
    group_keys: Shared<u32>,  // [num_experts], one for each group
    reduced: Shared<f32>,     // [BASELINE_THREADS]
    reduced_ids: Shared<u32>, // [BASELINE_THREADS]
    ids: Shared<u32>,         // [MAX_TOP_K]
    weights: Shared<f32>,     // [MAX_TOP_K]
}

impl Places {
    #[inline(always)]
    unsafe fn new(num_experts: u32) -> Self {
        let words = shared::dynamic_shared_mem::<f32>();
        let (experts, threads) = (num_experts as usize, BASELINE_THREADS as usize);
        let ids = 3 * experts + 2 * threads;
        Self {
            scores: words,
            keys: words.offset(experts).cast(),
            group_keys: words.offset(2 * experts).cast(),
            reduced: words.offset(3 * experts),
            reduced_ids: words.offset(3 * experts + threads).cast(),
            ids: words.offset(ids).cast(),
            weights: words.offset(ids + MAX_TOP_K as usize),
        }
    }

    /// Combines one value of each thread.
    #[inline(always)]
    unsafe fn reduce(&self, value: f32, combine: impl Fn(f32, f32) -> f32) -> f32 {
        let t = thread::thread_idx_x();
        self.reduced.store(t as usize, value);
        thread::sync_threads();
        let mut half = BASELINE_THREADS / 2;
        while half > 0 {
            if t < half {
                let other = self.reduced.load((t + half) as usize);
                self.reduced.store(t as usize, combine(self.reduced.load(t as usize), other));
            }
            thread::sync_threads();
            half /= 2;
        }
        let result = self.reduced.load(0);
        thread::sync_threads();
        result
    }

    /// The expert with the greatest key, the lowest of equal ones.
    #[inline(always)]
    unsafe fn best(&self, num_experts: u32) -> u32 {
        let t = thread::thread_idx_x();
        let keys = self.reduced.cast::<u32>();
        let (mut key, mut id) = (NO_KEY, u32::MAX);
        let mut expert = t;
        while expert < num_experts {
            let other = self.keys.load(expert as usize);
            if other > key {
                (key, id) = (other, expert);
            }
            expert += BASELINE_THREADS;
        }
        keys.store(t as usize, key);
        self.reduced_ids.store(t as usize, id);
        thread::sync_threads();
        let mut half = BASELINE_THREADS / 2;
        while half > 0 {
            if t < half {
                let other = (t + half) as usize;
                let (other_key, other_id) = (keys.load(other), self.reduced_ids.load(other));
                let (key, id) = (keys.load(t as usize), self.reduced_ids.load(t as usize));
                if other_key > key || (other_key == key && other_id < id) {
                    keys.store(t as usize, other_key);
                    self.reduced_ids.store(t as usize, other_id);
                }
            }
            thread::sync_threads();
            half /= 2;
        }
        let best = self.reduced_ids.load(0);
        thread::sync_threads();
        best
    }
}

/// The experts of one token.
pub(super) unsafe fn select_baseline<T: Logit>(
    gating_output: Global<T>, // [num_tokens, num_columns]
    bias: Global<f32>,        // [num_experts], or null
    params: TopkParams,
    topk_ids: GlobalMut<i32>,     // [num_tokens, top_k + num_shared]
    topk_weights: GlobalMut<f32>, // [num_tokens, top_k + num_shared]
) {
    let (t, token) = (thread::thread_idx_x(), thread::block_idx_x());
    let places = Places::new(params.num_experts);
    let row = gating_output.offset(token as usize * params.num_columns as usize);
    let logit = |expert: u32| clean(row.load(expert as usize).to_f32());
    let has_bias = !bias.is_null();

    let mut scorer = Scorer::new(params.scoring, 0.0);
    if params.scoring == Scoring::SOFTMAX {
        let mut maximum = f32::NEG_INFINITY;
        let mut expert = t;
        while expert < params.num_experts {
            maximum = maximum.max(logit(expert));
            expert += BASELINE_THREADS;
        }
        scorer = Scorer::new(params.scoring, places.reduce(maximum, f32::max));
    }
    let (mut sum, mut expert) = (0.0, t);
    while expert < params.num_experts {
        let score = scorer.score(logit(expert));
        places.scores.store(expert as usize, score);
        sum += score;
        expert += BASELINE_THREADS;
    }
    if Scorer::needs_sum(&params, has_bias) {
        scorer.scale = reciprocal_or_zero(places.reduce(sum, |a, b| a + b));
    }
    let mut expert = t;
    while expert < params.num_experts {
        let score = places.scores.load(expert as usize) * scorer.scale;
        let choice = if has_bias { score + bias.load(expert as usize) } else { logit(expert) };
        places.scores.store(expert as usize, score);
        places.keys.store(expert as usize, key_of(choice));
        expert += BASELINE_THREADS;
    }
    thread::sync_threads();
    if params.has_group_limit() {
        limit_groups(&places, bias, &params);
    }

    for slot in 0..params.top_k as usize {
        let best = places.best(params.num_experts);
        if t == 0 {
            places.ids.store(slot, best);
            places.weights.store(slot, places.scores.load(best as usize));
            places.keys.store(best as usize, NO_KEY);
        }
        thread::sync_threads();
    }
    let mut scale = params.routed_scaling_factor;
    if params.renormalize == 1 {
        let mut sum = 0.0;
        for slot in 0..params.top_k as usize {
            sum += places.weights.load(slot);
        }
        scale *= reciprocal_or_zero(sum);
    }
    if t < params.num_slots() {
        let (id, weight) = if t < params.top_k {
            (places.ids.load(t as usize), places.weights.load(t as usize) * scale)
        } else {
            (params.num_experts + t - params.top_k, shared_weight(row, &params))
        };
        let place = (token * params.num_slots() + t) as usize;
        topk_ids.store(place, id as i32);
        topk_weights.store(place, weight);
    }
}

/// Takes the keys of experts whose group is not kept.
#[inline(always)]
unsafe fn limit_groups(places: &Places, bias: Global<f32>, params: &TopkParams) {
    let group_size = params.group_size;
    let mut group = thread::thread_idx_x();
    while group < params.num_groups {
        let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for i in 0..group_size {
            let expert = (group * group_size + i) as usize;
            let score = places.scores.load(expert);
            let value = if bias.is_null() { score } else { score + bias.load(expert) };
            let value = value.max(f32::NEG_INFINITY);
            second = first.min(value).max(second);
            first = first.max(value);
        }
        let value = if group_size == 1 { first } else { first + second };
        places.group_keys.store(group as usize, key_of(value));
        group += BASELINE_THREADS;
    }
    thread::sync_threads();
    let mut expert = thread::thread_idx_x();
    while expert < params.num_experts {
        let group = expert / group_size;
        let own = places.group_keys.load(group as usize);
        let mut num_better = 0;
        for other in 0..params.num_groups {
            let value = places.group_keys.load(other as usize);
            num_better += u32::from(value > own || (value == own && other < group));
        }
        if num_better >= params.num_topk_groups {
            places.keys.store(expert as usize, NO_KEY);
        }
        expert += BASELINE_THREADS;
    }
    thread::sync_threads();
}
