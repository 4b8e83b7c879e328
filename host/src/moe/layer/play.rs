//! A plan at work.

use half::bf16;

use super::{
    Lane, LayerArgs, LayerOptions, LayerPlan, LayerShape, Op, PlannedFor, RoutingArgs, Step,
};
use crate::comm::Rank;
use crate::device::{Buffer, Device, Event, Stream, StreamPriority};
use crate::kernels::expert_gemm::{ExpertGemm, ExpertGemmArgs};
use crate::kernels::moe_permute::{Permutation, Permute, PermuteVariant};
use crate::kernels::moe_topk::{Topk, TopkArgs, TopkVariant};
use crate::kernels::shared_expert::{SharedExpert, SharedExpertArgs};
use crate::kernels::token_pack::{Pack, PackArgs, PackVariant};
use crate::kernels::token_unpack::{Unpack, UnpackArgs, UnpackVariant};
use crate::moe::exchange::{CombineArgs, DispatchArgs};
use crate::moe::{Exchange, ExchangeError};

/// One rank's layer: the plan, the memory between its steps, and the second stream.
pub struct Layer {
    plan: LayerPlan,
    exchange_lane: Stream,
    /// The start of a call, for the exchange's lane.
    start: Event,
    /// The end of each step that the other lane waits for.
    ends: Vec<Option<Event>>,
    topk: Option<ChosenHere>,
    exchange: Exchange,
    permute: Permute,
    permutation: Permutation,
    pack: Pack,
    /// `[num_max_rows, hidden]`: what goes into the experts
    rows: Buffer<bf16>,
    gate_up: ExpertGemm,
    /// `[num_max_rows, intermediate]`
    h: Buffer<bf16>,
    down: ExpertGemm,
    /// `[num_max_rows, hidden]`: what comes out of the experts
    expert_rows: Buffer<bf16>,
    unpack: Unpack,
    /// `[ep_size, num_max_tokens, hidden]`
    partial: Buffer<bf16>,
    /// None without tokens.
    shared: Option<Shared>,
}

/// The choice, and what it writes.
struct ChosenHere {
    topk: Topk,
    topk_ids: Buffer<i32>,
    topk_weights: Buffer<f32>,
}

/// The shared expert, and the addition of its results.
struct Shared {
    expert: SharedExpert,
    /// `[num_tokens, hidden]`
    y: Buffer<bf16>,
    /// `[num_tokens, hidden]`: sums of routed experts
    routed: Buffer<bf16>,
    add: Unpack,
    /// `[num_tokens]`: each token's row is its own,
    own_rows: Buffer<i32>,
    /// `[num_tokens]`: and counts once.
    ones: Buffer<f32>,
}

impl Layer {
    /// All ranks make it together, with the same options, and shapes that differ in the number of
    /// tokens only.
    ///
    /// # Errors
    /// Sizes that the rooms do not take, in words; ranks that disagree; no way between devices; too
    /// little memory.
    pub fn new(
        rank: &Rank,
        shape: LayerShape,
        options: LayerOptions,
    ) -> Result<Self, ExchangeError> {
        let device = rank.device();
        let plan = LayerPlan::new(shape, options, PlannedFor::of(device)?)?;
        let stream = device.new_stream()?;
        let exchange = Exchange::new(rank, shape.exchange, options.exchange())?;
        // Rows of slots that no token fills are read, though nothing comes of them.
        stream.fill(exchange.received().x, bf16::ZERO)?;
        stream.synchronize()?;
        rank.barrier()?;
        let down = shape.expert_down();
        let is_waited_for = |op| plan.steps.iter().any(|step| step.waits.contains(&op));
        let ends = plan.steps.iter().map(|step| match is_waited_for(step.op) {
            true => device.new_event().map(Some),
            false => Ok(None),
        });
        Ok(Self {
            exchange_lane: device.new_stream_with_priority(StreamPriority::High)?,
            start: device.new_event()?,
            ends: ends.collect::<Result<_, _>>()?,
            topk: ChosenHere::new(device, &shape)?,
            exchange,
            permute: Permute::on_blocks(device, shape.permute(), plan.permute_blocks())?,
            permutation: Permutation::new(device, shape.permute())?,
            pack: Pack::new(shape.pack())?,
            // Tiles load rows beyond the last, though nothing comes of them.
            rows: device.alloc_zeroed(shape.expert_gate_up().a_elements())?,
            gate_up: ExpertGemm::new(&stream, shape.expert_gate_up())?,
            h: device.alloc_zeroed(down.a_elements())?,
            down: ExpertGemm::new(&stream, down)?,
            expert_rows: device.alloc(down.c_elements())?,
            unpack: Unpack::new(shape.unpack())?,
            partial: device.alloc(shape.exchange.slot_elements())?,
            shared: Shared::new(&stream, &shape, plan.shared_sms())?,
            plan,
        })
    }

