//! A thread's place in its launch, barrier, pause and clock.

use std::panic::Location;
use std::sync::OnceLock;
use std::time::Instant;

use super::lane::{self, Wait};
use super::named_barrier;

macro_rules! indices {
    ($($name:ident: |$lane:ident| $value:expr;)*) => {$(
        #[inline(always)]
        #[track_caller]
        pub fn $name() -> u32 {
            let $lane = lane::current();
            $value
        }
    )*};
}

indices! {
    thread_idx_x: |lane| lane.thread_idx[0];
    thread_idx_y: |lane| lane.thread_idx[1];
    thread_idx_z: |lane| lane.thread_idx[2];
    block_idx_x: |lane| lane.block().idx().0[0];
    block_idx_y: |lane| lane.block().idx().0[1];
    block_idx_z: |lane| lane.block().idx().0[2];
    block_dim_x: |lane| lane.block().launch().dims.block[0];
    block_dim_y: |lane| lane.block().launch().dims.block[1];
    block_dim_z: |lane| lane.block().launch().dims.block[2];
    grid_dim_x: |lane| lane.block().launch().dims.grid[0];
    grid_dim_y: |lane| lane.block().launch().dims.grid[1];
    grid_dim_z: |lane| lane.block().launch().dims.grid[2];
}

#[inline(always)]
#[track_caller]
pub fn sync_threads() {
    let lane = lane::current();
    lane.block().sync_threads(lane, Location::caller());
}

#[track_caller]
pub fn sync_some(id: u32, num_threads: u32) {
    let lane = lane::current();
    if named_barrier::come(lane, id, num_threads, true) {
        return;
    }
    lane.wait.set(Wait::NamedBarrier(id, Location::caller()));
    lane.suspend();
}

#[track_caller]
pub fn arrive_some(id: u32, num_threads: u32) {
    named_barrier::come(lane::current(), id, num_threads, false);
}

#[inline(always)]
#[track_caller]
pub fn spin_pause() {
    let lane = lane::current();
    lane.wait.set(Wait::Others(Location::caller()));
    let spinning = &lane.block().warps[lane.linear as usize / 32].spinning;
    spinning.set(spinning.get() | lane.bit());
    lane.suspend();
}

#[inline(always)]
pub fn global_timer_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}
