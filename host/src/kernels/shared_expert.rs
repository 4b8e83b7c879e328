//! Launches of the room `shared_expert`: two products of the room `gemm`, and a gate between them.

use gpu_kernels::contract::{ContractError, require, require_len};
use gpu_kernels::gemm::plan::{GemmKernel, GemmPlan, GemmVariant, StreamPlan};
use gpu_kernels::gemm::split_plan::SplitPlan;
use gpu_kernels::shared_expert::contract::SharedExpertShape;
use gpu_kernels::shared_expert::device as entries;
use half::bf16;

use super::KernelError;
use super::gemm::{Gemm, GemmArgs, tensor_maps};
use crate::device::{Buffer, Stream};

/// Where the gate is applied, and which kernels multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedExpertVariant {
    /// The products' baselines, the gate between them: Ampere and later.
    Baseline,
    /// The gate in the first product, in tiles for many tokens: Hopper.
    Fused,
    /// The gate in the first product, whose weights stream through all SMs, for few: Hopper.
    Stream,
    /// The gate in the first product, in tiles of two blocks each, for few: Hopper.
    Split,
}

impl SharedExpertVariant {
    /// What should be the fastest for this shape on `num_sms` SMs, with or without Hopper's kernels.
    fn fastest(shape: SharedExpertShape, num_sms: u32, has_hopper_kernels: bool) -> Self {
        match has_hopper_kernels {
            true if shape.num_tokens >= FUSED_FROM_TOKENS => Self::Fused,
            true if shape.is_faster_split(num_sms) => Self::Split,
            true => Self::Stream,
            false => Self::Baseline,
        }
    }
}

/// Tokens from which on the first product is in tiles for many: fewer leave them to too few SMs.
const FUSED_FROM_TOKENS: u32 = 512;

/// A shared expert of one shape: plans and workspace, made once.
pub struct SharedExpert {
    shape: SharedExpertShape,
    num_sms: u32,
    gate_up: GateUp,
    down: Gemm,
    h: Buffer<bf16>,
}

enum GateUp {
    /// The gate behind the product.
    Baseline {
        product: Gemm,
        gate_up: Buffer<bf16>,
    },
    Fused,
    Stream {
        plan: StreamPlan,
        sums: Buffer<f32>,
        arrived: Buffer<u32>,
    },
    Split(SplitPlan),
}

/// What one run of [`SharedExpert`] reads and writes.
#[derive(Clone, Copy)]
pub struct SharedExpertArgs<'a> {
    /// `[num_tokens, hidden]`
    pub x: &'a Buffer<bf16>,
    /// `[2 intermediate, hidden]`, gates first
    pub gate_up: &'a Buffer<bf16>,
    /// `[hidden, intermediate]`
    pub down: &'a Buffer<bf16>,
    /// `[num_tokens, hidden]`
    pub y: &'a Buffer<bf16>,
}

impl SharedExpert {
    /// An expert by the kernels that should be the fastest on the device of `stream`.
    ///
    /// # Errors
    /// A shape that the kernels do not take, in words; no memory for the workspace.
    pub fn new(stream: &Stream, shape: SharedExpertShape) -> Result<Self, KernelError> {
        Self::on_sms(stream, shape, stream.device().num_multiprocessors()?)
    }

