use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::contract::PermuteShape;
use super::device::*;
use super::reference::{Case, Permutation, Routing, cases, permute};
use super::{MANY_PAIRS, MAX_PAIRS};
use crate::testing::{DeviceMemory, TestDevice};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Variant {
    Baseline,
    /// With this many blocks at once.
    Grid(u32),
}

/// Few resident blocks make threads take four pairs.
const VARIANTS: [Variant; 3] = [Variant::Baseline, Variant::Grid(132), Variant::Grid(3)];

/// Everything after a run; rows beyond the end are left out, after a look that nothing wrote them.
fn run(device: &TestDevice, shape: &PermuteShape, ids: &[i32], variant: Variant) -> Permutation {
    shape.check().unwrap();
    let num_experts = shape.num_local_experts();
    let topk_ids = DeviceMemory::from_slice(ids);
    let expert_offsets = DeviceMemory::<i32>::poisoned(num_experts + 1);
    let row_pairs = DeviceMemory::<i32>::from_slice(&vec![-7; shape.num_max_rows()]);
    let (expert_counts, pair_rows);
    let params = shape.params();
    match variant {
        Variant::Baseline => {
            expert_counts = DeviceMemory::from_slice(&vec![0i32; num_experts]);
            pair_rows = DeviceMemory::from_slice(&vec![-1i32; ids.len()]);
            if !ids.is_empty() {
                let (topk_ids, expert_counts) = (topk_ids.view(), expert_counts.view_mut());
                device.launch(
                    shape.count_dims(),
                    moe_permute_count_baseline { topk_ids, params, expert_counts },
                );
            }
            device.launch(
                shape.scan_dims(),
                moe_permute_scan_baseline {
                    params,
                    expert_counts: expert_counts.view(),
                    expert_offsets: expert_offsets.view_mut(),
                },
            );
            device.launch(
                shape.scatter_dims(),
                moe_permute_scatter_baseline {
                    topk_ids: topk_ids.view(),
                    params,
                    expert_offsets: expert_offsets.view(),
                    pair_rows: pair_rows.view_mut(),
                    row_pairs: row_pairs.view_mut(),
                },
            );
        }
        Variant::Grid(num_resident_blocks) => {
            expert_counts = DeviceMemory::poisoned(num_experts);
            pair_rows = DeviceMemory::poisoned(ids.len());
            let (dims, pairs_of_thread) = shape.grid_dims(num_resident_blocks).unwrap();
            let block_counts = DeviceMemory::<u32>::poisoned(shape.block_counts_elements(&dims));
            let arrived = DeviceMemory::from_slice(&[0u32; 2]);
            macro_rules! launch {
                ($entry:ident) => {
                    device.launch(
                        dims,
                        $entry {
                            topk_ids: topk_ids.view(),
                            params,
                            block_counts: block_counts.view_mut(),
                            arrived: arrived.view_mut(),
                            expert_counts: expert_counts.view_mut(),
                            expert_offsets: expert_offsets.view_mut(),
                            pair_rows: pair_rows.view_mut(),
                            row_pairs: row_pairs.view_mut(),
                        },
                    )
                };
            }
            match pairs_of_thread {
                1 => launch!(moe_permute_sort_grid_x1),
                MANY_PAIRS => launch!(moe_permute_sort_grid_x4),
                other => panic!("no kernel for {other} pairs a thread"),
            }
            assert_eq!(arrived.to_vec(), [0, 0]);
        }
    }
    let mut row_pairs = row_pairs.to_vec();
    let expert_offsets = expert_offsets.to_vec();
    let beyond = row_pairs.split_off(*expert_offsets.last().unwrap() as usize);
    assert!(beyond.iter().all(|&pair| pair == -7), "rows beyond the end were written");
    Permutation {
        expert_counts: expert_counts.to_vec(),
        expert_offsets,
        pair_rows: pair_rows.to_vec(),
        row_pairs,
    }
}

fn check_case(device: &TestDevice, case: &Case, variants: &[Variant], seed: u64) {
    let ids = case.topk_ids(seed);
    let expected = permute(&case.shape, &ids);
    for &variant in variants {
        let got = run(device, &case.shape, &ids, variant);
        assert!(got == expected, "{}, {variant:?}: {got:?}\nexpected {expected:?}", case.name);
    }
}

