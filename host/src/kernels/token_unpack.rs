//! Launches of the room `token_unpack`.

use cuda_std::global::Global;
use gpu_kernels::contract::{ContractError, require_len};
use gpu_kernels::token_unpack::contract::UnpackShape;
use gpu_kernels::token_unpack::device as entries;
use half::bf16;

use super::KernelError;
use crate::device::{Buffer, Stream};

/// Which kernel adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnpackVariant {
    /// A block for each token, element by element.
    Baseline,
    /// A thread for each 16 bytes of a row.
    Wide,
}

impl UnpackVariant {
    /// All of them, baseline first.
    pub const ALL: [Self; 2] = [Self::Baseline, Self::Wide];
}

/// An unpack whose sizes were checked.
#[derive(Clone, Copy, Debug)]
pub struct Unpack {
    shape: UnpackShape,
}

/// What one run of [`Unpack`] reads and writes.
#[derive(Clone, Copy)]
pub struct UnpackArgs<'a> {
    /// `[num_max_rows, hidden]`
    pub rows: &'a Buffer<bf16>,
    /// `[num_tokens, top_k]`
    pub pair_rows: &'a Buffer<i32>,
    /// `[num_tokens, top_k]`
    pub topk_weights: &'a Buffer<f32>,
    /// `[num_tokens, hidden]`, if the shape has one; may be `out`
    pub addend: Option<&'a Buffer<bf16>>,
    /// `[num_tokens, hidden]`
    pub out: &'a Buffer<bf16>,
}

impl Unpack {
    /// An unpack of this shape.
    ///
    /// # Errors
    /// Sizes that the kernels do not take.
    pub fn new(shape: UnpackShape) -> Result<Self, KernelError> {
        shape.check()?;
        Ok(Self { shape })
    }

    /// Its sizes.
    pub fn shape(&self) -> &UnpackShape {
        &self.shape
    }

    /// Adds up the rows of all tokens.
    ///
    /// # Errors
    /// Before any launch: arguments of the wrong length.
    pub fn run(
        &self,
        stream: &Stream,
        variant: UnpackVariant,
        args: &UnpackArgs<'_>,
    ) -> Result<(), KernelError> {
        self.check(args)?;
        let shape = &self.shape;
        if shape.rows.num_tokens == 0 {
            return Ok(());
        }
        macro_rules! launch {
            ($kernel:ident, $dims:ident) => {{
                let kernel = entries::$kernel {
                    rows: args.rows.view(),
                    pair_rows: args.pair_rows.view(),
                    topk_weights: args.topk_weights.view(),
                    addend: args.addend.map_or(Global::null(), Buffer::view),
                    params: shape.params(),
                    out: args.out.view_mut(),
                };
                // SAFETY: shape and lengths were checked; rows are checked where they are used.
                unsafe { stream.launch(shape.$dims(), kernel) }?
            }};
        }
        match variant {
            UnpackVariant::Baseline => launch!(token_unpack_sum_baseline_bf16, baseline_dims),
            UnpackVariant::Wide => launch!(token_unpack_sum_wide_bf16, wide_dims),
        }
        [args.rows, args.out].into_iter().chain(args.addend).for_each(|part| stream.keep(part));
        stream.keep(args.pair_rows);
        stream.keep(args.topk_weights);
        Ok(())
    }

    fn check(&self, args: &UnpackArgs<'_>) -> Result<(), ContractError> {
        let rows = &self.shape.rows;
        require_len("rows", rows.rows_elements(), args.rows.len())?;
        require_len("pair_rows", rows.num_pairs(), args.pair_rows.len())?;
        require_len("topk_weights", rows.num_pairs(), args.topk_weights.len())?;
        let addend_len = args.addend.map_or(0, Buffer::len);
        require_len("addend", self.shape.addend_elements(), addend_len)?;
        require_len("out", rows.x_elements(), args.out.len())
    }
}
