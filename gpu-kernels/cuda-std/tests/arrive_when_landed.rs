//! `cp.async` that completes on an mbarrier.
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

mod common;

use common::{assert_says, contents, dims, fault, fresh, holding, launch};
use cuda_std::bulk::Mbarrier;
use cuda_std::prelude::*;

const COPIERS: usize = 32;

/// The first warp copies tiles of 32 x 16 bytes, the second doubles them; two stages. `how` is 0
/// for the right way.
#[kernel(threads = 64)]
pub unsafe fn doubles(x: Global<u32>, y: GlobalMut<u32>, num_tiles: u32, how: u32) {
    let stages = shared::dynamic_shared_mem::<u32>();
    let barriers = stages.offset(2 * 4 * COPIERS).cast::<u64>();
    let (full, empty) = (
        |stage: usize| Mbarrier::at(barriers.offset(stage)),
        |stage: usize| Mbarrier::at(barriers.offset(2 + stage)),
    );
    if thread::thread_idx_x() == 0 {
        for stage in 0..2 {
            full(stage).init(COPIERS as u32);
            empty(stage).init(COPIERS as u32);
        }
        bulk::fence_init();
    }
    thread::sync_threads();
    let policy = async_copy::CachePolicy::evict_first();
    let lane = warp::lane_id() as usize;
    for tile in 0..num_tiles as usize {
        let (stage, parity) = (tile % 2, (tile / 2 % 2) as u32);
        let place = stages.offset((stage * COPIERS + lane) * 4);
        if thread::thread_idx_x() < COPIERS as u32 {
            empty(stage).wait(parity ^ 1);
            async_copy::copy_16(place, x.offset((tile * COPIERS + lane) * 4), policy);
            match how {
                1 => full(stage).arrive(),
                _ => async_copy::arrive_when_landed(full(stage)),
            }
        } else {
            full(stage).wait(parity);
            let other = (lane + 1) % COPIERS;
            let values = stages.load_x4((stage * COPIERS + other) * 4);
            y.store_x4((tile * COPIERS + other) * 4, values.map(|value| 2 * value));
            empty(stage).arrive();
        }
    }
}

const SHARED_BYTES: u32 = (2 * COPIERS * 16 + 4 * 8) as u32;

fn kernel(how: u32, check: impl FnOnce(doubles)) {
    let values: Vec<u32> = (0..5 * 4 * COPIERS as u32).collect();
    let (x, y) = (holding(&values), fresh::<u32>(values.len()));
    check(doubles { x: x.view(), y: y.view_mut(), num_tiles: 5, how });
    if how == 0 {
        assert_eq!(contents::<u32>(&y), values.iter().map(|v| 2 * v).collect::<Vec<u32>>());
    }
}

#[test]
fn copies_land_before_the_phase_completes() {
    kernel(0, |kernel| launch(dims(1, 64, SHARED_BYTES), kernel).unwrap());
}

#[test]
fn an_arrival_that_does_not_wait_for_the_copies_shows() {
    kernel(1, |kernel| {
        let said = fault(dims(1, 64, SHARED_BYTES), kernel);
        assert_says(&said, &["arrive_when_landed.rs", "reads memory nothing wrote"]);
    });
}
