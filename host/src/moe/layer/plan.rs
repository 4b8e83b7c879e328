//! The plan of a layer: its steps as data.

use std::fmt;
use std::time::Duration;

use gpu_kernels::contract::{ContractError, Work, require};
use gpu_kernels::expert_gemm::contract::ExpertGemmShape;
use gpu_kernels::moe_topk::contract::StackedTopk;

use super::LayerShape;
use crate::device::Device;
use crate::kernels::KernelError;
use crate::kernels::moe_permute::num_resident_blocks;
use crate::kernels::shared_expert::SharedExpert;
use crate::moe::exchange::{ExchangeOptions, Phase, Transport, kernel_names};

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Logits to ids and weights.
    Route,
    /// Rows to the ranks of their experts.
    Dispatch,
    /// Received slots sorted by expert.
    Permute,
    /// Rows in the order of experts.
    Pack,
    /// The experts' first product, with its gate.
    ExpertGateUp,
    /// The experts' second product.
    ExpertDown,
    /// A weighted sum for each slot.
    Unpack,
    /// Sums back to their ranks, and added.
    Combine,
    /// The shared expert's first product, with its gate.
    SharedGateUp,
    /// The shared expert's second product.
    SharedDown,
    /// Routed and shared results.
    Add,
}

impl Op {
    /// As tables spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Dispatch => "dispatch",
            Self::Permute => "permute",
            Self::Pack => "pack",
            Self::ExpertGateUp => "expert gate-up",
            Self::ExpertDown => "expert down",
            Self::Unpack => "unpack",
            Self::Combine => "combine",
            Self::SharedGateUp => "shared gate-up",
            Self::SharedDown => "shared down",
            Self::Add => "add",
        }
    }

    /// Whether it crosses ranks.
    pub fn is_communication(self) -> bool {
        matches!(self, Self::Dispatch | Self::Combine)
    }

    /// The steps whose results it reads.
    fn inputs(self) -> &'static [Self] {
        match self {
            Self::Route | Self::SharedGateUp => &[],
            Self::Dispatch => &[Self::Route],
            Self::Permute => &[Self::Dispatch],
            Self::Pack => &[Self::Dispatch, Self::Permute],
            Self::ExpertGateUp => &[Self::Permute, Self::Pack],
            Self::ExpertDown => &[Self::Permute, Self::ExpertGateUp],
            Self::Unpack => &[Self::Dispatch, Self::Permute, Self::ExpertDown],
            Self::Combine => &[Self::Route, Self::Dispatch, Self::Unpack],
            Self::SharedDown => &[Self::SharedGateUp],
            Self::Add => &[Self::Combine, Self::SharedDown],
        }
    }
}

/// Which stream a step runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// The caller's.
    Compute,
    /// The layer's own, of high priority. A call of it starts and ends with the caller's.
    Exchange,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compute => "compute",
            Self::Exchange => "exchange",
        })
    }
}

/// What the shared expert runs beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SharedBeside {
    /// All of it beside the dispatch.
    Dispatch,
    /// All of it beside the combine.
    Combine,
    /// Its first product beside the dispatch, its second beside the combine.
    Both,
}

/// In which order steps run, and what runs at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// One step after the other, each on all multiprocessors.
    Sequential,
    /// The exchange on a stream of its own, the shared expert beside it.
    Overlapped {
        /// Beside what.
        shared: SharedBeside,
        /// Multiprocessors that the exchange has, and the shared expert leaves to it.
        exchange_sms: u32,
        /// Who sorts and packs what came: on the exchange's lane it is done beside the shared expert,
        /// if blocks on the exchange's multiprocessors hold all pairs.
        pack: Lane,
    },
}

/// How a layer works; the same on all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerOptions {
    /// How rows travel.
    pub transport: Transport,
    /// In which order steps run.
    pub schedule: Schedule,
    /// How long a one-sided kernel waits for a rank.
    pub timeout: Duration,
}

