//! Launches of the room `expert_gemm_fp8`.

use cuda_std::float::E4m3;
use gpu_kernels::contract::require_len;
use gpu_kernels::expert_gemm_fp8::contract::ExpertGemmFp8Shape;
use gpu_kernels::expert_gemm_fp8::device as entries;
use half::bf16;

use super::KernelError;
use super::gemm::tensor_maps;
use crate::device::{Buffer, Stream};

/// Which kernel multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertGemmFp8Variant {
    /// A block for each tile, `cp.async`, f16 in registers and `mma`: Ampere and later.
    Baseline,
    /// Persistent blocks, e4m3 by `wgmma`: Hopper.
    Grouped,
}

impl ExpertGemmFp8Variant {
    /// All of them, baseline first.
    pub const ALL: [Self; 2] = [Self::Baseline, Self::Grouped];
}

/// Grouped products in fp8 of one shape, for any routing.
#[derive(Clone, Copy, Debug)]
pub struct ExpertGemmFp8 {
    shape: ExpertGemmFp8Shape,
    variant: ExpertGemmFp8Variant,
    num_sms: u32,
}

/// What one run of [`ExpertGemmFp8`] reads and writes.
#[derive(Clone, Copy)]
pub struct ExpertGemmFp8Args<'a> {
    /// `[num_rows, k]`, sorted by expert
    pub a: &'a Buffer<E4m3>,
    /// `[num_rows, k.div_ceil(128)]`, as [`Pack`](super::token_pack::Pack) leaves `row_scales`
    pub a_scales: &'a Buffer<f32>,
    /// `[num_experts, n, k]`
    pub b: &'a Buffer<E4m3>,
    /// `[num_experts, n.div_ceil(128), k.div_ceil(128)]`
    pub b_scales: &'a Buffer<f32>,
    /// `[num_experts + 1]`: where each expert's rows begin, and where the last one's end
    pub expert_offsets: &'a Buffer<i32>,
    /// `[num_rows, n]`
    pub c: &'a Buffer<bf16>,
}

impl ExpertGemmFp8 {
    /// Products by the fastest kernel that the device of `stream` has.
    ///
    /// # Errors
    /// A shape that the kernels do not take, in words.
    pub fn new(stream: &Stream, shape: ExpertGemmFp8Shape) -> Result<Self, KernelError> {
        let variant = match stream.device().has_hopper_kernels() {
            true => ExpertGemmFp8Variant::Grouped,
            false => ExpertGemmFp8Variant::Baseline,
        };
        Self::with_variant(stream, shape, variant)
    }

    /// Products by a kernel of one's choice.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_variant(
        stream: &Stream,
        shape: ExpertGemmFp8Shape,
        variant: ExpertGemmFp8Variant,
    ) -> Result<Self, KernelError> {
        shape.check()?;
        let num_sms = stream.device().num_multiprocessors()?;
        Ok(Self { shape, variant, num_sms })
    }

    /// The same products on at most `num_sms` multiprocessors, which leaves the others to what runs
    /// beside them. The baseline, whose blocks are not persistent, takes what it gets.
    #[must_use]
    pub fn on_sms(self, num_sms: u32) -> Self {
        Self { num_sms: num_sms.clamp(1, self.num_sms), ..self }
    }

    /// The sizes this was made for.
    pub fn shape(&self) -> ExpertGemmFp8Shape {
        self.shape
    }

    /// `c[r] = a[r] b[e]^T` for the rows of each expert, elements times their scales. Rows of no expert
    /// stay as they are. Offsets are read on the device, when it gets there; those outside of 0 to
    /// `num_rows` count as the nearest.
    ///
    /// # Errors
    /// Before any launch: arguments of the wrong length.
    pub fn run(&self, stream: &Stream, args: ExpertGemmFp8Args<'_>) -> Result<(), KernelError> {
        let shape = &self.shape;
        require_len("a", shape.a_elements(), args.a.len())?;
        require_len("a_scales", shape.a_scales(), args.a_scales.len())?;
        require_len("b", shape.b_elements(), args.b.len())?;
        require_len("b_scales", shape.b_scales(), args.b_scales.len())?;
        require_len("expert_offsets", shape.offsets_elements(), args.expert_offsets.len())?;
        require_len("c", shape.c_elements(), args.c.len())?;
        let ExpertGemmFp8Shape { num_rows, num_experts, n, k } = self.shape;
        let (a_scales, b_scales) = (args.a_scales.view(), args.b_scales.view());
        let (expert_offsets, c) = (args.expert_offsets.view(), args.c.view_mut());
        match self.variant {
            ExpertGemmFp8Variant::Baseline => {
                let kernel = entries::expert_gemm_fp8_baseline {
                    a: args.a.view(),
                    a_scales,
                    b: args.b.view(),
                    b_scales,
                    expert_offsets,
                    num_rows,
                    num_experts,
                    n,
                    k,
                    c,
                };
                // SAFETY: the contract was checked, for these lengths.
                unsafe { stream.launch(shape.baseline_dims(), kernel) }?;
            }
            ExpertGemmFp8Variant::Grouped => {
                let kernel = entries::expert_gemm_fp8_grouped {
                    a: tensor_maps(args.a, &shape.a_tilings())?,
                    b: args.b.tensor_map(&shape.b_tiling())?,
                    c_maps: tensor_maps(args.c, &shape.c_tilings())?,
                    a_scales,
                    b_scales,
                    expert_offsets,
                    num_rows,
                    num_experts,
                    n,
                    k,
                    c,
                };
                // SAFETY: as above.
                unsafe { stream.launch(shape.grouped_dims(self.num_sms), kernel) }?;
            }
        }
        for buffer in [args.a, args.b] {
            stream.keep(buffer);
        }
        for buffer in [args.a_scales, args.b_scales] {
            stream.keep(buffer);
        }
        stream.keep(args.expert_offsets);
        stream.keep(args.c);
        Ok(())
    }
}
