use std::format;
use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;

use super::KvTokenPlace;
use super::contract::PatternShape;
use super::device::{kv_page_pattern_checksum, kv_page_pattern_fill};
use super::pattern::{
    ElementFormat, KvHalf, checksum_term, content, element, page_checksum, token_identity,
};
use super::reference::{Case, cases, page_elements};
use crate::kv_layout::{KvElement, KvLayout, KvPagePlace, KvPageShape};
use crate::testing::{DeviceMemory, TestDevice, digest};

/// Pools of a case, filled by the kernel with every token of the case.
struct Filled {
    pools: Vec<DeviceMemory<u16>>,
    peer_kv_ptrs: DeviceMemory<u64>,
}

fn fill(device: &TestDevice, case: &Case) -> Filled {
    let (places, identities) = case.tokens();
    case.shape.check().unwrap();
    case.shape.check_fill(&identities, &places, &case.pool_pages).unwrap();
    let page_elements = case.shape.page.page_elements();
    let pools: Vec<DeviceMemory<u16>> =
        case.pool_pages.iter().map(|pages| DeviceMemory::poisoned(pages * page_elements)).collect();
    let addresses: Vec<u64> = pools.iter().map(DeviceMemory::address).collect();
    let peer_kv_ptrs = DeviceMemory::from_slice(&addresses);
    let places = DeviceMemory::from_slice(&places);
    let identities = DeviceMemory::from_slice(&identities);
    device.launch(
        case.shape.fill_dims(identities.len() as u32),
        kv_page_pattern_fill {
            identities: identities.view(),
            places: places.view(),
            peer_kv_ptrs: peer_kv_ptrs.view(),
            num_tokens: identities.len() as u32,
            params: case.shape.params(),
        },
    );
    Filled { pools, peer_kv_ptrs }
}

fn checksums(
    device: &TestDevice,
    shape: &PatternShape,
    peer_kv_ptrs: &DeviceMemory<u64>,
    pages: &[KvPagePlace],
    num_valid_tokens: &[u32],
) -> Vec<u64> {
    let pages = DeviceMemory::from_slice(pages);
    let num_valid_tokens = DeviceMemory::from_slice(num_valid_tokens);
    let sums = DeviceMemory::<u64>::poisoned(pages.len());
    device.launch(
        shape.checksum_dims(pages.len() as u32),
        kv_page_pattern_checksum {
            pages: pages.view(),
            num_valid_tokens: num_valid_tokens.view(),
            peer_kv_ptrs: peer_kv_ptrs.view(),
            checksums: sums.view_mut(),
            params: shape.params(),
        },
    );
    sums.to_vec()
}

fn expected_checksums(case: &Case) -> Vec<u64> {
    (0..)
        .zip(&case.num_valid_tokens)
        .map(|(owner, &num_valid)| {
            let identities: Vec<u64> =
                (0..u64::from(num_valid)).map(|token| token_identity(owner, token)).collect();
            page_checksum(&identities, &case.shape.page, case.shape.format)
        })
        .collect()
}

fn check_elements(case: &Case, filled: &Filled) {
    let page_len = case.shape.page.page_elements();
    let pools: Vec<Vec<Option<u16>>> = filled.pools.iter().map(DeviceMemory::written).collect();
    let mut num_written = 0;
    for (owner, (page, &num_valid)) in (0..).zip(case.pages.iter().zip(&case.num_valid_tokens)) {
        let tokens: Vec<(u32, u64)> =
            (0..num_valid).map(|token| (token, token_identity(owner, u64::from(token)))).collect();
        let elements = &pools[page.rank as usize][page.index as usize * page_len..][..page_len];
        for (got, want) in elements.iter().zip(page_elements(&case.shape, &tokens)) {
            assert_eq!(got.map(|bits| case.shape.format.to_f32(bits)), want, "{}", case.name);
        }
        num_written += elements.iter().flatten().count();
    }
    let all_written: usize = pools.iter().map(|pool| pool.iter().flatten().count()).sum();
    assert_eq!(all_written, num_written, "{}: wrote outside of its pages", case.name);
}

