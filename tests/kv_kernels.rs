//! Copying, appending to and filling pages through the launchers, on the CPU device and on GPUs,
//! against the rooms' references.
//!
//! Every element of every pool is compared; what no kernel should write keeps its poison. Inputs
//! are fresh in each run, and their seed stands in the failure's message.

use farpage::device::{Buffer, Device, Stream};
use farpage::kernels::kv_append::{
    Append, AppendArgs, AppendElement, QkNorms, QkvArgs, RotateQArgs,
};
use farpage::kernels::kv_page_copy::{CopyVariant, PageCopy};
use farpage::kernels::kv_page_pattern::{PatternChecksum, PatternFill};
use farpage::kv::memory::KvMemory;
use gpu_kernels::kv_append::contract::RopeStyle;
use gpu_kernels::kv_append::reference as append_reference;
use gpu_kernels::kv_layout::{KvElement, KvLayout, KvPagePlace, KvPageShape};
use gpu_kernels::kv_page_copy::KvPageMove;
use gpu_kernels::kv_page_copy::reference as copy_reference;
use gpu_kernels::kv_page_pattern::contract::PatternShape;
use gpu_kernels::kv_page_pattern::pattern::{ElementFormat, page_checksum, token_identity};
use gpu_kernels::kv_page_pattern::reference as pattern_reference;
use gpu_kernels::paged_attention::contract::BatchMaxima;
use half::{bf16, f16};

/// A bit pattern that no kernel writes.
const POISON: u16 = u16::MAX;

/// Pools of `pool_pages` pages: the last in pinned host memory, those before it on one device each,
/// taken in turn.
fn memory_of(
    stream: &Stream,
    devices: &[Device],
    shape: KvPageShape,
    pool_pages: &[usize],
) -> KvMemory {
    let (device_pages, host_pages) = match pool_pages {
        [only] => (&[*only][..], 1),
        [device_pages @ .., host_pages] => (device_pages, *host_pages),
        [] => panic!("a case has a location"),
    };
    let devices: Vec<Device> = devices.iter().cycle().take(device_pages.len()).cloned().collect();
    KvMemory::new(stream, &devices, shape, device_pages, host_pages).unwrap()
}

fn poisoned_memory(
    stream: &Stream,
    devices: &[Device],
    shape: KvPageShape,
    pool_pages: &[usize],
) -> KvMemory {
    let memory = memory_of(stream, devices, shape, pool_pages);
    for (location, &pages) in memory.pool_pages().iter().enumerate() {
        let poison = vec![POISON; pages * shape.page_elements()];
        stream.upload(&poison, memory.pages(location, 0, pages)).unwrap();
    }
    memory
}

/// What each of the first `num_pools` pools holds, `None` for poison.
fn written(stream: &Stream, memory: &KvMemory, num_pools: usize) -> Vec<Vec<Option<u16>>> {
    let pools = memory.pool_pages()[..num_pools].iter().enumerate();
    pools
        .map(|(location, &pages)| {
            let elements = stream.download(memory.pages(location, 0, pages)).unwrap();
            elements.into_iter().map(|bits| (bits != POISON).then_some(bits)).collect()
        })
        .collect()
}

/// Some shape whose pages have as many bytes.
fn shape_of_bytes(page_bytes: u32) -> KvPageShape {
    let num_kv_heads = page_bytes / 32;
    KvPageShape {
        page_size: 1,
        num_kv_heads,
        head_dim: 8,
        layout: KvLayout::Nhd,
        element: KvElement::Half,
    }
}

fn check_copies(stream: &Stream, devices: &[Device], cases: &[copy_reference::Case]) {
    let variants = [
        CopyVariant::Baseline,
        CopyVariant::alone(stream.device()),
        CopyVariant::overlapping(stream.device()),
    ];
    for case in cases {
        let page_bytes = case.page_bytes as usize;
        let shape = shape_of_bytes(case.page_bytes);
        assert_eq!(shape.page_bytes(), page_bytes);
        let memory = memory_of(stream, devices, shape, &case.pool_pages);
        let copy = PageCopy::upload(stream, &case.moves, &memory).unwrap();
        for variant in variants {
            let seed = fastrand::u64(..);
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut pools: Vec<Vec<u8>> =
                case.pool_pages.iter().map(|pages| vec![0; pages * page_bytes]).collect();
            for (location, pool) in pools.iter_mut().enumerate() {
                rng.fill(pool);
                let pages = memory.pages(location, 0, case.pool_pages[location]);
                stream.upload(bytemuck::cast_slice(pool), pages).unwrap();
            }
            copy.run(stream, variant, &memory).unwrap();
            copy_reference::copy_pages(&mut pools, page_bytes, &case.moves);
            for (location, want) in pools.iter().enumerate() {
                let pages = memory.pages(location, 0, case.pool_pages[location]);
                let got = stream.download(pages).unwrap();
                let equal = bytemuck::cast_slice::<u16, u8>(&got) == want;
                assert!(equal, "{}, {variant:?}, seed {seed}: location {location}", case.name);
            }
        }
    }
}

