//! How two sides are measured against each other, whatever they are.
//!
//! | step | what |
//! |---|---|
//! | calls a sample | steady: so many that a sample takes 2 ms, and every set of inputs has its turn; single: 1 |
//! | inputs | rotated: call by call through sets that no cache can hold together; hot: one set |
//! | warm-up | rounds that do not count |
//! | rounds | a sample of each side; who goes first alternates, so that drift hits both |
//! | result | medians; the ratio is the median of the rounds' own ratios; intervals as [`statistics`] has them |
//! | long calls | pairs [whose calls take seconds](Prepared::is_long): one call a sample, no warm-up, the interval looked at from the third round on |
//! | end | a given number of rounds, or of seconds if they pass first; or, looked at in steps of a half more, when the ratio's interval is narrower than 2 % of it, but on GPUs not within the first second; at the latest after the limit of rounds or seconds |
//!
//! Commands and benches all go through here.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::pair::{Prepared, Variant};
use super::results::Estimate;
use super::sampler::{Batch, Mode, Sampler};
use super::statistics::{self, relative_width};
use super::watch::Watch;
use crate::device::nvtx;

/// What a steady sample takes, so that starting it is nothing beside it.
const SAMPLE_US: f64 = 2000.0;
/// Most calls of a sample.
const MAX_CALLS: usize = 512;
/// Width of the ratio's interval at which rounds end.
const TARGET_WIDTH: f64 = 0.02;
/// Rounds before the interval is first looked at.
const FIRST_LOOK: usize = 10;
/// The same, of calls that take seconds.
const FIRST_LOOK_OF_LONG: usize = 3;

/// Which inputs calls get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// Each call another set: caches are cold.
    Rotated,
    /// Every call the same.
    Hot,
}

impl Inputs {
    /// As arguments and results spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rotated => "rotated",
            Self::Hot => "hot",
        }
    }
}

/// When rounds end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounds {
    /// After so many, or at the limit if that comes first.
    Fixed {
        /// How many.
        num_rounds: usize,
        /// Longest time, warm-up excluded.
        max_time: Duration,
    },
    /// When the ratio is sure enough, or at these limits.
    Adaptive {
        /// Shortest time, warm-up excluded: for clocks to settle, and their readings to come.
        min_time: Duration,
        /// Most rounds.
        max_rounds: usize,
        /// Longest time, warm-up excluded.
        max_time: Duration,
    },
}

/// How a pair is measured.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// How calls are issued.
    pub mode: Mode,
    /// Which inputs they get.
    pub inputs: Inputs,
    /// Rounds that do not count.
    pub warmup_rounds: usize,
    /// When the others end.
    pub rounds: Rounds,
}

impl Rounds {
    /// So many, however long they take.
    pub fn exactly(num_rounds: usize) -> Self {
        Self::Fixed { num_rounds, max_time: Duration::MAX }
    }

    /// The same, but at most so long; the round then running is finished.
    pub fn within(self, max_time: Duration) -> Self {
        match self {
            Self::Fixed { num_rounds, .. } => Self::Fixed { num_rounds, max_time },
            Self::Adaptive { min_time, max_rounds, .. } => {
                Self::Adaptive { min_time, max_rounds, max_time }
            }
        }
    }
}

impl Protocol {
    /// The usual protocol: steady and cold, until the ratio is sure; on the CPU, whose times say
    /// little, for a few seconds at most.
    pub fn usual(on_gpu: bool) -> Self {
        let seconds = Duration::from_secs;
        let rounds = match on_gpu {
            true => {
                Rounds::Adaptive { min_time: seconds(1), max_rounds: 2000, max_time: seconds(20) }
            }
            false => {
                Rounds::Adaptive { min_time: seconds(0), max_rounds: 20, max_time: seconds(2) }
            }
        };
        Self {
            mode: Mode::Steady,
            inputs: Inputs::Rotated,
            warmup_rounds: if on_gpu { 3 } else { 1 },
            rounds,
        }
    }

    /// What samples of the baseline and of the optimized side are taken of.
    ///
    /// # Errors
    /// What the pair says.
    pub fn batches(&self, prepared: &dyn Prepared) -> Result<[Batch; 2]> {
        let [baseline, optimized] = Variant::BOTH.map(|variant| self.batch(prepared, variant));
        Ok([baseline?, optimized?])
    }

    /// What a sample of a side is taken of; a steady one is fitted to the time that a call takes.
    ///
    /// # Errors
    /// What the pair says.
    pub fn batch(&self, prepared: &dyn Prepared, variant: Variant) -> Result<Batch> {
        let num_inputs = match self.inputs {
            Inputs::Rotated => prepared.num_inputs(),
            Inputs::Hot => 1,
        };
        let single = Batch { mode: Mode::Single, num_calls: 1, num_inputs };
        if self.mode == Mode::Single || prepared.is_long() {
            return Ok(single);
        }
        let mut one_call = prepared.sampler(variant, single)?;
        // The first call also loads the kernel.
        one_call()?;
        let num_calls = calls_per_sample(one_call()?, num_inputs);
        Ok(Batch { mode: Mode::Steady, num_calls, num_inputs })
    }
}

