//! Pair `wide_ep`: tokens to the ranks of their experts and back, by a buffer per destination and
//! NCCL, against kernels that write straight into the peers' memory.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use anyhow::{Context, Result};
use gpu_kernels::combine::reference::combine;
use gpu_kernels::contract::Work;
use gpu_kernels::dispatch::contract::ExchangeShape;
use gpu_kernels::dispatch::reference::{RankTokens, Routing, dispatch, random_rows};
use half::bf16;

use super::num_cold_inputs;
use super::rank_team::{RankSides, RankTeam};
use crate::comm::Rank;
use crate::device::{Buffer, Device, Stream};
use crate::harness::ceilings::NVLINK_WRITE;
use crate::harness::{Batch, Demand, Pair, Prepared, Sampler, Shape, ShapeSet, Variant};
use crate::moe::exchange::{CombineArgs, DispatchArgs, Phase};
use crate::moe::{Exchange, ExchangeOptions, Transport};

/// Sets of inputs: one and the same would stay in a cache; more than these would take long to make.
const NUM_INPUTS: RangeInclusive<usize> = 2..=64;
/// Multiprocessors that leave most to a computation beside them.
const FEW_SMS: u32 = 16;

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "wide_ep",
    about: "dispatch of tokens to the ranks of their experts, and combine of the results: a buffer per \
        destination and NCCL, against one kernel that writes into the peers' memory",
    sides: ["NCCL send/recv", "one-sided"],
    rooms: &["dispatch", "combine"],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    let both = |workload: &Workload| {
        [Phase::Dispatch, Phase::Combine].map(|phase| shape(phase, workload.clone()))
    };
    match set {
        // The published chapter moves nothing between devices here.
        ShapeSet::SeedParity => Vec::new(),
        ShapeSet::Real => {
            let usual = |num_tokens| Workload::of_large_model(2, num_tokens);
            let all = [
                usual(4096),
                usual(4096).routing(Routing::Zipf),
                usual(4096).num_sms(FEW_SMS),
                usual(128),
                usual(128).num_sms(FEW_SMS),
                usual(1),
                Workload::of_large_model(4, 4096),
                Workload::of_large_model(4, 128),
            ];
            all.iter().flat_map(both).collect()
        }
        ShapeSet::Tiny => {
            let small = |ep_size, num_tokens, num_max_tokens| Workload {
                shape: ExchangeShape {
                    ep_size,
                    num_experts: 4 * ep_size,
                    topk: 3,
                    hidden: 256,
                    num_max_tokens_per_rank: num_max_tokens,
                },
                num_tokens,
                routing: Routing::Uniform,
                num_sms: None,
            };
            let all = [small(2, 5, 8), small(3, 300, 300).routing(Routing::Zipf)];
            all.iter().flat_map(both).collect()
        }
    }
}

/// What the ranks exchange.
#[derive(Clone, Debug)]
struct Workload {
    shape: ExchangeShape,
    /// Of each rank.
    num_tokens: u32,
    routing: Routing,
    /// Of the one-sided kernels; all unless said.
    num_sms: Option<u32>,
}

impl Workload {
    /// A layer of 256 experts, 8 for each token, rows of 7168. Decode keeps room for 128 tokens.
    fn of_large_model(ep_size: u32, num_tokens: u32) -> Self {
        let shape = ExchangeShape {
            ep_size,
            num_experts: 256,
            topk: 8,
            hidden: 7168,
            num_max_tokens_per_rank: num_tokens.max(128),
        };
        Self { shape, num_tokens, routing: Routing::Uniform, num_sms: None }
    }

    fn routing(self, routing: Routing) -> Self {
        Self { routing, ..self }
    }

    fn num_sms(self, num_sms: u32) -> Self {
        Self { num_sms: Some(num_sms), ..self }
    }

    fn options(&self, variant: Variant) -> ExchangeOptions {
        let transport = match variant {
            Variant::Baseline => Transport::Nccl,
            Variant::Optimized => Transport::OneSided,
        };
        ExchangeOptions { transport, num_sms: self.num_sms, ..ExchangeOptions::default() }
    }

    /// What all ranks bring; input after input only the [rows](rows_of) differ.
    fn tokens(&self, seed: u64) -> Vec<RankTokens> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let random = |_| RankTokens::random(&self.shape, self.num_tokens, self.routing, &mut rng);
        (0..self.shape.ep_size).map(random).collect()
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shape: ExchangeShape { ep_size, num_experts, topk, hidden, .. }, .. } = self;
        let num_tokens = self.num_tokens;
        write!(f, "{num_tokens} tokens x {hidden}, top {topk} of {num_experts}, {ep_size} ranks")?;
        if self.routing != Routing::Uniform {
            f.write_str(", skewed")?;
        }
        match self.num_sms {
            Some(num_sms) => write!(f, ", {num_sms} SMs"),
            None => Ok(()),
        }
    }
}

fn shape(phase: Phase, workload: Workload) -> Shape {
    let num_gpus = workload.shape.ep_size as usize;
    Shape::new(format!("{phase} {workload}"), num_gpus, move |devices, seed| {
        Ranks::new(devices, phase, &workload, seed)
    })
}

