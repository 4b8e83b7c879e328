//! Many tokens on few multiprocessors: parts straight from the peers' partial results.

use cuda_std::prelude::*;

use super::super::PULL_CHUNK_SHIFT;
use super::chunks::Chunks;
use super::ring::{self, Member};
use crate::dispatch::device::deadline::Deadline;
use crate::dispatch::device::packets::{self, POISON};
use crate::dispatch::device::signals::Signals;
use crate::dispatch::{ExchangeParams, Half};

/// Signals: where the sender's partial results for the receiver lie, two words.
const ADDRESS: [u32; 2] = [0, 1];
/// Signal: the sender has read all.
const DONE: u32 = 2;

/// Blocks of groups that add, each block with chunks of tokens.
#[kernel(target = "sm_90a", threads = 480, early = true)]
pub unsafe fn combine_pull_bulk(
    partial: Global<u32>,     // [ep_size, num_max_tokens, row_units, 4]
    topk_ids: Global<i32>,    // [num_tokens, topk]
    signal_ptrs: Global<u64>, // [ep_size], of [3, ep_size - 1, num_blocks]
    out: GlobalMut<u32>,      // [num_tokens, row_units, 4]
    epochs: GlobalMut<u32>,   // [num_blocks]
    late: GlobalMut<u32>,     // [2 * ep_size + 1]
    params: ExchangeParams,
) {
    grid::launch_dependents();
    grid::wait_prerequisites();
    let thread = thread::thread_idx_x();
    let is_issuer = thread == 0;
    let (block, num_blocks) = (thread::block_idx_x(), thread::grid_dim_x());
    let chunks = Chunks::new(block, num_blocks, PULL_CHUNK_SHIFT, params.num_tokens);
    let epoch = epochs.load(block as usize).wrapping_add(1);
    let deadline = Deadline::of_call(Half::Combine, epoch, late, &params);
    let signals = Signals { signal_ptrs, deadline, params: &params };
    // A thread of the second warp deals with one rank: this one at step 0.
    let step = thread.wrapping_sub(warp::WARP_SIZE);
    let has_peer = (1..params.ep_size).contains(&step);

    let row_bytes = 16 * u64::from(params.row_units);
    let parts_of = |rank: u32| {
        partial.address() + u64::from(rank) * u64::from(params.num_max_tokens) * row_bytes
    };
    if has_peer {
        let address = parts_of(params.rank_after(step));
        signals.tell(ADDRESS[0], step, block, address as u32);
        signals.tell(ADDRESS[1], step, block, (address >> 32) as u32);
    }
    if is_issuer {
        ring::set_up();
        ring::first_rows().store(params.ep_rank as usize, parts_of(params.ep_rank));
    }
    thread::sync_threads();
    if is_issuer {
        epochs.store(block as usize, epoch);
    }
    if has_peer {
        let words = ADDRESS.map(|kind| signals.heard(kind, step, block));
        let low = packets::wait(words[0], 0, deadline);
        let high = packets::wait(words[1], 0, deadline);
        if let (Some(low), Some(high)) = (low, high) {
            atomic::load_acquire_sys(words[1].as_const(), 0);
            atomic::store_relaxed_sys(words[0], 0, POISON);
            atomic::store_relaxed_sys(words[1], 0, POISON);
            let address = u64::from(high) << 32 | u64::from(low);
            ring::first_rows().store(params.rank_after(step) as usize, address);
        } else {
            // Its address, and that it has read all.
            signals.is_late(step, 2);
            ring::gave_up().store(0, 1);
        }
    }
    chunks.note_ranks(0, topk_ids, &params);
    thread::sync_threads();
    if ring::has_given_up() {
        return;
    }

    let mut member = Member::of_this_thread();
    let mut first = 0;
    while first < chunks.num_chunks() {
        member.add_round(chunks, first, out, &params, |_, _| true);
        first += chunks.chunks_per_round();
        thread::sync_threads();
        if first < chunks.num_chunks() {
            chunks.note_ranks(first, topk_ids, &params);
        }
        thread::sync_threads();
    }
    if has_peer {
        atomic::store_release_sys(signals.told(DONE, step, block), 0, epoch);
        signals.wait(DONE, step, block, epoch, 1);
    }
}
