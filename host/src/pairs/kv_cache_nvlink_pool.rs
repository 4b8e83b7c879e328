//! Pair `kv_cache_nvlink_pool`: KV that does not fit this GPU lies in pinned host memory, against
//! in a peer's memory. Decode reads it in place either way: over PCIe, or over NVLink.

use std::rc::Rc;

use anyhow::Result;
use gpu_kernels::contract::Work;
use gpu_kernels::kv_layout::{KvLayout, KvPageShape};
use gpu_kernels::paged_attention::plan::SplitPolicy;

use super::{DecodeBatch, DecodeBench, DecodeWorkload};
use crate::harness::ceilings::{HBM_READ, HOST_READ, NVLINK_READ};
use crate::harness::{Batch, Demand, Pair, Prepared, Sampler, Shape, ShapeSet, Variant};
use crate::kernels::paged_attention::DecodeVariant;

/// Shares of a real batch's pages that lie far, in percent.
const FAR_PERCENT: [usize; 5] = [0, 25, 50, 75, 100];

/// The pair.
pub struct KvCacheNvlinkPool;

impl Pair for KvCacheNvlinkPool {
    fn name(&self) -> &'static str {
        "kv_cache_nvlink_pool"
    }

    fn about(&self) -> &'static str {
        "decode over KV that does not fit the GPU: what is over in pinned host memory (local only), \
         against in a peer's memory, read in place"
    }

    fn side_name(&self, variant: Variant) -> &'static str {
        match variant {
            Variant::Baseline => "local only",
            Variant::Optimized => "peer pool",
        }
    }

    fn rooms(&self) -> Vec<&'static str> {
        vec!["paged_attention"]
    }

    fn shapes(&self, set: ShapeSet) -> Vec<Shape> {
        match set {
            ShapeSet::SeedParity => vec![
                pages_in_order(4, 8, [32, 160, 64]).published(&[
                    ("2xB200", 5.90),
                    ("4xGB200", 3.97),
                    ("B200", 5.33),
                ]),
                pages_in_order(8, 16, [16, 256, 240])
                    .published(&[("2xB200", 1.48), ("4xGB200", 1.94)]),
            ],
            ShapeSet::Real => {
                let workload = DecodeWorkload::new(64, 8, vec![4096; 16]);
                FAR_PERCENT.map(|far| pages_spread("batch 16 x 4096", &workload, far)).into()
            }
            ShapeSet::Tiny => {
                let workload = DecodeWorkload::new(8, 1, vec![150; 2]);
                [50, 100].map(|far| pages_spread("batch 2 x 150", &workload, far)).into()
            }
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

/// `far_percent` of the pages in the peer, evenly spread over the batch.
fn pages_spread(name: &str, workload: &DecodeWorkload, far_percent: usize) -> Shape {
    // Of each hundred pages, the first `far_percent` in steps that spread them.
    let tier_of = move |entry: usize| match entry * 37 % 100 < far_percent {
        true => Tier::Peer,
        false => Tier::Local,
    };
    shape(format!("{name}, {far_percent} % far"), workload.clone(), tier_of)
}

/// `batch` requests without shared heads, each with so many tokens here, in the peer, and in host
/// memory, in that order.
///
/// The published shapes, in bf16 where they are in f32, at their full length.
fn pages_in_order(batch: usize, num_heads: u32, tokens: [u32; 3]) -> Shape {
    let page =
        KvPageShape { page_size: 16, num_kv_heads: num_heads, head_dim: 64, layout: KvLayout::Nhd };
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
    shape(name, DecodeWorkload { num_qo_heads: num_heads, page, kv_lens, policy }, tier_of)
}

fn shape(
    name: String,
    workload: DecodeWorkload,
    tier_of: impl Fn(usize) -> Tier + Copy + 'static,
) -> Shape {
    Shape::new(name, 2, move |devices, seed| {
        let batch = Rc::new(DecodeBatch::new(workload.clone(), seed));
        let side =
            |variant| DecodeBench::new(devices, &batch, |entry| tier_of(entry).location(variant));
        Ok(TwoGpus {
            baseline: side(Variant::Baseline)?,
            optimized: side(Variant::Optimized)?,
            tiers: (0..workload.page_tokens().len()).map(tier_of).collect(),
            batch,
        })
    })
}

/// The same kernel over the same batch, in two places.
struct TwoGpus {
    batch: Rc<DecodeBatch>,
    baseline: DecodeBench,
    optimized: DecodeBench,
    /// Of each page.
    tiers: Vec<Tier>,
}

impl TwoGpus {
    fn side(&self, variant: Variant) -> &DecodeBench {
        match variant {
            Variant::Baseline => &self.baseline,
            Variant::Optimized => &self.optimized,
        }
    }

    /// Bytes of K and V in a tier.
    fn kv_bytes(&self, tier: Tier) -> u64 {
        let workload = self.batch.workload();
        let tokens = workload.page_tokens().into_iter().zip(&self.tiers);
        let here = tokens.filter(|&(_, &of)| of == tier).map(|(tokens, _)| u64::from(tokens));
        here.sum::<u64>() * workload.token_bytes()
    }
}

impl Prepared for TwoGpus {
    fn work(&self, _variant: Variant) -> Work {
        self.batch.workload().work()
    }

    fn demands(&self) -> Vec<Demand> {
        let (peer, host) = (self.kv_bytes(Tier::Peer), self.kv_bytes(Tier::Host));
        let here = self.batch.workload().work().read_bytes - peer - host;
        let demand = |(ceiling, amount)| Demand { ceiling, amount };
        let all = [(HBM_READ, here), (NVLINK_READ, peer), (HOST_READ, host)];
        all.into_iter().filter(|&(_, amount)| amount > 0).map(demand).collect()
    }

    fn num_inputs(&self) -> usize {
        self.optimized.num_inputs()
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        self.side(variant).sampler(DecodeVariant::Split, batch)
    }

    fn verify(&self, variant: Variant) -> Result<String> {
        self.side(variant).verify(DecodeVariant::Split)
    }

    fn corrupt(&mut self) -> Result<()> {
        self.baseline.corrupt()?;
        self.optimized.corrupt()
    }
}
