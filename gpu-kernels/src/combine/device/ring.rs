//! Parts of sums through rings of pieces in shared memory: of each group of a block one thread loads
//! them, and its helpers add them up.

use cuda_std::bulk::Mbarrier;
use cuda_std::prelude::*;

use super::super::{
    ADDED_UNITS, EMPTY_AT, FIRST_ROWS_AT, FULL_AT, GAVE_UP_AT, GROUP_STAGES, GROUP_THREADS,
    NUM_GROUPS, NUM_HELPERS,
};
use super::chunks::Chunks;
use super::{add, round};
use crate::dispatch::{ExchangeParams, MAX_PIECE_BYTES, NUM_STAGES};

/// A stage of a ring, and the parity of the phase in which it is waited for.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub(super) stage: u32,
    pub(super) parity: u32,
    begin: u32,
    end: u32,
}

impl Turn {
    /// Of a block that sends: through all stages.
    #[inline(always)]
    pub(super) fn sending() -> Self {
        Self { stage: 0, parity: 0, begin: 0, end: NUM_STAGES }
    }

    #[inline(always)]
    pub(super) fn next(&mut self) {
        self.stage += 1;
        if self.stage == self.end {
            self.stage = self.begin;
            self.parity ^= 1;
        }
    }
}

/// This thread's part in a group.
pub(super) struct Member {
    group: u32,
    /// Among the helpers; none of them for the issuing thread's warp.
    helper: u32,
    turn: Turn,
}

impl Member {
    #[inline(always)]
    pub(super) fn of_this_thread() -> Self {
        let thread = thread::thread_idx_x();
        let group = thread / GROUP_THREADS;
        let helper = (thread % GROUP_THREADS).wrapping_sub(warp::WARP_SIZE);
        let begin = group * GROUP_STAGES;
        // Stages are empty at first.
        let parity = u32::from(helper >= NUM_HELPERS);
        let turn = Turn { stage: begin, parity, begin, end: begin + GROUP_STAGES };
        Self { group, helper, turn }
    }
}

#[inline(always)]
pub(super) unsafe fn stage(stage: u32) -> Shared<u8> {
    shared::dynamic_shared_mem::<u8>().offset((stage * MAX_PIECE_BYTES) as usize)
}

/// Completes when a stage's piece is there.
#[inline(always)]
pub(super) unsafe fn full(stage: u32) -> Mbarrier {
    Mbarrier::at(shared::dynamic_shared_mem::<u8>().offset((FULL_AT + 8 * stage) as usize).cast())
}

/// Completes when each warp of helpers has read a stage.
#[inline(always)]
unsafe fn empty(stage: u32) -> Mbarrier {
    Mbarrier::at(shared::dynamic_shared_mem::<u8>().offset((EMPTY_AT + 8 * stage) as usize).cast())
}

/// Where the parts of this rank's token 0 lie, by rank that made them.
#[inline(always)]
pub(super) unsafe fn first_rows() -> Shared<u64> {
    shared::dynamic_shared_mem::<u8>().offset(FIRST_ROWS_AT as usize).cast()
}

/// Whether a wait was in vain, by group.
#[inline(always)]
pub(super) unsafe fn gave_up() -> Shared<u32> {
    shared::dynamic_shared_mem::<u8>().offset(GAVE_UP_AT as usize).cast()
}

/// Whether any was.
#[inline(always)]
pub(super) unsafe fn has_given_up() -> bool {
    let mut words = 0;
    for group in 0..NUM_GROUPS {
        words |= gave_up().load(group as usize);
    }
    words != 0
}

/// Sets the barriers up; one thread calls it.
#[inline(always)]
pub(super) unsafe fn set_up() {
    for stage in 0..NUM_STAGES {
        full(stage).init(1);
        empty(stage).init(NUM_HELPERS / warp::WARP_SIZE);
    }
    bulk::fence_init();
    for group in 0..NUM_GROUPS {
        gave_up().store(group as usize, 0);
    }
}

#[inline(always)]
pub(super) fn bytes_of(piece: u32, params: &ExchangeParams) -> u32 {
    params.piece_bytes.min(16 * params.row_units - piece * params.piece_bytes)
}

