//! The bytes behind the slots: one allocation a location, and the table of their addresses.

use cuda_std::tensor_map::{TensorElement, TensorMap, TensorMaps, Tiling};
use gpu_kernels::contract::{require, require_len};
use gpu_kernels::kv_layout::{KvElement, KvPageShape};

use crate::device::{Buffer, Device, DeviceError, PinnedBuffer, Slice, Stream};
use crate::kernels::KernelError;

/// Pools are made of words of 16 bits.
const WORD_BYTES: usize = 2;

/// KV pages in the memory of several places, all of which kernels of the first device read.
///
/// Location `r` below the number of devices is device `r`'s memory; the last is pinned host memory.
#[derive(Debug)]
pub struct KvMemory {
    shape: KvPageShape,
    device_pools: Vec<Buffer<u16>>,
    host_pool: PinnedBuffer<u16>,
    /// The table of addresses, in each device's own memory.
    peer_kv_ptrs: Vec<Buffer<u64>>,
    pool_pages: Vec<usize>,
    k_scale: Buffer<f32>,
    v_scale: Buffer<f32>,
}

impl KvMemory {
    /// Pages of `shape`: `device_pages[r]` of them on device `r`, `host_pages` in pinned host
    /// memory. Lets the first device, whose stream this is, reach the others.
    ///
    /// # Errors
    /// Devices without peer access, or without that much memory.
    ///
    /// # Panics
    /// If there is not one `device_pages` for each device, and at least one.
    pub fn new(
        stream: &Stream,
        devices: &[Device],
        shape: KvPageShape,
        device_pages: &[usize],
        host_pages: usize,
    ) -> Result<Self, DeviceError> {
        assert!(
            !devices.is_empty() && devices.len() == device_pages.len(),
            "a page count for each device"
        );
        let reader = &devices[0];
        for peer in &devices[1..] {
            reader.enable_peer_access(peer)?;
            peer.enable_peer_access(reader)?;
        }
        let device_pools = devices
            .iter()
            .zip(device_pages)
            .map(|(device, &pages)| device.alloc(pages * shape.page_bytes() / WORD_BYTES))
            .collect::<Result<Vec<_>, _>>()?;
        let host_pool = reader.alloc_pinned(host_pages * shape.page_bytes() / WORD_BYTES)?;
        let addresses: Vec<u64> =
            device_pools.iter().map(Buffer::address).chain([host_pool.address()]).collect();
        let mut peer_kv_ptrs = vec![Buffer::from_slice(stream, &addresses)?];
        for peer in &devices[1..] {
            peer_kv_ptrs.push(Buffer::from_slice(&peer.new_stream()?, &addresses)?);
        }
        Ok(Self {
            shape,
            peer_kv_ptrs,
            device_pools,
            host_pool,
            pool_pages: device_pages.iter().copied().chain([host_pages]).collect(),
            k_scale: Buffer::from_slice(stream, &vec![1.0; shape.num_kv_heads as usize])?,
            v_scale: Buffer::from_slice(stream, &vec![1.0; shape.num_kv_heads as usize])?,
        })
    }

    /// Says by what the stored K and V of each head are multiplied, `[num_kv_heads]`, where pages
    /// are of 8-bit elements: appending divides by it, attention multiplies. 1 until it is said.
    /// Pages that hold something already mean something else from then on.
    ///
    /// # Errors
    /// Before anything changes: pages of 16-bit elements, another number of heads, a factor that is
    /// not positive and finite.
    pub fn set_scales(
        &mut self,
        stream: &Stream,
        k_scale: &[f32],
        v_scale: &[f32],
    ) -> Result<(), KernelError> {
        let KvPageShape { element, num_kv_heads, .. } = self.shape;
        require(element == KvElement::E4m3, "element", "E4m3, to have scales", "Half")?;
        for (name, scales) in [("k_scale", k_scale), ("v_scale", v_scale)] {
            require_len(name, num_kv_heads as usize, scales.len())?;
            for (head, &scale) in scales.iter().enumerate() {
                let is_usable = scale.is_normal() && scale > 0.0;
                require(is_usable, &format!("{name}[{head}]"), "positive and finite", scale)?;
            }
        }
        stream.upload(k_scale, &self.k_scale)?;
        stream.upload(v_scale, &self.v_scale)?;
        Ok(())
    }

    /// What stored K is multiplied by: `[num_kv_heads]`.
    pub fn k_scale(&self) -> &Buffer<f32> {
        &self.k_scale
    }

    /// What stored V is multiplied by: `[num_kv_heads]`.
    pub fn v_scale(&self) -> &Buffer<f32> {
        &self.v_scale
    }

    /// Shape of the pages.
    pub fn shape(&self) -> KvPageShape {
        self.shape
    }

    /// Base address of each location, as kernels of the first device take it: `[locations]`.
    pub fn peer_kv_ptrs(&self) -> &Buffer<u64> {
        self.peer_kv_ptrs_on(0)
    }

    /// The same addresses, for kernels of device `rank`: `[locations]`.
    ///
    /// # Panics
    /// If there is no such device.
    pub fn peer_kv_ptrs_on(&self, rank: usize) -> &Buffer<u64> {
        &self.peer_kv_ptrs[rank]
    }

    /// Pages of each location: `[locations]`.
    pub fn pool_pages(&self) -> &[usize] {
        &self.pool_pages
    }

    /// The locations as the copy engine loads them, for a kernel that sees `num_pages` pages as
    /// `tiling_of(num_pages)`.
    pub(crate) fn tile_maps<T: TensorElement, const N: usize>(
        &self,
        tiling_of: impl Fn(usize) -> Tiling<5>,
    ) -> Result<TensorMaps<T, 5, N>, DeviceError> {
        let mut maps = Vec::new();
        for (location, &num_pages) in self.pool_pages.iter().enumerate() {
            maps.push(match num_pages {
                0 => TensorMap::null(),
                _ => {
                    let pages = self.pages(location, 0, num_pages);
                    pages.tensor_map(&tiling_of(num_pages))?.cast()
                }
            });
        }
        Ok(TensorMaps::new(&maps))
    }

    /// Keeps all of it until `stream` has been waited for; see [`Stream::keep`].
    pub fn keep(&self, stream: &Stream) {
        self.peer_kv_ptrs.iter().for_each(|table| stream.keep(table));
        stream.keep(&self.k_scale);
        stream.keep(&self.v_scale);
        stream.keep(&self.host_pool);
        self.device_pools.iter().for_each(|pool| stream.keep(pool));
    }

    /// The location that is pinned host memory.
    pub fn host_location(&self) -> usize {
        self.device_pools.len()
    }

    /// `num_pages` pages of a location from `first_page` on, for copies: words of 16 bits, which
    /// are elements of that size, or two of 8 bits.
    pub fn pages(&self, location: usize, first_page: usize, num_pages: usize) -> Slice<'_, u16> {
        let words = self.shape.page_bytes() / WORD_BYTES;
        let range = first_page * words..(first_page + num_pages) * words;
        match self.device_pools.get(location) {
            Some(pool) => pool.slice(range),
            None => self.host_pool.slice(range),
        }
    }
}
