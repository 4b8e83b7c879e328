//! Launches of the room `sampling`.

use std::marker::PhantomData;

use bytemuck::Pod;
use cuda_std::global::Global;
use gpu_kernels::contract::require_len;
pub use gpu_kernels::sampling::SamplingRule;
use gpu_kernels::sampling::contract::{SamplingShape, SplitPlan};
use gpu_kernels::sampling::device as entries;
use half::bf16;

use super::KernelError;
use crate::device::{Buffer, Device, Stream};

/// Blocks that the CPU runs at once.
const NUM_CPU_BLOCKS: u32 = 6;

/// How many blocks have a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SamplingVariant {
    /// One.
    Row,
    /// Several, where the row is long; all of them resident.
    Split,
}

/// What choosing the most likely tokens reads and writes.
#[derive(Clone, Copy)]
pub struct ArgmaxArgs<'a, T> {
    /// `[batch, vocab_size]`
    pub logits: &'a Buffer<T>,
    /// `[batch]`; -1 where no logit is a number
    pub token_ids: &'a Buffer<i32>,
    /// `[batch]`, natural; minus infinity where there is no token
    pub logprobs: &'a Buffer<f32>,
}

/// What choosing tokens by rules reads and writes.
#[derive(Clone, Copy)]
pub struct ChooseArgs<'a, T> {
    /// `[batch, vocab_size]`
    pub logits: &'a Buffer<T>,
    /// `[batch]`, each [checked](SamplingRule::check)
    pub rules: &'a Buffer<SamplingRule>,
    /// `[batch]`; -1 where no logit is a number
    pub token_ids: &'a Buffer<i32>,
    /// `[batch]`, natural, before temperature and limits; minus infinity where there is no token
    pub logprobs: &'a Buffer<f32>,
}

/// Sampling of batches of one shape: its plan and workspace, made once.
///
/// Runs of one sampler share its workspace: one after the other, on one stream. Blocks of a run wait
/// for each other, so at most one sampler runs on a device at a time.
pub struct Sampler<T> {
    shape: SamplingShape,
    split: Option<Split>,
    logit: PhantomData<T>,
}

/// Rows cut into slices.
struct Split {
    plan: SplitPlan,
    arrived: Buffer<u32>,
    candidates: Buffer<u64>,
    sums: Buffer<u64>,
    histograms: Buffer<u32>,
}

/// What all kernels take.
#[doc(hidden)]
#[derive(Clone, Copy)]
pub struct Batch<'a, T> {
    logits: &'a Buffer<T>,
    rules: Option<&'a Buffer<SamplingRule>>,
    token_ids: &'a Buffer<i32>,
    logprobs: &'a Buffer<f32>,
}

impl<T: LogitElement> Sampler<T> {
    /// A sampler by the kernels that should be the fastest.
    ///
    /// # Errors
    /// Sizes that the kernels do not take, in words; no memory for the workspace.
    pub fn new(device: &Device, shape: SamplingShape) -> Result<Self, KernelError> {
        Self::with_variant(device, shape, SamplingVariant::Split)
    }

    /// A sampler by kernels of one's choice. Rows that are too long to be split are not.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_variant(
        device: &Device,
        shape: SamplingShape,
        variant: SamplingVariant,
    ) -> Result<Self, KernelError> {
        shape.check()?;
        let plan = match variant {
            SamplingVariant::Row => None,
            SamplingVariant::Split => {
                let num_blocks = match device.is_cuda() {
                    true => device.num_multiprocessors()?,
                    false => NUM_CPU_BLOCKS,
                };
                shape.split(num_blocks, size_of::<T>())
            }
        };
        let split = |plan: SplitPlan| -> Result<Split, KernelError> {
            Ok(Split {
                arrived: device.alloc_zeroed(plan.arrived_elements())?,
                candidates: device.alloc(plan.candidates_elements())?,
                sums: device.alloc(plan.sums_elements())?,
                histograms: device.alloc(plan.histograms_elements())?,
                plan,
            })
        };
        Ok(Self { shape, split: plan.map(split).transpose()?, logit: PhantomData })
    }

    /// The sizes this was made for.
    pub fn shape(&self) -> SamplingShape {
        self.shape
    }

    /// The most likely token of each request, the lowest id among equals, and the logarithm of its
    /// probability.
    ///
    /// # Errors
    /// Before the launch: arguments of the wrong length.
    pub fn argmax(&self, stream: &Stream, args: ArgmaxArgs<'_, T>) -> Result<(), KernelError> {
        let ArgmaxArgs { logits, token_ids, logprobs } = args;
        self.run(stream, Batch { logits, rules: None, token_ids, logprobs })
    }

    /// A token of each request by its rule, and the logarithm of its probability. What a request
    /// gets depends on its logits and its rule, and on nothing else.
    ///
    /// # Errors
    /// Before the launch: arguments of the wrong length.
    pub fn choose(&self, stream: &Stream, args: ChooseArgs<'_, T>) -> Result<(), KernelError> {
        let ChooseArgs { logits, rules, token_ids, logprobs } = args;
        self.run(stream, Batch { logits, rules: Some(rules), token_ids, logprobs })
    }

    fn run(&self, stream: &Stream, batch: Batch<'_, T>) -> Result<(), KernelError> {
        let (shape, num_requests) = (self.shape, self.shape.batch as usize);
        require_len("logits", shape.logits_elements(), batch.logits.len())?;
        if let Some(rules) = batch.rules {
            require_len("rules", num_requests, rules.len())?;
        }
        require_len("token_ids", num_requests, batch.token_ids.len())?;
        require_len("logprobs", num_requests, batch.logprobs.len())?;
        if shape.batch == 0 {
            return Ok(());
        }
        // SAFETY: shape and lengths were checked.
        unsafe { T::launch(stream, self, batch) }?;
        stream.keep(batch.logits);
        stream.keep(batch.token_ids);
        stream.keep(batch.logprobs);
        if let Some(rules) = batch.rules {
            stream.keep(rules);
        }
        if let Some(split) = &self.split {
            stream.keep(&split.arrived);
            stream.keep(&split.candidates);
            stream.keep(&split.sums);
            stream.keep(&split.histograms);
        }
        Ok(())
    }
}