/// Both sides on all ranks.
struct Ranks {
    phase: Phase,
    workload: Workload,
    team: RankTeam<RankState>,
    /// Rows that each rank receives from each, by receiving rank.
    num_rows: Vec<Vec<u64>>,
}

/// One rank's part of both sides.
struct RankState {
    phase: Phase,
    workload: Workload,
    seed: u64,
    /// Of all ranks.
    tokens: Arc<Vec<RankTokens>>,
    stream: Stream,
    exchanges: [Exchange; 2],
    inputs: Vec<Input>,
    out: Buffer<bf16>,
}

/// What one call reads.
struct Input {
    x: Buffer<bf16>,
    topk_ids: Buffer<i32>,
    topk_weights: Buffer<f32>,
    /// Of a combine.
    partial: Option<Buffer<bf16>>,
}

impl Ranks {
    fn new(devices: &[Device], phase: Phase, workload: &Workload, seed: u64) -> Result<Self> {
        let shape = workload.shape;
        let tokens = Arc::new(workload.tokens(seed));
        let to = |rank| {
            let rows = |tokens: &RankTokens| tokens.num_rows_to(&shape, rank) as u64;
            tokens.iter().map(rows).collect()
        };
        let num_tokens = u64::from(workload.num_tokens);
        let cold = num_cold_inputs(&devices[0], shape.dispatch_work(num_tokens, num_tokens))?;
        let num_inputs = cold.clamp(*NUM_INPUTS.start(), *NUM_INPUTS.end());
        let make = {
            let (workload, tokens) = (workload.clone(), tokens.clone());
            move |rank: &Rank| RankState::new(rank, phase, &workload, seed, &tokens, num_inputs)
        };
        Ok(Self {
            phase,
            workload: workload.clone(),
            team: RankTeam::start(devices, num_inputs, make)?,
            num_rows: (0..shape.ep_size).map(to).collect(),
        })
    }

    fn row_bytes(&self) -> u64 {
        2 * u64::from(self.workload.shape.hidden)
    }

    /// Rows that a rank sends to its peers in this phase, on the rank that sends most.
    fn num_remote_rows(&self) -> u64 {
        let size = self.num_rows.len();
        let moved = |from: usize, to: usize| match self.phase {
            Phase::Dispatch => self.num_rows[to][from],
            Phase::Combine => self.num_rows[from][to],
        };
        let of = |rank| (0..size).filter(|&to| to != rank).map(|to| moved(rank, to)).sum();
        (0..size).map(of).max().unwrap_or(0)
    }
}

impl RankState {
    fn new(
        rank: &Rank,
        phase: Phase,
        workload: &Workload,
        seed: u64,
        all_tokens: &Arc<Vec<RankTokens>>,
        num_inputs: usize,
    ) -> Result<Self> {
        let (shape, device) = (workload.shape, rank.device());
        let tokens = &all_tokens[rank.index()];
        let stream = device.new_stream()?;
        let exchange = |variant| Exchange::new(rank, shape, workload.options(variant));
        let exchanges = [exchange(Variant::Baseline)?, exchange(Variant::Optimized)?];
        let inputs = (0..num_inputs).map(|input| {
            let x = rows_of(seed, input, rank.index(), tokens.x.len());
            let partial = match phase {
                Phase::Dispatch => None,
                Phase::Combine => {
                    let partial = rows_of(seed, input, rank.index(), shape.slot_elements());
                    Some(Buffer::from_slice(&stream, &partial)?)
                }
            };
            Ok(Input {
                x: Buffer::from_slice(&stream, &x)?,
                topk_ids: Buffer::from_slice(&stream, &tokens.topk_ids)?,
                topk_weights: Buffer::from_slice(&stream, &tokens.topk_weights)?,
                partial,
            })
        });
        let state = Self {
            phase,
            workload: workload.clone(),
            seed,
            tokens: all_tokens.clone(),
            inputs: inputs.collect::<Result<_>>()?,
            out: device.alloc(tokens.x.len())?,
            stream,
            exchanges,
        };
        // A combine brings back what a dispatch has brought.
        for variant in Variant::BOTH {
            let exchange = state.exchange(variant);
            exchange.dispatch(&state.stream, &state.inputs[0].dispatch_args())?;
            exchange.synchronize(&state.stream)?;
        }
        Ok(state)
    }

    fn exchange(&self, variant: Variant) -> &Exchange {
        &self.exchanges[variant as usize]
    }

