//! Launches of the room `moe_topk`.

use bytemuck::Pod;
use cuda_std::global::Global;
use gpu_kernels::contract::{ContractError, require_len};
use gpu_kernels::moe_topk::contract::{StackedTopk, TopkShape};
use gpu_kernels::moe_topk::device as entries;
use half::bf16;

use super::KernelError;
use crate::device::{Buffer, Stream};

/// Which kernel chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopkVariant {
    /// A block for each token.
    Baseline,
    /// A warp for each token.
    Warp,
}

impl TopkVariant {
    /// All of them, baseline first.
    pub const ALL: [Self; 2] = [Self::Baseline, Self::Warp];
}

/// A choice of experts whose sizes and rules were checked.
#[derive(Clone, Copy, Debug)]
pub struct Topk {
    stacked: StackedTopk,
}

/// What one run of [`Topk`] reads and writes.
#[derive(Clone, Copy)]
pub struct TopkArgs<'a, T> {
    /// `[num_tokens, num_columns]`, which are the experts unless the choice is stacked
    pub gating_output: &'a Buffer<T>,
    /// `[num_experts]`, if the shape has one
    pub bias: Option<&'a Buffer<f32>>,
    /// `[num_tokens, top_k + num_shared]`
    pub topk_ids: &'a Buffer<i32>,
    /// `[num_tokens, top_k + num_shared]`
    pub topk_weights: &'a Buffer<f32>,
}

impl Topk {
    /// A choice of this shape.
    ///
    /// # Errors
    /// Sizes or rules that the kernels do not take.
    pub fn new(shape: TopkShape) -> Result<Self, KernelError> {
        Self::stacked(StackedTopk::plain(shape))
    }

    /// A choice from logits with further columns, and slots for experts that every token visits.
    ///
    /// # Errors
    /// Sizes or rules that the kernels do not take.
    pub fn stacked(stacked: StackedTopk) -> Result<Self, KernelError> {
        stacked.check()?;
        Ok(Self { stacked })
    }

    /// The sizes and rules.
    pub fn shape(&self) -> &TopkShape {
        &self.stacked.choice
    }

    /// Chooses the experts of all tokens.
    ///
    /// # Errors
    /// Before any launch: arguments of the wrong length.
    pub fn run<T: GatingElement>(
        &self,
        stream: &Stream,
        variant: TopkVariant,
        args: &TopkArgs<'_, T>,
    ) -> Result<(), KernelError> {
        self.check(args)?;
        if self.stacked.choice.num_tokens == 0 {
            return Ok(());
        }
        // SAFETY: shape and lengths were checked.
        unsafe { T::launch(stream, variant, &self.stacked, args) }?;
        stream.keep(args.gating_output);
        stream.keep(args.topk_ids);
        stream.keep(args.topk_weights);
        if let Some(bias) = args.bias {
            stream.keep(bias);
        }
        Ok(())
    }

    fn check<T: Pod>(&self, args: &TopkArgs<'_, T>) -> Result<(), ContractError> {
        let Self { stacked } = self;
        let bias_len = args.bias.map_or(0, Buffer::len);
        require_len("gating_output", stacked.gating_elements(), args.gating_output.len())?;
        require_len("bias", stacked.choice.bias_elements(), bias_len)?;
        require_len("topk_ids", stacked.topk_elements(), args.topk_ids.len())?;
        require_len("topk_weights", stacked.topk_elements(), args.topk_weights.len())
    }
}

/// A type of logits that there are kernels for: bf16 and f32.
pub trait GatingElement: Pod {
    #[doc(hidden)]
    unsafe fn launch(
        stream: &Stream,
        variant: TopkVariant,
        stacked: &StackedTopk,
        args: &TopkArgs<'_, Self>,
    ) -> Result<(), KernelError>;
}

macro_rules! gating_element {
    ($T:ty: $baseline:ident, $warp64:ident, $warp128:ident, $warp256:ident, $warp512:ident, $deepseek:ident) => {
        impl GatingElement for $T {
            unsafe fn launch(
                stream: &Stream,
                variant: TopkVariant,
                stacked: &StackedTopk,
                args: &TopkArgs<'_, Self>,
            ) -> Result<(), KernelError> {
                let shape = &stacked.choice;
                macro_rules! launch {
                    ($kernel:ident, $dims:ident) => {{
                        let kernel = entries::$kernel {
                            gating_output: args.gating_output.view(),
                            bias: match args.bias {
                                Some(bias) if shape.has_bias => bias.view(),
                                _ => Global::null(),
                            },
                            params: stacked.params(),
                            topk_ids: args.topk_ids.view_mut(),
                            topk_weights: args.topk_weights.view_mut(),
                        };
                        // SAFETY: the caller vouches for checked arguments.
                        unsafe { stream.launch(shape.$dims(), kernel) }?
                    }};
                }
                match (variant, shape.lane_experts()) {
                    (TopkVariant::Baseline, _) => launch!($baseline, baseline_dims),
                    _ if stacked.is_deepseek_v3() => launch!($deepseek, warp_dims),
                    (TopkVariant::Warp, 2) => launch!($warp64, warp_dims),
                    (TopkVariant::Warp, 4) => launch!($warp128, warp_dims),
                    (TopkVariant::Warp, 8) => launch!($warp256, warp_dims),
                    (TopkVariant::Warp, _) => launch!($warp512, warp_dims),
                }
                Ok(())
            }
        }
    };
}

gating_element! {
    bf16:
    moe_topk_select_baseline_bf16,
    moe_topk_select_warp_bf16_e64,
    moe_topk_select_warp_bf16_e128,
    moe_topk_select_warp_bf16_e256,
    moe_topk_select_warp_bf16_e512,
    moe_topk_select_warp_bf16_deepseek_v3
}

gating_element! {
    f32:
    moe_topk_select_baseline_f32,
    moe_topk_select_warp_f32_e64,
    moe_topk_select_warp_f32_e128,
    moe_topk_select_warp_f32_e256,
    moe_topk_select_warp_f32_e512,
    moe_topk_select_warp_f32_deepseek_v3
}