/// As much as real migrations move: both ways between the first two locations at once.
fn large_copies() -> Vec<copy_reference::Case> {
    let case = |name, page_bytes: u32, num_pages: u32| copy_reference::Case {
        name,
        page_bytes,
        pool_pages: vec![2 * num_pages as usize, 2 * num_pages as usize, 1],
        moves: (0..2 * num_pages)
            .map(|i| KvPageMove {
                src: KvPagePlace { rank: i % 2, index: i / 2 },
                dst: KvPagePlace { rank: 1 - i % 2, index: num_pages + i / 2 * 7919 % num_pages },
            })
            .collect(),
    };
    vec![case("pages of 64 KiB", 64 << 10, 1009), case("pages of 20 KiB", 20 << 10, 2003)]
}

/// Checksums of pages whose tokens have the identities of owners 0, 1, 2 …
fn expected_checksums(shape: PatternShape, num_valid_tokens: &[u32]) -> Vec<u64> {
    (0..)
        .zip(num_valid_tokens)
        .map(|(owner, &num_valid)| {
            let tokens = 0..u64::from(num_valid);
            let identities: Vec<u64> = tokens.map(|token| token_identity(owner, token)).collect();
            page_checksum(&identities, &shape.page, shape.format)
        })
        .collect()
}

fn check_patterns(stream: &Stream, devices: &[Device]) {
    for case in pattern_reference::cases() {
        let pattern_reference::Case { name, shape, pool_pages, pages, num_valid_tokens } = &case;
        let memory = poisoned_memory(stream, devices, shape.page, pool_pages);
        let (places, identities) = case.tokens();
        let fill =
            PatternFill::upload(stream, shape.format, &identities, &places, &memory).unwrap();
        fill.run(stream, &memory).unwrap();

        let page_elements = shape.page.page_elements();
        let mut expected: Vec<Vec<Option<f32>>> =
            pool_pages.iter().map(|pages| vec![None; pages * page_elements]).collect();
        for (owner, (page, &num_valid)) in (0..).zip(pages.iter().zip(num_valid_tokens)) {
            let identity = |token| (token, token_identity(owner, u64::from(token)));
            let tokens: Vec<(u32, u64)> = (0..num_valid).map(identity).collect();
            let start = page.index as usize * page_elements;
            expected[page.rank as usize][start..start + page_elements]
                .copy_from_slice(&pattern_reference::page_elements(shape, &tokens));
        }
        for (got, want) in written(stream, &memory, pool_pages.len()).iter().zip(&expected) {
            let got = got.iter().map(|bits| bits.map(|bits| shape.format.to_f32(bits)));
            assert!(got.eq(want.iter().copied()), "{name}");
        }

        let checksum =
            PatternChecksum::upload(stream, shape.format, pages, num_valid_tokens, &memory)
                .unwrap();
        let sums = checksum.run(stream, &memory).unwrap();
        assert_eq!(sums, expected_checksums(*shape, num_valid_tokens), "{name}");
    }
}

