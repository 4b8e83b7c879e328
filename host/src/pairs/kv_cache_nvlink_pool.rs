//! Pair `kv_cache_nvlink_pool`: KV that does not fit this GPU lies in pinned host memory, against
//! in a peer's memory.
//!
//! From host memory decode reads it in place over PCIe. Shapes called strong have another opponent:
//! there, too, the pages lie in the peer, and are copied over NVLink before each decode. From the
//! peer decode pulls it in place over NVLink, or the query travels to the peer, which attends over
//! it where it lies: as the [planner](crate::far) decides, for a peer that has nothing else to do.

use std::rc::Rc;

use anyhow::Result;
use gpu_kernels::contract::Work;
use gpu_kernels::kv_layout::{KvElement, KvLayout, KvPageShape};
use gpu_kernels::paged_attention::plan::SplitPolicy;

use super::{DecodeBatch, DecodeWorkload, FarBench, FarRun, FarWay, is_far, measured_costs};
use crate::device::Device;
use crate::far::{FarPlan, Owner, Reads, plan};
use crate::harness::ceilings::{HBM_READ, HOST_READ, NVLINK_READ};
use crate::harness::results::{Planned, PlannedTime};
use crate::harness::{Batch, Demand, Pair, Prepared, Sampler, Shape, ShapeSet, Variant};
use crate::kernels::far_decode::OwnerWaits;

/// Shares of a real batch's pages that lie far, in percent.
const FAR_PERCENT: [usize; 6] = [0, 7, 25, 50, 75, 100];

/// The pair.
pub(super) const PAIR: Pair = Pair {
    name: "kv_cache_nvlink_pool",
    about: "decode over KV that does not fit the GPU: what is over in pinned host memory (local only), \
        against in a peer's memory, pulled or attended where it lies",
    sides: ["local only, or copied first", "peer pool"],
    rooms: &["far_decode", "merge_states", "paged_attention"],
    shapes,
};

fn shapes(set: ShapeSet) -> Vec<Shape> {
    match set {
        ShapeSet::SeedParity => vec![
            pages_in_order(4, 8, [32, 160, 64]).published(&[
                ("2xB200", 5.90),
                ("4xGB200", 3.97),
                ("B200", 5.33),
            ]),
            pages_in_order(8, 16, [16, 256, 240]).published(&[("2xB200", 1.48), ("4xGB200", 1.94)]),
        ],
        ShapeSet::Real => {
            let workload = DecodeWorkload::new(64, 8, vec![4096; 16]);
            let large = DecodeWorkload::new(64, 8, vec![8192; 64]);
            let weak = FAR_PERCENT
                .map(|far| pages_spread("batch 16 x 4096", &workload, far, Opponent::LocalOnly));
            let strong = [25, 100].map(|far| {
                pages_spread("strong: batch 16 x 4096", &workload, far, Opponent::CopiedFirst)
            });
            let large = pages_spread("batch 64 x 8192", &large, 7, Opponent::LocalOnly);
            weak.into_iter().chain([large]).chain(strong).collect()
        }
        ShapeSet::Tiny => {
            let workload = DecodeWorkload::new(8, 1, vec![150; 2]);
            let shape = |name, far, opponent| pages_spread(name, &workload, far, opponent);
            vec![
                shape("batch 2 x 150", 50, Opponent::LocalOnly),
                shape("batch 2 x 150", 100, Opponent::LocalOnly),
                shape("strong: batch 2 x 150", 50, Opponent::CopiedFirst),
            ]
        }
    }
}

/// Where a page lies on the optimized side. The baseline has no peer: those are in host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tier {
    Local,
    Peer,
    Host,
}

impl Tier {
    /// Location in the page table, of two GPUs.
    fn location(self, variant: Variant) -> usize {
        match (self, variant) {
            (Self::Local, _) => 0,
            (Self::Peer, Variant::Optimized) => 1,
            (Self::Peer, Variant::Baseline) | (Self::Host, _) => 2,
        }
    }
}

/// What the planner's choice is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opponent {
    /// The peer's pages lie in host memory instead.
    LocalOnly,
    /// The peer's pages are copied here before each decode.
    CopiedFirst,
}

/// `far_percent` of the pages in the peer, evenly spread over the batch.
fn pages_spread(
    name: &str,
    workload: &DecodeWorkload,
    far_percent: usize,
    opponent: Opponent,
) -> Shape {
    let tier_of = move |entry| if is_far(entry, far_percent) { Tier::Peer } else { Tier::Local };
    shape(format!("{name}, {far_percent} % far"), workload.clone(), opponent, tier_of)
}

