//! Both sides on all ranks, as the harness takes them.

use std::sync::{Arc, OnceLock};

use anyhow::Result;
use gpu_kernels::contract::Work;

use super::phases::{Phases, time_phases};
use super::state::{RankState, Traffic};
use super::{SideOptions, Workload};
use crate::comm::Rank;
use crate::device::Device;
use crate::harness::ceilings::{DENSE_BF16, HBM_READ, NVLINK_WRITE};
use crate::harness::results::{Metric, Phase, Planned, PlannedTime};
use crate::harness::{Batch, Demand, Prepared, Sampler, Variant};
use crate::moe::layer::reference::{HostWeights, work};
use crate::pairs::num_cold_inputs;
use crate::pairs::product_bench::random_in_parallel;
use crate::pairs::rank_team::RankTeam;

/// Both sides of a layer on all ranks.
pub(in crate::pairs) struct LayerRanks {
    workload: Workload,
    options: [SideOptions; 2],
    team: RankTeam<RankState>,
    /// By side, then by rank.
    traffic: [Vec<Traffic>; 2],
    phases: OnceLock<Phases>,
}

impl LayerRanks {
    /// Weights and tokens from a seed, on one device for each rank.
    pub(in crate::pairs) fn new(
        devices: &[Device],
        workload: &Workload,
        options: [SideOptions; 2],
        seed: u64,
    ) -> Result<Self> {
        let shape = workload.layer(options[1].topk);
        let host_weights = Arc::new(HostWeights::with(&shape, seed, random_in_parallel));
        // Weights are so large that nothing else stays in a cache.
        let weights_once = work(&shape, &vec![1; shape.num_local_experts() as usize]);
        let num_inputs = num_cold_inputs(&devices[0], weights_once)?;
        let make = {
            let workload = workload.clone();
            let options = options.clone();
            move |rank: &Rank| {
                let (options, host_weights) = (options.clone(), host_weights.clone());
                RankState::new(rank, &workload, options, host_weights, seed, num_inputs)
            }
        };
        let team = RankTeam::start(devices, num_inputs, make)?;
        let traffic = |variant| team.run(move |rank, state| state.traffic(rank, variant));
        Ok(Self {
            workload: workload.clone(),
            options,
            traffic: [traffic(Variant::Baseline)?, traffic(Variant::Optimized)?],
            team,
            phases: OnceLock::new(),
        })
    }

    /// Rows that the rank which sends most sends to its peers, in dispatch; and, as they come back,
    /// in combine.
    fn num_remote_rows(&self, variant: Variant) -> [u64; 2] {
        let traffic = &self.traffic[variant as usize];
        let ranks = 0..traffic.len();
        let sent = |from: usize| -> u64 {
            ranks.clone().filter(|&to| to != from).map(|to| traffic[from].rows_to[to]).sum()
        };
        let returned = |from: usize| -> u64 {
            ranks.clone().filter(|&to| to != from).map(|to| traffic[to].rows_to[from]).sum()
        };
        [ranks.clone().map(sent).max().unwrap_or(0), ranks.clone().map(returned).max().unwrap_or(0)]
    }

    /// The sum of the scores of all chosen experts.
    fn mass(&self, variant: Variant) -> f64 {
        self.traffic[variant as usize].iter().map(|traffic| traffic.mass).sum()
    }

    /// Bytes of a row.
    fn row_bytes(&self) -> u64 {
        2 * u64::from(self.workload.exchange.hidden)
    }

    /// The time of each step alone.
    fn phases(&self) -> Result<&Phases> {
        if let Some(phases) = self.phases.get() {
            return Ok(phases);
        }
        let timed = self.team.run(time_phases)?;
        let [dispatched, combined] = self.num_remote_rows(Variant::Optimized);
        let remote_bytes = [dispatched, combined].map(|rows| rows * self.row_bytes());
        let flops = Prepared::work(self, Variant::Optimized).flops;
        let phases = Phases::of_ranks(&timed, remote_bytes, flops);
        Ok(self.phases.get_or_init(|| phases))
    }
}

impl Prepared for LayerRanks {
    fn work(&self, variant: Variant) -> Work {
        let shape = self.workload.layer(self.options[variant as usize].topk);
        let of_rank = |traffic: &Traffic| work(&shape, &traffic.rows_of);
        let ranks = self.traffic[variant as usize].iter().map(of_rank);
        ranks.max_by_key(|work| work.flops).unwrap_or_default()
    }

    fn demands(&self) -> Vec<Demand> {
        let work = Prepared::work(self, Variant::Optimized);
        let mut demands = vec![
            Demand { ceiling: DENSE_BF16, amount: work.flops },
            Demand { ceiling: HBM_READ, amount: work.read_bytes },
        ];
        let num_rows: u64 = self.num_remote_rows(Variant::Optimized).iter().sum();
        if num_rows > 0 {
            demands.push(Demand { ceiling: NVLINK_WRITE, amount: num_rows * self.row_bytes() });
        }
        demands
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

    fn metrics(&self, variant: Variant) -> Vec<Metric> {
        let rows: u64 = self.num_remote_rows(variant).iter().sum();
        let mut metrics = vec![Metric::new(
            "rows over the wire, from the rank that sends most",
            (rows * self.row_bytes()) as f64 / 1e6,
            "MB",
        )];
        let [baseline, optimized] = &self.options;
        if baseline.topk != optimized.topk {
            let kept = self.mass(variant) / self.mass(Variant::Baseline);
            metrics.push(Metric::new("routing mass lost", 100.0 * (1.0 - kept), "%"));
        }
        metrics
    }

    fn phases(&self) -> Result<Vec<Phase>> {
        Ok(self.phases()?.each.clone())
    }

    fn planned(&self) -> Option<Planned> {
        let phases = self.phases.get()?;
        Some(Planned {
            choice: phases.to_string(),
            us: phases.floor_us(),
            meaning: PlannedTime::Floor,
        })
    }
}
