//! The harness: what there is to run, how it is measured, and what was found.
//!
//! A [`Pair`] offers [`Shape`]s, and a shape makes itself ready on some devices: that is all that
//! the commands, the benches and the tests know of it. For every shape the same happens:
//!
//! 1. the [`Machine`] gives the devices, or says what is missing: skipped, which is no success;
//! 2. both sides are [prepared](Prepared) from one seed, and their whole output is compared with
//!    the oracle;
//! 3. they take turns under the [`protocol`], while [`conditions`] watches the GPUs;
//! 4. their output is compared again: what was timed was right to the end.
//!
//! What comes of it is [`results`]: plain data, which `compare` prints, `--json` keeps, and reports
//! and expectations are made of. [`ceilings`] says what the machine can do at most.
#![forbid(unsafe_code)]

pub mod ceilings;
pub mod conditions;
pub mod expectations;
pub mod files;
mod machine;
mod manifest;
mod output;
mod pair;
pub mod profile;
pub mod protocol;
pub mod report;
pub mod results;
mod runner;
mod sampler;
pub mod statistics;
mod verification;
mod watch;
pub(crate) mod wording;

pub use crate::device::nvtx;
pub use machine::{Machine, MachineError, Shortage};
pub use output::{MANIFEST_FILE, OutputFolder, write_json};
pub use pair::{Demand, Pair, Prepared, Shape, ShapeSet, Variant};
pub use runner::{Plan, UnknownShape, run, verify_both};
pub(crate) use sampler::LEAD_SHARE;
pub use sampler::{Batch, Mode, Sampler, stream_sampler, streams_sampler};
pub use verification::{Finding, Verdict, verify};
pub use watch::{Silent, Watch};
pub use wording::in_one_line;

/// A run made up for tests, with every kind of entry.
#[cfg(test)]
fn sample() -> results::RunResults {
    serde_json::from_str(include_str!("report/sample.json")).expect("it is a run's results")
}
