//! The replay: a virtual clock, a queue, a batch, and the checks.

use std::collections::{BTreeMap, VecDeque};

use super::admission::Head;
use super::checks::Sampler;
use super::latency::Latencies;
use super::links::Links;
use super::plane::{DataPlane, PlaneError};
use super::report::{Checks, Refused, Report, Violation, ViolationKind, Waits};
use super::{Plan, RequestTokens, ValidateError};
use crate::kv::policy::EvictionPolicy;
use crate::kv::{KvPool, Migration, MigrationId, Move, PageId, PoolError, SequenceId};

/// How far a replay is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Requests that ended or were refused.
    pub done: u64,
    /// Requests of the trace.
    pub total: u64,
    /// Decode steps so far.
    pub steps: u64,
    /// Violations so far.
    pub violations: u64,
}

/// Violations of each kind kept with their details.
const KEPT_PER_KIND: u64 = 5;

/// Steps between calls of the progress callback.
const PROGRESS_EVERY: u64 = 64;

/// Replays the plan's requests with this policy on this plane.
///
/// Violations are part of the report; an `Err` means that the device failed.
pub fn replay(
    plan: &Plan,
    policy: Box<dyn EvictionPolicy>,
    plane: &mut dyn DataPlane,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Report, ValidateError> {
    let mut replay = Replay::new(plan, policy, plane)?;
    let outcome = replay.run(progress).and_then(|()| replay.wind_up());
    match outcome {
        Ok(()) => {}
        Err(End::Plane(error)) => return Err(ValidateError::Plane(error)),
        Err(End::Pool(error)) => replay.violate(ViolationKind::Pool, error.to_string()),
        Err(End::Stuck(why)) => replay.violate(ViolationKind::Pool, why),
    }
    Ok(replay.report())
}

/// Why a replay ends early.
#[derive(Debug)]
pub(super) enum End {
    Plane(PlaneError),
    Pool(PoolError),
    Stuck(String),
}

impl From<PlaneError> for End {
    fn from(error: PlaneError) -> Self {
        Self::Plane(error)
    }
}

impl From<PoolError> for End {
    fn from(error: PoolError) -> Self {
        Self::Pool(error)
    }
}

/// A request that holds its pages.
#[derive(Debug)]
pub(super) struct Active {
    pub number: usize,
    pub decoded: u32,
    /// Its prompt is computed by then.
    pub ready_us: f64,
    /// It decodes from then on even if some of its pages still lie in far tiers.
    pub patient_until_us: f64,
    pub pages_by_rank: Vec<u64>,
}

impl Active {
    /// Whether it takes part in a decode step. A request whose pages are on their way home waits
    /// for them a little, so that it does not slow down the steps of all others.
    pub fn decodes_at(&self, now_us: f64) -> bool {
        let at_home = self.pages_by_rank[1..].iter().all(|&pages| pages == 0);
        self.ready_us <= now_us && (at_home || self.patient_until_us <= now_us)
    }
}

/// Which request filled each page, and as which of its pages: what the page contains.
#[derive(Debug, Default)]
pub(super) struct Origins(Vec<(usize, usize)>);

impl Origins {
    pub fn set(&mut self, page: PageId, number: usize, position: usize) {
        if self.0.len() <= page.index() {
            self.0.resize(page.index() + 1, (0, 0));
        }
        self.0[page.index()] = (number, position);
    }

    pub fn get(&self, page: PageId) -> (usize, usize) {
        self.0[page.index()]
    }
}

/// A migration under way.
#[derive(Debug)]
pub(super) struct InFlight {
    id: MigrationId,
    moves: Vec<Move>,
    ends_us: f64,
}

/// What the report adds up.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub completed: u64,
    pub refused: Vec<Refused>,
    pub waits: Waits,
    pub steps: u64,
    pub tokens_decoded: u64,
    pub pages_read: Vec<u64>,
    pub latencies: Latencies,
    pub checks: Checks,
    pub violations_by_kind: BTreeMap<ViolationKind, u64>,
    pub violations: Vec<Violation>,
}

