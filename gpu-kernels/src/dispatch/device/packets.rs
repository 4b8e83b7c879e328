//! Packets that say by themselves whether they have arrived: no flag, no fence.
//!
//! A staging area is filled with [`POISON`]. A sender never writes that word, so a word that is no
//! longer poison has arrived; whoever took it in poisons it again, for the next but one call.
//! Areas are used in turn by odd and even calls: a sender can be one call ahead of a receiver (it
//! has all of the receiver's packets of the call before), and never two.

use cuda_std::prelude::*;

use super::super::ExchangeParams;
use super::deadline::Deadline;

/// A word that has not arrived.
pub const POISON: u32 = u32::MAX;
/// What is sent instead of it: as a pair of bf16, or as a f32, it is a NaN like the other.
const NOT_POISON: u32 = POISON - 1;

/// Sends 16 bytes.
#[inline(always)]
#[track_caller]
pub(crate) unsafe fn send_x4(place: GlobalMut<u32>, idx: usize, [a, b, c, d]: [u32; 4]) {
    let words = [a.min(NOT_POISON), b.min(NOT_POISON), c.min(NOT_POISON), d.min(NOT_POISON)];
    atomic::store_relaxed_sys_x4(place, idx, words);
}

/// Sends a word.
#[inline(always)]
#[track_caller]
pub(crate) unsafe fn send(place: GlobalMut<u32>, idx: usize, word: u32) {
    atomic::store_relaxed_sys(place, idx, word.min(NOT_POISON));
}

/// Whether 16 bytes have arrived.
#[inline(always)]
pub(crate) fn is_complete([a, b, c, d]: [u32; 4]) -> bool {
    a != POISON && b != POISON && c != POISON && d != POISON
}

/// Waits for 16 bytes, of which a first look has found `seen`, and makes room for the next; `None`
/// if they do not come in time.
#[inline(always)]
#[track_caller]
pub(crate) unsafe fn take_x4(
    place: GlobalMut<u32>,
    idx: usize,
    mut seen: [u32; 4],
    deadline: Deadline,
) -> Option<[u32; 4]> {
    let mut num_looks = 0;
    while !is_complete(seen) {
        num_looks += 1;
        if deadline.has_passed(num_looks) {
            return None;
        }
        seen = atomic::load_relaxed_sys_x4(place.as_const(), idx);
    }
    atomic::store_relaxed_sys_x4(place, idx, [POISON; 4]);
    Some(seen)
}

/// Waits for a word, and leaves it where it is; `None` if it does not come in time.
#[inline(always)]
#[track_caller]
pub(crate) unsafe fn wait(place: GlobalMut<u32>, idx: usize, deadline: Deadline) -> Option<u32> {
    let mut num_looks = 0;
    loop {
        let seen = atomic::load_relaxed_sys(place.as_const(), idx);
        if seen != POISON {
            return Some(seen);
        }
        num_looks += 1;
        if deadline.has_passed(num_looks) {
            return None;
        }
    }
}

/// Where all ranks of an exchange receive packets.
#[derive(Clone, Copy)]
pub(crate) struct Peers {
    /// Of the rank that is this thread's lane.
    base_of_lane: u64,
}

impl Peers {
    /// All lanes of a warp call it.
    #[inline(always)]
    #[track_caller]
    pub(crate) unsafe fn new(peer_ptrs: Global<u64>, params: &ExchangeParams) -> Self {
        let lane = warp::lane_id();
        let base_of_lane = if lane < params.ep_size { peer_ptrs.load(lane as usize) } else { 0 };
        Self { base_of_lane }
    }

    /// `num_words` words of `rank`'s area, from byte `offset` on. All lanes of a warp call it.
    #[inline(always)]
    #[track_caller]
    pub(crate) unsafe fn area(self, rank: u32, offset: u64, num_words: u32) -> GlobalMut<u32> {
        let lanes = warp::WARP_SIZE;
        let low = self.base_of_lane as u32;
        let high = (self.base_of_lane >> 32) as u32;
        let (low, _) = warp::warp_shuffle_idx(warp::FULL_MASK, low, rank, lanes);
        let (high, _) = warp::warp_shuffle_idx(warp::FULL_MASK, high, rank, lanes);
        let base = u64::from(high) << 32 | u64::from(low);
        GlobalMut::from_address(base + offset, num_words as usize)
    }
}

/// Where in a staging area the packets of a row lie: `[2, ep_size - 1, num_max_tokens]` records.
#[derive(Clone, Copy)]
pub(crate) struct Records {
    first_record: u64,
    ep_size: u32,
    num_max_tokens: u32,
    record_bytes: u32,
}

impl Records {
    /// Of call `epoch`, a record of `record_bytes` bytes.
    #[inline(always)]
    pub(crate) fn new(epoch: u32, record_bytes: u32, params: &ExchangeParams) -> Self {
        let num_areas = u64::from(epoch & 1) * u64::from(params.ep_size - 1);
        Self {
            first_record: num_areas * u64::from(params.num_max_tokens),
            ep_size: params.ep_size,
            num_max_tokens: params.num_max_tokens,
            record_bytes,
        }
    }

    /// Where this rank writes `token` at the rank `step` after it.
    #[inline(always)]
    pub(crate) fn sent_to(self, step: u32, token: u32) -> u64 {
        self.offset(self.ep_size - step - 1, token)
    }

    /// Where the rank `step` after this one writes `token` here.
    #[inline(always)]
    pub(crate) fn received_from(self, step: u32, token: u32) -> u64 {
        self.offset(step - 1, token)
    }

    #[inline(always)]
    fn offset(self, area: u32, token: u32) -> u64 {
        let record = self.first_record + u64::from(area * self.num_max_tokens + token);
        record * u64::from(self.record_bytes)
    }
}

/// The rank that owns an expert; none of them for an id of no expert.
#[inline(always)]
pub(crate) fn owner_of(id: i32, params: &ExchangeParams) -> u32 {
    if id >= 0 { id as u32 / params.experts_per_rank } else { u32::MAX }
}

/// The ranks that lanes have experts of, one bit a rank. All lanes of a warp call it.
#[inline(always)]
#[track_caller]
pub(crate) unsafe fn ranks_of(owner: u32, params: &ExchangeParams) -> u32 {
    let mut ranks = 0;
    for rank in 0..params.ep_size {
        ranks |= u32::from(warp::warp_vote_any(warp::FULL_MASK, owner == rank)) << rank;
    }
    ranks
}
