//! `run`: measures pairs, and keeps what was found.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use farpage::device::DeviceChoice;
use farpage::harness::protocol::{Inputs, Protocol, Rounds};
use farpage::harness::results::{self, Manifest, RunResults};
use farpage::harness::{self, Machine, Mode, OutputFolder, Plan, write_json};

use super::numbers::whole;
use super::profile::Depth;
use super::progress::Progress;
use super::selection::{Selected, Selection};
use super::{Outcome, compare};

#[derive(Debug, Args)]
pub struct RunArguments {
    #[command(flatten)]
    selection: Selection,

    #[command(flatten)]
    measuring: Measuring,

    /// Keeps the results in this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Keeps manifest and results in a new folder in this one.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Runs everything once more under profilers, whose reports go to the folder of `--out`.
    #[arg(
        long,
        value_enum,
        default_value_t,
        requires_if("minimal", "out"),
        requires_if("deep", "out")
    )]
    profile: Depth,
}

/// How it is measured.
#[derive(Debug, Args)]
pub struct Measuring {
    /// Rounds; without it, as many as the ratio needs.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(1, u32::MAX.into()))]
    iterations: Option<u32>,

    /// Rounds before them that do not count.
    #[arg(long, value_name = "N", value_parser = whole::<u32>(0, u32::MAX.into()))]
    warmup: Option<u32>,

    /// Many calls in a row in one graph, or one at a time.
    #[arg(long, value_enum, default_value_t = ModeArgument::Steady)]
    mode: ModeArgument,

    /// Each call other inputs, so that caches are cold, or all the same.
    #[arg(long, value_enum, default_value_t = InputsArgument::Rotated)]
    inputs: InputsArgument,

    /// Longest time for a target at a shape, in seconds or parts of one, warm-up excluded; with
    /// `--iterations` too, whichever ends first.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    max_seconds: Option<Duration>,

    /// Only shapes in whose name this stands, or whose whole name follows a `=`; may be given several
    /// times.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// What all inputs follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeArgument {
    Steady,
    Single,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum InputsArgument {
    Rotated,
    Hot,
}

/// A time that an argument gives in seconds.
fn seconds(text: &str) -> Result<Duration, &'static str> {
    let time = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.filter(|time| !time.is_zero()).ok_or("must be seconds above 0, as `20` or `0.3`")
}

impl Measuring {
    /// What is measured of what was selected.
    ///
    /// # Errors
    /// Shapes that there are none of.
    pub fn plan(&self, selected: &Selected) -> Result<Plan> {
        let plan = Plan {
            pairs: selected.pairs.clone(),
            shape_set: selected.shape_set,
            only: self.only.clone(),
            protocol: self.protocol(selected.machine.is_cuda()),
            seed: self.seed,
        };
        plan.check()?;
        Ok(plan)
    }

    fn protocol(&self, on_gpu: bool) -> Protocol {
        let usual = Protocol::usual(on_gpu);
        let rounds = self.iterations.map_or(usual.rounds, |num| Rounds::exactly(num as usize));
        Protocol {
            mode: match self.mode {
                ModeArgument::Steady => Mode::Steady,
                ModeArgument::Single => Mode::Single,
            },
            inputs: match self.inputs {
                InputsArgument::Rotated => Inputs::Rotated,
                InputsArgument::Hot => Inputs::Hot,
            },
            warmup_rounds: self.warmup.map_or(usual.warmup_rounds, |rounds| rounds as usize),
            rounds: self.max_seconds.map_or(rounds, |max_time| rounds.within(max_time)),
        }
    }
}

pub fn run(choice: DeviceChoice, arguments: &RunArguments) -> Result<Outcome> {
    let selected = arguments.selection.open(choice)?;
    arguments.profile.check(&selected)?;
    let plan = arguments.measuring.plan(&selected)?;
    let manifest = Manifest::gather(&selected.machine, plan.seed)?;
    let folder = match &arguments.out {
        Some(parent) => Some(OutputFolder::create(parent, &selected.label(), &manifest)?),
        None => None,
    };
    let results = measure(&selected.machine, &plan, manifest, &mut |results| {
        if let Some(file) = &arguments.json {
            write_json(file, results)?;
        }
        if let Some(folder) = &folder {
            folder.save(results)?;
        }
        Ok(())
    })?;
    print!("{}", compare::report(&results));
    if let Some(folder) = &folder {
        println!("\nresults: {}", folder.path().display());
        if !results.interrupted {
            arguments.profile.pass(&selected, plan.seed, folder.path())?;
        }
    }
    Ok(outcome(&results))
}

/// Measures as planned, showing how far it is; an end by Ctrl-C is no error.
pub fn measure(
    machine: &Machine,
    plan: &Plan,
    manifest: Manifest,
    save: &mut dyn FnMut(&RunResults) -> Result<()>,
) -> Result<RunResults> {
    let progress = Progress::start()?;
    let results = harness::run(machine, plan, manifest, &progress, save);
    progress.finish();
    results
}

/// A run has passed if it went to its end, something was measured, and nothing failed.
pub fn outcome(results: &RunResults) -> Outcome {
    let mut num_measured = 0;
    for entry in &results.entries {
        match &entry.outcome {
            results::Outcome::Measured(_) => num_measured += 1,
            results::Outcome::Skipped { .. } => {}
            results::Outcome::Failed { .. } => return Outcome::Violation,
        }
    }
    match num_measured > 0 && !results.interrupted {
        true => Outcome::Passed,
        false => Outcome::Violation,
    }
}
