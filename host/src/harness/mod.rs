//! The harness: what is run, how it is measured, and what was found.
#![forbid(unsafe_code)]

pub mod expectations;
pub mod files;
pub mod report;
pub mod results;

/// A run made up for tests, with every kind of entry.
#[cfg(test)]
fn sample() -> results::RunResults {
    serde_json::from_str(include_str!("report/sample.json")).expect("it is a run's results")
}
