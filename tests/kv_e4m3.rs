//! Pages of 8-bit elements through the launchers: appended to, moved, summed up, on the CPU device
//! and on GPUs. `tests/paged_attention.rs` attends over them.

use cuda_std::float::E4m3;
use farpage::device::{Buffer, Device, Stream};
use farpage::kernels::kv_append::{Append, AppendArgs};
use farpage::kernels::kv_page_copy::{CopyVariant, PageCopy};
use farpage::kernels::kv_page_pattern::{PatternChecksum, PatternFill};
use farpage::kv::memory::KvMemory;
use gpu_kernels::kv_append::reference::{Case, append_tokens};
use gpu_kernels::kv_layout::{KvElement, KvLayout, KvPagePlace, KvPageShape};
use gpu_kernels::kv_page_copy::KvPageMove;
use gpu_kernels::kv_page_pattern::KvTokenPlace;
use gpu_kernels::kv_page_pattern::pattern::{
    ElementFormat, KvHalf, element, page_checksum, token_identity,
};
use half::bf16;

const PAGE: KvPageShape = KvPageShape {
    page_size: 16,
    num_kv_heads: 2,
    head_dim: 64,
    layout: KvLayout::Nhd,
    element: KvElement::E4m3,
};

/// The elements of a location's pages.
fn elements(stream: &Stream, memory: &KvMemory, location: usize) -> Vec<E4m3> {
    let pages = memory.pages(location, 0, memory.pool_pages()[location]);
    bytemuck::cast_slice::<u16, E4m3>(&stream.download(pages).unwrap()).to_vec()
}

/// Values that saturate, tie, become subnormal and vanish, over scales of both heads.
fn check_append(device: &Device) {
    let stream = device.new_stream().unwrap();
    let case = Case::new("e4m3", PAGE, None, 1, &[(15, 1), (0, 20), (30, 3)]);
    let devices = std::slice::from_ref(device);
    let mut memory = KvMemory::new(&stream, devices, PAGE, &case.table.pages_of, 1).unwrap();
    let (k_scale, v_scale) = ([1.0, 1.0 / 64.0], [0.3, 3.0]);
    memory.set_scales(&stream, &k_scale, &v_scale).unwrap();

    let mut rng = fastrand::Rng::with_seed(9);
    let mut random = || -> Vec<bf16> {
        let mut value =
            || bf16::from_f32((4.0 * rng.f32() - 2.0) * (18.0 * rng.f32() - 10.0).exp2());
        (0..case.shape.kv_elements()).map(|_| value()).collect()
    };
    let (k, v) = (random(), random());
    let append = Append::upload(&stream, case.shape, &case.lists(), &memory).unwrap();
    let (device_k, device_v) =
        (Buffer::from_slice(&stream, &k).unwrap(), Buffer::from_slice(&stream, &v).unwrap());
    let args = AppendArgs { memory: &memory, k: &device_k, v: &device_v, cos_sin_cache: None };
    append.run(&stream, &args).unwrap();

    let as_f32 = |values: &[bf16]| -> Vec<f32> { values.iter().map(|x| x.to_f32()).collect() };
    let pages_of = &case.table.pages_of;
    let want = append_tokens(&case.shape, &case.lists(), pages_of, &as_f32(&k), &as_f32(&v), &[]);
    let got = elements(&stream, &memory, 0);
    let strides = PAGE.strides();
    for (i, (got, want)) in got.iter().zip(&want[0]).enumerate() {
        let Some(want) = want else { continue };
        let in_page = i as u32 % strides.page;
        let head = (in_page / strides.head % PAGE.num_kv_heads) as usize;
        let scale = if in_page < strides.value { k_scale[head] } else { v_scale[head] };
        assert_eq!(*got, E4m3::from_f32(*want as f32 / scale), "element {i}, of {want}");
    }
}

