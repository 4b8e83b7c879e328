//! Launches of the room `expert_gemm`.

use gpu_kernels::contract::require_len;
use gpu_kernels::expert_gemm::contract::ExpertGemmShape;
use gpu_kernels::expert_gemm::device as entries;
use gpu_kernels::shared_expert::contract::SharedExpertShape;
use half::bf16;

use super::KernelError;
use super::gemm::tensor_maps;
use super::shared_expert::silu_mul;
use crate::device::{Buffer, Stream};

/// Which kernel multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertGemmVariant {
    /// A block for each tile, `cp.async` and `mma`, and a gate behind it: Ampere and later.
    Baseline,
    /// Persistent blocks, tiles as even as an expert's rows allow, the gate in them: Hopper.
    Grouped,
}

/// Grouped products of one shape, for any routing.
#[derive(Debug)]
pub struct ExpertGemm {
    shape: ExpertGemmShape,
    variant: ExpertGemmVariant,
    num_sms: u32,
    /// What the baseline's gate takes, where there is one: `[num_rows, 2 n]`.
    gate_up: Option<Buffer<bf16>>,
}

/// What one run of [`ExpertGemm`] reads and writes.
#[derive(Clone, Copy)]
pub struct ExpertGemmArgs<'a> {
    /// `[num_rows, k]`, sorted by expert
    pub a: &'a Buffer<bf16>,
    /// `[num_experts, n, k]`; gated `[num_experts, 2 n, k]`, an expert's gates first
    pub b: &'a Buffer<bf16>,
    /// `[num_experts + 1]`: where each expert's rows begin, and where the last one's end
    pub expert_offsets: &'a Buffer<i32>,
    /// `[num_rows, n]`
    pub c: &'a Buffer<bf16>,
}

impl ExpertGemm {
    /// Products by the fastest kernel that the device of `stream` has for this shape.
    ///
    /// # Errors
    /// A shape that the kernels do not take, in words; no memory for what a gate takes.
    pub fn new(stream: &Stream, shape: ExpertGemmShape) -> Result<Self, KernelError> {
        let variant = match stream.device().has_hopper_kernels() {
            true => ExpertGemmVariant::Grouped,
            false => ExpertGemmVariant::Baseline,
        };
        Self::with_variant(stream, shape, variant)
    }

    /// Products by a kernel of one's choice.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_variant(
        stream: &Stream,
        shape: ExpertGemmShape,
        variant: ExpertGemmVariant,
    ) -> Result<Self, KernelError> {
        shape.check()?;
        let device = stream.device();
        let gate_up = match variant == ExpertGemmVariant::Baseline && shape.is_gated {
            // The gate reads rows of no expert too.
            true => Some(device.alloc_zeroed(without_gate(shape).c_elements())?),
            false => None,
        };
        Ok(Self { shape, variant, num_sms: device.num_multiprocessors()?, gate_up })
    }

    /// The same products on at most `num_sms` multiprocessors, which leaves the others to what runs
    /// beside them. The baseline, whose blocks are not persistent, takes what it gets.
    #[must_use]
    pub fn on_sms(self, num_sms: u32) -> Self {
        Self { num_sms: num_sms.clamp(1, self.num_sms), ..self }
    }

    /// The sizes this was made for.
    pub fn shape(&self) -> ExpertGemmShape {
        self.shape
    }

    /// `c[r] = a[r] b[e]^T` for the rows of each expert, or gated. Rows of no expert stay as they
    /// are, but behind the baseline's gate, which writes something there. Offsets are read on the device, when it gets there; those outside of 0 to `num_rows`
    /// count as the nearest.
    ///
    /// # Errors
    /// Before any launch: arguments of the wrong length.
    pub fn run(&self, stream: &Stream, args: ExpertGemmArgs<'_>) -> Result<(), KernelError> {
        let shape = &self.shape;
        require_len("a", shape.a_elements(), args.a.len())?;
        require_len("b", shape.b_elements(), args.b.len())?;
        require_len("expert_offsets", shape.offsets_elements(), args.expert_offsets.len())?;
        require_len("c", shape.c_elements(), args.c.len())?;
        match self.variant {
            ExpertGemmVariant::Baseline => match &self.gate_up {
                None => self.launch_baseline(stream, args)?,
                Some(gate_up) => {
                    self.launch_baseline(stream, ExpertGemmArgs { c: gate_up, ..args })?;
                    stream.keep(gate_up);
                    silu_mul(stream, gate_of(self.shape), gate_up, args.c)?;
                }
            },
            ExpertGemmVariant::Grouped => self.launch_grouped(stream, args)?,
        }
        for buffer in [args.a, args.b, args.c] {
            stream.keep(buffer);
        }
        stream.keep(args.expert_offsets);
        Ok(())
    }

    fn launch_baseline(
        &self,
        stream: &Stream,
        args: ExpertGemmArgs<'_>,
    ) -> Result<(), KernelError> {
        let shape = without_gate(self.shape);
        let ExpertGemmShape { num_rows, num_experts, n, k, .. } = shape;
        let kernel = entries::expert_gemm_baseline_bf16 {
            a: args.a.view(),
            b: args.b.view(),
            expert_offsets: args.expert_offsets.view(),
            num_rows,
            num_experts,
            n,
            k,
            c: args.c.view_mut(),
        };
        // SAFETY: the contract was checked, for these lengths.
        unsafe { stream.launch(shape.baseline_dims(), kernel) }?;
        Ok(())
    }

    fn launch_grouped(&self, stream: &Stream, args: ExpertGemmArgs<'_>) -> Result<(), KernelError> {
        let ExpertGemmShape { num_rows, num_experts, n, k, is_gated } = self.shape;
        let a = tensor_maps(args.a, &self.shape.a_tilings())?;
        let b = args.b.tensor_map(&self.shape.b_tiling())?;
        let c_maps = tensor_maps(args.c, &self.shape.c_tilings())?;
        let (expert_offsets, c) = (args.expert_offsets.view(), args.c.view_mut());
        let dims = self.shape.grouped_dims(self.num_sms);
        macro_rules! launch {
            ($kernel:ident) => {{
                let kernel = entries::$kernel {
                    a,
                    b,
                    c_maps,
                    expert_offsets,
                    num_rows,
                    num_experts,
                    n,
                    k,
                    c,
                };
                // SAFETY: the contract was checked, for these lengths.
                unsafe { stream.launch(dims, kernel) }?
            }};
        }
        match is_gated {
            true => launch!(expert_gemm_gated_bf16),
            false => launch!(expert_gemm_grouped_bf16),
        }
        Ok(())
    }
}

/// The product alone.
fn without_gate(shape: ExpertGemmShape) -> ExpertGemmShape {
    ExpertGemmShape { n: shape.b_rows(), is_gated: false, ..shape }
}

/// The gate alone.
fn gate_of(shape: ExpertGemmShape) -> SharedExpertShape {
    let ExpertGemmShape { num_rows, n, k, .. } = shape;
    SharedExpertShape { num_tokens: num_rows, hidden: k, intermediate: n }
}
