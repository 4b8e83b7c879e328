use std::format;
use std::string::String;
use std::thread;
use std::time::{Duration, Instant};
use std::vec;
use std::vec::Vec;

use cuda_std::Kernel;
use half::bf16;
use proptest::prelude::*;

use super::contract::{ALONE_SENDERS, ExchangeLaunch, ExchangeShape, OVERLAP_SENDERS};
use super::device::{dispatch_pack_baseline, dispatch_push_bulk, dispatch_push_packets};
use super::reference::{Case, RankTokens, Received, Routing, cases, dispatch, many_tokens};
use super::{BULK_HELPERS, MAX_LANES, PACK_THREADS, PACKETS_THREADS, POISON};
use crate::testing::{DeviceMemory, TestDevice, digest};

/// How long tests wait for a rank that comes.
const TIMEOUT_US: u32 = 20_000_000;

#[derive(Clone, Copy, Debug)]
enum Variant {
    Bulk,
    Packets,
}

const LAUNCH: ExchangeLaunch =
    ExchangeLaunch { num_blocks: 3, num_senders: 2, timeout_us: TIMEOUT_US };

/// Memory of one rank that outlives calls.
struct RankMemory {
    recv_x: DeviceMemory<bf16>,
    recv_topk_ids: DeviceMemory<i32>,
    recv_topk_weights: DeviceMemory<f32>,
    signals: DeviceMemory<u32>,
    staging: DeviceMemory<u32>,
    epochs: DeviceMemory<u32>,
    late: DeviceMemory<u32>,
}

impl RankMemory {
    fn new(shape: &ExchangeShape) -> Self {
        Self {
            recv_x: DeviceMemory::poisoned(shape.slot_elements()),
            recv_topk_ids: DeviceMemory::poisoned(shape.slot_entries()),
            recv_topk_weights: DeviceMemory::poisoned(shape.slot_entries()),
            signals: DeviceMemory::from_slice(&vec![0; shape.num_signals(LAUNCH.num_senders)]),
            staging: DeviceMemory::from_slice(&vec![POISON; shape.packet_words()]),
            epochs: DeviceMemory::from_slice(&vec![0; LAUNCH.num_blocks as usize]),
            late: DeviceMemory::from_slice(&vec![0; shape.late_words()]),
        }
    }

    /// Checks what came, as the next work of the device would read it.
    fn check(&self, device: &TestDevice, shape: &ExchangeShape, expected: &Received) {
        let (x, ids) = (device.read(&self.recv_x), device.read(&self.recv_topk_ids));
        expected.check(shape, &x, &ids, &device.read(&self.recv_topk_weights)).unwrap();
    }
}

/// The addresses of a part of each rank's memory.
fn table<T: bytemuck::Pod>(
    ranks: &[RankMemory],
    part: impl Fn(&RankMemory) -> &DeviceMemory<T>,
) -> DeviceMemory<u64> {
    DeviceMemory::from_slice(&ranks.iter().map(|rank| part(rank).address()).collect::<Vec<_>>())
}

/// One rank's call; the executor's report if it ends in a fault.
fn run_rank(
    device: &TestDevice,
    shape: &ExchangeShape,
    variant: Variant,
    memory: &[RankMemory],
    rank: usize,
    tokens: &RankTokens,
    launch: ExchangeLaunch,
) -> Result<(), String> {
    let x = DeviceMemory::from_slice(&tokens.x);
    let topk_ids = DeviceMemory::from_slice(&tokens.topk_ids);
    let topk_weights = DeviceMemory::from_slice(&tokens.topk_weights);
    let params = shape.params(rank as u32, tokens.num_tokens(shape) as u32, launch);
    let own = &memory[rank];
    let recv_x_ptrs = table(memory, |rank| &rank.recv_x);
    let recv_topk_ids_ptrs = table(memory, |rank| &rank.recv_topk_ids);
    let recv_topk_weights_ptrs = table(memory, |rank| &rank.recv_topk_weights);
    let signal_ptrs = table(memory, |rank| &rank.signals);
    let staging_ptrs = table(memory, |rank| &rank.staging);
    match variant {
        Variant::Bulk => {
            launch.check_bulk().unwrap();
            let kernel = dispatch_push_bulk {
                x: x.view().cast(),
                topk_ids: topk_ids.view(),
                topk_weights: topk_weights.view(),
                recv_x_ptrs: recv_x_ptrs.view(),
                recv_topk_ids_ptrs: recv_topk_ids_ptrs.view(),
                recv_topk_weights_ptrs: recv_topk_weights_ptrs.view(),
                signal_ptrs: signal_ptrs.view(),
                epochs: own.epochs.view_mut(),
                late: own.late.view_mut(),
                params,
            };
            device.try_launch(shape.bulk_dims(launch), kernel)
        }
        Variant::Packets => {
            launch.check_packets().unwrap();
            let kernel = dispatch_push_packets {
                x: x.view().cast(),
                topk_ids: topk_ids.view(),
                topk_weights: topk_weights.view(),
                peer_ptrs: staging_ptrs.view(),
                recv_x: own.recv_x.view_mut().cast(),
                recv_topk_ids: own.recv_topk_ids.view_mut(),
                recv_topk_weights: own.recv_topk_weights.view_mut(),
                epochs: own.epochs.view_mut(),
                late: own.late.view_mut(),
                params,
            };
            device.try_launch(shape.packets_dims(launch), kernel)
        }
    }
}

