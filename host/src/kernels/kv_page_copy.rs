//! Launches of the room `kv_page_copy`.

use gpu_kernels::contract::require_len;
use gpu_kernels::kv_page_copy::KvPageMove;
use gpu_kernels::kv_page_copy::contract::{ALONE_BLOCKS, CopyShape, OVERLAP_BLOCKS};
use gpu_kernels::kv_page_copy::device::{kv_page_copy_baseline, kv_page_copy_bulk};

use super::KernelError;
use crate::device::{Buffer, Device, DeviceError, Stream};

/// Which copy kernel runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyVariant {
    /// A block for each piece of 16 KiB, through registers: every GPU.
    Baseline,
    /// Few blocks of one thread, through the copy engine of an SM: Hopper, and the CPU.
    Bulk {
        /// Blocks to launch, at most: 1 to 8, or from 17 on.
        num_blocks: u32,
    },
}

impl CopyVariant {
    /// The fastest on `device` while nothing else runs there.
    pub fn alone(device: &Device) -> Result<Self, DeviceError> {
        Self::with_blocks(device, ALONE_BLOCKS)
    }

    /// The one that leaves most of `device` to what runs beside it.
    pub fn overlapping(device: &Device) -> Result<Self, DeviceError> {
        Self::with_blocks(device, OVERLAP_BLOCKS)
    }

    fn with_blocks(device: &Device, num_blocks: u32) -> Result<Self, DeviceError> {
        let has_bulk = match device.properties()?.ptx {
            Some(ptx) => ptx.is_hopper(),
            None => !device.is_cuda(),
        };
        Ok(if has_bulk { Self::Bulk { num_blocks } } else { Self::Baseline })
    }
}

/// A list of moves in device memory, checked against the pools that it copies between.
pub struct PageCopy {
    shape: CopyShape,
    moves: Buffer<KvPageMove>,
    num_locations: usize,
}

impl PageCopy {
    /// Checks the moves, then uploads them; waits for `stream`. `pool_pages` says how many pages of
    /// `page_bytes` each location has.
    ///
    /// # Errors
    /// An empty list, page sizes that the kernels do not take, places outside of the pools, a page
    /// that is written twice or both written and read: all in words.
    pub fn upload(
        stream: &Stream,
        page_bytes: u32,
        moves: &[KvPageMove],
        pool_pages: &[usize],
    ) -> Result<Self, KernelError> {
        // A list that does not fit in u32 fails the check of its length.
        let num_moves = u32::try_from(moves.len()).unwrap_or(u32::MAX);
        let shape = CopyShape { num_moves, page_bytes };
        shape.check()?;
        shape.check_moves(moves, pool_pages)?;
        let moves = Buffer::from_slice(stream, moves)?;
        Ok(Self { shape, moves, num_locations: pool_pages.len() })
    }

    /// The sizes, and what they move.
    pub fn shape(&self) -> CopyShape {
        self.shape
    }

    /// Copies every page of the list.
    ///
    /// # Errors
    /// A number of blocks that the contract refuses; a variant that the device does not have.
    ///
    /// # Safety
    /// Each of `peer_kv_ptrs` is the base of a pool of as many pages as the moves were checked
    /// against, readable and writable from the stream's device; pools do not overlap. Until the
    /// stream has passed this call, `self`, the table and the pools stay allocated, and nobody
    /// else writes the pages that are read, or touches those that are written.
    pub unsafe fn run(
        &self,
        stream: &Stream,
        variant: CopyVariant,
        peer_kv_ptrs: &Buffer<u64>, // [num_locations]
    ) -> Result<(), KernelError> {
        require_len("peer_kv_ptrs", self.num_locations, peer_kv_ptrs.len())?;
        let (moves, peer_kv_ptrs) = (self.moves.view(), peer_kv_ptrs.view());
        let params = self.shape.params();
        match variant {
            CopyVariant::Baseline => {
                let kernel = kv_page_copy_baseline { moves, peer_kv_ptrs, params };
                // SAFETY: `upload` has checked shape and moves; the pools are the caller's promise.
                unsafe { stream.launch(self.shape.baseline_dims(), kernel) }?;
            }
            CopyVariant::Bulk { num_blocks } => {
                let kernel = kv_page_copy_bulk { moves, peer_kv_ptrs, params };
                let dims = self.shape.bulk_dims(num_blocks)?;
                // SAFETY: as above.
                unsafe { stream.launch(dims, kernel) }?;
            }
        }
        Ok(())
    }
}
