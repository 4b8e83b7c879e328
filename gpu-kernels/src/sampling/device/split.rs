//! Several blocks per request, each with a slice of its row in shared memory.

use cuda_std::prelude::*;
use cuda_std::warp::WARP_SIZE;
use half::bf16;

use super::block::{Block, Candidate};
use super::draw::{Draw, load_rule};
use super::weight::{logprob, weight};
use crate::moe_topk::device::score::{Logit, clean, key_of, value_of};
use crate::sampling::{
    MAX_SLICES, NO_TOKEN, NUM_BINS, NUM_STEPS, SPLIT_THREADS, STEPS_PER_OCTAVE, SamplingRule,
    SplitParams,
};

const NUM_WARPS: u32 = SPLIT_THREADS / WARP_SIZE;
/// Steps of a bin of the first histogram; bins of the second are single steps.
const BIN_STEPS: u32 = NUM_STEPS / NUM_BINS;
/// Bins of a thread.
const THREAD_BINS: usize = (NUM_BINS / SPLIT_THREADS) as usize;
/// Likelihood of the first step of a bin, in the units of its histogram.
const BIN_ONE: f32 = 32_768.0;
/// The same of the most likely token, in units of all bins, as a power of two.
const LOG_ONE: f32 = 25.0;

/// What blocks of a group leave for each other, for each group.
#[derive(Clone, Copy)]
pub(super) struct Workspace {
    pub(super) arrived: GlobalMut<u32>, // [num_groups, 2], 0 before and after
    pub(super) candidates: GlobalMut<u64>, // [num_groups, 2, MAX_SLICES]
    pub(super) sums: GlobalMut<u64>,    // [num_groups, MAX_SLICES]
    pub(super) histograms: GlobalMut<u32>, // [num_groups, 2, MAX_SLICES, NUM_BINS]
}

/// A type of logits that slices hold.
pub(super) trait SliceLogit: Logit {
    /// Four logits of a slice.
    unsafe fn load_group(slice: Shared<Self>, first: u32) -> [f32; 4];
}

impl SliceLogit for f32 {
    #[inline(always)]
    unsafe fn load_group(slice: Shared<Self>, first: u32) -> [f32; 4] {
        slice.load_x4(first as usize).map(Self::from_bits)
    }
}

impl SliceLogit for bf16 {
    #[inline(always)]
    unsafe fn load_group(slice: Shared<Self>, first: u32) -> [f32; 4] {
        let words = slice.load_x2(first as usize);
        let ([a, b], [c, d]) = (Self::unpack(words[0]), Self::unpack(words[1]));
        [a, b, c, d]
    }
}

/// This block's slices, one of each row of its group.
struct Slices<T> {
    params: SplitParams,
    /// Which slice, of which group.
    slice: u32,
    group: u32,
    block: Block<NUM_WARPS>,
    histogram: Shared<u32>, // [NUM_BINS]
    found: Shared<u32>,     // [4]: a bin, and in two halves what is needed of it
    logits: Shared<T>,      // [slice_len]
    workspace: Workspace,
    num_meetings: u32,
    num_histograms: u32,
}

/// What a histogram counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    Tokens,
    Likelihood,
}

impl Counted {
    /// What a token so many steps away counts in its bin.
    #[inline(always)]
    fn of(self, steps: u32) -> u32 {
        match self {
            Self::Tokens => 1,
            Self::Likelihood => {
                let octaves = (steps % BIN_STEPS) as f32 * (1.0 / STEPS_PER_OCTAVE as f32);
                (float::exp2(-octaves) * BIN_ONE + 0.5) as u32
            }
        }
    }

    /// The same, of all of a bin whose first step is `steps`, in units that all bins share.
    #[inline(always)]
    fn of_bin(self, count: u64, steps: u32) -> u64 {
        match self {
            Self::Tokens => count,
            Self::Likelihood => {
                let octaves = steps as f32 * (1.0 / STEPS_PER_OCTAVE as f32);
                (count as f32 * float::exp2(LOG_ONE - 15.0 - octaves)) as u64
            }
        }
    }
}

