//! A block per request.

use cuda_std::prelude::*;
use cuda_std::warp::WARP_SIZE;

use super::block::{Block, Candidate};
use super::draw::{Draw, likelihood, load_rule};
use super::weight::{logprob, weight};
use crate::moe_topk::device::score::{Logit, clean, key_of, value_of};
use crate::sampling::{NO_TOKEN, NUM_STEPS, PIECE, ROW_THREADS, SamplingRule};

const NUM_WARPS: u32 = ROW_THREADS / WARP_SIZE;

/// The row of a block.
#[derive(Clone, Copy)]
struct Row<T> {
    logits: Global<T>, // [vocab_size]
    vocab_size: u32,
    block: Block<NUM_WARPS>,
}

impl<T: Logit> Row<T> {
    #[inline(always)]
    unsafe fn of_block(logits: Global<T>, vocab_size: u32) -> Self {
        let start = thread::block_idx_x() as usize * vocab_size as usize;
        let block = Block::new(shared::dynamic_shared_mem());
        Self { logits: logits.offset(start), vocab_size, block }
    }

    /// Calls `visit` with this thread's logits, eight at a time, and the first one's id, ascending.
    #[inline(always)]
    unsafe fn for_each(&self, mut visit: impl FnMut([f32; PIECE as usize], u32)) {
        let mut first = thread::thread_idx_x() * PIECE;
        while first < self.vocab_size {
            let mut logits = T::load_wide::<{ PIECE as usize }>(self.logits, first);
            for i in 0..PIECE as usize {
                logits[i] = clean(logits[i]);
            }
            visit(logits, first);
            first += ROW_THREADS * PIECE;
        }
    }

    /// The most likely token.
    #[inline(always)]
    unsafe fn best(&self) -> Candidate {
        let mut best = Candidate::NONE;
        self.for_each(|logits, first| {
            for i in 0..PIECE as usize {
                best = best.max(Candidate::new(key_of(logits[i]), first + i as u32));
            }
        });
        self.block.best(best)
    }

    /// The sum of what `of` makes of each logit.
    #[inline(always)]
    unsafe fn sum(&self, of: impl Fn(f32) -> u32) -> u64 {
        let mut sum = 0;
        self.for_each(|logits, _| {
            for i in 0..PIECE as usize {
                sum += u64::from(of(logits[i]));
            }
        });
        self.block.sum(sum)
    }

    /// How many steps the least likely token that is kept may be away.
    #[inline(always)]
    unsafe fn reach(&self, draw: &Draw) -> u32 {
        let mut reach = u32::MAX;
        if let Some(top_k) = draw.top_k() {
            let num_within = |steps| self.sum(|logit| u32::from(draw.steps(logit) <= steps));
            reach = first_of_steps(NUM_STEPS - 1, |steps| num_within(steps) >= u64::from(top_k));
        }
        if let Some(top_p) = draw.top_p() {
            let end = reach.min(NUM_STEPS - 1);
            let mass_within = |end| {
                self.sum(|logit| {
                    let steps = draw.steps(logit);
                    if steps <= end { likelihood(steps) } else { 0 }
                })
            };
            let needed = (mass_within(end) as f32 * top_p) as u64;
            reach = first_of_steps(end, |steps| mass_within(steps) >= needed);
        }
        reach
    }

    /// A token that is kept, drawn.
    #[inline(always)]
    unsafe fn drawn(&self, draw: &Draw, reach: u32) -> Candidate {
        let mut best = Candidate::NONE;
        self.for_each(|logits, first| {
            let [a, b, c, d, e, f, g, h] = logits;
            best = best.max(draw.best([a, b, c, d], first, reach));
            best = best.max(draw.best([e, f, g, h], first + 4, reach));
        });
        self.block.best(best)
    }

    /// Writes the token, and the logarithm of its probability.
    #[inline(always)]
    unsafe fn store(
        &self,
        token: u32,
        maximum: f32,
        token_ids: GlobalMut<i32>, // [batch]
        logprobs: GlobalMut<f32>,  // [batch]
    ) {
        let sum = self.sum(|logit| weight(logit, maximum));
        if thread::thread_idx_x() == 0 {
            let request = thread::block_idx_x() as usize;
            let is_empty = maximum == f32::NEG_INFINITY;
            let logit = clean(self.logits.load(token as usize).to_f32());
            token_ids.store(request, if is_empty { NO_TOKEN } else { token as i32 });
            logprobs.store(request, logprob(logit, maximum, sum));
        }
    }
}

/// The least number of steps up to `end` for which `is_enough` holds; `end` if it never does.
#[inline(always)]
unsafe fn first_of_steps(end: u32, is_enough: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (0, end);
    while low < high {
        let middle = (low + high) / 2;
        if is_enough(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// The most likely token of the block's row.
#[inline(always)]
pub(super) unsafe fn argmax_row<T: Logit>(
    logits: Global<T>, // [batch, vocab_size]
    vocab_size: u32,
    token_ids: GlobalMut<i32>, // [batch]
    logprobs: GlobalMut<f32>,  // [batch]
) {
    let row = Row::of_block(logits, vocab_size);
    let best = row.best();
    row.store(best.id(), value_of(best.key()), token_ids, logprobs);
}

/// A token of the block's row, by its request's rule.
#[inline(always)]
pub(super) unsafe fn choose_row<T: Logit>(
    logits: Global<T>, // [batch, vocab_size]
    vocab_size: u32,
    rules: Global<SamplingRule>, // [batch]
    token_ids: GlobalMut<i32>,   // [batch]
    logprobs: GlobalMut<f32>,    // [batch]
) {
    let row = Row::of_block(logits, vocab_size);
    let best = row.best();
    let maximum = value_of(best.key());
    let rule = load_rule(rules, thread::block_idx_x() as usize);
    let mut token = best.id();
    if let Some(draw) = Draw::new(rule, maximum) {
        token = row.drawn(&draw, row.reach(&draw)).id();
    }
    row.store(token, maximum, token_ids, logprobs);
}
