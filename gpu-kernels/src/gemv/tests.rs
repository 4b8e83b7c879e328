use std::string::String;
use std::vec::Vec;

use cuda_std::global::Global;
use half::bf16;
use proptest::prelude::*;

use super::contract::{GemvExperts, GemvShape};
use super::device::*;
use super::reference::{GemvProblem, cases, check};
use crate::testing::{DeviceMemory, TestDevice, digest};

/// SMs that tests plan for: fewer than there are units.
const NUM_SMS: u32 = 3;

/// What the kernel of a problem wrote; the second run is of results that are added to `x`, where
/// nothing is normalised or gated.
fn run(device: &TestDevice, problem: &GemvProblem, adds: bool) -> Vec<bf16> {
    let shape = problem.shape;
    shape.check().unwrap();
    let (row, b) = (DeviceMemory::from_slice(&problem.row), DeviceMemory::from_slice(&problem.b));
    let norm = DeviceMemory::from_slice(&problem.norm_weight);
    let norm_weight = if shape.norm_eps.is_some() { norm.view() } else { Global::null() };
    let ids = DeviceMemory::from_slice(&problem.topk_ids);
    let weights = DeviceMemory::from_slice(&problem.topk_weights);
    let (topk_ids, topk_weights) = (ids.view(), weights.view());
    let (x, b, params, dims) = (row.view(), b.view(), shape.params(), shape.dims(NUM_SMS));
    let sums = match adds {
        true => DeviceMemory::from_slice(&problem.x),
        false => DeviceMemory::<bf16>::poisoned(shape.out_elements()),
    };
    let out = sums.view_mut();
    match (shape.experts, shape.is_gated, adds) {
        (None, false, false) => {
            device.launch(dims, gemv_rows_bf16 { x, norm_weight, b, params, out });
        }
        (None, false, true) => device.launch(dims, gemv_added_bf16 { h: x, b, params, x: out }),
        (None, true, _) => {
            device.launch(dims, gemv_gated_bf16 { x, norm_weight, b, params, h: out });
        }
        (Some(_), true, _) => {
            let kernel = gemv_experts_gated_bf16 { x, norm_weight, b, topk_ids, params, h: out };
            device.launch(dims, kernel);
        }
        (Some(_), false, _) => {
            let h = x;
            let kernel = gemv_experts_added_bf16 { h, b, topk_ids, topk_weights, params, x: out };
            device.launch(dims, kernel);
        }
    }
    sums.written().into_iter().map(|x| x.unwrap_or(bf16::NAN)).collect()
}

fn check_problem(device: &TestDevice, problem: &GemvProblem) -> Result<(), String> {
    let shape = problem.shape;
    if shape.experts.is_none() || shape.is_gated {
        check(&run(device, problem, false), &problem.results())?;
    }
    if shape.norm_eps.is_none() && !shape.is_gated {
        check(&run(device, problem, true), &problem.added())?;
    }
    Ok(())
}

#[test]
fn every_case_is_right() {
    for (seed, shape) in (1..).zip(cases()) {
        let (device, problem) = (TestDevice::seeded(seed), GemvProblem::new(shape, seed));
        check_problem(&device, &problem).unwrap_or_else(|off| panic!("{shape:?}: {off}"));
    }
}

#[test]
fn lane_order_changes_no_bit() {
    for shape in [cases()[3], cases()[7], cases()[11]] {
        let problem = GemvProblem::new(shape, 7);
        let digest_of = |device| {
            let adds = shape.experts.is_some() && !shape.is_gated;
            digest(&run(&device, &problem, adds))
        };
        let digests: Vec<u64> = TestDevice::lane_orders().map(digest_of).collect();
        assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    }
}

