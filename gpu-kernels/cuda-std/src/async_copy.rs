//! `cp.async`: copies of 16 bytes from global to shared memory that do not pass through registers.
//!
//! A thread issues copies, closes them into a group, and waits until all but its newest groups
//! have landed. Other threads see the bytes after a barrier that follows the wait. The executor
//! lands each copy as late as these rules allow, so a missing wait reads what was there before.

use bytemuck::AnyBitPattern;

use crate::arch;
use crate::bulk::Mbarrier;
use crate::global::Global;
use crate::shared::Shared;

/// How the L2 treats the lines that a copy reads.
#[derive(Clone, Copy)]
pub struct CachePolicy(pub(crate) u64);

impl CachePolicy {
    /// Lines that are read once: the first to be replaced.
    #[inline(always)]
    pub fn evict_first() -> Self {
        Self(arch::async_copy::evict_first_policy())
    }
}

/// Copies the 16 bytes at `src` to `dst`, both aligned to 16 bytes.
#[inline(always)]
#[track_caller]
pub unsafe fn copy_16<T: AnyBitPattern, U: AnyBitPattern>(
    dst: Shared<T>,
    src: Global<U>,
    policy: CachePolicy,
) {
    arch::async_copy::copy_16(dst.raw, src.raw, policy.0);
}

/// As [`copy_16`] if `copies`; else writes 16 bytes of zeros, and does not read `src`, which must be
/// an address all the same.
#[inline(always)]
#[track_caller]
pub unsafe fn copy_16_or_zero<T: AnyBitPattern, U: AnyBitPattern>(
    dst: Shared<T>,
    src: Global<U>,
    copies: bool,
    policy: CachePolicy,
) {
    arch::async_copy::copy_16_or_zero(dst.raw, src.raw, copies, policy.0);
}

/// As [`copy_16_or_zero`], of lines that others read too: the L2 treats them as any.
#[inline(always)]
#[track_caller]
pub unsafe fn copy_reused_16_or_zero<T: AnyBitPattern, U: AnyBitPattern>(
    dst: Shared<T>,
    src: Global<U>,
    copies: bool,
) {
    arch::async_copy::copy_reused_16_or_zero(dst.raw, src.raw, copies);
}

/// Arrives at `barrier` once all copies that this thread has issued so far have landed, without
/// waiting for it. Threads that wait for the barrier see the bytes; for `wgmma` they need
/// [`bulk::fence_proxy_async`](crate::bulk::fence_proxy_async) in between.
#[inline(always)]
#[track_caller]
pub unsafe fn arrive_when_landed(barrier: Mbarrier) {
    arch::async_copy::arrive_when_landed(barrier.place().raw);
}

/// As [`copy_16_or_zero`], for lines that others read, too: the L2 treats them as any.
#[inline(always)]
#[track_caller]
pub unsafe fn copy_shared_16_or_zero<T: AnyBitPattern, U: AnyBitPattern>(
    dst: Shared<T>,
    src: Global<U>,
    copies: bool,
) {
    arch::async_copy::copy_shared_16_or_zero(dst.raw, src.raw, copies);
}

/// Closes the copies issued since the last call into a group.
#[inline(always)]
pub unsafe fn commit_group() {
    arch::async_copy::commit_group();
}

/// Waits until at most the `N` newest groups of this thread are still on their way.
#[inline(always)]
pub unsafe fn wait_group<const N: u32>() {
    arch::async_copy::wait_group::<N>();
}
