//! Atomics on the memory itself: blocks and ranks run on different OS threads.

use std::sync::atomic::{self, AtomicU32, Ordering};

use super::global::RawGlobal;
use super::race::{self, Act};
use super::shared::RawShared;

const BYTES: usize = 4;

macro_rules! fetch_add {
    ($($name:ident: $ordering:ident;)*) => {$(
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name(place: RawGlobal, value: u32) -> u32 {
            let word = place.check_load(0, BYTES, BYTES).cast::<u32>().cast_mut();
            if value != 0 {
                place.note_store(word.cast(), BYTES);
            }
            AtomicU32::from_ptr(word).fetch_add(value, Ordering::$ordering)
        }
    )*};
}

fetch_add! {
    fetch_add_relaxed_gpu: Relaxed;
    fetch_add_acq_rel_gpu: AcqRel;
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
    ($($name:ident: $ordering:ident;)*) => {$(
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name(place: RawGlobal, value: u32) {
            let word = place.check_store(0, BYTES, BYTES);
            AtomicU32::from_ptr(word.cast()).store(value, Ordering::$ordering);
        }
    )*};
}

stores! {
    store_release_sys: Release;
    store_relaxed_sys: Relaxed;
    store_relaxed_gpu: Relaxed;
}

#[inline(always)]
#[track_caller]
pub unsafe fn store_x2_relaxed_gpu(place: RawGlobal, values: [u32; 2]) {
    place.check_store(0, 2 * BYTES, 2 * BYTES);
    store_relaxed_gpu(place, values[0]);
    store_relaxed_gpu(place.offset_bytes(BYTES), values[1]);
}

macro_rules! loads {
    ($($name:ident: $ordering:ident;)*) => {$(
        #[inline(always)]
        #[track_caller]
        pub unsafe fn $name(place: RawGlobal) -> u32 {
            let word = place.check_load(0, BYTES, BYTES).cast::<u32>().cast_mut();
            AtomicU32::from_ptr(word).load(Ordering::$ordering)
        }
    )*};
}

loads! {
    load_acquire_gpu: Acquire;
    load_acquire_sys: Acquire;
    load_relaxed_sys: Relaxed;
    load_relaxed_gpu: Relaxed;
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
    let words = place.check_load(0, 4 * BYTES, 4 * BYTES).cast::<u32>().cast_mut();
    std::array::from_fn(|i| AtomicU32::from_ptr(words.add(i)).load(Ordering::Relaxed))
}

#[inline(always)]
#[track_caller]
pub unsafe fn store_relaxed_sys_x4(place: RawGlobal, values: [u32; 4]) {
    let words = place.check_store(0, 4 * BYTES, 4 * BYTES).cast::<u32>();
    for (i, value) in values.into_iter().enumerate() {
        AtomicU32::from_ptr(words.add(i)).store(value, Ordering::Relaxed);
    }
}

#[inline(always)]
pub unsafe fn fence_acq_rel_gpu() {
    atomic::fence(Ordering::AcqRel);
}

#[inline(always)]
pub unsafe fn fence_acq_rel_sys() {
    atomic::fence(Ordering::AcqRel);
}
