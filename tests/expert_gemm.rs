//! Grouped products and shared experts through their launchers, on the CPU device and on GPUs,
//! against the f64 oracle.
//!
//! GPU tests draw fresh inputs; the seed stands in the failure's message.

use farpage::device::{Buffer, Device, Stream};
use farpage::kernels::expert_gemm::{ExpertGemm, ExpertGemmArgs, ExpertGemmVariant};
use farpage::kernels::shared_expert::{SharedExpert, SharedExpertArgs, SharedExpertVariant};
use gpu_kernels::expert_gemm::contract::ExpertGemmShape;
use gpu_kernels::expert_gemm::reference::{
    self as experts, ExpertGemmCase, expert_products, offsets, random_rows,
};
use gpu_kernels::gemm::reference::{Tolerance, check};
use gpu_kernels::shared_expert::contract::SharedExpertShape;
use gpu_kernels::shared_expert::reference as shared;
use half::bf16;

fn upload<const N: usize>(stream: &Stream, operands: [Vec<bf16>; N]) -> [Buffer<bf16>; N] {
    operands.map(|x| Buffer::from_slice(stream, &x).unwrap())
}

fn bits(x: &[bf16]) -> &[u16] {
    bytemuck::cast_slice(x)
}

/// Every kernel of a routing, with and without a gate, twice; rows of no expert stay NaN, but behind
/// the baseline's gate.
fn check_routing(stream: &Stream, case: &ExpertGemmCase) {
    let seed = fastrand::u64(..);
    for is_gated in [false, true] {
        let shape = ExpertGemmShape { is_gated, ..case.shape };
        let operands = experts::operands(&shape, seed);
        let want = expert_products(&shape, &case.rows_of, &operands[0], &operands[1]);
        let [a, b] = upload(stream, operands);
        let expert_offsets = Buffer::from_slice(stream, &offsets(&case.rows_of)).unwrap();
        let c = stream.device().alloc(shape.c_elements()).unwrap();
        for variant in [ExpertGemmVariant::Baseline, ExpertGemmVariant::Grouped] {
            let is_apart = is_gated && variant == ExpertGemmVariant::Baseline;
            let product = ExpertGemm::with_variant(stream, shape, variant).unwrap();
            let run = || {
                stream.fill(&c, bf16::NAN).unwrap();
                let args = ExpertGemmArgs { a: &a, b: &b, expert_offsets: &expert_offsets, c: &c };
                product.run(stream, args).unwrap();
                stream.download(&c).unwrap()
            };
            let got = run();
            let (of_experts, of_none) = got.split_at(want.len());
            let name = format!("{}, {variant:?}, gated {is_gated}, seed {seed}", case.name);
            let tolerance = if is_apart { shared::TOLERANCE } else { Tolerance::BF16 };
            check(of_experts, &want, shape.n as usize, tolerance)
                .unwrap_or_else(|off| panic!("{name}: {off}"));
            let stays = is_apart || of_none.iter().all(|x| x.is_nan());
            assert!(stays, "{name}: touched rows of no expert");
            assert!(bits(&got) == bits(&run()), "{name}: does not repeat");
        }
    }
}

fn check_shared_expert(stream: &Stream, shape: SharedExpertShape) {
    let seed = fastrand::u64(..);
    let operands = shared::operands(&shape, seed);
    let [want_h, want_y] = shared::outputs(&shape, &operands[0], &operands[1], &operands[2]);
    let [x, gate_up, down] = upload(stream, operands);
    let split = shape.split_plan().check(shape.h_product()).map(|()| SharedExpertVariant::Split);
    for variant in
        [SharedExpertVariant::Baseline, SharedExpertVariant::Fused, SharedExpertVariant::Stream]
            .into_iter()
            .chain(split.ok())
    {
        let expert = SharedExpert::with_variant(stream, shape, variant).unwrap();
        let y = stream.device().alloc(shape.x_elements()).unwrap();
        stream.fill(&y, bf16::NAN).unwrap();
        let args = SharedExpertArgs { x: &x, gate_up: &gate_up, down: &down, y: &y };
        expert.run(stream, args).unwrap();
        let h = stream.download(expert.h()).unwrap();
        let name = format!("{variant:?}, {shape:?}, seed {seed}");
        check(&h, &want_h, shape.intermediate as usize, shared::TOLERANCE)
            .unwrap_or_else(|off| panic!("h, {name}: {off}"));
        check(&stream.download(&y).unwrap(), &want_y, shape.hidden as usize, shared::TOLERANCE)
            .unwrap_or_else(|off| panic!("y, {name}: {off}"));
    }
}

#[test]
fn small_routings_are_right_on_the_cpu() {
    let stream = Device::cpu().new_stream().unwrap();
    check_routing(&stream, &experts::cases()[3]);
}

#[test]
fn a_small_shared_expert_is_right_on_the_cpu() {
    let stream = Device::cpu().new_stream().unwrap();
    check_shared_expert(&stream, shared::cases()[1]);
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let stream = Device::cpu().new_stream().unwrap();
    let shape = ExpertGemmShape { num_rows: 2, num_experts: 3, n: 8, k: 8, is_gated: true };
    let product = ExpertGemm::new(&stream, shape).unwrap();
    let [a, b, c] =
        [16, 3 * 16 * 8, 16].map(|len| stream.device().alloc_zeroed::<bf16>(len).unwrap());
    let expert_offsets = stream.device().alloc_zeroed::<i32>(3).unwrap();
    let args = ExpertGemmArgs { a: &a, b: &b, expert_offsets: &expert_offsets, c: &c };
    let error = product.run(&stream, args).unwrap_err();
    assert_eq!(error.to_string(), "`expert_offsets` must be 4 elements long, got 3");
}

#[test]
#[ignore = "needs 1 GPU"]
fn routings_are_right_on_the_gpu() {
    let stream = Device::cuda(0).unwrap().new_stream().unwrap();
    for case in experts::cases() {
        check_routing(&stream, &case);
    }
    let rows_of = random_rows(500, 300, fastrand::u64(..));
    let shape =
        ExpertGemmShape { num_rows: 500, num_experts: 300, n: 328, k: 136, is_gated: false };
    check_routing(&stream, &ExpertGemmCase { name: "300 experts", shape, rows_of });
}

#[test]
#[ignore = "needs 1 GPU"]
fn shared_experts_are_right_on_the_gpu() {
    let stream = Device::cuda(0).unwrap().new_stream().unwrap();
    for shape in shared::cases() {
        check_shared_expert(&stream, shape);
    }
    check_shared_expert(
        &stream,
        SharedExpertShape { num_tokens: 300, hidden: 1032, intermediate: 520 },
    );
}
