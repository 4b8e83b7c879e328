//! What the 32 lanes of a warp do together.
//!
//! Every function here is collective: all lanes named by `mask` must call it, in the same order.

use crate::arch;

/// Lanes of a warp.
pub const WARP_SIZE: u32 = 32;
/// The mask that names all lanes.
pub const FULL_MASK: u32 = u32::MAX;

/// Index of this thread within its warp.
#[inline(always)]
pub fn lane_id() -> u32 {
    arch::warp::lane_id()
}

/// Waits for the lanes of `mask`; what they wrote before is then visible to each of them.
#[inline(always)]
#[track_caller]
pub unsafe fn sync_warp(mask: u32) {
    arch::warp::sync_warp(mask);
}

/// A value of 32 bits that lanes can exchange.
pub trait WarpShuffleValue: Copy {
    /// The value as the register a shuffle moves.
    fn to_register(self) -> u32;
    /// The value of a register.
    fn from_register(register: u32) -> Self;
}

macro_rules! shuffle_values {
    ($($T:ty: $to:expr, $from:expr;)*) => {$(
        impl WarpShuffleValue for $T {
            #[inline(always)]
            fn to_register(self) -> u32 {
                $to(self)
            }
            #[inline(always)]
            fn from_register(register: u32) -> Self {
                $from(register)
            }
        }
    )*};
}

shuffle_values! {
    u32: |v| v, |r| r;
    i32: |v| v as u32, |r| r as i32;
    f32: f32::to_bits, f32::from_bits;
}

/// The value of lane `lane`, and whether that lane is among the `width` lanes of this one's group.
#[inline(always)]
#[track_caller]
pub unsafe fn warp_shuffle_idx<T: WarpShuffleValue>(
    mask: u32,
    value: T,
    lane: u32,
    width: u32,
) -> (T, bool) {
    let register = arch::warp::shuffle_idx(mask, value.to_register(), lane, width);
    (T::from_register(register), lane < width)
}

/// The value of the lane whose index is this one's XOR `lane_mask`, and whether it is in the group.
#[inline(always)]
#[track_caller]
pub unsafe fn warp_shuffle_xor<T: WarpShuffleValue>(
    mask: u32,
    value: T,
    lane_mask: u32,
    width: u32,
) -> (T, bool) {
    let register = arch::warp::shuffle_xor(mask, value.to_register(), lane_mask, width);
    let last_of_group = lane_id() | (width - 1);
    (T::from_register(register), lane_id() ^ lane_mask <= last_of_group)
}

/// The value of the lane `delta` above, or this lane's own where that leaves the group.
#[inline(always)]
#[track_caller]
pub unsafe fn warp_shuffle_down<T: WarpShuffleValue>(
    mask: u32,
    value: T,
    delta: u32,
    width: u32,
) -> (T, bool) {
    let register = arch::warp::shuffle_down(mask, value.to_register(), delta, width);
    let last_of_group = lane_id() | (width - 1);
    (T::from_register(register), lane_id() + delta <= last_of_group)
}

/// The value of the lane `delta` below, or this lane's own where that leaves the group.
#[inline(always)]
#[track_caller]
pub unsafe fn warp_shuffle_up<T: WarpShuffleValue>(
    mask: u32,
    value: T,
    delta: u32,
    width: u32,
) -> (T, bool) {
    let register = arch::warp::shuffle_up(mask, value.to_register(), delta, width);
    let place_in_group = lane_id() & (width - 1);
    (T::from_register(register), place_in_group >= delta)
}

/// One bit a lane: lanes of `mask` whose `predicate` holds.
#[inline(always)]
#[track_caller]
pub unsafe fn warp_vote_ballot(mask: u32, predicate: bool) -> u32 {
    arch::warp::ballot(mask, predicate)
}

/// Whether `predicate` holds in every lane of `mask`.
#[inline(always)]
#[track_caller]
pub unsafe fn warp_vote_all(mask: u32, predicate: bool) -> bool {
    warp_vote_ballot(mask, predicate) == mask
}

/// Whether `predicate` holds in some lane of `mask`.
#[inline(always)]
#[track_caller]
pub unsafe fn warp_vote_any(mask: u32, predicate: bool) -> bool {
    warp_vote_ballot(mask, predicate) != 0
}

/// The largest `value` among the lanes of `mask`, in one instruction.
#[inline(always)]
#[track_caller]
pub unsafe fn warp_reduce_max(mask: u32, value: u32) -> u32 {
    arch::warp::reduce_max(mask, value)
}

/// One bit a lane: lanes of `mask` whose `value` is this lane's.
#[inline(always)]
#[track_caller]
pub unsafe fn warp_match_any(mask: u32, value: u32) -> u32 {
    arch::warp::match_any(mask, value)
}

/// Sum over the lanes of each group of `width`, in a fixed order, in every lane.
#[inline(always)]
#[track_caller]
pub unsafe fn reduce_sum(value: f32, width: u32) -> f32 {
    butterfly(value, width, |a, b| a + b)
}

/// Maximum over the lanes of each group of `width`, in every lane.
#[inline(always)]
#[track_caller]
pub unsafe fn reduce_max(value: f32, width: u32) -> f32 {
    butterfly(value, width, f32::max)
}

#[inline(always)]
#[track_caller]
unsafe fn butterfly(mut value: f32, width: u32, combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lane_mask = width / 2;
    while lane_mask > 0 {
        let (other, _) = warp_shuffle_xor(FULL_MASK, value, lane_mask, WARP_SIZE);
        value = combine(value, other);
        lane_mask /= 2;
    }
    value
}
