//! Clusters: loads for several blocks, arrivals in other blocks, reads of their shared memory.
#![allow(missing_docs, unsafe_op_in_unsafe_fn)]

mod common;

use common::{assert_says, contents, dims, fault, fresh, holding, launch, seeded};
use cuda_std::bulk::Mbarrier;
use cuda_std::prelude::*;
use cuda_std::tensor_map::{L2Promotion, Swizzle, Tiling};

const COLUMNS: usize = 32;
/// Rows that a block of a cluster of two loads.
const ROWS: usize = 2;
const HALF: usize = ROWS * COLUMNS;
const NUM_TILES: usize = 3;
const SHARED_BYTES: u32 = (2 * HALF * 4 + 2 * 8) as u32;

/// The two blocks of a cluster load half of each tile, for both; block `r` writes `r + 1` times all of
/// it. One stage, which both have to free. `how` is 0 for the right way.
#[kernel(cluster = 2, threads = 64)]
pub unsafe fn halves(x: TensorMap<u32, 2>, y: GlobalMut<u32>, how: u32) {
    let stage = shared::dynamic_shared_mem::<u32>();
    let barriers = stage.offset(2 * HALF).cast::<u64>();
    let (full, empty) = (Mbarrier::at(barriers), Mbarrier::at(barriers.offset(1)));
    let (rank, thread) = (cluster::block_rank(), thread::thread_idx_x());
    if thread == 0 {
        full.init(1);
        empty.init(2);
        bulk::fence_init();
    }
    match how {
        1 => thread::sync_threads(),
        2 if rank == 1 => return,
        _ => cluster::meet(),
    }
    let y = y.offset(thread::block_idx_x() as usize * NUM_TILES * 2 * HALF);
    for tile in 0..NUM_TILES {
        let parity = tile as u32 % 2;
        if thread == 0 {
            empty.wait(parity ^ 1);
            full.arrive_expect_bytes(2 * HALF as u32 * 4);
            let half = stage.offset(rank as usize * HALF);
            let row = (2 * tile + rank as usize) * ROWS;
            bulk::load_tile_to(0b11, half, &x, [0, row as i32], full);
        } else if thread >= 32 {
            full.wait(parity);
            let mut i = thread as usize - 32;
            while i < 2 * HALF {
                y.store(tile * 2 * HALF + i, stage.load(i) * (rank + 1));
                i += 32;
            }
            warp::sync_warp(warp::FULL_MASK);
            match how {
                3 if thread == 32 => empty.arrive(),
                4 if thread == 32 => empty.arrive_in(2),
                _ if thread < 34 => empty.arrive_in(thread - 32),
                _ => {}
            }
        }
    }
    if how != 5 {
        cluster::meet();
    }
}

fn run_halves(how: u32, run: impl FnOnce(halves)) -> Vec<u32> {
    let values: Vec<u32> = (0..(NUM_TILES * 2 * HALF) as u32).collect();
    let (x, y) = (holding(&values), fresh::<u32>(4 * values.len()));
    let tiling = Tiling {
        sizes: [COLUMNS as u64, (NUM_TILES * 2 * ROWS) as u64],
        strides: [1, COLUMNS as u64],
        tile: [COLUMNS as u32, ROWS as u32],
        swizzle: Swizzle::None,
        l2_promotion: L2Promotion::None,
    };
    let x = TensorMap::new(x.view(), &tiling).unwrap();
    run(halves { x, y: y.view_mut(), how });
    contents(&y)
}

fn halves_fault(how: u32) -> String {
    let mut said = String::new();
    run_halves(how, |kernel| said = fault(dims(4, 64, SHARED_BYTES), kernel));
    said
}

#[test]
fn a_load_for_several_blocks_lands_in_each() {
    let all: Vec<u32> = (0..(NUM_TILES * 2 * HALF) as u32).collect();
    let twice: Vec<u32> = all.iter().map(|value| 2 * value).collect();
    let want = [&all[..], &twice, &all, &twice].concat();
    let ascending = run_halves(0, |kernel| launch(dims(4, 64, SHARED_BYTES), kernel).unwrap());
    assert_eq!(ascending, want);
    for seed in 0..8 {
        let y = run_halves(0, |kernel| {
            // SAFETY: accesses are checked, and the test waits for the launch.
            unsafe { seeded(seed).launch(dims(4, 64, SHARED_BYTES), kernel) }.unwrap();
        });
        assert_eq!(y, want, "seed {seed}");
    }
}

#[test]
fn blocks_meet_before_they_reach_into_each_other() {
    let said = halves_fault(1);
    assert_says(&said, &["cluster.rs", "block 0 of the cluster may not have started"]);
}

#[test]
fn a_block_that_does_not_come_is_missed() {
    assert_says(
        &halves_fault(2),
        &["kernel halves, block (", "threads 0-63 wait", "for the cluster"],
    );
}

#[test]
fn a_stage_that_one_block_frees_for_itself_only_is_never_free() {
    assert_says(&halves_fault(3), &["stuck mbarrier", "1 of 2 arrivals missing"]);
}

#[test]
fn ranks_are_those_of_the_cluster() {
    assert_says(&halves_fault(4), &["block 2 of the cluster does not exist: there are 2"]);
}

#[test]
fn an_arrival_in_a_block_that_may_have_ended_is_reported() {
    let said = halves_fault(5);
    assert_says(&said, &["may have ended: its threads have returned"]);
}

#[test]
fn a_grid_is_whole_clusters() {
    let mut said = String::new();
    run_halves(0, |kernel| said = fault(dims(3, 64, SHARED_BYTES), kernel));
    assert_says(&said, &["the grid has 3 blocks in x, and the kernel runs in clusters of 2"]);
}

/// Each block leaves four words a thread; each adds up those of all four blocks, its own quarter of
/// the threads. `how` 1 leaves out the meeting between the two.
#[kernel(cluster = 4, threads = 32)]
pub unsafe fn add_up(y: GlobalMut<u32>, how: u32) {
    let words = shared::dynamic_shared_mem::<u32>();
    let (rank, thread) = (cluster::block_rank(), thread::thread_idx_x());
    cluster::sync();
    words.store_x4(4 * thread as usize, [0, 1, 2, 3].map(|i| 100 * rank + 4 * thread + i));
    if how == 0 {
        cluster::sync();
    }
    if thread / 8 == rank {
        let mut sums = [0; 4];
        for other in 0..4 {
            let theirs = cluster::load_x4(words.offset(4 * thread as usize), other);
            for (sum, word) in sums.iter_mut().zip(theirs) {
                *sum += word;
            }
        }
        y.store_x4(4 * thread as usize, sums);
    }
    cluster::sync();
}

#[test]
fn blocks_read_what_others_left() {
    let y = fresh::<u32>(128);
    launch(dims(4, 32, 512), add_up { y: y.view_mut(), how: 0 }).unwrap();
    let want: Vec<u32> = (0..128).map(|i| 4 * i + 600).collect();
    assert_eq!(contents::<u32>(&y), want);
    let said = fault(dims(4, 32, 512), add_up { y: y.view_mut(), how: 1 });
    assert_says(&said, &["cluster.rs", "reads memory nothing wrote"]);
}
