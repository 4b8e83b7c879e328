//! `kv-validate`.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use farpage::device::{self, Device, DeviceChoice};
use farpage::validate::{DevicePlane, Plan, PolicyKind, Progress, Report, ValidateOptions, replay};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::Outcome;

#[derive(Debug, Args)]
pub struct KvValidateArguments {
    /// A trace in the Mooncake format (JSON lines); without one, a small seeded trace.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Seed of the generated trace.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Replay only the first requests of the trace.
    #[arg(long, value_name = "COUNT")]
    max_requests: Option<usize>,
    /// Requests arrive this many times faster than the trace says.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Virtual ms between decode steps.
    #[arg(long, default_value_t = 30.0)]
    cadence_ms: f64,
    /// What decides which page is evicted and which comes back.
    #[arg(long, value_enum, default_value_t)]
    policy: PolicyArgument,
    /// One decodes, the others lend memory; by default 2, or 1 where there is one GPU only.
    #[arg(long)]
    gpus: Option<u32>,
    /// Pages in local HBM; chosen from the trace by default, as the next two.
    #[arg(long, value_name = "PAGES")]
    local_pages: Option<u32>,
    /// Pages that each peer lends.
    #[arg(long, value_name = "PAGES")]
    peer_pages: Option<u32>,
    /// Pages in pinned host memory.
    #[arg(long, value_name = "PAGES")]
    host_pages: Option<u32>,
    /// Tokens of a page: 1 to 64, a power of 2.
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    page_size: u32,
    /// KV heads.
    #[arg(long, value_name = "HEADS", default_value_t = 1)]
    num_kv_heads: u32,
    /// Elements of a head: 64 or 128.
    #[arg(long, value_name = "ELEMENTS", default_value_t = 64)]
    head_dim: u32,
    /// Query heads per KV head: 1 to 16.
    #[arg(long, value_name = "HEADS", default_value_t = 4)]
    group_size: u32,
    /// Check one in N pages and one in N attention outputs; by default chosen from the trace.
    #[arg(long, value_name = "N")]
    sample: Option<u64>,
    /// Limit for p99 of a decode step, µs; chosen from the trace and page shape by default.
    #[arg(long, value_name = "US")]
    budget_us: Option<f64>,
    /// Decode steps between checks of the pool's invariants; chosen by default.
    #[arg(long, value_name = "STEPS")]
    invariants_every: Option<u64>,
    /// Prints the result as JSON; the device stands in it.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum PolicyArgument {
    /// Least recently used.
    Lru,
    /// Recency, frequency, and the cost of getting the page back.
    #[default]
    CostAware,
}

impl From<PolicyArgument> for PolicyKind {
    fn from(argument: PolicyArgument) -> Self {
        match argument {
            PolicyArgument::Lru => Self::Lru,
            PolicyArgument::CostAware => Self::CostAware,
        }
    }
}

/// The report, and what it was made on.
#[derive(Serialize)]
struct JsonReport<'a> {
    device: &'a str,
    passed: bool,
    #[serde(flatten)]
    report: &'a Report,
}

pub fn run(choice: DeviceChoice, arguments: KvValidateArguments) -> anyhow::Result<Outcome> {
    let json = arguments.json;
    let plan = Plan::new(arguments.options(choice)?)?;
    let mut plane = DevicePlane::new(choice, &plan)?;
    let device = plane.describe();
    let mut stdout = io::stdout();
    if !json {
        writeln!(stdout, "{device}")?;
    }
    let bar = progress_bar(plan.requests.len() as u64)?;
    let report = replay(&plan, plan.policy(), &mut plane, &mut |progress| show(&bar, progress))?;
    bar.finish_and_clear();
    if json {
        let report = JsonReport { device: &device, passed: report.passed(), report: &report };
        writeln!(stdout, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(stdout, "{report}").context("writing the report")?;
    }
    Ok(if report.passed() { Outcome::Passed } else { Outcome::Violation })
}

fn progress_bar(num_requests: u64) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template(
        "{bar:40} {pos}/{len} requests, {msg}, {elapsed} gone, {eta} to go",
    )?;
    Ok(ProgressBar::new(num_requests).with_style(style))
}

fn show(bar: &ProgressBar, progress: &Progress) {
    bar.set_position(progress.done);
    bar.set_message(format!("{} steps, {} violations", progress.steps, progress.violations));
}

impl KvValidateArguments {
    fn options(self, choice: DeviceChoice) -> anyhow::Result<ValidateOptions> {
        let defaults = ValidateOptions::default();
        let gpus = match self.gpus {
            Some(gpus) => gpus,
            None if Device::select(choice)?.is_cuda() => {
                defaults.gpus.min(device::num_gpus()? as u32)
            }
            None => defaults.gpus,
        };
        Ok(ValidateOptions {
            trace: self.trace,
            seed: self.seed,
            max_requests: self.max_requests,
            speed: self.speed,
            cadence_ms: self.cadence_ms,
            policy: self.policy.into(),
            gpus,
            local_pages: self.local_pages,
            peer_pages: self.peer_pages,
            host_pages: self.host_pages,
            page_size: self.page_size,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            group_size: self.group_size,
            sample: self.sample,
            budget_us: self.budget_us,
            invariants_every: self.invariants_every,
            rates: defaults.rates,
        })
    }
}
