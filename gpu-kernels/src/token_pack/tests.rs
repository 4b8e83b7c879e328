use std::format;
use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use super::contract::PackShape;
use super::device::*;
use super::reference::{Case, cases, pack};
use crate::moe_permute::contract::PermuteShape;
use crate::moe_permute::reference::{Permutation, Routing};
use crate::testing::{DeviceMemory, TestDevice};
use crate::token_rows::{RowFormat, TokenRows};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Variant {
    Baseline,
    Fanout,
}

const VARIANTS: [Variant; 2] = [Variant::Baseline, Variant::Fanout];

/// Bytes and scales that no poison looks like.
fn inputs(shape: &PackShape, seed: u64) -> (Vec<u8>, Vec<f32>) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let num_bytes = shape.rows.num_tokens as usize * shape.rows.row_bytes() as usize;
    let x = (0..num_bytes).map(|_| rng.u8(..0xff)).collect();
    (x, (0..shape.rows.x_scales()).map(|_| rng.f32()).collect())
}

fn run(
    device: &TestDevice,
    shape: &PackShape,
    permutation: &Permutation,
    (x, x_scales): &(Vec<u8>, Vec<f32>),
    variant: Variant,
) -> (Vec<Option<u8>>, Vec<Option<f32>>) {
    shape.check().unwrap();
    let rows = DeviceMemory::<u8>::poisoned(
        shape.rows.num_max_rows as usize * shape.rows.row_bytes() as usize,
    );
    let row_scales = DeviceMemory::<f32>::poisoned(shape.rows.rows_scales());
    let (x, x_scales) = (DeviceMemory::from_slice(x), DeviceMemory::from_slice(x_scales));
    let expert_counts = DeviceMemory::from_slice(&permutation.expert_counts);
    let expert_offsets = DeviceMemory::from_slice(&permutation.expert_offsets);
    let pair_rows = DeviceMemory::from_slice(&permutation.pair_rows);
    let row_pairs = DeviceMemory::from_slice(&permutation.row_pairs);
    let (x, x_scales, params) = (x.view(), x_scales.view(), shape.params());
    let (rows_view, scales_view) = (rows.view_mut(), row_scales.view_mut());
    let (dims, num_blocks) = match variant {
        Variant::Baseline => (shape.baseline_dims(), shape.baseline_dims().grid[0]),
        Variant::Fanout => (shape.fanout_dims(), shape.fanout_dims().grid[0]),
    };
    if num_blocks > 0 {
        match variant {
            Variant::Baseline => device.launch(
                dims,
                token_pack_rows_baseline {
                    x,
                    x_scales,
                    params,
                    row_pairs: row_pairs.view(),
                    expert_offsets: expert_offsets.view(),
                    rows: rows_view,
                    row_scales: scales_view,
                },
            ),
            Variant::Fanout => device.launch(
                dims,
                token_pack_rows_fanout {
                    x,
                    x_scales,
                    params,
                    pair_rows: pair_rows.view(),
                    expert_counts: expert_counts.view(),
                    expert_offsets: expert_offsets.view(),
                    rows: rows_view,
                    row_scales: scales_view,
                },
            ),
        }
    }
    (rows.written(), row_scales.written())
}

fn check_case(device: &TestDevice, case: &Case, seed: u64) {
    let (inputs, permutation) = (inputs(&case.shape, seed), case.permutation(seed));
    let rows = &case.shape.rows;
    let expected = pack(&case.shape, &permutation, &inputs.0, rows.row_bytes() as usize);
    let expected_scales = pack(&case.shape, &permutation, &inputs.1, rows.num_scales() as usize);
    for variant in VARIANTS {
        let (got, got_scales) = run(device, &case.shape, &permutation, &inputs, variant);
        assert!(got == expected, "{}, {variant:?}: rows differ from the reference", case.name);
        assert!(got_scales == expected_scales, "{}, {variant:?}: scales differ", case.name);
    }
}

#[test]
fn both_variants_are_the_reference_in_any_lane_order() {
    for device in TestDevice::lane_orders() {
        for case in cases() {
            check_case(&device, &case, 1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn any_shape_is_the_reference(
        seed: u64,
        num_tokens in 0u32..20,
        top_k in 1u32..10,
        num_experts in 1u32..20,
        row_alignment in 1u32..9,
        units in 1u32..20,
        num_dropped in 0u32..9,
        is_fp8: bool,
    ) {
        let permute =
            PermuteShape { row_alignment, ..PermuteShape::new(num_tokens, top_k, num_experts) };
        let format = if is_fp8 { (16 * units, RowFormat::Fp8) } else { (8 * units, RowFormat::Bf16) };
        let case = Case::new("random", permute, Routing::Skewed, format, num_dropped);
        check_case(&TestDevice::seeded(seed), &case, seed);
    }
}

#[test]
fn two_rows_that_are_swapped_are_noticed() {
    let case = &cases()[2];
    let (inputs, permutation) = (inputs(&case.shape, 4), case.permutation(4));
    let width = case.shape.rows.row_bytes() as usize;
    let expected = pack(&case.shape, &permutation, &inputs.0, width);
    let mut wrong = permutation.clone();
    wrong.pair_rows.swap(0, 5);
    wrong.row_pairs.swap(0, 5);
    for variant in VARIANTS {
        let (got, _) = run(&TestDevice::ascending(), &case.shape, &wrong, &inputs, variant);
        assert!(got != expected, "{variant:?}");
    }
}

#[test]
fn refusals_name_argument_need_and_finding() {
    let shape = cases()[3].shape;
    let widest = TokenRows { hidden: 1 << 20, format: RowFormat::Fp8, ..shape.rows };
    let wrong = [
        PackShape { rows: TokenRows { hidden: 12, ..shape.rows }, ..shape },
        PackShape { rows: TokenRows { hidden: 0, ..shape.rows }, ..shape },
        PackShape { rows: TokenRows { hidden: 72, format: RowFormat::Fp8, ..shape.rows }, ..shape },
        PackShape { rows: TokenRows { top_k: 0, ..shape.rows }, ..shape },
        PackShape { rows: TokenRows { num_tokens: 1 << 21, ..shape.rows }, ..shape },
        PackShape { rows: TokenRows { num_max_rows: 1 << 31, ..shape.rows }, ..shape },
        PackShape { rows: TokenRows { num_tokens: 1 << 20, ..widest }, ..shape },
        PackShape { num_local_experts: 0, ..shape },
    ];
    let texts: Vec<String> =
        wrong.iter().map(|shape| format!("{}", shape.check().unwrap_err())).collect();
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn launches_and_work_follow_from_the_sizes() {
    let permute = PermuteShape::new(4096, 8, 256);
    let case = Case::new("v3", permute, Routing::Uniform, (7168, RowFormat::Bf16), 0);
    assert_eq!(case.shape.fanout_dims().grid, [7 * 4096, 1, 1]);
    assert_eq!(case.shape.baseline_dims().grid, [32768, 1, 1]);
    assert_eq!(case.shape.work(32768).written_bytes, 32768 * 14336);
    assert_eq!(case.shape.work(32768).read_bytes, 4096 * 14336 + 4 * 32768);
}