/// A type of logits that there are kernels for: bf16 and f32.
pub trait LogitElement: Pod {
    #[doc(hidden)]
    unsafe fn launch(
        stream: &Stream,
        sampler: &Sampler<Self>,
        batch: Batch<'_, Self>,
    ) -> Result<(), KernelError>;
}

macro_rules! logit_element {
    ($T:ty: $argmax:ident, $choose:ident, $split:ident) => {
        impl LogitElement for $T {
            unsafe fn launch(
                stream: &Stream,
                sampler: &Sampler<Self>,
                batch: Batch<'_, Self>,
            ) -> Result<(), KernelError> {
                let logits = batch.logits.view();
                let (token_ids, logprobs) = (batch.token_ids.view_mut(), batch.logprobs.view_mut());
                let dims = sampler.shape.row_dims();
                let vocab_size = sampler.shape.vocab_size;
                if let Some(split) = &sampler.split {
                    let kernel = entries::$split {
                        logits,
                        rules: batch.rules.map_or(Global::null(), Buffer::view),
                        params: split.plan.params,
                        arrived: split.arrived.view_mut(),
                        candidates: split.candidates.view_mut(),
                        sums: split.sums.view_mut(),
                        histograms: split.histograms.view_mut(),
                        token_ids,
                        logprobs,
                    };
                    // SAFETY: the caller vouches for checked arguments; the workspace is the plan's.
                    unsafe { stream.launch(split.plan.dims(), kernel) }?;
                } else if let Some(rules) = batch.rules {
                    let rules = rules.view();
                    let kernel =
                        entries::$choose { logits, vocab_size, rules, token_ids, logprobs };
                    // SAFETY: the caller vouches for checked arguments.
                    unsafe { stream.launch(dims, kernel) }?;
                } else {
                    let kernel = entries::$argmax { logits, vocab_size, token_ids, logprobs };
                    // SAFETY: the caller vouches for checked arguments.
                    unsafe { stream.launch(dims, kernel) }?;
                }
                Ok(())
            }
        }
    };
}

logit_element! {
    bf16: sampling_argmax_row_bf16, sampling_choose_row_bf16, sampling_choose_split_bf16
}
logit_element! {
    f32: sampling_argmax_row_f32, sampling_choose_row_f32, sampling_choose_split_f32
}

/// [`Sampler::argmax`] by one block for each request, which needs no workspace.
///
/// # Errors
/// Before the launch: sizes that the kernels do not take, arguments of the wrong length.
pub fn argmax<T: LogitElement>(
    stream: &Stream,
    shape: SamplingShape,
    args: ArgmaxArgs<'_, T>,
) -> Result<(), KernelError> {
    Sampler::with_variant(stream.device(), shape, SamplingVariant::Row)?.argmax(stream, args)
}

/// [`Sampler::choose`] by one block for each request, which needs no workspace.
///
/// # Errors
/// Before the launch: sizes that the kernels do not take, arguments of the wrong length.
pub fn choose<T: LogitElement>(
    stream: &Stream,
    shape: SamplingShape,
    args: ChooseArgs<'_, T>,
) -> Result<(), KernelError> {
    Sampler::with_variant(stream.device(), shape, SamplingVariant::Row)?.choose(stream, args)
}
