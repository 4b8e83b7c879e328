//! Tensor maps: what a tile is, and the pieces of memory that it is made of.

use std::any::type_name;

use bytemuck::AnyBitPattern;

use super::block::Block;
use super::bulk::{Piece, issue_load, issue_store};
use super::cluster;
use super::fault::{Access, Violation};
use super::global::RawGlobal;
use super::lane;
use super::shared::RawShared;

/// Pieces that the copy engine moves, and what addresses and strides of tensors are multiples of.
const UNIT: usize = 16;
/// What tiles in shared memory are aligned to.
const TILE_ALIGNMENT: usize = 128;
/// Bytes of a row that is swizzled.
const SWIZZLE_SPAN: usize = 128;

const MAX_SIZE: u64 = 1 << 32;
const MAX_STRIDE_BYTES: u64 = 1 << 40;
const MAX_TILE: u32 = 256;

/// Where the 16-byte pieces of a tile's rows lie in shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swizzle {
    /// In order.
    #[default]
    None,
    /// Exchanged within rows of 128 bytes, as [`crate::tensor_map`] says: eight rows of one column
    /// are then in different banks.
    Bytes128,
}

/// How many bytes the L2 fetches around what a tile needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum L2Promotion {
    /// What it needs. On streamed data, more costs bandwidth: KV pages came 6 % slower with 256
    /// bytes on an H200.
    #[default]
    None,
    /// 128 bytes.
    Bytes128,
    /// 256 bytes.
    Bytes256,
}

/// A type that tensors are made of. The copy engine moves it by its size; what it is does not matter.
pub trait TensorElement: AnyBitPattern + Send + Sync {}

impl TensorElement for u8 {}
impl TensorElement for u16 {}
impl TensorElement for u32 {}
impl TensorElement for f32 {}
impl TensorElement for crate::float::E4m3 {}
impl TensorElement for half::bf16 {}
impl TensorElement for half::f16 {}

/// How a tensor lies in memory, and which box of it is a tile; innermost dimension first, all in
/// elements.
///
/// ```
/// use cuda_std::tensor_map::{L2Promotion, Swizzle, Tiling};
///
/// /// Tiles of 64 columns and 128 rows of a row-major matrix of 16-bit floats, as `wgmma` takes them.
/// fn tiles_of(rows: u64, columns: u64) -> Tiling<2> {
///     Tiling {
///         sizes: [columns, rows],
///         strides: [1, columns],
///         tile: [64, 128],
///         swizzle: Swizzle::Bytes128,
///         l2_promotion: L2Promotion::None,
///     }
/// }
/// assert_eq!(tiles_of(4096, 8192).tile_bytes::<u16>(), 128 * 128);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling<const RANK: usize> {
    /// Of the tensor: 1 to 2^32 each.
    pub sizes: [u64; RANK],
    /// From an index of a dimension to the next; 1 for the innermost, multiples of 16 bytes for the
    /// others. Dimensions may lie in memory in any order, and may overlap.
    pub strides: [u64; RANK],
    /// Of the box: 1 to 256 each. A row of the innermost is a multiple of 16 bytes, and 128 with a
    /// swizzle.
    pub tile: [u32; RANK],
    /// How the box lies in shared memory.
    pub swizzle: Swizzle,
    /// How far the L2 reads ahead.
    pub l2_promotion: L2Promotion,
}

/// A tiling that the copy engine does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tensor map of {element}: {argument}: needs {needed}, got {got}")]
pub struct TilingError {
    /// Type of the elements.
    pub element: &'static str,
    /// The offending part.
    pub argument: String,
    /// What it must be.
    pub needed: String,
    /// What it was.
    pub got: String,
}

impl<const RANK: usize> Tiling<RANK> {
    /// Bytes of a tile: what its load counts on its barrier.
    pub fn tile_bytes<T: TensorElement>(&self) -> u32 {
        self.tile.iter().product::<u32>() * size_of::<T>() as u32
    }

    /// Elements from the tensor's first to its last.
    pub fn span(&self) -> u64 {
        let last = self.sizes.iter().zip(self.strides).map(|(&size, stride)| (size - 1) * stride);
        last.sum::<u64>() + 1
    }

