//! Routing, permutation, pack and unpack through their launchers, on the CPU device and on GPUs,
//! against the oracles.
//!
//! GPU tests draw fresh inputs; the seed stands in the failure's message.

use cuda_std::float::E4m3;
use farpage::device::{Buffer, Device, Stream};
use farpage::kernels::moe_permute::{Permutation, Permute, PermuteVariant};
use farpage::kernels::moe_topk::{GatingElement, Topk, TopkArgs, TopkVariant};
use farpage::kernels::token_pack::{Pack, PackArgs, PackVariant, RowElement};
use farpage::kernels::token_unpack::{Unpack, UnpackArgs, UnpackElement, UnpackVariant};
use gpu_kernels::moe_permute::contract::PermuteShape;
use gpu_kernels::moe_permute::reference as permute;
use gpu_kernels::moe_topk::contract::{GroupLimit, TopkShape};
use gpu_kernels::moe_topk::reference::{self as topk, Logits};
use gpu_kernels::token_pack::reference as token_pack;
use gpu_kernels::token_rows::RowFormat;
use gpu_kernels::token_unpack::SCALE_BLOCK;
use gpu_kernels::token_unpack::reference as token_unpack;
use half::bf16;

fn choose<T: GatingElement>(
    stream: &Stream,
    case: &topk::Case,
    (gating, bias): (&[T], &[f32]),
    variant: TopkVariant,
) -> (Vec<i32>, Vec<f32>) {
    let num_elements = case.shape.topk_elements();
    let gating_output = Buffer::from_slice(stream, gating).unwrap();
    let bias = Buffer::from_slice(stream, bias).unwrap();
    let topk_ids = Buffer::from_slice(stream, &vec![-1; num_elements]).unwrap();
    let topk_weights = Buffer::from_slice(stream, &vec![f32::NAN; num_elements]).unwrap();
    let args = TopkArgs {
        gating_output: &gating_output,
        bias: case.shape.has_bias.then_some(&bias),
        topk_ids: &topk_ids,
        topk_weights: &topk_weights,
    };
    Topk::new(case.shape).unwrap().run(stream, variant, &args).unwrap();
    (stream.download(&topk_ids).unwrap(), stream.download(&topk_weights).unwrap())
}

fn check_choices(device: &Device, cases: &[topk::Case]) {
    let stream = device.new_stream().unwrap();
    for (case, logits) in cases.iter().flat_map(|case| Logits::ALL.map(|logits| (case, logits))) {
        let seed = fastrand::u64(..);
        let (gating, bias) = case.inputs(logits, seed);
        let halves: Vec<bf16> = gating.iter().map(|&logit| bf16::from_f32(logit)).collect();
        let rounded: Vec<f32> = halves.iter().map(|logit| logit.to_f32()).collect();
        for variant in TopkVariant::ALL {
            let of_f32 = choose(&stream, case, (&gating, &bias), variant);
            let of_bf16 = choose(&stream, case, (&halves, &bias), variant);
            for (gating, (ids, weights)) in [(&gating, of_f32), (&rounded, of_bf16)] {
                if let Err(off) = topk::check(&case.shape, gating, &bias, &ids, &weights) {
                    panic!("{}, {logits:?}, {variant:?}, seed {seed}: {off}", case.name);
                }
            }
        }
    }
}

/// The whole permutation, and its device memory.
fn sort(
    device: &Device,
    stream: &Stream,
    shape: PermuteShape,
    topk_ids: &[i32],
    variant: PermuteVariant,
) -> (permute::Permutation, Permutation) {
    let topk_ids = Buffer::from_slice(stream, topk_ids).unwrap();
    let permutation = Permutation::new(device, shape).unwrap();
    stream.fill(permutation.row_pairs(), -7).unwrap();
    let permute = Permute::new(device, shape).unwrap();
    // The second run finds the workspace as the first one left it.
    for _ in 0..2 {
        permute.run(stream, variant, &topk_ids, &permutation).unwrap();
    }
    let expert_offsets = stream.download(permutation.expert_offsets()).unwrap();
    let mut row_pairs = stream.download(permutation.row_pairs()).unwrap();
    let beyond = row_pairs.split_off(*expert_offsets.last().unwrap() as usize);
    assert!(beyond.iter().all(|&pair| pair == -7), "rows beyond the end were written");
    let sorted = permute::Permutation {
        expert_counts: stream.download(permutation.expert_counts()).unwrap(),
        pair_rows: stream.download(permutation.pair_rows()).unwrap(),
        expert_offsets,
        row_pairs,
    };
    (sorted, permutation)
}

