//! What a run of the harness found: the data that tables, reports and expectations are made of.

use serde::{Deserialize, Serialize};

/// Version of the format that this build reads and writes.
pub const SCHEMA: u32 = 1;

/// A run of the harness over some targets on one machine.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RunResults {
    /// Version of this format: [`SCHEMA`].
    pub schema: u32,
    /// Where, when and with what it ran.
    pub manifest: Manifest,
    /// What the machine can do at most, measured in this run; none on the CPU.
    pub ceilings: Vec<Ceiling>,
    /// One entry a target and shape, in the order they ran.
    pub entries: Vec<Entry>,
    /// Whether the run was ended before its last entry.
    pub interrupted: bool,
}

/// Where, when and with what a run was made.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Manifest {
    /// `h200`, `h200_x2`, …, `cpu`: which expectation file speaks of this machine.
    pub hardware: String,
    /// Device names, one a device used.
    pub devices: Vec<String>,
    /// The newest CUDA version that the driver supports; empty on the CPU.
    pub cuda: String,
    /// NCCL's version; empty on the CPU and without NCCL.
    pub nccl: String,
    /// The PTX that ran, as `sm_90a`; empty on the CPU.
    pub ptx: String,
    /// Commit that the build was made from; `unknown` outside a Git checkout.
    pub commit: String,
    /// Whether that checkout had changes of its own.
    pub dirty: bool,
    /// When it began: RFC 3339, UTC.
    pub started: String,
    /// The command line.
    pub arguments: Vec<String>,
    /// What all inputs follow from.
    pub seed: u64,
    /// Environment variables that change results, as set.
    pub environment: Vec<(String, String)>,
}

/// The most that a machine reaches at one thing.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Ceiling {
    /// `hbm_read`, `hbm_copy`, `nvlink_read`, `nvlink_write`, `host_read`, `dense_bf16`.
    pub name: String,
    /// GB/s, or TFLOP/s for `dense_bf16`.
    pub rate: f64,
    /// `GB/s` or `TFLOP/s`.
    pub unit: String,
}

/// One target at one shape.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Entry {
    /// Name of the pair.
    pub target: String,
    /// Name of the shape, unique within the pair and shape set.
    pub shape: String,
    /// `seed_parity`, `real` or `tiny`.
    pub shape_set: String,
    /// Sizes of the shape, where the pair tells them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<serde_json::Value>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a target at one shape.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Outcome {
    /// Both sides are right, and were measured.
    Measured(Box<Measured>),
    /// Never counted as passed.
    Skipped {
        /// What is missing: `needs 4 GPUs, found 1`.
        reason: String,
    },
    /// It could not be set up, gave a wrong result, or broke on the way.
    Failed {
        /// The error and its causes, in one line.
        error: String,
    },
}

/// Both sides of a pair, measured in turns.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Measured {
    /// `steady` (a graph of many calls) or `single` (one call at a time).
    pub mode: String,
    /// `rotated` (caches are cold) or `hot`.
    pub inputs: String,
    /// What a competent engineer ships first.
    pub baseline: Side,
    /// What it is compared with.
    pub optimized: Side,
    /// Baseline time over optimized time, paired round by round.
    pub ratio: Estimate,
    /// The optimized side's share of the ceiling that bounds it.
    pub ceiling: Option<Share>,
    /// Named parts of the optimized side's time, in microseconds, where the pair reports them.
    pub phases: Vec<Phase>,
    /// What a planner chose for the optimized side, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned: Option<Planned>,
    /// What the check of the whole output said; a run without parity does not exist.
    pub parity: String,
    /// Power, clocks and temperature over the measurement, recorded, never set.
    pub conditions: Option<Conditions>,
    /// Ratios that the seed published for this target, on other hardware.
    pub published: Vec<Published>,
}

/// One side of a pair: its time, and the work of one call as the contract counts it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Side {
    /// What the side is called, as `split`.
    pub name: String,
    /// Microseconds of one call.
    pub time_us: Estimate,
    /// Bytes that one call must read.
    pub read_bytes: u64,
    /// Bytes that one call must write.
    pub written_bytes: u64,
    /// Floating-point operations of one call.
    pub flops: u64,
    /// Numbers of the pair's own, beside the time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
}

/// A number that a pair reports for a side.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Metric {
    /// What it counts.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: String,
}

impl Metric {
    /// So much of a unit.
    pub fn new(name: &str, value: f64, unit: &str) -> Self {
        Self { name: name.to_owned(), value, unit: unit.to_owned() }
    }
}

/// A median with its 95 % interval.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Estimate {
    /// Half of the samples are below.
    pub median: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Number of samples.
    pub n: usize,
}

/// How near a side comes to a ceiling.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Share {
    /// Name of the ceiling.
    pub ceiling: String,
    /// What the side reaches, in the ceiling's unit.
    pub rate: f64,
    /// That over the ceiling's own rate: 0 to 1.
    pub share: f64,
}

/// What a plan chose, and a time that is to stand beside what was measured.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Planned {
    /// The plan in a line.
    pub choice: String,
    /// Microseconds of one call.
    #[serde(alias = "predicted_us")]
    pub us: f64,
    /// What that time is.
    #[serde(default)]
    pub meaning: PlannedTime,
}

/// What the time of a plan is.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PlannedTime {
    /// What a planner's model expects.
    #[default]
    Predicted,
    /// The least that the plan's steps allow, by their own measured times.
    Floor,
}

/// A named part of a side's time.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Phase {
    /// What is done in it.
    pub name: String,
    /// Microseconds of one call.
    pub us: f64,
}

/// The state of the GPUs over a measurement: recorded, never set.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Conditions {
    /// Clock of the SMs, in MHz.
    pub sm_clock_mhz: Range,
    /// Power drawn, in watts.
    pub power_w: Range,
    /// Temperature of the GPU, in degrees Celsius.
    pub temperature_c: Range,
}

/// The least and the most that was seen.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Range {
    /// The least.
    pub low: f64,
    /// The most.
    pub high: f64,
}

/// A ratio published elsewhere, which only a ratio of the same shape may stand beside.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Published {
    /// `B200`, `2xB200`, `4xGB200`.
    pub hardware: String,
    /// Baseline time over optimized time.
    pub ratio: f64,
}
