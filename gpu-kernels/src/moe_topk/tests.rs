use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use cuda_std::prelude::*;
use half::bf16;
use proptest::prelude::*;

use super::Scoring;
use super::contract::{GroupLimit, StackedTopk, TopkShape};
use super::device::*;
use super::reference::{Case, Logits, cases, check};
use crate::testing::{DeviceMemory, TestDevice, digest};

/// Launches the kernel for a size of the warp variant, or the baseline.
macro_rules! launch {
    ($device:expr, $shape:expr, $baseline:expr, $arguments:expr, $baseline_entry:ident,
     $deepseek_entry:ident, [$($experts:literal: $entry:ident),*]) => {{
        let (gating_output, bias, topk_ids, topk_weights) = $arguments;
        let params = $shape.params();
        if $baseline {
            let kernel = $baseline_entry { gating_output, bias, params, topk_ids, topk_weights };
            $device.launch($shape.baseline_dims(), kernel);
        } else if StackedTopk::plain(*$shape).is_deepseek_v3() {
            let kernel = $deepseek_entry { gating_output, bias, params, topk_ids, topk_weights };
            $device.launch($shape.warp_dims(), kernel);
        } else {
            match $shape.lane_experts() {
                $($experts => $device.launch(
                    $shape.warp_dims(),
                    $entry { gating_output, bias, params, topk_ids, topk_weights },
                ),)*
                other => panic!("no kernel for {other} experts a lane"),
            }
        }
    }};
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Variant {
    Baseline,
    Warp,
}

const VARIANTS: [Variant; 2] = [Variant::Baseline, Variant::Warp];

struct Inputs {
    gating: Vec<f32>,
    bias: Vec<f32>,
    is_bf16: bool,
}

impl Inputs {
    fn new(case: &Case, logits: Logits, seed: u64, is_bf16: bool) -> Self {
        let (mut gating, bias) = case.inputs(logits, seed);
        if is_bf16 {
            gating.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
        }
        Self { gating, bias, is_bf16 }
    }
}

fn run(
    device: &TestDevice,
    shape: &TopkShape,
    inputs: &Inputs,
    variant: Variant,
) -> (Vec<i32>, Vec<f32>) {
    shape.check().unwrap();
    let bias = DeviceMemory::from_slice(&inputs.bias);
    let bias_view = if shape.has_bias { bias.view() } else { Global::null() };
    let ids = DeviceMemory::poisoned(shape.topk_elements());
    let weights = DeviceMemory::poisoned(shape.topk_elements());
    let (ids_view, weights_view) = (ids.view_mut(), weights.view_mut());
    let is_baseline = variant == Variant::Baseline;
    if inputs.is_bf16 {
        let gating: Vec<bf16> = inputs.gating.iter().map(|&x| bf16::from_f32(x)).collect();
        let gating = DeviceMemory::from_slice(&gating);
        launch!(
            device, shape, is_baseline, (gating.view(), bias_view, ids_view, weights_view),
            moe_topk_select_baseline_bf16, moe_topk_select_warp_bf16_deepseek_v3,
            [2: moe_topk_select_warp_bf16_e64, 4: moe_topk_select_warp_bf16_e128,
             8: moe_topk_select_warp_bf16_e256, 16: moe_topk_select_warp_bf16_e512]
        );
    } else {
        let gating = DeviceMemory::from_slice(&inputs.gating);
        launch!(
            device, shape, is_baseline, (gating.view(), bias_view, ids_view, weights_view),
            moe_topk_select_baseline_f32, moe_topk_select_warp_f32_deepseek_v3,
            [2: moe_topk_select_warp_f32_e64, 4: moe_topk_select_warp_f32_e128,
             8: moe_topk_select_warp_f32_e256, 16: moe_topk_select_warp_f32_e512]
        );
    }
    (ids.to_vec(), weights.to_vec())
}

fn check_case(device: &TestDevice, case: &Case, logits: Logits, seed: u64) {
    for is_bf16 in [true, false] {
        let inputs = Inputs::new(case, logits, seed, is_bf16);
        for variant in VARIANTS {
            let (ids, weights) = run(device, &case.shape, &inputs, variant);
            if let Err(off) = check(&case.shape, &inputs.gating, &inputs.bias, &ids, &weights) {
                panic!("{}, {logits:?}, {variant:?}, bf16 {is_bf16}: {off}", case.name);
            }
        }
    }
}

#[test]
fn both_variants_are_the_oracle() {
    for case in cases() {
        for logits in Logits::ALL {
            check_case(&TestDevice::ascending(), &case, logits, 1);
        }
    }
}

#[test]
fn lane_order_changes_nothing() {
    for case in cases() {
        let inputs = Inputs::new(&case, Logits::Tied, 2, true);
        for variant in VARIANTS {
            let expected = run(&TestDevice::ascending(), &case.shape, &inputs, variant);
            for seed in 1..3 {
                let got = run(&TestDevice::seeded(seed), &case.shape, &inputs, variant);
                assert_eq!(got, expected, "{}, {variant:?}, order {seed}", case.name);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_shape_is_the_oracle(
        seed: u64,
        num_groups in 1u32..9,
        group_size in 1u32..40,
        kept in 1u32..9,
        top_k in 1u32..17,
        flags in 0u32..8,
        kind in 0usize..3,
    ) {
        let num_topk_groups = kept.min(num_groups);
        let case = Case {
            name: "random",
            shape: TopkShape {
                num_tokens: 5,
                num_experts: num_groups * group_size,
                top_k: top_k.min(num_topk_groups * group_size),
                scoring: if flags & 1 == 0 { Scoring::SOFTMAX } else { Scoring::SIGMOID },
                has_bias: flags & 2 == 0,
                group_limit: Some(GroupLimit { num_groups, num_topk_groups }),
                renormalize: flags & 4 == 0,
                routed_scaling_factor: 1.5,
            },
        };
        check_case(&TestDevice::seeded(seed), &case, Logits::ALL[kind], seed);
    }
}

#[test]
fn equal_logits_choose_the_lowest_ids() {
    let grouped =
        TopkShape { has_bias: false, routed_scaling_factor: 1.0, ..TopkShape::deepseek_v3(2) };
    let plain = [8, 60, 256, 512].map(|num_experts| TopkShape::softmax(2, num_experts, 8));
    for shape in plain.into_iter().chain([grouped]) {
        let gating = vec![0.25; shape.gating_elements()];
        let inputs = Inputs { gating, bias: Vec::new(), is_bf16: false };
        for variant in VARIANTS {
            let (ids, weights) = run(&TestDevice::seeded(3), &shape, &inputs, variant);
            assert_eq!(ids, (0..8).chain(0..8).collect::<Vec<i32>>(), "{variant:?}");
            assert_eq!(weights, [0.125; 16], "{variant:?}");
        }
    }
}

#[test]
fn rows_of_nan_weigh_nothing() {
    for scoring in [Scoring::SOFTMAX, Scoring::SIGMOID] {
        let shape = TopkShape { scoring, ..TopkShape::softmax(1, 60, 4) };
        let inputs = Inputs { gating: vec![f32::NAN; 60], bias: Vec::new(), is_bf16: true };
        for variant in VARIANTS {
            let (ids, weights) = run(&TestDevice::ascending(), &shape, &inputs, variant);
            assert_eq!((ids, weights), (vec![0, 1, 2, 3], vec![0.0; 4]), "{variant:?}");
        }
    }
}

#[test]
fn the_check_notices_what_is_wrong() {
    let case = Case { name: "v3", shape: TopkShape::deepseek_v3(4) };
    let (gating, bias) = case.inputs(Logits::Spread, 5);
    let inputs = Inputs { gating, bias, is_bf16: false };
    let (ids, weights) = run(&TestDevice::ascending(), &case.shape, &inputs, Variant::Warp);
    let verdict = |ids: &[i32], weights: &[f32]| {
        check(&case.shape, &inputs.gating, &inputs.bias, ids, weights)
    };
    assert_eq!(verdict(&ids, &weights), Ok(()));
    let changed = |slot: usize, id: i32| {
        let mut ids = ids.clone();
        ids[slot] = id;
        ids
    };
    let unused = (0..256).find(|id| !ids[..8].contains(id)).unwrap();
    let mut swapped = ids.clone();
    swapped.swap(9, 10);
    let mut heavier = weights.clone();
    heavier[31] *= 1.0001;
    assert!(verdict(&changed(3, unused), &weights).unwrap_err().starts_with("token 0: slot 3"));
    assert!(verdict(&changed(1, ids[0]), &weights).unwrap_err().contains("repeats"));
    assert!(verdict(&changed(1, -1), &weights).unwrap_err().contains("none such"));
    assert!(verdict(&swapped, &weights).unwrap_err().contains("token 1: slot 1"));
    assert!(verdict(&ids, &heavier).unwrap_err().contains("weighs"));
    assert!(verdict(&ids, &vec![0.0; ids.len()]).is_err());
    assert!(verdict(&ids, &vec![f32::NAN; ids.len()]).is_err());
}

#[test]
fn results_repeat_bit_by_bit() {
    let case = Case { name: "v3", shape: TopkShape::deepseek_v3(16) };
    let inputs = Inputs::new(&case, Logits::Spread, 7, true);
    let (ids, weights) = run(&TestDevice::ascending(), &case.shape, &inputs, Variant::Warp);
    let first: Vec<i32> = ids[..8].to_vec();
    insta::assert_debug_snapshot!((first, format!("{:016x}", digest(&ids))));
    assert_eq!(weights.len(), ids.len());
}

#[test]
fn refusals_name_argument_need_and_finding() {
    let shape = TopkShape::deepseek_v3(1);
    let groups = |num_groups, num_topk_groups| {
        let group_limit = Some(GroupLimit { num_groups, num_topk_groups });
        TopkShape { group_limit, ..shape }
    };
    let wrong = [
        TopkShape { num_experts: 0, ..shape },
        TopkShape { num_experts: 513, ..shape },
        TopkShape { top_k: 0, ..shape },
        TopkShape { top_k: 17, ..shape },
        TopkShape { num_tokens: 1 << 23, ..shape },
        TopkShape { routed_scaling_factor: f32::NAN, ..shape },
        groups(7, 4),
        groups(0, 0),
        groups(8, 9),
        groups(8, 0),
        groups(64, 1),
    ];
    let texts: Vec<String> =
        wrong.iter().map(|shape| format!("{}", shape.check().unwrap_err())).collect();
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn launches_and_work_follow_from_the_sizes() {
    let shape = TopkShape::deepseek_v3(4097);
    assert_eq!(shape.warp_dims().grid, [1025, 1, 1]);
    assert_eq!(shape.warp_dims().shared_bytes, 4 * 4 * (32 + 32 + 16));
    assert_eq!(shape.work(2).read_bytes, 4097 * 512 + 1024);
    assert_eq!(shape.work(2).written_bytes, 4097 * 64);
    let lane_experts = |num_experts| TopkShape::softmax(1, num_experts, 1).lane_experts();
    assert_eq!([1, 60, 64, 65, 256, 257, 512].map(lane_experts), [2, 2, 2, 4, 8, 16, 16]);
}

#[test]
fn further_columns_and_shared_slots_change_no_choice() {
    for choice in [
        TopkShape::softmax(5, 60, 4),
        TopkShape { renormalize: false, ..TopkShape::softmax(5, 6, 2) },
    ] {
        let stacked = StackedTopk {
            choice,
            num_columns: choice.num_experts.next_multiple_of(8),
            num_shared: 3,
        };
        stacked.check().unwrap();
        let (experts, columns) = (choice.num_experts as usize, stacked.num_columns as usize);
        let mut rng = fastrand::Rng::with_seed(9);
        let gating: Vec<f32> = (0..stacked.gating_elements())
            .map(|_| bf16::from_f32(4.0 * rng.f32() - 2.0).to_f32())
            .collect();
        let plain = gating.chunks(columns).flat_map(|row| row[..experts].to_vec()).collect();
        let inputs = Inputs { gating: plain, bias: Vec::new(), is_bf16: true };
        let gating: Vec<bf16> = gating.into_iter().map(bf16::from_f32).collect();
        let memory = DeviceMemory::from_slice(&gating);
        for variant in VARIANTS {
            let device = TestDevice::seeded(4);
            let chosen = run(&device, &choice, &inputs, variant);
            let ids = DeviceMemory::<i32>::poisoned(stacked.topk_elements());
            let weights = DeviceMemory::<f32>::poisoned(stacked.topk_elements());
            let (gating_output, bias, params) = (memory.view(), Global::null(), stacked.params());
            let (topk_ids, topk_weights) = (ids.view_mut(), weights.view_mut());
            match variant {
                Variant::Baseline => device.launch(
                    choice.baseline_dims(),
                    moe_topk_select_baseline_bf16 {
                        gating_output,
                        bias,
                        params,
                        topk_ids,
                        topk_weights,
                    },
                ),
                Variant::Warp => device.launch(
                    choice.warp_dims(),
                    moe_topk_select_warp_bf16_e64 {
                        gating_output,
                        bias,
                        params,
                        topk_ids,
                        topk_weights,
                    },
                ),
            }
            let (top_k, slots) = (choice.top_k as usize, choice.top_k as usize + 3);
            for (token, (ids, weights)) in
                ids.to_vec().chunks(slots).zip(weights.to_vec().chunks(slots)).enumerate()
            {
                assert_eq!(ids[..top_k], chosen.0[token * top_k..][..top_k], "{variant:?}");
                assert_eq!(weights[..top_k], chosen.1[token * top_k..][..top_k], "{variant:?}");
                assert_eq!(ids[top_k..], [0, 1, 2].map(|i| (experts + i) as i32));
                let gate = f64::from(gating[token * columns + experts]);
                let sigmoid = 1.0 / (1.0 + (-gate).exp());
                assert!(weights[top_k..].iter().all(|&w| (f64::from(w) - sigmoid).abs() < 1e-6));
            }
        }
    }
}

#[test]
fn columns_and_slots_that_do_not_fit_are_refused() {
    let choice = TopkShape::softmax(1, 60, 4);
    let wrong = [(61, 0), (60, 1), (56, 0), (64, 13), (64, u32::MAX)];
    let errors = wrong.map(|(num_columns, num_shared)| {
        StackedTopk { choice, num_columns, num_shared }.check().unwrap_err()
    });
    insta::assert_snapshot!(errors.map(|error| format!("{error}")).join("\n"));
}
