//! Which tile comes when: plain arithmetic, the same on the host and on the device.

use super::stream::WEIGHT_ROWS;
use super::tma::STAGE_COLUMNS;

/// Rows of A after which a tile may end: the columns of `wgmma` come in such steps.
pub const ROW_STEP: u32 = 16;

/// The tiles of one product, in an order in which those that run together share operands.
///
/// The order goes down through all rows of C with [`GROUP`](Self::GROUP) tiles across, and only
/// then to the next tiles across.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raster {
    /// Tiles that A's rows take.
    pub m_tiles: u32,
    /// Tiles that B's rows take.
    pub n_tiles: u32,
}

impl Raster {
    /// Tiles across, in which the order goes down.
    pub const GROUP: u32 = 16;

    /// Number of tiles.
    #[inline(always)]
    pub const fn num_tiles(&self) -> u32 {
        self.m_tiles * self.n_tiles
    }

    /// Tile `idx` of the order: its place among the rows of A, and among those of B.
    #[inline(always)]
    pub const fn place(&self, idx: u32) -> (u32, u32) {
        let group_tiles = Self::GROUP * self.m_tiles;
        let (group, in_group) = (idx / group_tiles, idx % group_tiles);
        let first_n = group * Self::GROUP;
        let left = self.n_tiles - first_n;
        let across = if left < Self::GROUP { left } else { Self::GROUP };
        (in_group / across, first_n + in_group % across)
    }
}

/// Rows of A dealt to as few tiles as hold them, evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowTiles {
    /// All rows.
    pub num_rows: u32,
    /// Tiles they are dealt to.
    pub num_tiles: u32,
    /// Rows of a tile, the last one's apart; a multiple of [`ROW_STEP`].
    pub rows_per_tile: u32,
}

impl RowTiles {
    /// Deals `num_rows` rows to tiles of at most `max_rows`, a multiple of [`ROW_STEP`].
    #[inline(always)]
    pub const fn new(num_rows: u32, max_rows: u32) -> Self {
        let num_tiles = num_rows.div_ceil(max_rows);
        let share = if num_tiles == 0 { 0 } else { num_rows.div_ceil(num_tiles) };
        Self { num_rows, num_tiles, rows_per_tile: share.next_multiple_of(ROW_STEP) }
    }

    /// First row of tile `idx`, and how many it has.
    #[inline(always)]
    pub const fn tile(&self, idx: u32) -> (u32, u32) {
        let first = idx * self.rows_per_tile;
        let left = self.num_rows - first;
        (first, if left < self.rows_per_tile { left } else { self.rows_per_tile })
    }
}

/// Part `part` of `num_steps` steps in `num_parts` that differ by at most one: from, to.
#[inline(always)]
pub const fn part_of(num_steps: u32, part: u32, num_parts: u32) -> [u32; 2] {
    [part * num_steps / num_parts, (part + 1) * num_steps / num_parts]
}

/// Steps of k of all tiles, one tile after the other, dealt to blocks in equal shares. So blocks that
/// follow each other may share a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Tiles of C.
    pub num_tiles: u32,
    /// Steps of a tile.
    pub num_steps: u32,
    /// Steps of a block, the last one's apart.
    pub steps_per_block: u32,
}

impl Shares {
    /// Of a product of B of `b_rows` rows and A of `m_tiles` tiles, both of `k` columns.
    #[inline(always)]
    pub const fn of_product(b_rows: u32, m_tiles: u32, k: u32, steps_per_block: u32) -> Self {
        Self {
            num_tiles: b_rows.div_ceil(WEIGHT_ROWS as u32) * m_tiles,
            num_steps: k.div_ceil(STAGE_COLUMNS as u32),
            steps_per_block,
        }
    }

    /// Blocks that have a share.
    #[inline(always)]
    pub const fn num_blocks(&self) -> u32 {
        (self.num_tiles * self.num_steps).div_ceil(self.steps_per_block)
    }

    /// Steps of block `block`: from, to.
    #[inline(always)]
    pub const fn steps_of(&self, block: u32) -> [u32; 2] {
        let (begin, all) = (block * self.steps_per_block, self.num_tiles * self.num_steps);
        let left = all - begin;
        [begin, begin + if left < self.steps_per_block { left } else { self.steps_per_block }]
    }

    /// The first and the last block that have steps of tile `tile`.
    #[inline(always)]
    pub const fn blocks_of(&self, tile: u32) -> [u32; 2] {
        let begin = tile * self.num_steps;
        [begin / self.steps_per_block, (begin + self.num_steps - 1) / self.steps_per_block]
    }
}
