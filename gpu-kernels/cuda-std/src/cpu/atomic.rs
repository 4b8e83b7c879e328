//! Atomics on the memory itself: blocks and ranks run on different OS threads.

use std::sync::atomic::{self, AtomicU32, Ordering};

use super::global::RawGlobal;
use super::race::{self, Act, Atomic, Scope};
use super::shared::RawShared;

const BYTES: usize = 4;

macro_rules! fetch_add {
    ($($name:ident: $ordering:ident, $orders:literal;)*) => {$(
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name(place: RawGlobal, value: u32) -> u32 {
            let word = place.check_load(0, BYTES, BYTES).cast::<u32>().cast_mut();
            if value != 0 {
                place.note_store(word.cast(), BYTES);
            }
            let how = Atomic { loads: true, stores: true, orders: $orders, scope: Scope::Gpu };
            race::note_atomic(place, how, || {
                AtomicU32::from_ptr(word).fetch_add(value, Ordering::$ordering)
            })
        }
    )*};
}

fetch_add! {
    fetch_add_relaxed_gpu: Relaxed, false;
    fetch_add_acq_rel_gpu: AcqRel, true;
}

#[inline(always)]
#[track_caller]
pub unsafe fn fetch_add_shared(place: RawShared, value: u32) -> u32 {
    let before: u32 = place.peek();
    race::note(Act::Update, place, BYTES);
    place.poke(before.wrapping_add(value));
    before
}

macro_rules! stores {
    ($($name:ident: $ordering:ident, $orders:literal, $scope:ident;)*) => {$(
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name(place: RawGlobal, value: u32) {
            let word = place.check_store(0, BYTES, BYTES).cast::<u32>();
            let how = Atomic { loads: false, stores: true, orders: $orders, scope: Scope::$scope };
            race::note_atomic(place, how, || {
                AtomicU32::from_ptr(word).store(value, Ordering::$ordering);
            });
        }
    )*};
}

stores! {
    store_release_sys: Release, true, System;
    store_relaxed_sys: Relaxed, false, System;
    store_relaxed_gpu: Relaxed, false, Gpu;
}

#[inline(always)]
#[track_caller]
pub unsafe fn store_x2_relaxed_gpu(place: RawGlobal, values: [u32; 2]) {
    place.check_store(0, 2 * BYTES, 2 * BYTES);
    store_relaxed_gpu(place, values[0]);
    store_relaxed_gpu(place.offset_bytes(BYTES), values[1]);
}

macro_rules! loads {
    ($($name:ident: $ordering:ident, $orders:literal, $scope:ident;)*) => {$(
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name(place: RawGlobal) -> u32 {
            let word = place.check_load(0, BYTES, BYTES).cast::<u32>().cast_mut();
            let how = Atomic { loads: true, stores: false, orders: $orders, scope: Scope::$scope };
            race::note_atomic(place, how, || {
                AtomicU32::from_ptr(word).load(Ordering::$ordering)
            })
        }
    )*};
}

loads! {
    load_acquire_gpu: Acquire, true, Gpu;
    load_acquire_sys: Acquire, true, System;
    load_relaxed_sys: Relaxed, false, System;
    load_relaxed_gpu: Relaxed, false, Gpu;
}

#[inline(always)]
#[track_caller]
pub unsafe fn load_x2_relaxed_gpu(place: RawGlobal) -> [u32; 2] {
    place.check_load(0, 2 * BYTES, 2 * BYTES);
    [load_relaxed_gpu(place), load_relaxed_gpu(place.offset_bytes(BYTES))]
}

#[inline(always)]
#[track_caller]
pub unsafe fn load_relaxed_sys_x4(place: RawGlobal) -> [u32; 4] {
    place.check_load(0, 4 * BYTES, 4 * BYTES);
    [
        load_relaxed_sys(place),
        load_relaxed_sys(place.offset_bytes(BYTES)),
        load_relaxed_sys(place.offset_bytes(2 * BYTES)),
        load_relaxed_sys(place.offset_bytes(3 * BYTES)),
    ]
}

#[inline(always)]
#[track_caller]
pub unsafe fn store_relaxed_sys_x4(place: RawGlobal, values: [u32; 4]) {
    place.check_store(0, 4 * BYTES, 4 * BYTES);
    for (i, value) in values.into_iter().enumerate() {
        store_relaxed_sys(place.offset_bytes(i * BYTES), value);
    }
}

#[inline(always)]
pub unsafe fn fence_acq_rel_gpu() {
    fence(Scope::Gpu);
}

#[inline(always)]
pub unsafe fn fence_acq_rel_sys() {
    fence(Scope::System);
}

fn fence(scope: Scope) {
    atomic::fence(Ordering::AcqRel);
    if let Some(lane) = race::watched() {
        let me = race::identity_of(lane);
        lane.fences.borrow_mut().fence(&mut lane.clock.borrow_mut(), me, scope);
    }
}
