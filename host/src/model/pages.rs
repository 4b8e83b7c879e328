//! The pages of a model: one KV memory for each layer, all of the same size.

use std::sync::Arc;

use gpu_kernels::kv_layout::{KvElement, KvLayout, KvPagePlace, KvPageShape};
use gpu_kernels::kv_page_copy::KvPageMove;

use super::ModelConfig;
use super::engine::{EngineError, KvPages, PageCopy};
use crate::device::{Device, DeviceError, Event, PinnedBuffer, Stream};
use crate::kernels::kv_page_copy::{self, CopyVariant};
use crate::kv::Location;
use crate::kv::memory::KvMemory;

/// Bytes of the words that pages are made of.
const WORD_BYTES: usize = 2;

/// Pages behind those of the pool, in the device's memory: of what fills a batch up to a size that
/// launchers were made for.
const SCRATCH_PAGES: usize = 16;

/// A slot stands for the same page of every layer.
pub struct LayeredKv {
    stream: Arc<Stream>,
    /// Of copies to other engines, which run beside the steps.
    pushes: Stream,
    /// What the steps have done when a push begins.
    written: Event,
    layers: Arc<Vec<KvMemory>>,
    /// Of each location, without those of nobody.
    num_pages: Vec<usize>,
    /// For pages on their way through the host; what nobody holds any more is used again.
    staging: Vec<Arc<PinnedBuffer<u16>>>,
}

/// The pages of an engine, as other engines of the process reach them. They stay allocated as long
/// as it is there, also if the engine is gone.
#[derive(Clone, Debug)]
pub struct PageWindow {
    layers: Arc<Vec<KvMemory>>,
}

/// Pages in pinned host memory, on their way from one engine to another.
#[derive(Clone, Debug)]
pub struct StagedPages {
    /// `[num_layers, num_pages, page]`, and what is left of an earlier use.
    words: Arc<PinnedBuffer<u16>>,
    num_pages: usize,
    num_layers: usize,
    shape: KvPageShape,
}

impl LayeredKv {
    /// Memory for `device_pages` pages on the device of `stream`, and `host_pages` in pinned host
    /// memory.
    ///
    /// # Errors
    /// No memory.
    pub fn new(
        stream: Arc<Stream>,
        config: &ModelConfig,
        page_size: u32,
        device_pages: usize,
        host_pages: usize,
    ) -> Result<Self, DeviceError> {
        Self::with_peers(stream, config, page_size, device_pages, &[], host_pages)
    }

    /// The same, and pages that other devices lend, so many each: the locations between both.
    ///
    /// # Errors
    /// No memory; devices that do not reach each other.
    pub fn with_peers(
        stream: Arc<Stream>,
        config: &ModelConfig,
        page_size: u32,
        device_pages: usize,
        peers: &[(Device, usize)],
        host_pages: usize,
    ) -> Result<Self, DeviceError> {
        let shape = KvPageShape {
            page_size,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            layout: KvLayout::Nhd,
            element: KvElement::Half,
        };
        let lent = || peers.iter().map(|&(_, pages)| pages);
        let devices: Vec<Device> = std::iter::once(stream.device().clone())
            .chain(peers.iter().map(|(device, _)| device.clone()))
            .collect();
        let all_pages = device_pages + SCRATCH_PAGES;
        let pool_pages: Vec<usize> = std::iter::once(all_pages).chain(lent()).collect();
        let layers = (0..config.num_layers())
            .map(|_| KvMemory::new(&stream, &devices, shape, &pool_pages, host_pages))
            .collect::<Result<Vec<_>, _>>()?;
        // Whole pages are copied and handed over, also those that are not full yet.
        for memory in &layers {
            stream.fill_bytes(memory.pages(0, 0, all_pages), 0)?;
            for (location, &(ref peer, pages)) in (1..).zip(peers) {
                let of_peer = peer.new_stream()?;
                of_peer.fill_bytes(memory.pages(location, 0, pages), 0)?;
                of_peer.synchronize()?;
            }
        }
        stream.synchronize()?;
        let device = stream.device();
        Ok(Self {
            pushes: device.new_stream()?,
            written: device.new_event()?,
            stream,
            layers: Arc::new(layers),
            num_pages: std::iter::once(device_pages).chain(lent()).chain([host_pages]).collect(),
            staging: Vec::new(),
        })
    }

    /// The pages of a layer.
    pub fn layer(&self, layer: usize) -> &KvMemory {
        &self.layers[layer]
    }