impl Default for LayerOptions {
    /// Over NVLink, the shared expert beside both halves of the exchange, which has 16
    /// multiprocessors.
    fn default() -> Self {
        Self {
            transport: Transport::OneSided,
            schedule: Schedule::Overlapped {
                shared: SharedBeside::Both,
                exchange_sms: 16,
                pack: Lane::Compute,
            },
            timeout: ExchangeOptions::default().timeout,
        }
    }
}

impl LayerOptions {
    /// What the exchange is made with.
    pub(super) fn exchange(&self) -> ExchangeOptions {
        let num_sms = match self.schedule {
            Schedule::Sequential => None,
            Schedule::Overlapped { exchange_sms, .. } => Some(exchange_sms),
        };
        let Self { transport, timeout, .. } = *self;
        ExchangeOptions { transport, num_sms, timeout, ..ExchangeOptions::default() }
    }
}

/// What a plan has to know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedFor {
    /// Multiprocessors.
    pub num_sms: u32,
    /// Blocks of `moe_permute`, which wait for each other, that run at once.
    pub num_resident_blocks: u32,
    /// Whether it runs the kernels of the copy engine and of `wgmma`: Hopper, and the CPU.
    pub has_hopper_kernels: bool,
}

impl PlannedFor {
    /// One H200.
    pub const H200: Self =
        Self { num_sms: 132, num_resident_blocks: 132, has_hopper_kernels: true };

    /// What `device` is.
    ///
    /// # Errors
    /// What the device says.
    pub fn of(device: &Device) -> Result<Self, KernelError> {
        Ok(Self {
            num_sms: device.num_multiprocessors()?,
            num_resident_blocks: num_resident_blocks(device)?,
            has_hopper_kernels: device.has_hopper_kernels(),
        })
    }
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What it does.
    pub op: Op,
    /// Where.
    pub lane: Lane,
    /// Steps of the other lane that it waits for.
    pub waits: Vec<Op>,
    /// Multiprocessors that it takes at most; none: what it gets.
    pub num_sms: Option<u32>,
    /// Its kernels, in their order; `NCCL` stands for the library's.
    pub kernels: Vec<&'static str>,
    /// What it reads, writes and computes if all experts are chosen equally often.
    pub work: Work,
    /// Bytes of rows that leave this rank at most.
    pub wire_bytes: u64,
}

/// A layer's steps, in the order in which they are issued.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerPlan {
    /// Sizes.
    pub shape: LayerShape,
    /// How it works.
    pub options: LayerOptions,
    /// What it was made for.
    pub device: PlannedFor,
    /// What is done.
    pub steps: Vec<Step>,
}

impl LayerPlan {
    /// Plans a layer. No device is asked.
    ///
    /// # Errors
    /// Sizes that the rooms do not take; an exchange on no multiprocessor.
    pub fn new(
        shape: LayerShape,
        options: LayerOptions,
        device: PlannedFor,
    ) -> Result<Self, ContractError> {
        shape.check()?;
        if let Schedule::Overlapped { exchange_sms, .. } = options.schedule {
            require(exchange_sms > 0, "exchange_sms", "at least 1", exchange_sms)?;
        }
        let mut plan = Self { shape, options, device, steps: Vec::new() };
        let ops: Vec<Op> = order(options.schedule).into_iter().filter(|&op| plan.has(op)).collect();
        plan.steps = ops.iter().map(|&op| plan.step(op, &ops)).collect();
        Ok(plan)
    }

    /// Multiprocessors that the shared expert takes.
    pub fn shared_sms(&self) -> u32 {
        match self.options.schedule {
            Schedule::Sequential => self.device.num_sms,
            Schedule::Overlapped { exchange_sms, .. } => {
                self.device.num_sms.saturating_sub(exchange_sms).max(1)
            }
        }
    }

    fn has(&self, op: Op) -> bool {
        match op {
            Op::Route => self.shape.topk.is_some() && self.shape.num_tokens > 0,
            Op::SharedGateUp | Op::SharedDown | Op::Add => self.shape.num_tokens > 0,
            _ => true,
        }
    }

