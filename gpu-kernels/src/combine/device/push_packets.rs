//! Few tokens: registers to the peers' staging areas, and from this rank's into the sums.

use cuda_std::prelude::*;

use super::super::PACKETS_THREADS;
use super::{add, id_of_lane, round};
use crate::dispatch::device::deadline::Deadline;
use crate::dispatch::device::packets::{self, Peers, Records, owner_of, ranks_of};
use crate::dispatch::{ExchangeParams, Half};

/// Times 16 bytes that a thread has in flight.
const UNITS: usize = 2;

/// One block per token, round after round: sends back what came in the token's slots, then takes in
/// what comes for the token.
#[kernel(threads = 512, early = true)]
pub unsafe fn combine_push_packets(
    partial: Global<u32>,       // [ep_size, num_max_tokens, row_units, 4]
    recv_topk_ids: Global<i32>, // [ep_size, num_max_tokens, topk]
    topk_ids: Global<i32>,      // [num_tokens, topk]
    peer_ptrs: Global<u64>,     // [ep_size], of staging areas
    out: GlobalMut<u32>,        // [num_tokens, row_units, 4]
    epochs: GlobalMut<u32>,     // [num_blocks]
    late: GlobalMut<u32>,       // [2 * ep_size + 1]
    params: ExchangeParams,
) {
    grid::launch_dependents();
    let block = thread::block_idx_x();
    let warp_idx = thread::thread_idx_x() / warp::WARP_SIZE;
    let peers = Peers::new(peer_ptrs, &params);
    grid::wait_prerequisites();
    let epoch = epochs.load(block as usize);
    let deadline = Deadline::of_call(Half::Combine, epoch, late, &params);
    let records = Records::new(epoch, 16 * params.row_units, &params);
    let calls = Calls { peers, deadline, epoch, params: &params };
    let tokens = Tokens { partial, peers, records, params: &params };
    if block == 0 && warp_idx == 0 {
        calls.tell();
    }
    let mut token = block;
    while token < params.num_max_tokens {
        tokens.send(recv_topk_ids, token);
        token += thread::grid_dim_x();
    }
    token = block;
    while token < params.num_tokens {
        tokens.receive(topk_ids, out, deadline, token);
        token += thread::grid_dim_x();
    }
    if block == 0 && warp_idx == 0 {
        calls.wait();
    }
    // Every warp has read this block's epoch.
    thread::sync_threads();
    if thread::thread_idx_x() == 0 {
        epochs.store(block as usize, epoch.wrapping_add(1));
    }
}

/// Tells the peers that this call has begun, and waits until theirs has. Between ranks that have no
/// rows for each other nothing else would keep one from running two calls ahead, into a staging
/// area that the other still reads.
#[derive(Clone, Copy)]
struct Calls<'a> {
    peers: Peers,
    deadline: Deadline,
    epoch: u32,
    params: &'a ExchangeParams,
}

impl Calls<'_> {
    /// The words of `rank`, behind its staging area. // [ep_size - 1]
    #[inline(always)]
    unsafe fn words(self, rank: u32) -> GlobalMut<u32> {
        let num_peers = self.params.ep_size - 1;
        let num_records = 2 * u64::from(num_peers) * u64::from(self.params.num_max_tokens);
        let offset = num_records * 16 * u64::from(self.params.row_units);
        self.peers.area(rank, offset, num_peers)
    }

    #[inline(always)]
    unsafe fn tell(self) {
        for step in 1..self.params.ep_size {
            let words = self.words(self.params.rank_after(step));
            if warp::lane_id() == 0 {
                let area = self.params.ep_size - step - 1;
                atomic::store_relaxed_sys(words, area as usize, self.epoch);
            }
        }
    }

    /// A peer may be one call ahead already.
    #[inline(always)]
    unsafe fn wait(self) {
        let words = self.words(self.params.ep_rank).as_const();
        let mut step = warp::lane_id() + 1;
        while step < self.params.ep_size {
            let area = step as usize - 1;
            let mut num_looks = 0;
            // Epochs wrap around: compared by their difference.
            while (atomic::load_relaxed_sys(words, area).wrapping_sub(self.epoch) as i32) < 0 {
                num_looks += 1;
                if self.deadline.has_passed(num_looks) {
                    self.deadline.count_late(self.params.rank_after(step), 1);
                    break;
                }
            }
            step += warp::WARP_SIZE;
        }
    }
}

/// What a block works with.
#[derive(Clone, Copy)]
struct Tokens<'a> {
    partial: Global<u32>,
    peers: Peers,
    records: Records,
    params: &'a ExchangeParams,
}