impl Member {
    /// This thread's part of a round of a block that adds. `has_come` waits for the parts of a chunk
    /// that the ranks named in bits have.
    #[inline(always)]
    pub(super) unsafe fn add_round(
        &mut self,
        chunks: Chunks,
        first: u32,
        out: GlobalMut<u32>,
        params: &ExchangeParams,
        has_come: impl Fn(u32, u32) -> bool,
    ) {
        if self.helper < NUM_HELPERS {
            self.add(chunks, first, out, params);
        } else if warp::lane_id() == 0 {
            self.load(chunks, first, params, has_come);
        }
    }

    /// Loads the parts of the group's tokens, those of a token in the order of ranks. Where waiting
    /// is in vain the helpers are told.
    #[inline(always)]
    unsafe fn load(
        &mut self,
        chunks: Chunks,
        first: u32,
        params: &ExchangeParams,
        has_come: impl Fn(u32, u32) -> bool,
    ) {
        let turn = &mut self.turn;
        for chunk in first..first + chunks.in_round(first) {
            let mut any_ranks = 0;
            for i in 0..chunks.tokens_per_chunk() {
                if chunks.group(chunk, i) == self.group {
                    any_ranks |= chunks.mark(first, chunk, i);
                }
            }
            if !has_come(chunk, any_ranks) {
                empty(turn.stage).wait(turn.parity);
                gave_up().store(self.group as usize, 1);
                full(turn.stage).arrive();
                return;
            }
            for i in 0..chunks.tokens_per_chunk() {
                if chunks.group(chunk, i) != self.group {
                    continue;
                }
                let ranks = chunks.mark(first, chunk, i);
                let row = u64::from(chunks.token(chunk, i)) * 16 * u64::from(params.row_units);
                for piece in 0..params.pieces_per_row {
                    let bytes = bytes_of(piece, params);
                    let offset = row + u64::from(piece * params.piece_bytes);
                    for rank in 0..params.ep_size {
                        if ranks >> rank & 1 != 0 {
                            let address = first_rows().load(rank as usize) + offset;
                            let part = Global::<u8>::from_address(address, bytes as usize);
                            empty(turn.stage).wait(turn.parity);
                            full(turn.stage).arrive_expect_bytes(bytes);
                            bulk::load(stage(turn.stage), part, bytes, full(turn.stage));
                            turn.next();
                        }
                    }
                }
            }
        }
    }

    /// Adds up what comes.
    #[inline(always)]
    unsafe fn add(
        &mut self,
        chunks: Chunks,
        first: u32,
        out: GlobalMut<u32>,
        params: &ExchangeParams,
    ) {
        let unit = |i: usize| self.helper + i as u32 * NUM_HELPERS;
        let turn = &mut self.turn;
        for chunk in first..first + chunks.in_round(first) {
            for i in 0..chunks.tokens_per_chunk() {
                let token = chunks.token(chunk, i);
                if chunks.group(chunk, i) != self.group || token >= params.num_tokens {
                    continue;
                }
                let ranks = chunks.mark(first, chunk, i);
                let row = out.offset(token as usize * 4 * params.row_units as usize);
                for piece in 0..params.pieces_per_row {
                    let num_units = bytes_of(piece, params) / 16;
                    let mut sums = [[0.0; 8]; ADDED_UNITS];
                    for rank in 0..params.ep_size {
                        if ranks >> rank & 1 == 0 {
                            continue;
                        }
                        full(turn.stage).wait(turn.parity);
                        if gave_up().load(self.group as usize) != 0 {
                            return;
                        }
                        let part = stage(turn.stage).cast::<u32>();
                        for (i, sum) in sums.iter_mut().enumerate() {
                            if unit(i) < num_units {
                                add(sum, part.load_x4(4 * unit(i) as usize));
                            }
                        }
                        warp::sync_warp(warp::FULL_MASK);
                        if warp::lane_id() == 0 {
                            empty(turn.stage).arrive();
                        }
                        turn.next();
                    }
                    let row = row.offset((piece * params.piece_bytes / 4) as usize);
                    for (i, sum) in sums.iter().enumerate() {
                        if unit(i) < num_units {
                            row.store_x4(4 * unit(i) as usize, round(sum));
                        }
                    }
                }
            }
        }
    }
}
