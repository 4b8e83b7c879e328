use std::string::String;
use std::thread;
use std::vec;
use std::vec::Vec;

use cuda_std::Kernel;
use half::bf16;

use super::device::{combine_push_packets, combine_sum_baseline};
use super::reference::combine;
use super::{PACKETS_THREADS, SUM_THREADS};
use crate::dispatch::POISON;
use crate::dispatch::contract::{ExchangeLaunch, ExchangeShape};
use crate::dispatch::reference::{Case, RankTokens, cases, dispatch, random_rows};
use crate::testing::{DeviceMemory, TestDevice, digest};

const LAUNCH: ExchangeLaunch =
    ExchangeLaunch { num_blocks: 3, num_senders: 2, timeout_us: 20_000_000 };

/// What the experts of every rank made of what came, NaN where nothing came. // [ep_size]
fn partials(shape: &ExchangeShape, tokens: &[RankTokens], seed: u64) -> Vec<Vec<bf16>> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let hidden = shape.hidden as usize;
    let of_rank = |rank| {
        let rows = dispatch(shape, tokens, rank).x;
        rows.iter()
            .flat_map(|row| match row {
                Some(_) => random_rows(hidden, &mut rng),
                None => vec![bf16::NAN; hidden],
            })
            .collect()
    };
    (0..shape.ep_size).map(of_rank).collect()
}

/// Memory of one rank that outlives calls.
struct RankMemory {
    staging: DeviceMemory<u32>,
    epochs: DeviceMemory<u32>,
    late: DeviceMemory<u32>,
}

impl RankMemory {
    fn new(shape: &ExchangeShape) -> Self {
        Self {
            staging: DeviceMemory::from_slice(&vec![POISON; shape.combine_words()]),
            epochs: DeviceMemory::from_slice(&vec![0; LAUNCH.num_blocks as usize]),
            late: DeviceMemory::from_slice(&vec![0; shape.ep_size as usize]),
        }
    }
}

/// One rank's call: what it made of its tokens, or the executor's report.
fn run_rank(
    device: &TestDevice,
    shape: &ExchangeShape,
    memory: &[RankMemory],
    rank: usize,
    tokens: &[RankTokens],
    partial: &[bf16],
    launch: ExchangeLaunch,
) -> Result<Vec<bf16>, String> {
    let addresses: Vec<_> = memory.iter().map(|rank| rank.staging.address()).collect();
    let peer_ptrs = DeviceMemory::from_slice(&addresses);
    let partial = DeviceMemory::from_slice(partial);
    let recv_topk_ids = DeviceMemory::from_slice(&dispatch(shape, tokens, rank as u32).topk_ids);
    let topk_ids = DeviceMemory::from_slice(&tokens[rank].topk_ids);
    let out = DeviceMemory::<bf16>::poisoned(tokens[rank].x.len());
    launch.check_packets().unwrap();
    let kernel = combine_push_packets {
        partial: partial.view().cast(),
        recv_topk_ids: recv_topk_ids.view(),
        topk_ids: topk_ids.view(),
        peer_ptrs: peer_ptrs.view(),
        out: out.view_mut().cast(),
        epochs: memory[rank].epochs.view_mut(),
        late: memory[rank].late.view_mut(),
        params: shape.params(rank as u32, tokens[rank].num_tokens(shape) as u32, launch),
    };
    device.try_launch(shape.combine_dims(launch), kernel)?;
    Ok(out.to_vec())
}

