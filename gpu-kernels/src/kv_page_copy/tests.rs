use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use cuda_std::Kernel;
use cuda_std::cpu::LaunchDims;
use proptest::prelude::*;

use super::contract::{ALONE_BLOCKS, CopyShape, OVERLAP_BLOCKS, gather, scatter};
use super::device::{kv_page_copy_baseline, kv_page_copy_bulk};
use super::reference::{Case, cases, copy_pages};
use super::{CopyParams, KvPageMove, MAX_PIECE_BYTES};
use crate::kv_layout::KvPagePlace;
use crate::testing::{DeviceMemory, TestDevice};

#[derive(Clone, Copy, Debug)]
enum Variant {
    Baseline,
    Bulk(u32),
}

/// Runs `moves` over random pools; returns what the pools held before, and what they hold now.
fn run(
    device: &TestDevice,
    case: &Case,
    variant: Variant,
    params: CopyParams,
) -> [Vec<Vec<u8>>; 2] {
    let shape = CopyShape { num_moves: case.moves.len() as u32, page_bytes: case.page_bytes };
    let mut rng = fastrand::Rng::with_seed(case.moves.len() as u64);
    let mut before: Vec<Vec<u8>> =
        case.pool_pages.iter().map(|pages| vec![0; pages * case.page_bytes as usize]).collect();
    before.iter_mut().for_each(|pool| rng.fill(pool));
    let pools: Vec<_> = before.iter().map(|pool| DeviceMemory::from_slice(pool)).collect();
    let addresses: Vec<u64> = pools.iter().map(DeviceMemory::address).collect();
    let moves = DeviceMemory::from_slice(&case.moves);
    let peer_kv_ptrs = DeviceMemory::from_slice(&addresses);
    match variant {
        Variant::Baseline => device.launch(
            shape.baseline_dims(),
            kv_page_copy_baseline {
                moves: moves.view(),
                peer_kv_ptrs: peer_kv_ptrs.view(),
                params,
            },
        ),
        Variant::Bulk(num_blocks) => device.launch(
            shape.bulk_dims(num_blocks).unwrap(),
            kv_page_copy_bulk { moves: moves.view(), peer_kv_ptrs: peer_kv_ptrs.view(), params },
        ),
    }
    [before, pools.iter().map(DeviceMemory::to_vec).collect()]
}

fn check(device: &TestDevice, case: &Case, variant: Variant) {
    let shape = CopyShape { num_moves: case.moves.len() as u32, page_bytes: case.page_bytes };
    shape.check().unwrap();
    shape.check_moves(&case.moves, &case.pool_pages).unwrap();
    let [mut expected, pools] = run(device, case, variant, shape.params());
    copy_pages(&mut expected, case.page_bytes as usize, &case.moves);
    assert!(pools == expected, "{variant:?}, {}: pools differ from the reference", case.name);
}

#[test]
fn baseline_equals_the_reference_in_any_lane_order() {
    for device in TestDevice::lane_orders() {
        for case in cases() {
            check(&device, &case, Variant::Baseline);
        }
    }
}

