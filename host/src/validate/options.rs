//! What to replay, on what, and how strictly.

use std::io;
use std::path::PathBuf;

use gpu_kernels::contract::ContractError;
use gpu_kernels::paged_attention::MAX_LOCATIONS;
use serde::Serialize;

use super::PlaneError;
use crate::device::DeviceError;
use crate::kv::trace::{PREFIX_BLOCK_TOKENS, TraceError};
use crate::kv::{PoolError, Rates};

/// Less, and virtual time would not move on where it is long.
const MIN_CADENCE_MS: f64 = 0.001;

/// An eviction policy by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyKind {
    /// [`crate::kv::policy::Lru`]
    Lru,
    /// [`crate::kv::policy::CostAware`]
    #[default]
    CostAware,
}

/// Options of `kv-validate`.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidateOptions {
    /// A trace in the Mooncake format; without one, a small seeded trace is generated.
    pub trace: Option<PathBuf>,
    /// Seed of the generated trace.
    pub seed: u64,
    /// Replay no more than this many requests.
    pub max_requests: Option<usize>,
    /// Requests arrive this many times faster than the trace says.
    pub speed: f64,
    /// ms of virtual time between decode steps.
    pub cadence_ms: f64,
    /// Eviction policy.
    pub policy: PolicyKind,
    /// GPUs: one decodes, the others lend memory.
    pub gpus: u32,
    /// Pages in local HBM; chosen from the trace when not given, like the next two.
    pub local_pages: Option<u32>,
    /// Pages that each peer lends.
    pub peer_pages: Option<u32>,
    /// Pages in pinned host memory.
    pub host_pages: Option<u32>,
    /// Tokens of a page; divides 512.
    pub page_size: u32,
    /// KV heads.
    pub num_kv_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Query heads per KV head.
    pub group_size: u32,
    /// Check one in this many pages and one in this many outputs; chosen from the trace when not
    /// given, for each of the two.
    pub sample: Option<u64>,
    /// Limit for p99 of a decode step, µs; chosen from the trace and page shape when not given.
    pub budget_us: Option<f64>,
    /// Steps between invariant checks; chosen from the trace when not given.
    pub invariants_every: Option<u64>,
    /// The machine that costs are modelled on.
    pub rates: Rates,
}

impl Default for ValidateOptions {
    fn default() -> Self {
        Self {
            trace: None,
            seed: 0,
            max_requests: None,
            speed: 1.0,
            cadence_ms: 30.0,
            policy: PolicyKind::default(),
            gpus: 2,
            local_pages: None,
            peer_pages: None,
            host_pages: None,
            page_size: 16,
            num_kv_heads: 1,
            head_dim: 64,
            group_size: 4,
            sample: None,
            budget_us: None,
            invariants_every: None,
            rates: Rates::default(),
        }
    }
}

/// Why there is no report: bad input, or a device that failed.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    /// An option out of its range.
    #[error("{option}: {needed} is needed, got {got}")]
    Option {
        /// Its name on the command line.
        option: &'static str,
        /// What it may be.
        needed: &'static str,
        /// What it is.
        got: String,
    },
    /// The trace file cannot be opened.
    #[error("cannot open trace {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line of the trace is no request.
    #[error("trace {path}, {source}")]
    Trace {
        /// The file.
        path: PathBuf,
        /// The line and what is wrong with it.
        source: TraceError,
    },
    /// The trace has no requests.
    #[error("the trace holds no requests")]
    EmptyTrace,
    /// Pages or heads that the kernels do not take.
    #[error("page shape: {0}")]
    Shape(#[from] ContractError),
    /// Budgets that make no pool.
    #[error(transparent)]
    Budgets(#[from] PoolError),
    /// The device failed.
    #[error("the device refused or failed: {0}")]
    Plane(PlaneError),
}

impl From<DeviceError> for ValidateError {
    fn from(error: DeviceError) -> Self {
        Self::Plane(Box::new(error))
    }
}

impl ValidateOptions {
    /// Refuses options that no replay can run with.
    pub fn check(&self) -> Result<(), ValidateError> {
        let positive = |option, value: f64| {
            require(value > 0.0 && value.is_finite(), option, "a number above 0", value)
        };
        positive("--speed", self.speed)?;
        positive("--cadence-ms", self.cadence_ms)?;
        let is_seen_by_the_clock = self.cadence_ms >= MIN_CADENCE_MS;
        require(is_seen_by_the_clock, "--cadence-ms", "a number from 0.001", self.cadence_ms)?;
        if let Some(budget_us) = self.budget_us {
            positive("--budget-us", budget_us)?;
        }
        let counts = [
            ("--gpus", Some(u64::from(self.gpus))),
            ("--local-pages", self.local_pages.map(u64::from)),
            ("--peer-pages", self.peer_pages.map(u64::from)),
            ("--host-pages", self.host_pages.map(u64::from)),
            ("--num-kv-heads", Some(u64::from(self.num_kv_heads))),
            ("--head-dim", Some(u64::from(self.head_dim))),
            ("--group-size", Some(u64::from(self.group_size))),
            ("--sample", self.sample),
            ("--invariants-every", self.invariants_every),
            ("--max-requests", self.max_requests.map(|n| n as u64)),
        ];
        for (option, count) in counts {
            if let Some(count) = count {
                require(count > 0, option, "at least 1", count)?;
            }
        }
        // The host's memory is a location, too.
        require(self.gpus < MAX_LOCATIONS, "--gpus", "at most 31", self.gpus)?;
        let page_size = self.page_size;
        require(
            (1..=64).contains(&page_size) && PREFIX_BLOCK_TOKENS.is_multiple_of(page_size),
            "--page-size",
            "1, 2, 4, 8, 16, 32 or 64",
            page_size,
        )
    }
}

fn require(
    holds: bool,
    option: &'static str,
    needed: &'static str,
    got: impl ToString,
) -> Result<(), ValidateError> {
    if holds {
        return Ok(());
    }
    Err(ValidateError::Option { option, needed, got: got.to_string() })
}
