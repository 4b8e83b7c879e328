//! A batch's pages in the memory of some devices.

use anyhow::{Context, Result};
use cuda_std::float::E4m3;
use gpu_kernels::contract::Work;
use gpu_kernels::kv_layout::{KvElement, KvLayout, KvPagePlace, KvPageShape};
use gpu_kernels::kv_page_copy::KvPageMove;
use gpu_kernels::kv_page_pattern::KvTokenPlace;
use gpu_kernels::kv_page_pattern::pattern::ElementFormat;
use gpu_kernels::paged_attention::contract::PageLists;
use gpu_kernels::paged_attention::reference::ScatteredTable;

use super::{BatchElement, num_cold_inputs};
use crate::device::{Device, Stream};
use crate::kernels::kv_page_pattern::PatternFill;
use crate::kernels::paged_attention::DevicePageTable;
use crate::kv::memory::KvMemory;

/// Most places for one batch: batches of so few tokens that it takes more stay in a cache.
const MAX_INPUTS: usize = 64;
/// A value that no page of 16-bit elements holds: those are below 1.
const CORRUPTED: f32 = 1e4;

/// Pages of 16 tokens, in 16 bits.
pub(super) fn pages_of(num_kv_heads: u32, head_dim: u32) -> KvPageShape {
    let (layout, element) = (KvLayout::Nhd, KvElement::Half);
    KvPageShape { page_size: 16, num_kv_heads, head_dim, layout, element }
}

/// A batch whose K and V follow from identities.
pub(super) trait PagedBatch {
    /// Of K and V.
    type Element: BatchElement;

    fn page(&self) -> KvPageShape;
    /// Tokens of each request.
    fn kv_lens(&self) -> &[u32];
    /// What a call over the batch must do.
    fn work(&self) -> Work;
    /// What K and V of a token follow from.
    fn identity(&self, request: usize, token: u32) -> u64;

    /// How the contents of pages become elements.
    fn format(&self) -> ElementFormat {
        Self::Element::FORMAT
    }

    /// What stored K, and stored V, of each head are multiplied by: `[num_kv_heads]`.
    fn scales(&self) -> [Vec<f32>; 2] {
        [(); 2].map(|()| vec![1.0; self.page().num_kv_heads as usize])
    }
}

/// The batch's K and V, and the table that finds them.
pub(super) struct PlacedKv {
    pub(super) memory: KvMemory,
    pub(super) table: DevicePageTable,
    /// The same table, where the host sees it.
    pub(super) scattered: ScatteredTable,
    /// Pages of the first device that hold some of the batch; the staging comes after them.
    num_near: usize,
}

/// Room for more pages in the first device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Staging {
    /// None.
    No,
    /// For all pages that lie with its peers.
    ForPeersPages,
}

impl PlacedKv {
    /// Puts page `i` of the batch into location `location_of(i)`, pages of a location shuffled,
    /// so often that no cache of the first device, whose stream this is, holds all of it (if
    /// [64 times](MAX_INPUTS) are enough for that).
    ///
    /// # Errors
    /// Too little memory, no peer access.
    pub(super) fn often(
        stream: &Stream,
        devices: &[Device],
        batch: &impl PagedBatch,
        location_of: impl Fn(usize) -> usize,
        staging: Staging,
    ) -> Result<Vec<Self>> {
        let num_inputs = num_cold_inputs(stream.device(), batch.work())?.min(MAX_INPUTS);
        let inputs = 0..num_inputs as u64;
        inputs
            .map(|input| Self::new(stream, devices, batch, input, &location_of, staging))
            .collect()
    }

    /// Overwrites the last page of the batch.
    ///
    /// # Errors
    /// What the device says.
    pub(super) fn corrupt<T: BatchElement>(&self, stream: &Stream) -> Result<()> {
        // Keys that give a middling score, and values that stand out among those of any number of
        // tokens.
        let corrupted = match self.memory.shape().element {
            KvElement::Half => bytemuck::cast::<T, u16>(T::from_f32(CORRUPTED)),
            KvElement::E4m3 => u16::from_ne_bytes([E4m3::MAX.to_bits(); 2]),
        };
        let half = self.memory.shape().page_bytes() / 2 / size_of::<u16>();
        let page = [vec![0; half], vec![corrupted; half]].concat();
        let lists = &self.scattered.lists;
        let place = lists.place(lists.kv_indices.len().checked_sub(1).context("no tokens")?);
        let place = self.memory.pages(place.rank as usize, place.index as usize, 1);
        Ok(stream.upload(&page, place)?)
    }

