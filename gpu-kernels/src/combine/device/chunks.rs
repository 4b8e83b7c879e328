//! Which tokens a block of the bulk kernels deals with, and which ranks have a part of each.

use cuda_std::prelude::*;

use super::super::{BULK_THREADS, MARKS_AT, NUM_GROUPS, NUM_MARKS};
use crate::dispatch::ExchangeParams;
use crate::dispatch::device::packets::owner_of;

/// Ids of a token that a thread has in flight.
const IDS: usize = 4;

/// Tokens in chunks, dealt round to blocks; a block goes through its own in rounds.
#[derive(Clone, Copy)]
pub(super) struct Chunks {
    /// Of those that do the same.
    block: u32,
    num_blocks: u32,
    /// Tokens of a chunk, as a power of two.
    shift: u32,
    /// Of all blocks.
    num_tokens: u32,
}

impl Chunks {
    #[inline(always)]
    pub(super) fn new(block: u32, num_blocks: u32, shift: u32, num_tokens: u32) -> Self {
        Self { block, num_blocks, shift, num_tokens }
    }

    /// Which of those that do the same.
    #[inline(always)]
    pub(super) fn block(self) -> u32 {
        self.block
    }

    /// Of a chunk.
    #[inline(always)]
    pub(super) fn tokens_per_chunk(self) -> u32 {
        1 << self.shift
    }

    /// Of a round.
    #[inline(always)]
    pub(super) fn chunks_per_round(self) -> u32 {
        NUM_MARKS >> self.shift
    }

    /// Of this block.
    #[inline(always)]
    pub(super) fn num_chunks(self) -> u32 {
        let all = self.num_tokens.div_ceil(self.tokens_per_chunk());
        (all + self.num_blocks - 1 - self.block) / self.num_blocks
    }

    /// Chunks of this block, from number `first` on, in one round.
    #[inline(always)]
    pub(super) fn in_round(self, first: u32) -> u32 {
        (self.num_chunks() - first).min(self.chunks_per_round())
    }

    /// Which of all blocks' chunks this block's chunk of number `chunk` is.
    #[inline(always)]
    pub(super) fn global(self, chunk: u32) -> u32 {
        self.block + chunk * self.num_blocks
    }

    /// The token of number `i` in this block's chunk of number `chunk`; there may be none.
    #[inline(always)]
    pub(super) fn token(self, chunk: u32, i: u32) -> u32 {
        (self.global(chunk) << self.shift) + i
    }

    /// The group of a block that adds that token.
    #[inline(always)]
    pub(super) fn group(self, chunk: u32, i: u32) -> u32 {
        ((chunk << self.shift) + i) % NUM_GROUPS
    }

    /// The mark of a token of the round that begins with chunk `first`.
    #[inline(always)]
    pub(super) unsafe fn mark(self, first: u32, chunk: u32, i: u32) -> u32 {
        marks().load((((chunk - first) << self.shift) + i) as usize)
    }

    /// Leaves the marks of a round in shared memory; 0 where there is no token.
    #[inline(always)]
    unsafe fn note(self, first: u32, mark_of: impl Fn(u32) -> u32) {
        let mut idx = thread::thread_idx_x();
        while idx < self.in_round(first) << self.shift {
            let i = idx & (self.tokens_per_chunk() - 1);
            let token = self.token(first + (idx >> self.shift), i);
            marks().store(idx as usize, if token < self.num_tokens { mark_of(token) } else { 0 });
            idx += BULK_THREADS;
        }
    }

    /// Marks tokens with the ranks that have a part of their sums, one bit a rank.
    #[inline(always)]
    pub(super) unsafe fn note_ranks(
        self,
        first: u32,
        topk_ids: Global<i32>,
        params: &ExchangeParams,
    ) {
        self.note(first, |token| {
            let mut ranks = 0;
            for_each_id(topk_ids, token as usize, params.topk, |id| {
                let owner = owner_of(id, params);
                if owner < params.ep_size {
                    ranks |= 1 << owner;
                }
            });
            ranks
        });
    }

    /// Marks slots with the peers that a row came from, one bit for each step to a peer.
    #[inline(always)]
    pub(super) unsafe fn note_steps(
        self,
        first: u32,
        recv_topk_ids: Global<i32>,
        params: &ExchangeParams,
    ) {
        self.note(first, |token| {
            let mut steps = 0;
            for step in 1..params.ep_size {
                let source = params.rank_after(step) as usize;
                let slot = source * params.num_max_tokens as usize + token as usize;
                for_each_id(recv_topk_ids, slot, params.topk, |id| {
                    steps |= u32::from(id >= 0) << step;
                });
            }
            steps
        });
    }
}

#[inline(always)]
unsafe fn for_each_id(ids: Global<i32>, slot: usize, topk: u32, mut each: impl FnMut(i32)) {
    let first = slot * topk as usize;
    let mut k = 0;
    while k < topk {
        let mut some = [-1; IDS];
        for (i, id) in some.iter_mut().enumerate() {
            if k + (i as u32) < topk {
                *id = ids.load(first + k as usize + i);
            }
        }
        for &id in &some {
            each(id);
        }
        k += IDS as u32;
    }
}

#[inline(always)]
unsafe fn marks() -> Shared<u32> {
    shared::dynamic_shared_mem::<u8>().offset(MARKS_AT as usize).cast()
}