    /// Refuses what the copy engine does not take, and what reaches outside of `num_bytes` bytes at
    /// `address`.
    pub(crate) fn check<T: TensorElement>(
        &self,
        address: u64,
        num_bytes: usize,
    ) -> Result<(), TilingError> {
        let element_bytes = size_of::<T>() as u64;
        let require = |holds: bool, argument: String, needed: String, got: String| match holds {
            true => Ok(()),
            false => Err(TilingError { element: type_name::<T>(), argument, needed, got }),
        };
        require(
            address.is_multiple_of(UNIT as u64),
            "address".to_owned(),
            format!("a multiple of {UNIT}"),
            format!("{address:#x}"),
        )?;
        for (i, &size) in self.sizes.iter().enumerate() {
            require(
                (1..=MAX_SIZE).contains(&size),
                format!("sizes[{i}]"),
                format!("1 to {MAX_SIZE}"),
                size.to_string(),
            )?;
        }
        let innermost = self.strides[0];
        require(innermost == 1, "strides[0]".to_owned(), "1".to_owned(), innermost.to_string())?;
        for (i, &stride) in self.strides.iter().enumerate().skip(1) {
            let bytes = stride.saturating_mul(element_bytes);
            require(
                bytes.is_multiple_of(UNIT as u64) && bytes < MAX_STRIDE_BYTES,
                format!("strides[{i}]"),
                format!("a multiple of {UNIT} bytes below 2^40"),
                format!("{bytes} bytes"),
            )?;
        }
        for (i, &size) in self.tile.iter().enumerate() {
            require(
                (1..=MAX_TILE).contains(&size),
                format!("tile[{i}]"),
                format!("1 to {MAX_TILE}"),
                size.to_string(),
            )?;
        }
        let row_bytes = self.tile[0] as usize * size_of::<T>();
        let (row_fits, needed) = match self.swizzle {
            Swizzle::None => {
                (row_bytes.is_multiple_of(UNIT), format!("a multiple of {UNIT} bytes"))
            }
            Swizzle::Bytes128 => {
                (row_bytes == SWIZZLE_SPAN, format!("{SWIZZLE_SPAN} bytes, with the swizzle"))
            }
        };
        require(row_fits, "tile[0]".to_owned(), needed, format!("{row_bytes} bytes"))?;
        require(
            self.span().saturating_mul(element_bytes) <= num_bytes as u64,
            "sizes and strides".to_owned(),
            format!("at most the {} elements of the memory", num_bytes as u64 / element_bytes),
            format!("{} from first to last", self.span()),
        )
    }
}

/// A map as the driver encodes it.
pub type CudaTensorMap = [u64; 16];

/// What the map means here; its view is null for a map of nothing.
#[derive(Clone, Copy)]
struct Tiles<const RANK: usize> {
    view: RawGlobal,
    element_bytes: usize,
    tiling: Tiling<RANK>,
}

/// A map: for the GPU, then for the CPU. The driver reads the kernel parameter from its start.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct RawTensorMap<const RANK: usize> {
    pub encoded: CudaTensorMap,
    tiles: Tiles<RANK>,
}

/// Some maps: for the GPU, then for the CPU.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct RawTensorMaps<const RANK: usize, const N: usize> {
    encoded: [CudaTensorMap; N],
    tiles: [Tiles<RANK>; N],
}

impl<const RANK: usize> RawTensorMap<RANK> {
    pub fn new(view: RawGlobal, tiling: &Tiling<RANK>, element_bytes: usize) -> Self {
        let tiles = Tiles { view, element_bytes, tiling: *tiling };
        Self { encoded: CudaTensorMap::default(), tiles }
    }

    /// A map of nothing.
    pub fn null() -> Self {
        let tiling = Tiling {
            sizes: [0; RANK],
            strides: [0; RANK],
            tile: [0; RANK],
            swizzle: Swizzle::None,
            l2_promotion: L2Promotion::None,
        };
        Self::new(RawGlobal::null(), &tiling, 0)
    }
}

impl<const RANK: usize, const N: usize> RawTensorMaps<RANK, N> {
    pub fn new(mut maps: impl Iterator<Item = RawTensorMap<RANK>>) -> Self {
        let maps = [(); N].map(|()| maps.next().unwrap_or_else(RawTensorMap::null));
        Self { encoded: maps.map(|map| map.encoded), tiles: maps.map(|map| map.tiles) }
    }

    #[track_caller]
    pub unsafe fn get(&self, idx: u32) -> RawTensorMap<RANK> {
        let idx = idx as usize;
        if idx >= N {
            lane::raise(Violation::Bulk(format!("tensor map {idx} of {N}")));
        }
        RawTensorMap { encoded: self.encoded[idx], tiles: self.tiles[idx] }
    }
}

impl<const RANK: usize> Tiles<RANK> {
    #[track_caller]
    fn tile_bytes(&self) -> usize {
        if self.view.is_null() {
            lane::raise(Violation::Bulk("the tensor map is of nothing".to_owned()));
        }
        self.tiling.tile.iter().product::<u32>() as usize * self.element_bytes
    }

