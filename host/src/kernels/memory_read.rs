//! Launches of the room `memory_read`.

use cuda_std::global::Global;
use gpu_kernels::memory_read::contract::MemoryReadShape;
use gpu_kernels::memory_read::device::memory_read_16;
use gpu_kernels::memory_read::reference::fold;

use super::KernelError;
use crate::device::{Buffer, PinnedBuffer, Slice, Stream};

/// Blocks a multiprocessor: enough bytes on their way to reach the ceiling of an H200.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 8;

/// Reads a buffer again and again: what memory gives when nothing else is done.
pub struct MemoryRead<'a> {
    source: Global<u32>,
    /// What `source` looks at.
    memory: Slice<'a, u32>,
    shape: MemoryReadShape,
    out: Buffer<u32>,
}

impl<'a> MemoryRead<'a> {
    /// Reads of all of `source`, this device's or a peer's, from the device of `stream`.
    ///
    /// # Errors
    /// A source that is not whole 16-byte pieces.
    pub fn new(stream: &Stream, source: &'a Buffer<u32>) -> Result<Self, KernelError> {
        Self::of(stream, source.view(), source.num_bytes(), source.into())
    }

    /// Reads of all of `source`, in host memory, from the device of `stream`.
    ///
    /// # Errors
    /// A source that is not whole 16-byte pieces.
    pub fn pinned(stream: &Stream, source: &'a PinnedBuffer<u32>) -> Result<Self, KernelError> {
        Self::of(stream, source.view(), source.num_bytes(), source.into())
    }

    fn of(
        stream: &Stream,
        source: Global<u32>,
        num_bytes: usize,
        memory: Slice<'a, u32>,
    ) -> Result<Self, KernelError> {
        let device = stream.device();
        let num_blocks = BLOCKS_PER_MULTIPROCESSOR * device.num_multiprocessors()?;
        let shape = MemoryReadShape { num_bytes, num_blocks };
        shape.check()?;
        Ok(Self { source, memory, shape, out: device.alloc(shape.out_elements())? })
    }

    /// Bytes that a run reads.
    pub fn num_bytes(&self) -> usize {
        self.shape.num_bytes
    }

    /// Reads all of it once.
    pub fn run(&self, stream: &Stream) -> Result<(), KernelError> {
        let kernel = memory_read_16 {
            source: self.source,
            num_pieces: (self.shape.num_bytes / 16) as u64,
            out: self.out.view_mut(),
        };
        // SAFETY: the contract was checked for these buffers.
        unsafe { stream.launch(self.shape.dims(), kernel) }?;
        stream.keep(self.memory);
        stream.keep(&self.out);
        Ok(())
    }

    /// The xor of the words that the last run read; waits for it.
    pub fn folded(&self, stream: &Stream) -> Result<u32, KernelError> {
        Ok(fold(&stream.download(&self.out)?))
    }
}