    /// An expert of which each row of y depends on its row of x alone, to the last bit, and not on how
    /// many others there are.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn batch_invariant(stream: &Stream, shape: SharedExpertShape) -> Result<Self, KernelError> {
        shape.check()?;
        let device = stream.device();
        let [first, second] = shape.products();
        Ok(Self {
            shape,
            num_sms: device.num_multiprocessors()?,
            gate_up: GateUp::Baseline {
                product: Gemm::batch_invariant(stream, first)?,
                gate_up: device.alloc(first.c_elements())?,
            },
            down: Gemm::batch_invariant(stream, second)?,
            h: device.alloc(shape.h_elements())?,
        })
    }

    /// As [`new`](Self::new), on at most `num_sms` multiprocessors, which leaves the others to what
    /// runs beside it. Before Hopper it takes what it gets: blocks are not persistent there.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn on_sms(
        stream: &Stream,
        shape: SharedExpertShape,
        num_sms: u32,
    ) -> Result<Self, KernelError> {
        shape.check()?;
        let has_hopper_kernels = stream.device().has_hopper_kernels();
        let variant = SharedExpertVariant::fastest(shape, num_sms, has_hopper_kernels);
        Self::build(stream, shape, variant, num_sms)
    }

    /// An expert by kernels of one's choice.
    ///
    /// # Errors
    /// As [`new`](Self::new); a variant that the GPU does not have, or not for as many tokens.
    pub fn with_variant(
        stream: &Stream,
        shape: SharedExpertShape,
        variant: SharedExpertVariant,
    ) -> Result<Self, KernelError> {
        let num_sms = stream.device().num_multiprocessors()?;
        Self::build(stream, shape, variant, num_sms)
    }

    fn build(
        stream: &Stream,
        shape: SharedExpertShape,
        variant: SharedExpertVariant,
        num_sms: u32,
    ) -> Result<Self, KernelError> {
        shape.check()?;
        let device = stream.device();
        let num_sms = num_sms.clamp(1, device.num_multiprocessors()?);
        let [first, second] = shape.products();
        let is_baseline = variant == SharedExpertVariant::Baseline;
        let has_it = is_baseline || device.has_hopper_kernels();
        let got = format!("{variant:?}, which is Hopper's");
        require(has_it, "variant", "one that this GPU has", got)?;
        let product = |shape| {
            let plan = match is_baseline {
                true => GemmPlan::new(shape, GemmVariant::Baseline, num_sms),
                false => GemmPlan::fastest(shape, num_sms),
            };
            Gemm::with_plan(stream, plan)
        };
        let gate_up = match variant {
            SharedExpertVariant::Baseline => GateUp::Baseline {
                product: product(first)?,
                gate_up: device.alloc(first.c_elements())?,
            },
            SharedExpertVariant::Fused => GateUp::Fused,
            SharedExpertVariant::Stream => {
                StreamPlan::check(first)?;
                let plan = shape.stream_plan(num_sms);
                let sums = device.alloc(plan.sums_elements())?;
                let arrived = device.alloc_zeroed(plan.arrived_elements())?;
                GateUp::Stream { plan, sums, arrived }
            }
            SharedExpertVariant::Split => {
                let plan = shape.split_plan();
                plan.check(shape.h_product())?;
                GateUp::Split(plan)
            }
        };
        Ok(Self {
            shape,
            num_sms,
            gate_up,
            down: product(second)?,
            h: device.alloc(shape.h_elements())?,
        })
    }

    /// The kernels of both halves of an expert [`on_sms`](Self::on_sms), in their order.
    pub fn kernel_names(
        shape: SharedExpertShape,
        num_sms: u32,
        has_hopper_kernels: bool,
    ) -> [Vec<&'static str>; 2] {
        let [_, second] = shape.products();
        let down = match has_hopper_kernels {
            true => GemmPlan::fastest(second, num_sms).kernel.name(),
            false => GemmKernel::Baseline.name(),
        };
        let gate_up = match SharedExpertVariant::fastest(shape, num_sms, has_hopper_kernels) {
            SharedExpertVariant::Baseline => {
                vec![GemmKernel::Baseline.name(), "shared_expert_silu_mul_bf16"]
            }
            SharedExpertVariant::Fused => vec!["shared_expert_gate_up_bf16"],
            SharedExpertVariant::Stream => vec!["shared_expert_stream_bf16"],
            SharedExpertVariant::Split => vec!["shared_expert_split_bf16"],
        };
        [gate_up, vec![down]]
    }

    /// The sizes this was made for.
    pub fn shape(&self) -> SharedExpertShape {
        self.shape
    }

    /// What the last run left between the two products: `[num_tokens, intermediate]`.
    pub fn h(&self) -> &Buffer<bf16> {
        &self.h
    }

    /// `y = (silu(x g^T) * (x u^T)) down^T`. Weights may be read before the kernels before this one on
    /// the stream have ended: a copy writes them, or a kernel that has. Runs of one `SharedExpert` share its workspace: one
    /// after the other, on one stream.
    ///
    /// # Errors
    /// Before any launch: arguments of the wrong length.
    pub fn run(&self, stream: &Stream, args: SharedExpertArgs<'_>) -> Result<(), KernelError> {
        self.run_gate_up(stream, args)?;
        self.run_down(stream, args)
    }

    /// The first half of [`run`](Self::run), up to [`h`](Self::h).
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_gate_up(
        &self,
        stream: &Stream,
        args: SharedExpertArgs<'_>,
    ) -> Result<(), KernelError> {
        self.check(args)?;
        match &self.gate_up {
            GateUp::Fused => self.multiply_with_gate(stream, args),
            GateUp::Stream { plan, sums, arrived } => {
                self.stream_with_gate(stream, args, *plan, sums, arrived)
            }
            GateUp::Split(plan) => self.split_with_gate(stream, args, *plan),
            GateUp::Baseline { product, gate_up } => {
                product.run(stream, GemmArgs { a: args.x, b: args.gate_up, c: gate_up })?;
                silu_mul(stream, self.shape, gate_up, &self.h)
            }
        }
    }

    /// The second half, from [`h`](Self::h) on, which must come later in the stream's order.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_down(&self, stream: &Stream, args: SharedExpertArgs<'_>) -> Result<(), KernelError> {
        self.check(args)?;
        self.down.run(stream, GemmArgs { a: &self.h, b: args.down, c: args.y })
    }

    fn check(&self, args: SharedExpertArgs<'_>) -> Result<(), ContractError> {
        let [first, second] = self.shape.products();
        require_len("x", self.shape.x_elements(), args.x.len())?;
        require_len("gate_up", first.b_elements(), args.gate_up.len())?;
        require_len("down", second.b_elements(), args.down.len())?;
        require_len("y", self.shape.x_elements(), args.y.len())
    }

    fn multiply_with_gate(
        &self,
        stream: &Stream,
        args: SharedExpertArgs<'_>,
    ) -> Result<(), KernelError> {
        let shape = &self.shape;
        let kernel = entries::shared_expert_gate_up_bf16 {
            x: args.x.tensor_map(&shape.x_tiling())?,
            gate_up: args.gate_up.tensor_map(&shape.gate_up_tiling())?,
            h_maps: tensor_maps(&self.h, &shape.h_tilings())?,
            num_tokens: shape.num_tokens,
            n: shape.intermediate,
            k: shape.hidden,
            h: self.h.view_mut(),
        };
        // SAFETY: the contract was checked, for these lengths.
        unsafe { stream.launch(shape.gate_up_dims(self.num_sms), kernel) }?;
        for buffer in [args.x, args.gate_up, &self.h] {
            stream.keep(buffer);
        }
        Ok(())
    }

    fn stream_with_gate(
        &self,
        stream: &Stream,
        args: SharedExpertArgs<'_>,
        plan: StreamPlan,
        sums: &Buffer<f32>,
        arrived: &Buffer<u32>,
    ) -> Result<(), KernelError> {
        let product = self.shape.h_product();
        let kernel = entries::shared_expert_stream_bf16 {
            x: args.x.tensor_map(&plan.rows_tiling(product))?,
            gate_up: args.gate_up.tensor_map(&plan.weights_tiling(product))?,
            num_tokens: product.m,
            n: product.n,
            k: product.k,
            tile_rows: plan.tile_rows,
            steps_per_block: plan.shares.steps_per_block,
            num_stages: plan.num_stages,
            sums: sums.view_mut(),
            arrived: arrived.view_mut(),
            h: self.h.view_mut(),
        };
        // SAFETY: the contract was checked, for these lengths; the workspace is the plan's.
        unsafe { stream.launch(plan.dims(), kernel) }?;
        for buffer in [args.x, args.gate_up, &self.h] {
            stream.keep(buffer);
        }
        stream.keep(sums);
        stream.keep(arrived);
        Ok(())
    }

    fn split_with_gate(
        &self,
        stream: &Stream,
        args: SharedExpertArgs<'_>,
        plan: SplitPlan,
    ) -> Result<(), KernelError> {
        let product = self.shape.h_product();
        let kernel = entries::shared_expert_split_bf16 {
            x: args.x.tensor_map(&plan.rows_tiling(product))?,
            gate_up: args.gate_up.tensor_map(&plan.weights_tiling(product))?,
            num_tokens: product.m,
            n: product.n,
            k: product.k,
            tile_rows: plan.tile_rows,
            num_stages: plan.num_stages,
            h: self.h.view_mut(),
        };
        // SAFETY: the contract was checked, for these lengths.
        unsafe { stream.launch(plan.dims(), kernel) }?;
        for buffer in [args.x, args.gate_up, &self.h] {
            stream.keep(buffer);
        }
        Ok(())
    }
}

/// `h = silu(g) * u` for rows of gates and then what they scale: `gate_up`
/// `[num_tokens, 2 intermediate]`, `h` `[num_tokens, intermediate]`.
///
/// # Errors
/// Before the launch: a shape that the kernels do not take, arguments of the wrong length.
pub fn silu_mul(
    stream: &Stream,
    shape: SharedExpertShape,
    gate_up: &Buffer<bf16>,
    h: &Buffer<bf16>,
) -> Result<(), KernelError> {
    shape.check()?;
    require_len("gate_up", 2 * shape.h_elements(), gate_up.len())?;
    require_len("h", shape.h_elements(), h.len())?;
    let n = shape.intermediate;
    for (first_token, dims) in shape.silu_mul_launches() {
        let first = first_token * n as usize;
        // SAFETY: each launch begins within both, whose lengths were checked.
        let (gate_up, h) =
            unsafe { (gate_up.view().offset(2 * first), h.view_mut().offset(first)) };
        let kernel = entries::shared_expert_silu_mul_bf16 { gate_up, n, h };
        // SAFETY: the contract was checked, for these lengths.
        unsafe { stream.launch(dims, kernel) }?;
    }
    stream.keep(gate_up);
    stream.keep(h);
    Ok(())
}
