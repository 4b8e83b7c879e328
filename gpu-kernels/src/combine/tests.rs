use std::string::String;
use std::thread;
use std::time::{Duration, Instant};
use std::vec;
use std::vec::Vec;

use cuda_std::Kernel;
use half::bf16;

use super::device::{
    combine_pull_bulk, combine_push_bulk, combine_push_packets, combine_sum_baseline,
};
use super::reference::combine;
use super::{NUM_MARKS, PACKETS_THREADS, SUM_THREADS};
use crate::dispatch::POISON;
use crate::dispatch::contract::{ExchangeLaunch, ExchangeShape};
use crate::dispatch::reference::{Case, RankTokens, cases, dispatch, many_tokens, random_rows};
use crate::testing::{DeviceMemory, TestDevice, digest};

#[derive(Clone, Copy, Debug)]
enum Variant {
    Packets,
    Push,
    Pull,
}

impl Variant {
    const ALL: [Self; 3] = [Self::Packets, Self::Push, Self::Pull];

    /// As few blocks as can be for many tokens, so that each goes through its own in several rounds.
    fn launch(self, shape: &ExchangeShape, timeout_us: u32) -> ExchangeLaunch {
        let num_blocks = if shape.num_max_tokens_per_rank > NUM_MARKS { 2 } else { 3 };
        let num_senders = match self {
            Self::Pull => num_blocks,
            _ => num_blocks - 1,
        };
        ExchangeLaunch { num_blocks, num_senders, timeout_us }
    }
}

/// How long tests wait for a rank that comes.
const TIMEOUT_US: u32 = 20_000_000;

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
    partial: DeviceMemory<bf16>,
    staging: DeviceMemory<u32>,
    signals: DeviceMemory<u32>,
    epochs: DeviceMemory<u32>,
    late: DeviceMemory<u32>,
}

impl RankMemory {
    fn new(shape: &ExchangeShape, variant: Variant) -> Self {
        let launch = variant.launch(shape, TIMEOUT_US);
        let len = shape.ep_size * shape.num_max_tokens_per_rank * shape.hidden;
        let partial = DeviceMemory::poisoned(len as usize);
        let poison = |len| DeviceMemory::from_slice(&vec![POISON; len]);
        let zeros = |len| DeviceMemory::from_slice(&vec![0; len]);
        let (staging, signals) = match variant {
            Variant::Packets => (poison(shape.combine_words()), zeros(0)),
            Variant::Push => (
                DeviceMemory::poisoned(shape.combine_staging_words()),
                zeros(shape.num_signals(launch.num_senders)),
            ),
            Variant::Pull => (zeros(0), poison(shape.num_pull_signals(launch.num_blocks))),
        };
        let epochs = zeros(launch.num_blocks as usize);
        Self { partial, staging, signals, epochs, late: zeros(shape.late_words()) }
    }
}

/// The addresses of a part of each rank's memory.
fn table(
    ranks: &[RankMemory],
    part: impl Fn(&RankMemory) -> &DeviceMemory<u32>,
) -> DeviceMemory<u64> {
    DeviceMemory::from_slice(&ranks.iter().map(|rank| part(rank).address()).collect::<Vec<_>>())
}

