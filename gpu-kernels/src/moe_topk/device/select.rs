//! A warp per token, `V` consecutive experts a lane.

use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

use super::score::{
    Logit, NO_KEY, Scorer, clean, key_of, reciprocal_or_zero, shared_slot, value_of,
};
use crate::moe_topk::{MAX_TOP_K, NUM_WARPS, Scoring, TopkParams};

/// Groups whose keys are on their way between lanes at once.
const GROUPS_IN_FLIGHT: u32 = 8;

/// The experts of one token.
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
    let mut entries = [0; V];
    for i in 0..V {
        let key = if own.has(i) { key_of(choices[i]) } else { NO_KEY };
        entries[i] = entry(key, i, V);
    }

    let memory = WarpMemory::new(warp, &params);
    let has_uneven_groups = params.has_group_limit() && params.group_lanes == 0;
    if has_uneven_groups {
        let values = if has_bias { choices } else { scorer.scores(&logits) };
        let kept = memory.kept_groups(&own, &values, &params);
        for i in 0..V {
            if own.has(i) && kept.load((own.expert(i) / params.group_size) as usize) == 0 {
                entries[i] = entry(NO_KEY, i, V);
            }
        }
    }
    let mut sorted = Sorted::new(entries);
    if params.has_group_limit() && !has_uneven_groups {
        let mut best = [value_of(sorted.keys[0]), value_of(sorted.keys[1])];
        if !has_bias {
            best = scorer.scores(&best);
        }
        sorted.keep_if(is_group_of_lanes_kept(best, &params));
    }

    memory.choose(sorted, own.first, params.top_k);
    let (mut id, mut weight) = (0, 0.0);
    if lane < params.top_k {
        id = memory.ids.load(lane as usize);
        weight = scorer.score(clean(row.load(id as usize).to_f32()));
    }
    if params.renormalize == 1 {
        weight *= reciprocal_or_zero(warp::reduce_sum(weight, MAX_TOP_K));
    }
    weight *= params.routed_scaling_factor;
    if lane >= params.top_k {
        (id, weight) = shared_slot(row, lane, &params);
    }
    if lane < params.num_slots() {
        let place = (token * params.num_slots() + lane) as usize;
        topk_ids.store(place, id as i32);
        topk_weights.store(place, weight);
    }
}

/// The experts of a lane.
#[derive(Clone, Copy)]
struct Own<const V: usize> {
    first: u32,
    num_experts: u32,
}

impl<const V: usize> Own<V> {
    #[inline(always)]
    fn expert(&self, i: usize) -> u32 {
        self.first + i as u32
    }

