//! Bulk copies: whole pieces between global and shared memory, moved by the copy engine of an SM
//! (sm_90) on behalf of one thread.
//!
//! A load completes on an [`Mbarrier`]: one thread arms the barrier with the bytes it expects and
//! issues the load; whoever needs the bytes waits for the barrier's phase. A store completes in
//! groups, as `cp.async` does. Addresses and sizes are multiples of 16 bytes.

use bytemuck::AnyBitPattern;

use crate::arch;
use crate::global::{Global, GlobalMut};
use crate::shared::Shared;

/// A barrier in shared memory that counts arrivals and bytes. It flips its phase, 0 then 1 then 0,
/// each time both counts are met.
#[derive(Clone, Copy)]
pub struct Mbarrier(Shared<u64>);

impl Mbarrier {
    /// The barrier in the 8 bytes at `place`.
    #[inline(always)]
    pub fn at(place: Shared<u64>) -> Self {
        Self(place)
    }

    /// Sets the barrier up for `arrivals` arrivals a phase. One thread calls it, then
    /// [`fence_init`], then a block barrier follows before anyone uses it.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn init(self, arrivals: u32) {
        arch::bulk::mbarrier_init(self.0.raw, arrivals);
    }

    /// Arrives.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn arrive(self) {
        arch::bulk::mbarrier_arrive(self.0.raw);
    }

    /// Arrives, and expects `bytes` more bytes from bulk loads in this phase.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn arrive_expect_bytes(self, bytes: u32) {
        arch::bulk::mbarrier_arrive_expect_bytes(self.0.raw, bytes);
    }

    /// Waits until the phase of parity `parity` has completed.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn wait(self, parity: u32) {
        while !arch::bulk::mbarrier_try_wait(self.0.raw, parity) {}
    }
}

/// Makes barriers set up by this thread visible to the copy engine.
#[inline(always)]
pub unsafe fn fence_init() {
    arch::bulk::fence_init();
}

/// Orders this thread's ordinary accesses to shared memory before later bulk copies' accesses.
#[inline(always)]
pub unsafe fn fence_proxy_async() {
    arch::bulk::fence_proxy_async();
}

/// Starts a copy of `bytes` bytes from `src` to `dst`, which completes on `barrier`.
#[inline(always)]
#[track_caller]
pub unsafe fn load<T: AnyBitPattern, U: AnyBitPattern>(
    dst: Shared<T>,
    src: Global<U>,
    bytes: u32,
    barrier: Mbarrier,
) {
    arch::bulk::load(dst.raw, src.raw, bytes, barrier.0.raw);
}

/// Starts a copy of `bytes` bytes from `src` to `dst`, in the current group of stores.
#[inline(always)]
#[track_caller]
pub unsafe fn store<T: AnyBitPattern, U: AnyBitPattern>(
    dst: GlobalMut<T>,
    src: Shared<U>,
    bytes: u32,
) {
    arch::bulk::store(dst.raw, src.raw, bytes);
}

/// Closes the stores issued since the last call into a group.
#[inline(always)]
pub unsafe fn commit_group() {
    arch::bulk::commit_group();
}

/// Waits until at most the `N` newest groups of this thread still read their shared memory.
#[inline(always)]
pub unsafe fn wait_group_read<const N: u32>() {
    arch::bulk::wait_group_read::<N>();
}

/// Waits until at most the `N` newest groups of this thread are still on their way.
#[inline(always)]
pub unsafe fn wait_group<const N: u32>() {
    arch::bulk::wait_group::<N>();
}