fn check_permutations(device: &Device, cases: &[permute::Case]) {
    let stream = device.new_stream().unwrap();
    for case in cases {
        let seed = fastrand::u64(..);
        let topk_ids = case.topk_ids(seed);
        let expected = permute::permute(&case.shape, &topk_ids);
        for variant in PermuteVariant::ALL {
            let (got, _) = sort(device, &stream, case.shape, &topk_ids, variant);
            assert!(got == expected, "{}, {variant:?}, seed {seed}", case.name);
        }
    }
}

/// Rows and scales after a pack of `x`, each with what it should be.
fn check_pack<T: RowElement + Default + PartialEq>(
    device: &Device,
    case: &token_pack::Case,
    draw: impl Fn(&mut fastrand::Rng) -> T,
    untouched: T,
) {
    let (stream, seed) = (device.new_stream().unwrap(), fastrand::u64(..));
    let (mut rng, sizes) = (fastrand::Rng::with_seed(seed), case.shape.rows);
    let topk_ids = case.permute.topk_ids(seed);
    let (expected, permutation) =
        sort(device, &stream, case.permute.shape, &topk_ids, PermuteVariant::Grid);
    let x: Vec<T> = (0..sizes.x_elements()).map(|_| draw(&mut rng)).collect();
    let scales: Vec<f32> = (0..sizes.x_scales()).map(|_| rng.f32()).collect();
    let x_buffer = Buffer::from_slice(&stream, &x).unwrap();
    let x_scales = Buffer::from_slice(&stream, &scales).unwrap();
    let has_scales = sizes.format == RowFormat::Fp8;
    for variant in PackVariant::ALL {
        let rows = Buffer::from_slice(&stream, &vec![untouched; sizes.rows_elements()]).unwrap();
        let row_scales = Buffer::from_slice(&stream, &vec![-1.0; sizes.rows_scales()]).unwrap();
        let args = PackArgs {
            x: &x_buffer,
            x_scales: has_scales.then_some(&x_scales),
            permutation: &permutation,
            rows: &rows,
            row_scales: has_scales.then_some(&row_scales),
        };
        Pack::new(case.shape).unwrap().run(&stream, variant, &args).unwrap();
        let told = format!("{}, {variant:?}, seed {seed}", case.name);
        let want = token_pack::pack(&case.shape, &expected, &x, sizes.hidden as usize);
        let want: Vec<T> = want.into_iter().map(|element| element.unwrap_or(untouched)).collect();
        assert!(stream.download(&rows).unwrap() == want, "{told}");
        let want = token_pack::pack(&case.shape, &expected, &scales, sizes.num_scales() as usize);
        let want: Vec<f32> = want.into_iter().map(|scale| scale.unwrap_or(-1.0)).collect();
        assert!(stream.download(&row_scales).unwrap() == want, "scales of {told}");
    }
}

fn check_packs(device: &Device, cases: &[token_pack::Case]) {
    for case in cases {
        match case.shape.rows.format {
            RowFormat::Bf16 => {
                let draw = |rng: &mut fastrand::Rng| bf16::from_f32(rng.f32());
                check_pack(device, case, draw, bf16::from_f32(-3.0));
            }
            RowFormat::Fp8 => {
                let draw = |rng: &mut fastrand::Rng| E4m3::from_bits(rng.u8(..0x7f));
                check_pack(device, case, draw, E4m3::from_bits(0xff));
            }
        }
    }
}

