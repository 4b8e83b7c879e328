//! Combine: the sum alone, and the sum of what the peers push meanwhile.
// A kernel is one thread's program; its safety is the launch's, and stands in the contract.
#![allow(unsafe_op_in_unsafe_fn, clippy::missing_safety_doc, clippy::too_many_arguments)]

use cuda_std::prelude::*;
use half::bf16;

use super::{ADD_WARPS, ADDED_UNITS, SEND_WARPS, SENT_UNITS, SUM_THREADS};
use crate::dispatch::ExchangeParams;
use crate::dispatch::device::packets::{self, Deadline, Peers, Records, owner_of, ranks_of};

/// A block per token; `parts` holds what the peers sent, by rank.
#[kernel(threads = 128)]
pub unsafe fn combine_sum_baseline(
    partial: Global<u32>,  // [ep_size, num_max_tokens, row_units, 4]
    parts: Global<u32>,    // [ep_size, num_max_tokens, row_units, 4]
    topk_ids: Global<i32>, // [num_tokens, topk]
    out: GlobalMut<u32>,   // [num_tokens, row_units, 4]
    params: ExchangeParams,
) {
    let token = thread::block_idx_x();
    let owner = owner_of(id_of_lane(topk_ids, token, params.num_tokens, &params), &params);
    let ranks = ranks_of(owner, &params);
    let row_words = 4 * params.row_units as usize;
    let mut unit = thread::thread_idx_x();
    while unit < params.row_units {
        let mut sum = [0.0; 8];
        for rank in 0..params.ep_size {
            if ranks >> rank & 1 != 0 {
                let slot = rank as usize * params.num_max_tokens as usize + token as usize;
                let of_rank = if rank == params.ep_rank { partial } else { parts };
                add(&mut sum, of_rank.load_x4(slot * row_words + 4 * unit as usize));
            }
        }
        out.store_x4(token as usize * row_words + 4 * unit as usize, round(&sum));
        unit += SUM_THREADS;
    }
}

/// Blocks of pushing and adding warps, each with segments of rows, round after round.
#[kernel(threads = 512)]
pub unsafe fn combine_push_packets(
    partial: Global<u32>,       // [ep_size, num_max_tokens, row_units, 4]
    recv_topk_ids: Global<i32>, // [ep_size, num_max_tokens, topk]
    topk_ids: Global<i32>,      // [num_tokens, topk]
    peer_ptrs: Global<u64>,     // [ep_size], of staging areas
    out: GlobalMut<u32>,        // [num_tokens, row_units, 4]
    epochs: GlobalMut<u32>,     // [num_blocks]
    late: GlobalMut<u32>,       // [ep_size]
    params: ExchangeParams,
) {
    let block = thread::block_idx_x();
    let warp_idx = thread::thread_idx_x() / warp::WARP_SIZE;
    let deadline = Deadline::after_us(params.timeout_us);
    let peers = Peers::new(peer_ptrs, &params);
    let epoch = epochs.load(block as usize);
    let records = Records::new(epoch, 16 * params.row_units, &params);
    let calls = Calls { peers, late, deadline, epoch, params: &params };
    if block == 0 && warp_idx == 0 {
        calls.tell();
    }
    if warp_idx < SEND_WARPS {
        if block < params.num_senders {
            push(partial, recv_topk_ids, peers, records, warp_idx, &params);
        }
    } else {
        let adder =
            Adder { partial, topk_ids, out, late, peers, records, deadline, params: &params };
        adder.add_all(warp_idx - SEND_WARPS);
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
    late: GlobalMut<u32>,
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
            let words = self.words(self.peers.rank_after(step));
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
                    atomic::fetch_add_relaxed_gpu(
                        self.late,
                        self.peers.rank_after(step) as usize,
                        1,
                    );
                    break;
                }
            }
            step += warp::WARP_SIZE;
        }
    }
}

/// Walks segments of the rows of tokens: a block's tokens lie `stride` apart, a warp's segments
/// `num_warps`.
#[derive(Clone, Copy)]
struct Segments {
    token: u32,
    segment: u32,
    stride: u32,
    num_warps: u32,
    segments_per_row: u32,
}

