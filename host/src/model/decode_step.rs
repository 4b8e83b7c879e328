//! One token of each sequence of a batch: a pass whose lists change in place, replayed as one graph.

use gpu_kernels::kv_append::contract::{Rope, RopeStyle};
use gpu_kernels::paged_attention::contract::{BatchMaxima, DecodeShape, PageTable};
use gpu_kernels::paged_attention::plan::SplitPolicy;
use gpu_kernels::paged_prefill::contract::PrefillShape;
use half::bf16;

use super::ModelConfig;
use super::engine::EngineError;
use super::one_token::OneToken;
use super::pages::LayeredKv;
use super::pass::{Attention, Pass, PassShape};
use super::token_choice::{TokenChoice, likeliest};
use super::transformer::Transformer;
use crate::device::{Buffer, Event, Graph, PinnedBuffer, Stream};
use crate::kernels::KernelError;
use crate::kernels::kv_append::Append;
use crate::kernels::paged_attention::Decode;
use crate::kernels::paged_prefill::{Prefill, PrefillVariant};
use crate::kernels::sampling::SamplingRule;

/// How a decode step is given to the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Issue {
    /// As one graph, which chooses the tokens.
    #[default]
    Graph,
    /// Kernel by kernel, those that choose the tokens too.
    Kernels,
    /// Kernel by kernel; logits are copied to the host, which takes the likeliest token, whatever the
    /// rule, and works out no probability.
    HostSampled,
    /// Kernel by kernel, an expert of a layer after the other, as soon as the host has read how many
    /// tokens each has.
    ExpertByExpert,
}

/// A pass of one token of each sequence.
enum StepPass {
    /// Of one sequence.
    One(Box<OneToken>),
    /// Of several, or where one's kernels do not run.
    Many(Box<Pass>),
}

impl StepPass {
    fn new(
        stream: &Stream,
        config: &ModelConfig,
        batch: u32,
        issue: Issue,
        is_batch_invariant: bool,
    ) -> Result<Self, KernelError> {
        let one_by_one = issue == Issue::ExpertByExpert;
        if batch == 1
            && !one_by_one
            && !is_batch_invariant
            && let Some(pass) = OneToken::new(stream, config)?
        {
            return Ok(Self::One(Box::new(pass)));
        }
        let shape =
            PassShape { num_tokens: batch, num_logit_rows: batch, is_batch_invariant, one_by_one };
        Ok(Self::Many(Box::new(Pass::new(stream, config, shape)?)))
    }

    fn token_ids(&self) -> &Buffer<i32> {
        match self {
            Self::One(pass) => pass.token_ids(),
            Self::Many(pass) => pass.token_ids(),
        }
    }

    fn choice(&self) -> &TokenChoice {
        match self {
            Self::One(pass) => pass.choice(),
            Self::Many(pass) => pass.choice().expect("logits of every token are wanted"),
        }
    }
}

/// A decode step of a number of sequences.
pub(super) struct DecodeStep {
    issue: Issue,
    pass: StepPass,
    append: Append,
    attention: PlannedAttention,
    graph: Option<Graph>,
    token_ids: PinnedBuffer<i32>,
    rules: PinnedBuffer<SamplingRule>,
    chosen_ids: PinnedBuffer<i32>,
    logprobs: PinnedBuffer<f32>,
    /// Before the first kernel of a step, and after the last.
    ends: [Event; 2],
}

/// Attention whose plan follows the lengths of a batch.
enum PlannedAttention {
    /// Contexts are split by how many there are and how long.
    Decode(Decode),
    /// As for prompts, whatever else is in the batch.
    Prefill(Prefill),
}

/// The tokens that were chosen for a batch, and the logarithms of their probabilities.
pub(super) type Chosen = (Vec<i32>, Vec<f32>);

/// What changes from step to step, but for the page table: one of each for each sequence.
pub(super) struct StepInputs {
    pub token_ids: Vec<i32>,
    pub rules: Vec<SamplingRule>,
}

/// Rotation as all families have it.
pub(super) fn rope(model: &Transformer) -> Option<Rope> {
    Some(Rope { style: RopeStyle::HalfSplit, num_max_positions: model.num_max_positions() })
}

/// Factor of attention scores.
pub(super) fn sm_scale(model: &Transformer) -> f32 {
    (model.config().head_dim as f32).sqrt().recip()
}

