//! Launches of the room `kv_page_copy`.

use gpu_kernels::contract::require;
use gpu_kernels::kv_page_copy::KvPageMove;
use gpu_kernels::kv_page_copy::contract::{ALONE_BLOCKS, CopyShape, OVERLAP_BLOCKS};
use gpu_kernels::kv_page_copy::device::{kv_page_copy_baseline, kv_page_copy_bulk};

use super::KernelError;
use crate::device::{Buffer, Device, Stream};
use crate::kv::memory::KvMemory;

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
    pub fn alone(device: &Device) -> Self {
        Self::with_blocks(device, ALONE_BLOCKS)
    }

    /// The one that leaves most of `device` to what runs beside it.
    pub fn overlapping(device: &Device) -> Self {
        Self::with_blocks(device, OVERLAP_BLOCKS)
    }

    fn with_blocks(device: &Device, num_blocks: u32) -> Self {
        if device.has_hopper_kernels() { Self::Bulk { num_blocks } } else { Self::Baseline }
    }
}

/// A list of moves in device memory, checked against the KV memory that it copies within.
#[derive(Debug)]
pub struct PageCopy {
    shape: CopyShape,
    moves: Buffer<KvPageMove>,
    pool_pages: Vec<usize>,
}

impl PageCopy {
    /// Checks the moves, then uploads them; waits for `stream`.
    ///
    /// # Errors
    /// An empty list, places outside of the memory, a page that is written twice or both written
    /// and read: all in words.
    pub fn upload(
        stream: &Stream,
        moves: &[KvPageMove],
        memory: &KvMemory,
    ) -> Result<Self, KernelError> {
        // A list whose length does not fit in u32 fails the check of its length.
        let num_moves = u32::try_from(moves.len()).unwrap_or(u32::MAX);
        let page_bytes = memory.shape().page_bytes() as u32;
        let shape = CopyShape { num_moves, page_bytes };
        shape.check()?;
        shape.check_moves(moves, memory.pool_pages())?;
        let moves = Buffer::from_slice(stream, moves)?;
        Ok(Self { shape, moves, pool_pages: memory.pool_pages().to_vec() })
    }

    /// The sizes, and what they move.
    pub fn shape(&self) -> CopyShape {
        self.shape
    }

    /// Copies every page of the list. Nobody may write the pages that are read meanwhile, or touch
    /// those that are written.
    ///
    /// # Errors
    /// Before any launch: other memory than the moves were checked against, a number of blocks
    /// that the contract refuses, a variant that the device does not have.
    pub fn run(
        &self,
        stream: &Stream,
        variant: CopyVariant,
        memory: &KvMemory,
    ) -> Result<(), KernelError> {
        let fits = memory.pool_pages() == self.pool_pages
            && memory.shape().page_bytes() == self.shape.page_bytes as usize;
        require(fits, "memory", "what the moves were checked against", "other")?;
        let (moves, peer_kv_ptrs) = (self.moves.view(), memory.peer_kv_ptrs().view());
        let params = self.shape.params();
        match variant {
            CopyVariant::Baseline => {
                let kernel = kv_page_copy_baseline { moves, peer_kv_ptrs, params };
                // SAFETY: shape and moves were checked against memory like this.
                unsafe { stream.launch(self.shape.baseline_dims(), kernel) }?;
            }
            CopyVariant::Bulk { num_blocks } => {
                let kernel = kv_page_copy_bulk { moves, peer_kv_ptrs, params };
                let dims = self.shape.bulk_dims(num_blocks)?;
                // SAFETY: as above.
                unsafe { stream.launch(dims, kernel) }?;
            }
        }
        stream.keep(&self.moves);
        memory.keep(stream);
        Ok(())
    }
}
