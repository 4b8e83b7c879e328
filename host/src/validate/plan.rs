//! Options made definite: the requests, the pool's sizes, the limits.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use gpu_kernels::kv_layout::{KvElement, KvLayout, KvPageShape};
use gpu_kernels::paged_attention::contract::DecodeShape;

use super::{PolicyKind, ValidateError, ValidateOptions};
use crate::kv::policy::{CostAware, EvictionPolicy, Lru};
use crate::kv::trace::{GeneratorOptions, TraceReader, TraceRequest, generate};
use crate::kv::{Budgets, CostModel, Tier};

/// Everything a replay needs but a device.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The options it was made from.
    pub options: ValidateOptions,
    /// The requests, by arrival.
    pub requests: Vec<TraceRequest>,
    /// Pages per tier, given or chosen.
    pub budgets: Budgets,
    /// Bytes of a page and what it costs to read and move one.
    pub costs: CostModel,
    /// What the busiest step takes by the cost model when no page lies farther than it must, µs.
    busiest_step_us: f64,
    /// Check one in this many pages, given or chosen.
    pub sample_pages: u64,
    /// Check one in this many attention outputs, given or chosen.
    pub sample_outputs: u64,
    /// Steps between invariant checks, given or chosen.
    pub invariants_every: u64,
}

/// Chosen tiers, in shares of the most pages that requests would hold at a time if none shared
/// any: local memory cannot hold them all, so that pages have to be evicted and brought back.
const LOCAL_SHARE: f64 = 0.5;
const LOCAL_SHARE_WITHOUT_PEERS: f64 = 0.75;
const PEERS_SHARE: f64 = 0.5;
const HOST_SHARE: f64 = 1.0;

/// Kernels reach no less than half of the cost model's rates.
const MEASURED_SLACK: f64 = 2.0;

/// Chosen samples: about this many pages, and outputs over about this many tokens in all, so that
/// checks take seconds on two cores; of a real trace, a minute.
const CHECKED_PAGES: u64 = 10_000;
const CHECKED_TOKENS: u64 = 1_000_000;
const CHECKED_TOKENS_OF_TRACE: u64 = 6_000_000;

impl Plan {
    /// Reads or generates the trace and chooses what the options leave open.
    pub fn new(options: ValidateOptions) -> Result<Self, ValidateError> {
        options.check()?;
        let limit = options.max_requests.unwrap_or(usize::MAX);
        let requests = match &options.trace {
            Some(path) => read(path, limit)?,
            None => {
                let mut requests = generate(&GeneratorOptions {
                    seed: options.seed,
                    ..GeneratorOptions::default()
                });
                requests.truncate(limit);
                requests
            }
        };
        if requests.is_empty() {
            return Err(ValidateError::EmptyTrace);
        }
        let shape = decode_shape(&options, 1);
        shape.check()?;
        let costs = CostModel {
            rates: options.rates,
            page_bytes: shape.page.page_bytes() as u64,
            page_size: options.page_size,
        };
        let peak = peak_pages(&requests, &options, &costs);
        let share = |share: f64| (peak as f64 * share).ceil().max(1.0) as u32;
        let (local_share, peers_share) = match options.gpus - 1 {
            0 => (LOCAL_SHARE_WITHOUT_PEERS, 0.0),
            num_peers => (LOCAL_SHARE, PEERS_SHARE / f64::from(num_peers)),
        };
        let budgets = Budgets {
            num_ranks: options.gpus,
            local_pages: options.local_pages.unwrap_or(share(local_share)),
            peer_pages: options.peer_pages.unwrap_or(share(peers_share)),
            host_pages: options.host_pages.unwrap_or(share(HOST_SHARE)),
        };
        budgets.check()?;
        let checked_tokens = match options.trace {
            None => CHECKED_TOKENS,
            Some(_) => CHECKED_TOKENS_OF_TRACE,
        };
        Ok(Self {
            busiest_step_us: busiest_step_us(peak, &budgets, &costs),
            sample_pages: options
                .sample
                .unwrap_or_else(|| total_pages(&requests, &options).div_ceil(CHECKED_PAGES)),
            sample_outputs: options
                .sample
                .unwrap_or_else(|| attended_tokens(&requests).div_ceil(checked_tokens)),
            invariants_every: options.invariants_every.unwrap_or(1 + budgets.total_pages() / 200),
            options,
            requests,
            budgets,
            costs,
        })
    }

