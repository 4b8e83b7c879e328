//! Grouped products in fp8 through their launcher, on the CPU device and on a GPU, against the f64
//! oracle.
//!
//! GPU tests draw fresh inputs; the seed stands in the failure's message.

use cuda_std::float::E4m3;
use farpage::device::{Buffer, Device, Stream};
use farpage::kernels::expert_gemm_fp8::{ExpertGemmFp8, ExpertGemmFp8Args, ExpertGemmFp8Variant};
use gpu_kernels::expert_gemm::reference::{offsets, random_rows};
use gpu_kernels::expert_gemm_fp8::contract::ExpertGemmFp8Shape;
use gpu_kernels::expert_gemm_fp8::reference::{
    ExpertGemmFp8Case, Operands, TOLERANCE, cases, expert_products,
};
use gpu_kernels::gemm::reference::check;
use half::bf16;

/// What the kernels read, on a device.
struct OnDevice {
    a: Buffer<E4m3>,
    a_scales: Buffer<f32>,
    b: Buffer<E4m3>,
    b_scales: Buffer<f32>,
    expert_offsets: Buffer<i32>,
    c: Buffer<bf16>,
}

impl OnDevice {
    fn new(stream: &Stream, case: &ExpertGemmFp8Case, operands: &Operands) -> Self {
        let Operands { a, a_scales, b, b_scales } = operands;
        Self {
            a: Buffer::from_slice(stream, a).unwrap(),
            a_scales: Buffer::from_slice(stream, a_scales).unwrap(),
            b: Buffer::from_slice(stream, b).unwrap(),
            b_scales: Buffer::from_slice(stream, b_scales).unwrap(),
            expert_offsets: Buffer::from_slice(stream, &offsets(&case.rows_of)).unwrap(),
            c: stream.device().alloc(case.shape.c_elements()).unwrap(),
        }
    }

    /// C, NaN where it was not written.
    fn run(&self, stream: &Stream, product: &ExpertGemmFp8) -> Vec<bf16> {
        let Self { a, a_scales, b, b_scales, expert_offsets, c } = self;
        stream.fill(c, bf16::NAN).unwrap();
        let args = ExpertGemmFp8Args { a, a_scales, b, b_scales, expert_offsets, c };
        product.run(stream, args).unwrap();
        stream.download(c).unwrap()
    }
}

/// Every kernel, twice; rows of no expert stay NaN.
fn check_routing(stream: &Stream, case: &ExpertGemmFp8Case) {
    let (seed, shape) = (fastrand::u64(..), case.shape);
    let operands = Operands::random(&shape, seed);
    let want = expert_products(&shape, &case.rows_of, &operands);
    let on_device = OnDevice::new(stream, case, &operands);
    for variant in ExpertGemmFp8Variant::ALL {
        let product = ExpertGemmFp8::with_variant(stream, shape, variant).unwrap();
        let got = on_device.run(stream, &product);
        let (of_experts, of_none) = got.split_at(want.len());
        let name = format!("{}, {variant:?}, seed {seed}", case.name);
        check(of_experts, &want, shape.n as usize, TOLERANCE)
            .unwrap_or_else(|off| panic!("{name}: {off}"));
        assert!(of_none.iter().all(|x| x.is_nan()), "{name}: touched rows of no expert");
        let bits = |x: &[bf16]| -> Vec<u16> { x.iter().map(|x| x.to_bits()).collect() };
        let again = on_device.run(stream, &product);
        assert!(bits(&got) == bits(&again), "{name}: does not repeat");
    }
}

#[test]
fn small_routings_are_right_on_the_cpu() {
    let stream = Device::cpu().new_stream().unwrap();
    for case in cases() {
        check_routing(&stream, &case);
    }
}

#[test]
fn a_scale_of_another_step_row_or_block_shows() {
    let stream = Device::cpu().new_stream().unwrap();
    let case = &cases()[4];
    let (shape, row_scales) = (case.shape, case.shape.row_scales() as usize);
    let operands = Operands::random(&shape, 5);
    let want = expert_products(&shape, &case.rows_of, &operands);
    for variant in ExpertGemmFp8Variant::ALL {
        let product = ExpertGemmFp8::with_variant(&stream, shape, variant).unwrap();
        let check_operands = |operands: &Operands| {
            let got = OnDevice::new(&stream, case, operands).run(&stream, &product);
            check(&got, &want, shape.n as usize, TOLERANCE)
        };
        check_operands(&operands).unwrap();
        for distance in [1, row_scales] {
            let (mut of_a, mut of_b) = (operands.clone(), operands.clone());
            of_a.a_scales.rotate_left(distance);
            check_operands(&of_a).unwrap_err();
            of_b.b_scales.rotate_left(distance);
            check_operands(&of_b).unwrap_err();
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let stream = Device::cpu().new_stream().unwrap();
    let shape = ExpertGemmFp8Shape { num_rows: 2, num_experts: 3, n: 136, k: 144 };
    let refused = ExpertGemmFp8::new(&stream, ExpertGemmFp8Shape { k: 24, ..shape });
    let error = refused.unwrap_err().to_string();
    assert_eq!(error, "`k` must be a multiple of 16 up to 1048560, got 24");
    let product = ExpertGemmFp8::new(&stream, shape).unwrap();
    let elements = |len| stream.device().alloc_zeroed::<E4m3>(len).unwrap();
    let scales = |len| stream.device().alloc_zeroed::<f32>(len).unwrap();
    let said = |a_scales: usize, b_scales: usize| {
        let args = ExpertGemmFp8Args {
            a: &elements(2 * 144),
            a_scales: &scales(a_scales),
            b: &elements(3 * 136 * 144),
            b_scales: &scales(b_scales),
            expert_offsets: &stream.device().alloc_zeroed(4).unwrap(),
            c: &stream.device().alloc_zeroed(2 * 136).unwrap(),
        };
        product.run(&stream, args).map_err(|error| error.to_string())
    };
    said(2 * 2, 3 * 2 * 2).unwrap();
    assert_eq!(said(2, 12).unwrap_err(), "`a_scales` must be 4 elements long, got 2");
    assert_eq!(said(4, 3).unwrap_err(), "`b_scales` must be 12 elements long, got 3");
}

#[test]
#[ignore = "needs 1 GPU"]
fn routings_are_right_on_the_gpu() {
    let stream = Device::cuda(0).unwrap().new_stream().unwrap();
    for case in cases() {
        check_routing(&stream, &case);
    }
    let rows_of = random_rows(700, 300, fastrand::u64(..));
    let shape = ExpertGemmFp8Shape { num_rows: 700, num_experts: 300, n: 328, k: 1040 };
    check_routing(&stream, &ExpertGemmFp8Case { name: "300 experts", shape, rows_of });
    let shape = ExpertGemmFp8Shape { num_rows: 300, num_experts: 1, n: 1032, k: 2048 };
    check_routing(&stream, &ExpertGemmFp8Case { name: "dense", shape, rows_of: vec![300] });
}
