//! Launches of the room `embedding`.

use gpu_kernels::contract::require_len;
use gpu_kernels::embedding::contract::EmbeddingShape;
use gpu_kernels::embedding::device::embedding_gather_bf16;
use half::bf16;

use super::KernelError;
use crate::device::{Buffer, Stream};

/// What a gather reads and writes.
#[derive(Clone, Copy)]
pub struct GatherArgs<'a> {
    /// `[num_rows, row_len]`
    pub table: &'a Buffer<bf16>,
    /// `[num_ids]`; an index that is no row gives zeros
    pub row_ids: &'a Buffer<i32>,
    /// `[num_ids, row_len]`
    pub out: &'a Buffer<bf16>,
}

/// `out[i] = table[row_ids[i]]`: tokens' embeddings, or the rows of a batch's last tokens.
///
/// # Errors
/// Before the launch: sizes that the kernel does not take, arguments of the wrong length.
pub fn gather_rows(
    stream: &Stream,
    shape: EmbeddingShape,
    args: GatherArgs<'_>,
) -> Result<(), KernelError> {
    shape.check()?;
    require_len("table", shape.table_elements(), args.table.len())?;
    require_len("row_ids", shape.num_ids as usize, args.row_ids.len())?;
    require_len("out", shape.out_elements(), args.out.len())?;
    if shape.num_ids == 0 {
        return Ok(());
    }
    let kernel = embedding_gather_bf16 {
        table: args.table.view(),
        row_ids: args.row_ids.view(),
        params: shape.params(),
        out: args.out.view_mut(),
    };
    // SAFETY: shape and lengths were checked; the kernel checks each index.
    unsafe { stream.launch(shape.dims(), kernel) }?;
    stream.keep(args.table);
    stream.keep(args.row_ids);
    stream.keep(args.out);
    Ok(())
}
