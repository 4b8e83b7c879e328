//! Normalising, embedding and sampling through their launchers, on the CPU device and on GPUs,
//! against the oracles.
//!
//! GPU tests draw fresh inputs; the seed stands in the failure's message.

use farpage::device::{Buffer, Device, Stream};
use farpage::kernels::embedding::{GatherArgs, gather_rows};
use farpage::kernels::rms_norm::{RmsNormArgs, add, add_rms_norm, rms_norm};
use farpage::kernels::sampling::{
    ArgmaxArgs, ChooseArgs, LogitElement, Sampler, SamplingRule, SamplingVariant, argmax, choose,
};
use gpu_kernels::embedding::contract::EmbeddingShape;
use gpu_kernels::embedding::reference as embedding;
use gpu_kernels::rms_norm::contract::RmsNormShape;
use gpu_kernels::rms_norm::reference::{self as norms, RmsNormProblem};
use gpu_kernels::sampling::contract::SamplingShape;
use gpu_kernels::sampling::reference::{self as sampling, Logits, check_argmax};
use half::bf16;

fn check_norms(device: &Device, shapes: &[RmsNormShape]) {
    let stream = device.new_stream().unwrap();
    for &shape in shapes {
        let seed = fastrand::u64(..);
        let problem = RmsNormProblem::new(shape, seed);
        let upload = |elements: &[bf16]| Buffer::from_slice(&stream, elements).unwrap();
        let (x, delta, weight) =
            (upload(&problem.x), upload(&problem.delta), upload(&problem.weight));
        let out = upload(&vec![bf16::NAN; shape.elements()]);
        let args = RmsNormArgs { x: &x, weight: &weight, out: &out };
        let told = format!("{shape:?}, seed {seed}");

        rms_norm(&stream, shape, args).unwrap();
        problem.check(&problem.x, &stream.download(&out).unwrap()).expect(&told);

        let (sums, summed) = (problem.sums(), upload(&problem.x));
        add(&stream, shape, &summed, &delta).unwrap();
        assert!(stream.download(&summed).unwrap() == sums, "{told}");

        stream.fill(&out, bf16::NAN).unwrap();
        add_rms_norm(&stream, shape, &delta, args).unwrap();
        assert!(stream.download(&x).unwrap() == sums, "{told}");
        problem.check(&sums, &stream.download(&out).unwrap()).expect(&told);
    }
}

fn check_gathers(device: &Device, shapes: &[EmbeddingShape]) {
    let stream = device.new_stream().unwrap();
    for shape in shapes {
        let seed = fastrand::u64(..);
        let (table, row_ids) = embedding::inputs(shape, seed);
        let out = Buffer::from_slice(&stream, &vec![bf16::NAN; shape.out_elements()]).unwrap();
        let args = GatherArgs {
            table: &Buffer::from_slice(&stream, &table).unwrap(),
            row_ids: &Buffer::from_slice(&stream, &row_ids).unwrap(),
            out: &out,
        };
        gather_rows(&stream, *shape, args).unwrap();
        let want = embedding::gather(shape, &table, &row_ids);
        assert!(stream.download(&out).unwrap() == want, "{shape:?}, seed {seed}");
    }
}

const VARIANTS: [SamplingVariant; 2] = [SamplingVariant::Row, SamplingVariant::Split];

/// Tokens and logprobs: by rules, or the most likely ones. The second run finds the workspace as the
/// first one left it.
fn chosen<T: LogitElement>(
    stream: &Stream,
    sampler: &Sampler<T>,
    logits: &[T],
    rules: Option<&[SamplingRule]>,
) -> (Vec<i32>, Vec<f32>) {
    let batch = sampler.shape().batch as usize;
    let token_ids = &Buffer::from_slice(stream, &vec![-7; batch]).unwrap();
    let logprobs = &Buffer::from_slice(stream, &vec![f32::NAN; batch]).unwrap();
    let logits = &Buffer::from_slice(stream, logits).unwrap();
    for _ in 0..2 {
        match rules {
            Some(rules) => {
                let rules = &Buffer::from_slice(stream, rules).unwrap();
                let args = ChooseArgs { logits, rules, token_ids, logprobs };
                sampler.choose(stream, args).unwrap();
            }
            None => {
                let args = ArgmaxArgs { logits, token_ids, logprobs };
                sampler.argmax(stream, args).unwrap();
            }
        }
    }
    (stream.download(token_ids).unwrap(), stream.download(logprobs).unwrap())
}

/// Every variant, by rules and without, of logits as `row` has them in f32.
fn check_choices_of<T: LogitElement>(
    stream: &Stream,
    shape: SamplingShape,
    logits: &[T],
    values: &[f32],
    seed: u64,
) {
    let rules = sampling::rules(shape.batch, seed);
    for variant in VARIANTS {
        let sampler = Sampler::with_variant(stream.device(), shape, variant).unwrap();
        let told = format!("{shape:?}, {variant:?}, seed {seed}");
        let (ids, logprobs) = chosen(stream, &sampler, logits, None);
        check_argmax(&shape, values, &ids, &logprobs).expect(&told);
        let (ids, logprobs) = chosen(stream, &sampler, logits, Some(&rules));
        sampling::check(&shape, values, &rules, &ids, &logprobs).expect(&told);
    }
}

fn check_choices(device: &Device, shapes: &[SamplingShape]) {
    let stream = device.new_stream().unwrap();
    for (&shape, kind) in shapes.iter().flat_map(|shape| Logits::ALL.map(|kind| (shape, kind))) {
        let seed = fastrand::u64(..);
        println!("{shape:?}, {kind:?}, seed {seed}");
        let logits = sampling::logits(&shape, kind, seed);
        let halves: Vec<bf16> = logits.iter().map(|&logit| bf16::from_f32(logit)).collect();
        let rounded: Vec<f32> = halves.iter().map(|logit| logit.to_f32()).collect();
        check_choices_of(&stream, shape, &logits, &logits, seed);
        check_choices_of(&stream, shape, &halves, &rounded, seed);
    }
}

