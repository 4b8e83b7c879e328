//! One token of each sequence of a batch: a pass whose lists change in place, replayed as one graph.

use gpu_kernels::kv_append::contract::{Rope, RopeStyle};
use gpu_kernels::paged_attention::contract::{BatchMaxima, DecodeShape, PageTable};
use gpu_kernels::paged_attention::plan::SplitPolicy;
use gpu_kernels::paged_prefill::contract::PrefillShape;
use half::bf16;

use super::engine::EngineError;
use super::pages::LayeredKv;
use super::pass::{Attention, Pass, PassShape};
use super::transformer::Transformer;
use crate::device::{Graph, PinnedBuffer, Stream};
use crate::kernels::KernelError;
use crate::kernels::kv_append::Append;
use crate::kernels::paged_attention::Decode;
use crate::kernels::paged_prefill::{Prefill, PrefillVariant};
use crate::kernels::sampling::SamplingRule;

/// A decode step of a number of sequences.
pub(super) struct DecodeStep {
    pass: Pass,
    append: Append,
    attention: PlannedAttention,
    graph: Option<Graph>,
    token_ids: PinnedBuffer<i32>,
    rules: PinnedBuffer<SamplingRule>,
    chosen_ids: PinnedBuffer<i32>,
    logprobs: PinnedBuffer<f32>,
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
        let pass = PassShape { num_tokens: batch, num_logit_rows: batch, is_batch_invariant };
        Ok(Self {
            pass: Pass::new(stream, model.config(), pass)?,
            append: Append::for_replay(stream, rope(model), maxima, memory)?,
            attention,
            graph: None,
            token_ids: device.alloc_pinned(batch as usize)?,
            rules: device.alloc_pinned(batch as usize)?,
            chosen_ids: device.alloc_pinned(batch as usize)?,
            logprobs: device.alloc_pinned(batch as usize)?,
        })
    }

    /// Sequences of a step.
    pub(super) fn batch(&self) -> usize {
        self.token_ids.len()
    }

    /// Runs a step, as one graph if asked for, and waits.
    pub(super) fn run(
        &mut self,
        stream: &Stream,
        model: &Transformer,
        kv: &mut LayeredKv,
        inputs: &StepInputs,
        table: &PageTable<'_>,
        as_graph: bool,
    ) -> Result<Chosen, EngineError> {
        self.token_ids.write(0, &inputs.token_ids)?;
        self.rules.write(0, &inputs.rules)?;
        self.append.update(stream, table, kv.layer(0))?;
        let table = self.append.table();
        match &mut self.attention {
            PlannedAttention::Decode(decode) => decode.replan(stream, table)?,
            PlannedAttention::Prefill(prefill) => prefill.replan(stream, table.kv_lens())?,
        }
        if !as_graph {
            self.issue(stream, model, kv)?;
        } else if let Some(graph) = &self.graph {
            graph.launch(stream)?;
        } else {
            // Kernels are loaded by their first launch, which a capture does not allow. Both write
            // the same to the same places.
            self.issue(stream, model, kv)?;
            stream.synchronize()?;
            let graph = stream.capture(|stream| self.issue(stream, model, kv))?;
            graph.launch(stream)?;
            self.graph = Some(graph);
        }
        stream.synchronize()?;
        let (mut ids, mut logprobs) = (vec![0; self.batch()], vec![0.0; self.batch()]);
        self.chosen_ids.read(0, &mut ids)?;
        self.logprobs.read(0, &mut logprobs)?;
        Ok((ids, logprobs))
    }

    fn issue(
        &self,
        stream: &Stream,
        model: &Transformer,
        kv: &mut LayeredKv,
    ) -> Result<(), EngineError> {
        const ALL: &str = "logits of every token are wanted";
        stream.copy(&self.token_ids, self.pass.token_ids())?;
        stream.copy(&self.rules, self.pass.rules().expect(ALL))?;
        let attention = match &self.attention {
            PlannedAttention::Decode(decode) => Attention::Decode(decode),
            PlannedAttention::Prefill(prefill) => Attention::Prefill(prefill),
        };
        self.pass.run(stream, model, kv, &self.append, &attention, &mut |_, _| Ok(()))?;
        let (ids, logprobs) = self.pass.chosen().expect(ALL);
        stream.copy(ids, &self.chosen_ids)?;
        stream.copy(logprobs, &self.logprobs)?;
        Ok(())
    }

    /// Logits of the last step: `[batch, vocab_size]`.
    pub(super) fn logits(&self, stream: &Stream) -> Result<Vec<bf16>, EngineError> {
        let logits = self.pass.logits().expect("logits of every token are wanted");
        Ok(logits.to_vec(stream)?)
    }
}
