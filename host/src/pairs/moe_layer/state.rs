//! One rank's part of both sides.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use gpu_kernels::dispatch::reference::{RankTokens, ranks_of};
use gpu_kernels::gemm::reference::{Tolerance, check};
use gpu_kernels::moe_topk::reference as topk;
use half::bf16;

use super::{SideOptions, Workload};
use crate::comm::Rank;
use crate::device::{Buffer, Event, PinnedBuffer, Stream};
use crate::harness::Variant;
use crate::moe::layer::reference::{HostWeights, TOLERANCE, outputs};
use crate::moe::layer::{Arriving, RoutingArgs, Schedule};
use crate::moe::{Layer, LayerArgs, LayerOptions, LayerWeights};
use crate::pairs::product_bench::{exact_product, exact_product_unchecked, random_in_parallel};
use crate::pairs::rank_team::RankSides;

/// Products of the oracle that are checked themselves: the shared expert's, on a GPU.
const NUM_CHECKED: usize = 2;
/// A value that no row holds.
const CORRUPTED: f32 = 100.0;

/// One rank's part of both sides.
pub(super) struct RankState {
    workload: Workload,
    pub(super) stream: Stream,
    host_weights: Arc<HostWeights>,
    sides: [Side; 2],
    inputs: Vec<Input>,
    out: Buffer<bf16>,
    /// Of a workload whose rows come from the host.
    arrival: Option<Arrival>,
    oracles: Vec<Oracle>,
}

/// One rank's part of one side.
struct Side {
    options: SideOptions,
    layer: Layer,
    weights: Rc<LayerWeights>,
    /// `[num_experts]`, in the order of the side's placement
    bias: Vec<f32>,
    bias_buffer: Buffer<f32>,
}

/// What one call reads.
struct Input {
    host_x: Vec<bf16>,
    x: Buffer<bf16>,
    /// Of each side: `[num_tokens, num_experts]`, in the order of its placement
    logits: [Vec<f32>; 2],
    gating_output: [Buffer<f32>; 2],
    /// Of a workload whose rows come from the host.
    pinned_x: Option<PinnedBuffer<bf16>>,
}

/// Where rows from the host arrive.
struct Arrival {
    copies: Stream,
    begun: Event,
    arrived: Event,
    x: Buffer<bf16>,
}

/// What a call must give. Ids are those of experts, wherever they are placed.
struct Oracle {
    input: usize,
    topk_ids: Vec<i32>,
    topk_weights: Vec<f32>,
    out: Vec<f64>,
}

/// What a rank's tokens ask of the others, for one side.
#[derive(Clone, Debug)]
pub(super) struct Traffic {
    /// Rows to each rank, this one included. // [ep_size]
    pub rows_to: Vec<u64>,
    /// Rows of each of this rank's experts, from all ranks. // [num_local_experts]
    pub rows_of: Vec<u32>,
    /// The sum of the scores of the experts that this rank's tokens chose.
    pub mass: f64,
}

impl RankState {
    pub(super) fn new(
        rank: &Rank,
        workload: &Workload,
        options: [SideOptions; 2],
        host_weights: Arc<HostWeights>,
        seed: u64,
        num_inputs: usize,
    ) -> Result<Self> {
        let device = rank.device();
        let stream = device.new_stream()?;
        let inputs = (0..num_inputs).map(|input| {
            let seed = seed ^ (1 + input as u64) << 32;
            Input::new(&stream, workload, &options, rank.index(), seed)
        });
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let x_elements = inputs.first().context("no inputs")?.x.len();
        let arrival = || Arrival::new(&stream, x_elements);
        Ok(Self {
            sides: Side::both(rank, &stream, workload, options, &host_weights, seed)?,
            out: device.alloc(x_elements)?,
            arrival: (workload.num_host_copies > 0).then(arrival).transpose()?,
            workload: workload.clone(),
            host_weights,
            inputs,
            oracles: Vec::new(),
            stream,
        })
    }

    fn side(&self, variant: Variant) -> &Side {
        &self.sides[variant as usize]
    }

    pub(super) fn options(&self, variant: Variant) -> &SideOptions {
        &self.side(variant).options
    }