    /// Shape of the pages of every layer.
    pub fn shape(&self) -> KvPageShape {
        self.layers[0].shape()
    }

    /// Pages that no request has: what is written there, nobody reads.
    pub(super) fn scratch(&self) -> impl ExactSizeIterator<Item = Location> + use<> {
        let first = self.num_pages[0];
        (first..first + SCRATCH_PAGES).map(|slot| Location { rank: 0, slot: slot as u32 })
    }

    /// A layer's memory, if it and the pages are there.
    fn check(&self, layer: usize, pages: &[Location]) -> Result<&KvMemory, EngineError> {
        let Some(memory) = self.layers.get(layer) else {
            let needed = format!("below {}", self.layers.len());
            return Err(refused("layer", needed, layer));
        };
        self.check_places(pages.iter().copied())?;
        Ok(memory)
    }

    fn check_places(&self, pages: impl IntoIterator<Item = Location>) -> Result<(), EngineError> {
        let pool_pages = self.num_pages();
        for page in pages {
            KvPagePlace::from(page)
                .check("pages", pool_pages)
                .map_err(|error| refused("pages", error, page))?;
        }
        Ok(())
    }
}

fn refused(
    argument: &'static str,
    needed: impl std::fmt::Display,
    got: impl std::fmt::Display,
) -> EngineError {
    EngineError::Step { argument, needed: needed.to_string(), got: got.to_string() }
}

/// Pages that lie one after the other: the first of each run, and how many.
fn runs(pages: &[Location]) -> Vec<(Location, usize)> {
    let mut runs: Vec<(Location, usize)> = Vec::new();
    for &page in pages {
        match runs.last_mut() {
            Some((first, len))
                if first.rank == page.rank && first.slot as usize + *len == page.slot as usize =>
            {
                *len += 1;
            }
            _ => runs.push((page, 1)),
        }
    }
    runs
}

/// Pages that lie one after the other on both sides: the first of each run here and there, and how
/// many. They are taken by their places here: slots that were given back go out again backwards.
fn runs_of_both(here: &[Location], there: &[Location]) -> Vec<(Location, Location, usize)> {
    let mut pairs: Vec<(Location, Location)> =
        here.iter().copied().zip(there.iter().copied()).collect();
    pairs.sort_unstable_by_key(|(from, _)| (from.rank, from.slot));
    let mut runs: Vec<(Location, Location, usize)> = Vec::new();
    let follows = |first: Location, len: usize, page: Location| {
        first.rank == page.rank && first.slot as usize + len == page.slot as usize
    };
    for (from, to) in pairs {
        match runs.last_mut() {
            Some((first, place, len))
                if follows(*first, *len, from) && follows(*place, *len, to) =>
            {
                *len += 1;
            }
            _ => runs.push((from, to, 1)),
        }
    }
    runs
}

impl LayeredKv {
    fn page_words(&self) -> usize {
        self.shape().page_bytes() / WORD_BYTES
    }

    /// Pinned memory of so many words that nobody holds.
    fn staging(&mut self, num_words: usize) -> Result<Arc<PinnedBuffer<u16>>, DeviceError> {
        self.staging.retain(|words| Arc::strong_count(words) > 1 || words.len() >= num_words);
        let is_free = |words: &&Arc<PinnedBuffer<u16>>| {
            Arc::strong_count(words) == 1 && words.len() >= num_words
        };
        if let Some(words) = self.staging.iter().find(is_free) {
            return Ok(words.clone());
        }
        let words = Arc::new(self.stream.device().alloc_pinned(num_words)?);
        self.staging.push(words.clone());
        Ok(words)
    }
}

impl KvPages for LayeredKv {
    fn num_pages(&self) -> &[usize] {
        &self.num_pages
    }

    fn copy(&mut self, copies: &[PageCopy]) -> Result<(), EngineError> {
        if copies.is_empty() {
            return Ok(());
        }
        self.check_places(copies.iter().flat_map(|copy| [copy.source, copy.destination]))?;
        let moves: Vec<KvPageMove> = copies
            .iter()
            .map(|copy| KvPageMove { src: copy.source.into(), dst: copy.destination.into() })
            .collect();
        let stream = &*self.stream;
        let copy = kv_page_copy::PageCopy::upload(stream, &moves, &self.layers[0])
            .map_err(EngineError::failed)?;
        let variant = CopyVariant::alone(stream.device());
        for memory in self.layers.iter() {
            copy.run(stream, variant, memory).map_err(EngineError::failed)?;
        }
        Ok(())
    }

