//! Products through their launcher, on the CPU device and on GPUs, against the f64 oracle.
//!
//! GPU tests draw fresh inputs; the seed stands in the failure's message.

use farpage::device::{Buffer, Device, Stream};
use farpage::kernels::gemm::{Gemm, GemmArgs, multiply_exactly};
use gpu_kernels::gemm::contract::GemmShape;
use gpu_kernels::gemm::plan::{GemmKernel, GemmPlan, GemmVariant, StreamPlan};
use gpu_kernels::gemm::reference::{Tolerance, cases, check, operands, product};
use gpu_kernels::gemm::split_plan::{SplitPlan, SplitTile};
use half::bf16;

/// C of one run, which starts as NaN.
fn multiply(stream: &Stream, gemm: &Gemm, a: &Buffer<bf16>, b: &Buffer<bf16>) -> Vec<bf16> {
    let c = stream.device().alloc(gemm.plan().shape.c_elements()).unwrap();
    stream.fill(&c, bf16::NAN).unwrap();
    gemm.run(stream, GemmArgs { a, b, c: &c }).unwrap();
    stream.download(&c).unwrap()
}

/// Every variant, and what is chosen, against `want`; twice, and bit by bit the same.
fn check_variants(stream: &Stream, shape: GemmShape, ab: [&Buffer<bf16>; 2], want: &[f64]) {
    let mut plans: Vec<GemmPlan> = GemmVariant::ALL
        .into_iter()
        .map(|variant| GemmPlan::new(shape, variant, 132))
        .filter(|plan| plan.check().is_ok())
        .collect();
    // Shares that end within tiles, and a ring that is never full.
    let mut uneven = StreamPlan::new(shape, 1, 132);
    uneven.shares.steps_per_block = 3;
    uneven.num_stages = 2;
    let split = SplitTile::ALL.map(|tile| GemmKernel::Split(SplitPlan::new(shape, 1, tile)));
    let split = split.map(|kernel| GemmPlan { shape, kernel });
    plans.extend(split.into_iter().filter(|plan| plan.check().is_ok()));
    plans.extend(
        [GemmPlan::fastest(shape, 132), GemmPlan { shape, kernel: GemmKernel::Stream(uneven) }]
            .into_iter()
            .filter(|plan| plan.check().is_ok()),
    );
    let gemms = plans.into_iter().map(|plan| Gemm::with_plan(stream, plan).unwrap());
    for gemm in gemms {
        let c = multiply(stream, &gemm, ab[0], ab[1]);
        check(&c, want, shape.n as usize, Tolerance::BF16)
            .unwrap_or_else(|off| panic!("{:?}: {off}", gemm.plan()));
        let again = multiply(stream, &gemm, ab[0], ab[1]);
        let bits = bytemuck::cast_slice::<bf16, u16>;
        assert!(bits(&c) == bits(&again), "{:?} does not repeat", gemm.plan());
    }
}

fn check_case(device: &Device, shape: GemmShape, seed: u64) {
    let stream = device.new_stream().unwrap();
    let [a, b] = operands(&shape, seed);
    let want = product(&a, &b, shape.k as usize);
    let [a, b] = [a, b].map(|x| Buffer::from_slice(&stream, &x).unwrap());
    println!("{shape:?}, seed {seed}");
    check_variants(&stream, shape, [&a, &b], &want);
}

#[test]
fn small_products_are_right_on_the_cpu() {
    for shape in &cases()[..3] {
        check_case(&Device::cpu(), *shape, fastrand::u64(..));
    }
}

#[test]
fn arguments_of_the_wrong_length_are_refused() {
    let stream = Device::cpu().new_stream().unwrap();
    let shape = GemmShape { m: 2, n: 8, k: 16 };
    let gemm = Gemm::new(&stream, shape).unwrap();
    let [a, b, c] = [32, 128, 15].map(|len| stream.device().alloc_zeroed::<bf16>(len).unwrap());
    let error = gemm.run(&stream, GemmArgs { a: &a, b: &b, c: &c }).unwrap_err();
    assert_eq!(error.to_string(), "`c` must be 16 elements long, got 15");
    assert!(Gemm::new(&stream, GemmShape { k: 12, ..shape }).is_err());
}

#[test]
#[ignore = "needs 1 GPU"]
fn edge_cases_are_right_on_the_gpu() {
    for shape in cases() {
        check_case(&Device::cuda(0).unwrap(), shape, fastrand::u64(..));
    }
}

#[test]
#[ignore = "needs 1 GPU"]
fn large_products_equal_those_summed_in_f64() {
    let stream = Device::cuda(0).unwrap().new_stream().unwrap();
    for (m, n, k) in [(128, 4096, 7168), (1000, 4104, 1032), (2048, 3072, 4096)] {
        let (shape, seed) = (GemmShape { m, n, k }, fastrand::u64(..));
        let operands = operands(&shape, seed);
        let [a, b] = operands.each_ref().map(|x| Buffer::from_slice(&stream, x).unwrap());
        let exact = stream.device().alloc::<f32>(shape.c_elements()).unwrap();
        multiply_exactly(&stream, shape, &a, &b, &exact).unwrap();
        let want: Vec<f64> = stream.download(&exact).unwrap().into_iter().map(f64::from).collect();
        let [a_host, b_host] = &operands;
        let first_row = product(&a_host[..k as usize], b_host, k as usize);
        for (got, want) in want.iter().zip(&first_row) {
            assert!((got - want).abs() <= 1e-6 * want.abs() + 1e-9, "{got}, {want}");
        }
        println!("{shape:?}, seed {seed}");
        check_variants(&stream, shape, [&a, &b], &want);
    }
}

/// The kernels in clusters, on shapes that compute-sanitizer gets through in seconds.
#[test]
#[ignore = "needs 1 GPU"]
fn a_few_small_products_are_right_on_the_gpu() {
    for (m, n, k) in [(20, 136, 328), (300, 264, 136)] {
        check_case(&Device::cuda(0).unwrap(), GemmShape { m, n, k }, fastrand::u64(..));
    }
}