impl Segments {
    #[inline(always)]
    fn new(warp_idx: u32, num_warps: u32, stride: u32, units: usize, row_units: u32) -> Self {
        let segments_per_row = row_units.div_ceil(units as u32 * warp::WARP_SIZE);
        let mut first = Self {
            token: thread::block_idx_x(),
            segment: warp_idx,
            stride,
            num_warps,
            segments_per_row,
        };
        first.carry();
        first
    }

    #[inline(always)]
    fn next(self) -> Self {
        let mut next = Self { segment: self.segment + self.num_warps, ..self };
        next.carry();
        next
    }

    #[inline(always)]
    fn carry(&mut self) {
        while self.segment >= self.segments_per_row {
            self.segment -= self.segments_per_row;
            self.token += self.stride;
        }
    }

    /// This lane's first unit; the others follow a warp apart.
    #[inline(always)]
    fn first_unit(self, units: usize) -> u32 {
        self.segment * units as u32 * warp::WARP_SIZE + warp::lane_id()
    }
}

/// Lane `k`'s entry of a token's ids; -1 for none.
#[inline(always)]
unsafe fn id_of_lane(
    ids: Global<i32>,
    token: u32,
    num_tokens: u32,
    params: &ExchangeParams,
) -> i32 {
    let lane = warp::lane_id();
    if token < num_tokens && lane < params.topk {
        ids.load(token as usize * params.topk as usize + lane as usize)
    } else {
        -1
    }
}

/// Sends the rows that came from peers back to them.
#[inline(always)]
unsafe fn push(
    partial: Global<u32>,
    recv_topk_ids: Global<i32>,
    peers: Peers,
    records: Records,
    warp_idx: u32,
    params: &ExchangeParams,
) {
    let row_words = 4 * params.row_units as usize;
    let num_max_tokens = params.num_max_tokens;
    for step in 1..params.ep_size {
        let source = peers.rank_after(step);
        let first_slot = source as usize * num_max_tokens as usize;
        let ids = recv_topk_ids.offset(first_slot * params.topk as usize);
        let mut at =
            Segments::new(warp_idx, SEND_WARPS, params.num_senders, SENT_UNITS, params.row_units);
        let mut id = id_of_lane(ids, at.token, num_max_tokens, params);
        while at.token < num_max_tokens {
            let next = at.next();
            let next_id = id_of_lane(ids, next.token, num_max_tokens, params);
            if warp::warp_vote_any(warp::FULL_MASK, id >= 0) {
                let row = partial.offset((first_slot + at.token as usize) * row_words);
                let offset = records.sent_to(step, at.token);
                let record = peers.area(source, offset, 4 * params.row_units);
                let unit = |i: usize| at.first_unit(SENT_UNITS) + i as u32 * warp::WARP_SIZE;
                let mut units = [[0; 4]; SENT_UNITS];
                for (i, value) in units.iter_mut().enumerate() {
                    if unit(i) < params.row_units {
                        *value = row.load_x4(4 * unit(i) as usize);
                    }
                }
                for (i, &value) in units.iter().enumerate() {
                    if unit(i) < params.row_units {
                        packets::send_x4(record, 4 * unit(i) as usize, value);
                    }
                }
            }
            (at, id) = (next, next_id);
        }
    }
}

/// What an adding warp works with.
#[derive(Clone, Copy)]
struct Adder<'a> {
    partial: Global<u32>,
    topk_ids: Global<i32>,
    out: GlobalMut<u32>,
    late: GlobalMut<u32>,
    peers: Peers,
    records: Records,
    deadline: Deadline,
    params: &'a ExchangeParams,
}