/// Calls in a row, each with other tokens, all ranks at once; every result is checked.
fn check(device: &(impl Fn() -> TestDevice + Sync), case: &Case, variant: Variant, num_calls: u64) {
    let shape = case.shape;
    shape.check().unwrap();
    let memory: Vec<_> = (0..shape.ep_size).map(|_| RankMemory::new(&shape)).collect();
    let calls: Vec<_> = (0..num_calls).map(|call| case.tokens(call)).collect();
    thread::scope(|scope| {
        for rank in 0..shape.ep_size as usize {
            let (memory, calls) = (&memory, &calls);
            scope.spawn(move || {
                let device = device();
                for (call, tokens) in calls.iter().enumerate() {
                    run_rank(&device, &shape, variant, memory, rank, &tokens[rank], LAUNCH)
                        .unwrap_or_else(|fault| panic!("{}, call {call}: {fault}", case.name));
                    memory[rank].check(&device, &shape, &dispatch(&shape, tokens, rank as u32));
                    assert!(memory[rank].late.to_vec().iter().all(|&late| late == 0));
                }
            });
        }
    });
}

#[test]
fn both_variants_equal_the_reference_for_one_to_four_ranks() {
    for ep_size in 1..=4 {
        for case in cases(ep_size).iter().chain(&[many_tokens(ep_size)]) {
            check(&TestDevice::ascending, case, Variant::Bulk, 2);
            check(&TestDevice::ascending, case, Variant::Packets, 2);
        }
    }
}

#[test]
fn blocks_go_through_many_tokens_in_batches() {
    let mut case = many_tokens(2);
    let num_tokens = 2 * (2 * BULK_HELPERS + 50);
    case.shape.num_max_tokens_per_rank = num_tokens;
    case.num_tokens = vec![num_tokens, num_tokens - 120];
    check(&TestDevice::ascending, &case, Variant::Bulk, 2);
}

#[test]
fn the_order_of_lanes_does_not_matter() {
    for seed in 0..2 {
        for case in cases(2 + seed as u32).iter().skip(5) {
            check(&|| TestDevice::seeded(seed), case, Variant::Bulk, 2);
            check(&|| TestDevice::seeded(seed), case, Variant::Packets, 2);
        }
    }
}

/// Packs rank by rank; a copy stands in for the library.
fn pack_and_copy(device: &TestDevice, case: &Case) {
    let (shape, tokens) = (case.shape, case.tokens(7));
    let ep_size = shape.ep_size as usize;
    let part = |width: u32| (shape.num_max_tokens_per_rank * width) as usize;
    let zeroed = || {
        let x = DeviceMemory::from_slice(&vec![bf16::ZERO; shape.slot_elements()]);
        let ids = DeviceMemory::from_slice(&vec![0i32; shape.slot_entries()]);
        (x, ids, DeviceMemory::from_slice(&vec![0f32; shape.slot_entries()]))
    };
    let memory: Vec<_> = (0..ep_size).map(|_| [zeroed(), zeroed()]).collect();
    for (rank, (tokens, [sent, received])) in tokens.iter().zip(&memory).enumerate() {
        let x = DeviceMemory::from_slice(&tokens.x);
        let topk_ids = DeviceMemory::from_slice(&tokens.topk_ids);
        let topk_weights = DeviceMemory::from_slice(&tokens.topk_weights);
        let kernel = dispatch_pack_baseline {
            x: x.view().cast(),
            topk_ids: topk_ids.view(),
            topk_weights: topk_weights.view(),
            send_x: sent.0.view_mut().cast(),
            send_topk_ids: sent.1.view_mut(),
            send_topk_weights: sent.2.view_mut(),
            recv_x: received.0.view_mut().cast(),
            recv_topk_ids: received.1.view_mut(),
            recv_topk_weights: received.2.view_mut(),
            params: shape.params(rank as u32, tokens.num_tokens(&shape) as u32, LAUNCH),
        };
        device.launch(shape.pack_dims(), kernel);
    }
    for to in 0..ep_size {
        let [_, (own_x, own_ids, own_weights)] = &memory[to];
        let (mut x, mut ids) = (own_x.to_vec(), own_ids.to_vec());
        let mut weights = own_weights.to_vec();
        for from in (0..ep_size).filter(|&from| from != to) {
            let [(sent_x, sent_ids, sent_weights), _] = &memory[from];
            let moved = |width: u32, slot: usize| slot * part(width)..(slot + 1) * part(width);
            let (hidden, topk) = (shape.hidden, shape.topk);
            x[moved(hidden, from)].copy_from_slice(&sent_x.to_vec()[moved(hidden, to)]);
            ids[moved(topk, from)].copy_from_slice(&sent_ids.to_vec()[moved(topk, to)]);
            weights[moved(topk, from)].copy_from_slice(&sent_weights.to_vec()[moved(topk, to)]);
        }
        dispatch(&shape, &tokens, to as u32).check(&shape, &x, &ids, &weights).unwrap();
    }
}

