//! Launches of the room `memory_write`.

use gpu_kernels::memory_write::contract::MemoryWriteShape;
use gpu_kernels::memory_write::device::{memory_write_16, memory_write_check_16};

use super::KernelError;
use crate::device::{Buffer, Stream};

/// Writes a buffer again and again: what memory or a link takes when nothing else is done.
pub struct MemoryWrite<'a> {
    target: &'a Buffer<u32>,
    shape: MemoryWriteShape,
    num_wrong: Buffer<u32>,
}

impl<'a> MemoryWrite<'a> {
    /// Writes of all of `target`, this device's or a peer's, from the device of `stream`, with one
    /// block for each of its multiprocessors.
    ///
    /// # Errors
    /// A target that is not whole 16-byte pieces.
    pub fn new(stream: &Stream, target: &'a Buffer<u32>) -> Result<Self, KernelError> {
        let num_blocks = stream.device().num_multiprocessors()?;
        Self::with_num_blocks(stream, target, num_blocks)
    }

    /// As [`new`](Self::new), with this number of blocks. Over NVLink 8 push nearly as much as
    /// all; 9 to 16 push less.
    ///
    /// # Errors
    /// A target that is not whole 16-byte pieces, and a number of blocks that no launch has.
    pub fn with_num_blocks(
        stream: &Stream,
        target: &'a Buffer<u32>,
        num_blocks: u32,
    ) -> Result<Self, KernelError> {
        let shape = MemoryWriteShape { num_bytes: target.num_bytes(), num_blocks };
        shape.check()?;
        Ok(Self { target, shape, num_wrong: stream.device().alloc(shape.num_threads())? })
    }

    /// Bytes that a run writes.
    pub fn num_bytes(&self) -> usize {
        self.shape.num_bytes
    }

    /// Writes all of it once. Each seed leaves another content.
    pub fn run(&self, stream: &Stream, seed: u64) -> Result<(), KernelError> {
        let kernel = memory_write_16 {
            target: self.target.view_mut(),
            num_pieces: self.shape.num_pieces(),
            seed,
        };
        // SAFETY: the contract was checked for this buffer, which is kept below.
        unsafe { stream.launch(self.shape.dims(), kernel) }?;
        stream.keep(self.target);
        Ok(())
    }

    /// How many 16-byte pieces do not hold what a run with `seed` leaves; waits.
    pub fn num_wrong_pieces(&self, stream: &Stream, seed: u64) -> Result<u64, KernelError> {
        let kernel = memory_write_check_16 {
            target: self.target.view(),
            num_pieces: self.shape.num_pieces(),
            seed,
            num_wrong: self.num_wrong.view_mut(),
        };
        // SAFETY: the contract was checked for these buffers, which are kept below.
        unsafe { stream.launch(self.shape.dims(), kernel) }?;
        stream.keep(self.target);
        stream.keep(&self.num_wrong);
        let num_wrong = stream.download(&self.num_wrong)?;
        Ok(num_wrong.iter().map(|&wrong| u64::from(wrong)).sum())
    }
}