/// The same rows and rules, in batches of several sizes: not a bit may differ.
fn check_batches(device: &Device, vocab_size: u32, batch: u32) {
    let stream = device.new_stream().unwrap();
    let seed = fastrand::u64(..);
    let all = SamplingShape { batch, vocab_size };
    let logits = sampling::logits(&all, Logits::Spread, seed);
    let rules = sampling::rules(batch, seed);
    let whole = chosen(&stream, &Sampler::new(device, all).unwrap(), &logits, Some(&rules));
    for b in 0..batch as usize {
        let sampler = Sampler::new(device, SamplingShape { batch: 1, vocab_size }).unwrap();
        let row = &logits[b * vocab_size as usize..][..vocab_size as usize];
        let alone = chosen(&stream, &sampler, row, Some(&rules[b..=b]));
        assert_eq!(alone, (vec![whole.0[b]], vec![whole.1[b]]), "request {b}, seed {seed}");
    }
}

#[test]
fn everything_is_the_oracle_on_the_cpu() {
    let device = Device::cpu();
    check_norms(&device, &norms::cases()[..5]);
    check_gathers(&device, &embedding::cases());
    check_choices(&device, &sampling::cases()[..3]);
    check_batches(&device, 9000, 3);
}

#[test]
#[ignore = "needs 1 GPU"]
fn norms_are_the_oracle_on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    let shape = |num_rows, row_len| RmsNormShape { num_rows, row_len, eps: 1e-5 };
    check_norms(&device, &norms::cases());
    check_norms(&device, &[shape(1000, 2048), shape(333, 4096), shape(4096, 128)]);
}

#[test]
#[ignore = "needs 1 GPU"]
fn gathers_are_the_oracle_on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    check_gathers(&device, &embedding::cases());
    check_gathers(&device, &[EmbeddingShape { num_rows: 5000, row_len: 4096, num_ids: 1000 }]);
}

#[test]
#[ignore = "needs 1 GPU"]
fn choices_are_the_oracle_on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    check_choices(&device, &sampling::cases());
    let shape = |batch| SamplingShape { batch, vocab_size: 151_936 };
    check_choices(&device, &[shape(1), shape(9), shape(70)]);
    check_batches(&device, 128_256, 9);
}

#[test]
fn nothing_to_do_launches_nothing() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    let none = device.alloc::<bf16>(0).unwrap();
    let weight = device.alloc_zeroed::<bf16>(8).unwrap();
    let shape = RmsNormShape { num_rows: 0, row_len: 8, eps: 1e-6 };
    let args = RmsNormArgs { x: &none, weight: &weight, out: &none };
    rms_norm(&stream, shape, args).unwrap();
    add_rms_norm(&stream, shape, &none, args).unwrap();
    add(&stream, shape, &none, &none).unwrap();
    let shape = EmbeddingShape { num_rows: 1, row_len: 8, num_ids: 0 };
    let row_ids = device.alloc(0).unwrap();
    gather_rows(&stream, shape, GatherArgs { table: &weight, row_ids: &row_ids, out: &none })
        .unwrap();
    let shape = SamplingShape { batch: 0, vocab_size: 8 };
    for variant in VARIANTS {
        let sampler = Sampler::<bf16>::with_variant(&device, shape, variant).unwrap();
        chosen(&stream, &sampler, &[], None);
        chosen(&stream, &sampler, &[], Some(&[]));
    }
    assert!(device.launched_kernels().is_empty());
}

#[test]
fn wrong_arguments_are_refused_before_any_launch() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    let [x, short] = [16, 8].map(|len| device.alloc_zeroed::<bf16>(len).unwrap());
    let shape = RmsNormShape { num_rows: 2, row_len: 8, eps: 1e-6 };
    let mut args = RmsNormArgs { x: &x, weight: &short, out: &short };
    let error = rms_norm(&stream, shape, args).unwrap_err();
    insta::assert_snapshot!(error, @"`out` must be 16 elements long, got 8");
    args.out = &x;
    let error = add_rms_norm(&stream, shape, &short, args).unwrap_err();
    insta::assert_snapshot!(error, @"`delta` must be 16 elements long, got 8");
    let shape = EmbeddingShape { num_rows: 2, row_len: 8, num_ids: 1 };
    let row_ids = device.alloc(2).unwrap();
    let error =
        gather_rows(&stream, shape, GatherArgs { table: &x, row_ids: &row_ids, out: &short });
    insta::assert_snapshot!(error.unwrap_err(), @"`row_ids` must be 1 elements long, got 2");
    let shape = SamplingShape { batch: 1, vocab_size: 8 };
    let token_ids = device.alloc(1).unwrap();
    let logprobs = device.alloc(2).unwrap();
    let args = ArgmaxArgs { logits: &short, token_ids: &token_ids, logprobs: &logprobs };
    let error = argmax(&stream, shape, args).unwrap_err();
    insta::assert_snapshot!(error, @"`logprobs` must be 1 elements long, got 2");
    let rules = device.alloc(2).unwrap();
    let ArgmaxArgs { logits, token_ids, logprobs } = args;
    let error = choose(&stream, shape, ChooseArgs { logits, rules: &rules, token_ids, logprobs });
    insta::assert_snapshot!(error.unwrap_err(), @"`rules` must be 1 elements long, got 2");
    assert!(device.launched_kernels().is_empty());
}
