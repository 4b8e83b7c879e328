//! Expectations, moved by someone who asks for it.

use std::fmt;

use super::check::{Comparison, Position, compare};
use super::{Expectation, Expectations, Key, Provenance, SideTime};
use crate::harness::results::{Entry, Manifest, Measured, Outcome, RunResults, Side};

/// What an update does to one entry.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It is expected from now on.
    Added,
    /// The measured values replace the stored ones: what they were compared by.
    Moved(Vec<Comparison>),
    /// The measured values are in the band of the stored ones, which stay.
    InBand(Vec<Comparison>),
    /// The measured values cannot be a reference; what is stored stays.
    Refused {
        /// What is wrong with them.
        problem: String,
    },
}

/// Expectations after a run, and what became of each entry that the run measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// All entries, also those that were not measured.
    pub expectations: Expectations,
    /// Which entry, and what became of it.
    pub changes: Vec<(Key, Change)>,
}

impl Update {
    /// Whether there is anything to write.
    pub fn is_change(&self) -> bool {
        let writes = |change: &Change| matches!(change, Change::Added | Change::Moved(_));
        self.changes.iter().any(|(_, change)| writes(change))
    }
}

impl fmt::Display for Update {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, change) in &self.changes {
            let (word, why) = match change {
                Change::Added => ("added", String::new()),
                Change::Moved(all) => ("moved", list(all)),
                Change::InBand(all) => ("in band", list(all)),
                Change::Refused { problem } => ("REFUSED", format!(": {problem}")),
            };
            writeln!(f, "{word:<9}  {key}{why}")?;
        }
        Ok(())
    }
}

fn list(comparisons: &[Comparison]) -> String {
    let all: Vec<String> = comparisons.iter().map(ToString::to_string).collect();
    format!(": {}", all.join("; "))
}

/// Takes over what a run of the same machine measured: entries that are new, entries that left
/// their band, and with `force` also those that did not. All others stay as they are.
pub fn update(stored: &Expectations, results: &RunResults, force: bool) -> Update {
    let mut expectations = stored.clone();
    let mut changes = Vec::new();
    for entry in &results.entries {
        let Outcome::Measured(measured) = &entry.outcome else { continue };
        let found = expectation(&results.manifest, entry, measured);
        let key = found.key();
        let old = expectations.entries.iter_mut().find(|old| old.key() == key);
        let change = if let Some((field, problem)) = found.problem() {
            Change::Refused { problem: format!("{field}: {problem}") }
        } else if let Some(old) = old {
            let comparisons = compare(old, measured);
            let in_band = comparisons.iter().all(|one| one.position() == Position::Within);
            if in_band && !force {
                Change::InBand(comparisons)
            } else {
                *old = found;
                Change::Moved(comparisons)
            }
        } else {
            expectations.entries.push(found);
            Change::Added
        };
        changes.push((key, change));
    }
    expectations.entries.sort_by_key(Expectation::key);
    Update { expectations, changes }
}

fn expectation(manifest: &Manifest, entry: &Entry, measured: &Measured) -> Expectation {
    let time = |side: &Side| SideTime { name: side.name.clone(), time_us: side.time_us };
    Expectation {
        target: entry.target.clone(),
        shape_set: entry.shape_set.clone(),
        shape: entry.shape.clone(),
        mode: measured.mode.clone(),
        inputs: measured.inputs.clone(),
        ratio: measured.ratio,
        ceiling: measured.ceiling.clone(),
        baseline: time(&measured.baseline),
        optimized: time(&measured.optimized),
        published: measured.published.clone(),
        provenance: Provenance {
            commit: manifest.commit.clone(),
            dirty: manifest.dirty,
            date: manifest.started.clone(),
            devices: manifest.devices.clone(),
            cuda: manifest.cuda.clone(),
            nccl: manifest.nccl.clone(),
            ptx: manifest.ptx.clone(),
        },
    }
}
