use std::collections::HashSet;
use std::vec::Vec;

use cuda_std::tensor_map::TensorMap;
use half::bf16;
use proptest::prelude::*;

use super::contract::ExpertGemmShape;
use super::device::*;
use super::reference::{
    ExpertGemmCase, cases, expert_products, offsets, operands, random_rows, zipf_rows,
};
use crate::gemm::reference::{Tolerance, check};
use crate::testing::{DeviceMemory, TestDevice, digest, tensor_maps};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kernel {
    Baseline,
    Grouped,
}

/// SMs of the GPU that tests plan for: fewer than there are tiles.
const NUM_SMS: u32 = 3;

/// C, `None` where it was not written.
fn run(
    device: &TestDevice,
    kernel: Kernel,
    shape: ExpertGemmShape,
    expert_offsets: &[i32],
    a: &[bf16],
    b: &[bf16],
) -> Vec<Option<bf16>> {
    shape.check().unwrap();
    assert_eq!(expert_offsets.len(), shape.offsets_elements());
    let (a, b) = (DeviceMemory::from_slice(a), DeviceMemory::from_slice(b));
    let expert_offsets = DeviceMemory::from_slice(expert_offsets);
    let expert_offsets = expert_offsets.view();
    let c_memory = DeviceMemory::<bf16>::poisoned(shape.c_elements());
    let c = c_memory.view_mut();
    let ExpertGemmShape { num_rows, num_experts, n, k, .. } = shape;
    if kernel == Kernel::Baseline {
        let (a, b) = (a.view(), b.view());
        let kernel =
            expert_gemm_baseline_bf16 { a, b, expert_offsets, num_rows, num_experts, n, k, c };
        device.launch(shape.baseline_dims(), kernel);
        return c_memory.written();
    }
    let a = tensor_maps(&a, &shape.a_tilings());
    let b = TensorMap::new(b.view(), &shape.b_tiling()).unwrap();
    let c_maps = tensor_maps(&c_memory, &shape.c_tilings());
    let dims = shape.grouped_dims(NUM_SMS);
    macro_rules! launch {
        ($kernel:ident) => {
            device.launch(
                dims,
                $kernel { a, b, c_maps, expert_offsets, num_rows, num_experts, n, k, c },
            )
        };
    }
    match shape.is_gated {
        true => launch!(expert_gemm_gated_bf16),
        false => launch!(expert_gemm_grouped_bf16),
    }
    c_memory.written()
}

/// Kernels that a shape has.
fn kernels(shape: &ExpertGemmShape) -> &'static [Kernel] {
    if shape.is_gated { &[Kernel::Grouped] } else { &[Kernel::Baseline, Kernel::Grouped] }
}

/// Runs a case's kernels, and compares all of C: rows of no expert must be untouched.
fn check_case(case: &ExpertGemmCase, device: &TestDevice, seed: u64) {
    for is_gated in [false, true] {
        let shape = ExpertGemmShape { is_gated, ..case.shape };
        let [a, b] = operands(&shape, seed);
        let want = expert_products(&shape, &case.rows_of, &a, &b);
        for &kernel in kernels(&shape) {
            let c = run(device, kernel, shape, &offsets(&case.rows_of), &a, &b);
            let (of_experts, of_none) = c.split_at(want.len());
            assert!(of_none.iter().all(Option::is_none), "{}, {kernel:?}: touched", case.name);
            let of_experts: Vec<bf16> = of_experts.iter().map(|x| x.unwrap_or(bf16::NAN)).collect();
            check(&of_experts, &want, shape.n as usize, Tolerance::BF16)
                .unwrap_or_else(|off| panic!("{}, {kernel:?}, gated {is_gated}: {off}", case.name));
        }
    }
}

#[test]
fn every_case_is_right() {
    for (seed, case) in (0..).zip(cases()) {
        check_case(&case, &TestDevice::seeded(seed), seed);
    }
}

#[test]
fn results_do_not_depend_on_the_order_of_lanes() {
    let case = &cases()[3];
    for is_gated in [false, true] {
        let shape = ExpertGemmShape { is_gated, ..case.shape };
        let [a, b] = operands(&shape, 3);
        for &kernel in kernels(&shape) {
            let digest_of = |device| {
                let c = run(&device, kernel, shape, &offsets(&case.rows_of), &a, &b);
                let bits = |x: &Option<bf16>| x.map_or(0xffff, bf16::to_bits);
                digest(&c.iter().map(bits).collect::<Vec<u16>>())
            };
            let digests: HashSet<u64> = TestDevice::lane_orders().map(digest_of).collect();
            assert_eq!(digests.len(), 1, "{kernel:?}");
        }
    }
}

#[test]
fn offsets_out_of_bounds_reach_no_memory() {
    let shape = ExpertGemmShape { num_rows: 20, num_experts: 3, n: 16, k: 16, is_gated: false };
    let [a, b] = operands(&shape, 1);
    for wrong in [[-7, 5, 900, 4], [i32::MAX, i32::MIN, 20, 21], [20, 10, 0, 3]] {
        for &kernel in kernels(&shape) {
            run(&TestDevice::ascending(), kernel, shape, &wrong, &a, &b);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn any_routing_is_right(rows_of in prop::collection::vec(0_u32..70, 1..40), seed: u64) {
        let num_rows = rows_of.iter().sum::<u32>().max(1);
        let num_experts = rows_of.len() as u32;
        let shape = ExpertGemmShape { num_rows, num_experts, n: 24, k: 16, is_gated: false };
        let case = ExpertGemmCase { name: "any", shape, rows_of };
        check_case(&case, &TestDevice::seeded(seed), seed);
    }
}

#[test]
fn routings_deal_all_rows() {
    for rows_of in [random_rows(8192, 32, 1), zipf_rows(8192, 32)] {
        assert_eq!(rows_of.iter().sum::<u32>(), 8192);
    }
    let zipf = zipf_rows(8192, 32);
    assert!(zipf.is_sorted_by(|a, b| a >= b) && zipf[31] > 0);
}

#[test]
fn wrong_shapes_are_refused_in_words() {
    let right = ExpertGemmShape { num_rows: 1, num_experts: 1, n: 8, k: 8, is_gated: true };
    right.check().unwrap();
    let said = |shape: ExpertGemmShape| shape.check().unwrap_err();
    insta::assert_snapshot!(
        said(ExpertGemmShape { num_experts: 0, ..right }),
        @"`num_experts` must be 1 to 1024, got 0"
    );
    insta::assert_snapshot!(
        said(ExpertGemmShape { num_rows: 0, ..right }),
        @"`num_rows` must be 1 to 1048560, got 0"
    );
    insta::assert_snapshot!(
        said(ExpertGemmShape { k: 9, ..right }),
        @"`k` must be a multiple of 8 up to 1048560, got 9"
    );
    insta::assert_snapshot!(said(ExpertGemmShape { n: 12, ..right }), @"`n` must be a multiple of 8 up to 524280, got 12");
    insta::assert_snapshot!(said(ExpertGemmShape { n: (1 << 31) + 8, ..right }), @"`n` must be a multiple of 8 up to 524280, got 2147483656");
}

#[test]
fn work_counts_the_weights_of_experts_with_tokens() {
    let shape = ExpertGemmShape { num_rows: 9, num_experts: 3, n: 8, k: 16, is_gated: true };
    let work = shape.work(&[4, 0, 5]);
    assert_eq!(work.read_bytes, 2 * (9 * 16 + 2 * 16 * 16) + 4 * 4);
    assert_eq!((work.written_bytes, work.flops), (2 * 9 * 8, 2 * 9 * 16 * 16));
}