impl<T: SliceLogit> Slices<T> {
    #[inline(always)]
    unsafe fn of_block(params: SplitParams, workspace: Workspace) -> Self {
        let words = shared::dynamic_shared_mem::<u32>();
        let group = thread::block_idx_x() / params.num_slices;
        Self {
            params,
            slice: thread::block_idx_x() - group * params.num_slices,
            group,
            block: Block::new(words.cast()),
            found: words.offset(2 * NUM_WARPS as usize),
            histogram: words.offset(2 * NUM_WARPS as usize + 4),
            logits: words.offset(2 * NUM_WARPS as usize + 4 + NUM_BINS as usize).cast(),
            workspace,
            num_meetings: 0,
            num_histograms: 0,
        }
    }

    /// The first token of the slice, and how many there are.
    #[inline(always)]
    fn range(&self) -> (u32, u32) {
        let first = self.slice * self.params.slice_len;
        (first, self.params.slice_len.min(self.params.vocab_size.saturating_sub(first)))
    }

    /// Waits until all blocks of the group are here; what they wrote is then visible to all.
    #[inline(always)]
    unsafe fn meet(&mut self) {
        thread::sync_threads();
        self.num_meetings += 1;
        let arrived = self.workspace.arrived.offset(2 * self.group as usize);
        let num_expected = self.num_meetings * self.params.num_slices;
        if self.params.num_slices > 1 {
            if thread::thread_idx_x() == 0 {
                atomic::fetch_add_acq_rel_gpu(arrived, 0, 1);
                while atomic::load_acquire_gpu(arrived.as_const(), 0) < num_expected {
                    thread::spin_pause();
                }
            }
            thread::sync_threads();
        }
    }

    /// Makes the counters ready for the next launch.
    #[inline(always)]
    unsafe fn leave(&self) {
        let arrived = self.workspace.arrived.offset(2 * self.group as usize);
        if thread::thread_idx_x() == 0 && self.params.num_slices > 1 {
            let num_left = atomic::fetch_add_relaxed_gpu(arrived, 1, 1);
            if num_left + 1 == self.params.num_slices {
                atomic::store_relaxed_gpu(arrived, 0, 0);
                atomic::store_relaxed_gpu(arrived, 1, 0);
            }
        }
    }

    /// Copies this block's slice of a row.
    #[inline(always)]
    unsafe fn load(&self, row: Global<T>) {
        let (first, len) = self.range();
        let per_word = (16 / size_of::<T>()) as u32;
        let mut idx = thread::thread_idx_x() * per_word;
        while idx < len {
            let source = row.offset((first + idx) as usize);
            async_copy::copy_shared_16_or_zero(self.logits.offset(idx as usize), source, true);
            idx += SPLIT_THREADS * per_word;
        }
        async_copy::commit_group();
        async_copy::wait_group::<0>();
        thread::sync_threads();
    }

    /// Calls `visit` with four logits of the slice at a time, and the id of the first.
    #[inline(always)]
    unsafe fn for_each(&self, mut visit: impl FnMut([f32; 4], u32)) {
        let (first, len) = self.range();
        let mut idx = thread::thread_idx_x() * 4;
        while idx < len {
            let mut logits = T::load_group(self.logits, idx);
            for i in 0..4 {
                logits[i] = clean(logits[i]);
            }
            visit(logits, first + idx);
            idx += 4 * SPLIT_THREADS;
        }
    }

    /// The best candidate of all blocks of the group; `turn` is 0, then 1, then 0 …
    #[inline(always)]
    unsafe fn best(&mut self, own: Candidate, turn: u32) -> Candidate {
        let best = self.block.best(own);
        let first = (2 * self.group + turn) * MAX_SLICES;
        if thread::thread_idx_x() == 0 {
            self.workspace.candidates.store((first + self.slice) as usize, best.to_bits());
        }
        self.meet();
        let mut best = Candidate::NONE;
        for slice in 0..self.params.num_slices {
            let bits = self.workspace.candidates.load((first + slice) as usize);
            best = best.max(Candidate::from_bits(bits));
        }
        best
    }

