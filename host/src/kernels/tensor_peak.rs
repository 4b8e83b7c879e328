//! Launches of the room `tensor_peak`.

use gpu_kernels::tensor_peak::contract::{TensorPeakShape, TensorPeakVariant};
use gpu_kernels::tensor_peak::device::{tensor_peak_mma, tensor_peak_wgmma};
use gpu_kernels::tensor_peak::reference;
use half::bf16;

use super::KernelError;
use crate::device::{Buffer, Device, Stream};

/// Multiplies random tiles again and again: what the tensor cores give when nothing else is done.
pub struct TensorPeak {
    shape: TensorPeakShape,
    a: Buffer<bf16>,
    b: Buffer<bf16>,
    out: Buffer<f32>,
    expected: Vec<f64>,
}

impl TensorPeak {
    /// The fastest measurement that `device` can do, in one block for each of its multiprocessors.
    pub fn fastest_shape(device: &Device, num_steps: u32) -> Result<TensorPeakShape, KernelError> {
        let variant = match device.has_hopper_kernels() {
            true => TensorPeakVariant::Wgmma,
            false => TensorPeakVariant::Mma,
        };
        Ok(TensorPeakShape { variant, num_blocks: device.num_multiprocessors()?, num_steps })
    }

    /// A measurement of this shape, on operands of this seed.
    ///
    /// # Errors
    /// No blocks, or no steps.
    pub fn new(stream: &Stream, shape: TensorPeakShape, seed: u64) -> Result<Self, KernelError> {
        shape.check()?;
        let [a, b] = reference::inputs(shape.variant, seed);
        Ok(Self {
            shape,
            a: Buffer::from_slice(stream, &a)?,
            b: Buffer::from_slice(stream, &b)?,
            out: stream.device().alloc(shape.out_elements())?,
            expected: reference::product(&shape, &a, &b),
        })
    }

    /// Floating-point operations of a run.
    pub fn flops(&self) -> u64 {
        self.shape.work().flops
    }

    /// Multiplies once.
    pub fn run(&self, stream: &Stream) -> Result<(), KernelError> {
        let (a, b, out) = (self.a.view(), self.b.view(), self.out.view_mut());
        let num_steps = self.shape.num_steps;
        let dims = self.shape.dims();
        match self.shape.variant {
            TensorPeakVariant::Wgmma => {
                let kernel = tensor_peak_wgmma { a, b, num_steps, out };
                // SAFETY: the contract was checked for these buffers, which are kept below.
                unsafe { stream.launch(dims, kernel) }?;
            }
            TensorPeakVariant::Mma => {
                let kernel = tensor_peak_mma { a, b, num_steps, out };
                // SAFETY: as above.
                unsafe { stream.launch(dims, kernel) }?;
            }
        }
        stream.keep(&self.a);
        stream.keep(&self.b);
        stream.keep(&self.out);
        Ok(())
    }

    /// How far the last run's result is from the right one, at most
    /// [`MAX_RELATIVE_ERROR`](reference::MAX_RELATIVE_ERROR) if all went well; waits.
    pub fn relative_error(&self, stream: &Stream) -> Result<f64, KernelError> {
        Ok(reference::relative_error(&stream.download(&self.out)?, &self.expected))
    }
}
