//! A block per request.

use cuda_std::prelude::*;
use cuda_std::warp::WARP_SIZE;

use super::block::{Block, Candidate};
use super::weight::{logprob, weight};
use crate::moe_topk::device::score::{Logit, clean, key_of, value_of};
use crate::sampling::{NO_TOKEN, PIECE, ROW_THREADS};

const NUM_WARPS: u32 = ROW_THREADS / WARP_SIZE;

/// Calls `visit` with this thread's logits of a row and their ids, ascending.
#[inline(always)]
unsafe fn for_each<T: Logit>(row: Global<T>, vocab_size: u32, mut visit: impl FnMut(f32, u32)) {
    let mut first = thread::thread_idx_x() * PIECE;
    while first < vocab_size {
        let logits = T::load_wide::<{ PIECE as usize }>(row, first);
        for i in 0..PIECE as usize {
            visit(clean(logits[i]), first + i as u32);
        }
        first += ROW_THREADS * PIECE;
    }
}

/// The most likely token of the block's row.
#[inline(always)]
pub(super) unsafe fn argmax_row<T: Logit>(
    logits: Global<T>, // [batch, vocab_size]
    vocab_size: u32,
    token_ids: GlobalMut<i32>, // [batch]
    logprobs: GlobalMut<f32>,  // [batch]
) {
    let request = thread::block_idx_x() as usize;
    let row = logits.offset(request * vocab_size as usize);
    let block = Block::<NUM_WARPS>::new(shared::dynamic_shared_mem());

    let mut best = Candidate::NONE;
    for_each(row, vocab_size, |logit, id| best = best.max(Candidate::new(key_of(logit), id)));
    let best = block.best(best);
    let maximum = value_of(best.key());

    let mut sum = 0;
    for_each(row, vocab_size, |logit, _| sum += u64::from(weight(logit, maximum)));
    let sum = block.sum(sum);

    if thread::thread_idx_x() == 0 {
        let is_empty = maximum == f32::NEG_INFINITY;
        token_ids.store(request, if is_empty { NO_TOKEN } else { best.id() as i32 });
        logprobs.store(request, logprob(maximum, maximum, sum));
    }
}
