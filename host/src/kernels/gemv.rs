//! Launches of the room `gemv`.

use cuda_std::global::Global;
use gpu_kernels::contract::{require, require_len};
use gpu_kernels::gemv::contract::GemvShape;
use gpu_kernels::gemv::device as entries;
use half::bf16;

use super::KernelError;
use crate::device::{Buffer, Device, Stream};

/// Products of one row, of one shape.
#[derive(Clone, Copy, Debug)]
pub struct Gemv {
    shape: GemvShape,
    num_sms: u32,
}

/// What one run of [`Gemv`] reads and writes.
#[derive(Clone, Copy)]
pub struct GemvArgs<'a> {
    /// `[k]`
    pub x: &'a Buffer<bf16>,
    /// `[k]`, if the shape has a norm
    pub norm_weight: Option<&'a Buffer<bf16>>,
    /// `[n, k]`, gated `[2 n, k]`, gates first; of experts that for each
    pub b: &'a Buffer<bf16>,
    /// `[n]`, of gated experts `[slots, n]`
    pub out: &'a Buffer<bf16>,
}

/// A token's choice of experts.
#[derive(Clone, Copy)]
pub struct GemvChoice<'a> {
    /// `[slots]`
    pub topk_ids: &'a Buffer<i32>,
    /// `[slots]`
    pub topk_weights: &'a Buffer<f32>,
}

impl Gemv {
    /// Products of this shape on `device`.
    ///
    /// # Errors
    /// A shape that the kernels do not take, in words; a GPU before Hopper.
    pub fn new(device: &Device, shape: GemvShape) -> Result<Self, KernelError> {
        shape.check()?;
        require(
            device.has_hopper_kernels(),
            "device",
            "Hopper, for products of one row",
            "another GPU",
        )?;
        Ok(Self { shape, num_sms: device.num_multiprocessors()? })
    }

    /// The sizes this was made for.
    pub fn shape(&self) -> GemvShape {
        self.shape
    }

    /// `out = b y`, or `silu(g y) * (u y)`, `y` being `x` with its norm. `b` and `norm_weight` may be
    /// read before the kernels before this one on the stream have ended: a copy writes them, or a
    /// kernel that has. For all products of the room.
    ///
    /// # Errors
    /// Before the launch: arguments of the wrong length; a shape with experts.
    pub fn run(&self, stream: &Stream, args: GemvArgs<'_>) -> Result<(), KernelError> {
        self.check(&args, None)?;
        let (x, b, out) = (args.x.view(), args.b.view(), args.out.view_mut());
        let (norm_weight, params) = (norm_view(args), self.shape.params());
        let dims = self.shape.dims(self.num_sms);
        if self.shape.is_gated {
            let kernel = entries::gemv_gated_bf16 { x, norm_weight, b, params, h: out };
            // SAFETY: shape and lengths were checked.
            unsafe { stream.launch(dims, kernel) }?;
        } else {
            let kernel = entries::gemv_rows_bf16 { x, norm_weight, b, params, out };
            // SAFETY: shape and lengths were checked.
            unsafe { stream.launch(dims, kernel) }?;
        }
        keep(stream, args);
        Ok(())
    }

    /// `out += b x`.
    ///
    /// # Errors
    /// Before the launch: arguments of the wrong length; a shape with a norm, a gate or experts.
    pub fn add(&self, stream: &Stream, args: GemvArgs<'_>) -> Result<(), KernelError> {
        self.check_sum()?;
        self.check(&args, None)?;
        let (b, params) = (args.b.view(), self.shape.params());
        let kernel =
            entries::gemv_added_bf16 { h: args.x.view(), b, params, x: args.out.view_mut() };
        // SAFETY: shape and lengths were checked.
        unsafe { stream.launch(self.shape.dims(self.num_sms), kernel) }?;
        keep(stream, args);
        Ok(())
    }

    /// As [`run`](Self::run) with a gate, for each slot with its expert's weights.
    ///
    /// # Errors
    /// Before the launch: arguments of the wrong length; a shape without experts, or without a gate.
    pub fn run_experts(
        &self,
        stream: &Stream,
        choice: GemvChoice<'_>,
        args: GemvArgs<'_>,
    ) -> Result<(), KernelError> {
        require(self.shape.is_gated, "is_gated", "a gate", "none")?;
        self.check(&args, Some(choice))?;
        let kernel = entries::gemv_experts_gated_bf16 {
            x: args.x.view(),
            norm_weight: norm_view(args),
            b: args.b.view(),
            topk_ids: choice.topk_ids.view(),
            params: self.shape.params(),
            h: args.out.view_mut(),
        };
        // SAFETY: shape and lengths were checked; ids are clamped by the kernel.
        unsafe { stream.launch(self.shape.dims(self.num_sms), kernel) }?;
        keep(stream, args);
        stream.keep(choice.topk_ids);
        Ok(())
    }

    /// `out += b x[s]` times its weight for each slot, with its expert's `b`; `x` is `[slots, k]`.
    ///
    /// # Errors
    /// Before the launch: arguments of the wrong length; a shape without experts, or with a norm or a
    /// gate.
    pub fn add_experts(
        &self,
        stream: &Stream,
        choice: GemvChoice<'_>,
        args: GemvArgs<'_>,
    ) -> Result<(), KernelError> {
        self.check_sum()?;
        self.check(&args, Some(choice))?;
        let kernel = entries::gemv_experts_added_bf16 {
            h: args.x.view(),
            b: args.b.view(),
            topk_ids: choice.topk_ids.view(),
            topk_weights: choice.topk_weights.view(),
            params: self.shape.params(),
            x: args.out.view_mut(),
        };
        // SAFETY: shape and lengths were checked; ids are clamped by the kernel.
        unsafe { stream.launch(self.shape.dims(self.num_sms), kernel) }?;
        keep(stream, args);
        stream.keep(choice.topk_ids);
        stream.keep(choice.topk_weights);
        Ok(())
    }

    fn check_sum(&self) -> Result<(), KernelError> {
        let is_plain = !self.shape.is_gated && self.shape.norm_eps.is_none();
        Ok(require(is_plain, "shape", "no norm and no gate, for a product that adds", "one")?)
    }

    fn check(
        &self,
        args: &GemvArgs<'_>,
        choice: Option<GemvChoice<'_>>,
    ) -> Result<(), KernelError> {
        let shape = &self.shape;
        let needs_choice = shape.experts.is_some();
        let needed = if needs_choice { "a choice of experts" } else { "no choice of experts" };
        require(needs_choice == choice.is_some(), "choice", needed, "the other")?;
        require_len("x", shape.row_elements(), args.x.len())?;
        require_len("norm_weight", shape.norm_elements(), args.norm_weight.map_or(0, Buffer::len))?;
        require_len("b", shape.b_elements(), args.b.len())?;
        require_len("out", shape.out_elements(), args.out.len())?;
        if let Some(GemvChoice { topk_ids, topk_weights }) = choice {
            require_len("topk_ids", shape.topk_elements(), topk_ids.len())?;
            require_len("topk_weights", shape.topk_elements(), topk_weights.len())?;
        }
        Ok(())
    }
}

fn norm_view(args: GemvArgs<'_>) -> Global<bf16> {
    args.norm_weight.map_or(Global::null(), Buffer::view)
}

fn keep(stream: &Stream, args: GemvArgs<'_>) {
    for buffer in [args.x, args.b, args.out].into_iter().chain(args.norm_weight) {
        stream.keep(buffer);
    }
}
