//! A run, held against what is expected.

use std::fmt;

use super::{Expectation, Expectations, Key, MARGIN, key_of_measured};
use crate::harness::results::{Measured, Outcome, RunResults};
use crate::harness::statistics::relative_width;

/// What is compared.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Quantity {
    /// Baseline time over optimized time.
    Ratio,
    /// The optimized side's share of the ceiling of this name.
    Share(String),
}

impl Quantity {
    fn show(&self, value: f64) -> String {
        match self {
            Self::Ratio => format!("{value:.3}"),
            Self::Share(_) => format!("{:.1} %", 100.0 * value),
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ratio => f.write_str("ratio"),
            Self::Share(ceiling) => write!(f, "share of {ceiling}"),
        }
    }
}

/// Where a value lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Position {
    /// Below the band, or not there: worse.
    Below,
    /// In the band: nothing new.
    Within,
    /// Above the band: better.
    Above,
}

/// A measured value beside the stored one.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// What is compared.
    pub quantity: Quantity,
    /// The stored value.
    pub stored: f64,
    /// Half the band: what the run may differ by.
    pub tolerance: f64,
    /// What the run found; none if another ceiling bounds it now.
    pub measured: Option<f64>,
}

impl Comparison {
    /// The lowest value that still passes.
    pub fn floor(&self) -> f64 {
        self.stored - self.tolerance
    }

    /// Where the measured value lies.
    pub fn position(&self) -> Position {
        match self.measured {
            Some(measured) if measured > self.stored + self.tolerance => Position::Above,
            Some(measured) if measured >= self.floor() => Position::Within,
            _ => Position::Below,
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value| self.quantity.show(value);
        let (stored, floor) = (show(self.stored), show(self.floor()));
        write!(f, "{} ", self.quantity)?;
        match (self.measured.map(show), self.position()) {
            (None, _) => write!(f, "was {stored}, and another ceiling bounds it now"),
            (Some(measured), Position::Below) => {
                write!(f, "{measured} is below {floor}, the least for the stored {stored}")
            }
            (Some(measured), Position::Within) => write!(f, "{measured}, stored {stored}"),
            (Some(measured), Position::Above) => write!(f, "{measured}, better than {stored}"),
        }
    }
}

/// What a check says of one entry.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// As expected, or better.
    Held(Vec<Comparison>),
    /// Worse than expected.
    Regressed(Vec<Comparison>),
    /// Nothing is expected of it yet.
    New,
    /// It was not run, so it did not pass.
    Skipped {
        /// What was missing.
        reason: String,
    },
    /// It broke.
    Failed {
        /// How.
        error: String,
    },
    /// It is expected, and not in this run.
    Absent,
}

/// What a check says, and of which entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Which entry.
    pub key: Key,
    /// What of it.
    pub finding: Finding,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match &self.finding {
            Finding::Held(_) => "held",
            Finding::Regressed(_) => "REGRESSED",
            Finding::New => "new",
            Finding::Skipped { .. } => "skipped",
            Finding::Failed { .. } => "FAILED",
            Finding::Absent => "not run",
        };
        write!(f, "{word:<9}  {}", self.key)?;
        match &self.finding {
            Finding::Held(all) | Finding::Regressed(all) => {
                let all: Vec<String> = all.iter().map(ToString::to_string).collect();
                write!(f, ": {}", all.join("; "))
            }
            Finding::Skipped { reason: why } | Finding::Failed { error: why } => {
                write!(f, ": {why}")
            }
            Finding::New => f.write_str(": nothing is expected of it yet"),
            Finding::Absent => Ok(()),
        }
    }
}

/// Holds every entry of a run against what is expected, and names what is expected and missing.
/// Which machine the expectations are for is the caller's business.
pub fn check(results: &RunResults, expectations: &Expectations) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = results
        .entries
        .iter()
        .map(|entry| {
            let unmeasured = || Key {
                target: entry.target.clone(),
                shape_set: entry.shape_set.clone(),
                shape: entry.shape.clone(),
                protocol: None,
            };
            match &entry.outcome {
                Outcome::Skipped { reason } => Verdict {
                    key: unmeasured(),
                    finding: Finding::Skipped { reason: reason.clone() },
                },
                Outcome::Failed { error } => {
                    Verdict { key: unmeasured(), finding: Finding::Failed { error: error.clone() } }
                }
                Outcome::Measured(measured) => {
                    let key =
                        key_of_measured(&entry.target, &entry.shape_set, &entry.shape, measured);
                    let finding = match expectations.find(&key) {
                        Some(expected) => judge(compare(expected, measured)),
                        None => Finding::New,
                    };
                    Verdict { key, finding }
                }
            }
        })
        .collect();
    let absent = expectations.entries.iter().map(Expectation::key).filter(|key| {
        !verdicts.iter().any(|verdict| match verdict.key.protocol {
            Some(_) => verdict.key == *key,
            None => verdict.key.is_same_shape(key),
        })
    });
    let absent: Vec<_> = absent.map(|key| Verdict { key, finding: Finding::Absent }).collect();
    verdicts.extend(absent);
    verdicts
}

/// Whether a run is as good as expected: something was held against its expectation, and nothing
/// regressed or failed. Skipped entries are not counted either way.
pub fn passed(verdicts: &[Verdict]) -> bool {
    let held = |verdict: &Verdict| matches!(verdict.finding, Finding::Held(_));
    let bad = |verdict: &Verdict| {
        matches!(verdict.finding, Finding::Regressed(_) | Finding::Failed { .. })
    };
    verdicts.iter().any(held) && !verdicts.iter().any(bad)
}

fn judge(comparisons: Vec<Comparison>) -> Finding {
    let regressed = comparisons.iter().any(|comparison| comparison.position() == Position::Below);
    if regressed { Finding::Regressed(comparisons) } else { Finding::Held(comparisons) }
}

/// The ratio and, if one is stored, the share. A share has no interval of its own: it varies as
/// the optimized side's time does.
pub(super) fn compare(expected: &Expectation, measured: &Measured) -> Vec<Comparison> {
    let tolerance = |stored: f64, width: f64| stored * (width + MARGIN);
    let ratio = Comparison {
        quantity: Quantity::Ratio,
        stored: expected.ratio.median,
        tolerance: tolerance(expected.ratio.median, relative_width(&expected.ratio)),
        measured: Some(measured.ratio.median),
    };
    let share = expected.ceiling.as_ref().map(|stored| Comparison {
        quantity: Quantity::Share(stored.ceiling.clone()),
        stored: stored.share,
        tolerance: tolerance(stored.share, relative_width(&expected.optimized.time_us)),
        measured: measured
            .ceiling
            .as_ref()
            .filter(|now| now.ceiling == stored.ceiling)
            .map(|now| now.share),
    });
    [Some(ratio), share].into_iter().flatten().collect()
}
