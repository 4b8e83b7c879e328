//! Tiles of a warpgroup's multiplications as bytes, and what is wrong with them.

use bytemuck::AnyBitPattern;

use crate::shared::Shared;
use crate::wgmma::{SwizzledTile, TransposedTile};

use super::element::{K, K_BYTES};

/// What a tile's first row is aligned to, as the hardware swizzles addresses.
const TILE_ALIGNMENT: u32 = 1024;
const ROW_BYTES: u32 = 128;
/// Bytes of the pieces that the swizzle moves.
pub(super) const PIECE_BYTES: usize = 16;

impl TransposedTile<u8> {
    /// Where the 16-bit float (`row`, `column`) lies.
    #[track_caller]
    pub(super) unsafe fn place(self, row: usize, column: usize) -> Shared<u8> {
        let panel = column / SwizzledTile::<u16>::ROW_ELEMENTS;
        let base = self.first_panel.base.offset(panel * self.panel_bytes as usize);
        let panel = SwizzledTile { base, ..self.first_panel };
        panel.place(row, column % SwizzledTile::<u16>::ROW_ELEMENTS * size_of::<u16>())
    }
}

pub(super) fn bytes_of<T: AnyBitPattern>(tile: SwizzledTile<T>) -> SwizzledTile<u8> {
    let SwizzledTile { base, first_row, first_column } = tile;
    SwizzledTile { base: base.cast(), first_row, first_column: first_column * size_of::<T>() }
}

/// The shared byte at which the hardware is told that a tile begins.
pub(super) fn start_of(tile: SwizzledTile<u8>) -> u32 {
    tile.base.raw.address() + tile.start_byte() as u32
}

/// Refuses a transposed tile of `columns` columns that the hardware would read elsewhere.
#[track_caller]
pub(super) unsafe fn check_transposed(
    tile: TransposedTile<u8>,
    columns: usize,
) -> Result<(), TileProblem> {
    let start = start_of(tile.first_panel);
    if !start.is_multiple_of(TILE_ALIGNMENT) {
        return Err(TileProblem::Start(start));
    }
    if !tile.panel_bytes.is_multiple_of(TILE_ALIGNMENT) {
        return Err(TileProblem::PanelBytes(tile.panel_bytes));
    }
    let last_panel = tile.place(K - 1, columns - SwizzledTile::<u16>::ROW_ELEMENTS);
    last_panel.raw.check_load(size_of::<u16>(), size_of::<u16>());
    Ok(())
}

/// What is wrong with a tile that the hardware would read elsewhere.
pub(super) enum TileProblem {
    /// The shared byte at which it begins.
    Start(u32),
    PanelBytes(u32),
    /// The byte of a row at which it begins.
    ColumnByte(u32),
}

impl TileProblem {
    pub fn in_words(&self, column_bytes: usize) -> String {
        match self {
            Self::Start(start) => {
                format!("begins at shared byte {start}, which is not aligned to 1024")
            }
            Self::PanelBytes(bytes) => {
                format!("has panels of {bytes} bytes, which is not a multiple of 1024")
            }
            Self::ColumnByte(byte) => {
                let (column, multiple) = (*byte as usize / column_bytes, K_BYTES / column_bytes);
                format!("begins at column {column}, which is not a multiple of {multiple}")
            }
        }
    }
}

/// Refuses a tile that the hardware would read elsewhere.
#[track_caller]
pub(super) unsafe fn check_tile(tile: SwizzledTile<u8>, rows: usize) -> Result<(), TileProblem> {
    let start = start_of(tile);
    let byte = start % TILE_ALIGNMENT;
    if byte >= ROW_BYTES {
        return Err(TileProblem::Start(start - byte % ROW_BYTES));
    }
    if !byte.is_multiple_of(K_BYTES as u32) {
        return Err(TileProblem::ColumnByte(byte));
    }
    // The last row's first piece lies last.
    tile.place(rows - 1, 0).raw.check_load(PIECE_BYTES, PIECE_BYTES);
    Ok(())
}
