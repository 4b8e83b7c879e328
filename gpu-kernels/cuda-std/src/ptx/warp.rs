use core::arch::asm;

#[allow(improper_ctypes)]
unsafe extern "C" {
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    fn shfl_idx(mask: u32, value: u32, lane: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.bfly.i32"]
    fn shfl_bfly(mask: u32, value: u32, lane_mask: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.down.i32"]
    fn shfl_down(mask: u32, value: u32, delta: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.shfl.sync.up.i32"]
    fn shfl_up(mask: u32, value: u32, delta: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.vote.ballot.sync"]
    fn vote_ballot(mask: u32, predicate: bool) -> u32;
    #[link_name = "llvm.nvvm.redux.sync.umax"]
    fn redux_umax(value: u32, mask: u32) -> u32;
    #[link_name = "llvm.nvvm.match.any.sync.i32"]
    fn match_any_sync(mask: u32, value: u32) -> u32;
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    fn bar_warp_sync(mask: u32);
}

/// The last operand of a shuffle: which lanes form a group, and where it ends.
#[inline(always)]
fn clamp(width: u32, last: u32) -> u32 {
    ((32 - width) << 8) | last
}

#[inline(always)]
pub fn lane_id() -> u32 {
    let lane: u32;
    // SAFETY: reads a special register.
    unsafe { asm!("mov.u32 {}, %laneid;", out(reg32) lane, options(pure, nomem, nostack)) }
    lane
}

#[inline(always)]
pub unsafe fn sync_warp(mask: u32) {
    bar_warp_sync(mask);
}

#[inline(always)]
pub unsafe fn shuffle_idx(mask: u32, value: u32, lane: u32, width: u32) -> u32 {
    shfl_idx(mask, value, lane, clamp(width, 31))
}

#[inline(always)]
pub unsafe fn shuffle_xor(mask: u32, value: u32, lane_mask: u32, width: u32) -> u32 {
    shfl_bfly(mask, value, lane_mask, clamp(width, 31))
}

#[inline(always)]
pub unsafe fn shuffle_down(mask: u32, value: u32, delta: u32, width: u32) -> u32 {
    shfl_down(mask, value, delta, clamp(width, 31))
}

#[inline(always)]
pub unsafe fn shuffle_up(mask: u32, value: u32, delta: u32, width: u32) -> u32 {
    shfl_up(mask, value, delta, clamp(width, 0))
}

#[inline(always)]
pub unsafe fn ballot(mask: u32, predicate: bool) -> u32 {
    vote_ballot(mask, predicate)
}

#[inline(always)]
pub unsafe fn reduce_max(mask: u32, value: u32) -> u32 {
    redux_umax(value, mask)
}

#[inline(always)]
pub unsafe fn match_any(mask: u32, value: u32) -> u32 {
    match_any_sync(mask, value)
}