    fn step(&self, op: Op, ops: &[Op]) -> Step {
        let lane = self.lane(op);
        let crosses = |input: &&Op| ops.contains(input) && self.lane(**input) != lane;
        Step {
            op,
            lane,
            waits: op.inputs().iter().filter(crosses).copied().collect(),
            num_sms: self.num_sms(op),
            kernels: self.kernels(op),
            work: self.work(op),
            wire_bytes: if op.is_communication() { self.wire_bytes() } else { 0 },
        }
    }

    fn lane(&self, op: Op) -> Lane {
        match (self.options.schedule, op) {
            (Schedule::Sequential, _) => Lane::Compute,
            (
                Schedule::Overlapped { pack: Lane::Exchange, exchange_sms, .. },
                Op::Permute | Op::Pack,
            ) if self.shape.permute().grid_dims(exchange_sms).is_ok() => Lane::Exchange,
            _ if op.is_communication() => Lane::Exchange,
            _ => Lane::Compute,
        }
    }

    /// Blocks of `moe_permute`, which wait for each other, that run at once where it runs.
    pub(super) fn permute_blocks(&self) -> u32 {
        self.num_sms(Op::Permute).unwrap_or(self.device.num_resident_blocks)
    }

    fn num_sms(&self, op: Op) -> Option<u32> {
        let Schedule::Overlapped { exchange_sms, .. } = self.options.schedule else { return None };
        match op {
            Op::Dispatch | Op::Combine => Some(exchange_sms),
            Op::Permute if self.lane(op) == Lane::Exchange => Some(exchange_sms),
            Op::SharedGateUp | Op::SharedDown => Some(self.shared_sms()),
            _ => None,
        }
    }

    fn kernels(&self, op: Op) -> Vec<&'static str> {
        let PlannedFor { has_hopper_kernels, .. } = self.device;
        let exchange = |phase| {
            let LayerOptions { transport, .. } = self.options;
            let num_sms = self.num_sms(op).unwrap_or(self.device.num_sms);
            kernel_names(&self.shape.exchange, transport, has_hopper_kernels, num_sms, phase)
                .to_vec()
        };
        let shared = |half: usize| {
            let names =
                |shape| SharedExpert::kernel_names(shape, self.shared_sms(), has_hopper_kernels);
            self.shape.shared().map_or(Vec::new(), |shape| names(shape)[half].clone())
        };
        match op {
            Op::Route
                if self
                    .shape
                    .topk
                    .is_some_and(|topk| StackedTopk::plain(topk).is_deepseek_v3()) =>
            {
                vec!["moe_topk_select_warp_f32_deepseek_v3"]
            }
            Op::Route => vec![match self.shape.topk.map_or(8, |topk| topk.lane_experts()) {
                2 => "moe_topk_select_warp_f32_e64",
                4 => "moe_topk_select_warp_f32_e128",
                8 => "moe_topk_select_warp_f32_e256",
                _ => "moe_topk_select_warp_f32_e512",
            }],
            Op::Dispatch => exchange(Phase::Dispatch),
            Op::Permute => vec![match self.shape.permute().grid_dims(self.permute_blocks()) {
                Ok((_, 1)) => "moe_permute_sort_grid_x1",
                _ => "moe_permute_sort_grid_x4",
            }],
            Op::Pack => vec!["token_pack_rows_fanout"],
            Op::ExpertGateUp if has_hopper_kernels => vec!["expert_gemm_gated_bf16"],
            Op::ExpertGateUp => vec!["expert_gemm_baseline_bf16", "shared_expert_silu_mul_bf16"],
            Op::ExpertDown if has_hopper_kernels => vec!["expert_gemm_grouped_bf16"],
            Op::ExpertDown => vec!["expert_gemm_baseline_bf16"],
            Op::Unpack | Op::Add => vec!["token_unpack_sum_wide_bf16"],
            Op::Combine => exchange(Phase::Combine),
            Op::SharedGateUp => shared(0),
            Op::SharedDown => shared(1),
        }
    }

    /// Rows of a token that leave its rank, or stay, at most.
    fn num_ranks_of_token(&self) -> u32 {
        self.shape.exchange.topk.min(self.shape.exchange.ep_size)
    }

    fn wire_bytes(&self) -> u64 {
        let peers = self.shape.exchange.topk.min(self.shape.exchange.ep_size - 1);
        2 * self.shape.x_elements() as u64 * u64::from(peers)
    }

    fn work(&self, op: Op) -> Work {
        let shape = &self.shape;
        let num_tokens = u64::from(shape.num_tokens);
        let num_rows = shape.topk_elements() as u64;
        let num_exchanged = num_tokens * u64::from(self.num_ranks_of_token());
        let experts = |of: ExpertGemmShape| {
            let num_experts = shape.num_local_experts();
            let even = |expert| {
                let (expert, num_experts) = (u64::from(expert), u64::from(num_experts));
                (((expert + 1) * num_rows / num_experts) - expert * num_rows / num_experts) as u32
            };
            of.work(&(0..num_experts).map(even).collect::<Vec<u32>>())
        };
        let products = |product: usize| {
            shape.shared().map_or(Work::default(), |shared| shared.products()[product].work())
        };
        match op {
            Op::Route => shape.topk.map_or(Work::default(), |topk| topk.work(size_of::<f32>())),
            Op::Dispatch => shape.exchange.dispatch_work(num_tokens, num_exchanged),
            Op::Permute => shape.permute().work(),
            Op::Pack => shape.pack().work(num_rows),
            Op::ExpertGateUp => experts(shape.expert_gate_up()),
            Op::ExpertDown => experts(shape.expert_down()),
            Op::Unpack => shape.unpack().work(num_rows),
            Op::Combine => shape.exchange.combine_work(num_tokens, num_exchanged),
            Op::SharedGateUp => products(0),
            Op::SharedDown => products(1),
            Op::Add => shape.add().work(num_tokens),
        }
    }
}