    /// Dispatches an input; what of the rows, ids and weights that come is off.
    fn verify_dispatch(
        &self,
        rank: &Rank,
        variant: Variant,
        input: usize,
    ) -> Result<Option<String>> {
        let (shape, stream) = (&self.workload.shape, &self.stream);
        let received = self.exchange(variant).received();
        stream.fill(received.x, bf16::NAN)?;
        stream.fill(received.topk_weights, f32::NAN)?;
        stream.synchronize()?;
        // Peers write there.
        rank.barrier()?;
        self.call(variant, input)?;
        self.synchronize(variant)?;
        let brought = self.tokens.iter().enumerate().map(|(source, tokens)| RankTokens {
            x: rows_of(self.seed, input, source, tokens.x.len()),
            topk_ids: tokens.topk_ids.clone(),
            topk_weights: tokens.topk_weights.clone(),
        });
        let want = dispatch(shape, &brought.collect::<Vec<_>>(), rank.index() as u32);
        let x = stream.download(received.x)?;
        let topk_ids = stream.download(received.topk_ids)?;
        let topk_weights = stream.download(received.topk_weights)?;
        Ok(want.check(shape, &x, &topk_ids, &topk_weights).err())
    }

    /// Combines an input; what of the sums is off.
    fn verify_combine(
        &self,
        rank: &Rank,
        variant: Variant,
        input: usize,
    ) -> Result<Option<String>> {
        let (shape, own) = (&self.workload.shape, rank.index());
        self.stream.fill(&self.out, bf16::NAN)?;
        self.call(variant, input)?;
        self.synchronize(variant)?;
        let partial = |from| rows_of(self.seed, input, from, shape.slot_elements());
        let partials: Vec<_> = (0..rank.size()).map(partial).collect();
        let want = combine(shape, &partials, own, &self.tokens[own].topk_ids);
        let got = self.stream.download(&self.out)?;
        let off = (0..want.len()).find(|&i| got[i] != want[i]);
        Ok(off.map(|i| format!("out, element {i}: {}, must be {}", got[i], want[i])))
    }
}

impl RankSides for RankState {
    fn stream(&self) -> &Stream {
        &self.stream
    }

    fn call(&self, variant: Variant, input: usize) -> Result<()> {
        let (exchange, input) = (self.exchange(variant), &self.inputs[input]);
        match &input.partial {
            None => exchange.dispatch(&self.stream, &input.dispatch_args())?,
            Some(partial) => {
                let args = CombineArgs { partial, topk_ids: &input.topk_ids, out: &self.out };
                exchange.combine(&self.stream, &args)?;
            }
        }
        Ok(())
    }

    fn synchronize(&self, variant: Variant) -> Result<()> {
        Ok(self.exchange(variant).synchronize(&self.stream)?)
    }

    fn verify(&mut self, rank: &Rank, variant: Variant, input: usize) -> Result<Option<String>> {
        match self.phase {
            Phase::Dispatch => self.verify_dispatch(rank, variant, input),
            Phase::Combine => self.verify_combine(rank, variant, input),
        }
    }

    fn compared(&self) -> String {
        let what = match self.phase {
            Phase::Dispatch => "received rows, ids and weights",
            Phase::Combine => "sums",
        };
        format!("all {what} of {} ranks bit by bit", self.tokens.len())
    }

    /// Changes the first rows of the last input.
    fn corrupt(&mut self) -> Result<()> {
        let Input { x, partial, .. } = self.inputs.last().context("no inputs")?;
        // Of partial results all: not every slot is filled.
        let changed = match partial {
            None => x.slice(..self.workload.shape.hidden as usize),
            Some(partial) => partial.slice(..),
        };
        Ok(self.stream.fill(changed, bf16::from_f32(1e4))?)
    }
}

impl Input {
    fn dispatch_args(&self) -> DispatchArgs<'_> {
        let Self { x, topk_ids, topk_weights, .. } = self;
        DispatchArgs { x, topk_ids, topk_weights }
    }
}

/// Rows of one rank's input: known to all ranks, to check what they get of it.
fn rows_of(seed: u64, input: usize, rank: usize, len: usize) -> Vec<bf16> {
    let mut rng =
        fastrand::Rng::with_seed(seed ^ (1 + input as u64) << 32 ^ (1 + rank as u64) << 48);
    random_rows(len, &mut rng)
}

impl Prepared for Ranks {
    fn work(&self, _variant: Variant) -> Work {
        let (shape, num_tokens) = (self.workload.shape, u64::from(self.workload.num_tokens));
        let most = |rows: &dyn Fn(usize) -> u64| (0..self.num_rows.len()).map(rows).max();
        // What a rank's tokens are sent as, or what comes back for them.
        let of_tokens = |rank: usize| self.num_rows.iter().map(|from| from[rank]).sum();
        let num_rows = most(&of_tokens).unwrap_or(0);
        match self.phase {
            Phase::Dispatch => shape.dispatch_work(num_tokens, num_rows),
            Phase::Combine => shape.combine_work(num_tokens, num_rows),
        }
    }

    fn demands(&self) -> Vec<Demand> {
        let amount = self.num_remote_rows() * self.row_bytes();
        vec![Demand { ceiling: NVLINK_WRITE, amount }]
    }

    fn num_inputs(&self) -> usize {
        self.team.num_inputs()
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        self.team.sampler(variant, batch)
    }

    fn verify(&self, variant: Variant) -> Result<String> {
        self.team.verify(variant)
    }

    fn corrupt(&mut self) -> Result<()> {
        self.team.corrupt()
    }
}