/// A page that was not copied, and one that was taken from its neighbour, show in the checksums.
fn check_lost_and_misplaced_pages_show(stream: &Stream, devices: &[Device]) {
    let page = KvPageShape {
        page_size: 16,
        num_kv_heads: 4,
        head_dim: 64,
        layout: KvLayout::Nhd,
        element: KvElement::Half,
    };
    let shape = PatternShape { page, format: ElementFormat::BF16 };
    let place = |rank, index| KvPagePlace { rank, index };
    let case = pattern_reference::Case {
        name: "pages to move".into(),
        shape,
        pool_pages: vec![8, 8, 1],
        pages: (0..8).map(|index| place(0, index)).collect(),
        num_valid_tokens: vec![16; 8],
    };
    let (places, identities) = case.tokens();
    let moved: Vec<KvPagePlace> = (0..8).map(|index| place(1, 7 - index)).collect();
    let moves: Vec<KvPageMove> =
        case.pages.iter().zip(&moved).map(|(&src, &dst)| KvPageMove { src, dst }).collect();

    let wrong_pages = |moves: &[KvPageMove]| -> Vec<usize> {
        let memory = poisoned_memory(stream, devices, page, &case.pool_pages);
        let fill =
            PatternFill::upload(stream, shape.format, &identities, &places, &memory).unwrap();
        fill.run(stream, &memory).unwrap();
        let copy = PageCopy::upload(stream, moves, &memory).unwrap();
        let variant = CopyVariant::alone(stream.device());
        copy.run(stream, variant, &memory).unwrap();
        let checksum =
            PatternChecksum::upload(stream, shape.format, &moved, &case.num_valid_tokens, &memory)
                .unwrap();
        let sums = checksum.run(stream, &memory).unwrap();
        let expected = expected_checksums(shape, &case.num_valid_tokens);
        (0..8).filter(|&i| sums[i] != expected[i]).collect()
    };
    assert_eq!(wrong_pages(&moves), [0; 0]);
    assert_eq!(wrong_pages(&moves[1..]), [0], "a dropped move");
    let mut off_by_one = moves.clone();
    off_by_one[3].src.index += 1;
    assert_eq!(wrong_pages(&off_by_one), [3], "an off-by-one page index");
}

fn check_appends<T: Half>(stream: &Stream, devices: &[Device]) {
    for case in append_reference::cases() {
        let seed = fastrand::u64(..);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut random =
            |len| -> Vec<T> { (0..len).map(|_| T::round(2.0 * rng.f32() - 1.0)).collect() };
        let append_reference::Case { name, shape, num_qo_heads, table, .. } = &case;
        let what = format!("{name}, seed {seed}");
        let (k, v) = (random(shape.kv_elements()), random(shape.kv_elements()));
        let q = random(shape.q_elements(*num_qo_heads));
        let num_max_positions = shape.rope.map_or(0, |rope| rope.num_max_positions);
        let cos_sin = append_reference::cos_sin_cache(num_max_positions, shape.page.head_dim, 1e4);

        let lists = case.lists();
        let memory = poisoned_memory(stream, devices, shape.page, &table.pages_of);
        let append = Append::upload(stream, *shape, &lists, &memory).unwrap();
        let device_k = Buffer::from_slice(stream, &k).unwrap();
        let device_v = Buffer::from_slice(stream, &v).unwrap();
        let cos_sin_cache = Buffer::from_slice(stream, &cos_sin).unwrap();
        let args = AppendArgs {
            memory: &memory,
            k: &device_k,
            v: &device_v,
            cos_sin_cache: shape.rope.map(|_| &cos_sin_cache),
        };
        append.run(stream, &args).unwrap();

        let as_f32 =
            |values: &[T]| -> Vec<f32> { values.iter().map(|&x| x.value() as f32).collect() };
        let (k, v) = (as_f32(&k), as_f32(&v));
        let expected =
            append_reference::append_tokens(shape, &lists, &table.pages_of, &k, &v, &cos_sin);
        let tolerance = if shape.rope.is_some() { T::ROUNDING } else { 0.0 };
        for (got, want) in written(stream, &memory, expected.len()).iter().zip(&expected) {
            let got =
                got.iter().map(|bits| bits.map(|bits| bytemuck::cast::<u16, T>(bits).value()));
            require_close(got, want, tolerance).unwrap_or_else(|error| panic!("{what}: {error}"));
        }

        if shape.rope.is_some() {
            let want = append_reference::rotate_tokens(shape, &lists, &as_f32(&q), &cos_sin);
            let want: Vec<Option<f64>> = want.into_iter().map(Some).collect();
            let q = Buffer::from_slice(stream, &q).unwrap();
            let poison = vec![bytemuck::cast::<u16, T>(POISON); q.len()];
            let apart = Buffer::from_slice(stream, &poison).unwrap();
            for q_out in [&apart, &q] {
                let args = RotateQArgs { q: &q, q_out, cos_sin_cache: &cos_sin_cache };
                append.rotate_q(stream, *num_qo_heads, &args).unwrap();
                let got = stream.download(q_out).unwrap();
                require_close(got.iter().map(|x| Some(x.value())), &want, T::ROUNDING)
                    .unwrap_or_else(|error| panic!("{what}, q: {error}"));
            }
        }
    }
}

