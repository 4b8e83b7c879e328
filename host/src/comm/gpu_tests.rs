//! Ranks on GPUs. A test that finds fewer than it says fails.

use std::time::Duration;

use super::tests::shared;
use super::*;

fn world(size: usize) -> World {
    World::cuda(size).unwrap_or_else(|error| panic!("this test needs {size} GPUs: {error}"))
}

/// One test on two GPUs for each shared check.
macro_rules! on_two_gpus {
    ($($check:ident),* $(,)?) => {$(
        #[test]
        #[ignore = "needs 2 GPUs"]
        fn $check() {
            world(2).try_run(shared::$check).unwrap();
        }
    )*};
}

on_two_gpus!(
    all_to_all_v_delivers_ragged_counts,
    all_to_all_v_of_nothing_ends,
    all_reduce_sums_and_maximises,
    all_gather_collects_by_rank,
    broadcast_copies_the_roots,
    a_ring_of_messages_goes_round,
    messages_keep_their_order,
    symmetric_memory_is_known_to_all,
);

#[test]
#[ignore = "needs 1 GPU"]
fn a_world_of_one_gpu_needs_no_nccl() {
    world(1).try_run(shared::all_reduce_sums_and_maximises).unwrap();
    world(1).try_run(shared::all_to_all_v_delivers_ragged_counts).unwrap();
    world(1).try_run(shared::all_gather_collects_by_rank).unwrap();
}

#[test]
#[ignore = "needs 2 GPUs"]
fn nccl_says_its_version() {
    let (version, path) = nccl::installed().unwrap();
    println!("NCCL {version} from {path:?}");
    assert!(version.to_string().starts_with("2."), "{version}");
    assert!(path.is_some());
}

#[test]
#[ignore = "needs 2 GPUs"]
fn a_collective_that_a_rank_never_joins_ends() {
    let results = world(2).with_deadline(Duration::from_secs(20)).run(|rank| -> Result<()> {
        let stream = rank.device().new_stream()?;
        let communicator = rank.communicator()?;
        let buffer = rank.device().alloc_zeroed::<f32>(1 << 20)?;
        communicator.all_reduce(&stream, &buffer, &buffer, ReduceOp::Sum)?;
        communicator.synchronize(&stream)?;
        assert!(rank.index() != 1, "planted");
        communicator.all_reduce(&stream, &buffer, &buffer, ReduceOp::Sum)?;
        communicator.synchronize(&stream)
    });
    let failure = results[0].as_ref().unwrap_err().to_string();
    assert!(failure.contains("rank 1 failed: panicked: planted"), "{failure}");
    assert!(results[1].as_ref().unwrap_err().to_string().contains("planted"));
}