    /// How many steps the least likely token that is kept may be away.
    #[inline(always)]
    unsafe fn reach(&mut self, draw: &Draw) -> u32 {
        let mut reach = u32::MAX;
        if let Some(top_k) = draw.top_k() {
            reach = self.first_of_steps(draw, NUM_STEPS - 1, Counted::Tokens, |_| top_k.into());
        }
        if let Some(top_p) = draw.top_p() {
            let end = reach.min(NUM_STEPS - 1);
            let needed = |total: u64| ((total as f32 * top_p) as u64).max(1);
            reach = self.first_of_steps(draw, end, Counted::Likelihood, needed);
        }
        reach
    }

    /// The least number of steps up to `end` within which there is what is needed of all that lies
    /// within `end`; `end` if there is not so much.
    #[inline(always)]
    unsafe fn first_of_steps(
        &mut self,
        draw: &Draw,
        end: u32,
        counted: Counted,
        needed: impl Fn(u64) -> u64,
    ) -> u32 {
        self.count(|histogram, logit| {
            let steps = draw.steps(logit);
            if steps <= end {
                let bin = (steps / BIN_STEPS) as usize;
                atomic::fetch_add_shared(histogram, bin, counted.of(steps));
            }
        });
        let of_bin = |count, bin| counted.of_bin(count, bin * BIN_STEPS);
        let Some((bin, still_needed)) = self.bin_of(of_bin, needed) else { return end };
        let first = bin * BIN_STEPS;
        self.count(|histogram, logit| {
            let steps = draw.steps(logit);
            if steps <= end && steps / BIN_STEPS == bin {
                let step = (steps % BIN_STEPS) as usize;
                atomic::fetch_add_shared(histogram, step, counted.of(steps));
            }
        });
        let of_step = |count, _| counted.of_bin(count, first);
        match self.bin_of(of_step, |_| still_needed) {
            Some((step, _)) => first + step,
            // Roundings of the bin and of its steps differ.
            None => end.min(first + BIN_STEPS - 1),
        }
    }

    /// Makes this block's histogram of its slice, and leaves it for the others.
    #[inline(always)]
    unsafe fn count(&mut self, add: impl Fn(Shared<u32>, f32)) {
        let own = THREAD_BINS * thread::thread_idx_x() as usize;
        self.histogram.store_x4(own, [0; THREAD_BINS]);
        thread::sync_threads();
        self.for_each(|logits, _| {
            for i in 0..4 {
                add(self.histogram, logits[i]);
            }
        });
        thread::sync_threads();
        let slot = self.histogram_slot(self.slice);
        self.workspace.histograms.store_x4(slot + own, self.histogram.load_x4(own));
        self.meet();
    }

    /// Where the histogram of a slice lies. Each of two in turn: while some still read one, others
    /// write the next.
    #[inline(always)]
    fn histogram_slot(&self, slice: u32) -> usize {
        let turn = self.num_histograms % 2;
        (((2 * self.group + turn) * MAX_SLICES + slice) * NUM_BINS) as usize
    }

