//! What many requests come to, as JSON and as text.

use std::fmt;

use serde::Serialize;

use super::request::{Answer, Ending};
use super::step_plan::StepPlan;
use super::timeline::Timeline;
use crate::kv::PoolStats;

/// What users were promised.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Slo {
    /// Most time to the first token.
    pub ttft_us: f64,
    /// Most mean time of each token after it.
    pub tpot_us: f64,
}

impl Default for Slo {
    /// Two seconds, and 50 ms for each token: faster than anybody reads.
    fn default() -> Self {
        Self { ttft_us: 2e6, tpot_us: 50e3 }
    }
}

/// Half of all are at most the first, 90 % the second, 99 % the third.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// Nine of ten are at most this.
    pub p90: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
}

impl Percentiles {
    /// Of these numbers, by nearest rank; nothing of nothing.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied()
        };
        Some(Self { p50: at(0.50)?, p90: at(0.90)?, p99: at(0.99)? })
    }
}

/// What a server counted step by step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Steps.
    pub num_steps: u64,
    /// Time in steps.
    pub step_us: f64,
    /// Steps that had a prompt, or a part of one.
    pub num_prompt_steps: u64,
    /// Time in those.
    pub prompt_step_us: f64,
    /// Tokens that steps computed, of prompts and decoded ones.
    pub num_computed_tokens: u64,
    /// Requests that waited, times how long.
    pub queue_us: f64,
    /// Most requests that waited at once.
    pub num_max_waiting: usize,
    /// Part of the slots that was in use, times how long.
    pub fill_us: f64,
    /// Time in which a rank had nothing to decode, because KV was on its way to it.
    pub fabric_stall_us: f64,
    /// Of pages that could have been cached: those that were, in any memory.
    pub num_hit_pages: u64,
    /// Of these, in the host's memory.
    pub num_far_hit_pages: u64,
    /// Pages that had to be computed, and were cached then.
    pub num_missed_pages: u64,
    /// Pages that left local memory, or were dropped.
    pub num_evicted_pages: u64,
}

impl Totals {
    /// Counts a step, of which each request's part was computed.
    pub(super) fn count_step(&mut self, plan: &StepPlan, us: f64) {
        self.num_steps += 1;
        self.step_us += us;
        self.num_computed_tokens += plan.num_tokens() as u64;
        if plan.has_prompts() {
            self.num_prompt_steps += 1;
            self.prompt_step_us += us;
        }
    }

    /// The same, with what a pool counted.
    pub(super) fn with_pool(self, stats: &PoolStats) -> Self {
        Self {
            num_hit_pages: stats.hits.iter().sum(),
            num_far_hit_pages: stats.hits.last().copied().unwrap_or(0),
            num_missed_pages: stats.misses,
            num_evicted_pages: stats.evictions(),
            ..self
        }
    }

    /// What a step takes in the mean, in which all decode.
    pub fn decode_step_us(&self) -> f64 {
        let num_steps = self.num_steps - self.num_prompt_steps;
        share(self.step_us - self.prompt_step_us, num_steps as f64)
    }

    /// What a step with prompts takes in the mean.
    pub fn mean_prompt_step_us(&self) -> f64 {
        share(self.prompt_step_us, self.num_prompt_steps as f64)
    }

    /// Both together, of ranks that worked side by side.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            num_steps: self.num_steps + other.num_steps,
            step_us: self.step_us + other.step_us,
            num_prompt_steps: self.num_prompt_steps + other.num_prompt_steps,
            prompt_step_us: self.prompt_step_us + other.prompt_step_us,
            num_computed_tokens: self.num_computed_tokens + other.num_computed_tokens,
            queue_us: self.queue_us + other.queue_us,
            num_max_waiting: self.num_max_waiting.max(other.num_max_waiting),
            fill_us: self.fill_us + other.fill_us,
            fabric_stall_us: self.fabric_stall_us + other.fabric_stall_us,
            num_hit_pages: self.num_hit_pages + other.num_hit_pages,
            num_far_hit_pages: self.num_far_hit_pages + other.num_far_hit_pages,
            num_missed_pages: self.num_missed_pages + other.num_missed_pages,
            num_evicted_pages: self.num_evicted_pages + other.num_evicted_pages,
        }
    }
}

/// What all requests of a run come to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Requests.
    pub num_requests: usize,
    /// Served to their ends.
    pub num_served: usize,
    /// Not taken.
    pub num_refused: usize,
    /// Failed.
    pub num_failed: usize,
    /// From the first arrival to the last end.
    pub duration_us: f64,
    /// Tokens that requests were given.
    pub num_new_tokens: usize,
    /// The same, a second.
    pub tokens_per_s: f64,
    /// Time to first token, µs.
    pub ttft_us: Option<Percentiles>,
    /// Time per output token, each request's mean, µs.
    pub tpot_us: Option<Percentiles>,
    /// Time between two tokens, all of them, µs.
    pub gap_us: Option<Percentiles>,
    /// From arrival to end, µs.
    pub end_to_end_us: Option<Percentiles>,
    /// What was promised.
    pub slo: Slo,
    /// Part of all requests that was served within it.
    pub slo_share: f64,
    /// Such requests a second.
    pub goodput_per_s: f64,
    /// Requests that waited, the mean over time.
    pub mean_waiting: f64,
    /// Part of the slots that were in use, the mean over the time in steps.
    pub batch_fill: f64,
    /// Prompt tokens that were found cached, of all.
    pub cached_token_share: f64,
    /// Pages found cached, of all that could be.
    pub page_hit_rate: f64,
    /// Preemptions.
    pub num_preemptions: usize,
    /// Tokens that were computed again after them.
    pub num_recomputed_tokens: usize,
    /// Pages that came back from the host's memory.
    pub num_restored_pages: usize,
    /// Time that requests waited for KV from another rank, in all.
    pub request_stall_us: f64,
    /// What was counted step by step.
    pub totals: Totals,
}