#[test]
fn the_baseline_packs_what_the_others_receive() {
    for ep_size in 1..=4 {
        for case in cases(ep_size) {
            pack_and_copy(&TestDevice::seeded(u64::from(ep_size)), &case);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn any_shape_and_any_ids_equal_the_reference(
        seed: u64,
        ep_size in 1u32..=4,
        experts_per_rank in 1u32..6,
        topk in 1u32..=MAX_LANES,
        row_units in 1u32..200,
        num_max_tokens_per_rank in 1u32..12,
        is_bulk: bool,
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let shape = ExchangeShape {
            ep_size,
            num_experts: experts_per_rank * ep_size,
            topk,
            hidden: 8 * row_units,
            num_max_tokens_per_rank,
        };
        let num_tokens = (0..ep_size).map(|_| rng.u32(0..=num_max_tokens_per_rank)).collect();
        let case = Case { name: "random", shape, num_tokens, routing: Routing::Ragged };
        let variant = if is_bulk { Variant::Bulk } else { Variant::Packets };
        check(&|| TestDevice::seeded(seed), &case, variant, 2);
    }
}

/// NaN of all bit patterns arrives as a NaN, and stops nobody.
#[test]
fn rows_of_poison_arrive_as_nan() {
    let case = cases(2).into_iter().find(|case| case.name == "distinct experts").unwrap();
    let shape = case.shape;
    let memory: Vec<_> = (0..2).map(|_| RankMemory::new(&shape)).collect();
    let mut tokens = case.tokens(1);
    tokens.iter_mut().for_each(|tokens| tokens.x.fill(bf16::from_bits(u16::MAX)));
    thread::scope(|scope| {
        for rank in 0..2 {
            let (memory, tokens) = (&memory, &tokens);
            scope.spawn(move || {
                let device = TestDevice::ascending();
                run_rank(&device, &shape, Variant::Packets, memory, rank, &tokens[rank], LAUNCH)
                    .unwrap();
                let received = memory[rank].recv_x.to_vec();
                let expected = dispatch(&shape, tokens, rank as u32).x;
                let hidden = shape.hidden as usize;
                for (row, _) in received.chunks(hidden).zip(expected).filter(|(_, x)| x.is_some()) {
                    assert!(row.iter().all(|value| value.is_nan()));
                }
            });
        }
    });
}

/// Runs rank 0 alone; how many messages it missed from rank 1. A call behind that one does not wait,
/// and counts nothing.
fn missed_alone(variant: Variant, launch: ExchangeLaunch) -> u32 {
    let case = cases(2).into_iter().find(|case| case.name == "distinct experts").unwrap();
    let memory: Vec<_> = (0..2).map(|_| RankMemory::new(&case.shape)).collect();
    let device = TestDevice::ascending();
    run_rank(&device, &case.shape, variant, &memory, 0, &case.tokens(1)[0], launch).unwrap();
    let late = memory[0].late.to_vec();
    let start = Instant::now();
    run_rank(&device, &case.shape, variant, &memory, 0, &case.tokens(1)[0], LAUNCH).unwrap();
    assert!(start.elapsed() < Duration::from_micros(u64::from(TIMEOUT_US) / 2), "{variant:?}");
    assert_eq!(memory[0].late.to_vec(), late, "{variant:?}");
    assert_eq!((late[0], &late[2..4]), (0, &[0; 2][..]), "of this rank, and of combine");
    late[1]
}

#[test]
fn a_rank_that_never_comes_is_counted_and_not_waited_for() {
    let launch = ExchangeLaunch { timeout_us: 20_000, ..LAUNCH };
    assert_eq!(missed_alone(Variant::Bulk, launch), launch.num_senders);
    assert_eq!(missed_alone(Variant::Packets, launch), 12);
}

#[test]
fn an_offset_that_is_off_by_one_slot_does_not_pass() {
    let case = cases(2).into_iter().find(|case| case.name == "distinct experts").unwrap();
    let tokens = case.tokens(1);
    let expected = dispatch(&case.shape, &tokens, 1);
    let mut x: Vec<bf16> = Vec::new();
    for row in &expected.x {
        x.extend(row.clone().unwrap_or_else(|| vec![bf16::ZERO; case.shape.hidden as usize]));
    }
    let weights: Vec<f32> =
        expected.topk_weights.iter().map(|weight| weight.unwrap_or_default()).collect();
    expected.check(&case.shape, &x, &expected.topk_ids, &weights).unwrap();
    x.rotate_left(case.shape.hidden as usize);
    let said = expected.check(&case.shape, &x, &expected.topk_ids, &weights).unwrap_err();
    assert!(said.contains("recv_x, token 0 of rank 0"), "{said}");
}

#[test]
fn results_do_not_change_between_versions() {
    let case = cases(3).into_iter().find(|case| case.name == "popular experts").unwrap();
    let tokens = case.tokens(1);
    let ids: Vec<i32> = tokens.iter().flat_map(|tokens| tokens.topk_ids.clone()).collect();
    let received: Vec<i32> =
        (0..3).flat_map(|rank| dispatch(&case.shape, &tokens, rank).topk_ids).collect();
    let digests = format!("{:016x}\n{:016x}", digest(&ids), digest(&received));
    insta::assert_snapshot!(digests);
}

#[test]
fn refusals_name_argument_need_and_finding() {
    let fine = ExchangeShape {
        ep_size: 2,
        num_experts: 256,
        topk: 8,
        hidden: 7168,
        num_max_tokens_per_rank: 4096,
    };
    fine.check().unwrap();
    let launch = |num_blocks, num_senders| ExchangeLaunch { num_blocks, num_senders, ..LAUNCH };
    launch(2 * ALONE_SENDERS, ALONE_SENDERS).check_bulk().unwrap();
    launch(2 * OVERLAP_SENDERS, OVERLAP_SENDERS).check_bulk().unwrap();
    let errors = [
        ExchangeShape { ep_size: 0, ..fine }.check().unwrap_err(),
        ExchangeShape { ep_size: 33, ..fine }.check().unwrap_err(),
        ExchangeShape { ep_size: 3, ..fine }.check().unwrap_err(),
        ExchangeShape { num_experts: 0, ..fine }.check().unwrap_err(),
        ExchangeShape { topk: 33, ..fine }.check().unwrap_err(),
        ExchangeShape { hidden: 7164, ..fine }.check().unwrap_err(),
        ExchangeShape { num_max_tokens_per_rank: 0, ..fine }.check().unwrap_err(),
        ExchangeShape { num_max_tokens_per_rank: u32::MAX, ..fine }.check().unwrap_err(),
        fine.check_tokens(4097).unwrap_err(),
        launch(24, 12).check_bulk().unwrap_err(),
        launch(8, 8).check_bulk().unwrap_err(),
        launch(8, 9).check_packets().unwrap_err(),
        launch(0, 0).check_packets().unwrap_err(),
        launch(1 << 16, 20).check_bulk().unwrap_err(),
    ];
    let texts: Vec<String> = errors.iter().map(|error| format!("{error}")).collect();
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn launches_and_sizes_follow_from_the_shape() {
    let shape = ExchangeShape {
        ep_size: 4,
        num_experts: 256,
        topk: 8,
        hidden: 8192,
        num_max_tokens_per_rank: 100,
    };
    let params = shape.params(2, 50, LAUNCH);
    assert_eq!((params.experts_per_rank, params.row_units), (64, 1024));
    assert_eq!((params.piece_bytes, params.pieces_per_row), (8192, 2));
    assert_eq!(shape.packet_words() * 4, 2 * 3 * 100 * (16384 + 64));
    assert_eq!(shape.pack_dims().grid, [100, 4, 1]);
    assert_eq!(dispatch_pack_baseline::THREADS, Some(PACK_THREADS));
    assert_eq!(dispatch_push_packets::THREADS, Some(PACKETS_THREADS));
    assert_eq!(dispatch_push_bulk::THREADS, Some(shape.bulk_dims(LAUNCH).block[0]));
    let work = shape.dispatch_work(50, 120);
    assert_eq!(work.read_bytes, 50 * (16384 + 64));
    assert_eq!(work.written_bytes, 120 * 16384 + 400 * 64);
}
