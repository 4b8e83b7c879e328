//! What a replay found.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::replay::Replay;
use crate::kv::Rates;

/// What was violated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ViolationKind {
    /// An attention output differs from the oracle.
    Attention,
    /// A page does not hold what its tokens say.
    PageChecksum,
    /// A page is lost, leaked or owned twice, or a count is wrong.
    Invariant,
    /// References are left after all requests have ended.
    Reference,
    /// The pool refused what the policy chose, or could not go on.
    Pool,
    /// p99 of a decode step is over the budget.
    Latency,
}

impl fmt::Display for ViolationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Attention => "attention output",
            Self::PageChecksum => "page checksum",
            Self::Invariant => "invariant",
            Self::Reference => "references",
            Self::Pool => "pool",
            Self::Latency => "latency",
        })
    }
}

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Its kind.
    pub kind: ViolationKind,
    /// The step it was found in.
    pub step: u64,
    /// What was found, and where.
    pub detail: String,
}

/// One memory in the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TierReport {
    /// Its name.
    pub tier: String,
    /// Pages it holds at most.
    pub pages: u32,
    /// Prompt pages found there instead of computed.
    pub hits: u64,
    /// Those, of all full prompt pages.
    pub hit_rate: f64,
    /// Cached pages dropped from there.
    pub dropped: u64,
    /// Pages that decode steps read there, a page counting once per request and step.
    pub pages_read: u64,
}

/// Copies from one memory to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Direction {
    /// Source memory.
    pub from: String,
    /// Destination memory.
    pub to: String,
    /// Pages copied.
    pub pages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Decode step latencies, µs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Whether a device was timed.
    pub source: LatencySource,
    /// Half of the steps take no longer.
    pub p50_us: f64,
    /// 99 of 100 steps take no longer.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
    /// Limit for `p99_us`.
    pub budget_us: f64,
    /// Part of all steps spent waiting for migrations.
    pub stalled_us: f64,
    /// The machine that costs are modelled on.
    pub rates: Rates,
}

/// Where latencies come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LatencySource {
    /// Events on a device.
    Measured,
    /// The cost model.
    Modelled,
}

/// Checks done, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checks {
    /// Attention outputs compared with the oracle (one request in one step each).
    pub attention_outputs: u64,
    /// Page checksums compared after a move.
    pub moved_pages: u64,
    /// Page checksums compared at the end, of pages still cached.
    pub cached_pages: u64,
    /// Times the pool's invariants were checked.
    pub invariants: u64,
}

/// Requests that could not be admitted as they arrived.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Waits {
    /// How many.
    pub requests: u64,
    /// Their mean wait, ms of virtual time.
    pub mean_ms: f64,
    /// The longest, ms of virtual time.
    pub max_ms: f64,
}

/// A request larger than the whole pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Its number in the trace, from 0.
    pub request: usize,
    /// Pages it would need.
    pub pages: u64,
    /// Pages of all tiers together.
    pub pool_pages: u64,
}

/// What a replay found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Trace file, or the generator and its seed.
    pub trace: String,
    /// Name of the policy.
    pub policy: String,
    /// Tokens of a page.
    pub page_size: u32,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// One in this many moved pages, and pages cached at the end, was checked.
    pub sample_pages: u64,
    /// One in this many attention outputs was checked.
    pub sample_outputs: u64,
    /// Requests of the trace.
    pub requests: u64,
    /// Those that decoded all their tokens.
    pub completed: u64,
    /// Those larger than the pool.
    pub refused: Vec<Refused>,
    /// Those that waited for pages.
    pub waits: Waits,
    /// Decode steps.
    pub steps: u64,
    /// Tokens decoded.
    pub tokens_decoded: u64,
    /// Virtual time from the first arrival's clock zero to the end, s.
    pub virtual_s: f64,
    /// The memories, in order of `peer_kv_ptrs`.
    pub tiers: Vec<TierReport>,
    /// Full prompt pages found in the cache, of all.
    pub hit_rate: f64,
    /// Copies, by direction.
    pub moved: Vec<Direction>,
    /// Pages demoted or dropped to make room.
    pub evictions: u64,
    /// Pages brought nearer.
    pub promotions: u64,
    /// Pages dropped.
    pub drops: u64,
    /// Decode step latency.
    pub latency: Latency,
    /// Checks done.
    pub checks: Checks,
    /// All violations.
    pub num_violations: u64,
    /// All violations, by kind.
    pub violations_by_kind: BTreeMap<ViolationKind, u64>,
    /// The first of each kind.
    pub violations: Vec<Violation>,
}

impl Report {
    /// Whether nothing was violated.
    pub fn passed(&self) -> bool {
        self.num_violations == 0
    }
}

impl Replay<'_> {
    pub(super) fn report(mut self) -> Report {
        let (plan, stats) = (self.plan, self.pool.stats());
        let budgets = &plan.budgets;
        let name = |rank: u32| budgets.tier(rank).to_string();
        let num_prompt_pages = stats.hits.iter().sum::<u64>() + stats.misses;
        let rate = |hits: u64| hits as f64 / num_prompt_pages.max(1) as f64;
        let tiers = (0..budgets.num_locations())
            .map(|rank| {
                let hits = stats.hits[rank as usize];
                TierReport {
                    tier: name(rank),
                    pages: budgets.capacity(rank),
                    hits,
                    hit_rate: rate(hits),
                    dropped: stats.dropped[rank as usize],
                    pages_read: self.tally.pages_read[rank as usize],
                }
            })
            .collect();
        let mut moved = Vec::new();
        for (from, row) in (0..).zip(&stats.moved) {
            for (to, &pages) in (0..).zip(row) {
                if pages > 0 {
                    moved.push(Direction {
                        from: name(from),
                        to: name(to),
                        pages,
                        bytes: pages * plan.costs.page_bytes,
                    });
                }
            }
        }
        let latency = self.tally.latencies.summary(plan);
        if latency.p99_us > latency.budget_us {
            self.violate(
                ViolationKind::Latency,
                format!(
                    "p99 of decode steps is {:.1} µs, the budget {:.1} µs",
                    latency.p99_us, latency.budget_us
                ),
            );
        }
        let (stats, tally) = (self.pool.stats(), self.tally);
        let mut waits = tally.waits;
        waits.mean_ms /= waits.requests.max(1) as f64;
        Report {
            trace: plan.trace_name(),
            policy: self.pool.policy_name().to_string(),
            page_size: plan.options.page_size,
            page_bytes: plan.costs.page_bytes,
            sample_pages: plan.sample_pages,
            sample_outputs: plan.sample_outputs,
            requests: plan.requests.len() as u64,
            completed: tally.completed,
            refused: tally.refused,
            waits,
            steps: tally.steps,
            tokens_decoded: tally.tokens_decoded,
            virtual_s: self.now_us / 1e6,
            tiers,
            hit_rate: rate(stats.hits.iter().sum()),
            moved,
            evictions: stats.evictions(),
            promotions: stats.promotions,
            drops: stats.dropped.iter().sum(),
            latency,
            checks: tally.checks,
            num_violations: tally.violations_by_kind.values().sum(),
            violations_by_kind: tally.violations_by_kind,
            violations: tally.violations,
        }
    }
}
