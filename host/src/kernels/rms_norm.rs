//! Launches of the room `rms_norm`.

use gpu_kernels::contract::require_len;
use gpu_kernels::rms_norm::contract::RmsNormShape;
use gpu_kernels::rms_norm::device as entries;
use half::bf16;

use super::KernelError;
use crate::device::{Buffer, Stream};

/// What a normalisation reads and writes.
#[derive(Clone, Copy)]
pub struct RmsNormArgs<'a> {
    /// `[num_rows, row_len]`
    pub x: &'a Buffer<bf16>,
    /// `[row_len]`
    pub weight: &'a Buffer<bf16>,
    /// `[num_rows, row_len]`
    pub out: &'a Buffer<bf16>,
}

/// `out = bf16(x / sqrt(mean(x^2) + eps)) * weight`, row by row.
///
/// # Errors
/// Before the launch: sizes that the kernels do not take, arguments of the wrong length.
pub fn rms_norm(
    stream: &Stream,
    shape: RmsNormShape,
    args: RmsNormArgs<'_>,
) -> Result<(), KernelError> {
    check(shape, args)?;
    if shape.num_rows == 0 {
        return Ok(());
    }
    let (x, weight, out) = (args.x.view(), args.weight.view(), args.out.view_mut());
    let params = shape.params();
    macro_rules! launch {
        ($entry:ident) => {
            // SAFETY: shape and lengths were checked.
            unsafe { stream.launch(shape.dims(), entries::$entry { x, weight, params, out }) }?
        };
    }
    match shape.thread_words() {
        1 => launch!(rms_norm_rows_bf16_x1),
        2 => launch!(rms_norm_rows_bf16_x2),
        4 => launch!(rms_norm_rows_bf16_x4),
        _ => launch!(rms_norm_rows_bf16_x8),
    }
    keep(stream, args);
    Ok(())
}

/// `x += delta`, then as [`rms_norm`], in one launch: `args.x` is the residual stream, which changes;
/// `delta` is `[num_rows, row_len]`.
///
/// # Errors
/// As [`rms_norm`].
pub fn add_rms_norm(
    stream: &Stream,
    shape: RmsNormShape,
    delta: &Buffer<bf16>,
    args: RmsNormArgs<'_>,
) -> Result<(), KernelError> {
    check(shape, args)?;
    require_len("delta", shape.elements(), delta.len())?;
    if shape.num_rows == 0 {
        return Ok(());
    }
    let (x, weight, out) = (args.x.view_mut(), args.weight.view(), args.out.view_mut());
    let (params, added) = (shape.params(), delta.view());
    macro_rules! launch {
        ($entry:ident) => {{
            let kernel = entries::$entry { x, delta: added, weight, params, out };
            // SAFETY: shape and lengths were checked.
            unsafe { stream.launch(shape.dims(), kernel) }?
        }};
    }
    match shape.thread_words() {
        1 => launch!(rms_norm_add_rows_bf16_x1),
        2 => launch!(rms_norm_add_rows_bf16_x2),
        4 => launch!(rms_norm_add_rows_bf16_x4),
        _ => launch!(rms_norm_add_rows_bf16_x8),
    }
    stream.keep(delta);
    keep(stream, args);
    Ok(())
}

/// `x += delta`, both `[num_rows, row_len]`.
///
/// # Errors
/// As [`rms_norm`].
pub fn add(
    stream: &Stream,
    shape: RmsNormShape,
    x: &Buffer<bf16>,
    delta: &Buffer<bf16>,
) -> Result<(), KernelError> {
    shape.check()?;
    require_len("x", shape.elements(), x.len())?;
    require_len("delta", shape.elements(), delta.len())?;
    if shape.num_rows == 0 {
        return Ok(());
    }
    let num_words = shape.num_words();
    let kernel = entries::rms_norm_add_bf16 { x: x.view_mut(), delta: delta.view(), num_words };
    // SAFETY: shape and lengths were checked.
    unsafe { stream.launch(shape.add_dims(), kernel) }?;
    stream.keep(x);
    stream.keep(delta);
    Ok(())
}

fn check(shape: RmsNormShape, args: RmsNormArgs<'_>) -> Result<(), KernelError> {
    shape.check()?;
    require_len("x", shape.elements(), args.x.len())?;
    require_len("weight", shape.row_len as usize, args.weight.len())?;
    require_len("out", shape.elements(), args.out.len())?;
    Ok(())
}

fn keep(stream: &Stream, args: RmsNormArgs<'_>) {
    for buffer in [args.x, args.weight, args.out] {
        stream.keep(buffer);
    }
}
