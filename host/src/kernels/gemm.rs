//! Launches of the room `gemm`.

use bytemuck::Pod;
use cuda_std::tensor_map::{TensorElement, TensorMaps, Tiling};
use gpu_kernels::contract::require_len;
use gpu_kernels::gemm::contract::GemmShape;
use gpu_kernels::gemm::device as entries;
use gpu_kernels::gemm::plan::{GemmKernel, GemmPlan, GemmVariant, StreamPlan};
use gpu_kernels::gemm::split_plan::SplitPlan;
use half::bf16;

use super::KernelError;
use crate::device::{Buffer, Stream};

/// Products of one shape: plan and workspace, made once.
pub struct Gemm {
    plan: GemmPlan,
    sums: Buffer<f32>,
    arrived: Buffer<u32>,
}

/// What one run of [`Gemm`] reads and writes.
#[derive(Clone, Copy)]
pub struct GemmArgs<'a> {
    /// `[m, k]`
    pub a: &'a Buffer<bf16>,
    /// `[n, k]`
    pub b: &'a Buffer<bf16>,
    /// `[m, n]`
    pub c: &'a Buffer<bf16>,
}

/// Maps of `rows` by boxes of several sizes.
pub(super) fn tensor_maps<T: Pod + TensorElement, const N: usize>(
    rows: &Buffer<T>,
    tilings: &[Tiling<2>; N],
) -> Result<TensorMaps<T, 2, N>, KernelError> {
    let maps = tilings.iter().map(|tiling| rows.tensor_map(tiling));
    Ok(TensorMaps::new(&maps.collect::<Result<Vec<_>, _>>()?))
}

impl Gemm {
    /// Products by the kernel that should be the fastest on the device of `stream`.
    ///
    /// # Errors
    /// A shape that the kernels do not take, in words; no memory for the workspace.
    pub fn new(stream: &Stream, shape: GemmShape) -> Result<Self, KernelError> {
        shape.check()?;
        let device = stream.device();
        let num_sms = device.num_multiprocessors()?;
        let plan = match device.has_hopper_kernels() {
            true => GemmPlan::fastest(shape, num_sms),
            false => GemmPlan::new(shape, GemmVariant::Baseline, num_sms),
        };
        Self::with_plan(stream, plan)
    }