    fn export(&mut self, layer: usize, pages: &[Location]) -> Result<Vec<u8>, EngineError> {
        let memory = self.check(layer, pages)?;
        let mut bytes = Vec::with_capacity(pages.len() * memory.shape().page_bytes());
        for (first, len) in runs(pages) {
            let words = memory.pages(first.rank as usize, first.slot as usize, len);
            let words = self.stream.download(words).map_err(EngineError::failed)?;
            bytes.extend_from_slice(bytemuck::cast_slice(&words));
        }
        Ok(bytes)
    }

    fn import(
        &mut self,
        layer: usize,
        pages: &[Location],
        bytes: &[u8],
    ) -> Result<(), EngineError> {
        let memory = self.check(layer, pages)?;
        let page_bytes = memory.shape().page_bytes();
        if bytes.len() != pages.len() * page_bytes {
            let needed = format!("{} bytes for {} pages", pages.len() * page_bytes, pages.len());
            return Err(refused("bytes", needed, bytes.len()));
        }
        let mut words = vec![0; bytes.len() / WORD_BYTES];
        bytemuck::cast_slice_mut::<u16, u8>(&mut words).copy_from_slice(bytes);
        let mut start = 0;
        for (first, len) in runs(pages) {
            let end = start + len * page_bytes / WORD_BYTES;
            let destination = memory.pages(first.rank as usize, first.slot as usize, len);
            self.stream.upload(&words[start..end], destination).map_err(EngineError::failed)?;
            start = end;
        }
        Ok(())
    }

    fn window(&self) -> Option<PageWindow> {
        Some(PageWindow { layers: self.layers.clone() })
    }

    fn push(
        &mut self,
        layer: usize,
        pages: &[Location],
        window: &PageWindow,
        places: &[Location],
    ) -> Result<(), EngineError> {
        let from = self.check(layer, pages)?;
        let Some(to) = window.layers.get(layer).filter(|to| to.shape() == from.shape()) else {
            let got = format!("{} layers, or pages of another shape", window.layers.len());
            return Err(refused("window", "as many layers and pages of one shape", got));
        };
        if pages.len() != places.len() {
            return Err(refused("places", pages.len(), places.len()));
        }
        for &page in places {
            KvPagePlace::from(page)
                .check("places", to.pool_pages())
                .map_err(|error| refused("places", error, page))?;
        }
        self.stream.record(&self.written)?;
        self.pushes.wait(&self.written)?;
        for (here, there, len) in runs_of_both(pages, places) {
            let source = from.pages(here.rank as usize, here.slot as usize, len);
            let destination = to.pages(there.rank as usize, there.slot as usize, len);
            self.pushes.copy(source, destination)?;
        }
        Ok(())
    }

    fn stage(&mut self, pages: &[Location]) -> Result<Option<StagedPages>, EngineError> {
        self.check_places(pages.iter().copied())?;
        let (page_words, num_layers) = (self.page_words(), self.layers.len());
        let words = self.staging(num_layers * pages.len() * page_words)?;
        let mut start = 0;
        for memory in self.layers.iter() {
            for (first, len) in runs(pages) {
                let end = start + len * page_words;
                let source = memory.pages(first.rank as usize, first.slot as usize, len);
                self.stream.copy(source, words.slice(start..end))?;
                start = end;
            }
        }
        self.stream.synchronize()?;
        let (num_pages, shape) = (pages.len(), self.shape());
        Ok(Some(StagedPages { words, num_pages, num_layers, shape }))
    }

    fn unstage(&mut self, staged: &StagedPages, pages: &[Location]) -> Result<(), EngineError> {
        self.check_places(pages.iter().copied())?;
        let fits = staged.num_pages == pages.len()
            && staged.num_layers == self.layers.len()
            && staged.shape == self.shape();
        if !fits {
            let needed = format!("{} pages of this model", pages.len());
            return Err(refused("staged", needed, format!("{} pages", staged.num_pages)));
        }
        let (page_words, mut start) = (self.page_words(), 0);
        for memory in self.layers.iter() {
            for (first, len) in runs(pages) {
                let end = start + len * page_words;
                let destination = memory.pages(first.rank as usize, first.slot as usize, len);
                self.stream.copy(staged.words.slice(start..end), destination)?;
                start = end;
            }
        }
        Ok(self.stream.synchronize()?)
    }

    fn settle(&mut self) -> Result<(), EngineError> {
        self.pushes.synchronize()?;
        Ok(self.stream.synchronize()?)
    }
}