#[test]
fn fill_writes_the_elements_of_its_tokens_and_nothing_else() {
    for device in TestDevice::lane_orders() {
        for case in cases() {
            check_elements(&case, &fill(&device, &case));
        }
    }
}

#[test]
fn checksums_follow_from_the_identities() {
    for device in TestDevice::lane_orders() {
        for case in cases() {
            let filled = fill(&device, &case);
            let sums = checksums(
                &device,
                &case.shape,
                &filled.peer_kv_ptrs,
                &case.pages,
                &case.num_valid_tokens,
            );
            assert_eq!(sums, expected_checksums(&case), "{}", case.name);
        }
    }
}

#[test]
fn an_off_by_one_page_index_changes_the_checksum() {
    let device = TestDevice::ascending();
    let case = &cases()[2];
    let filled = fill(&device, case);
    let pages_of_location = case.pool_pages[0] as u32;
    let wrong: Vec<KvPagePlace> = case
        .pages
        .iter()
        .map(|page| KvPagePlace { index: (page.index + 1) % pages_of_location, ..*page })
        .collect();
    let one_token = Vec::from_iter(case.pages.iter().map(|_| 1));
    let sums = |pages: &[KvPagePlace]| {
        checksums(&device, &case.shape, &filled.peer_kv_ptrs, pages, &one_token)
    };
    for (right, wrong) in sums(&case.pages).into_iter().zip(sums(&wrong)) {
        assert_ne!(right, wrong);
    }
}

#[test]
fn a_token_too_many_reads_memory_that_nothing_wrote() {
    let device = TestDevice::ascending();
    let case = &cases()[1];
    let filled = fill(&device, case);
    let pages = DeviceMemory::from_slice(&case.pages);
    let num_valid_tokens = DeviceMemory::from_slice(&Vec::from_iter(
        case.num_valid_tokens.iter().map(|n| (n + 1).min(16)),
    ));
    let sums = DeviceMemory::<u64>::poisoned(pages.len());
    let kernel = kv_page_pattern_checksum {
        pages: pages.view(),
        num_valid_tokens: num_valid_tokens.view(),
        peer_kv_ptrs: filled.peer_kv_ptrs.view(),
        checksums: sums.view_mut(),
        params: case.shape.params(),
    };
    let fault =
        device.try_launch(case.shape.checksum_dims(pages.len() as u32), kernel).unwrap_err();
    assert!(fault.contains("nothing wrote"), "{fault}");
}

proptest! {
    #[test]
    fn any_changed_or_exchanged_element_changes_the_checksum(
        seed: u64,
        first in 0usize..160,
        second in 0usize..160,
        flipped_bit in 0u32..16,
    ) {
        let page = KvPageShape { page_size: 5, num_kv_heads: 2, head_dim: 8, layout: KvLayout::Nhd, element: KvElement::Half };
        let sum = |elements: &[u16]| {
            let words = elements.chunks_exact(8).enumerate();
            words.fold(0u64, |sum, (i, word)| {
                let word: [u32; 4] = core::array::from_fn(|j| {
                    u32::from(word[2 * j]) | u32::from(word[2 * j + 1]) << 16
                });
                sum.wrapping_add(checksum_term(word, i as u32 / 4, i as u32 % 4))
            })
        };
        let elements: Vec<u16> = (0..page.page_size).flat_map(|token| {
            let identity = token_identity(seed, u64::from(token));
            (0..4).flat_map(move |word| content(identity, word, ElementFormat::BF16))
                .flat_map(|pair| [pair as u16, (pair >> 16) as u16])
        }).collect();
        let mut flipped = elements.clone();
        flipped[first] ^= 1 << flipped_bit;
        prop_assert_ne!(sum(&flipped), sum(&elements));
        let mut exchanged = elements.clone();
        exchanged.swap(first, second);
        prop_assert_eq!(sum(&exchanged) == sum(&elements), exchanged == elements);
    }

    #[test]
    fn elements_are_finite_and_within_one(identity: u64, word_idx: u32) {
        for format in [ElementFormat::BF16, ElementFormat::F16] {
            for pair in content(identity, word_idx, format) {
                for bits in [pair as u16, (pair >> 16) as u16] {
                    let magnitude = format.to_f32(bits).abs();
                    prop_assert!((0.0625..1.0).contains(&magnitude), "{magnitude}");
                }
            }
        }
    }
}