/// Sums of rows whose elements are `round`ed numbers.
fn check_unpack<T: UnpackElement>(
    device: &Device,
    case: &token_unpack::Case,
    round: impl Fn(f32) -> T,
    to_f64: impl Fn(T) -> f64,
) {
    let (stream, shape, seed) = (device.new_stream().unwrap(), case.shape, fastrand::u64(..));
    let (mut rng, sizes) = (fastrand::Rng::with_seed(seed), shape.rows);
    let permutation = case.pack.permutation(seed);
    let rows: Vec<T> = (0..sizes.rows_elements()).map(|_| round(2.0 * rng.f32() - 1.0)).collect();
    let scales: Vec<f32> = (0..sizes.rows_scales()).map(|_| rng.f32()).collect();
    let topk_weights: Vec<f32> = (0..sizes.num_pairs()).map(|_| rng.f32()).collect();
    let addend: Vec<bf16> =
        (0..shape.addend_elements()).map(|_| bf16::from_f32(2.0 * rng.f32() - 1.0)).collect();
    let rows_buffer = Buffer::from_slice(&stream, &rows).unwrap();
    let scales_buffer = Buffer::from_slice(&stream, &scales).unwrap();
    let addend_buffer = Buffer::from_slice(&stream, &addend).unwrap();
    let pair_rows = Buffer::from_slice(&stream, &permutation.pair_rows).unwrap();
    let weights = Buffer::from_slice(&stream, &topk_weights).unwrap();
    for variant in UnpackVariant::ALL {
        let out = Buffer::from_slice(&stream, &vec![bf16::NAN; sizes.x_elements()]).unwrap();
        let args = UnpackArgs {
            rows: &rows_buffer,
            row_scales: (sizes.format == RowFormat::Fp8).then_some(&scales_buffer),
            pair_rows: &pair_rows,
            topk_weights: &weights,
            addend: shape.has_addend.then_some(&addend_buffer),
            out: &out,
        };
        Unpack::new(shape).unwrap().run(&stream, variant, &args).unwrap();
        let f64s = |halves: &[bf16]| halves.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
        let element = |row: usize, i: usize| {
            let first_scale = row * sizes.num_scales() as usize;
            let scale = scales.get(first_scale + i / SCALE_BLOCK as usize).copied();
            to_f64(rows[row * sizes.hidden as usize + i]) * f64::from(scale.unwrap_or(1.0))
        };
        let (addend, out) = (f64s(&addend), f64s(&stream.download(&out).unwrap()));
        let verdict = token_unpack::check(
            &shape,
            &permutation.pair_rows,
            &topk_weights,
            element,
            &addend,
            &out,
        );
        if let Err(off) = verdict {
            panic!("{}, {variant:?}, seed {seed}: {off}", case.pack.name);
        }
    }
}

fn check_unpacks(device: &Device, cases: &[token_unpack::Case]) {
    for case in cases {
        match case.shape.rows.format {
            RowFormat::Bf16 => check_unpack(device, case, bf16::from_f32, bf16::to_f64),
            RowFormat::Fp8 => {
                let round = |value| E4m3::from_f32(100.0 * value);
                check_unpack(device, case, round, |element| element.to_f32().into());
            }
        }
    }
}

/// Batches as large as real ones, which the CPU executor would take minutes for.
fn large_choices() -> Vec<topk::Case> {
    let grouped = TopkShape {
        has_bias: true,
        group_limit: Some(GroupLimit { num_groups: 10, num_topk_groups: 3 }),
        ..TopkShape::softmax(1000, 480, 12)
    };
    vec![
        topk::Case { name: "DeepSeek-V3, many tokens", shape: TopkShape::deepseek_v3(4099) },
        topk::Case { name: "60 experts, many tokens", shape: TopkShape::softmax(4097, 60, 4) },
        topk::Case { name: "10 groups of 48, many tokens", shape: grouped },
    ]
}

fn large_permutations() -> Vec<permute::Case> {
    let case = |name, shape: PermuteShape, routing| permute::Case {
        name,
        shape,
        num_experts: shape.end_expert + 7,
        routing,
    };
    let sizes = PermuteShape::new;
    use permute::Routing::{OneExpert, Skewed, Uniform};
    vec![
        case("4096 tokens", sizes(4096, 8, 256), Uniform),
        case("4096 tokens, skewed", sizes(4096, 8, 256), Skewed),
        case("4096 tokens to one expert", sizes(4096, 8, 256), OneExpert),
        case("32001 tokens", sizes(32001, 8, 512), Uniform),
        case(
            "65536 tokens in tiles, one rank of four",
            PermuteShape {
                first_expert: 64,
                row_alignment: 128,
                end_expert: 128,
                ..sizes(65_536, 8, 0)
            },
            Uniform,
        ),
    ]
}