impl Tokens<'_> {
    /// The partial results of `token` of `source`.
    #[inline(always)]
    unsafe fn row(self, source: u32, token: u32) -> Global<u32> {
        let slot = source as usize * self.params.num_max_tokens as usize + token as usize;
        self.partial.offset(slot * 4 * self.params.row_units as usize)
    }

    /// Sends back the rows that came from the peers' `token`.
    #[inline(always)]
    unsafe fn send(self, recv_topk_ids: Global<i32>, token: u32) {
        let Self { peers, records, params, .. } = self;
        for step in 1..params.ep_size {
            let source = params.rank_after(step);
            let first_slot = source as usize * params.num_max_tokens as usize;
            let ids = recv_topk_ids.offset(first_slot * params.topk as usize);
            let id = id_of_lane(ids, token, params.num_max_tokens, params);
            let row = self.row(source, token);
            let mut first_unit = thread::thread_idx_x();
            while first_unit - thread::thread_idx_x() < params.row_units {
                let unit = |i: usize| first_unit + i as u32 * PACKETS_THREADS;
                let mut units = [[0; 4]; UNITS];
                // Under way while the ids are.
                for (i, value) in units.iter_mut().enumerate() {
                    if unit(i) < params.row_units {
                        *value = row.load_x4(4 * unit(i) as usize);
                    }
                }
                if warp::warp_vote_any(warp::FULL_MASK, id >= 0) {
                    let offset = records.sent_to(step, token);
                    let record = peers.area(source, offset, 4 * params.row_units);
                    for (i, &value) in units.iter().enumerate() {
                        if unit(i) < params.row_units {
                            packets::send_x4(record, 4 * unit(i) as usize, value);
                        }
                    }
                }
                first_unit += UNITS as u32 * PACKETS_THREADS;
            }
        }
    }

    /// Takes in and adds up what all ranks made of `token`.
    #[inline(always)]
    unsafe fn receive(
        self,
        topk_ids: Global<i32>,
        out: GlobalMut<u32>,
        deadline: Deadline,
        token: u32,
    ) {
        let Self { peers, records, params, .. } = self;
        let owner = owner_of(id_of_lane(topk_ids, token, params.num_tokens, params), params);
        let out = out.offset(token as usize * 4 * params.row_units as usize);
        let mut late_ranks = 0;
        let mut first_unit = thread::thread_idx_x();
        while first_unit - thread::thread_idx_x() < params.row_units {
            let unit = |i: usize| first_unit + i as u32 * PACKETS_THREADS;
            let mut own = [[0; 4]; UNITS];
            for (i, value) in own.iter_mut().enumerate() {
                if unit(i) < params.row_units {
                    *value = self.row(params.ep_rank, token).load_x4(4 * unit(i) as usize);
                }
            }
            let ranks = ranks_of(owner, params);
            let mut sums = [[0.0; 8]; UNITS];
            for rank in 0..params.ep_size {
                if ranks >> rank & 1 == 0 {
                    continue;
                }
                if rank == params.ep_rank {
                    for (sum, &value) in sums.iter_mut().zip(&own) {
                        add(sum, value);
                    }
                    continue;
                }
                let offset = records.received_from(params.step_to(rank), token);
                let record = peers.area(params.ep_rank, offset, 4 * params.row_units);
                let mut units = [[0; 4]; UNITS];
                for (i, seen) in units.iter_mut().enumerate() {
                    if unit(i) < params.row_units {
                        let place = 4 * unit(i) as usize;
                        *seen = atomic::load_relaxed_sys_x4(record.as_const(), place);
                    }
                }
                for (i, (sum, &seen)) in sums.iter_mut().zip(&units).enumerate() {
                    if unit(i) < params.row_units {
                        match packets::take_x4(record, 4 * unit(i) as usize, seen, deadline) {
                            Some(value) => add(sum, value),
                            None => late_ranks |= 1 << rank,
                        }
                    }
                }
            }
            for (i, sum) in sums.iter().enumerate() {
                if unit(i) < params.row_units {
                    out.store_x4(4 * unit(i) as usize, round(sum));
                }
            }
            first_unit += UNITS as u32 * PACKETS_THREADS;
        }
        for rank in 0..params.ep_size {
            let is_late = warp::warp_vote_any(warp::FULL_MASK, late_ranks >> rank & 1 != 0);
            if is_late && warp::lane_id() == 0 {
                deadline.count_late(rank, 1);
            }
        }
    }
}
