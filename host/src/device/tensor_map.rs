//! Tensor maps over buffers.

use bytemuck::Pod;
use cuda_std::tensor_map::{TensorElement, TensorMap, Tiling};

use super::memory::Memory;
use super::{Buffer, PinnedBuffer, Result, Slice};

impl<T: Pod + TensorElement> Slice<'_, T> {
    /// A map of the tensor that begins with the first of these elements: what kernels take to load
    /// and store tiles of it.
    ///
    /// Like a view, it does not keep the memory: whoever launches a kernel with it
    /// [keeps](super::Stream::keep) the buffer.
    ///
    /// # Errors
    /// A tiling that the copy engine does not take, or that reaches outside of the slice, in words;
    /// a driver that refuses it.
    pub fn tensor_map<const RANK: usize>(
        &self,
        tiling: &Tiling<RANK>,
    ) -> Result<TensorMap<T, RANK>> {
        let map = TensorMap::new(self.view("tensor map")?, tiling)?;
        match self.memory() {
            Memory::Cuda(memory) => {
                let address = self.extent("tensor map")?.address();
                Ok(map.for_cuda_launch(memory.gpu().encode_tiled(
                    address,
                    tiling,
                    size_of::<T>(),
                )?))
            }
            Memory::Cpu(_) => Ok(map),
        }
    }
}

macro_rules! tensor_map {
    ($Buffer:ident) => {
        impl<T: Pod + TensorElement> $Buffer<T> {
            /// As [`Slice::tensor_map`], of the whole buffer.
            pub fn tensor_map<const RANK: usize>(
                &self,
                tiling: &Tiling<RANK>,
            ) -> Result<TensorMap<T, RANK>> {
                self.slice(..).tensor_map(tiling)
            }
        }
    };
}

tensor_map!(Buffer);
tensor_map!(PinnedBuffer);
