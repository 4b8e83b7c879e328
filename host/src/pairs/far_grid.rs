//! Every way to attend over far pages, over a grid of batches: what the planner chose beside what
//! would have been best, and what it predicted beside what was measured.

use std::rc::Rc;
use std::sync::OnceLock;

use anyhow::{Result, bail};
use half::bf16;
use serde::Serialize;

use super::{DecodeBatch, DecodeWorkload, FarBench, FarRun, FarWay};
use crate::device::Device;
use crate::far::{FarCosts, MeasuredTimes, Owner, Prediction, plan};
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
    /// What the model says of that, of GPUs.
    pub pull_predicted_us: Option<f64>,
    /// All queries travel, by each kind of wait; none without far pages.
    pub travel_us: Vec<f64>,
    /// What the model says of that, of GPUs.
    pub travel_predicted_us: Option<f64>,
    /// All far pages copied first; none without far pages.
    pub copied_us: Option<f64>,
    /// What the planner chose.
    pub planned_us: f64,
    /// What the model says of that, of GPUs.
    pub planned_predicted_us: Option<f64>,
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

/// Batches whose times tell the costs: the first is the middling one, which is also pulled and
/// travels.
const CALIBRATION: [(usize, u32); 3] = [(16, 4096), (1, 1024), (64, 4096)];

/// What the model's costs are on these two devices: a few decodes of a second in all, once for a
/// process. On the CPU the defaults.
///
/// # Errors
/// Too little memory, no way between the devices.
pub fn measured_costs(devices: &[Device]) -> Result<FarCosts> {
    static COSTS: OnceLock<FarCosts> = OnceLock::new();
    if !devices.iter().all(Device::is_cuda) {
        return Ok(FarCosts::default());
    }
    if let Some(costs) = COSTS.get() {
        return Ok(*costs);
    }
    let times = |&(batch, context): &(usize, u32), location, ways: &[FarWay]| {
        let workload = DecodeWorkload::new(64, 8, vec![context; batch]);
        let bytes = workload.token_bytes() * u64::from(context) * batch as u64;
        let contents = Rc::new(DecodeBatch::new(workload, 1));
        let bench = FarBench::<bf16>::new(devices, &contents, |_| location)?;
        let runs = ways.iter().map(|way| bench.plan(way)).collect::<Result<Vec<_>>>()?;
        // Rather too few calls a sample than too many: the pull is the slowest.
        let us = measure_in_turns(&bench, &runs, SAMPLE_US / 8.0)?;
        anyhow::Ok(us.into_iter().map(|us| (bytes, us)).collect::<Vec<_>>())
    };
    let near = CALIBRATION.iter().map(|batch| Ok(times(batch, 0, &[FarWay::Pull])?[0]));
    let near = near.collect::<Result<Vec<_>>>()?;
    let travels = vec![true; CALIBRATION[0].0];
    let ways = [FarWay::Pull, FarWay::Travel { travels, waits: OwnerWaits::OnAllSms }];
    let far = times(&CALIBRATION[0], 1, &ways)?;
    let measured = MeasuredTimes { near, pulled: far[0], travelling: far[1] };
    Ok(*COSTS.get_or_init(|| FarCosts::fitted(&measured)))
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
        ways.push(FarWay::CopyThenAttend);
    }
    let runs = ways.iter().map(|way| bench.plan(way)).collect::<Result<Vec<_>>>()?;
    if check {
        runs.iter().try_for_each(|run| bench.verify(run).map(drop))?;
    }
    let mut us = measure_in_turns(bench, &runs, plan.chosen.step_us)?;
    // The costs are GPUs': they predict nothing of a CPU.
    let predicted_us = |prediction: &Prediction| bench.is_cuda().then_some(prediction.step_us);
    let copied_us = if far_percent > 0 { us.pop() } else { None };
    Ok(FarGridRow {
        batch,
        context,
        far_percent,
        pull_us: us[0],
        pull_predicted_us: predicted_us(&plan.all_pulled),
        travel_us: us[2..].to_vec(),
        travel_predicted_us: predicted_us(&plan.all_travel),
        copied_us,
        planned_us: us[1],
        planned_predicted_us: predicted_us(&plan.chosen),
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