/// Pages filled with a pattern, and moved to another place, still say what they are.
fn check_moves(device: &Device) {
    let stream = device.new_stream().unwrap();
    let memory = KvMemory::new(&stream, std::slice::from_ref(device), PAGE, &[8], 8).unwrap();
    let place = |rank, index| KvPagePlace { rank, index };
    let tokens = |page: u32| (0..PAGE.page_size).map(move |token_idx| (page, token_idx));
    let identity = |(page, token_idx)| token_identity(u64::from(page), u64::from(token_idx));
    let identities: Vec<u64> = (0..8).flat_map(tokens).map(identity).collect();
    let places: Vec<KvTokenPlace> = (0..8)
        .flat_map(tokens)
        .map(|(page, token_idx)| KvTokenPlace { page: place(0, page), token_idx })
        .collect();
    let format = ElementFormat::E4M3;
    PatternFill::upload(&stream, format, &identities, &places, &memory)
        .unwrap()
        .run(&stream, &memory)
        .unwrap();

    let got = elements(&stream, &memory, 0);
    let strides = PAGE.strides();
    for (page, token_idx) in (0..8).flat_map(tokens) {
        for (half, first) in [(KvHalf::Key, 0), (KvHalf::Value, strides.value)] {
            for (head, dim) in [(0, 0), (0, 63), (1, 17)] {
                let i = page * strides.page + first + token_idx * strides.token;
                let got = got[(i + head * strides.head + dim) as usize].to_f32();
                assert_eq!(
                    got,
                    element(identity((page, token_idx)), half, head, dim, &PAGE, format)
                );
                assert!((1.0 / 16.0..1.0).contains(&got.abs()), "{got}");
            }
        }
    }

    let moves: Vec<KvPageMove> =
        (0..8).map(|i| KvPageMove { src: place(0, i), dst: place(1, 7 - i) }).collect();
    let copy = PageCopy::upload(&stream, &moves, &memory).unwrap();
    copy.run(&stream, CopyVariant::alone(device), &memory).unwrap();
    let moved: Vec<KvPagePlace> = moves.iter().map(|m| m.dst).collect();
    let checksum = PatternChecksum::upload(&stream, format, &moved, &[16; 8], &memory).unwrap();
    let want: Vec<u64> =
        identities.chunks(16).map(|page| page_checksum(page, &PAGE, format)).collect();
    assert_eq!(checksum.run(&stream, &memory).unwrap(), want);
}

#[test]
fn appended_tokens_are_rounded_over_their_scale_on_the_cpu() {
    check_append(&Device::cpu());
}

#[test]
#[ignore = "needs 1 GPU"]
fn appended_tokens_are_rounded_over_their_scale_on_a_gpu() {
    check_append(&Device::cuda(0).unwrap());
}

#[test]
fn pages_keep_their_contents_when_moved_on_the_cpu() {
    check_moves(&Device::cpu());
}

#[test]
#[ignore = "needs 1 GPU"]
fn pages_keep_their_contents_when_moved_on_a_gpu() {
    check_moves(&Device::cuda(0).unwrap());
}

#[test]
fn scales_are_for_pages_that_have_some() {
    let device = Device::cpu();
    let stream = device.new_stream().unwrap();
    let memory = |element| {
        let page = KvPageShape { element, ..PAGE };
        KvMemory::new(&stream, std::slice::from_ref(&device), page, &[1], 1).unwrap()
    };
    let refusal = |element, k_scale: &[f32]| {
        memory(element).set_scales(&stream, k_scale, &[1.0; 2]).unwrap_err()
    };
    let of_halves = refusal(KvElement::Half, &[1.0; 2]);
    insta::assert_snapshot!(of_halves, @"`element` must be E4m3, to have scales, got Half");
    let too_few = refusal(KvElement::E4m3, &[1.0]);
    insta::assert_snapshot!(too_few, @"`k_scale` must be 2 elements long, got 1");
    let zero = refusal(KvElement::E4m3, &[1.0, 0.0]);
    insta::assert_snapshot!(zero, @"`k_scale[1]` must be positive and finite, got 0");
    let format = ElementFormat::BF16;
    let place = KvTokenPlace { page: KvPagePlace { rank: 0, index: 0 }, token_idx: 0 };
    let fill = PatternFill::upload(&stream, format, &[1], &[place], &memory(KvElement::E4m3));
    insta::assert_snapshot!(fill.err().unwrap(), @"`format` must be one of E4m3 elements, as the pages, got Half");
}