#[test]
fn bulk_equals_the_reference_with_any_number_of_blocks() {
    for device in TestDevice::lane_orders() {
        for case in cases() {
            for num_blocks in [1, 3, OVERLAP_BLOCKS, ALONE_BLOCKS] {
                check(&device, &case, Variant::Bulk(num_blocks));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn random_moves_equal_the_reference(
        seed: u64,
        page_units in 1u32..3000,
        num_moves in 1u32..12,
        num_blocks in 1u32..=OVERLAP_BLOCKS,
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut places: Vec<_> = (0..3)
            .flat_map(|rank| (0..num_moves).map(move |index| KvPagePlace { rank, index }))
            .collect();
        rng.shuffle(&mut places);
        let (destinations, sources) = places.split_at(num_moves as usize);
        let case = Case {
            name: "random",
            page_bytes: 16 * page_units,
            pool_pages: [num_moves as usize; 3].to_vec(),
            moves: destinations
                .iter()
                .map(|&dst| KvPageMove { src: sources[rng.usize(..sources.len())], dst })
                .collect(),
        };
        check(&TestDevice::seeded(seed), &case, Variant::Baseline);
        check(&TestDevice::seeded(seed), &case, Variant::Bulk(num_blocks));
    }

    #[test]
    fn pieces_cover_a_page_once(page_units in 1u32..2_000_000) {
        let page_bytes = 16 * page_units;
        let params = CopyShape { num_moves: 1, page_bytes }.params();
        prop_assert!(params.piece_bytes <= MAX_PIECE_BYTES && params.piece_bytes.is_multiple_of(16));
        prop_assert!((params.pieces_per_page - 1) * params.piece_bytes < page_bytes);
        prop_assert!(page_bytes <= params.pieces_per_page * params.piece_bytes);
    }
}

#[test]
fn gather_and_scatter_are_inverse() {
    let pages = [KvPagePlace { rank: 1, index: 4 }, KvPagePlace { rank: 0, index: 2 }];
    let there = gather(&pages, 7);
    let back: Vec<_> = scatter(7, &pages);
    let turned = there.iter().map(|&KvPageMove { src, dst }| KvPageMove { src: dst, dst: src });
    assert_eq!(turned.collect::<Vec<_>>(), back);
    assert_eq!(there[1].dst, KvPagePlace { rank: 7, index: 1 });
}

#[test]
fn a_page_size_that_is_off_by_one_unit_does_not_pass() {
    let case = cases().pop().unwrap();
    let shape = CopyShape { num_moves: case.moves.len() as u32, page_bytes: case.page_bytes };
    let params = CopyParams { page_bytes: case.page_bytes - 16, ..shape.params() };
    for variant in [Variant::Baseline, Variant::Bulk(OVERLAP_BLOCKS)] {
        let [mut expected, pools] = run(&TestDevice::ascending(), &case, variant, params);
        copy_pages(&mut expected, case.page_bytes as usize, &case.moves);
        assert!(pools != expected, "{variant:?}");
    }
}

#[test]
fn a_page_beyond_the_pool_is_reported_not_read() {
    let device = TestDevice::ascending();
    let pool = DeviceMemory::from_slice(&[0u8; 64]);
    let place = |index| KvPagePlace { rank: 0, index };
    let moves = DeviceMemory::from_slice(&[KvPageMove { src: place(4), dst: place(1) }]);
    let peer_kv_ptrs = DeviceMemory::from_slice(&[pool.address()]);
    let shape = CopyShape { num_moves: 1, page_bytes: 16 };
    let kernel = kv_page_copy_baseline {
        moves: moves.view(),
        peer_kv_ptrs: peer_kv_ptrs.view(),
        params: shape.params(),
    };
    let fault = device.try_launch(shape.baseline_dims(), kernel).unwrap_err();
    assert!(fault.contains("out of bounds") && fault.contains("kv_page_copy_baseline"), "{fault}");
}

#[test]
fn refusals_name_argument_need_and_finding() {
    let shape = CopyShape { num_moves: 2, page_bytes: 64 };
    let place = |rank, index| KvPagePlace { rank, index };
    let copy = |src, dst| KvPageMove { src, dst };
    let refused = |moves: &[KvPageMove]| shape.check_moves(moves, &[4, 2]).unwrap_err();
    let fine = copy(place(0, 0), place(0, 1));
    let errors = [
        CopyShape { page_bytes: 24, ..shape }.check().unwrap_err(),
        CopyShape { page_bytes: 0, ..shape }.check().unwrap_err(),
        CopyShape { page_bytes: 1 << 31, ..shape }.check().unwrap_err(),
        CopyShape { num_moves: 0, ..shape }.check().unwrap_err(),
        CopyShape { num_moves: u32::MAX, page_bytes: 1 << 20 }.check().unwrap_err(),
        shape.bulk_dims(0).unwrap_err(),
        shape.bulk_dims(9).unwrap_err(),
        shape.bulk_dims(16).unwrap_err(),
        refused(&[fine]),
        refused(&[fine, copy(place(2, 0), place(0, 2))]),
        refused(&[fine, copy(place(0, 0), place(1, 2))]),
        refused(&[fine, copy(place(1, 0), place(0, 1))]),
        refused(&[fine, copy(place(0, 1), place(0, 2))]),
        refused(&[fine, copy(place(1, 1), place(1, 1))]),
    ];
    let texts: Vec<String> = errors.iter().map(|error| format!("{error}")).collect();
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn launches_and_work_follow_from_the_sizes() {
    let shape = CopyShape { num_moves: 5, page_bytes: 40 * 1024 + 16 };
    assert_eq!(shape.params().pieces_per_page, 3);
    assert_eq!(shape.baseline_dims().grid, [15, 1, 1]);
    assert_eq!(shape.bulk_dims(ALONE_BLOCKS).unwrap().grid, [15, 1, 1]);
    assert_eq!(shape.work().written_bytes, 5 * (40 * 1024 + 16));
    assert_eq!(shape.work().read_bytes, shape.work().written_bytes + 5 * 16);
    let LaunchDims { block, .. } = shape.bulk_dims(OVERLAP_BLOCKS).unwrap();
    assert_eq!(kv_page_copy_bulk::THREADS, Some(block[0]));
    assert_eq!(kv_page_copy_baseline::THREADS, Some(shape.baseline_dims().block[0]));
}
