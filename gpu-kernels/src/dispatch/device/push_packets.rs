//! Few tokens: registers to the peers' staging areas, and from this rank's to what it received.

use cuda_std::prelude::*;

use super::super::{ExchangeParams, Half, PACKETS_THREADS};
use super::deadline::Deadline;
use super::packets::{self, Peers, Records, owner_of, ranks_of};

/// Times 16 bytes that a thread has in flight.
const UNITS: usize = 2;

/// One block per token, round after round: sends it, then takes in the same token of each peer.
#[kernel(threads = 512, early = true)]
pub unsafe fn dispatch_push_packets(
    x: Global<u32>,                    // [num_tokens, row_units, 4]
    topk_ids: Global<i32>,             // [num_tokens, topk]
    topk_weights: Global<f32>,         // [num_tokens, topk]
    peer_ptrs: Global<u64>,            // [ep_size], of staging areas
    recv_x: GlobalMut<u32>,            // [ep_size, num_max_tokens, row_units, 4]
    recv_topk_ids: GlobalMut<i32>,     // [ep_size, num_max_tokens, topk]
    recv_topk_weights: GlobalMut<f32>, // [ep_size, num_max_tokens, topk]
    epochs: GlobalMut<u32>,            // [num_blocks]
    late: GlobalMut<u32>,              // [2 * ep_size + 1]
    params: ExchangeParams,
) {
    grid::launch_dependents();
    let block = thread::block_idx_x();
    let peers = Peers::new(peer_ptrs, &params);
    grid::wait_prerequisites();
    let epoch = epochs.load(block as usize);
    let deadline = Deadline::of_call(Half::Dispatch, epoch, late, &params);
    let records = Records::new(epoch, 16 * record_units(&params), &params);
    let received = Received { recv_x, recv_topk_ids, recv_topk_weights, params };

    let mut token = block;
    while token < params.num_max_tokens {
        send(x, topk_ids, topk_weights, peers, records, received, token);
        token += thread::grid_dim_x();
    }
    token = block;
    while token < params.num_max_tokens {
        for step in 1..params.ep_size {
            receive(peers, records, received, step, token, deadline);
        }
        token += thread::grid_dim_x();
    }

    // Every warp has read the routing that now makes room, and this block's epoch.
    thread::sync_threads();
    token = block;
    while token < params.num_max_tokens {
        for step in 1..params.ep_size {
            let record = record_at(peers, records, step, token, &params);
            let mut word = thread::thread_idx_x();
            while word < 2 * params.topk {
                atomic::store_relaxed_sys(
                    record,
                    (4 * params.row_units + word) as usize,
                    packets::POISON,
                );
                word += PACKETS_THREADS;
            }
        }
        token += thread::grid_dim_x();
    }
    if thread::thread_idx_x() == 0 {
        epochs.store(block as usize, epoch.wrapping_add(1));
    }
}

/// Units of 16 bytes of a row and its routing.
#[inline(always)]
fn record_units(params: &ExchangeParams) -> u32 {
    params.row_units + (2 * params.topk).div_ceil(4)
}

/// The record of `token` of the rank `step` after this one, in this rank's area.
#[inline(always)]
#[track_caller]
unsafe fn record_at(
    peers: Peers,
    records: Records,
    step: u32,
    token: u32,
    params: &ExchangeParams,
) -> GlobalMut<u32> {
    let offset = records.received_from(step, token);
    peers.area(params.ep_rank, offset, 4 * record_units(params))
}

/// What a dispatch leaves behind.
#[derive(Clone, Copy)]
struct Received {
    recv_x: GlobalMut<u32>,
    recv_topk_ids: GlobalMut<i32>,
    recv_topk_weights: GlobalMut<f32>,
    params: ExchangeParams,
}

impl Received {
    #[inline(always)]
    fn slot(&self, source: u32, token: u32) -> usize {
        source as usize * self.params.num_max_tokens as usize + token as usize
    }

    #[inline(always)]
    unsafe fn row(&self, source: u32, token: u32) -> GlobalMut<u32> {
        self.recv_x.offset(self.slot(source, token) * self.params.row_units as usize * 4)
    }
}