fn large_packs() -> Vec<token_pack::Case> {
    use permute::Routing::{Skewed, Uniform};
    let case = token_pack::Case::new;
    let tiles = PermuteShape { row_alignment: 128, ..PermuteShape::new(700, 8, 60) };
    vec![
        case("V3", PermuteShape::new(300, 8, 256), Uniform, (7168, RowFormat::Bf16), 0),
        case("V3 in fp8", PermuteShape::new(300, 8, 256), Skewed, (7168, RowFormat::Fp8), 99),
        case("tiles of 128", tiles, Skewed, (2048, RowFormat::Bf16), 0),
    ]
}

fn unpacks_of(packs: Vec<token_pack::Case>) -> Vec<token_unpack::Case> {
    let unpack = |pack: token_pack::Case| {
        let rows = pack.shape.rows;
        let shape = gpu_kernels::token_unpack::contract::UnpackShape { rows, has_addend: true };
        token_unpack::Case { shape, pack }
    };
    packs.into_iter().map(unpack).collect()
}

#[test]
fn routing_is_the_oracle_on_the_cpu() {
    let device = Device::cpu();
    check_choices(&device, &topk::cases());
    check_permutations(&device, &permute::cases());
    check_packs(&device, &token_pack::cases());
    check_unpacks(&device, &token_unpack::cases(RowFormat::Bf16));
    check_unpacks(&device, &token_unpack::cases(RowFormat::Fp8));
}

#[test]
#[ignore = "needs 1 GPU"]
fn choices_are_the_oracle_on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    check_choices(&device, &topk::cases());
    check_choices(&device, &large_choices());
}

#[test]
#[ignore = "needs 1 GPU"]
fn permutations_are_the_reference_on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    check_permutations(&device, &permute::cases());
    check_permutations(&device, &large_permutations());
}

#[test]
#[ignore = "needs 1 GPU"]
fn packs_and_sums_are_right_on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    check_packs(&device, &token_pack::cases());
    check_packs(&device, &large_packs());
    check_unpacks(&device, &token_unpack::cases(RowFormat::Bf16));
    check_unpacks(&device, &token_unpack::cases(RowFormat::Fp8));
    check_unpacks(&device, &unpacks_of(large_packs()));
}

#[test]
fn wrong_arguments_are_refused_before_any_launch() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    let shape = TopkShape::softmax(2, 8, 2);
    let topk = Topk::new(shape).unwrap();
    let (logits, ids) = (device.alloc::<f32>(16).unwrap(), device.alloc(4).unwrap());
    let (bias, weights) = (device.alloc(8).unwrap(), device.alloc(3).unwrap());
    let mut args = TopkArgs {
        gating_output: &logits,
        bias: Some(&bias),
        topk_ids: &ids,
        topk_weights: &weights,
    };
    let refused =
        |args: &TopkArgs<'_, f32>| topk.run(&stream, TopkVariant::Warp, args).unwrap_err();
    insta::assert_snapshot!(refused(&args), @"`bias` must be 0 elements long, got 8");
    args.bias = None;
    insta::assert_snapshot!(refused(&args), @"`topk_weights` must be 4 elements long, got 3");

    let sizes = PermuteShape::new(2, 2, 8);
    let permute = Permute::new(&device, sizes).unwrap();
    let other = Permutation::new(&device, PermuteShape::new(2, 2, 9)).unwrap();
    let error = permute.run(&stream, PermuteVariant::Grid, &ids, &other).unwrap_err();
    insta::assert_snapshot!(error, @"`permutation` must be of the same shape, got another");

    let case = &token_pack::cases()[1];
    let pack = Pack::new(case.shape).unwrap();
    let rows = case.shape.rows;
    let x = device.alloc::<bf16>(rows.x_elements()).unwrap();
    let packed = device.alloc::<bf16>(rows.rows_elements()).unwrap();
    let args =
        PackArgs { x: &x, x_scales: None, permutation: &other, rows: &packed, row_scales: None };
    let error = pack.run(&stream, PackVariant::Fanout, &args).unwrap_err();
    insta::assert_snapshot!(error, @"`permutation` must be of the tokens, slots, experts and rows of the pack, got other");
}