#[test]
fn every_variant_is_the_reference() {
    for case in cases() {
        check_case(&TestDevice::ascending(), &case, &VARIANTS, 1);
    }
}

#[test]
fn lane_order_changes_nothing() {
    for case in &cases()[2..] {
        check_case(&TestDevice::seeded(1), case, &VARIANTS[..2], 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn any_shape_is_the_reference(
        seed: u64,
        num_tokens in 0u32..400,
        top_k in 1u32..9,
        first_expert in 0u32..20,
        num_local_experts in 1u32..80,
        row_alignment in 1u32..40,
        routing in 0usize..4,
    ) {
        let end_expert = first_expert + num_local_experts;
        let case = Case {
            name: "random",
            shape: PermuteShape { num_tokens, top_k, first_expert, end_expert, row_alignment },
            num_experts: end_expert + 10,
            routing: [Routing::Uniform, Routing::Skewed, Routing::OneExpert, Routing::Elsewhere][routing],
        };
        check_case(&TestDevice::seeded(seed), &case, &VARIANTS, seed);
    }

    #[test]
    fn rows_fit_whatever_the_routing(
        seed: u64,
        num_tokens in 0u32..60,
        num_experts in 1u32..50,
        row_alignment in 1u32..70,
    ) {
        let shape = PermuteShape { row_alignment, ..PermuteShape::new(num_tokens, 2, num_experts) };
        for routing in [Routing::Uniform, Routing::OneExpert] {
            let case = Case { name: "random", shape, num_experts, routing };
            let permutation = permute(&shape, &case.topk_ids(seed));
            prop_assert!(permutation.row_pairs.len() <= shape.num_max_rows());
        }
    }
}

#[test]
fn ids_of_no_expert_are_skipped() {
    let shape = PermuteShape { first_expert: 2, end_expert: 5, ..PermuteShape::new(4, 2, 0) };
    let ids = [i32::MIN, -1, 1, 2, 4, 4, 5, i32::MAX];
    for variant in VARIANTS {
        let got = run(&TestDevice::ascending(), &shape, &ids, variant);
        assert_eq!(got.expert_counts, [1, 0, 2], "{variant:?}");
        assert_eq!(got.expert_offsets, [0, 1, 1, 3], "{variant:?}");
        assert_eq!(got.pair_rows, [-1, -1, -1, 0, 1, 2, -1, -1], "{variant:?}");
        assert_eq!(got.row_pairs, [3, 4, 5], "{variant:?}");
    }
}

#[test]
fn refusals_name_argument_need_and_finding() {
    let shape = PermuteShape::new(4, 2, 8);
    let wrong = [
        PermuteShape { top_k: 0, ..shape },
        PermuteShape { num_tokens: MAX_PAIRS, ..shape },
        PermuteShape { first_expert: 8, ..shape },
        PermuteShape { end_expert: 513, ..shape },
        PermuteShape { row_alignment: 0, ..shape },
        PermuteShape { row_alignment: 2000, ..shape },
    ];
    let mut errors: Vec<_> = wrong.iter().map(|shape| shape.check().unwrap_err()).collect();
    let large = PermuteShape { num_tokens: MAX_PAIRS / 2, ..shape };
    errors.push(large.grid_dims(100).unwrap_err());
    let texts: Vec<String> = errors.iter().map(|error| format!("{error}")).collect();
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn launches_and_work_follow_from_the_sizes() {
    let shape = PermuteShape::new(4096, 8, 256);
    let (dims, pairs_of_thread) = shape.grid_dims(132).unwrap();
    assert_eq!((dims.grid, dims.block, pairs_of_thread), ([32, 1, 1], [1024, 1, 1], 1));
    assert_eq!(dims.shared_bytes, 32 * 256 * 2 + 3 * 256 * 4 + 128);
    assert_eq!(shape.grid_dims(8).unwrap().0.grid, [8, 1, 1]);
    assert_eq!(shape.num_max_rows(), 32768);
    let aligned = PermuteShape { row_alignment: 128, ..shape };
    assert_eq!(aligned.num_max_rows(), 32768 + 127 * 256);
    assert_eq!(shape.work().read_bytes, 131_072);
}
