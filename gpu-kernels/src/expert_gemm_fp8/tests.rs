use std::collections::HashSet;
use std::vec::Vec;

use cuda_std::float::E4m3;
use cuda_std::tensor_map::TensorMap;
use half::bf16;
use proptest::prelude::*;

use super::contract::ExpertGemmFp8Shape;
use super::device::*;
use super::reference::{
    ExpertGemmFp8Case, Operands, TOLERANCE, cases, exact_bf16, expert_products, row_values,
};
use crate::expert_gemm::reference::offsets;
use crate::gemm::reference::check;
use crate::testing::{DeviceMemory, TestDevice, digest, tensor_maps};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kernel {
    Baseline,
    Grouped,
}

const KERNELS: [Kernel; 2] = [Kernel::Baseline, Kernel::Grouped];

/// SMs of the GPU that tests plan for: fewer than there are tiles.
const NUM_SMS: u32 = 3;

/// C, `None` where it was not written.
fn run(
    device: &TestDevice,
    kernel: Kernel,
    shape: ExpertGemmFp8Shape,
    expert_offsets: &[i32],
    operands: &Operands,
) -> Vec<Option<bf16>> {
    shape.check().unwrap();
    assert_eq!(expert_offsets.len(), shape.offsets_elements());
    let [a, b] = [&operands.a, &operands.b].map(|x| DeviceMemory::from_slice(x));
    let [a_scales, b_scales] =
        [&operands.a_scales, &operands.b_scales].map(|x| DeviceMemory::from_slice(x));
    assert_eq!([a.len(), a_scales.len()], [shape.a_elements(), shape.a_scales()]);
    assert_eq!([b.len(), b_scales.len()], [shape.b_elements(), shape.b_scales()]);
    let (a_scales, b_scales) = (a_scales.view(), b_scales.view());
    let expert_offsets = DeviceMemory::from_slice(expert_offsets);
    let expert_offsets = expert_offsets.view();
    let c_memory = DeviceMemory::<bf16>::poisoned(shape.c_elements());
    let c = c_memory.view_mut();
    let ExpertGemmFp8Shape { num_rows, num_experts, n, k } = shape;
    macro_rules! launch {
        ($dims:expr, $kernel:ident, $a:expr, $b:expr $(, $c_maps:ident)?) => {{
            let (a, b) = ($a, $b);
            let kernel = $kernel {
                a,
                b,
                $($c_maps,)?
                a_scales,
                b_scales,
                expert_offsets,
                num_rows,
                num_experts,
                n,
                k,
                c,
            };
            device.launch($dims, kernel);
        }};
    }
    match kernel {
        Kernel::Baseline => {
            launch!(shape.baseline_dims(), expert_gemm_fp8_baseline, a.view(), b.view());
        }
        Kernel::Grouped => {
            let a = tensor_maps(&a, &shape.a_tilings());
            let b = TensorMap::new(b.view(), &shape.b_tiling()).unwrap();
            let c_maps = tensor_maps(&c_memory, &shape.c_tilings());
            launch!(shape.grouped_dims(NUM_SMS), expert_gemm_fp8_grouped, a, b, c_maps);
        }
    }
    c_memory.written()
}

/// Runs both kernels, and compares all of C: rows of no expert must be untouched.
fn check_operands(case: &ExpertGemmFp8Case, device: &TestDevice, operands: &Operands) {
    let want = expert_products(&case.shape, &case.rows_of, operands);
    for kernel in KERNELS {
        let c = run(device, kernel, case.shape, &offsets(&case.rows_of), operands);
        let (of_experts, of_none) = c.split_at(want.len());
        assert!(of_none.iter().all(Option::is_none), "{}, {kernel:?}: touched", case.name);
        let of_experts: Vec<bf16> = of_experts.iter().map(|x| x.unwrap_or(bf16::NAN)).collect();
        check(&of_experts, &want, case.shape.n as usize, TOLERANCE)
            .unwrap_or_else(|off| panic!("{}, {kernel:?}: {off}", case.name));
    }
}

fn check_case(case: &ExpertGemmFp8Case, device: &TestDevice, seed: u64) {
    check_operands(case, device, &Operands::random(&case.shape, seed));
}

#[test]
fn every_case_is_right() {
    for (seed, case) in (0..).zip(cases()) {
        check_case(&case, &TestDevice::seeded(seed), seed);
    }
}

#[test]
fn scales_of_any_bits_are_taken() {
    let case = &cases()[4];
    let mut operands = Operands::random(&case.shape, 7);
    let mut rng = fastrand::Rng::with_seed(7);
    for scale in operands.a_scales.iter_mut().chain(&mut operands.b_scales) {
        *scale *= 0.3 + rng.f32();
    }
    check_operands(case, &TestDevice::ascending(), &operands);
}

