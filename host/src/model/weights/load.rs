//! Weights into device memory: everything is checked first, then copied in large pieces.

use half::bf16;

use super::{Part, Stack, WeightSource, Weights, plan};
use crate::device::{Buffer, Stream};
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

/// Checks that `source` has what `config` asks for, then copies it all to the device of `stream`.
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
    stacks.try_map(&mut |stack| loader.load(&stack))
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
            let longest_piece = self.piece.len();
            for start in (0..len).step_by(longest_piece) {
                let piece = &mut self.piece[..longest_piece.min(len - start)];
                self.source.read(part, start, piece)?;
                let place = start_of_part + start;
                self.stream.upload(piece, buffer.slice(place..place + piece.len()))?;
                self.loaded_bytes += size_of_val(piece) as u64;
                let (loaded_bytes, total_bytes) = (self.loaded_bytes, self.total_bytes);
                (self.progress)(LoadProgress { loaded_bytes, total_bytes });
            }
            start_of_part += len;
        }
        self.stream.fill_bytes(buffer.slice(start_of_part..), 0)?;
        Ok(buffer)
    }
}