#[inline(always)]
unsafe fn send(
    x: Global<u32>,
    topk_ids: Global<i32>,
    topk_weights: Global<f32>,
    peers: Peers,
    records: Records,
    received: Received,
    token: u32,
) {
    let Received { params, .. } = received;
    let (lane, is_first_warp) = (warp::lane_id(), thread::thread_idx_x() < warp::WARP_SIZE);
    let is_token = token < params.num_tokens;
    let entry = token as usize * params.topk as usize + lane as usize;
    let has_entry = is_token && lane < params.topk;
    let id = if has_entry { topk_ids.load(entry) } else { -1 };
    let weight = if has_entry { topk_weights.load(entry) } else { 0.0 };
    let row = x.offset(if is_token { token as usize * params.row_units as usize * 4 } else { 0 });

    let mut first_unit = thread::thread_idx_x();
    loop {
        let unit = |i: usize| first_unit + i as u32 * PACKETS_THREADS;
        let mut units = [[0; 4]; UNITS];
        for (i, value) in units.iter_mut().enumerate() {
            if is_token && unit(i) < params.row_units {
                *value = row.load_x4(4 * unit(i) as usize);
            }
        }
        let ranks = ranks_of(owner_of(id, &params), &params);
        for step in 0..params.ep_size {
            let peer = params.rank_after(step);
            if ranks >> peer & 1 == 0 {
                continue;
            }
            if step == 0 {
                let row = received.row(peer, token);
                for (i, &value) in units.iter().enumerate() {
                    if unit(i) < params.row_units {
                        row.store_x4(4 * unit(i) as usize, value);
                    }
                }
            } else {
                let offset = records.sent_to(step, token);
                let record = peers.area(peer, offset, 4 * record_units(&params));
                for (i, &value) in units.iter().enumerate() {
                    if unit(i) < params.row_units {
                        packets::send_x4(record, 4 * unit(i) as usize, value);
                    }
                }
            }
        }
        first_unit += UNITS as u32 * PACKETS_THREADS;
        if first_unit - thread::thread_idx_x() >= params.row_units {
            break;
        }
    }

    if !is_first_warp {
        return;
    }
    for step in 0..params.ep_size {
        let peer = params.rank_after(step);
        let is_theirs = owner_of(id, &params) == peer;
        let local_id = if is_theirs { id - (peer * params.experts_per_rank) as i32 } else { -1 };
        if step == 0 {
            if lane < params.topk {
                let entry = received.slot(peer, token) * params.topk as usize + lane as usize;
                received.recv_topk_ids.store(entry, local_id);
                received.recv_topk_weights.store(entry, weight);
            }
        } else {
            let record = peers.area(peer, records.sent_to(step, token), 4 * record_units(&params));
            if lane < params.topk {
                let word = (4 * params.row_units + lane) as usize;
                packets::send(record, word, (local_id + 1) as u32);
                packets::send(record, word + params.topk as usize, weight.to_bits());
            }
        }
    }
}

/// Takes in `token` of the rank `step` after this one.
#[inline(always)]
unsafe fn receive(
    peers: Peers,
    records: Records,
    received: Received,
    step: u32,
    token: u32,
    deadline: Deadline,
) {
    let Received { params, .. } = received;
    let (lane, is_first_warp) = (warp::lane_id(), thread::thread_idx_x() < warp::WARP_SIZE);
    let source = params.rank_after(step);
    let record = record_at(peers, records, step, token, &params);

    // Ids travel as one more than they are: 0 is none.
    let word = (4 * params.row_units + lane) as usize;
    let has_entry = lane < params.topk;
    let arrived = if has_entry { packets::wait(record, word, deadline) } else { Some(0) };
    if warp::warp_vote_any(warp::FULL_MASK, arrived.is_none()) {
        if is_first_warp && lane == 0 {
            deadline.count_late(source, 1);
        }
        return;
    }
    let id_plus_1 = arrived.unwrap_or(0);
    let has_row = warp::warp_vote_any(warp::FULL_MASK, id_plus_1 > 0);
    let mut is_late = false;
    if is_first_warp && has_entry {
        let entry = received.slot(source, token) * params.topk as usize + lane as usize;
        received.recv_topk_ids.store(entry, id_plus_1 as i32 - 1);
        match packets::wait(record, word + params.topk as usize, deadline) {
            Some(bits) => received.recv_topk_weights.store(entry, f32::from_bits(bits)),
            None => is_late = true,
        }
    }
    if has_row {
        let row = received.row(source, token);
        let mut first_unit = thread::thread_idx_x();
        while first_unit < params.row_units {
            let unit = |i: usize| first_unit + i as u32 * PACKETS_THREADS;
            let mut units = [[0; 4]; UNITS];
            for (i, seen) in units.iter_mut().enumerate() {
                if unit(i) < params.row_units {
                    *seen = atomic::load_relaxed_sys_x4(record.as_const(), 4 * unit(i) as usize);
                }
            }
            for (i, &seen) in units.iter().enumerate() {
                if unit(i) < params.row_units {
                    match packets::take_x4(record, 4 * unit(i) as usize, seen, deadline) {
                        Some(value) => row.store_x4(4 * unit(i) as usize, value),
                        None => is_late = true,
                    }
                }
            }
            first_unit += UNITS as u32 * PACKETS_THREADS;
        }
    }
    if warp::warp_vote_any(warp::FULL_MASK, is_late) && lane == 0 {
        deadline.count_late(source, 1);
    }
}
