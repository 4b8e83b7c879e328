//! What a copy of pages must be like, and what it does.

use std::collections::HashMap;
use std::format;
use std::vec::Vec;

use super::{BASELINE_THREADS, BULK_SHARED_BYTES, CopyParams, KvPageMove, MAX_PIECE_BYTES};
use crate::contract::{ContractError, LaunchDims, Work, require, require_len};
use crate::kv_layout::KvPagePlace;

/// Blocks of the bulk variant that fill the wire and leave the other SMs to compute.
pub const OVERLAP_BLOCKS: u32 = 8;
/// Blocks of the bulk variant when nothing else runs.
pub const ALONE_BLOCKS: u32 = 132;

/// Sizes of a copy launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyShape {
    /// Pages to copy.
    pub num_moves: u32,
    /// Bytes of a page.
    pub page_bytes: u32,
}

impl CopyShape {
    /// Refuses what the kernels do not take.
    ///
    /// With moves that [check](Self::check_moves), and pools as large as stated there, no thread
    /// of a launch with [these](Self::baseline_dims) [dims](Self::bulk_dims) then reaches out of
    /// bounds, and no two threads touch the same bytes unless both read.
    pub fn check(&self) -> Result<(), ContractError> {
        require(
            self.page_bytes > 0 && self.page_bytes.is_multiple_of(16),
            "page_bytes",
            "a positive multiple of 16",
            self.page_bytes,
        )?;
        require(self.page_bytes <= 1 << 30, "page_bytes", "at most 2^30", self.page_bytes)?;
        require(self.num_moves > 0, "num_moves", "at least 1", self.num_moves)?;
        let num_pieces = u64::from(self.num_moves) * u64::from(self.params().pieces_per_page);
        require(
            i32::try_from(num_pieces).is_ok(),
            "num_moves",
            format!("such that its pieces of {MAX_PIECE_BYTES} bytes are at most {}", i32::MAX),
            format!("{num_pieces} pieces"),
        )
    }

    /// Refuses moves that reach outside the pools of `pool_pages` pages (one pool a location, none
    /// overlapping another), write a page twice, or write a page that is also read.
    pub fn check_moves(
        &self,
        moves: &[KvPageMove],
        pool_pages: &[usize],
    ) -> Result<(), ContractError> {
        require_len("moves", self.num_moves as usize, moves.len())?;
        let mut written_by = HashMap::with_capacity(moves.len());
        for (i, &KvPageMove { src, dst }) in moves.iter().enumerate() {
            // Messages are made only for what is wrong.
            if !src.lies_in(pool_pages) {
                src.check(&format!("moves[{i}].src"), pool_pages)?;
            }
            if !dst.lies_in(pool_pages) {
                dst.check(&format!("moves[{i}].dst"), pool_pages)?;
            }
            if let Some(earlier) = written_by.insert(dst, i) {
                return Err(ContractError::new(
                    &format!("moves[{i}].dst"),
                    "a page that no other move writes",
                    format!("{dst}, which moves[{earlier}] writes"),
                ));
            }
        }
        for (i, KvPageMove { src, .. }) in moves.iter().enumerate() {
            if let Some(writer) = written_by.get(src) {
                return Err(ContractError::new(
                    &format!("moves[{i}].src"),
                    "a page that no move writes",
                    format!("{src}, which moves[{writer}] writes"),
                ));
            }
        }
        Ok(())
    }

    /// The sizes that the kernels take.
    pub fn params(&self) -> CopyParams {
        let page_units = self.page_bytes / 16;
        let piece_units = page_units.div_ceil(self.page_bytes.div_ceil(MAX_PIECE_BYTES));
        CopyParams {
            num_moves: self.num_moves,
            page_bytes: self.page_bytes,
            piece_bytes: 16 * piece_units,
            pieces_per_page: page_units.div_ceil(piece_units),
        }
    }

    /// Launch of the baseline kernel: a block for each piece.
    pub fn baseline_dims(&self) -> LaunchDims {
        LaunchDims {
            grid: [self.num_pieces(), 1, 1],
            block: [BASELINE_THREADS, 1, 1],
            shared_bytes: 0,
        }
    }

    /// Launch of the bulk kernel with `num_blocks` blocks, or as many as there are pieces.
    ///
    /// Refuses 9 to 16: they push slower over NVLink than [`OVERLAP_BLOCKS`] do.
    pub fn bulk_dims(&self, num_blocks: u32) -> Result<LaunchDims, ContractError> {
        require(
            matches!(num_blocks, 1..=OVERLAP_BLOCKS | 17..),
            "num_blocks",
            format!("1 to {OVERLAP_BLOCKS} (overlap) or from 17 on ({ALONE_BLOCKS} when alone)"),
            num_blocks,
        )?;
        Ok(LaunchDims {
            grid: [num_blocks.min(self.num_pieces()), 1, 1],
            block: [1, 1, 1],
            shared_bytes: BULK_SHARED_BYTES,
        })
    }

    /// Bytes that a launch moves.
    pub fn work(&self) -> Work {
        let copied_bytes = u64::from(self.num_moves) * u64::from(self.page_bytes);
        let list_bytes = u64::from(self.num_moves) * size_of::<KvPageMove>() as u64;
        Work { read_bytes: copied_bytes + list_bytes, written_bytes: copied_bytes, flops: 0 }
    }

    fn num_pieces(&self) -> u32 {
        self.num_moves * self.params().pieces_per_page
    }
}

/// Moves that collect `pages`, in order, into the first pages of location `staging_rank`.
pub fn gather(pages: &[KvPagePlace], staging_rank: u32) -> Vec<KvPageMove> {
    staging_places(staging_rank).zip(pages).map(|(dst, &src)| KvPageMove { src, dst }).collect()
}

/// Moves that bring the first pages of location `staging_rank`, in order, to `pages`.
pub fn scatter(staging_rank: u32, pages: &[KvPagePlace]) -> Vec<KvPageMove> {
    staging_places(staging_rank).zip(pages).map(|(src, &dst)| KvPageMove { src, dst }).collect()
}

fn staging_places(rank: u32) -> impl Iterator<Item = KvPagePlace> {
    (0..).map(move |index| KvPagePlace { rank, index })
}