    /// What lies within the tensor of the tile at `shared` with coordinates `at`, by units of shared
    /// memory: place there, byte of the view, bytes.
    fn places(&self, shared: RawShared, at: [i32; RANK]) -> Vec<(RawShared, usize, usize)> {
        let mut places = Vec::new();
        let Tiling { sizes, strides, tile, swizzle, .. } = self.tiling;
        let row_bytes = tile[0] as usize * self.element_bytes;
        // Of the innermost dimension, the elements of the tile that the tensor has.
        let first = i64::from(-at[0]).clamp(0, i64::from(tile[0])) as usize;
        let end = (sizes[0] as i64 - i64::from(at[0])).clamp(0, i64::from(tile[0])) as usize;
        let in_tensor = first * self.element_bytes..end * self.element_bytes;
        let num_rows: u32 = tile[1..].iter().product();
        for row in 0..num_rows as usize {
            let mut rest = row;
            let mut first_element = i64::from(at[0]);
            let mut is_inside = true;
            for d in 1..RANK {
                let idx = i64::from(at[d]) + (rest % tile[d] as usize) as i64;
                rest /= tile[d] as usize;
                is_inside &= (0..sizes[d] as i64).contains(&idx);
                first_element += idx * strides[d] as i64;
            }
            if !is_inside {
                continue;
            }
            for unit in (0..row_bytes).step_by(UNIT) {
                let begin = unit.max(in_tensor.start);
                let bytes = (unit + UNIT).min(in_tensor.end).saturating_sub(begin);
                if bytes == 0 {
                    continue;
                }
                let place = swizzled(swizzle, shared, row * row_bytes + unit) + begin - unit;
                let byte = first_element * self.element_bytes as i64 + begin as i64;
                // SAFETY: an address; whoever reads or writes there checks it.
                places.push((unsafe { shared.offset_bytes(place) }, byte as usize, bytes));
            }
        }
        places
    }
}

/// Where the unit at byte `byte` of a tile at `shared` lies, from the tile's first byte.
fn swizzled(swizzle: Swizzle, shared: RawShared, byte: usize) -> usize {
    match swizzle {
        Swizzle::None => byte,
        Swizzle::Bytes128 => {
            let row = (shared.address() as usize + byte) / SWIZZLE_SPAN;
            byte ^ (row % 8 * UNIT)
        }
    }
}

#[inline(always)]
pub unsafe fn prefetch<const RANK: usize>(_map: &RawTensorMap<RANK>) {}

#[track_caller]
pub unsafe fn load<const RANK: usize>(
    dst: RawShared,
    map: &RawTensorMap<RANK>,
    at: [i32; RANK],
    barrier: RawShared,
) {
    load_in(lane::current().block(), dst, map, at, barrier);
}

#[track_caller]
pub unsafe fn load_to<const RANK: usize>(
    blocks: u16,
    dst: RawShared,
    map: &RawTensorMap<RANK>,
    at: [i32; RANK],
    barrier: RawShared,
) {
    for rank in (0..u16::BITS).filter(|rank| blocks >> rank & 1 == 1) {
        load_in(cluster::reach(rank), dst, map, at, barrier);
    }
}

/// Puts a load to `dst` in `block` on its way.
#[track_caller]
fn load_in<const RANK: usize>(
    block: &Block,
    dst: RawShared,
    map: &RawTensorMap<RANK>,
    at: [i32; RANK],
    barrier: RawShared,
) {
    let (tiles, dst) = (&map.tiles, dst.in_block(block));
    let bytes = tiles.tile_bytes();
    dst.check_store(bytes, TILE_ALIGNMENT);
    let mut pieces = Vec::new();
    for (shared, byte, bytes) in tiles.places(dst, at) {
        // SAFETY: an address; the next line checks it.
        let global = unsafe { tiles.view.offset_bytes(byte) };
        let is_written = global.check_tile_load(bytes, tiles.element_bytes);
        pieces.push(Piece { shared, global, bytes, is_written });
    }
    issue_load(block, dst, bytes, pieces, barrier);
}

#[track_caller]
pub unsafe fn load_with_policy<const RANK: usize>(
    dst: RawShared,
    map: &RawTensorMap<RANK>,
    at: [i32; RANK],
    barrier: RawShared,
    _policy: u64,
) {
    load(dst, map, at, barrier);
}

#[track_caller]
pub unsafe fn store<const RANK: usize>(map: &RawTensorMap<RANK>, at: [i32; RANK], src: RawShared) {
    let tiles = &map.tiles;
    src.check(tiles.tile_bytes(), TILE_ALIGNMENT, Access::SharedLoad);
    for (shared, byte, bytes) in tiles.places(src, at) {
        shared.check_load(bytes, 1);
        let global = tiles.view.offset_bytes(byte);
        global.check_store(0, bytes, tiles.element_bytes);
        issue_store(Piece { shared, global, bytes, is_written: true });
    }
}