    /// What is done.
    pub fn plan(&self) -> &LayerPlan {
        &self.plan
    }

    /// The ids that the last call's choice wrote, and the weights; none where those are given.
    /// // [num_tokens, topk]
    pub fn chosen(&self) -> Option<(&Buffer<i32>, &Buffer<f32>)> {
        self.topk.as_ref().map(|chosen| (&chosen.topk_ids, &chosen.topk_weights))
    }

    /// Bytes of memory that it holds on this rank: between the steps, and of the exchange.
    pub fn num_bytes(&self) -> usize {
        let shared = self
            .shared
            .as_ref()
            .map_or(0, |shared| shared.y.num_bytes() + shared.routed.num_bytes());
        let between = [&self.rows, &self.h, &self.expert_rows, &self.partial];
        between.iter().map(|part| part.num_bytes()).sum::<usize>()
            + shared
            + self.exchange.num_bytes()
    }

    /// Gives one call to `stream` and the layer's own, which starts and ends with it. All ranks make
    /// the same calls in the same order; those of one layer follow each other.
    ///
    /// # Errors
    /// Arguments whose lengths do not fit, before anything is launched; what a device or NCCL says.
    pub fn run(&self, stream: &Stream, args: &LayerArgs<'_>) -> Result<(), ExchangeError> {
        args.check(&self.plan.shape)?;
        let has_two_lanes = self.plan.steps.iter().any(|step| step.lane == Lane::Exchange);
        if has_two_lanes {
            stream.record(&self.start)?;
            self.exchange_lane.wait(&self.start)?;
        }
        for (step, end) in self.plan.steps.iter().zip(&self.ends) {
            let lane = match step.lane {
                Lane::Compute => stream,
                Lane::Exchange => &self.exchange_lane,
            };
            for wait in &step.waits {
                if let Some(end) = self.end_of(*wait) {
                    lane.wait(end)?;
                }
            }
            self.run_step(lane, step, args)?;
            if let Some(end) = end {
                lane.record(end)?;
            }
        }
        if has_two_lanes && self.shared.is_none() {
            // Without tokens nothing adds up on the caller's stream.
            self.exchange_lane.record(&self.start)?;
            stream.wait(&self.start)?;
        }
        Ok(())
    }

    /// As [`run`](Self::run) on one stream, step by step; `between` is called before the first and
    /// after each.
    ///
    /// # Errors
    /// As [`run`](Self::run); what `between` says.
    pub fn run_in_steps(
        &self,
        stream: &Stream,
        args: &LayerArgs<'_>,
        mut between: impl FnMut(usize) -> Result<(), ExchangeError>,
    ) -> Result<(), ExchangeError> {
        args.check(&self.plan.shape)?;
        between(0)?;
        for (index, step) in self.plan.steps.iter().enumerate() {
            self.run_step(stream, step, args)?;
            between(index + 1)?;
        }
        Ok(())
    }

    /// Waits until the stream is idle.
    ///
    /// # Errors
    /// A rank that was late, or has failed; what a device says.
    pub fn synchronize(&self, stream: &Stream) -> Result<(), ExchangeError> {
        self.exchange.synchronize(stream)
    }

    fn end_of(&self, op: Op) -> Option<&Event> {
        let index = self.plan.steps.iter().position(|step| step.op == op)?;
        self.ends[index].as_ref()
    }