/// One rank's call: what it made of its tokens, or the executor's report.
#[allow(clippy::too_many_arguments, reason = "what the kernels take, and how")]
fn run_rank(
    device: &TestDevice,
    shape: &ExchangeShape,
    variant: Variant,
    memory: &[RankMemory],
    rank: usize,
    tokens: &[RankTokens],
    partial: &[bf16],
    timeout_us: u32,
) -> Result<Vec<bf16>, String> {
    let launch = variant.launch(shape, timeout_us);
    device.write(&memory[rank].partial, partial);
    let staging_ptrs = table(memory, |rank| &rank.staging);
    let signal_ptrs = table(memory, |rank| &rank.signals);
    let recv_topk_ids = DeviceMemory::from_slice(&dispatch(shape, tokens, rank as u32).topk_ids);
    let topk_ids = DeviceMemory::from_slice(&tokens[rank].topk_ids);
    let out = DeviceMemory::<bf16>::poisoned(tokens[rank].x.len());
    let partial = memory[rank].partial.view().cast();
    let out_view = out.view_mut().cast();
    let (epochs, late) = (memory[rank].epochs.view_mut(), memory[rank].late.view_mut());
    let params = shape.params(rank as u32, tokens[rank].num_tokens(shape) as u32, launch);
    match variant {
        Variant::Packets => {
            launch.check_packets().unwrap();
            let kernel = combine_push_packets {
                partial,
                recv_topk_ids: recv_topk_ids.view(),
                topk_ids: topk_ids.view(),
                peer_ptrs: staging_ptrs.view(),
                out: out_view,
                epochs,
                late,
                params,
            };
            device.try_launch(shape.combine_packets_dims(launch), kernel)
        }
        Variant::Push => {
            launch.check_push().unwrap();
            let kernel = combine_push_bulk {
                partial,
                recv_topk_ids: recv_topk_ids.view(),
                topk_ids: topk_ids.view(),
                staging_ptrs: staging_ptrs.view(),
                signal_ptrs: signal_ptrs.view(),
                out: out_view,
                epochs,
                late,
                params,
            };
            device.try_launch(shape.combine_bulk_dims(launch), kernel)
        }
        Variant::Pull => {
            launch.check_pull().unwrap();
            let kernel = combine_pull_bulk {
                partial,
                topk_ids: topk_ids.view(),
                signal_ptrs: signal_ptrs.view(),
                out: out_view,
                epochs,
                late,
                params,
            };
            device.try_launch(shape.combine_bulk_dims(launch), kernel)
        }
    }?;
    Ok(out.to_vec())
}

