//! Serving: many requests, one engine or several, and how long everybody waits.
//!
//! ```text
//!  load ──▶ Server ──▶ Scheduler ──▶ StepPlan ──▶ Engine::step ──▶ tokens ──▶ answers, Timeline
//!                          │   ▲                                     │
//!                       kv::KvPool                 complete ◀────────┘
//! ```
//! | module | what |
//! |---|---|
//! | [`request`] | what is asked for, why it is refused, how it ends |
//! | [`policy`] | static and continuous batching, the order of prompts, what is reserved: data |
//! | [`scheduler`] | who runs, who is preempted, which pages they have |
//! | [`step_plan`] | a step's decisions, to be printed and compared |
//! | [`server`] | requests in, answers out, on one engine |
//! | [`disagg`] | several ranks: each for itself, or prompts here and decoding there |
//! | [`simulated`] | an engine that is no model, for tests, and to try schedules without one |
//! | [`alone`](alone()) | what a request gets alone, which every schedule must give it |
//! | [`load`] | requests drawn from a seed, and those of a trace |
//! | [`timeline`], [`summary`] | TTFT, TPOT, percentiles, goodput, stalls, hit rates |
//!
//! What holds, whatever the load:
//! - Each request gets the tokens that it would get alone, if the engine is
//!   [batch-invariant](crate::model::DeviceEngine::batch_invariant): choices depend on its own pages.
//! - Each has an answer. What could not be served even alone is refused when it comes; one
//!   request's fault ends that request; a failing engine ends all, in words.
//! - A full pool preempts the youngest, or lets newcomers wait, and never stands still.
//! - When all have ended, no page is held.
//!
//! Iteration-level scheduling is Orca's, pages and preemption vLLM's, prompts in chunks beside
//! decoding ones Sarathi-Serve's, and KV that goes from prefilling to decoding ranks DistServe's.
#![forbid(unsafe_code)]

mod alone;
pub mod clock;
pub mod disagg;
mod job;
pub mod load;
mod pages;
pub mod policy;
pub mod request;
pub mod scheduler;
pub mod server;
pub mod simulated;
pub mod step_plan;
pub mod summary;
#[cfg(test)]
mod tests;
pub mod timeline;

pub use alone::alone;
pub use clock::Clock;
pub use policy::{Batching, Order, Policy, Reserve};
pub use request::{Answer, Ending, Refusal, Request, RequestId};
pub use scheduler::Scheduler;
pub use server::{ServeError, Served, Server};
pub use simulated::{SIMULATED, SimulatedCosts, SimulatedEngine, SimulatedModel};
pub use step_plan::StepPlan;
pub use summary::{Slo, Summary};
pub use timeline::Timeline;