impl DecodeStep {
    /// Steps of `batch` sequences, which have at most `num_max_pages` pages together.
    pub(super) fn new(
        stream: &Stream,
        model: &Transformer,
        kv: &LayeredKv,
        batch: u32,
        num_max_pages: u32,
        issue: Issue,
        is_batch_invariant: bool,
    ) -> Result<Self, KernelError> {
        let (device, page) = (stream.device(), kv.shape());
        let maxima = BatchMaxima { num_max_requests: batch, num_max_pages };
        let num_qo_heads = model.config().num_qo_heads;
        let (memory, sm_scale) = (kv.layer(0), sm_scale(model));
        let attention = if is_batch_invariant {
            let shape = PrefillShape { num_qo_heads, page, sm_scale };
            let qo_indptr: Vec<i32> = (0..=batch as i32).collect();
            let (variant, kv_lens) =
                (PrefillVariant::fastest(device, &shape)?, vec![1; batch as usize]);
            PlannedAttention::Prefill(Prefill::plan(stream, variant, shape, &qo_indptr, &kv_lens)?)
        } else {
            let decode = DecodeShape { batch, num_qo_heads, page, sm_scale };
            let policy = SplitPolicy::Balanced;
            PlannedAttention::Decode(Decode::for_replay(stream, decode, num_max_pages, policy)?)
        };
        Ok(Self {
            issue,
            pass: StepPass::new(stream, model.config(), batch, issue, is_batch_invariant)?,
            append: Append::for_replay(stream, rope(model), maxima, memory)?,
            attention,
            graph: None,
            token_ids: device.alloc_pinned(batch as usize)?,
            rules: device.alloc_pinned(batch as usize)?,
            chosen_ids: device.alloc_pinned(batch as usize)?,
            logprobs: device.alloc_pinned(batch as usize)?,
            ends: [device.new_event()?, device.new_event()?],
        })
    }

    /// Sequences of a step.
    pub(super) fn batch(&self) -> usize {
        self.token_ids.len()
    }

    /// How its steps are issued.
    pub(super) fn issue(&self) -> Issue {
        self.issue
    }

    /// Microseconds from the first kernel of the last step to the end of the last one.
    pub(super) fn device_us(&self) -> Result<f64, EngineError> {
        let [start, end] = &self.ends;
        Ok(start.elapsed_us(end)?)
    }

    /// Runs a step, and waits.
    pub(super) fn run(
        &mut self,
        stream: &Stream,
        model: &Transformer,
        kv: &mut LayeredKv,
        inputs: &StepInputs,
        table: &PageTable<'_>,
    ) -> Result<Chosen, EngineError> {
        self.token_ids.write(0, &inputs.token_ids)?;
        self.rules.write(0, &inputs.rules)?;
        self.append.update(stream, table, kv.layer(0))?;
        let table = self.append.table();
        match &mut self.attention {
            PlannedAttention::Decode(decode) => decode.replan(stream, table)?,
            PlannedAttention::Prefill(prefill) => prefill.replan(stream, table.kv_lens())?,
        }
        if self.issue == Issue::Graph && self.graph.is_none() {
            // Kernels are loaded by their first launch, which a capture does not allow. Both write
            // the same to the same places.
            self.give(stream, model, kv)?;
            stream.synchronize()?;
            self.graph = Some(stream.capture(|stream| self.give(stream, model, kv))?);
        }
        stream.record(&self.ends[0])?;
        match &self.graph {
            Some(graph) => graph.launch(stream)?,
            None => self.give(stream, model, kv)?,
        }
        stream.record(&self.ends[1])?;
        stream.synchronize()?;
        if self.issue == Issue::HostSampled {
            return Ok(likeliest(&self.logits(stream)?, self.batch()));
        }
        let (mut ids, mut logprobs) = (vec![0; self.batch()], vec![0.0; self.batch()]);
        self.chosen_ids.read(0, &mut ids)?;
        self.logprobs.read(0, &mut logprobs)?;
        Ok((ids, logprobs))
    }

    /// Gives all kernels to `stream`.
    fn give(
        &self,
        stream: &Stream,
        model: &Transformer,
        kv: &mut LayeredKv,
    ) -> Result<(), EngineError> {
        let choice = self.pass.choice();
        stream.copy(&self.token_ids, self.pass.token_ids())?;
        stream.copy(&self.rules, choice.rules())?;
        match (&self.pass, &self.attention) {
            (StepPass::One(pass), PlannedAttention::Decode(decode)) => {
                pass.run(stream, model, kv, &self.append, decode)?;
            }
            (StepPass::One(_), PlannedAttention::Prefill(_)) => {
                unreachable!("a batch-invariant step is one of several tokens")
            }
            (StepPass::Many(pass), attention) => {
                let attention = match attention {
                    PlannedAttention::Decode(decode) => Attention::Decode(decode),
                    PlannedAttention::Prefill(prefill) => Attention::Prefill(prefill),
                };
                pass.run(stream, model, kv, &self.append, &attention, &mut |_, _| Ok(()))?;
            }
        }
        if self.issue == Issue::HostSampled {
            return Ok(());
        }
        choice.run(stream)?;
        let (ids, logprobs) = choice.chosen();
        stream.copy(ids, &self.chosen_ids)?;
        stream.copy(logprobs, &self.logprobs)?;
        Ok(())
    }

    /// Logits of the last step: `[batch, vocab_size]`.
    pub(super) fn logits(&self, stream: &Stream) -> Result<Vec<bf16>, EngineError> {
        Ok(self.pass.choice().logits().to_vec(stream)?)
    }
}