/// Calls in a row, each with other tokens, all ranks at once; every result is checked. Returns the
/// results of the last call.
fn check(
    device: &(impl Fn() -> TestDevice + Sync),
    case: &Case,
    variant: Variant,
    num_calls: u64,
) -> Vec<Vec<bf16>> {
    let shape = case.shape;
    let memory: Vec<_> = (0..shape.ep_size).map(|_| RankMemory::new(&shape, variant)).collect();
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
                    let partial = &partials[rank];
                    let run = run_rank(
                        &device, &shape, variant, memory, rank, tokens, partial, TIMEOUT_US,
                    );
                    last = run.unwrap_or_else(|fault| {
                        panic!("{variant:?}, {}, call {call}: {fault}", case.name)
                    });
                    let want = combine(&shape, partials, rank, &tokens[rank].topk_ids);
                    let off = (0..want.len()).find(|&i| last[i] != want[i]);
                    assert!(
                        off.is_none(),
                        "{variant:?}, {} of {} ranks, call {call}, rank {rank}: element {off:?} \
                         of {}",
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
fn all_variants_equal_the_reference_for_one_to_four_ranks() {
    for ep_size in 1..=4 {
        for case in cases(ep_size).iter().chain(&[many_tokens(ep_size)]) {
            for variant in Variant::ALL {
                check(&TestDevice::ascending, case, variant, 2);
            }
        }
    }
}

#[test]
fn blocks_go_through_many_tokens_in_rounds() {
    let mut case = many_tokens(2);
    case.shape.num_max_tokens_per_rank = 2 * NUM_MARKS + 100;
    case.num_tokens = vec![2 * NUM_MARKS + 100, 2 * NUM_MARKS - 1];
    for variant in [Variant::Push, Variant::Pull] {
        check(&TestDevice::ascending, &case, variant, 2);
    }
}

#[test]
fn the_order_of_lanes_does_not_matter() {
    for seed in 0..2 {
        for case in cases(2 + seed as u32).iter().skip(5) {
            for variant in Variant::ALL {
                check(&|| TestDevice::seeded(seed), case, variant, 2);
            }
        }
    }
}

/// A peer that has no rows for this rank must not run ahead of it: many calls in a row, all rows
/// one way.
#[test]
fn a_rank_that_waits_for_no_rows_does_not_run_ahead() {
    let case = cases(2).into_iter().find(|case| case.name == "all to the last expert").unwrap();
    for variant in Variant::ALL {
        check(&TestDevice::ascending, &case, variant, 8);
    }
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
                    params: shape.params(
                        rank as u32,
                        num_tokens,
                        Variant::Packets.launch(&shape, 0),
                    ),
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
    let out = check(&TestDevice::ascending, &case, Variant::Packets, 1);
    let digests: Vec<_> = out.iter().map(|out| std::format!("{:016x}", digest(out))).collect();
    insta::assert_snapshot!(digests.join("\n"));
}

#[test]
fn launches_and_sizes_follow_from_the_shape() {
    let shape = cases(4).pop().unwrap().shape;
    assert_eq!(shape.combine_words() * 4, 2 * 3 * 3 * 16384 + 3 * 4);
    assert_eq!(shape.combine_staging_words() * 4, 3 * 3 * 16384);
    assert_eq!(shape.num_pull_signals(5), 3 * 3 * 5);
    assert_eq!(shape.packet_messages(7), 7 * 16 + 1);
    let launch = ExchangeLaunch { num_blocks: 30, num_senders: 20, timeout_us: 0 };
    // Chunks of 4 tokens, dealt to 10 adders, in each to 3 groups.
    assert_eq!(shape.push_messages(launch, [0, 3, 4, 40, 41].into_iter()), 20 + 4);
    assert_eq!(combine_push_packets::THREADS, Some(PACKETS_THREADS));
    assert_eq!(combine_sum_baseline::THREADS, Some(SUM_THREADS));
    let bulk_threads = shape.combine_bulk_dims(launch).block[0];
    assert_eq!(combine_push_bulk::THREADS, Some(bulk_threads));
    assert_eq!(combine_pull_bulk::THREADS, Some(bulk_threads));
    let work = shape.combine_work(5, 12);
    assert_eq!((work.read_bytes, work.written_bytes), (12 * 16384, 5 * 16384));
}

#[test]
fn refusals_name_argument_need_and_finding() {
    let launch =
        |num_blocks, num_senders| ExchangeLaunch { num_blocks, num_senders, timeout_us: 1 };
    launch(132, 66).check_push().unwrap();
    launch(16, 16).check_pull().unwrap();
    let errors = [
        launch(0, 0).check_push().unwrap_err(),
        launch(8, 0).check_push().unwrap_err(),
        launch(8, 8).check_push().unwrap_err(),
        launch(1 << 17, 1 << 16).check_push().unwrap_err(),
        launch(0, 0).check_pull().unwrap_err(),
        launch(8, 4).check_pull().unwrap_err(),
    ];
    insta::assert_snapshot!(errors.map(|error| std::format!("{error}")).join("\n"), @"
    `num_blocks` must be 1 to 65535, got 0
    `num_senders` must be at least 1, got 0
    `num_blocks` must be more than num_senders (8), to add, got 8
    `num_blocks` must be 1 to 65535, got 131072
    `num_blocks` must be 1 to 65535, got 0
    `num_senders` must be num_blocks (8), as all blocks pull, got 4
    ");
}

/// Runs rank 0 alone; how many messages it missed from rank 1. A call behind that one does not wait,
/// and counts nothing.
fn missed_alone(variant: Variant) -> u32 {
    let case = cases(2).into_iter().find(|case| case.name == "distinct experts").unwrap();
    let shape = case.shape;
    let memory: Vec<_> = (0..2).map(|_| RankMemory::new(&shape, variant)).collect();
    let (tokens, device) = (case.tokens(1), TestDevice::ascending());
    let partial = &partials(&shape, &tokens, 1)[0];
    run_rank(&device, &shape, variant, &memory, 0, &tokens, partial, 20_000).unwrap();
    let late = memory[0].late.to_vec();
    let start = Instant::now();
    run_rank(&device, &shape, variant, &memory, 0, &tokens, partial, TIMEOUT_US).unwrap();
    assert!(start.elapsed() < Duration::from_micros(u64::from(TIMEOUT_US) / 2), "{variant:?}");
    assert_eq!(memory[0].late.to_vec(), late, "{variant:?}");
    assert_eq!(late[..3], [0; 3], "of dispatch, and of this rank");
    late[3]
}

#[test]
fn a_rank_that_never_comes_is_counted_and_not_waited_for() {
    let case = cases(2).into_iter().find(|case| case.name == "distinct experts").unwrap();
    let (shape, tokens) = (case.shape, case.tokens(1));
    let num_rows = tokens[0].num_rows_to(&shape, 1) as u32;
    assert_eq!(num_rows, 12);
    assert_eq!(missed_alone(Variant::Packets), shape.packet_messages(num_rows));
    let push = Variant::Push.launch(&shape, 0);
    assert_eq!(missed_alone(Variant::Push), shape.push_messages(push, 0..num_rows));
    assert_eq!(missed_alone(Variant::Pull), 2 * 3);
}
