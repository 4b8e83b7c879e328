//! Products of one row through their launcher, on the CPU device and on GPUs, against the oracle.

use farpage::device::{Buffer, Device};
use farpage::kernels::gemv::{Gemv, GemvArgs, GemvChoice};
use gpu_kernels::gemv::contract::{GemvExperts, GemvShape};
use gpu_kernels::gemv::reference::{GemvProblem, cases, check};
use half::bf16;

fn check_shape(device: &Device, shape: GemvShape) {
    let stream = device.new_stream().unwrap();
    let seed = fastrand::u64(..);
    let (problem, told) = (GemvProblem::new(shape, seed), format!("{shape:?}, seed {seed}"));
    let upload = |elements: &[bf16]| Buffer::from_slice(&stream, elements).unwrap();
    let (row, norm, b) = (upload(&problem.row), upload(&problem.norm_weight), upload(&problem.b));
    let topk_ids = Buffer::from_slice(&stream, &problem.topk_ids).unwrap();
    let topk_weights = Buffer::from_slice(&stream, &problem.topk_weights).unwrap();
    let choice = GemvChoice { topk_ids: &topk_ids, topk_weights: &topk_weights };
    let gemv = Gemv::new(device, shape).unwrap();
    let (out, sums) = (upload(&vec![bf16::NAN; shape.out_elements()]), upload(&problem.x));
    let norm_weight = shape.norm_eps.map(|_| &norm);
    let args = GemvArgs { x: &row, norm_weight, b: &b, out: &out };
    let results = || stream.download(&out).unwrap();
    match (shape.experts, shape.is_gated) {
        (None, _) => {
            gemv.run(&stream, args).unwrap();
            check(&results(), &problem.results()).expect(&told);
        }
        (Some(_), true) => {
            gemv.run_experts(&stream, choice, args).unwrap();
            check(&results(), &problem.results()).expect(&told);
        }
        (Some(_), false) => {
            gemv.add_experts(&stream, choice, GemvArgs { out: &sums, ..args }).unwrap();
            check(&stream.download(&sums).unwrap(), &problem.added()).expect(&told);
        }
    }
    if shape.experts.is_none() && !shape.is_gated && shape.norm_eps.is_none() {
        gemv.add(&stream, GemvArgs { out: &sums, ..args }).unwrap();
        check(&stream.download(&sums).unwrap(), &problem.added()).expect(&told);
    }
}

#[test]
fn products_are_the_oracle_on_the_cpu() {
    cases().into_iter().for_each(|shape| check_shape(&Device::cpu(), shape));
}

#[test]
#[ignore = "needs 1 GPU"]
fn products_are_the_oracle_on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    cases().into_iter().for_each(|shape| check_shape(&device, shape));
    let normed = |n, k| GemvShape { norm_eps: Some(1e-5), ..GemvShape::new(n, k) };
    let gated = |n, k| GemvShape { is_gated: true, ..normed(n, k) };
    let experts = Some(GemvExperts { num_experts: 8, top_k: 4, num_shared: 4 });
    for shape in [
        normed(6144, 4096),
        gated(14_336, 4096),
        GemvShape::new(4096, 14_336),
        GemvShape { experts, ..gated(1408, 2048) },
        GemvShape { experts, ..GemvShape::new(2048, 1408) },
    ] {
        check_shape(&device, shape);
    }
}

#[test]
fn wrong_arguments_are_refused_before_any_launch() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    let shape = GemvShape { norm_eps: Some(0.0), ..GemvShape::new(16, 8) };
    let gemv = Gemv::new(&device, shape).unwrap();
    let zeros = |len| device.alloc_zeroed::<bf16>(len).unwrap();
    let (row, b, out) = (zeros(8), zeros(128), zeros(16));
    let args = GemvArgs { x: &row, norm_weight: None, b: &b, out: &out };
    let refused = [
        gemv.run(&stream, args),
        gemv.run(&stream, GemvArgs { norm_weight: Some(&row), b: &out, ..args }),
        gemv.add(&stream, args),
    ];
    let words: String = refused.map(|error| format!("{}\n", error.unwrap_err())).concat();
    assert_eq!(
        words,
        "`norm_weight` must be 8 elements long, got 0\n\
         `b` must be 128 elements long, got 16\n\
         `shape` must be no norm and no gate, for a product that adds, got one\n"
    );
    assert!(device.launched_kernels().is_empty());
}
