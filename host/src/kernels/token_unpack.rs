//! Launches of the room `token_unpack`.

use cuda_std::float::E4m3;
use cuda_std::global::Global;
use gpu_kernels::contract::{ContractError, require, require_len};
use gpu_kernels::token_unpack::contract::UnpackShape;
use gpu_kernels::token_unpack::device as entries;
use half::bf16;

use super::KernelError;
use super::token_pack::RowElement;
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
pub struct UnpackArgs<'a, T> {
    /// `[num_max_rows, hidden]`
    pub rows: &'a Buffer<T>,
    /// `[num_max_rows, hidden.div_ceil(128)]`, in fp8
    pub row_scales: Option<&'a Buffer<f32>>,
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
    pub fn run<T: UnpackElement>(
        &self,
        stream: &Stream,
        variant: UnpackVariant,
        args: &UnpackArgs<'_, T>,
    ) -> Result<(), KernelError> {
        self.check(args)?;
        if self.shape.rows.num_tokens == 0 {
            return Ok(());
        }
        // SAFETY: shape and lengths were checked; rows are checked where they are used.
        unsafe { T::launch(stream, variant, &self.shape, args) }?;
        stream.keep(args.rows);
        [Some(args.out), args.addend].into_iter().flatten().for_each(|part| stream.keep(part));
        [Some(args.topk_weights), args.row_scales]
            .into_iter()
            .flatten()
            .for_each(|part| stream.keep(part));
        stream.keep(args.pair_rows);
        Ok(())
    }

    fn check<T: UnpackElement>(&self, args: &UnpackArgs<'_, T>) -> Result<(), ContractError> {
        let rows = &self.shape.rows;
        require(rows.format == T::FORMAT, "rows", rows.format.name(), T::FORMAT.name())?;
        require_len("rows", rows.rows_elements(), args.rows.len())?;
        require_len("row_scales", rows.rows_scales(), args.row_scales.map_or(0, Buffer::len))?;
        require_len("pair_rows", rows.num_pairs(), args.pair_rows.len())?;
        require_len("topk_weights", rows.num_pairs(), args.topk_weights.len())?;
        let addend_len = args.addend.map_or(0, Buffer::len);
        require_len("addend", self.shape.addend_elements(), addend_len)?;
        require_len("out", rows.x_elements(), args.out.len())
    }
}

/// A type of rows that there are kernels for: bf16, and fp8 e4m3.
pub trait UnpackElement: RowElement {
    #[doc(hidden)]
    unsafe fn launch(
        stream: &Stream,
        variant: UnpackVariant,
        shape: &UnpackShape,
        args: &UnpackArgs<'_, Self>,
    ) -> Result<(), KernelError>;
}

macro_rules! unpack_element {
    ($T:ty: $baseline:ident, $wide:ident) => {
        impl UnpackElement for $T {
            unsafe fn launch(
                stream: &Stream,
                variant: UnpackVariant,
                shape: &UnpackShape,
                args: &UnpackArgs<'_, Self>,
            ) -> Result<(), KernelError> {
                macro_rules! launch {
                    ($kernel:ident, $dims:ident) => {{
                        let kernel = entries::$kernel {
                            rows: args.rows.view(),
                            row_scales: args.row_scales.map_or(Global::null(), Buffer::view),
                            pair_rows: args.pair_rows.view(),
                            topk_weights: args.topk_weights.view(),
                            addend: args.addend.map_or(Global::null(), Buffer::view),
                            params: shape.params(),
                            out: args.out.view_mut(),
                        };
                        // SAFETY: the caller vouches for checked arguments.
                        unsafe { stream.launch(shape.$dims(), kernel) }?
                    }};
                }
                match variant {
                    UnpackVariant::Baseline => launch!($baseline, baseline_dims),
                    UnpackVariant::Wide => launch!($wide, wide_dims),
                }
                Ok(())
            }
        }
    };
}

unpack_element!(bf16: token_unpack_sum_baseline_bf16, token_unpack_sum_wide_bf16);
unpack_element!(E4m3: token_unpack_sum_baseline_fp8, token_unpack_sum_wide_fp8);
