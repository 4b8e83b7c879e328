//! Who attends over pages that lie in a peer's memory.
//!
//! Decode over far pages can *pull*: home's kernel reads the pages in place over NVLink. Or the
//! *query travels*: their owner attends over them and returns a state that home merges
//! ([`FarDecode`](crate::kernels::far_decode::FarDecode)). A pull costs wire time for every byte and
//! nothing else; a travelling query costs two signals and a merge, and some of the owner's time,
//! whatever the bytes.
//!
//! [`plan`] decides request by request what costs less, by a [cost model](FarCosts) that one can
//! read and print. Nothing here touches a device.
#![forbid(unsafe_code)]

mod costs;
mod planner;

pub use costs::{FarCosts, MeasuredTimes, Prediction, Reads};
pub use planner::{FarPlan, Owner, RequestBytes, plan};