    /// A fresh policy as chosen.
    pub fn policy(&self) -> Box<dyn EvictionPolicy> {
        match self.options.policy {
            PolicyKind::Lru => Box::<Lru>::default(),
            PolicyKind::CostAware => Box::new(CostAware::new(self.budgets, self.costs)),
        }
    }

    /// Limit for p99 of a decode step, µs: as given, or what the busiest step takes by the cost
    /// model; where it is measured, kernels are granted twice that.
    pub fn budget_us(&self, measured: bool) -> f64 {
        let slack = if measured { MEASURED_SLACK } else { 1.0 };
        self.options.budget_us.unwrap_or(slack * self.busiest_step_us)
    }

    /// Sizes of decode attention for this many sequences.
    pub(super) fn decode_shape(&self, batch: u32) -> DecodeShape {
        decode_shape(&self.options, batch)
    }

    /// The trace in the report.
    pub(super) fn trace_name(&self) -> String {
        match &self.options.trace {
            Some(path) => path.display().to_string(),
            None => format!("generated, seed {}", self.options.seed),
        }
    }

    /// When a request arrives, µs of virtual time.
    pub(super) fn arrival_us(&self, number: usize) -> f64 {
        self.requests[number].timestamp_ms as f64 * 1e3 / self.options.speed
    }

    /// Pages that hold this many tokens.
    pub(super) fn pages(&self, tokens: u32) -> u64 {
        u64::from(tokens.div_ceil(self.options.page_size))
    }
}

fn decode_shape(options: &ValidateOptions, batch: u32) -> DecodeShape {
    DecodeShape {
        batch,
        num_qo_heads: options.num_kv_heads.saturating_mul(options.group_size),
        page: KvPageShape {
            page_size: options.page_size,
            num_kv_heads: options.num_kv_heads,
            head_dim: options.head_dim,
            layout: KvLayout::Nhd,
            element: KvElement::Half,
        },
        sm_scale: 1.0 / (options.head_dim as f32).sqrt(),
    }
}

fn read(path: &Path, limit: usize) -> Result<Vec<TraceRequest>, ValidateError> {
    let file = File::open(path)
        .map_err(|source| ValidateError::Open { path: path.to_path_buf(), source })?;
    TraceReader::new(BufReader::new(file))
        .take(limit)
        .collect::<Result<_, _>>()
        .map_err(|source| ValidateError::Trace { path: path.to_path_buf(), source })
}

/// The most pages that requests hold at a time when each is admitted as it arrives, and none
/// shares any.
fn peak_pages(requests: &[TraceRequest], options: &ValidateOptions, costs: &CostModel) -> u64 {
    let mut changes = Vec::with_capacity(2 * requests.len());
    for request in requests {
        let pages = i64::from(request.total_tokens().div_ceil(options.page_size));
        let from_ms = request.timestamp_ms as f64 / options.speed;
        let prefill_ms = costs.prefill_us(request.input_length.div_ceil(options.page_size)) / 1e3;
        let decode_ms = f64::from(request.output_length) * options.cadence_ms;
        changes.push((from_ms, pages));
        changes.push((from_ms + prefill_ms + decode_ms, -pages));
    }
    changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let (mut held, mut peak) = (0, 0);
    for (_, change) in changes {
        held += change;
        peak = peak.max(held);
    }
    peak as u64
}

fn total_pages(requests: &[TraceRequest], options: &ValidateOptions) -> u64 {
    let pages =
        |request: &TraceRequest| u64::from(request.total_tokens().div_ceil(options.page_size));
    requests.iter().map(pages).sum()
}

/// Tokens that all decode steps attend over, a token counting in every step.
fn attended_tokens(requests: &[TraceRequest]) -> u64 {
    let tokens = |request: &TraceRequest| {
        let (input, output) = (u64::from(request.input_length), u64::from(request.output_length));
        output * input + output * (output + 1) / 2
    };
    requests.iter().map(tokens).sum()
}

/// What the busiest step takes when local memory is full of pages in use, and what it cannot hold
/// lies on the nearest other tier. A pool that leaves more than it must in far tiers exceeds it.
fn busiest_step_us(peak: u64, budgets: &Budgets, costs: &CostModel) -> f64 {
    let local = peak.min(u64::from(budgets.local_pages));
    let nearest = if budgets.num_ranks > 1 { Tier::Peer(1) } else { Tier::Host };
    costs.rates.launch_us
        + local as f64 * costs.read_us(Tier::Local)
        + (peak - local) as f64 * costs.read_us(nearest)
}