    #[inline(always)]
    fn has(&self, i: usize) -> bool {
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

/// Whether this lane's group is kept, where `group_lanes` consecutive lanes are a group; `best` are
/// the lane's two best values.
#[inline(always)]
unsafe fn is_group_of_lanes_kept([mut first, mut second]: [f32; 2], params: &TopkParams) -> bool {
    let mut lane_mask = 1;
    while lane_mask < params.group_lanes {
        let (other_first, _) = warp::warp_shuffle_xor(FULL_MASK, first, lane_mask, WARP_SIZE);
        let (other_second, _) = warp::warp_shuffle_xor(FULL_MASK, second, lane_mask, WARP_SIZE);
        second = first.min(other_first).max(second.max(other_second));
        first = first.max(other_first);
        lane_mask *= 2;
    }
    let value = key_of(first + second);
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

/// A warp's shared memory.
#[derive(Clone, Copy)]
struct WarpMemory {
    ids: Shared<u32>,        // [MAX_TOP_K]
    values: Shared<f32>,     // [num_experts], where groups are not whole lanes; here and below
    group_keys: Shared<u32>, // [num_experts], one for each group
}

impl WarpMemory {
    #[inline(always)]
    unsafe fn new(warp: u32, params: &TopkParams) -> Self {
        let num_experts = params.num_experts as usize;
        let words = shared::dynamic_shared_mem::<u32>();
        let ids = words.offset((warp * MAX_TOP_K) as usize);
        let groups = words.offset((NUM_WARPS * MAX_TOP_K + warp * 2 * params.num_experts) as usize);
        Self { ids, values: groups.cast(), group_keys: groups.offset(num_experts) }
    }

    /// Which groups are kept, 1 or 0: `[num_groups]`.
    #[inline(always)]
    unsafe fn kept_groups<const V: usize>(
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

    /// Leaves the best experts in `ids`, best first.
    #[inline(always)]
    unsafe fn choose<const V: usize>(&self, mut sorted: Sorted<V>, first_expert: u32, top_k: u32) {
        let lower_lanes = (1 << warp::lane_id()) - 1;
        for slot in 0..top_k {
            let head = sorted.keys[0];
            let has_best = head == warp::warp_reduce_max(FULL_MASK, head);
            let holders = warp::warp_vote_ballot(FULL_MASK, has_best);
            let is_chosen = has_best & (holders & lower_lanes == 0);
            if is_chosen {
                self.ids.store(slot as usize, first_expert + sorted.place());
            }
            sorted.go_on_if(is_chosen);
        }
        warp::sync_warp(FULL_MASK);
    }
}

/// The choices of a lane, best first.
struct Sorted<const V: usize> {
    keys: [u32; V],
    /// Where each of them was: 4 bits, the best one's lowest.
    places: u64,
}

impl<const V: usize> Sorted<V> {
    #[inline(always)]
    fn new(mut entries: [u64; V]) -> Self {
        sort_descending(&mut entries);
        let (mut keys, mut places) = ([NO_KEY; V], 0);
        for i in 0..V {
            keys[i] = (entries[i] >> 32) as u32;
            places |= u64::from(V as u32 - 1 - entries[i] as u32) << (4 * i);
        }
        Self { keys, places }
    }

    /// Where the best one was.
    #[inline(always)]
    fn place(&self) -> u32 {
        self.places as u32 & 15
    }

    /// Leaves no candidate unless `is_kept`.
    #[inline(always)]
    fn keep_if(&mut self, is_kept: bool) {
        for i in 0..V {
            self.keys[i] &= mask(is_kept);
        }
    }

    /// Takes the best one away if `is_chosen`.
    #[inline(always)]
    fn go_on_if(&mut self, is_chosen: bool) {
        let mask = mask(is_chosen);
        for i in 1..V {
            self.keys[i - 1] = self.keys[i - 1] & !mask | self.keys[i] & mask;
        }
        self.keys[V - 1] &= !mask;
        self.places >>= 4 & mask;
    }
}

/// All bits, or none: with it arrays are changed by arithmetic. Of a choice between two elements LLVM
/// makes one between their addresses, and the array goes to local memory.
#[inline(always)]
fn mask(condition: bool) -> u32 {
    0u32.wrapping_sub(u32::from(condition))
}

/// A choice and its place among `num` as one number, of which the greater is the better one.
#[inline(always)]
fn entry(key: u32, place: usize, num: usize) -> u64 {
    u64::from(key) << 32 | (num - 1 - place) as u64
}

/// Most comparisons of a sorting network here: of 16 entries.
const MAX_COMPARISONS: usize = 63;

/// Batcher's odd-even merge sort: which places are compared, and how often.
const fn network(num_entries: usize) -> ([[usize; 2]; MAX_COMPARISONS], usize) {
    let (mut pairs, mut len) = ([[0; 2]; MAX_COMPARISONS], 0);
    let mut run = 1;
    while run < num_entries {
        let mut distance = run;
        while distance > 0 {
            let mut begin = distance % run;
            while begin + distance < num_entries {
                let mut i = 0;
                while i < distance && begin + i + distance < num_entries {
                    let (low, high) = (begin + i, begin + i + distance);
                    if low / (2 * run) == high / (2 * run) {
                        pairs[len] = [low, high];
                        len += 1;
                    }
                    i += 1;
                }
                begin += 2 * distance;
            }
            distance /= 2;
        }
        run *= 2;
    }
    (pairs, len)
}

struct Network<const V: usize>;

impl<const V: usize> Network<V> {
    const PAIRS: [[usize; 2]; MAX_COMPARISONS] = network(V).0;
    const LEN: usize = network(V).1;
}

#[inline(always)]
fn sort_descending<const V: usize>(entries: &mut [u64; V]) {
    for i in 0..Network::<V>::LEN {
        let [low, high] = Network::<V>::PAIRS[i];
        let (a, b) = (entries[low], entries[high]);
        entries[low] = a.max(b);
        entries[high] = a.min(b);
    }
}
