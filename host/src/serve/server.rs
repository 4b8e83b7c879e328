//! One engine, its scheduler and its clock: requests in, answers out.

use std::collections::{BTreeMap, VecDeque};

use super::clock::Clock;
use super::policy::Policy;
use super::request::{Answer, Ending, Request, RequestId};
use super::scheduler::{Ended, Scheduler, SetupError};
use super::step_plan::StepPlan;
use super::summary::{Slo, Summary, Totals};
use super::timeline::Timeline;
use crate::kv::PoolError;
use crate::model::engine::{Engine, EngineError, Sampled};

/// Serves requests on one engine.
pub struct Server<'e> {
    engine: &'e mut dyn Engine,
    scheduler: Scheduler,
    clock: Clock,
    timelines: BTreeMap<RequestId, Timeline>,
    ended: Vec<(Answer, Timeline)>,
    totals: Totals,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Served {
    /// Each request's answer and times, in order of ids.
    pub requests: Vec<(Answer, Timeline)>,
    /// What was counted step by step.
    pub totals: Totals,
}

/// A server that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The pool found its books wrong: a defect of the scheduler.
    #[error("the scheduler and its pool disagree: {0}")]
    Pool(#[from] PoolError),
    /// The scheduler asked for what the engine does not take: a defect of one of them.
    #[error("a step that the engine does not take: {0}")]
    Step(EngineError),
}

impl<'e> Server<'e> {
    /// A server over this engine. A virtual clock must be the engine's own.
    ///
    /// # Errors
    /// A policy that cannot work on this engine.
    pub fn new(
        engine: &'e mut dyn Engine,
        policy: Policy,
        clock: Clock,
    ) -> Result<Self, SetupError> {
        let (limits, num_pages) = (engine.limits(), engine.pages().num_pages().to_vec());
        Ok(Self {
            engine,
            scheduler: Scheduler::new(policy, limits, &num_pages)?,
            clock,
            timelines: BTreeMap::new(),
            ended: Vec::new(),
            totals: Totals::default(),
        })
    }

    /// Its scheduler.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Serves these requests as they arrive, until the last has ended. Each has an answer, be it
    /// that it was refused or failed.
    ///
    /// # Errors
    /// A defect; never what a request or a device did.
    pub fn serve(&mut self, requests: Vec<Request>) -> Result<Served, ServeError> {
        self.serve_watched(requests, &mut |_, _| ())
    }

    /// As [`serve`](Self::serve), and shows each step's plan, and when it was made, to `watch`.
    ///
    /// # Errors
    /// As [`serve`](Self::serve).
    pub fn serve_watched(
        &mut self,
        mut requests: Vec<Request>,
        watch: &mut dyn FnMut(f64, &StepPlan),
    ) -> Result<Served, ServeError> {
        requests.sort_by(|a, b| a.arrival_us.total_cmp(&b.arrival_us));
        let mut coming = VecDeque::from(requests);
        loop {
            let now_us = self.clock.now_us();
            while coming.front().is_some_and(|next| next.due_us(now_us) <= now_us) {
                self.submit(coming.pop_front().expect("it was looked at"), now_us);
            }
            if self.scheduler.is_idle() {
                match coming.front() {
                    Some(next) => self.clock.wait_until(next.arrival_us),
                    None => break,
                }
                continue;
            }
            let plan = self.scheduler.plan(now_us)?;
            watch(now_us, &plan);
            self.carry_out(plan, now_us)?;
        }
        let mut requests = std::mem::take(&mut self.ended);
        requests.sort_by_key(|(answer, _)| answer.id);
        Ok(Served { requests, totals: self.totals.with_pool(self.scheduler.pool_stats()) })
    }

    fn submit(&mut self, request: Request, now_us: f64) {
        let (id, arrival_us) = (request.id, request.due_us(now_us));
        let timeline =
            Timeline { arrival_us, num_prompt_tokens: request.prompt.len(), ..Timeline::default() };
        match self.scheduler.submit(request) {
            Ok(()) => {
                self.timelines.insert(id, timeline);
            }
            Err(refusal) => {
                let ending = Ending::Refused(refusal.to_string());
                let answer = Answer { id: id.0, tokens: Vec::new(), ending };
                let ended_us = self.clock.now_us();
                self.ended.push((answer, Timeline { ended_us, ..timeline }));
            }
        }
    }

