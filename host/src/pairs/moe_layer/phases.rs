//! What a layer's steps take, each alone.

use std::fmt;

use anyhow::Result;

use super::state::RankState;
use crate::comm::Rank;
use crate::device::Event;
use crate::harness::Variant;
use crate::harness::results::Phase;
use crate::moe::LayerOptions;
use crate::moe::layer::{Op, Schedule};

/// Calls on a GPU: those that warm up, and those of which the median counts. They follow each other
/// without a pause, as the calls of a whole layer do that these times are held against: a pause lets
/// clocks rise under the power limit.
const ON_GPU: [usize; 2] = [16, 9];
/// The same on the CPU, where times say little.
const ON_CPU: [usize; 2] = [1, 1];

/// The time of each step of a layer, one after the other on one stream, and what follows from it.
#[derive(Clone, Debug)]
pub(in crate::pairs) struct Phases {
    /// In their order: of several ranks, the slowest one's, but in an exchange the one's that did not
    /// wait for the others.
    pub each: Vec<Phase>,
    /// Those that cross ranks.
    communication_us: f64,
    /// The others.
    computation_us: f64,
    /// Bytes that leave the rank which sends most.
    remote_bytes: u64,
    /// Of the experts.
    flops: u64,
}

/// A step, and its time on one rank.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepTime {
    name: &'static str,
    is_communication: bool,
    us: f64,
}

impl Phases {
    /// From what each rank measured.
    pub(super) fn of_ranks(ranks: &[Vec<StepTime>], remote_bytes: [u64; 2], flops: u64) -> Self {
        let of_all = |step: usize| {
            let by_time = |a: &StepTime, b: &StepTime| a.us.total_cmp(&b.us);
            let of_ranks = ranks.iter().map(|steps| steps[step]);
            // Whoever comes to an exchange first waits for the others: the last one's time is its own.
            match ranks[0][step].is_communication {
                true => of_ranks.min_by(by_time),
                false => of_ranks.max_by(by_time),
            }
        };
        let num_steps = ranks.first().map_or(0, Vec::len);
        let steps: Vec<StepTime> = (0..num_steps).filter_map(of_all).collect();
        let sum = |crosses: bool| {
            steps.iter().filter(|step| step.is_communication == crosses).map(|step| step.us).sum()
        };
        Self {
            communication_us: sum(true),
            computation_us: sum(false),
            remote_bytes: remote_bytes.iter().sum(),
            flops,
            each: steps
                .iter()
                .map(|step| Phase { name: step.name.to_owned(), us: step.us })
                .collect(),
        }
    }

    /// The larger of communication and computation: no overlap is faster.
    pub(super) fn floor_us(&self) -> f64 {
        self.communication_us.max(self.computation_us)
    }
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { communication_us, computation_us, remote_bytes, flops, .. } = self;
        write!(
            f,
            "computation {computation_us:.1} µs ({:.0} TFLOP/s), \
             communication {communication_us:.1} µs ({:.0} GB/s of remote rows), in turn {:.1} µs",
            *flops as f64 / computation_us / 1e6,
            *remote_bytes as f64 / communication_us / 1e3,
            communication_us + computation_us
        )?;
        self.each.iter().try_for_each(|Phase { name, us }| write!(f, ", {name} {us:.1}"))
    }
}

/// The time of each step of the optimized side on this rank, all multiprocessors for each.
pub(super) fn time_phases(rank: &Rank, state: &mut RankState) -> Result<Vec<StepTime>> {
    let variant = Variant::Optimized;
    let in_turn = Schedule::Sequential;
    let options = LayerOptions { schedule: in_turn, ..state.options(variant).layer };
    let layer = state.layer_with(rank, variant, options)?;
    let mut steps: Vec<StepTime> = layer.plan().steps.iter().map(|step| step.op.into()).collect();
    // Before the first step rows may come from the host.
    steps.insert(0, StepTime { name: "copies from the host", is_communication: true, us: 0.0 });
    let [num_warmup, num_timed] = if state.stream.device().is_cuda() { ON_GPU } else { ON_CPU };
    let new_event = |_| state.stream.device().new_event();
    let new_events = |_| (0..=steps.len()).map(new_event).collect::<Result<Vec<Event>, _>>();
    let events = (0..num_timed).map(new_events).collect::<Result<Vec<_>, _>>()?;
    rank.barrier()?;
    for call in 0..num_warmup + num_timed {
        // Calls that warm up leave marks that those after them write over.
        let events = &events[call.saturating_sub(num_warmup)];
        state.stream.record(&events[0])?;
        state.start_arrival(in_turn, 0)?;
        let args = state.args(variant, 0);
        layer.run_in_steps(&state.stream, &args, |num_done| {
            Ok(state.stream.record(&events[1 + num_done])?)
        })?;
    }
    layer.synchronize(&state.stream)?;
    let mut times = vec![Vec::with_capacity(num_timed); steps.len()];
    for events in &events {
        for (times, ends) in times.iter_mut().zip(events.windows(2)) {
            times.push(ends[0].elapsed_us(&ends[1])?);
        }
    }
    for (step, times) in steps.iter_mut().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        step.us = times[times.len() / 2];
    }
    if !state.has_arrival() {
        steps.remove(0);
    }
    Ok(steps)
}

impl From<Op> for StepTime {
    fn from(op: Op) -> Self {
        Self { name: op.name(), is_communication: op.is_communication(), us: 0.0 }
    }
}
