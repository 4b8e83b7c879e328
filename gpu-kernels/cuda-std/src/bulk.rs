//! Bulk copies: whole pieces between global and shared memory, moved by the copy engine of an SM
//! (sm_90) on behalf of one thread.
//!
//! A load completes on an [`Mbarrier`]: one thread arms the barrier with the bytes it expects and
//! issues the load; whoever needs the bytes waits for the barrier's phase. A store completes in
//! groups, as `cp.async` does. Pieces are plain bytes, whose addresses and sizes are multiples of 16;
//! or tiles of a tensor, which a [`TensorMap`] describes.

use bytemuck::AnyBitPattern;

use crate::arch;
use crate::async_copy::CachePolicy;
use crate::global::{Global, GlobalMut};
use crate::shared::Shared;
use crate::tensor_map::TensorMap;

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

    #[inline(always)]
    pub(crate) fn place(self) -> Shared<u64> {
        self.0
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

    /// Arrives at the barrier that block `rank` of the [cluster](crate::cluster) has at this place.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn arrive_in(self, rank: u32) {
        arch::bulk::mbarrier_arrive_in(self.0.raw, rank);
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

/// Starts a load of the tile of `map` whose first element has these coordinates, innermost first, to
/// `dst`, aligned to 128 bytes. All bytes of the tile count on `barrier`, those of elements outside
/// of the tensor too, which become 0. On the CPU a 16-byte piece that nothing wrote, or not all of it,
/// stays so in shared memory: a fault only if the kernel reads it.
///
/// ```ignore
/// barrier.arrive_expect_bytes(TILE_BYTES);
/// bulk::load_tile(stage, &a, [k, row], barrier);
/// ```
#[inline(always)]
#[track_caller]
pub unsafe fn load_tile<T: AnyBitPattern, U: AnyBitPattern, const RANK: usize>(
    dst: Shared<U>,
    map: &TensorMap<T, RANK>,
    coordinates: [i32; RANK],
    barrier: Mbarrier,
) {
    arch::tensor_map::load(dst.raw, &map.raw, coordinates, barrier.0.raw);
}

/// As [`load_tile`]; `policy` says how the L2 treats the lines it reads.
#[inline(always)]
#[track_caller]
pub unsafe fn load_tile_with_policy<T: AnyBitPattern, U: AnyBitPattern, const RANK: usize>(
    dst: Shared<U>,
    map: &TensorMap<T, RANK>,
    coordinates: [i32; RANK],
    barrier: Mbarrier,
    policy: CachePolicy,
) {
    arch::tensor_map::load_with_policy(dst.raw, &map.raw, coordinates, barrier.0.raw, policy.0);
}

/// As [`load_tile`], for several blocks of the [cluster](crate::cluster): those whose bits are set in
/// `blocks`. Memory is read once; each of them gets the tile at its `dst`, and the bytes count on its
/// `barrier`.
#[inline(always)]
#[track_caller]
pub unsafe fn load_tile_to<T: AnyBitPattern, U: AnyBitPattern, const RANK: usize>(
    blocks: u16,
    dst: Shared<U>,
    map: &TensorMap<T, RANK>,
    coordinates: [i32; RANK],
    barrier: Mbarrier,
) {
    arch::tensor_map::load_to(blocks, dst.raw, &map.raw, coordinates, barrier.0.raw);
}

/// Starts a store of the tile at `src`, aligned to 128 bytes, to where `map` has the tile with these
/// coordinates, in the current group of stores. Elements outside of the tensor are not written.
///
/// What threads stored to the tile needs [`fence_proxy_async`] by each of them, and then a barrier,
/// before the thread that stores the tile goes on.
#[inline(always)]
#[track_caller]
pub unsafe fn store_tile<T: AnyBitPattern, U: AnyBitPattern, const RANK: usize>(
    map: &TensorMap<T, RANK>,
    coordinates: [i32; RANK],
    src: Shared<U>,
) {
    arch::tensor_map::store(&map.raw, coordinates, src.raw);
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
