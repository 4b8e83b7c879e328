//! Launches of the room `sampling`.

use bytemuck::Pod;
use gpu_kernels::contract::require_len;
pub use gpu_kernels::sampling::SamplingRule;
use gpu_kernels::sampling::contract::SamplingShape;
use gpu_kernels::sampling::device as entries;
use half::bf16;

use super::KernelError;
use crate::device::{Buffer, Stream};

/// What choosing the most likely tokens reads and writes.
#[derive(Clone, Copy)]
pub struct ArgmaxArgs<'a, T> {
    /// `[batch, vocab_size]`
    pub logits: &'a Buffer<T>,
    /// `[batch]`; -1 where no logit is a number
    pub token_ids: &'a Buffer<i32>,
    /// `[batch]`, natural; minus infinity where there is no token
    pub logprobs: &'a Buffer<f32>,
}

/// The most likely token of each request, the lowest id among equals, and the logarithm of its
/// probability.
///
/// # Errors
/// Before the launch: sizes that the kernels do not take, arguments of the wrong length.
pub fn argmax<T: LogitElement>(
    stream: &Stream,
    shape: SamplingShape,
    args: ArgmaxArgs<'_, T>,
) -> Result<(), KernelError> {
    shape.check()?;
    require_len("logits", shape.logits_elements(), args.logits.len())?;
    require_len("token_ids", shape.batch as usize, args.token_ids.len())?;
    require_len("logprobs", shape.batch as usize, args.logprobs.len())?;
    if shape.batch == 0 {
        return Ok(());
    }
    // SAFETY: shape and lengths were checked.
    unsafe { T::argmax(stream, shape, args) }?;
    stream.keep(args.logits);
    stream.keep(args.token_ids);
    stream.keep(args.logprobs);
    Ok(())
}

/// What choosing tokens by rules reads and writes.
#[derive(Clone, Copy)]
pub struct ChooseArgs<'a, T> {
    /// `[batch, vocab_size]`
    pub logits: &'a Buffer<T>,
    /// `[batch]`, each [checked](SamplingRule::check)
    pub rules: &'a Buffer<SamplingRule>,
    /// `[batch]`; -1 where no logit is a number
    pub token_ids: &'a Buffer<i32>,
    /// `[batch]`, natural, before temperature and limits; minus infinity where there is no token
    pub logprobs: &'a Buffer<f32>,
}

/// A token of each request by its rule, and the logarithm of its probability. What a request gets
/// depends on its logits and its rule, and on nothing else.
///
/// # Errors
/// Before the launch: sizes that the kernels do not take, arguments of the wrong length.
pub fn choose<T: LogitElement>(
    stream: &Stream,
    shape: SamplingShape,
    args: ChooseArgs<'_, T>,
) -> Result<(), KernelError> {
    shape.check()?;
    require_len("logits", shape.logits_elements(), args.logits.len())?;
    require_len("rules", shape.batch as usize, args.rules.len())?;
    require_len("token_ids", shape.batch as usize, args.token_ids.len())?;
    require_len("logprobs", shape.batch as usize, args.logprobs.len())?;
    if shape.batch == 0 {
        return Ok(());
    }
    // SAFETY: shape and lengths were checked.
    unsafe { T::choose(stream, shape, args) }?;
    stream.keep(args.logits);
    stream.keep(args.rules);
    stream.keep(args.token_ids);
    stream.keep(args.logprobs);
    Ok(())
}

/// A type of logits that there are kernels for: bf16 and f32.
pub trait LogitElement: Pod {
    #[doc(hidden)]
    unsafe fn argmax(
        stream: &Stream,
        shape: SamplingShape,
        args: ArgmaxArgs<'_, Self>,
    ) -> Result<(), KernelError>;

    #[doc(hidden)]
    unsafe fn choose(
        stream: &Stream,
        shape: SamplingShape,
        args: ChooseArgs<'_, Self>,
    ) -> Result<(), KernelError>;
}

macro_rules! logit_element {
    ($T:ty: $argmax:ident, $choose:ident) => {
        impl LogitElement for $T {
            unsafe fn argmax(
                stream: &Stream,
                shape: SamplingShape,
                args: ArgmaxArgs<'_, Self>,
            ) -> Result<(), KernelError> {
                let kernel = entries::$argmax {
                    logits: args.logits.view(),
                    vocab_size: shape.vocab_size,
                    token_ids: args.token_ids.view_mut(),
                    logprobs: args.logprobs.view_mut(),
                };
                // SAFETY: the caller vouches for checked arguments.
                Ok(unsafe { stream.launch(shape.row_dims(), kernel) }?)
            }

            unsafe fn choose(
                stream: &Stream,
                shape: SamplingShape,
                args: ChooseArgs<'_, Self>,
            ) -> Result<(), KernelError> {
                let kernel = entries::$choose {
                    logits: args.logits.view(),
                    vocab_size: shape.vocab_size,
                    rules: args.rules.view(),
                    token_ids: args.token_ids.view_mut(),
                    logprobs: args.logprobs.view_mut(),
                };
                // SAFETY: the caller vouches for checked arguments.
                Ok(unsafe { stream.launch(shape.row_dims(), kernel) }?)
            }
        }
    };
}

logit_element!(bf16: sampling_argmax_row_bf16, sampling_choose_row_bf16);
logit_element!(f32: sampling_argmax_row_f32, sampling_choose_row_f32);
