//! `kv-validate`: requests replayed through the pool and the kernels, checked all the way.
//!
//! The replay has two sides. The *pool* ([`crate::kv`]) decides which page lies where; the *data
//! plane* ([`DataPlane`]) holds the bytes and does what the pool plans. What a token's KV
//! contains derives from its prefix block's hash and its place in it (a decoded token's from its
//! request and its place there), so that whatever a kernel reads can be checked, wherever the
//! page has been meanwhile. Nothing is compared with what was stored before: a lost copy cannot
//! agree with itself.
//!
//! # Time
//! The clock is virtual. Requests arrive at `timestamp / speed` and wait in order until pages can
//! be had. A prompt takes as long as the cost model says. Then its request decodes one token per
//! step; steps are [`ValidateOptions::cadence_ms`] apart. A migration runs beside the steps and is
//! completed at the first step after its links would have carried it, so that a replay makes the
//! same decisions on every device.
//!
//! # Latency
//! A decode step reads every page of every request in the batch, once per request. Its latency is
//! measured with events on a GPU. On the CPU it comes from the cost model in
//! [`Rates`](crate::kv::Rates), which the report states: bytes per tier over the tier's rate, one
//! after the other, plus the launches, plus the wait for a migration when a decoded token needs a
//! page and none can be had. Pages left in far tiers thus show as latency, which is what the
//! check is for: p99 over the budget is a violation.
//!
//! # Checks
//! | kind | what must hold | how often |
//! |---|---|---|
//! | attention | outputs equal the f64 oracle | one in [`Plan::sample_outputs`] (step, request) pairs |
//! | page checksum | the bytes derive from the page's tokens | one in [`Plan::sample_pages`] moved pages at their destination, and as many cached at the end |
//! | invariants | no page is lost, leaked or owned twice; every reference count is right | every [`ValidateOptions::invariants_every`] steps, and at the end |
//! | references | none is left when all requests have ended | at the end |
//! | policy | no page in use is chosen for eviction | always |
//! | latency | p99 of decode steps is within the budget | at the end |
#![forbid(unsafe_code)]

mod admission;
mod checks;
mod decode;
mod device_plane;
mod latency;
mod links;
mod options;
mod oracle;
mod plan;
mod plane;
mod render;
mod replay;
mod report;
mod tokens;

#[cfg(test)]
mod device_tests;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod mock;
#[cfg(test)]
mod tests;

pub use device_plane::DevicePlane;
pub use options::{PolicyKind, ValidateError, ValidateOptions};
pub use plan::Plan;
pub use plane::{Attended, DataPlane, DecodeBatch, PlaneError, SequenceView, WrongOutput};
pub use replay::{Progress, replay};
pub use report::{
    Checks, Direction, Latency, LatencySource, Refused, Report, TierReport, Violation,
    ViolationKind, Waits,
};
pub use tokens::{RequestTokens, TokenRun, TokenSource};