    /// What a call of a side reads and writes.
    pub(super) fn args(&self, variant: Variant, input: usize) -> LayerArgs<'_> {
        let Side { options, weights, bias_buffer, .. } = self.side(variant);
        let Input { x, gating_output, .. } = &self.inputs[input];
        let bias = options.topk.has_bias.then_some(bias_buffer);
        let routing = RoutingArgs::Logits { gating_output: &gating_output[variant as usize], bias };
        let arriving = self.arrival.as_ref();
        let arriving = arriving.map(|Arrival { x, arrived, .. }| Arriving { x, event: arrived });
        LayerArgs { x, arriving, routing, weights, out: &self.out }
    }

    /// A layer of a side's shape that works otherwise. All ranks make it together.
    pub(super) fn layer_with(
        &self,
        rank: &Rank,
        variant: Variant,
        options: LayerOptions,
    ) -> Result<Layer> {
        Ok(Layer::new(rank, self.workload.layer(self.options(variant).topk), options)?)
    }

    /// Whether rows come from the host.
    pub(super) fn has_arrival(&self) -> bool {
        self.arrival.is_some()
    }

    /// Copies rows from the host, where the workload says so: on the stream itself where everything
    /// comes in turn, else beside it.
    pub(super) fn start_arrival(&self, schedule: Schedule, input: usize) -> Result<()> {
        let (Some(arrival), Some(pinned)) = (&self.arrival, &self.inputs[input].pinned_x) else {
            return Ok(());
        };
        let copies = match schedule {
            Schedule::Sequential => &self.stream,
            Schedule::Overlapped { .. } => {
                self.stream.record(&arrival.begun)?;
                arrival.copies.wait(&arrival.begun)?;
                &arrival.copies
            }
        };
        for _ in 0..self.workload.num_host_copies {
            copies.copy(pinned, &arrival.x)?;
        }
        Ok(copies.record(&arrival.arrived)?)
    }

    /// Runs a side, and says which ids and weights it chose for the tokens of an input.
    fn choose(&self, variant: Variant, input: usize) -> Result<(Vec<i32>, Vec<f32>)> {
        let (ids, weights) = self.side(variant).layer.chosen().context("a choice")?;
        self.stream.fill(ids, -1)?;
        self.stream.fill(weights, f32::NAN)?;
        self.call(variant, input)?;
        self.synchronize(variant)?;
        Ok((self.stream.download(ids)?, self.stream.download(weights)?))
    }

    /// Holds a choice against the oracle of routing.
    fn check_choice(
        &self,
        variant: Variant,
        input: usize,
        ids: &[i32],
        weights: &[f32],
    ) -> Result<(), String> {
        let Side { options, bias, .. } = self.side(variant);
        let logits = &self.inputs[input].logits[variant as usize];
        topk::check(&options.topk, logits, bias, ids, weights)
    }

    /// What a side sends for its first input, and what comes.
    pub(super) fn traffic(&self, rank: &Rank, variant: Variant) -> Result<Traffic> {
        let shape = self.workload.exchange;
        let (ids, weights) = self.choose(variant, 0)?;
        self.check_choice(variant, 0, &ids, &weights).map_err(|off| anyhow!(off))?;
        let mut rows_to = vec![0; shape.ep_size as usize];
        for token in ids.chunks(shape.topk as usize) {
            ranks_of(&shape, token).into_iter().for_each(|to| rows_to[to as usize] += 1);
        }
        let mut rows_of = vec![0u32; shape.num_experts as usize];
        ids.iter().for_each(|&id| rows_of[id as usize] += 1);
        let of_all = rank.exchange(rows_of)?;
        let num_local = (shape.num_experts / shape.ep_size) as usize;
        let own = rank.index() * num_local..(rank.index() + 1) * num_local;
        let rows_of = own.map(|expert| of_all.iter().map(|rows_of| rows_of[expert]).sum());
        let Side { options, .. } = self.side(variant);
        let scores = topk::scores(&options.topk, &self.inputs[0].logits[variant as usize]);
        let (num_experts, topk) = (shape.num_experts as usize, shape.topk as usize);
        let chosen = ids.iter().enumerate();
        let mass = chosen.map(|(i, &id)| scores[i / topk * num_experts + id as usize]).sum();
        Ok(Traffic { rows_to, rows_of: rows_of.collect(), mass })
    }

    fn oracle(&mut self, input: usize, ids: Vec<i32>, weights: Vec<f32>) -> Result<&[f64]> {
        let is_it = |oracle: &Oracle| {
            (oracle.input, &oracle.topk_ids, &oracle.topk_weights) == (input, &ids, &weights)
        };
        let place = match self.oracles.iter().position(is_it) {
            Some(place) => place,
            None => {
                let x = self.inputs[input].host_x.clone();
                let tokens = RankTokens { x, topk_ids: ids, topk_weights: weights };
                let out = self.exact_outputs(&tokens)?;
                let RankTokens { topk_ids, topk_weights, .. } = tokens;
                self.oracles.push(Oracle { input, topk_ids, topk_weights, out });
                self.oracles.len() - 1
            }
        };
        Ok(&self.oracles[place].out)
    }

    /// What a call must give, multiplied on the device.
    fn exact_outputs(&self, tokens: &RankTokens) -> Result<Vec<f64>> {
        let (stream, weights) = (&self.stream, &self.host_weights);
        let on_device = |all: &[bf16]| Buffer::from_slice(stream, all);
        let sequences = weights.sequences().into_iter().map(on_device);
        let sequences: Vec<Buffer<bf16>> = sequences.collect::<Result<_, _>>()?;
        let mut num_products = 0;
        outputs(weights, tokens, |shape, a, b| {
            num_products += 1;
            if num_products <= NUM_CHECKED || !stream.device().is_cuda() {
                return exact_product(stream, shape, a, weights.window(b));
            }
            // Hundreds of matrices overlap in one sequence, which travels once.
            let matrix = stream.device().alloc(b.elements.len())?;
            stream.copy(sequences[b.sequence].slice(b.elements.clone()), &matrix)?;
            exact_product_unchecked(stream, shape, a, &matrix)
        })
    }
}

