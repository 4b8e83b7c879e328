//! Kernels of the rooms `kv_page_copy` and `kv_page_pattern`: 4096 pages of 64 KiB.

use anyhow::Result;
use gpu_kernels::kv_layout::{KvElement, KvLayout, KvPagePlace, KvPageShape};
use gpu_kernels::kv_page_copy::KvPageMove;
use gpu_kernels::kv_page_copy::contract::ALONE_BLOCKS;
use gpu_kernels::kv_page_pattern::KvTokenPlace;
use gpu_kernels::kv_page_pattern::pattern::ElementFormat;

use super::{KernelLaunch, Setting, kernel};
use crate::device::Stream;
use crate::kernels::kv_page_copy::{CopyVariant, PageCopy};
use crate::kernels::kv_page_pattern::{PatternChecksum, PatternFill};
use crate::kv::memory::KvMemory;

pub(super) fn launches() -> Vec<KernelLaunch> {
    vec![
        kernel("kv_page_copy_baseline", copy(CopyVariant::Baseline)),
        kernel("kv_page_copy_bulk", copy(CopyVariant::Bulk { num_blocks: ALONE_BLOCKS })),
        kernel("kv_page_pattern_fill", fill),
        kernel("kv_page_pattern_checksum", checksum),
    ]
}

/// Pages on one device, all of them filled.
struct Pages {
    stream: Stream,
    memory: KvMemory,
    num_pages: u32,
    fill: PatternFill,
}

impl Pages {
    fn new(setting: &Setting<'_>) -> Result<Self> {
        let stream = setting.stream()?;
        let num_pages = setting.pick(4096, 4);
        let page = KvPageShape {
            page_size: 16,
            num_kv_heads: 8,
            head_dim: 128,
            layout: KvLayout::Nhd,
            element: KvElement::Half,
        };
        let memory = KvMemory::new(&stream, setting.devices, page, &[num_pages as usize], 0)?;
        let of_page = |index| {
            (0..page.page_size).map(move |token_idx| KvTokenPlace { page: place(index), token_idx })
        };
        let places: Vec<KvTokenPlace> = (0..num_pages).flat_map(of_page).collect();
        let identities: Vec<u64> = (0..places.len() as u64).collect();
        let fill =
            PatternFill::upload(&stream, ElementFormat::BF16, &identities, &places, &memory)?;
        fill.run(&stream, &memory)?;
        Ok(Self { stream, memory, num_pages, fill })
    }
}

fn place(index: u32) -> KvPagePlace {
    KvPagePlace { rank: 0, index }
}

/// The first half of the pages into the second.
fn copy(variant: CopyVariant) -> impl Fn(&Setting<'_>) -> Result<()> {
    move |setting| {
        let Pages { stream, memory, num_pages, .. } = &Pages::new(setting)?;
        let half = num_pages / 2;
        let moves: Vec<KvPageMove> =
            (0..half).map(|i| KvPageMove { src: place(i), dst: place(half + i) }).collect();
        let copy = PageCopy::upload(stream, &moves, memory)?;
        setting.repeat(stream, |_| Ok(copy.run(stream, variant, memory)?))
    }
}

fn fill(setting: &Setting<'_>) -> Result<()> {
    let Pages { stream, memory, fill, .. } = &Pages::new(setting)?;
    setting.repeat(stream, |_| Ok(fill.run(stream, memory)?))
}

fn checksum(setting: &Setting<'_>) -> Result<()> {
    let Pages { stream, memory, num_pages, .. } = &Pages::new(setting)?;
    let pages: Vec<KvPagePlace> = (0..*num_pages).map(place).collect();
    let num_valid_tokens = vec![memory.shape().page_size; pages.len()];
    let checksum =
        PatternChecksum::upload(stream, ElementFormat::BF16, &pages, &num_valid_tokens, memory)?;
    setting.repeat(stream, |_| Ok(checksum.run(stream, memory).map(drop)?))
}
