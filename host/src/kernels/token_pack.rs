//! Launches of the room `token_pack`.

use bytemuck::Pod;
use cuda_std::float::E4m3;
use cuda_std::global::{Global, GlobalMut};
use gpu_kernels::contract::{ContractError, require, require_len};
use gpu_kernels::token_pack::contract::PackShape;
use gpu_kernels::token_pack::device as entries;
use gpu_kernels::token_rows::RowFormat;
use half::bf16;

use super::KernelError;
use super::moe_permute::Permutation;
use crate::device::{Buffer, Stream};

/// Which kernel packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackVariant {
    /// Gathers: a block for each row.
    Baseline,
    /// Fans out: a block for each piece of a token.
    Fanout,
}

impl PackVariant {
    /// All of them, baseline first.
    pub const ALL: [Self; 2] = [Self::Baseline, Self::Fanout];
}

/// A pack whose sizes were checked.
#[derive(Clone, Copy, Debug)]
pub struct Pack {
    shape: PackShape,
}

/// What one run of [`Pack`] reads and writes.
#[derive(Clone, Copy)]
pub struct PackArgs<'a, T> {
    /// `[num_tokens, hidden]`
    pub x: &'a Buffer<T>,
    /// `[num_tokens, hidden.div_ceil(128)]`, in fp8
    pub x_scales: Option<&'a Buffer<f32>>,
    /// Where each token goes.
    pub permutation: &'a Permutation,
    /// `[num_max_rows, hidden]`
    pub rows: &'a Buffer<T>,
    /// `[num_max_rows, hidden.div_ceil(128)]`, in fp8
    pub row_scales: Option<&'a Buffer<f32>>,
}

/// An element of rows: bf16, or fp8 e4m3.
pub trait RowElement: Pod {
    /// The format that it is the element of.
    const FORMAT: RowFormat;
}

impl RowElement for bf16 {
    const FORMAT: RowFormat = RowFormat::Bf16;
}

impl RowElement for E4m3 {
    const FORMAT: RowFormat = RowFormat::Fp8;
}

impl Pack {
    /// A pack of this shape.
    ///
    /// # Errors
    /// Sizes that the kernels do not take.
    pub fn new(shape: PackShape) -> Result<Self, KernelError> {
        shape.check()?;
        Ok(Self { shape })
    }

    /// Its sizes.
    pub fn shape(&self) -> &PackShape {
        &self.shape
    }

    /// Copies all tokens to their rows.
    ///
    /// # Errors
    /// Before any launch: arguments of the wrong length or type, a permutation of other sizes.
    pub fn run<T: RowElement>(
        &self,
        stream: &Stream,
        variant: PackVariant,
        args: &PackArgs<'_, T>,
    ) -> Result<(), KernelError> {
        self.check(args)?;
        let (shape, permutation) = (&self.shape, args.permutation);
        let (x, rows) = (args.x.view().cast(), args.rows.view_mut().cast());
        let x_scales = args.x_scales.map_or(Global::null(), Buffer::view);
        let row_scales = args.row_scales.map_or(GlobalMut::null(), Buffer::view_mut);
        let dims = match variant {
            PackVariant::Baseline => shape.baseline_dims(),
            PackVariant::Fanout => shape.fanout_dims(),
        };
        if dims.grid[0] == 0 {
            return Ok(());
        }
        match variant {
            PackVariant::Baseline => {
                let kernel = entries::token_pack_rows_baseline {
                    x,
                    x_scales,
                    params: shape.params(),
                    row_pairs: permutation.row_pairs.view(),
                    expert_offsets: permutation.expert_offsets.view(),
                    rows,
                    row_scales,
                };
                // SAFETY: shape and lengths were checked; pairs and rows are checked where they
                // are used.
                unsafe { stream.launch(dims, kernel) }?;
            }
            PackVariant::Fanout => {
                let kernel = entries::token_pack_rows_fanout {
                    x,
                    x_scales,
                    params: shape.params(),
                    pair_rows: permutation.pair_rows.view(),
                    expert_counts: permutation.expert_counts.view(),
                    expert_offsets: permutation.expert_offsets.view(),
                    rows,
                    row_scales,
                };
                // SAFETY: as above.
                unsafe { stream.launch(dims, kernel) }?;
            }
        }
        stream.keep(args.x);
        stream.keep(args.rows);
        [args.x_scales, args.row_scales].into_iter().flatten().for_each(|part| stream.keep(part));
        permutation.keep(stream);
        Ok(())
    }

    fn check<T: RowElement>(&self, args: &PackArgs<'_, T>) -> Result<(), ContractError> {
        let (shape, rows) = (&self.shape, &self.shape.rows);
        require(rows.format == T::FORMAT, "x", rows.format.name(), T::FORMAT.name())?;
        require_len("x", rows.x_elements(), args.x.len())?;
        require_len("x_scales", rows.x_scales(), args.x_scales.map_or(0, Buffer::len))?;
        require_len("rows", rows.rows_elements(), args.rows.len())?;
        require_len("row_scales", rows.rows_scales(), args.row_scales.map_or(0, Buffer::len))?;
        let of = args.permutation.shape();
        let fits = of.num_tokens == rows.num_tokens
            && of.top_k == rows.top_k
            && of.num_local_experts() == shape.num_local_experts as usize
            && rows.num_max_rows as usize <= of.num_max_rows();
        require(fits, "permutation", "of the tokens, slots, experts and rows of the pack", "other")
    }
}