    /// The bin in which the sum over the bins of all slices reaches what is needed of the total, and
    /// how much of that is its own; none if it never does. `of_bin` makes an addend of a count.
    #[inline(always)]
    unsafe fn bin_of(
        &mut self,
        of_bin: impl Fn(u64, u32) -> u64,
        needed: impl Fn(u64) -> u64,
    ) -> Option<(u32, u64)> {
        let own = THREAD_BINS as u32 * thread::thread_idx_x();
        let mut counts = [0u64; THREAD_BINS];
        for slice in 0..self.params.num_slices {
            let place = self.histogram_slot(slice) + own as usize;
            let of_slice = self.workspace.histograms.load_x4(place);
            for i in 0..THREAD_BINS {
                counts[i] += u64::from(of_slice[i]);
            }
        }
        self.num_histograms += 1;
        let (mut addends, mut sum) = ([0; THREAD_BINS], 0);
        for i in 0..THREAD_BINS {
            addends[i] = of_bin(counts[i], own + i as u32);
            sum += addends[i];
        }
        let (end, total) = self.block.sums_up_to_here(sum);
        let needed = needed(total);
        if needed > total {
            return None;
        }
        let before = end - sum;
        if before < needed && needed <= end {
            let (mut bin, mut still_needed) = (own, needed - before);
            for i in 0..THREAD_BINS {
                if bin == own + i as u32 && addends[i] < still_needed {
                    still_needed -= addends[i];
                    bin += 1;
                }
            }
            let (low, high) = (still_needed as u32, (still_needed >> 32) as u32);
            self.found.store_x4(0, [bin, low, high, 0]);
        }
        thread::sync_threads();
        let [bin, low, high, _] = self.found.load_x4(0);
        thread::sync_threads();
        Some((bin, u64::from(high) << 32 | u64::from(low)))
    }

    /// The token of a row by its request's rule.
    #[inline(always)]
    unsafe fn choose(
        &mut self,
        row: Global<T>, // [vocab_size]
        rule: SamplingRule,
        token_id: GlobalMut<i32>, // [1]
        log_prob: GlobalMut<f32>, // [1]
    ) {
        self.load(row);
        let mut own = Candidate::NONE;
        self.for_each(|logits, first| {
            for i in 0..4 {
                own = own.max(Candidate::new(key_of(logits[i]), first + i as u32));
            }
        });
        let mut best = self.best(own, 0);
        let maximum = value_of(best.key());

        let draw = Draw::new(rule, maximum);
        let reach = match &draw {
            Some(draw) => self.reach(draw),
            None => 0,
        };
        let (mut sum, mut own) = (0, Candidate::NONE);
        self.for_each(|logits, first| {
            for i in 0..4 {
                sum += u64::from(weight(logits[i], maximum));
            }
            if let Some(draw) = &draw {
                own = own.max(draw.best(logits, first, reach));
            }
        });
        let sum = self.block.sum(sum);
        if thread::thread_idx_x() == 0 {
            let place = self.group * MAX_SLICES + self.slice;
            self.workspace.sums.store(place as usize, sum);
        }
        let drawn = self.best(own, 1);
        if draw.is_some() {
            best = drawn;
        }
        if self.slice == 0 && thread::thread_idx_x() == 0 {
            let mut sum = 0;
            for slice in 0..self.params.num_slices {
                sum += self.workspace.sums.load((self.group * MAX_SLICES + slice) as usize);
            }
            let is_empty = maximum == f32::NEG_INFINITY;
            let logit = clean(row.load(best.id() as usize).to_f32());
            token_id.store(0, if is_empty { NO_TOKEN } else { best.id() as i32 });
            log_prob.store(0, logprob(logit, maximum, sum));
        }
    }
}

/// Tokens of all rows of this block's group.
#[inline(always)]
pub(super) unsafe fn choose_split<T: SliceLogit>(
    logits: Global<T>,           // [batch, vocab_size]
    rules: Global<SamplingRule>, // [batch], or null for the most likely tokens
    params: SplitParams,
    workspace: Workspace,
    token_ids: GlobalMut<i32>, // [batch]
    logprobs: GlobalMut<f32>,  // [batch]
) {
    let mut slices = Slices::<T>::of_block(params, workspace);
    let num_groups = thread::grid_dim_x() / params.num_slices;
    let mut request = slices.group;
    while request < params.batch {
        let place = request as usize;
        let row = logits.offset(place * params.vocab_size as usize);
        let rule = match rules.is_null() {
            true => SamplingRule::GREEDY,
            false => load_rule(rules, place),
        };
        slices.choose(row, rule, token_ids.offset(place), logprobs.offset(place));
        request += num_groups;
    }
    slices.leave();
}