    fn new(
        stream: &Stream,
        devices: &[Device],
        batch: &impl PagedBatch,
        shuffle: u64,
        location_of: impl Fn(usize) -> usize,
        staging: Staging,
    ) -> Result<Self> {
        let (kv_lens, page) = (batch.kv_lens(), batch.page());
        let mut rng = fastrand::Rng::with_seed(shuffle);
        let num_locations = devices.len() + 1;
        let scattered =
            ScatteredTable::new(kv_lens, page.page_size, num_locations, location_of, &mut rng);
        let (&host_pages, device_pages) = scattered.pages_of.split_last().context("no location")?;
        let mut device_pages = device_pages.to_vec();
        let num_near = device_pages[0];
        if staging == Staging::ForPeersPages {
            device_pages[0] = device_pages.iter().sum();
        }
        let mut memory = KvMemory::new(stream, devices, page, &device_pages, host_pages)?;
        if page.element == KvElement::E4m3 {
            let [k_scale, v_scale] = batch.scales();
            memory.set_scales(stream, &k_scale, &v_scale)?;
        }
        if staging == Staging::ForPeersPages {
            zero_part_full_pages(stream, &memory, &scattered.lists)?;
        }
        fill(stream, batch, &memory, &scattered.lists)?;
        Ok(Self {
            table: DevicePageTable::upload(stream, &scattered.table(), &memory)?,
            memory,
            num_near,
            scattered,
        })
    }

    /// Moves that bring all pages of peers into the staging, and the table that finds them there.
    pub(super) fn staged(&self) -> (Vec<KvPageMove>, PageLists) {
        let mut lists = self.scattered.lists.clone();
        let is_peers = 1..self.memory.host_location() as u32;
        let mut moves = Vec::new();
        for entry in 0..lists.kv_indices.len() {
            let src = lists.place(entry);
            if is_peers.contains(&src.rank) {
                let index = (self.num_near + moves.len()) as u32;
                moves.push(KvPageMove { src, dst: KvPagePlace { rank: 0, index } });
                (lists.kv_page_rank[entry], lists.kv_indices[entry]) = (0, index as i32);
            }
        }
        (moves, lists)
    }
}

/// Zeros where pages that are not full have no token: whoever copies pages copies all of it.
fn zero_part_full_pages(stream: &Stream, memory: &KvMemory, lists: &PageLists) -> Result<()> {
    let zeros = vec![0; memory.shape().page_bytes() / size_of::<u16>()];
    let page_size = memory.shape().page_size as i32;
    for (request, &last_page_len) in lists.kv_last_page_len.iter().enumerate() {
        let entries = lists.entries(request);
        if !entries.is_empty() && last_page_len < page_size {
            let place = lists.place(entries.end - 1);
            stream.upload(&zeros, memory.pages(place.rank as usize, place.index as usize, 1))?;
        }
    }
    Ok(())
}

/// Writes K and V of every token, each of which is its request's and position's.
fn fill<B: PagedBatch>(
    stream: &Stream,
    batch: &B,
    memory: &KvMemory,
    lists: &PageLists,
) -> Result<()> {
    let page_size = memory.shape().page_size;
    let (mut identities, mut places) = (Vec::new(), Vec::new());
    for (request, &kv_len) in batch.kv_lens().iter().enumerate() {
        for token in 0..kv_len {
            let entry = lists.entries(request).start + (token / page_size) as usize;
            let token_idx = token % page_size;
            places.push(KvTokenPlace { page: lists.place(entry), token_idx });
            identities.push(batch.identity(request, token));
        }
    }
    let fill = PatternFill::upload(stream, batch.format(), &identities, &places, memory)?;
    fill.run(stream, memory)?;
    // The lists go when this returns.
    Ok(stream.synchronize()?)
}