impl RankSides for RankState {
    fn stream(&self) -> &Stream {
        &self.stream
    }

    fn call(&self, variant: Variant, input: usize) -> Result<()> {
        let Side { options, layer, .. } = self.side(variant);
        self.start_arrival(options.layer.schedule, input)?;
        Ok(layer.run(&self.stream, &self.args(variant, input))?)
    }

    fn synchronize(&self, variant: Variant) -> Result<()> {
        Ok(self.side(variant).layer.synchronize(&self.stream)?)
    }

    fn verify(&mut self, _rank: &Rank, variant: Variant, input: usize) -> Result<Option<String>> {
        self.stream.fill(&self.out, bf16::NAN)?;
        let (ids, weights) = self.choose(variant, input)?;
        let got = self.stream.download(&self.out)?;
        if let Err(off) = self.check_choice(variant, input, &ids, &weights) {
            return Ok(Some(off));
        }
        let placement = &self.options(variant).placement;
        let ids = ids.into_iter().map(|id| placement[id as usize] as i32).collect();
        let hidden = self.workload.exchange.hidden as usize;
        let want = self.oracle(input, ids, weights)?;
        Ok(check(&got, want, hidden, TOLERANCE).err())
    }

    fn compared(&self) -> String {
        let Tolerance { relative, absolute } = TOLERANCE;
        let (num_outputs, ep_size) = (self.out.len(), self.workload.exchange.ep_size);
        format!(
            "{num_outputs} outputs of each of {ep_size} ranks within {absolute} + {relative} of f64"
        )
    }

    /// Changes the first row of the last input.
    fn corrupt(&mut self) -> Result<()> {
        let input = self.inputs.last().context("no inputs")?;
        let row = self.workload.exchange.hidden as usize;
        Ok(self.stream.upload(&vec![bf16::from_f32(CORRUPTED); row], input.x.slice(..row))?)
    }
}

impl Side {
    fn both(
        rank: &Rank,
        stream: &Stream,
        workload: &Workload,
        options: [SideOptions; 2],
        host_weights: &HostWeights,
        seed: u64,
    ) -> Result<[Self; 2]> {
        let mut rng = fastrand::Rng::with_seed(seed ^ 1 << 20);
        let num_experts = workload.exchange.num_experts as usize;
        let bias: Vec<f32> = (0..num_experts).map(|_| 0.2 * (rng.f32() - 0.5)).collect();
        let weights = |options: &SideOptions| -> Result<Rc<LayerWeights>> {
            let num_local = num_experts / rank.size();
            let experts = &options.placement[rank.index() * num_local..][..num_local];
            Ok(Rc::new(host_weights.of_rank(stream, experts)?))
        };
        let side = |options: SideOptions, weights| -> Result<Self> {
            let bias: Vec<f32> = options.placement.iter().map(|&expert| bias[expert]).collect();
            let layer = Layer::new(rank, workload.layer(options.topk), options.layer)?;
            let bias_buffer = Buffer::from_slice(stream, &bias)?;
            Ok(Self { options, layer, weights, bias, bias_buffer })
        };
        let [baseline, optimized] = options;
        let of_baseline = weights(&baseline)?;
        let of_optimized = match optimized.placement == baseline.placement {
            true => of_baseline.clone(),
            false => weights(&optimized)?,
        };
        Ok([side(baseline, of_baseline)?, side(optimized, of_optimized)?])
    }
}

impl Arrival {
    fn new(stream: &Stream, x_elements: usize) -> Result<Self> {
        let device = stream.device();
        let (begun, arrived) = (device.new_event()?, device.new_event()?);
        Ok(Self { copies: device.new_stream()?, begun, arrived, x: device.alloc(x_elements)? })
    }
}

impl Input {
    fn new(
        stream: &Stream,
        workload: &Workload,
        sides: &[SideOptions; 2],
        rank: usize,
        seed: u64,
    ) -> Result<Self> {
        let len = workload.num_tokens as usize * workload.exchange.hidden as usize;
        let host_x = random_in_parallel(seed ^ (1 + rank as u64) << 48, len, 1.0);
        let logits = workload.logits(rank, seed);
        let placed = |side: &SideOptions| -> Vec<f32> {
            let rows = logits.chunks(side.placement.len());
            rows.flat_map(|row| side.placement.iter().map(|&expert| row[expert])).collect()
        };
        let logits = [placed(&sides[0]), placed(&sides[1])];
        let pinned_x = (workload.num_host_copies > 0).then(|| -> Result<_> {
            let pinned = stream.device().alloc_pinned(len)?;
            pinned.write(0, &host_x)?;
            Ok(pinned)
        });
        Ok(Self {
            x: Buffer::from_slice(stream, &host_x)?,
            gating_output: [
                Buffer::from_slice(stream, &logits[0])?,
                Buffer::from_slice(stream, &logits[1])?,
            ],
            pinned_x: pinned_x.transpose()?,
            host_x,
            logits,
        })
    }
}