/// Calls in a row, each with other tokens, all ranks at once; every result is checked. Returns the
/// results of the last call.
fn check(device: &(impl Fn() -> TestDevice + Sync), case: &Case, num_calls: u64) -> Vec<Vec<bf16>> {
    let shape = case.shape;
    let memory: Vec<_> = (0..shape.ep_size).map(|_| RankMemory::new(&shape)).collect();
    let call = |seed| {
        let tokens = case.tokens(seed);
        let partials = partials(&shape, &tokens, seed);
        (tokens, partials)
    };
    let calls: Vec<_> = (0..num_calls).map(call).collect();
    thread::scope(|scope| {
        let ranks = (0..shape.ep_size as usize).map(|rank| {
            let (memory, calls) = (&memory, &calls);
            scope.spawn(move || {
                let device = device();
                let mut last = Vec::new();
                for (call, (tokens, partials)) in calls.iter().enumerate() {
                    last = run_rank(&device, &shape, memory, rank, tokens, &partials[rank], LAUNCH)
                        .unwrap_or_else(|fault| panic!("{}, call {call}: {fault}", case.name));
                    let want = combine(&shape, partials, rank, &tokens[rank].topk_ids);
                    let off = (0..want.len()).find(|&i| last[i] != want[i]);
                    assert!(
                        off.is_none(),
                        "{} of {} ranks, call {call}, rank {rank}: element {off:?} of {}",
                        case.name,
                        shape.ep_size,
                        want.len()
                    );
                    assert!(memory[rank].late.to_vec().iter().all(|&late| late == 0));
                }
                last
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn packets_equal_the_reference_for_one_to_four_ranks() {
    for ep_size in 1..=4 {
        for case in cases(ep_size) {
            check(&TestDevice::ascending, &case, 2);
        }
    }
}

#[test]
fn the_order_of_lanes_does_not_matter() {
    for seed in 0..2 {
        for case in cases(2 + seed as u32).iter().skip(5) {
            check(&|| TestDevice::seeded(seed), case, 2);
        }
    }
}

/// A peer that has no rows for this rank must not run ahead of it: many calls in a row, all rows
/// one way.
#[test]
fn a_rank_that_waits_for_no_rows_does_not_run_ahead() {
    let case = cases(2).into_iter().find(|case| case.name == "all to the last expert").unwrap();
    check(&TestDevice::ascending, &case, 8);
}

#[test]
fn the_baseline_equals_the_reference() {
    for ep_size in 1..=4 {
        for case in cases(ep_size) {
            let (shape, tokens) = (case.shape, case.tokens(3));
            let partials = partials(&shape, &tokens, 3);
            for (rank, own) in tokens.iter().enumerate() {
                let num_tokens = own.num_tokens(&shape) as u32;
                if num_tokens == 0 {
                    continue;
                }
                // What each peer holds of this rank's tokens, by peer.
                let part = shape.num_max_tokens_per_rank as usize * shape.hidden as usize;
                let slots = rank * part..(rank + 1) * part;
                let parts = partials.iter().flat_map(|partial| partial[slots.clone()].to_vec());
                let parts = DeviceMemory::from_slice(&parts.collect::<Vec<_>>());
                let partial = DeviceMemory::from_slice(&partials[rank]);
                let topk_ids = DeviceMemory::from_slice(&own.topk_ids);
                let out = DeviceMemory::<bf16>::poisoned(own.x.len());
                let kernel = combine_sum_baseline {
                    partial: partial.view().cast(),
                    parts: parts.view().cast(),
                    topk_ids: topk_ids.view(),
                    out: out.view_mut().cast(),
                    params: shape.params(rank as u32, num_tokens, LAUNCH),
                };
                TestDevice::seeded(3).launch(shape.sum_dims(num_tokens), kernel);
                let want = combine(&shape, &partials, rank, &own.topk_ids);
                assert!(out.to_vec() == want, "{}, rank {rank}", case.name);
            }
        }
    }
}

#[test]
fn results_do_not_change_between_versions() {
    let case = cases(3).into_iter().find(|case| case.name == "popular experts").unwrap();
    let out = check(&TestDevice::ascending, &case, 1);
    let digests: Vec<_> = out.iter().map(|out| std::format!("{:016x}", digest(out))).collect();
    insta::assert_snapshot!(digests.join("\n"));
}

#[test]
fn launches_and_sizes_follow_from_the_shape() {
    let shape = cases(4).pop().unwrap().shape;
    assert_eq!(shape.combine_words() * 4, 2 * 3 * 3 * 16384 + 3 * 4);
    assert_eq!(shape.added_segments(), 8);
    assert_eq!(combine_push_packets::THREADS, Some(PACKETS_THREADS));
    assert_eq!(combine_sum_baseline::THREADS, Some(SUM_THREADS));
    let work = shape.combine_work(5, 12);
    assert_eq!((work.read_bytes, work.written_bytes), (12 * 16384, 5 * 16384));
}