/// The element types of the kernels.
trait Half: AppendElement {
    /// Half a unit in the last place, relative.
    const ROUNDING: f64;

    fn round(value: f32) -> Self;

    fn value(self) -> f64;
}

impl Half for bf16 {
    const ROUNDING: f64 = 1.0 / 256.0;

    fn round(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn value(self) -> f64 {
        self.into()
    }
}

impl Half for f16 {
    const ROUNDING: f64 = 1.0 / 2048.0;

    fn round(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn value(self) -> f64 {
        self.into()
    }
}

/// Refuses values that are not as many, not there where they should be, NaN, or further off than
/// `tolerance` allows; 0 allows nothing.
fn require_close(
    got: impl Iterator<Item = Option<f64>>,
    want: &[Option<f64>],
    tolerance: f64,
) -> Result<(), String> {
    let got: Vec<Option<f64>> = got.collect();
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.into_iter().zip(want).enumerate() {
        let close = match (got, *want) {
            (Some(got), Some(want)) if tolerance > 0.0 => {
                (got - want).abs() <= tolerance * want.abs() + 1e-6
            }
            (got, want) => got == want,
        };
        if !close {
            return Err(format!("element {i} is {got:?}, the reference has {want:?}"));
        }
    }
    Ok(())
}

/// `q_out` and the pools after `append` of a problem's joint rows.
fn run_qkv(
    stream: &Stream,
    append: &Append,
    problem: &append_reference::QkvProblem,
    memory: &KvMemory,
) -> (Vec<bf16>, Vec<Vec<Option<u16>>>) {
    let upload = |elements: &[bf16]| Buffer::from_slice(stream, elements).unwrap();
    let [q, k] = problem.norms.each_ref().map(|norm| upload(norm));
    let (qkv, qkv_bias) = (upload(&problem.qkv), upload(&problem.qkv_bias));
    let cos_sin_cache = Buffer::from_slice(stream, &problem.cos_sin_cache).unwrap();
    let num_qo_heads = problem.shape.num_qo_heads;
    let q_out = upload(&vec![bf16::NAN; problem.shape.append.q_elements(num_qo_heads)]);
    let args = QkvArgs {
        memory,
        qkv: &qkv,
        qkv_bias: problem.shape.has_bias.then_some(&qkv_bias),
        norms: problem.shape.norm_eps.map(|eps| QkNorms { q: &q, k: &k, eps }),
        cos_sin_cache: problem.shape.append.rope.map(|_| &cos_sin_cache),
        q_out: &q_out,
    };
    append.run_qkv(stream, num_qo_heads, args).unwrap();
    let num_pools = problem.case.table.pages_of.len();
    (stream.download(&q_out).unwrap(), written(stream, memory, num_pools))
}

fn check_qkv(
    problem: &append_reference::QkvProblem,
    (q_out, pools): (Vec<bf16>, Vec<Vec<Option<u16>>>),
) {
    let (want_q, want_pools) = problem.expected();
    let name = &problem.case.name;
    for (i, (got, want)) in q_out.iter().zip(&want_q).enumerate() {
        assert!(problem.is_close(got.to_f64(), *want), "{name}: q_out[{i}] is {got}, not {want}");
    }
    for (location, (got, want)) in pools.iter().zip(&want_pools).enumerate() {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let got = got.map(|bits| bf16::from_bits(bits).to_f64());
            let is_right = match (got, want) {
                (Some(got), Some(want)) => problem.is_close(got, *want),
                (got, want) => got.is_none() && want.is_none(),
            };
            assert!(is_right, "{name}: {location}[{i}] is {got:?}, not {want:?}");
        }
    }
}

fn check_joint_rows(stream: &Stream, devices: &[Device]) {
    for problem in append_reference::qkv_problems() {
        let (shape, lists) = (problem.shape.append, problem.case.lists());
        let memory = poisoned_memory(stream, devices, shape.page, &problem.case.table.pages_of);
        let append = Append::upload(stream, shape, &lists, &memory).unwrap();
        check_qkv(&problem, run_qkv(stream, &append, &problem, &memory));
    }
}

/// An append made for three requests takes one, then three: what it leaves is theirs alone.
fn check_replayed_appends(stream: &Stream, devices: &[Device]) {
    use append_reference::{Case, QkvProblem};
    let page = KvPageShape {
        page_size: 16,
        num_kv_heads: 2,
        head_dim: 64,
        layout: KvLayout::Nhd,
        element: KvElement::Half,
    };
    let style = Some(RopeStyle::HalfSplit);
    let all = Case::new("three of three", page, style, 1, &[(40, 1), (15, 1), (16, 1)]);
    let one = Case::new("one of three", page, style, 1, &[(40, 1)]);
    let maxima = BatchMaxima { num_max_requests: 3, num_max_pages: 6 };
    let memory = poisoned_memory(stream, devices, page, &all.table.pages_of);
    let mut append = Append::for_replay(stream, all.shape.rope, maxima, &memory).unwrap();
    let problem = QkvProblem::new(all.clone(), true, Some(1e-6), fastrand::u64(..));
    append.update(stream, &one.table.table(), &memory).unwrap();
    let (_, pools) = run_qkv(stream, &append, &problem, &memory);
    assert_eq!(pools[0].iter().flatten().count(), 2 * 2 * 64, "K and V of one token");
    let poison = vec![POISON; memory.pool_pages()[0] * page.page_elements()];
    stream.upload(&poison, memory.pages(0, 0, memory.pool_pages()[0])).unwrap();
    append.update(stream, &all.table.table(), &memory).unwrap();
    check_qkv(&problem, run_qkv(stream, &append, &problem, &memory));
}

fn check_all(devices: &[Device]) {
    let stream = devices[0].new_stream().unwrap();
    check_copies(&stream, devices, &copy_reference::cases());
    check_patterns(&stream, devices);
    check_lost_and_misplaced_pages_show(&stream, devices);
    check_appends::<bf16>(&stream, devices);
    check_appends::<f16>(&stream, devices);
    check_joint_rows(&stream, devices);
    check_replayed_appends(&stream, devices);
}

#[test]
fn kernels_equal_their_references_on_the_cpu() {
    check_all(&[Device::cpu()]);
}

#[test]
#[ignore = "needs 1 GPU"]
fn kernels_equal_their_references_on_a_gpu() {
    let devices = [Device::cuda(0).unwrap()];
    check_all(&devices);
    check_copies(&devices[0].new_stream().unwrap(), &devices, &large_copies());
}

#[test]
#[ignore = "needs 2 GPUs"]
fn kernels_reach_the_pages_of_a_peer() {
    let (first, second) = (Device::cuda(0).unwrap(), Device::cuda(1).unwrap());
    for devices in [[first.clone(), second.clone()], [second, first]] {
        check_all(&devices);
        check_copies(&devices[0].new_stream().unwrap(), &devices, &large_copies());
    }
}

#[test]
#[ignore = "needs 1 GPU"]
fn pages_beyond_4_gib_are_found() {
    let device = Device::cuda(0).unwrap();
    let stream = device.new_stream().unwrap();
    let page = KvPageShape {
        page_size: 64,
        num_kv_heads: 8,
        head_dim: 128,
        layout: KvLayout::Hnd,
        element: KvElement::Half,
    };
    let shape = PatternShape { page, format: ElementFormat::BF16 };
    let num_pages = (9 << 30) / page.page_bytes();
    let memory = memory_of(&stream, std::slice::from_ref(&device), page, &[num_pages]);
    let place = |index| KvPagePlace { rank: 0, index };
    let last = num_pages as u32 - 1;
    let case = pattern_reference::Case {
        name: "far pages".into(),
        shape,
        pool_pages: vec![num_pages],
        pages: vec![place(last), place(last / 2 + 1)],
        num_valid_tokens: vec![64, 64],
    };
    let (places, identities) = case.tokens();
    let fill = PatternFill::upload(&stream, shape.format, &identities, &places, &memory).unwrap();
    for variant in [CopyVariant::Baseline, CopyVariant::alone(&device)] {
        stream.fill_bytes(memory.pages(0, 0, num_pages), 0xff).unwrap();
        fill.run(&stream, &memory).unwrap();
        let moved = [place(last - 1), place(0)];
        let moves = [0, 1].map(|i| KvPageMove { src: case.pages[i], dst: moved[i] });
        let copy = PageCopy::upload(&stream, &moves, &memory).unwrap();
        copy.run(&stream, variant, &memory).unwrap();
        let checksum =
            PatternChecksum::upload(&stream, shape.format, &moved, &[64, 64], &memory).unwrap();
        let sums = checksum.run(&stream, &memory).unwrap();
        assert_eq!(sums, expected_checksums(shape, &[64, 64]), "{variant:?}");
    }
}

#[test]
fn wrong_copies_are_refused_before_any_launch() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    let shape = shape_of_bytes(64);
    let memory = poisoned_memory(&stream, std::slice::from_ref(&device), shape, &[2, 3]);
    let place = |index| KvPagePlace { rank: 0, index };
    let moves = [KvPageMove { src: place(0), dst: place(1) }];
    let refused =
        |moves: &[KvPageMove]| PageCopy::upload(&stream, moves, &memory).unwrap_err().to_string();
    insta::assert_snapshot!(refused(&[]), @"`num_moves` must be at least 1, got 0");
    let beyond = [KvPageMove { src: place(2), dst: place(1) }];
    insta::assert_snapshot!(refused(&beyond), @"`moves[0].src` must be one of the 2 pages of location 0, got page 2");
    let onto_itself = [KvPageMove { src: place(1), dst: place(1) }];
    insta::assert_snapshot!(refused(&onto_itself), @"`moves[0].src` must be a page that no move writes, got page 1 of location 0, which moves[0] writes");

