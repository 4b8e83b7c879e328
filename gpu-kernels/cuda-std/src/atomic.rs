//! Read-modify-write operations, and release and acquire between blocks and between GPUs.
//!
//! Names say order and scope: `gpu` reaches every thread of this device, `sys` every GPU and the
//! host. A waiting loop polls with a relaxed or acquire load and calls
//! [`spin_pause`](crate::thread::spin_pause).

use crate::arch;
use crate::global::{Global, GlobalMut};
use crate::shared::Shared;
use crate::thread;

/// Adds `value` to element `idx`; returns what was there. Relaxed, GPU scope.
#[inline(always)]
#[track_caller]
pub unsafe fn fetch_add_relaxed_gpu(place: GlobalMut<u32>, idx: usize, value: u32) -> u32 {
    arch::atomic::fetch_add_relaxed_gpu(place.offset(idx).raw, value)
}

/// Adds `value` to element `idx`; returns what was there. Acquire and release, GPU scope: what the
/// earlier arrivals wrote is visible to the later ones.
#[inline(always)]
#[track_caller]
pub unsafe fn fetch_add_acq_rel_gpu(place: GlobalMut<u32>, idx: usize, value: u32) -> u32 {
    arch::atomic::fetch_add_acq_rel_gpu(place.offset(idx).raw, value)
}

/// Adds `value` to element `idx` of shared memory; returns what was there. Relaxed, block scope.
#[inline(always)]
#[track_caller]
pub unsafe fn fetch_add_shared(place: Shared<u32>, idx: usize, value: u32) -> u32 {
    arch::atomic::fetch_add_shared(place.offset(idx).raw, value)
}

/// Writes element `idx`, ordered with nothing. GPU scope: for a word that says by its value that it
/// is there.
#[inline(always)]
#[track_caller]
pub unsafe fn store_relaxed_gpu(place: GlobalMut<u32>, idx: usize, value: u32) {
    arch::atomic::store_relaxed_gpu(place.offset(idx).raw, value);
}

/// Writes the two elements from `idx` on, aligned to 8 bytes, as [`store_relaxed_gpu`] does each.
#[inline(always)]
#[track_caller]
pub unsafe fn store_x2_relaxed_gpu(place: GlobalMut<u32>, idx: usize, values: [u32; 2]) {
    arch::atomic::store_x2_relaxed_gpu(place.offset(idx).raw, values);
}

/// Element `idx`, ordered with nothing. GPU scope.
#[inline(always)]
#[track_caller]
pub unsafe fn load_relaxed_gpu(place: Global<u32>, idx: usize) -> u32 {
    arch::atomic::load_relaxed_gpu(place.offset(idx).raw)
}

/// The two elements from `idx` on, aligned to 8 bytes, as [`load_relaxed_gpu`] reads each.
#[inline(always)]
#[track_caller]
pub unsafe fn load_x2_relaxed_gpu(place: Global<u32>, idx: usize) -> [u32; 2] {
    arch::atomic::load_x2_relaxed_gpu(place.offset(idx).raw)
}

/// Writes element `idx` after everything this thread wrote or saw before. System scope.
#[inline(always)]
#[track_caller]
pub unsafe fn store_release_sys(place: GlobalMut<u32>, idx: usize, value: u32) {
    arch::atomic::store_release_sys(place.offset(idx).raw, value);
}

/// Writes element `idx`, ordered with nothing. System scope.
#[inline(always)]
#[track_caller]
pub unsafe fn store_relaxed_sys(place: GlobalMut<u32>, idx: usize, value: u32) {
    arch::atomic::store_relaxed_sys(place.offset(idx).raw, value);
}

/// Element `idx`, before everything this thread reads afterwards. GPU scope.
#[inline(always)]
#[track_caller]
pub unsafe fn load_acquire_gpu(place: Global<u32>, idx: usize) -> u32 {
    arch::atomic::load_acquire_gpu(place.offset(idx).raw)
}

/// Element `idx`, before everything this thread reads afterwards. System scope.
#[inline(always)]
#[track_caller]
pub unsafe fn load_acquire_sys(place: Global<u32>, idx: usize) -> u32 {
    arch::atomic::load_acquire_sys(place.offset(idx).raw)
}

/// Element `idx`, ordered with nothing. System scope.
#[inline(always)]
#[track_caller]
pub unsafe fn load_relaxed_sys(place: Global<u32>, idx: usize) -> u32 {
    arch::atomic::load_relaxed_sys(place.offset(idx).raw)
}

/// Waits until element `idx` is `expected`, before everything this thread reads afterwards. System
/// scope.
///
/// # Errors
/// What the element is instead, once `deadline_ns` have passed: no wait between GPUs is endless.
#[inline(always)]
#[track_caller]
pub unsafe fn wait_acquire_sys(
    place: Global<u32>,
    idx: usize,
    expected: u32,
    deadline_ns: u64,
) -> Result<(), u32> {
    let start = thread::global_timer_ns();
    loop {
        let seen = load_acquire_sys(place, idx);
        if seen == expected {
            return Ok(());
        }
        if thread::global_timer_ns() - start > deadline_ns {
            return Err(seen);
        }
        thread::spin_pause();
    }
}

/// The four elements from `idx` on, in one access aligned to 16 bytes; ordered with nothing. Each
/// element is old or new as a whole, the four together need not be. System scope.
#[inline(always)]
#[track_caller]
pub unsafe fn load_relaxed_sys_x4(place: Global<u32>, idx: usize) -> [u32; 4] {
    arch::atomic::load_relaxed_sys_x4(place.offset(idx).raw)
}

/// Writes the four elements from `idx` on, in one access aligned to 16 bytes, ordered with nothing;
/// atomic as in [`load_relaxed_sys_x4`]. System scope.
#[inline(always)]
#[track_caller]
pub unsafe fn store_relaxed_sys_x4(place: GlobalMut<u32>, idx: usize, values: [u32; 4]) {
    arch::atomic::store_relaxed_sys_x4(place.offset(idx).raw, values);
}

/// Orders all this thread's accesses before the fence with those after it, for every thread of
/// the device.
#[inline(always)]
pub unsafe fn fence_acq_rel_gpu() {
    arch::atomic::fence_acq_rel_gpu();
}

/// Orders all this thread's accesses before the fence with those after it, for every GPU and the
/// host.
#[inline(always)]
pub unsafe fn fence_acq_rel_sys() {
    arch::atomic::fence_acq_rel_sys();
}