impl Summary {
    /// Of these requests.
    pub fn of(requests: &[(Answer, Timeline)], totals: Totals, slo: Slo) -> Self {
        let timelines = || requests.iter().map(|(_, timeline)| timeline);
        let count = |is_one: &dyn Fn(&Ending) -> bool| {
            requests.iter().filter(|(answer, _)| is_one(&answer.ending)).count()
        };
        let served = || requests.iter().filter(|(answer, _)| answer.ending.is_served());
        let served_times = || served().map(|(_, timeline)| timeline);
        let first_us = timelines().map(|t| t.arrival_us).fold(f64::INFINITY, f64::min);
        let last_us = timelines().map(|t| t.ended_us).fold(first_us, f64::max);
        let duration_us = if requests.is_empty() { 0.0 } else { last_us - first_us };
        let num_new_tokens = requests.iter().map(|(answer, _)| answer.tokens.len()).sum();
        let is_good = |t: &&Timeline| {
            t.ttft_us().is_some_and(|us| us <= slo.ttft_us)
                && t.tpot_us().is_none_or(|us| us <= slo.tpot_us)
        };
        let num_good = served_times().filter(is_good).count();
        let sum = |of: &dyn Fn(&Timeline) -> usize| timelines().map(of).sum::<usize>();
        let num_pages = totals.num_hit_pages + totals.num_missed_pages;
        Self {
            num_requests: requests.len(),
            num_served: served().count(),
            num_refused: count(&|ending| matches!(ending, Ending::Refused(_))),
            num_failed: count(&|ending| matches!(ending, Ending::Failed(_))),
            duration_us,
            num_new_tokens,
            tokens_per_s: share(num_new_tokens as f64, duration_us / 1e6),
            ttft_us: Percentiles::of(timelines().filter_map(Timeline::ttft_us)),
            tpot_us: Percentiles::of(timelines().filter_map(Timeline::tpot_us)),
            gap_us: Percentiles::of(timelines().flat_map(Timeline::gaps_us)),
            end_to_end_us: Percentiles::of(served_times().map(|t| t.ended_us - t.arrival_us)),
            slo,
            slo_share: share(num_good as f64, requests.len() as f64),
            goodput_per_s: share(num_good as f64, duration_us / 1e6),
            mean_waiting: share(totals.queue_us, duration_us),
            batch_fill: share(totals.fill_us, totals.step_us),
            cached_token_share: share(
                sum(&|t| t.num_cached_tokens) as f64,
                sum(&|t| t.num_prompt_tokens) as f64,
            ),
            page_hit_rate: share(totals.num_hit_pages as f64, num_pages as f64),
            num_preemptions: sum(&|t| t.num_preemptions),
            num_recomputed_tokens: sum(&|t| t.num_recomputed_tokens),
            num_restored_pages: sum(&|t| t.num_restored_pages),
            request_stall_us: timelines().map(|t| t.stall_us).sum(),
            totals,
        }
    }

    /// Names and values, in order, as people read them.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let ms = |percentiles: Option<Percentiles>| match percentiles {
            None => "-".to_owned(),
            Some(Percentiles { p50, p90, p99 }) => {
                format!("{:.2} / {:.2} / {:.2}", p50 / 1e3, p90 / 1e3, p99 / 1e3)
            }
        };
        let Totals {
            num_steps, num_prompt_steps, num_evicted_pages, fabric_stall_us, step_us, ..
        } = self.totals;
        vec![
            (
                "requests served, refused, failed",
                format!("{}, {}, {}", self.num_served, self.num_refused, self.num_failed),
            ),
            ("duration, s", format!("{:.3}", self.duration_us / 1e6)),
            ("tokens/s", format!("{:.1}", self.tokens_per_s)),
            ("TTFT p50 / p90 / p99, ms", ms(self.ttft_us)),
            ("TPOT p50 / p90 / p99, ms", ms(self.tpot_us)),
            ("between tokens p50 / p90 / p99, ms", ms(self.gap_us)),
            ("end to end p50 / p90 / p99, ms", ms(self.end_to_end_us)),
            ("goodput, requests/s", format!("{:.2}", self.goodput_per_s)),
            ("within the SLO", percent(self.slo_share)),
            ("steps, with prompts", format!("{num_steps}, {num_prompt_steps}")),
            (
                "a step of decoding, with prompts, ms",
                format!(
                    "{:.2}, {:.2}",
                    self.totals.decode_step_us() / 1e3,
                    self.totals.mean_prompt_step_us() / 1e3
                ),
            ),
            ("batch fill", percent(self.batch_fill)),
            (
                "waiting, mean and most",
                format!("{:.1}, {}", self.mean_waiting, self.totals.num_max_waiting),
            ),
            ("prompt tokens cached", percent(self.cached_token_share)),
            ("pages found cached", percent(self.page_hit_rate)),
            (
                "pages evicted, restored",
                format!("{num_evicted_pages}, {}", self.num_restored_pages),
            ),
            (
                "preemptions, tokens computed again",
                format!("{}, {}", self.num_preemptions, self.num_recomputed_tokens),
            ),
            ("fabric stalls, of the time in steps", percent(share(fabric_stall_us, step_us))),
        ]
    }
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.rows();
        let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        rows.iter().try_for_each(|(name, value)| writeln!(f, "{name:width$}  {value}"))
    }
}