/// All steps there can be, such that each comes after its inputs.
fn order(schedule: Schedule) -> Vec<Op> {
    use Op::*;
    let shared: &[Op] = &[SharedGateUp, SharedDown];
    let [beside_dispatch, beside_combine, last] = match schedule {
        Schedule::Sequential => [&[], &[], shared],
        Schedule::Overlapped { shared: beside, .. } => match beside {
            SharedBeside::Dispatch => [shared, &[], &[]],
            SharedBeside::Combine => [&[], shared, &[]],
            SharedBeside::Both => [&shared[..1], &shared[1..], &[]],
        },
    };
    let experts: &[Op] = &[Permute, Pack, ExpertGateUp, ExpertDown, Unpack];
    [&[Route, Dispatch], beside_dispatch, experts, &[Combine], beside_combine, last, &[Add]]
        .concat()
}

impl fmt::Display for LayerPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LayerShape { exchange, num_tokens, intermediate, shared_intermediate, .. } = self.shape;
        let transport = match self.options.transport {
            Transport::OneSided => "one-sided",
            Transport::Nccl => "NCCL",
        };
        writeln!(
            f,
            "{num_tokens} tokens x {}, top {} of {} experts x {intermediate}, shared \
             {shared_intermediate}, {} ranks, {transport}",
            exchange.hidden, exchange.topk, exchange.num_experts, exchange.ep_size
        )?;
        writeln!(
            f,
            "{:<15} {:<9} {:>4}  {:<21} {:>9} {:>9} {:>8}  kernels",
            "step", "lane", "SMs", "waits for", "MB", "GFLOP", "wire MB"
        )?;
        for step in &self.steps {
            let waits: Vec<&str> = step.waits.iter().map(|op| op.name()).collect();
            let num_sms = step.num_sms.map_or("all".to_owned(), |num_sms| num_sms.to_string());
            let moved = (step.work.read_bytes + step.work.written_bytes) as f64;
            writeln!(
                f,
                "{:<15} {:<9} {num_sms:>4}  {:<21} {:>9.1} {:>9.1} {:>8.1}  {}",
                step.op.name(),
                step.lane.to_string(),
                waits.join(", "),
                moved / 1e6,
                step.work.flops as f64 / 1e9,
                step.wire_bytes as f64 / 1e6,
                step.kernels.join(", ")
            )?;
        }
        Ok(())
    }
}