/// `batch` requests without shared heads, each with so many tokens here, in the peer, and in host
/// memory, in that order.
///
/// The published shapes, in bf16 where they are in f32, at their full length.
fn pages_in_order(batch: usize, num_heads: u32, tokens: [u32; 3]) -> Shape {
    let page = KvPageShape {
        page_size: 16,
        num_kv_heads: num_heads,
        head_dim: 64,
        layout: KvLayout::Nhd,
        element: KvElement::Half,
    };
    let [local, peer, host] = tokens.map(|tokens| (tokens / page.page_size) as usize);
    let kv_lens = vec![tokens.iter().sum(); batch];
    let tier_of = move |entry: usize| match entry % (local + peer + host) {
        page if page < local => Tier::Local,
        page if page < local + peer => Tier::Peer,
        _ => Tier::Host,
    };
    let name = format!(
        "batch {batch} x {}: {} here, {} in the peer, {} in the host",
        kv_lens[0], tokens[0], tokens[1], tokens[2]
    );
    let policy = SplitPolicy::Balanced;
    let workload = DecodeWorkload { num_qo_heads: num_heads, page, kv_lens, policy };
    shape(name, workload, Opponent::LocalOnly, tier_of)
}

fn shape(
    name: String,
    workload: DecodeWorkload,
    opponent: Opponent,
    tier_of: impl Fn(usize) -> Tier + Copy + 'static,
) -> Shape {
    Shape::new(name, 2, move |devices, seed| {
        let batch = Rc::new(DecodeBatch::new(workload.clone(), seed));
        TwoGpus::new(devices, batch, opponent, tier_of)
    })
}

/// The same batch twice: as the opponent has it, and with what is over in the peer.
struct TwoGpus {
    batch: Rc<DecodeBatch>,
    baseline: (FarBench, FarRun),
    optimized: (FarBench, FarRun),
    plan: FarPlan,
}

impl TwoGpus {
    fn new(
        devices: &[Device],
        batch: Rc<DecodeBatch>,
        opponent: Opponent,
        tier_of: impl Fn(usize) -> Tier + Copy,
    ) -> Result<Self> {
        let bench =
            |variant| FarBench::new(devices, &batch, |entry| tier_of(entry).location(variant));
        let (baseline, way) = match opponent {
            Opponent::LocalOnly => (bench(Variant::Baseline)?, FarWay::Pull),
            Opponent::CopiedFirst => (bench(Variant::Optimized)?, FarWay::CopyThenAttend),
        };
        let baseline_run = baseline.plan(&way)?;

        let optimized = bench(Variant::Optimized)?;
        let idle = vec![Owner::default(); devices.len() - 1];
        let plan = plan(&measured_costs(devices)?, &optimized.request_bytes(), &idle);
        let (travels, waits) = (plan.travels.clone(), OwnerWaits::OnAllSms);
        let optimized_run = optimized.plan(&FarWay::Travel { travels, waits })?;
        Ok(Self {
            baseline: (baseline, baseline_run),
            optimized: (optimized, optimized_run),
            plan,
            batch,
        })
    }

    fn side(&self, variant: Variant) -> &(FarBench, FarRun) {
        match variant {
            Variant::Baseline => &self.baseline,
            Variant::Optimized => &self.optimized,
        }
    }
}

impl Prepared for TwoGpus {
    fn work(&self, _variant: Variant) -> Work {
        self.batch.workload().work()
    }

    fn demands(&self) -> Vec<Demand> {
        let Reads { near_bytes, pulled_bytes, host_bytes, travelling_bytes } = &self.plan.reads;
        let home =
            [(HBM_READ, *near_bytes), (NVLINK_READ, *pulled_bytes), (HOST_READ, *host_bytes)];
        let owners = travelling_bytes.iter().map(|&bytes| (HBM_READ, bytes));
        let demand = |(ceiling, amount)| Demand { ceiling, amount };
        home.into_iter().chain(owners).filter(|&(_, amount)| amount > 0).map(demand).collect()
    }

    fn num_inputs(&self) -> usize {
        self.optimized.0.num_inputs()
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        let (bench, run) = self.side(variant);
        bench.sampler(run, batch)
    }

    fn verify(&self, variant: Variant) -> Result<String> {
        let (bench, run) = self.side(variant);
        bench.verify(run)
    }

    fn corrupt(&mut self) -> Result<()> {
        self.baseline.0.corrupt()?;
        self.optimized.0.corrupt()
    }

    fn planned(&self) -> Option<Planned> {
        // The costs are GPUs': they predict nothing of a CPU.
        let planned = || Planned {
            choice: self.plan.to_string(),
            us: self.plan.chosen.step_us,
            meaning: PlannedTime::Predicted,
        };
        self.optimized.0.is_cuda().then(planned)
    }
}
