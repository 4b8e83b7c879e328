//! Launches of the room `merge_states`.

use cuda_std::float::HalfFloat;
use gpu_kernels::contract::require_len;
use gpu_kernels::merge_states::contract::MergeStatesShape;
use gpu_kernels::merge_states::device::{merge_states_bf16, merge_states_f16};
use half::{bf16, f16};

use super::KernelError;
use crate::device::{Buffer, Stream};

/// What a merge reads and writes, all of it on the stream's device.
pub struct MergeArgs<'a, T> {
    /// `[num_states, num_rows, head_dim]`
    pub states_out: &'a Buffer<f32>,
    /// `[num_states, num_rows]`, base 2
    pub states_lse: &'a Buffer<f32>,
    /// `[num_rows, head_dim]`
    pub out: &'a Buffer<T>,
    /// `[num_rows]`, base 2
    pub lse: &'a Buffer<f32>,
}

/// Merges attention over parts of a context into attention over all of it. A state whose `lse` is
/// `-inf` counts nothing.
///
/// # Errors
/// Sizes that the kernels do not take, and arguments of the wrong length, before any launch.
pub fn merge_states<T: MergeElement>(
    stream: &Stream,
    shape: MergeStatesShape,
    args: &MergeArgs<'_, T>,
) -> Result<(), KernelError> {
    shape.check()?;
    require_len("states_out", shape.states_out_elements(), args.states_out.len())?;
    require_len("states_lse", shape.states_lse_elements(), args.states_lse.len())?;
    require_len("out", shape.out_elements(), args.out.len())?;
    require_len("lse", shape.lse_elements(), args.lse.len())?;
    // SAFETY: shape and lengths were checked.
    unsafe { T::launch(stream, shape, args)? };
    for buffer in [args.states_out, args.states_lse, args.lse] {
        stream.keep(buffer);
    }
    stream.keep(args.out);
    Ok(())
}

/// An element type that states merge into: bf16 and f16.
pub trait MergeElement: HalfFloat {
    #[doc(hidden)]
    unsafe fn launch(
        stream: &Stream,
        shape: MergeStatesShape,
        args: &MergeArgs<'_, Self>,
    ) -> Result<(), KernelError>;
}

macro_rules! merge_element {
    ($T:ty: $entry:ident) => {
        impl MergeElement for $T {
            unsafe fn launch(
                stream: &Stream,
                shape: MergeStatesShape,
                args: &MergeArgs<'_, Self>,
            ) -> Result<(), KernelError> {
                let kernel = $entry {
                    params: shape.params(),
                    states_out: args.states_out.view(),
                    states_lse: args.states_lse.view(),
                    out: args.out.view_mut(),
                    lse: args.lse.view_mut(),
                };
                // SAFETY: the caller vouches for checked sizes and arguments.
                Ok(unsafe { stream.launch(shape.dims(), kernel) }?)
            }
        }
    };
}

merge_element!(bf16: merge_states_bf16);
merge_element!(f16: merge_states_f16);