pub(super) struct Replay<'a> {
    pub plan: &'a Plan,
    pub plane: &'a mut dyn DataPlane,
    pub pool: KvPool,
    pub now_us: f64,
    /// Requests that have arrived, by number, in order.
    pub queue: VecDeque<usize>,
    pub head: Option<Head>,
    pub active: Vec<Active>,
    /// Pages that admitted requests may come to hold if they share none.
    pub committed_pages: u64,
    pub origins: Origins,
    /// When each request that arrived joined the queue.
    pub seen_us: Vec<f64>,
    pub tally: Tally,
    pub in_flight: Vec<InFlight>,
    links: Links,
    /// The pool's count of moves in use when `pages_by_rank` was last counted.
    pub counted_moves: u64,
    moves_sampler: Sampler,
    pub outputs_sampler: Sampler,
}

impl<'a> Replay<'a> {
    fn new(
        plan: &'a Plan,
        policy: Box<dyn EvictionPolicy>,
        plane: &'a mut dyn DataPlane,
    ) -> Result<Self, PoolError> {
        Ok(Self {
            plan,
            plane,
            pool: KvPool::new(plan.budgets, plan.options.page_size, policy)?,
            now_us: 0.0,
            queue: VecDeque::new(),
            head: None,
            active: Vec::new(),
            committed_pages: 0,
            origins: Origins::default(),
            seen_us: Vec::new(),
            tally: Tally {
                pages_read: vec![0; plan.budgets.num_locations() as usize],
                ..Tally::default()
            },
            in_flight: Vec::new(),
            links: Links::default(),
            counted_moves: 0,
            moves_sampler: Sampler::new(plan.sample_pages),
            outputs_sampler: Sampler::new(plan.sample_outputs),
        })
    }

    fn run(&mut self, progress: &mut dyn FnMut(&Progress)) -> Result<(), End> {
        loop {
            self.complete_due_migrations()?;
            self.release_finished()?;
            self.receive_arrivals();
            self.plan_promotions()?;
            self.admit_waiting()?;
            self.plan_room(self.decode_reserve())?;
            self.decode()?;
            if self.tally.steps.is_multiple_of(self.plan.invariants_every) {
                self.check_invariants();
            }
            if self.tally.steps.is_multiple_of(PROGRESS_EVERY) {
                progress(&self.progress());
            }
            let Some(next_us) = self.next_step_us()? else {
                progress(&self.progress());
                return Ok(());
            };
            self.now_us = next_us;
        }
    }

    fn progress(&self) -> Progress {
        Progress {
            done: self.tally.completed + self.tally.refused.len() as u64,
            total: self.plan.requests.len() as u64,
            steps: self.tally.steps,
            violations: self.tally.violations_by_kind.values().sum(),
        }
    }

    /// The next time anything can happen; `None` at the end.
    fn next_step_us(&self) -> Result<Option<f64>, End> {
        let cadence_us = self.plan.options.cadence_ms * 1e3;
        let next_us = self.now_us + cadence_us;
        if !self.active.is_empty() {
            return Ok(Some(next_us));
        }
        let arrival_us = (self.seen_us.len() < self.plan.requests.len())
            .then(|| self.plan.arrival_us(self.seen_us.len()));
        let migration_us = self.in_flight.iter().map(|m| m.ends_us).reduce(f64::min);
        let Some(event_us) = arrival_us.into_iter().chain(migration_us).reduce(f64::min) else {
            if let Some(number) = self.queue.front() {
                return Err(End::Stuck(format!(
                    "request {number} waits for pages, but nothing is left that could free any"
                )));
            }
            return Ok(None);
        };
        // Steps stay on their grid when nothing happens for a while.
        let idle_steps = ((event_us - next_us) / cadence_us).ceil().max(0.0);
        Ok(Some(next_us + idle_steps * cadence_us))
    }

    fn receive_arrivals(&mut self) {
        while self.seen_us.len() < self.plan.requests.len() {
            let number = self.seen_us.len();
            if self.plan.arrival_us(number) > self.now_us {
                break;
            }
            self.seen_us.push(self.now_us);
            let pages = self.plan.pages(self.plan.requests[number].total_tokens());
            let pool_pages = self.plan.budgets.total_pages();
            if pages > pool_pages {
                self.tally.refused.push(Refused { request: number, pages, pool_pages });
            } else {
                self.queue.push_back(number);
            }
        }
    }