impl Adder<'_> {
    #[inline(always)]
    unsafe fn add_all(self, warp_idx: u32) {
        let params = self.params;
        let id_at = |at: Segments| id_of_lane(self.topk_ids, at.token, params.num_tokens, params);
        let stride = thread::grid_dim_x();
        let mut at = Segments::new(warp_idx, ADD_WARPS, stride, ADDED_UNITS, params.row_units);
        let mut id = id_at(at);
        while at.token < params.num_tokens {
            let next = at.next();
            let next_id = id_at(next);
            self.add_segment(at, owner_of(id, params));
            (at, id) = (next, next_id);
        }
    }

    /// Adds the parts of one segment; `owner` is the rank of this lane's expert.
    #[inline(always)]
    unsafe fn add_segment(self, at: Segments, owner: u32) {
        let Self { partial, out, params, .. } = self;
        let row_words = 4 * params.row_units as usize;
        let unit = |i: usize| at.first_unit(ADDED_UNITS) + i as u32 * warp::WARP_SIZE;
        let ranks = ranks_of(owner, params);
        let has = |rank: u32| ranks >> rank & 1 != 0;

        // Under way while the peers' parts are looked at.
        let mut own = [[0; 4]; ADDED_UNITS];
        if has(params.ep_rank) {
            let slot = params.ep_rank as usize * params.num_max_tokens as usize + at.token as usize;
            for (i, value) in own.iter_mut().enumerate() {
                if unit(i) < params.row_units {
                    *value = partial.load_x4(slot * row_words + 4 * unit(i) as usize);
                }
            }
        }
        let mut sums = [[0.0; 8]; ADDED_UNITS];
        for rank in 0..params.ep_size {
            if !has(rank) {
                continue;
            }
            if rank == params.ep_rank {
                for (sum, &value) in sums.iter_mut().zip(&own) {
                    add(sum, value);
                }
            } else {
                self.add_part(&mut sums, at, rank);
            }
        }
        let out = out.offset(at.token as usize * row_words);
        for (i, sum) in sums.iter().enumerate() {
            if unit(i) < params.row_units {
                out.store_x4(4 * unit(i) as usize, round(sum));
            }
        }
    }

    /// Takes in a peer's part of a segment.
    #[inline(always)]
    unsafe fn add_part(self, sums: &mut [[f32; 8]; ADDED_UNITS], at: Segments, rank: u32) {
        let Self { peers, records, params, deadline, .. } = self;
        let unit = |i: usize| at.first_unit(ADDED_UNITS) + i as u32 * warp::WARP_SIZE;
        let step = if rank > params.ep_rank {
            rank - params.ep_rank
        } else {
            rank + params.ep_size - params.ep_rank
        };
        let offset = records.received_from(step, at.token);
        let record = peers.area(params.ep_rank, offset, 4 * params.row_units);
        let mut units = [[0; 4]; ADDED_UNITS];
        for (i, seen) in units.iter_mut().enumerate() {
            if unit(i) < params.row_units {
                *seen = atomic::load_relaxed_sys_x4(record.as_const(), 4 * unit(i) as usize);
            }
        }
        let mut is_late = false;
        for (i, (sum, &seen)) in sums.iter_mut().zip(&units).enumerate() {
            if unit(i) < params.row_units {
                match packets::take_x4(record, 4 * unit(i) as usize, seen, deadline) {
                    Some(value) => add(sum, value),
                    None => is_late = true,
                }
            }
        }
        let is_late = warp::warp_vote_any(warp::FULL_MASK, is_late);
        if is_late && warp::lane_id() == 0 {
            atomic::fetch_add_relaxed_gpu(self.late, rank as usize, 1);
        }
    }
}

/// Adds 8 values of bf16.
#[inline(always)]
fn add(sum: &mut [f32; 8], [a, b, c, d]: [u32; 4]) {
    let [a0, a1] = bf16::unpack(a);
    let [b0, b1] = bf16::unpack(b);
    let [c0, c1] = bf16::unpack(c);
    let [d0, d1] = bf16::unpack(d);
    sum[0] += a0;
    sum[1] += a1;
    sum[2] += b0;
    sum[3] += b1;
    sum[4] += c0;
    sum[5] += c1;
    sum[6] += d0;
    sum[7] += d1;
}

#[inline(always)]
fn round(sum: &[f32; 8]) -> [u32; 4] {
    [
        bf16::pack(sum[0], sum[1]),
        bf16::pack(sum[2], sum[3]),
        bf16::pack(sum[4], sum[5]),
        bf16::pack(sum[6], sum[7]),
    ]
}
