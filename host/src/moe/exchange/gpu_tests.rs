//! Exchanges between GPUs. A test that finds fewer than it says fails.

use std::time::Duration;

use gpu_kernels::dispatch::reference::{Case, Routing, cases};

use super::tests::shared;
use super::*;
use crate::comm::World;
use crate::device::Device;

fn world(size: usize) -> World {
    World::cuda(size).unwrap_or_else(|error| panic!("this test needs {size} GPUs: {error}"))
}

/// Options of every kernel, with all multiprocessors and with few.
fn all_options() -> Vec<ExchangeOptions> {
    let default = ExchangeOptions::default();
    vec![
        ExchangeOptions { way: Some(Way::Bulk), ..default },
        ExchangeOptions { way: Some(Way::Bulk), num_sms: Some(16), ..default },
        ExchangeOptions { way: Some(Way::Packets), ..default },
        ExchangeOptions { way: Some(Way::Packets), num_sms: Some(16), ..default },
        ExchangeOptions { transport: Transport::Nccl, ..default },
    ]
}

/// Many tokens of a large model.
fn large(ep_size: u32, routing: Routing) -> Case {
    let shape = ExchangeShape {
        ep_size,
        num_experts: 256,
        topk: 8,
        hidden: 7168,
        num_max_tokens_per_rank: 700,
    };
    let num_tokens = (0..ep_size).map(|rank| 700 - 123 * rank).collect();
    Case { name: "a large model", shape, num_tokens, routing }
}

/// Runs `check` with all options for all cases, in one world.
fn check_all(
    size: u32,
    cases: &[Case],
    check: impl Fn(&Rank, &Case, ExchangeOptions) -> Result<(), ExchangeError> + Sync,
) {
    let on_rank = |rank: &Rank| {
        let each = |options| cases.iter().try_for_each(|case| check(rank, case, options));
        all_options().into_iter().try_for_each(each)
    };
    world(size as usize).try_run(on_rank).unwrap();
}

#[test]
#[ignore = "needs 1 GPU"]
fn a_world_of_one_gpu_exchanges_with_itself() {
    check_all(1, &cases(1), |rank, case, options| shared::both_ways(rank, case, options, 5));
}

/// For sanitizers, too, which run kernels one at a time: none waits for another one here.
#[test]
#[ignore = "needs 1 GPU"]
fn a_mirror_on_a_gpu_exchanges_with_itself() {
    let device = Device::cuda(0).unwrap_or_else(|error| panic!("this test needs a GPU: {error}"));
    let num_sms = Some(16);
    for way in [Way::Bulk, Way::Packets] {
        let options = ExchangeOptions { way: Some(way), num_sms, ..ExchangeOptions::default() };
        for case in cases(2) {
            shared::mirrored(&device, &case, options);
        }
    }
}

#[test]
#[ignore = "needs 2 GPUs"]
fn two_gpus_equal_the_reference() {
    check_all(2, &cases(2), |rank, case, options| shared::both_ways(rank, case, options, 5));
}

#[test]
#[ignore = "needs 2 GPUs"]
fn two_gpus_exchange_many_tokens() {
    let large = [Routing::Uniform, Routing::Zipf, Routing::Ragged].map(|routing| large(2, routing));
    check_all(2, &large, |rank, case, options| shared::both_ways(rank, case, options, 3));
}

#[test]
#[ignore = "needs 2 GPUs"]
fn graphs_can_be_replayed_on_two_gpus() {
    check_all(2, &[large(2, Routing::Uniform)], shared::replayed);
}

#[test]
#[ignore = "needs 2 GPUs"]
fn a_rank_that_ends_in_mid_exchange_is_named_on_gpus_too() {
    let timeout = Duration::from_millis(500);
    for phase in [Phase::Dispatch, Phase::Combine] {
        for num_sms in [None, Some(16)] {
            let options = ExchangeOptions {
                way: Some(Way::Bulk),
                timeout,
                num_sms,
                ..ExchangeOptions::default()
            };
            let case = large(2, Routing::Uniform);
            let results = shared::a_rank_ends_in_mid(phase, &world(2), &case, options);
            let said = results[0].as_ref().unwrap_err().to_string();
            println!("{said}");
            assert!(said.contains(&format!("{phase}: gave up on rank 1 after 500ms")), "{said}");
        }
    }
}

#[test]
#[ignore = "needs 2 GPUs"]
fn a_dead_rank_is_named_on_gpus_too() {
    for way in [Way::Bulk, Way::Packets] {
        let timeout = Duration::from_millis(500);
        let options = ExchangeOptions { way: Some(way), timeout, ..ExchangeOptions::default() };
        let results = shared::a_rank_dies(&world(2), &large(2, Routing::Uniform), options);
        let said = results[0].as_ref().unwrap_err().to_string();
        println!("{said}");
        assert!(said.contains("dispatch: gave up on rank 1 after 500ms: expected"), "{said}");
        assert!(said.ends_with("saw 0"), "{said}");
    }
}

/// The killed rank's thread ends with its kernels under way. The other one has given its stream a
/// hundred calls more, and ends in the time of one wait; after that both GPUs are as good as new.
#[test]
#[ignore = "needs 2 GPUs"]
fn a_rank_killed_in_mid_dispatch_ends_the_other_and_leaves_the_gpus_usable() {
    let timeout = Duration::from_millis(500);
    for (way, num_sms) in [(Way::Bulk, None), (Way::Bulk, Some(16)), (Way::Packets, None)] {
        let options =
            ExchangeOptions { way: Some(way), timeout, num_sms, ..ExchangeOptions::default() };
        let case = large(2, Routing::Uniform);
        let (num_calls, longest) = ([120, 20], 2 * timeout);
        let results =
            shared::a_rank_is_killed_among_calls(&world(2), &case, options, num_calls, longest);
        let said = results[0].as_ref().unwrap_err().to_string();
        println!("{said}");
        assert!(said.contains("dispatch: gave up on rank 1 after 500ms: expected"), "{said}");
        let again = world(2).try_run(|rank| shared::both_ways(rank, &case, options, 1));
        again.unwrap();
    }
}