    fn carry_out(&mut self, mut plan: StepPlan, planned_us: f64) -> Result<(), ServeError> {
        self.record_plan(&plan, planned_us);
        let sampled = match self.copy_and_step(&mut plan)? {
            Ok(sampled) => sampled,
            Err(failure) => {
                // Nobody's fault, and what the pages hold is unknown: all end.
                for id in self.scheduler.requests() {
                    self.fail(id, &failure)?;
                }
                return Ok(());
            }
        };
        let now_us = self.clock.now_us();
        self.record_step(&plan, now_us - planned_us);
        for Sampled { request, .. } in &sampled {
            self.timeline(*request).token_us.push(now_us);
        }
        for ended in self.scheduler.complete(&plan, &sampled)? {
            self.answer(ended);
        }
        Ok(())
    }

    /// Runs the plan; whoever the engine blames ends, and the others run without it. The inner
    /// error is a failure of the engine itself.
    fn copy_and_step(
        &mut self,
        plan: &mut StepPlan,
    ) -> Result<Result<Vec<Sampled>, String>, ServeError> {
        for copies in &plan.copies {
            if let Err(failure) = self.engine.pages().copy(copies) {
                return Ok(Err(failure.to_string()));
            }
        }
        loop {
            if plan.is_empty() {
                return Ok(Ok(Vec::new()));
            }
            let error = match self.engine.step(&self.scheduler.step(plan)?) {
                Ok(sampled) => return Ok(Ok(sampled)),
                Err(error) => error,
            };
            match error {
                EngineError::Request { request, .. } => {
                    plan.withdraw(request);
                    self.fail(request, &error.to_string())?;
                }
                EngineError::Step { .. } => return Err(ServeError::Step(error)),
                EngineError::Failed(_) => return Ok(Err(error.to_string())),
            }
        }
    }

    fn fail(&mut self, id: RequestId, reason: &str) -> Result<(), PoolError> {
        if let Some(ended) = self.scheduler.end(id, Ending::Failed(reason.to_owned()))? {
            self.answer(ended);
        }
        Ok(())
    }

    fn answer(&mut self, Ended { id, tokens, ending }: Ended) {
        let mut timeline = self.timelines.remove(&id).unwrap_or_default();
        timeline.ended_us = self.clock.now_us();
        self.ended.push((Answer { id: id.0, tokens, ending }, timeline));
    }

    fn timeline(&mut self, id: RequestId) -> &mut Timeline {
        self.timelines.entry(id).or_default()
    }

    fn record_plan(&mut self, plan: &StepPlan, now_us: f64) {
        for preemption in &plan.preempted {
            self.timeline(RequestId(preemption.request)).num_preemptions += 1;
        }
        for admission in &plan.admitted {
            let timeline = self.timeline(RequestId(admission.request));
            timeline.num_restored_pages += admission.num_restored_pages;
            if admission.is_again {
                timeline.num_recomputed_tokens +=
                    admission.num_tokens - admission.num_cached_tokens;
            } else {
                timeline.started_us = Some(now_us);
                timeline.num_cached_tokens = admission.num_cached_tokens;
            }
        }
    }

    fn record_step(&mut self, plan: &StepPlan, us: f64) {
        let num_slots = self.scheduler.policy().num_slots;
        self.totals.count_step(plan, us);
        self.totals.queue_us += plan.num_waiting as f64 * us;
        self.totals.num_max_waiting = self.totals.num_max_waiting.max(plan.num_waiting);
        self.totals.fill_us += plan.feeds.len() as f64 / num_slots as f64 * us;
    }
}

impl Served {
    /// What they come to, by what was promised.
    pub fn summary(&self, slo: Slo) -> Summary {
        Summary::of(&self.requests, self.totals, slo)
    }
}
