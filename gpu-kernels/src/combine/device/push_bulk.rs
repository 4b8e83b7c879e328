//! Many tokens: rows through shared memory to the peers' staging areas, and from this rank's into the
//! sums.

use cuda_std::prelude::*;

use super::super::push_chunk_shift;
use super::chunks::Chunks;
use super::ring::{self, Member};
use super::sender::{PROGRESS, READY, Sender, progress_of};
use crate::dispatch::device::deadline::Deadline;
use crate::dispatch::device::signals::Signals;
use crate::dispatch::{ExchangeParams, Half};

/// Blocks with chunks of tokens. Of `num_senders` one thread each sends to the peers, the others are
/// groups that add. They take turns, so that no two senders are neighbours.
#[kernel(target = "sm_90a", threads = 480)]
pub unsafe fn combine_push_bulk(
    partial: Global<u32>,       // [ep_size, num_max_tokens, row_units, 4]
    recv_topk_ids: Global<i32>, // [ep_size, num_max_tokens, topk]
    topk_ids: Global<i32>,      // [num_tokens, topk]
    staging_ptrs: Global<u64>,  // [ep_size], of [ep_size - 1, num_max_tokens, row_units, 4]
    signal_ptrs: Global<u64>,   // [ep_size], of [2, ep_size - 1, num_senders]
    out: GlobalMut<u32>,        // [num_tokens, row_units, 4]
    epochs: GlobalMut<u32>,     // [num_blocks]
    late: GlobalMut<u32>,       // [2 * ep_size + 1]
    params: ExchangeParams,
) {
    let thread = thread::thread_idx_x();
    let is_issuer = thread == 0;
    // A thread of the second warp deals with one rank: this one at step 0.
    let step = thread.wrapping_sub(warp::WARP_SIZE);
    let (block, grid) = (thread::block_idx_x(), thread::grid_dim_x());
    let num_senders = params.num_senders;
    let senders_before = |block: u32| (block * num_senders).div_ceil(grid);
    let sender_idx = senders_before(block);
    let is_sender = senders_before(block + 1) > sender_idx;
    let epoch = epochs.load(block as usize).wrapping_add(1);
    let deadline = Deadline::of_call(Half::Combine, epoch, late, &params);
    let signals = Signals { signal_ptrs, deadline, params: &params };
    let shift = push_chunk_shift(num_senders);
    let chunks = match is_sender {
        true => Chunks::new(sender_idx, num_senders, shift, params.num_max_tokens),
        false => Chunks::new(block - sender_idx, grid - num_senders, shift, params.num_tokens),
    };
    let has_peer = is_sender && (1..params.ep_size).contains(&step);

    if has_peer {
        signals.tell(READY, step, sender_idx, epoch);
    }
    let row_bytes = 16 * u64::from(params.row_units);
    let area_bytes = u64::from(params.num_max_tokens) * row_bytes;
    if step < params.ep_size {
        // Where a sender writes on the rank `step` after this one, and where parts are added from.
        let rank = params.rank_after(step);
        let address = match (is_sender, step) {
            (true, 0) => 0,
            (true, _) => {
                let area = params.ep_size - step - 1;
                staging_ptrs.load(rank as usize) + u64::from(area) * area_bytes
            }
            (false, 0) => partial.address() + u64::from(rank) * area_bytes,
            (false, _) => {
                staging_ptrs.load(params.ep_rank as usize) + u64::from(step - 1) * area_bytes
            }
        };
        ring::first_rows().store(rank as usize, address);
    }
    if is_issuer {
        ring::set_up();
    }
    let note = |first: u32| match is_sender {
        true => chunks.note_steps(first, recv_topk_ids, &params),
        false => chunks.note_ranks(first, topk_ids, &params),
    };
    note(0);
    thread::sync_threads();
    if is_issuer {
        epochs.store(block as usize, epoch);
    }
    let mut sender = Sender::new(partial, chunks, signals, epoch);
    if is_sender {
        if is_issuer {
            sender.begin_round(0);
        }
        if has_peer && !signals.wait(READY, step, sender_idx, epoch, 1) {
            ring::gave_up().store(0, 1);
        }
        thread::sync_threads();
        if ring::has_given_up() {
            if is_issuer {
                sender.drain();
            }
            return;
        }
    }

    let has_come = |chunk: u32, ranks: u32| {
        let all = chunks.global(chunk);
        let mut all_have = true;
        for rank in 0..params.ep_size {
            if ranks >> rank & 1 != 0 && rank != params.ep_rank {
                let source = params.step_to(rank);
                let target = progress_of(epoch, all / num_senders + 1, shift, &params);
                // Every rank that is late is counted: the one that died is late with most.
                all_have &= signals.wait(PROGRESS, source, all % num_senders, target, 1);
            }
        }
        all_have
    };
    let mut member = Member::of_this_thread();
    let mut first = 0;
    while first < chunks.num_chunks() {
        if !is_sender {
            member.add_round(chunks, first, out, &params, has_come);
        } else if is_issuer {
            sender.pass_on(first);
        }
        thread::sync_threads();
        if ring::has_given_up() {
            return;
        }
        first += chunks.chunks_per_round();
        if first < chunks.num_chunks() {
            note(first);
        }
        thread::sync_threads();
        if is_issuer && is_sender && first < chunks.num_chunks() {
            sender.begin_round(first);
        }
    }
}