    /// Ids and weights of a call.
    fn routing<'a>(&'a self, args: &LayerArgs<'a>) -> (&'a Buffer<i32>, &'a Buffer<f32>) {
        match (args.routing, &self.topk) {
            (RoutingArgs::Chosen { topk_ids, topk_weights }, _) => (topk_ids, topk_weights),
            (RoutingArgs::Logits { .. }, Some(chosen)) => (&chosen.topk_ids, &chosen.topk_weights),
            (RoutingArgs::Logits { .. }, None) => unreachable!("refused by the check"),
        }
    }

    fn run_step(
        &self,
        stream: &Stream,
        step: &Step,
        args: &LayerArgs<'_>,
    ) -> Result<(), ExchangeError> {
        let LayerArgs { x, arriving, weights, out, .. } = *args;
        let received = self.exchange.received();
        let (topk_ids, topk_weights) = self.routing(args);
        let expert_offsets = self.permutation.expert_offsets();
        match step.op {
            Op::Route => self.choose(stream, args),
            Op::Dispatch => {
                let mut args = DispatchArgs { x, topk_ids, topk_weights };
                if let Some(arriving) = arriving {
                    stream.wait(arriving.event)?;
                    args.x = arriving.x;
                }
                self.exchange.dispatch(stream, &args)
            }
            Op::Permute => {
                let ids = received.topk_ids;
                Ok(self.permute.run(stream, PermuteVariant::Grid, ids, &self.permutation)?)
            }
            Op::Pack => {
                let args = PackArgs {
                    x: received.x,
                    x_scales: None,
                    permutation: &self.permutation,
                    rows: &self.rows,
                    row_scales: None,
                };
                Ok(self.pack.run(stream, PackVariant::Fanout, &args)?)
            }
            Op::ExpertGateUp => {
                let (a, b, c) = (&self.rows, &weights.gate_up, &self.h);
                let args = ExpertGemmArgs { a, b, expert_offsets, c };
                Ok(self.gate_up.run(stream, args)?)
            }
            Op::ExpertDown => {
                let (a, b, c) = (&self.h, &weights.down, &self.expert_rows);
                Ok(self.down.run(stream, ExpertGemmArgs { a, b, expert_offsets, c })?)
            }
            Op::Unpack => {
                let args = UnpackArgs {
                    rows: &self.expert_rows,
                    row_scales: None,
                    pair_rows: self.permutation.pair_rows(),
                    topk_weights: received.topk_weights,
                    addend: None,
                    out: &self.partial,
                };
                Ok(self.unpack.run(stream, UnpackVariant::Wide, &args)?)
            }
            Op::Combine => {
                let out = self.shared.as_ref().map_or(out, |shared| &shared.routed);
                let partial = &self.partial;
                self.exchange.combine(stream, &CombineArgs { partial, topk_ids, out })
            }
            Op::SharedGateUp | Op::SharedDown | Op::Add => {
                self.shared.as_ref().map_or(Ok(()), |shared| shared.run(stream, step.op, args))
            }
        }
    }

    fn choose(&self, stream: &Stream, args: &LayerArgs<'_>) -> Result<(), ExchangeError> {
        let (RoutingArgs::Logits { gating_output, bias }, Some(chosen)) =
            (args.routing, &self.topk)
        else {
            return Ok(());
        };
        let ChosenHere { topk, topk_ids, topk_weights } = chosen;
        let args = TopkArgs { gating_output, bias, topk_ids, topk_weights };
        Ok(topk.run(stream, TopkVariant::Warp, &args)?)
    }
}

impl ChosenHere {
    fn new(device: &Device, shape: &LayerShape) -> Result<Option<Self>, ExchangeError> {
        let Some(topk) = shape.topk else { return Ok(None) };
        Ok(Some(Self {
            topk: Topk::new(topk)?,
            topk_ids: device.alloc(shape.topk_elements())?,
            topk_weights: device.alloc(shape.topk_elements())?,
        }))
    }
}

impl Shared {
    fn new(
        stream: &Stream,
        shape: &LayerShape,
        num_sms: u32,
    ) -> Result<Option<Self>, ExchangeError> {
        let Some(shared) = shape.shared() else { return Ok(None) };
        let device = stream.device();
        let own_rows: Vec<i32> = (0..shape.num_tokens as i32).collect();
        Ok(Some(Self {
            expert: SharedExpert::on_sms(stream, shared, num_sms)?,
            y: device.alloc(shape.x_elements())?,
            routed: device.alloc(shape.x_elements())?,
            add: Unpack::new(shape.add())?,
            own_rows: Buffer::from_slice(stream, &own_rows)?,
            ones: Buffer::from_slice(stream, &vec![1.0; own_rows.len()])?,
        }))
    }

    fn run(&self, stream: &Stream, op: Op, args: &LayerArgs<'_>) -> Result<(), ExchangeError> {
        let LayerArgs { x, weights, out, .. } = *args;
        let (gate_up, down) = (&weights.shared_gate_up, &weights.shared_down);
        let expert_args = SharedExpertArgs { x, gate_up, down, y: &self.y };
        match op {
            Op::SharedGateUp => self.expert.run_gate_up(stream, expert_args)?,
            Op::SharedDown => self.expert.run_down(stream, expert_args)?,
            _ => {
                let args = UnpackArgs {
                    rows: &self.routed,
                    row_scales: None,
                    pair_rows: &self.own_rows,
                    topk_weights: &self.ones,
                    addend: Some(&self.y),
                    out,
                };
                self.add.run(stream, UnpackVariant::Wide, &args)?;
            }
        }
        Ok(())
    }
}
