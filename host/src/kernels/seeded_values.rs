//! Launches of the room `seeded_values`.

use gpu_kernels::contract::require;
use gpu_kernels::seeded_values::contract::SeededValuesShape;
use gpu_kernels::seeded_values::device::seeded_values_fill_bf16;
use half::bf16;

use super::KernelError;
use crate::device::{Buffer, Stream};

/// What a tensor's values follow from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SeededTensor {
    /// Of the seed and the tensor's name.
    pub key: u64,
    /// No value is farther from 0.
    pub reach: f32,
}

/// Makes a part of a tensor in `out`, which may hold more before and after it.
///
/// # Errors
/// Before the launch: sizes that the kernel does not take, an `out` that is too short.
pub fn fill(
    stream: &Stream,
    shape: SeededValuesShape,
    SeededTensor { key, reach }: SeededTensor,
    out: &Buffer<bf16>,
) -> Result<(), KernelError> {
    shape.check()?;
    let needed = format!("at least {} elements", shape.out_elements());
    require(out.len() >= shape.out_elements(), "out", needed, out.len())?;
    if shape.num_elements() == 0 {
        return Ok(());
    }
    let kernel = seeded_values_fill_bf16 { out: out.view_mut(), params: shape.params(key, reach) };
    // SAFETY: shape and length were checked.
    unsafe { stream.launch(shape.dims(), kernel) }?;
    stream.keep(out);
    Ok(())
}