#[test]
fn ids_of_no_expert_reach_no_memory() {
    for shape in [cases()[7], cases()[9]] {
        for id in [-1, i32::MIN, 6, i32::MAX] {
            let mut problem = GemvProblem::new(shape, 3);
            problem.topk_ids[0] = id;
            run(&TestDevice::ascending(), &problem, !shape.is_gated);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn any_shape_is_right(
        n in 1_u32..20,
        k in 1_u32..300,
        is_gated: bool,
        has_norm: bool,
        slots in prop::option::of((1_u32..5, 0_u32..3)),
        seed: u64,
    ) {
        let num_experts = 5;
        let experts =
            slots.map(|(top_k, num_shared)| GemvExperts { num_experts, top_k, num_shared });
        let can_norm = experts.is_none() || is_gated;
        let norm_eps = (has_norm && can_norm).then_some(1e-5);
        let shape = GemvShape { n: 8 * n, k: 8 * k, is_gated, norm_eps, experts };
        let problem = GemvProblem::new(shape, seed);
        check_problem(&TestDevice::seeded(seed), &problem).unwrap();
    }
}

#[test]
fn a_wrong_result_does_not_pass() {
    let problem = GemvProblem::new(cases()[1], 2);
    let mut got = run(&TestDevice::ascending(), &problem, false);
    check(&got, &problem.results()).unwrap();
    got[5] = bf16::from_f32(got[5].to_f32() * 1.02 + 0.01);
    assert!(check(&got, &problem.results()).is_err());
    got[5] = bf16::NAN;
    assert!(check(&got, &problem.results()).is_err());
}

#[test]
fn wrong_shapes_are_refused_in_words() {
    let plain = GemvShape::new(8, 8);
    let experts = GemvExperts { num_experts: 4, top_k: 2, num_shared: 0 };
    let with = |experts| GemvShape { experts: Some(experts), ..plain };
    let wrong = [
        GemvShape { n: 12, ..plain },
        GemvShape { k: 0, ..plain },
        GemvShape { k: 32_776, ..plain },
        GemvShape { k: 16_392, norm_eps: Some(0.0), ..plain },
        GemvShape { norm_eps: Some(-1.0), ..plain },
        with(GemvExperts { num_experts: 0, ..experts }),
        with(GemvExperts { top_k: 5, ..experts }),
        with(GemvExperts { num_shared: 1025, ..experts }),
        GemvShape { norm_eps: Some(1e-6), ..with(experts) },
        GemvShape { k: 16_384, ..with(GemvExperts { num_shared: 1, ..experts }) },
    ];
    let text: String = wrong.map(|shape| std::format!("{}\n", shape.check().unwrap_err())).concat();
    insta::assert_snapshot!(text, @"
    `n` must be a multiple of 8 up to 1048576, got 12
    `k` must be a multiple of 8 up to 1048576, got 0
    `k` must be such that a row of at most 32768 elements is multiplied, got 32776
    `k` must be such that a row of at most 16384 elements is multiplied, got 16392
    `norm_eps` must be 0 or a positive number, got -1
    `num_experts` must be 1 to 1024, got 0
    `top_k` must be 1 to `num_experts`, 4, got 5
    `num_shared` must be at most 1024, got 1025
    `norm_eps` must be none where the results of experts are added up, got one
    `k` must be such that a row of at most 32768 elements is multiplied, got 49152
    ");
}

#[test]
fn launches_and_work_follow_from_the_sizes() {
    let down = GemvShape::new(4096, 14_336);
    let dims = down.dims(132);
    assert_eq!((dims.grid, dims.shared_bytes), ([132, 1, 1], 512 + 28_672 + 6 * 8 * 4096));
    assert_eq!(GemvShape::new(64, 2048).dims(132).grid, [4, 1, 1]);
    let longest = GemvShape::new(8, 32_768);
    assert_eq!(longest.params().num_stages, 5);
    let experts = Some(GemvExperts { num_experts: 60, top_k: 4, num_shared: 4 });
    let gated = GemvShape { is_gated: true, experts, ..GemvShape::new(1408, 2048) };
    assert_eq!(gated.work().read_bytes, 2 * (8 * 2 * 1408 * 2048 + 2048));
    assert_eq!((gated.out_elements(), gated.topk_elements()), (8 * 1408, 8));
}
