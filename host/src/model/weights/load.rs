//! Weights into device memory: everything is checked first, then copied in large pieces, or made there.

use gpu_kernels::seeded_values::contract::SeededValuesShape;
use half::bf16;

use super::{Part, Stack, WeightSource, Weights, plan};
use crate::device::{Buffer, Stream};
use crate::kernels::seeded_values;
use crate::model::ModelError;
use crate::model::config::ModelConfig;

/// Elements of a piece: 64 MiB.
const PIECE_ELEMENTS: usize = 32 << 20;

/// How far loading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes on the device.
    pub loaded_bytes: u64,
    /// Of how many.
    pub total_bytes: u64,
}

/// Checks that `source` has what `config` asks for, then copies it all to the device of `stream`, or has
/// a GPU make what follows from a seed; waits until it is all there.
///
/// # Errors
/// Before any memory is allocated: a tensor that is missing, of another shape or type, broken, or
/// unknown, by its name. Later: no memory.
pub fn load(
    stream: &Stream,
    config: &ModelConfig,
    source: &dyn WeightSource,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Weights<Buffer<bf16>>, ModelError> {
    let stacks = plan(config);
    let parts: Vec<Part> =
        stacks.clone().into_tensors().into_iter().flat_map(|stack| stack.parts).collect();
    parts.iter().try_for_each(|part| source.check(part))?;
    source.check_complete(&parts)?;
    let num_elements: usize = parts.iter().map(Part::num_elements).sum();
    let longest = parts.iter().map(Part::num_elements).max().unwrap_or(0);
    let mut loader = Loader {
        stream,
        source,
        piece: vec![bf16::ZERO; longest.min(PIECE_ELEMENTS)],
        loaded_bytes: 0,
        total_bytes: (num_elements * size_of::<bf16>()) as u64,
        progress,
    };
    let weights = stacks.try_map(&mut |stack| loader.load(&stack))?;
    stream.synchronize()?;
    Ok(weights)
}

struct Loader<'a> {
    stream: &'a Stream,
    source: &'a dyn WeightSource,
    piece: Vec<bf16>,
    loaded_bytes: u64,
    total_bytes: u64,
    progress: &'a mut dyn FnMut(LoadProgress),
}

impl Loader<'_> {
    fn load(&mut self, stack: &Stack) -> Result<Buffer<bf16>, ModelError> {
        let buffer = self.stream.device().alloc(stack.num_elements())?;
        let mut start_of_part = 0;
        for part in &stack.parts {
            let len = part.num_elements();
            if self.makes(part, &buffer, start_of_part)? {
                self.advance(len);
                start_of_part += len;
                continue;
            }
            let longest_piece = self.piece.len();
            for start in (0..len).step_by(longest_piece) {
                let piece = &mut self.piece[..longest_piece.min(len - start)];
                self.source.read(part, start, piece)?;
                let place = start_of_part + start;
                self.stream.upload(piece, buffer.slice(place..place + piece.len()))?;
                let len = piece.len();
                self.advance(len);
            }
            start_of_part += len;
        }
        self.stream.fill_bytes(buffer.slice(start_of_part..), 0)?;
        Ok(buffer)
    }

    /// Has the device make a part that follows from a seed, from an element of the buffer on. Does
    /// nothing where it must be copied.
    fn makes(
        &self,
        part: &Part,
        buffer: &Buffer<bf16>,
        first_out: usize,
    ) -> Result<bool, ModelError> {
        let Some(tensor) = self.source.seeded(part).filter(|_| self.stream.device().is_cuda())
        else {
            return Ok(false);
        };
        let shape = shape_of(part, first_out);
        let is_taken = shape.check().is_ok();
        if is_taken {
            seeded_values::fill(self.stream, shape, tensor, buffer)?;
        }
        Ok(is_taken)
    }

    fn advance(&mut self, num_elements: usize) {
        self.loaded_bytes += (num_elements * size_of::<bf16>()) as u64;
        let (loaded_bytes, total_bytes) = (self.loaded_bytes, self.total_bytes);
        (self.progress)(LoadProgress { loaded_bytes, total_bytes });
    }
}

/// A part, as the kernel makes it.
pub(super) fn shape_of(part: &Part, first_out: usize) -> SeededValuesShape {
    SeededValuesShape {
        row_len: part.shape[1..].iter().product::<usize>() as u32,
        first_row: part.rows.start as u32,
        num_rows: part.rows.len() as u32,
        first_column: part.columns.start as u32,
        num_columns: part.columns.len() as u32,
        first_out,
    }
}