    /// Local slots kept free for the pages that decoded tokens open.
    pub(super) fn decode_reserve(&self) -> u32 {
        let active = self.active.len() as u32;
        active.max(self.plan.budgets.local_pages / 64).min(self.plan.budgets.local_pages / 4)
    }

    pub(super) fn plan_room(&mut self, wanted: u32) -> Result<(), End> {
        let migration = self.pool.plan_room(wanted)?;
        self.start(migration)
    }

    /// Brings pages in use home, but leaves the slots that decoding and the next request need.
    fn plan_promotions(&mut self) -> Result<(), End> {
        let limit = self.plan.budgets.local_pages.div_ceil(8);
        let spare = self.decode_reserve() + self.pages_wanted_by_head();
        let migration = self.pool.plan_promotions(limit, spare)?;
        self.start(migration)
    }

    fn start(&mut self, migration: Option<Migration>) -> Result<(), End> {
        let Some(migration) = migration else {
            return Ok(());
        };
        self.plane.start_moves(&migration)?;
        let ends_us =
            self.links.send(&migration, self.now_us, &self.plan.budgets, &self.plan.costs);
        self.in_flight.push(InFlight { id: migration.id, moves: migration.moves, ends_us });
        Ok(())
    }

    fn complete_due_migrations(&mut self) -> Result<(), End> {
        let now_us = self.now_us;
        let (due, later) = std::mem::take(&mut self.in_flight)
            .into_iter()
            .partition(|migration| migration.ends_us <= now_us);
        self.in_flight = later;
        for migration in due {
            self.complete(&migration)?;
        }
        Ok(())
    }

    /// µs it took where time means something.
    fn complete(&mut self, migration: &InFlight) -> Result<Option<f64>, End> {
        let waited_us = self.plane.finish_moves(migration.id)?;
        let sampled: Vec<Move> =
            migration.moves.iter().filter(|_| self.moves_sampler.next()).copied().collect();
        let pages: Vec<_> = sampled.iter().map(|m| (m.page, m.to)).collect();
        self.tally.checks.moved_pages += pages.len() as u64;
        self.check_pages(&pages, |i| {
            format!("after its move from {} to {}", sampled[i].from, sampled[i].to)
        })?;
        self.pool.complete(migration.id)?;
        Ok(waited_us)
    }

    /// Waits for the migration that ends first. Returns the µs that a decode step stalls for it.
    pub(super) fn wait_for_a_migration(&mut self) -> Result<f64, End> {
        let first = (0..self.in_flight.len())
            .min_by(|&a, &b| self.in_flight[a].ends_us.total_cmp(&self.in_flight[b].ends_us));
        let Some(first) = first else {
            return Err(End::Stuck(
                "a request that was admitted finds no page, and none is moving".to_string(),
            ));
        };
        let migration = self.in_flight.swap_remove(first);
        let measured_us = self.complete(&migration)?;
        Ok(measured_us.unwrap_or_else(|| (migration.ends_us - self.now_us).max(0.0)))
    }

    fn release_finished(&mut self) -> Result<(), End> {
        let mut i = 0;
        while i < self.active.len() {
            let Active { number, decoded, .. } = self.active[i];
            let request = &self.plan.requests[number];
            if decoded < request.output_length {
                i += 1;
                continue;
            }
            self.pool.release(SequenceId(number as u64))?;
            self.committed_pages -= self.plan.pages(request.total_tokens());
            self.tally.completed += 1;
            // In order, so that batches stay in order of admission.
            self.active.remove(i);
        }
        Ok(())
    }

    pub(super) fn tokens(&self, number: usize) -> RequestTokens<'a> {
        RequestTokens { request: &self.plan.requests[number], number: number as u64 }
    }

    pub(super) fn violate(&mut self, kind: ViolationKind, detail: String) {
        let of_kind = self.tally.violations_by_kind.entry(kind).or_default();
        *of_kind += 1;
        if *of_kind <= KEPT_PER_KIND {
            self.tally.violations.push(Violation { kind, step: self.tally.steps, detail });
        }
    }
}