#[test]
fn results_do_not_depend_on_the_order_of_lanes() {
    let case = &cases()[2];
    let operands = Operands::random(&case.shape, 3);
    for kernel in KERNELS {
        let digest_of = |device| {
            let c = run(&device, kernel, case.shape, &offsets(&case.rows_of), &operands);
            let bits = |x: &Option<bf16>| x.map_or(0xffff, bf16::to_bits);
            digest(&c.iter().map(bits).collect::<Vec<u16>>())
        };
        let digests: HashSet<u64> = TestDevice::lane_orders().map(digest_of).collect();
        assert_eq!(digests.len(), 1, "{kernel:?}");
    }
}

#[test]
fn a_product_of_one_row_is_as_reviewed() {
    let shape = ExpertGemmFp8Shape { num_rows: 1, num_experts: 1, n: 8, k: 144 };
    let operands = Operands::random(&shape, 11);
    let both =
        KERNELS.map(|kernel| run(&TestDevice::ascending(), kernel, shape, &[0, 1], &operands));
    let rows = both.map(|c| c.into_iter().map(|x| f32::from(x.unwrap())).collect::<Vec<f32>>());
    insta::assert_debug_snapshot!(rows);
}

#[test]
fn offsets_out_of_bounds_reach_no_memory() {
    let shape = ExpertGemmFp8Shape { num_rows: 20, num_experts: 3, n: 16, k: 16 };
    let operands = Operands::random(&shape, 1);
    for wrong in [[-7, 5, 900, 4], [i32::MAX, i32::MIN, 20, 21], [20, 10, 0, 3]] {
        for kernel in KERNELS {
            run(&TestDevice::ascending(), kernel, shape, &wrong, &operands);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn any_routing_is_right(
        rows_of in prop::collection::vec(0_u32..70, 1..36), pieces in 1_u32..37, seed: u64,
    ) {
        let num_rows = rows_of.iter().sum::<u32>().max(1);
        let num_experts = rows_of.len() as u32;
        let shape = ExpertGemmFp8Shape { num_rows, num_experts, n: 24, k: 16 * pieces };
        let case = ExpertGemmFp8Case { name: "any", shape, rows_of };
        check_case(&case, &TestDevice::seeded(seed), seed);
    }
}

#[test]
fn random_operands_are_exact_in_bf16_and_of_their_variance() {
    let shape = ExpertGemmFp8Shape { num_rows: 64, num_experts: 2, n: 256, k: 1024 };
    let operands = Operands::random(&shape, 5);
    let row_scales = shape.row_scales() as usize;
    let variance = |elements: &[E4m3], scales: &[f32], rows_together: usize| {
        let rows = elements.chunks_exact(shape.k as usize).enumerate();
        let values = rows.flat_map(|(row, elements)| {
            let scales = &scales[row / rows_together * row_scales..][..row_scales];
            exact_bf16(row_values(elements, scales))
        });
        let squares: f64 = values.map(|x| f64::from(x).powi(2)).sum();
        squares / elements.len() as f64
    };
    let a = variance(&operands.a, &operands.a_scales, 1);
    let b = variance(&operands.b, &operands.b_scales, 128);
    assert!((0.5..2.0).contains(&a) && (0.5..2.0).contains(&(b * 1024.0)), "{a} {b}");
    assert!(operands.a.iter().all(|x| *x != E4m3::NAN));
}

#[test]
fn wrong_shapes_are_refused_in_words() {
    let right = ExpertGemmFp8Shape { num_rows: 1, num_experts: 1, n: 8, k: 16 };
    right.check().unwrap();
    let said = |shape: ExpertGemmFp8Shape| shape.check().unwrap_err();
    insta::assert_snapshot!(
        said(ExpertGemmFp8Shape { num_experts: 0, ..right }),
        @"`num_experts` must be 1 to 1024, got 0"
    );
    insta::assert_snapshot!(
        said(ExpertGemmFp8Shape { num_rows: 0, ..right }),
        @"`num_rows` must be 1 to 1048560, got 0"
    );
    insta::assert_snapshot!(
        said(ExpertGemmFp8Shape { n: 12, ..right }),
        @"`n` must be a multiple of 8 up to 1048560, got 12"
    );
    insta::assert_snapshot!(
        said(ExpertGemmFp8Shape { k: 24, ..right }),
        @"`k` must be a multiple of 16 up to 1048560, got 24"
    );
}

#[test]
fn work_counts_the_weights_of_experts_with_tokens() {
    let shape = ExpertGemmFp8Shape { num_rows: 9, num_experts: 3, n: 136, k: 144 };
    let work = shape.work(&[4, 0, 5]);
    let scales = 9 * 2 + 2 * 2 * 2;
    assert_eq!(work.read_bytes, 9 * 144 + 2 * 136 * 144 + 4 * scales + 4 * 4);
    assert_eq!((work.written_bytes, work.flops), (2 * 9 * 136, 2 * 9 * 136 * 144));
}