    /// Products of which each row of C depends on its row of A alone, to the last bit, and not on how
    /// many others there are: by the fastest kernel that adds up in one order.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn batch_invariant(stream: &Stream, shape: GemmShape) -> Result<Self, KernelError> {
        shape.check()?;
        let device = stream.device();
        let num_sms = device.num_multiprocessors()?;
        let plan = match device.has_hopper_kernels() {
            true => GemmPlan::batch_invariant(shape, num_sms),
            false => GemmPlan::new(shape, GemmVariant::Baseline, num_sms),
        };
        Self::with_plan(stream, plan)
    }

    /// Products by a kernel of one's choice.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_variant(
        stream: &Stream,
        shape: GemmShape,
        variant: GemmVariant,
    ) -> Result<Self, KernelError> {
        let num_sms = stream.device().num_multiprocessors()?;
        Self::with_plan(stream, GemmPlan::new(shape, variant, num_sms))
    }

    /// Products as planned.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_plan(stream: &Stream, plan: GemmPlan) -> Result<Self, KernelError> {
        plan.check()?;
        let device = stream.device();
        let [sums, arrived] = plan.workspace_elements();
        Ok(Self { plan, sums: device.alloc(sums)?, arrived: device.alloc_zeroed(arrived)? })
    }

    /// How the products are launched.
    pub fn plan(&self) -> GemmPlan {
        self.plan
    }

    /// `c = a b^T`. `b` may be read before the kernels before this one on the stream have ended: a copy
    /// writes it, or a kernel that has. Runs of one `Gemm` share its workspace: one after the other, on one stream.
    ///
    /// # Errors
    /// Before any launch: arguments of the wrong length.
    pub fn run(&self, stream: &Stream, args: GemmArgs<'_>) -> Result<(), KernelError> {
        let plan = &self.plan;
        require_len("a", plan.shape.a_elements(), args.a.len())?;
        require_len("b", plan.shape.b_elements(), args.b.len())?;
        require_len("c", plan.shape.c_elements(), args.c.len())?;
        match plan.kernel {
            GemmKernel::Baseline => {
                let GemmShape { m, n, k } = plan.shape;
                let (a, b, c) = (args.a.view(), args.b.view(), args.c.view_mut());
                let kernel = entries::gemm_baseline_bf16 { a, b, m, n, k, c };
                // SAFETY: the contract was checked, for these lengths.
                unsafe { stream.launch(plan.dims(), kernel) }?;
            }
            GemmKernel::Tma { .. } | GemmKernel::Paired { .. } => self.launch_wide(stream, args)?,
            GemmKernel::Stream(streams) => self.launch_stream(stream, streams, args)?,
            GemmKernel::Split(split) => self.launch_split(stream, split, args)?,
        }
        for buffer in [args.a, args.b, args.c] {
            stream.keep(buffer);
        }
        stream.keep(&self.sums);
        stream.keep(&self.arrived);
        Ok(())
    }

    fn launch_wide(&self, stream: &Stream, args: GemmArgs<'_>) -> Result<(), KernelError> {
        let plan = &self.plan;
        let GemmShape { m, n, k } = plan.shape;
        let (a, b) = (args.a.tensor_map(&plan.a_tiling())?, args.b.tensor_map(&plan.b_tiling())?);
        let (c_maps, c) = (tensor_maps(args.c, &plan.c_tilings())?, args.c.view_mut());
        let dims = plan.dims();
        // SAFETY: the contract was checked, for these lengths.
        unsafe {
            match plan.kernel {
                GemmKernel::Paired { .. } => {
                    stream.launch(dims, entries::gemm_paired_bf16 { a, b, c_maps, m, n, k, c })
                }
                _ => stream.launch(dims, entries::gemm_tma_bf16 { a, b, c_maps, m, n, k, c }),
            }
        }?;
        Ok(())
    }

    fn launch_split(
        &self,
        stream: &Stream,
        plan: SplitPlan,
        args: GemmArgs<'_>,
    ) -> Result<(), KernelError> {
        let shape = self.plan.shape;
        let GemmShape { m, n, k } = shape;
        let SplitPlan { tile, tile_rows, num_stages, .. } = plan;
        let a = args.a.tensor_map(&plan.rows_tiling(shape))?;
        let b = args.b.tensor_map(&plan.weights_tiling(shape))?;
        let (c, dims) = (args.c.view_mut(), plan.dims());
        macro_rules! launch {
            ($entry:ident) => {
                // SAFETY: the contract was checked, for these lengths.
                unsafe {
                    let kernel = entries::$entry { a, b, m, n, k, tile_rows, num_stages, c };
                    stream.launch(dims, kernel)
                }
            };
        }
        match (tile.num_splits, tile.weight_rows) {
            (1, _) => launch!(gemm_split1_64_bf16),
            (2, _) => launch!(gemm_split2_64_bf16),
            _ => launch!(gemm_split4_128_bf16),
        }?;
        Ok(())
    }

    fn launch_stream(
        &self,
        stream: &Stream,
        plan: StreamPlan,
        args: GemmArgs<'_>,
    ) -> Result<(), KernelError> {
        let shape = self.plan.shape;
        let kernel = entries::gemm_stream_bf16 {
            a: args.a.tensor_map(&plan.rows_tiling(shape))?,
            b: args.b.tensor_map(&plan.weights_tiling(shape))?,
            m: shape.m,
            n: shape.n,
            k: shape.k,
            tile_rows: plan.tile_rows,
            steps_per_block: plan.shares.steps_per_block,
            num_stages: plan.num_stages,
            sums: self.sums.view_mut(),
            arrived: self.arrived.view_mut(),
            c: args.c.view_mut(),
        };
        // SAFETY: the contract was checked, for these lengths; the workspace is the plan's.
        unsafe { stream.launch(plan.dims(), kernel) }?;
        Ok(())
    }
}

/// `c = a b^T`, each element summed in f64 and rounded to f32: slow, and what others are compared
/// with. `a` `[m, k]`, `b` `[n, k]`, `c` `[m, n]`.
///
/// # Errors
/// Before the launch: a shape that the kernels do not take, arguments of the wrong length.
pub fn multiply_exactly(
    stream: &Stream,
    shape: GemmShape,
    a: &Buffer<bf16>,
    b: &Buffer<bf16>,
    c: &Buffer<f32>,
) -> Result<(), KernelError> {
    shape.check()?;
    require_len("a", shape.a_elements(), a.len())?;
    require_len("b", shape.b_elements(), b.len())?;
    require_len("c", shape.c_elements(), c.len())?;
    let GemmShape { m, n, k } = shape;
    let kernel = entries::gemm_exact_bf16 { a: a.view(), b: b.view(), m, n, k, c: c.view_mut() };
    // SAFETY: the contract was checked, for these lengths.
    unsafe { stream.launch(shape.exact_dims(), kernel) }?;
    stream.keep(a);
    stream.keep(b);
    stream.keep(c);
    Ok(())
}