/// Calls for [`SAMPLE_US`], and for all the inputs equally often.
fn calls_per_sample(call_us: f64, num_inputs: usize) -> usize {
    let wanted = (SAMPLE_US / call_us.max(1.0)).ceil() as usize;
    wanted.clamp(1, MAX_CALLS).next_multiple_of(num_inputs)
}

/// What the rounds came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timings {
    /// Microseconds of a call of the baseline.
    pub baseline_us: Estimate,
    /// Microseconds of a call of the optimized side.
    pub optimized_us: Estimate,
    /// Baseline over optimized.
    pub ratio: Estimate,
}

/// Two sides that take turns.
pub struct Turns<'a> {
    /// Of the baseline and of the optimized side.
    samplers: [Sampler<'a>; 2],
    num_rounds: usize,
}

impl<'a> Turns<'a> {
    /// Of both sides of a pair, each with samples of its own [batch](Protocol::batch).
    ///
    /// # Errors
    /// What the pair or the device says.
    pub fn new(prepared: &'a dyn Prepared, batches: [Batch; 2]) -> Result<Self> {
        let [baseline, optimized] = batches;
        Ok(Self::of([
            prepared.sampler(Variant::Baseline, baseline)?,
            prepared.sampler(Variant::Optimized, optimized)?,
        ]))
    }

    fn of(samplers: [Sampler<'a>; 2]) -> Self {
        Self { samplers, num_rounds: 0 }
    }

    /// Microseconds of a call of the baseline and of the optimized side, from a sample of each.
    /// Who goes first alternates.
    ///
    /// # Errors
    /// What the pair or the device says.
    pub fn round(&mut self) -> Result<[f64; 2]> {
        let is_baseline_first = self.num_rounds.is_multiple_of(2);
        self.num_rounds += 1;
        let [baseline, optimized] = &mut self.samplers;
        Ok(if is_baseline_first {
            let baseline_us = in_range(Variant::Baseline, baseline)?;
            [baseline_us, in_range(Variant::Optimized, optimized)?]
        } else {
            let optimized_us = in_range(Variant::Optimized, optimized)?;
            [in_range(Variant::Baseline, baseline)?, optimized_us]
        })
    }
}

/// A sample, as a profiler shows it.
fn in_range(variant: Variant, sampler: &mut Sampler<'_>) -> Result<f64> {
    let _range = nvtx::range(&variant.to_string());
    sampler()
}

/// Measures both sides of a pair; nothing, if interrupted.
///
/// # Errors
/// What the pair or the device says.
pub fn measure(
    prepared: &dyn Prepared,
    protocol: &Protocol,
    watch: &dyn Watch,
) -> Result<Option<Timings>> {
    watch.step("warming up");
    let turns = Turns::new(prepared, protocol.batches(prepared)?)?;
    if prepared.is_long() {
        let protocol = Protocol { warmup_rounds: 0, ..*protocol };
        return take_turns(turns, &protocol, FIRST_LOOK_OF_LONG, watch);
    }
    take_turns(turns, protocol, FIRST_LOOK, watch)
}

/// Samples of two sides, round by round.
fn take_turns(
    mut turns: Turns<'_>,
    protocol: &Protocol,
    first_look: usize,
    watch: &dyn Watch,
) -> Result<Option<Timings>> {
    for _ in 0..protocol.warmup_rounds {
        if watch.is_interrupted() {
            return Ok(None);
        }
        turns.round()?;
    }
    let (mut samples, mut next_look) = (Samples::default(), first_look);
    let begun = Instant::now();
    loop {
        if watch.is_interrupted() {
            return Ok(None);
        }
        samples.push(turns.round()?);
        let num_rounds = samples.len();
        let is_done = match protocol.rounds {
            Rounds::Fixed { num_rounds: wanted, max_time } => {
                num_rounds >= wanted || begun.elapsed() >= max_time
            }
            Rounds::Adaptive { min_time, max_rounds, max_time } => {
                let is_sure = num_rounds == next_look && {
                    next_look += next_look / 2;
                    let width = relative_width(&samples.timings().ratio);
                    watch.step(&format!(
                        "round {num_rounds}, interval of the ratio {:.1} %",
                        100.0 * width
                    ));
                    width < TARGET_WIDTH && begun.elapsed() >= min_time
                };
                is_sure || num_rounds >= max_rounds || begun.elapsed() >= max_time
            }
        };
        if is_done {
            return Ok(Some(samples.timings()));
        }
    }
}

#[derive(Default)]
struct Samples {
    baseline_us: Vec<f64>,
    optimized_us: Vec<f64>,
    ratios: Vec<f64>,
}

impl Samples {
    fn push(&mut self, [baseline_us, optimized_us]: [f64; 2]) {
        self.baseline_us.push(baseline_us);
        self.optimized_us.push(optimized_us);
        self.ratios.push(baseline_us / optimized_us);
    }

    fn len(&self) -> usize {
        self.ratios.len()
    }

    fn timings(&self) -> Timings {
        Timings {
            baseline_us: statistics::estimate(&self.baseline_us),
            optimized_us: statistics::estimate(&self.optimized_us),
            ratio: statistics::estimate(&self.ratios),
        }
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
