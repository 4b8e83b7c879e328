//! Every way to attend over far pages, over a grid of batches: what the planner chose beside what
//! would have been best, and what it predicted beside what was measured.

use std::rc::Rc;

use anyhow::{Result, bail};
use serde::Serialize;

use super::{DecodeBatch, DecodeWorkload, FarBench, FarRun, FarWay};
use crate::device::Device;
use crate::far::{FarCosts, Owner, plan};
use crate::harness::{Batch, Mode, Watch, statistics};
use crate::kernels::far_decode::OwnerWaits;

/// Microseconds of a sample, about.
const SAMPLE_US: f64 = 3000.0;
/// Samples, in turns with the other ways'.
const NUM_SAMPLES: usize = 9;

/// What to measure.
#[derive(Clone, Debug)]
pub struct FarGrid {
    /// Requests and tokens of each.
    pub batches: Vec<(usize, u32)>,
    /// Shares of the pages in the peer's memory, in percent.
    pub far_percents: Vec<usize>,
    /// Query heads and KV heads.
    pub heads: (u32, u32),
    /// What the planner reckons with.
    pub costs: FarCosts,
}

/// One point of the grid; all times in µs.
#[derive(Clone, Debug, Serialize)]
pub struct FarGridRow {
    /// Requests.
    pub batch: usize,
    /// Tokens of each.
    pub context: u32,
    /// Share of the pages in the peer's memory.
    pub far_percent: usize,
    /// All far pages pulled.
    pub pull_us: f64,
    /// What the model says of that.
    pub pull_predicted_us: f64,
    /// All queries travel, by each kind of wait; none without far pages.
    pub travel_us: Vec<f64>,
    /// What the model says of that.
    pub travel_predicted_us: f64,
    /// What the planner chose.
    pub planned_us: f64,
    /// What the model says of that.
    pub planned_predicted_us: f64,
    /// Requests whose queries travel in the plan.
    pub num_travelling: usize,
}

impl FarGridRow {
    /// How much longer the planner's choice took than the better of the two fixed ones.
    pub fn regret(&self) -> f64 {
        let travel_us = self.travel_us.first().copied().unwrap_or(f64::INFINITY);
        self.planned_us / self.pull_us.min(travel_us) - 1.0
    }
}

/// `far_percent` of a batch's pages, evenly spread.
pub fn is_far(entry: usize, far_percent: usize) -> bool {
    // Of each hundred pages, the first `far_percent` in steps that spread them.
    entry * 37 % 100 < far_percent
}

/// Measures the grid on two devices, row by row; every way's output is compared with the oracle if
/// `check` is set. Ends early if interrupted.
///
/// # Errors
/// Too little memory, no way between the devices; an output that is wrong.
pub fn far_grid(
    devices: &[Device],
    grid: &FarGrid,
    check: bool,
    watch: &dyn Watch,
    row: &mut dyn FnMut(FarGridRow),
) -> Result<()> {
    let total = grid.batches.len() * grid.far_percents.len();
    let mut done = 0;
    for &(batch, context) in &grid.batches {
        let (num_qo_heads, num_kv_heads) = grid.heads;
        let workload = DecodeWorkload::new(num_qo_heads, num_kv_heads, vec![context; batch]);
        let contents = Rc::new(DecodeBatch::new(workload, 1));
        for &far_percent in &grid.far_percents {
            if watch.is_interrupted() {
                bail!("interrupted");
            }
            watch.entry(done, total, &format!("batch {batch} x {context}, {far_percent} % far"));
            let location_of = |entry| usize::from(is_far(entry, far_percent));
            let bench = FarBench::new(devices, &contents, location_of)?;
            row(measure_row(&bench, grid, (batch, context, far_percent), check)?);
            done += 1;
        }
    }
    Ok(())
}

fn measure_row(
    bench: &FarBench,
    grid: &FarGrid,
    (batch, context, far_percent): (usize, u32, usize),
    check: bool,
) -> Result<FarGridRow> {
    let plan = plan(&grid.costs, &bench.request_bytes(), &[Owner::default()]);
    let mut ways = vec![
        FarWay::Pull,
        FarWay::Travel { travels: plan.travels.clone(), waits: OwnerWaits::OnAllSms },
    ];
    if far_percent > 0 {
        let travels = vec![true; batch];
        ways.extend(
            OwnerWaits::ALL.map(|waits| FarWay::Travel { travels: travels.clone(), waits }),
        );
    }
    let runs = ways.iter().map(|way| bench.plan(way)).collect::<Result<Vec<_>>>()?;
    if check {
        runs.iter().try_for_each(|run| bench.verify(run).map(drop))?;
    }
    let predicted_us = [&plan.all_pulled, &plan.chosen].map(|prediction| prediction.step_us);
    let us = measure_in_turns(bench, &runs, predicted_us[1])?;
    Ok(FarGridRow {
        batch,
        context,
        far_percent,
        pull_us: us[0],
        pull_predicted_us: predicted_us[0],
        travel_us: us[2..].to_vec(),
        travel_predicted_us: plan.all_travel.step_us,
        planned_us: us[1],
        planned_predicted_us: predicted_us[1],
        num_travelling: plan.num_travelling(),
    })
}

/// Median microseconds of a call of each run, which takes about so long on a GPU.
fn measure_in_turns(bench: &FarBench, runs: &[FarRun], call_us: f64) -> Result<Vec<f64>> {
    // The CPU is no machine to measure, but must be able to go through all of it.
    let (num_samples, num_calls) = match bench.is_cuda() {
        true => (NUM_SAMPLES, (SAMPLE_US / call_us) as usize),
        false => (2, 1),
    };
    let num_calls = num_calls.max(bench.num_inputs());
    let batch = Batch { mode: Mode::Steady, num_calls, num_inputs: bench.num_inputs() };
    let samplers = runs.iter().map(|run| bench.sampler(run, batch));
    let mut samplers = samplers.collect::<Result<Vec<_>>>()?;
    let mut samples = vec![Vec::new(); runs.len()];
    for _ in 0..num_samples {
        for (sampler, samples) in samplers.iter_mut().zip(&mut samples) {
            samples.push(sampler()?);
        }
    }
    // The first one warms up.
    Ok(samples.iter().map(|samples| statistics::estimate(&samples[1..]).median).collect())
}