#[test]
fn elements_are_spread_evenly() {
    let page = KvPageShape {
        page_size: 1,
        num_kv_heads: 8,
        head_dim: 128,
        layout: KvLayout::Nhd,
        element: KvElement::Half,
    };
    for format in [ElementFormat::BF16, ElementFormat::F16] {
        let mut values = Vec::new();
        for token in 0..32 {
            let identity = token_identity(1, token);
            for head in 0..8 {
                for dim in 0..128 {
                    let half = if token % 2 == 0 { KvHalf::Key } else { KvHalf::Value };
                    values.push(f64::from(element(identity, half, head, dim, &page, format)));
                }
            }
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        // Magnitudes are even within each of four octaves: mean square 85/256 * 7/12.
        let mean_square = values.iter().map(|x| x * x).sum::<f64>() / count;
        assert!(mean.abs() < 0.01, "mean {mean}");
        assert!((mean_square - 0.1937).abs() < 0.005, "mean square {mean_square}");
        let repeated = values.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!(repeated < 200, "{repeated} of {count} neighbours are equal");
    }
}

#[test]
fn contents_do_not_change_between_versions() {
    let device = TestDevice::ascending();
    let mut text = String::new();
    for case in cases() {
        let filled = fill(&device, &case);
        let sums = checksums(
            &device,
            &case.shape,
            &filled.peer_kv_ptrs,
            &case.pages,
            &case.num_valid_tokens,
        );
        let page = case.pages[0];
        let bits = filled.pools[page.rank as usize].to_vec();
        let start = page.index as usize * case.shape.page.page_elements();
        let head: Vec<f32> =
            bits[start..start + 6].iter().map(|&bits| case.shape.format.to_f32(bits)).collect();
        text += &format!("{}\n  head {head:?}\n", case.name);
        let written: Vec<u16> =
            filled.pools.iter().flat_map(DeviceMemory::written).flatten().collect();
        text += &format!("  digest {:016x}, checksums {sums:016x?}\n", digest(&written));
    }
    insta::assert_snapshot!(text);
}

#[test]
fn refusals_name_argument_need_and_finding() {
    let page = KvPageShape {
        page_size: 4,
        num_kv_heads: 2,
        head_dim: 8,
        layout: KvLayout::Nhd,
        element: KvElement::Half,
    };
    let shape = PatternShape { page, format: ElementFormat::BF16 };
    let token =
        |rank, index, token_idx| KvTokenPlace { page: KvPagePlace { rank, index }, token_idx };
    let fill = |places: &[KvTokenPlace]| shape.check_fill(&[1, 2], places, &[3, 1]).unwrap_err();
    let sum =
        |page, num_valid: &[u32]| shape.check_checksum(&[page], num_valid, &[3, 1]).unwrap_err();
    let fine = token(0, 2, 3);
    let errors = [
        PatternShape { page: KvPageShape { head_dim: 12, ..page }, ..shape }.check().unwrap_err(),
        fill(&[fine]),
        fill(&[fine, token(2, 0, 0)]),
        fill(&[fine, token(1, 1, 0)]),
        fill(&[fine, token(0, 2, 4)]),
        fill(&[fine, fine]),
        shape.check_fill(&[], &[], &[3]).unwrap_err(),
        sum(KvPagePlace { rank: 0, index: 3 }, &[4]),
        sum(KvPagePlace { rank: 0, index: 2 }, &[5]),
        sum(KvPagePlace { rank: 0, index: 2 }, &[]),
    ];
    let texts: Vec<String> = errors.iter().map(|error| format!("{error}")).collect();
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn identities_of_tokens_differ() {
    let mut rng = fastrand::Rng::with_seed(3);
    let owners: Vec<u64> = (0..64).chain((0..64).map(|_| rng.u64(..))).collect();
    let mut identities: Vec<u64> = owners
        .iter()
        .flat_map(|&owner| (0..512).map(move |token| token_identity(owner, token)))
        .collect();
    let count = identities.len();
    identities.sort_unstable();
    identities.dedup();
    assert_eq!(identities.len(), count);
}