    let copy = PageCopy::upload(&stream, &moves, &memory).unwrap();
    let nine = CopyVariant::Bulk { num_blocks: 9 };
    let error = copy.run(&stream, nine, &memory).unwrap_err();
    insta::assert_snapshot!(error, @"`num_blocks` must be 1 to 8 (overlap) or from 17 on (132 when alone), got 9");
    let smaller = poisoned_memory(&stream, std::slice::from_ref(&device), shape, &[1, 3]);
    let error = copy.run(&stream, CopyVariant::Baseline, &smaller).unwrap_err();
    insta::assert_snapshot!(error, @"`memory` must be what the moves were checked against, got other");
    for pool in written(&stream, &memory, 2) {
        assert!(pool.iter().all(Option::is_none), "a refused copy wrote");
    }
}

#[test]
fn wrong_appends_are_refused_before_any_launch() {
    let device = Device::cpu();
    let devices = std::slice::from_ref(&device);
    let stream = device.new_stream().unwrap();
    let is_rotated = |case: &append_reference::Case| case.shape.rope.is_some();
    let case = append_reference::cases().into_iter().find(is_rotated).unwrap();
    let (shape, lists) = (case.shape, case.lists());
    let memory = poisoned_memory(&stream, devices, shape.page, &case.table.pages_of);
    let append = Append::upload(&stream, shape, &lists, &memory).unwrap();

    let other_pages = KvPageShape { page_size: 2, ..shape.page };
    let other_memory = poisoned_memory(&stream, devices, other_pages, &case.table.pages_of);
    let error = Append::upload(&stream, shape, &lists, &other_memory).unwrap_err();
    insta::assert_snapshot!(error, @"`memory` must be of pages of the shape, got of others");

    let k = Buffer::from_slice(&stream, &vec![bf16::ZERO; shape.kv_elements()]).unwrap();
    let short = Buffer::from_slice(&stream, &[bf16::ZERO]).unwrap();
    let cos_sin_cache = Buffer::from_slice(&stream, &vec![0.0; shape.cache_elements()]).unwrap();
    let cos_sin_cache = Some(&cos_sin_cache);
    let refused = |args: AppendArgs<'_, bf16>| append.run(&stream, &args).unwrap_err().to_string();
    let args = |v| AppendArgs { memory: &memory, k: &k, v, cos_sin_cache };
    insta::assert_snapshot!(refused(args(&short)), @"`v` must be 16 elements long, got 1");
    let unrotated = AppendArgs { cos_sin_cache: None, ..args(&k) };
    insta::assert_snapshot!(refused(unrotated), @"`cos_sin_cache` must be 16 elements long, got 0");
    let elsewhere = AppendArgs { memory: &other_memory, ..args(&k) };
    insta::assert_snapshot!(refused(elsewhere), @"`memory` must be what the lists were checked against, got other");
}
