//! What each machine is expected to reach, one file a machine: `expectations/<hardware>.json`.
//!
//! An entry holds what was measured once, and where: the ratio of a pair, its share of the ceiling
//! that bounds it, and the times of both sides. [`check`] holds a later run against it. The band
//! around a stored value is as wide as the interval it was measured with plus [`MARGIN`], to each
//! side; a run below the band has regressed.
//!
//! References move by [`update`] alone, which someone asks for. A run within the band says nothing
//! new, and moves nothing: many small losses would otherwise add up to a large one, each excused by
//! the one before.

mod check;
mod file;
#[cfg(test)]
mod tests;
mod update;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use check::{Comparison, Finding, Position, Quantity, Verdict, check, passed};
pub use file::ExpectationsError;
pub use update::{Change, Update, update};

use super::results::{Estimate, Measured, Published, Share};
use super::statistics::relative_width;

/// Version of the format that this build reads and writes.
pub const SCHEMA: u32 = 1;

/// How far a run may be below a stored value, beside the width of the value's interval: a part of
/// the value.
pub const MARGIN: f64 = 0.05;

/// The widest interval of a stored value: a part of the value. A wider one would forgive everything.
pub const WIDEST_INTERVAL: f64 = 0.25;

/// What one machine is expected to reach.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Expectations {
    /// Version of this format: [`SCHEMA`].
    pub schema: u32,
    /// `h200`, `h200_x2`, …: the file's name, and the `hardware` of the runs that it speaks of.
    pub hardware: String,
    /// By target, shape and protocol; in order, each once.
    pub entries: Vec<Expectation>,
}

/// What is expected of one target at one shape.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// Name of the pair.
    pub target: String,
    /// `seed_parity`, `real` or `tiny`.
    pub shape_set: String,
    /// Name of the shape.
    pub shape: String,
    /// `steady` or `single`.
    pub mode: String,
    /// `rotated` or `hot`.
    pub inputs: String,
    /// Baseline time over optimized time.
    pub ratio: Estimate,
    /// The optimized side's share of the ceiling that bounds it.
    pub ceiling: Option<Share>,
    /// What the baseline took.
    pub baseline: SideTime,
    /// What the optimized side took.
    pub optimized: SideTime,
    /// Ratios that the seed published for this shape, on other hardware.
    pub published: Vec<Published>,
    /// Where the numbers come from.
    pub provenance: Provenance,
}

/// What one side of a pair took.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SideTime {
    /// What the side is called.
    pub name: String,
    /// Microseconds of one call.
    pub time_us: Estimate,
}

/// Where and with what a stored value was measured.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Commit that the build was made from.
    pub commit: String,
    /// Whether its checkout had changes of its own.
    pub dirty: bool,
    /// When the run began: RFC 3339, UTC.
    pub date: String,
    /// Device names, one a device used.
    pub devices: Vec<String>,
    /// The newest CUDA version that the driver supports.
    pub cuda: String,
    /// NCCL's version; empty without NCCL.
    pub nccl: String,
    /// The PTX that ran.
    pub ptx: String,
}

/// Which entry: what runs and results are matched by.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// Name of the pair.
    pub target: String,
    /// `seed_parity`, `real` or `tiny`.
    pub shape_set: String,
    /// Name of the shape.
    pub shape: String,
    /// Mode and inputs; none for an entry that was not measured.
    pub protocol: Option<(String, String)>,
}

impl Key {
    /// Whether both are the same target at the same shape, however measured.
    fn is_same_shape(&self, other: &Self) -> bool {
        (&self.target, &self.shape_set, &self.shape)
            == (&other.target, &other.shape_set, &other.shape)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.target)?;
        if !self.shape.is_empty() {
            write!(f, ", {}", self.shape)?;
        }
        write!(f, " ({}", self.shape_set)?;
        if let Some((mode, inputs)) = &self.protocol {
            write!(f, ", {mode}, {inputs}")?;
        }
        f.write_str(")")
    }
}

impl Expectations {
    /// A machine of which nothing is expected yet.
    pub fn new(hardware: &str) -> Self {
        Self { schema: SCHEMA, hardware: hardware.to_owned(), entries: Vec::new() }
    }

    fn find(&self, key: &Key) -> Option<&Expectation> {
        self.entries.iter().find(|entry| entry.key() == *key)
    }
}

impl Expectation {
    /// Which entry it is.
    pub fn key(&self) -> Key {
        Key {
            target: self.target.clone(),
            shape_set: self.shape_set.clone(),
            shape: self.shape.clone(),
            protocol: Some((self.mode.clone(), self.inputs.clone())),
        }
    }

    /// The first field that no measurement can have given, and why.
    fn problem(&self) -> Option<(&'static str, String)> {
        let estimates = [
            ("ratio", self.ratio),
            ("baseline.time_us", self.baseline.time_us),
            ("optimized.time_us", self.optimized.time_us),
        ];
        let of_estimate = |(field, estimate)| Some((field, problem_of(estimate)?));
        estimates.into_iter().find_map(of_estimate).or_else(|| {
            let share = self.ceiling.as_ref()?.share;
            (!(share.is_finite() && share > 0.0))
                .then(|| ("ceiling.share", format!("a share above 0 is needed, got {share}")))
        })
    }
}

fn problem_of(estimate: Estimate) -> Option<String> {
    let Estimate { median, low, high, n } = estimate;
    if !(0.0 < low && low <= median && median <= high && high.is_finite()) {
        return Some(format!("0 < low <= median <= high is needed, got {low}, {median}, {high}"));
    }
    if n == 0 {
        return Some("a number of samples is needed, got 0".to_owned());
    }
    let width = relative_width(&estimate);
    (width > WIDEST_INTERVAL).then(|| {
        format!(
            "an interval of at most {:.0} % of its median is needed, got {:.0} %",
            100.0 * WIDEST_INTERVAL,
            100.0 * width
        )
    })
}

fn key_of_measured(target: &str, shape_set: &str, shape: &str, measured: &Measured) -> Key {
    Key {
        target: target.to_owned(),
        shape_set: shape_set.to_owned(),
        shape: shape.to_owned(),
        protocol: Some((measured.mode.clone(), measured.inputs.clone())),
    }
}
