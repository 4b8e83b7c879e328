//! From accumulators to C: transposed to rows of C in shared memory, and stored from there.

use cuda_std::prelude::*;
use cuda_std::tensor_map::TensorMaps;
use cuda_std::wgmma::SwizzledTile;
use half::bf16;

use super::pipeline::{ROWS, Tile};
use crate::gemm::schedule::ROW_STEP;
use crate::gemm::tma::{PANEL_ROWS, PANEL_STEPS, STAGING_BYTES};

/// Elements of a 16-byte piece, and pieces of a panel's row.
const PIECE: usize = 8;
const PIECES: usize = ROWS / PIECE;

/// Where products go.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    /// `[m, n]`, in boxes of 64 columns and 16, 32, 48 or 64 rows.
    pub maps: TensorMaps<bf16, 2, PANEL_STEPS>,
    /// The same: for rows that do not fill a box, since the rows after them are other tiles'.
    pub c: GlobalMut<bf16>,
    /// Columns of C.
    pub n: u32,
}

/// The output as one warpgroup writes it, through two panels of shared memory in turn.
pub(crate) struct OutputOf {
    to: Output,
    staging: Shared<u8>,
    panel: u32,
    pub warpgroup: u32,
    /// Of the warpgroup.
    thread: u32,
}

impl Output {
    /// `staging` holds all warpgroups' panels; `thread` counts from the first that multiplies.
    #[inline(always)]
    pub(crate) unsafe fn of_warpgroup(self, staging: Shared<u8>, thread: u32) -> OutputOf {
        let warpgroup = thread / wgmma::NUM_THREADS;
        let staging = staging.offset(warpgroup as usize * STAGING_BYTES);
        let thread = thread % wgmma::NUM_THREADS;
        OutputOf { to: self, staging, panel: 0, warpgroup, thread }
    }
}

impl OutputOf {
    /// Waits for the threads of this warpgroup.
    #[inline(always)]
    fn sync(&self) {
        thread::sync_some(1 + self.warpgroup, wgmma::NUM_THREADS);
    }

    /// Whether C has columns where this warpgroup's begin.
    #[inline(always)]
    pub fn has_columns(&self, tile: &Tile) -> bool {
        tile.first_column + self.warpgroup * (ROWS as u32) < self.to.n
    }

    /// Stores an accumulator of `N` registers: 64 columns of C, from the tile's first on, `column` later, and of the
    /// `2 N` rows those that exist.
    #[inline(always)]
    pub unsafe fn store<const N: usize>(
        &mut self,
        register: impl Fn(usize) -> f32,
        tile: &Tile,
        column: usize,
    ) {
        let first_column = tile.first_column + column as u32 + self.warpgroup * ROWS as u32;
        for panel in 0..(2 * N).div_ceil(PANEL_ROWS) {
            let staged = self.next_panel();
            for group in 0..PANEL_ROWS / ROW_STEP as usize {
                let first = panel * PANEL_ROWS + group * ROW_STEP as usize;
                if first < 2 * N {
                    self.stage(staged, group, |i| register(first / 2 + i));
                }
            }
            bulk::fence_proxy_async();
            self.sync();
            let first = (panel * PANEL_ROWS) as u32;
            let left = tile.num_rows.saturating_sub(first).min(PANEL_ROWS as u32);
            self.store_panel(staged, tile.first_row + first, first_column, left);
        }
    }

    /// Writes 16 rows of C, of which a thread has eight registers, as group `group` of a panel.
    #[inline(always)]
    unsafe fn stage(
        &self,
        staged: SwizzledTile<bf16>,
        group: usize,
        register: impl Fn(usize) -> f32,
    ) {
        let (warp_idx, lane) = (self.thread as usize / 32, self.thread as usize % 32);
        // Two matrices across, 16 columns of C, and two down, 16 rows.
        let matrices = [
            bf16::pack(register(0), register(1)),
            bf16::pack(register(2), register(3)),
            bf16::pack(register(4), register(5)),
            bf16::pack(register(6), register(7)),
        ];
        let row = group * ROW_STEP as usize + lane / 16 * 8 + lane % 8;
        let place = staged.place(row, 16 * warp_idx + lane / 8 % 2 * PIECE);
        mma::store_matrix_x4_transposed(place, matrices);
    }

    /// The panel whose stores are the oldest, once they have read it.
    #[inline(always)]
    unsafe fn next_panel(&mut self) -> SwizzledTile<bf16> {
        if self.thread == 0 {
            bulk::wait_group_read::<1>();
        }
        self.sync();
        let place = self.staging.offset(self.panel as usize * STAGING_BYTES / 2);
        self.panel ^= 1;
        SwizzledTile::at(place.cast())
    }

    /// Stores the first `num_rows` rows of a panel: by a box, and what does not fill one by pieces.
    #[inline(always)]
    unsafe fn store_panel(
        &self,
        staged: SwizzledTile<bf16>,
        first_row: u32,
        first_column: u32,
        num_rows: u32,
    ) {
        let in_boxes = num_rows / ROW_STEP * ROW_STEP;
        if self.thread == 0 {
            if in_boxes > 0 && first_column < self.to.n {
                let map = self.to.maps.get(in_boxes / ROW_STEP - 1);
                let coordinates = [first_column as i32, first_row as i32];
                bulk::store_tile(&map, coordinates, staged.place(0, 0));
            }
            bulk::commit_group();
        }
        let row = in_boxes + self.thread / PIECES as u32;
        let column = self.thread as usize % PIECES * PIECE;
        let column_of_c = first_column + column as u32;
        if row < num_rows && column_of_c < self.to.n {
            let piece = staged.place(row as usize, column).load_x4(0);
            let row_of_c = (first_row + row) as usize;
            self.to.c.store_x4(row_of_c * self.to.n as usize + column_of_c as usize, piece);
        }
    }

    /// Waits until shared memory may go.
    #[inline(always)]
    pub unsafe fn finish(&self) {
        if self.thread == 0 {
            bulk::wait_group_read::<0>();
        }
    }
}
