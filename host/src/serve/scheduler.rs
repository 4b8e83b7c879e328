//! Who runs: requests, the pages that they hold, and the decisions of each step.
//!
//! Why it never stands still: the most senior request that runs can take the pages of all others,
//! alone it fits ([`Scheduler::submit`] refuses what would not), and whoever is preempted waits in
//! line with its seniority. So in every step somebody gets on, and the most senior one ends.

use super::job::Job;
use super::pages::{Cached, Pages};
use super::policy::{Batching, MOST_PATIENCE, Order, Policy, PolicyError, Reserve};
use super::request::{Ending, Refusal, Request, RequestId};
use super::step_plan::{Admission, Feed, Preemption, StepPlan};
use crate::kv::{KvPool, Location, PoolError, PoolStats};
use crate::model::engine::{EngineLimits, PageCopy, Sampled, Step, StepSequence};

/// Decides step by step what an engine computes. It knows no engine: what is decided is a
/// [`StepPlan`], and what came of it is [told](Self::complete).
pub struct Scheduler {
    policy: Policy,
    limits: EngineLimits,
    pages: Pages,
    waiting: Vec<Job>,
    /// The most senior first.
    running: Vec<Job>,
    /// Requests whose prompts are computed elsewhere, and whose pages wait for them.
    incoming: Vec<Job>,
}

/// A scheduler that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A policy that cannot work on this engine.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Memory that is no pool.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// A request that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// Which.
    pub id: RequestId,
    /// What it was given.
    pub tokens: Vec<u32>,
    /// How.
    pub ending: Ending,
}

/// Room for a request that comes from another engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Pages that have to be copied out of the way first: one list after the other.
    pub copies: Vec<Vec<PageCopy>>,
    /// Its pages, for the whole prompt.
    pub pages: Vec<Location>,
}

/// What became of a request from another engine.
#[derive(Clone, Debug, PartialEq)]
pub enum Adopted {
    /// It decodes here.
    Runs,
    /// Its first token was its last.
    Ended(Ended),
    /// Nobody waits for it.
    Unexpected,
}

impl Scheduler {
    /// A scheduler for an engine with these limits and so many pages in each location.
    ///
    /// # Errors
    /// A policy that cannot work there; no pages.
    pub fn new(
        policy: Policy,
        limits: EngineLimits,
        num_pages: &[usize],
    ) -> Result<Self, SetupError> {
        let pages = Pages::new(num_pages, limits.page_size)?;
        check(&policy, &limits, &pages)?;
        let (waiting, running, incoming) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { policy, limits, pages, waiting, running, incoming })
    }

    /// What it goes by.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Its pages.
    pub fn pool(&self) -> &KvPool {
        self.pages.pool()
    }

    /// What its pool has done so far.
    pub fn pool_stats(&self) -> &PoolStats {
        self.pages.stats()
    }

    /// Requests that wait.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Requests that run.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Nobody waits or runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Takes a request into the queue.
    ///
    /// # Errors
    /// A request that could not be served even alone.
    pub fn submit(&mut self, request: Request) -> Result<(), Refusal> {
        self.check(&request)?;
        self.waiting.push(Job::new(request));
        Ok(())
    }

    /// Whether a request could be served.
    ///
    /// # Errors
    /// Why it could not, even alone.
    pub fn check(&self, request: &Request) -> Result<(), Refusal> {
        if request.prompt.is_empty() {
            return Err(Refusal::EmptyPrompt);
        }
        if request.num_max_new_tokens == 0 {
            return Err(Refusal::NothingToGenerate);
        }
        request.sampling.check().map_err(Refusal::Sampling)?;
        if !request.arrival_us.is_finite() {
            return Err(Refusal::Arrival(request.arrival_us.to_string()));
        }
        if self.jobs().any(|job| job.id() == request.id) {
            return Err(Refusal::IdTaken(request.id));
        }
        let tokens = request.num_max_context();
        if tokens > self.limits.num_max_context {
            return Err(Refusal::ContextTooLong {
                prompt: request.prompt.len(),
                new: request.num_max_new_tokens,
                needed: tokens,
                limit: self.limits.num_max_context,
            });
        }
        let (needed, limit) = (self.pages.num_filled_by(tokens), self.pages.num_local());
        if needed > limit {
            return Err(Refusal::PoolTooSmall { tokens, needed, limit });
        }
        Ok(())
    }

    /// Makes room for a request whose prompt another engine computes: a slot, and pages for the
    /// whole prompt, which it keeps until it is [adopted](Self::adopt) or [ended](Self::end).
    /// Nothing when there is no room now, or somebody who was preempted waits for it.
    ///
    /// # Errors
    /// None, if the pool keeps its books and the request passes [`check`](Self::check).
    pub fn reserve(&mut self, request: &Request) -> Result<Option<Reservation>, PoolError> {
        let num_here = self.running.len() + self.incoming.len();
        let needed = self.pages.num_filled_by(request.prompt.len()) + num_here;
        let has_room = num_here == 0 || needed <= self.pages.num_available();
        if !self.waiting.is_empty() || num_here >= self.num_slots() || !has_room {
            return Ok(None);
        }
        let (id, mut copies) = (request.id, Vec::new());
        self.pages.open(id, &[], &mut copies)?;
        self.pages.grow(id, request.prompt.len(), &mut copies)?;
        let pages = self.pages.locations(id, request.prompt.len())?;
        self.incoming.push(Job::new(request.clone()));
        Ok(Some(Reservation { copies, pages }))
    }

    /// A request that room was [reserved](Self::reserve) for is here: its pages hold its prompt, and
    /// this is its first token. Nobody, if it is not expected any more.
    ///
    /// # Errors
    /// None, if the pool keeps its books.
    pub fn adopt(&mut self, id: RequestId, token: u32) -> Result<Adopted, PoolError> {
        let Some(place) = self.incoming.iter().position(|job| job.id() == id) else {
            return Ok(Adopted::Unexpected);
        };
        let mut job = self.incoming.remove(place);
        job.num_computed = job.tokens.len();
        job.tokens.push(token);
        let ending = job.ending();
        let place = self.join(job);
        self.publish(place)?;
        Ok(match ending {
            None => Adopted::Runs,
            Some(ending) => Adopted::Ended(self.end(id, ending)?.ok_or(unknown(id))?),
        })
    }

    /// Decides the next step. It is empty if [nobody is here](Self::is_idle), or if all that runs
    /// waits for pages that incoming requests have.
    ///
    /// # Errors
    /// None, if the pool keeps its books.
    pub fn plan(&mut self, now_us: f64) -> Result<StepPlan, PoolError> {
        let mut plan = StepPlan::default();
        match self.policy.batching {
            Batching::Static => self.plan_static(&mut plan)?,
            Batching::Continuous { num_max_tokens_per_step, order } => {
                let mut num_tokens = num_max_tokens_per_step;
                self.feed_running(&mut plan, &mut num_tokens, order, now_us)?;
                if plan.preempted.is_empty() && !self.waiting.is_empty() {
                    self.admit(&mut plan, &mut num_tokens, order, now_us)?;
                }
            }
        }
        plan.num_waiting = self.waiting.len();
        Ok(plan)
    }

    /// The plan's part that an engine computes.
    ///
    /// # Errors
    /// A plan of another scheduler.
    pub fn step(&self, plan: &StepPlan) -> Result<Step, PoolError> {
        let sequence = |feed: &Feed| {
            let (id, first) = (RequestId(feed.request), feed.num_cached_tokens);
            let job = &self.running[self.place_of(id).ok_or(unknown(id))?];
            let after = first + feed.num_tokens;
            Ok(StepSequence {
                request: id,
                tokens: job.tokens[first..after].to_vec(),
                num_cached_tokens: first,
                pages: self.pages.locations(id, after)?,
                sampling: feed.samples.then_some(job.request.sampling),
            })
        };
        Ok(Step { sequences: plan.feeds.iter().map(sequence).collect::<Result<_, _>>()? })
    }

    /// Takes in what a step computed. Returns who has ended by it.
    ///
    /// # Errors
    /// None, if the plan is this scheduler's last one.
    pub fn complete(
        &mut self,
        plan: &StepPlan,
        sampled: &[Sampled],
    ) -> Result<Vec<Ended>, PoolError> {
        for feed in &plan.feeds {
            let id = RequestId(feed.request);
            let place = self.place_of(id).ok_or(unknown(id))?;
            self.running[place].num_computed += feed.num_tokens;
            self.publish(place)?;
        }
        let mut ended = Vec::new();
        for Sampled { request, token, .. } in sampled {
            let place = self.place_of(*request).ok_or(unknown(*request))?;
            let job = &mut self.running[place];
            job.tokens.push(*token);
            if let Some(ending) = job.ending() {
                ended.push(self.end(*request, ending)?.ok_or(unknown(*request))?);
            }
        }
        Ok(ended)
    }

    /// Ends a request before its time, and gives its pages back. Nobody, if it is not here.
    ///
    /// # Errors
    /// None, if the pool keeps its books.
    pub fn end(&mut self, id: RequestId, ending: Ending) -> Result<Option<Ended>, PoolError> {
        let job = if let Some(place) = self.place_of(id) {
            self.pages.release(id)?;
            self.running.remove(place)
        } else if let Some(place) = self.incoming.iter().position(|job| job.id() == id) {
            self.pages.release(id)?;
            self.incoming.remove(place)
        } else if let Some(place) = self.waiting.iter().position(|job| job.id() == id) {
            self.waiting.remove(place)
        } else {
            return Ok(None);
        };
        Ok(Some(Ended { id, tokens: job.new_tokens().to_vec(), ending }))
    }

    /// Everybody who is here.
    pub fn requests(&self) -> Vec<RequestId> {
        self.jobs().map(Job::id).collect()
    }

    fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.running.iter().chain(&self.waiting).chain(&self.incoming)
    }

    fn place_of(&self, id: RequestId) -> Option<usize> {
        self.running.iter().position(|job| job.id() == id)
    }

    /// Gives everybody who runs their next tokens: first those who decode, then prompts.
    fn feed_running(
        &mut self,
        plan: &mut StepPlan,
        num_tokens: &mut usize,
        order: Order,
        now_us: f64,
    ) -> Result<(), PoolError> {
        let decoding = self.running.iter().filter(|job| job.is_decoding()).map(Job::id);
        let mut in_order: Vec<RequestId> = decoding.collect();
        let mut prompts: Vec<&Job> = self.running.iter().filter(|job| !job.is_decoding()).collect();
        sort(&mut prompts, order, now_us);
        in_order.extend(prompts.into_iter().map(Job::id));
        for id in in_order {
            // Whoever was preempted for one before it runs no more.
            let Some(place) = self.place_of(id) else { continue };
            let wanted = self.running[place].num_left().min(*num_tokens);
            if wanted > 0 && self.make_room_for(id, wanted, plan, num_tokens)? {
                self.feed(id, wanted, plan)?;
                *num_tokens -= wanted;
            }
        }
        Ok(())
    }

    /// Preempts the youngest until a request can have the pages for so many more tokens. False, if
    /// that was the request itself.
    fn make_room_for(
        &mut self,
        id: RequestId,
        wanted: usize,
        plan: &mut StepPlan,
        num_tokens: &mut usize,
    ) -> Result<bool, PoolError> {
        while self.pages.num_new(id, wanted)? > self.pages.num_available() {
            let mut job = self.running.pop().expect("at least the request itself runs");
            let num_pages = self.pages.release(job.id())?;
            *num_tokens += plan.withdraw(job.id());
            plan.preempted.push(Preemption { request: job.id().0, num_pages });
            let is_itself = job.id() == id;
            (job.num_computed, job.num_published, job.is_preempted) = (0, 0, true);
            self.waiting.push(job);
            if is_itself {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Lets those who wait join, in order, while there are slots, tokens and pages.
    fn admit(
        &mut self,
        plan: &mut StepPlan,
        num_tokens: &mut usize,
        order: Order,
        now_us: f64,
    ) -> Result<(), PoolError> {
        let mut waiting: Vec<&Job> = self.waiting.iter().collect();
        sort(&mut waiting, order, now_us);
        let in_order: Vec<RequestId> = waiting.into_iter().map(Job::id).collect();
        for id in in_order {
            if *num_tokens == 0 || self.running.len() + self.incoming.len() >= self.num_slots() {
                break;
            }
            let place = self.waiting.iter().position(|job| job.id() == id).expect("it waits");
            if !self.has_room_for(place)? {
                break;
            }
            let job = self.waiting.swap_remove(place);
            let wanted = self.start(job, plan)?.min(*num_tokens);
            self.feed(id, wanted, plan)?;
            *num_tokens -= wanted;
        }
        Ok(())
    }

    /// Whether a request that waits can have the pages of all its tokens, without taking anybody's,
    /// and with a page to spare for each who runs. Whoever is alone has room.
    fn has_room_for(&mut self, place: usize) -> Result<bool, PoolError> {
        let job = &mut self.waiting[place];
        let cached = cached(job, &self.pages, self.policy.shares_prefixes)?;
        let missing = self.pages.num_filled_by(job.tokens.len()) - cached.num_pages;
        let num_here = self.running.len() + self.incoming.len();
        let needed = missing + cached.num_far + num_here;
        Ok(num_here == 0 || needed <= self.pages.num_available() - cached.num_idle)
    }

    /// Lets a request run, with what is cached of it. Returns the tokens that are left.
    fn start(&mut self, mut job: Job, plan: &mut StepPlan) -> Result<usize, PoolError> {
        let (id, num_tokens) = (job.id(), job.tokens.len());
        let num_cached = cached(&mut job, &self.pages, self.policy.shares_prefixes)?.num_pages;
        let num_cached_tokens = num_cached * self.pages.page_size();
        let keys = job.keys(num_cached_tokens, self.pages.page_size());
        let num_restored_pages = self.pages.open(id, keys, plan.copies())?;
        (job.num_computed, job.num_published) = (num_cached_tokens, num_cached);
        plan.admitted.push(Admission {
            request: id.0,
            num_tokens,
            num_cached_tokens,
            num_restored_pages,
            is_again: job.is_preempted,
        });
        self.join(job);
        Ok(num_tokens - num_cached_tokens)
    }

    /// Lets a job run, in its place by seniority, which this returns.
    fn join(&mut self, job: Job) -> usize {
        let place = self.running.partition_point(|other| other.seniority(&job).is_lt());
        self.running.insert(place, job);
        place
    }

    fn feed(
        &mut self,
        id: RequestId,
        num_tokens: usize,
        plan: &mut StepPlan,
    ) -> Result<(), PoolError> {
        self.pages.grow(id, num_tokens, plan.copies())?;
        let job = &self.running[self.place_of(id).expect("it runs")];
        plan.feeds.push(Feed {
            request: id.0,
            num_cached_tokens: job.num_computed,
            num_tokens,
            samples: num_tokens == job.num_left(),
        });
        Ok(())
    }

    /// Fills a batch, computes its prompts, and only then decodes.
    fn plan_static(&mut self, plan: &mut StepPlan) -> Result<(), PoolError> {
        if self.running.is_empty() {
            self.waiting.sort_by(Job::seniority);
            while self.running.len() < self.num_slots() && self.fits_to_the_end() {
                let job = self.waiting.remove(0);
                self.start(job, plan)?;
            }
        }
        let prompts_left = self.running.iter().any(|job| !job.is_decoding());
        let takes_part = |job: &&Job| !prompts_left || !job.is_decoding();
        let ids: Vec<RequestId> = self.running.iter().filter(takes_part).map(Job::id).collect();
        let mut num_tokens = self.limits.num_max_tokens_per_step;
        for id in ids {
            let job = &self.running[self.place_of(id).expect("it runs")];
            let wanted = job.num_left().min(num_tokens);
            if wanted > 0 {
                self.feed(id, wanted, plan)?;
                num_tokens -= wanted;
            }
        }
        Ok(())
    }

    /// Whether the next one in line fits beside those in the batch until all have ended.
    fn fits_to_the_end(&self) -> bool {
        let num_pages = |job: &Job| self.pages.num_filled_by(job.request.num_max_context());
        let Some(next) = self.waiting.first() else { return false };
        let in_batch: usize = self.running.iter().map(num_pages).sum();
        in_batch + num_pages(next) <= self.pages.num_local()
    }

    /// Requests that run at the same time.
    fn num_slots(&self) -> usize {
        match self.policy.reserve {
            Reserve::Pages => self.policy.num_slots,
            Reserve::WholeContext => {
                let context = self.pages.num_filled_by(self.limits.num_max_context);
                self.policy.num_slots.min(self.pages.num_local() / context)
            }
        }
    }

    /// Tells the pool what a request's pages contain, as far as they are full.
    fn publish(&mut self, place: usize) -> Result<(), PoolError> {
        if !self.policy.shares_prefixes {
            return Ok(());
        }
        let (job, page_size) = (&mut self.running[place], self.pages.page_size());
        let (id, first, num_computed) = (job.id(), job.num_published, job.num_computed);
        let keys = job.keys(num_computed, page_size);
        for (page, &key) in keys.iter().enumerate().skip(first) {
            self.pages.publish(id, page, key)?;
        }
        job.num_published = num_computed / page_size;
        Ok(())
    }
}

/// What is cached of a request. Its last token is computed in any case: the next one depends on it.
fn cached(job: &mut Job, pages: &Pages, shares_prefixes: bool) -> Result<Cached, PoolError> {
    if !shares_prefixes {
        return Ok(Cached::default());
    }
    pages.cached(job.keys(job.tokens.len() - 1, pages.page_size()))
}

fn check(policy: &Policy, limits: &EngineLimits, pages: &Pages) -> Result<(), PolicyError> {
    let Policy { num_slots, .. } = *policy;
    if num_slots == 0 {
        return Err(PolicyError::NoSlots);
    }
    if num_slots > limits.num_max_sequences.min(limits.num_max_tokens_per_step) {
        let limit = limits.num_max_sequences.min(limits.num_max_tokens_per_step);
        return Err(PolicyError::TooManySlots { limit, got: num_slots });
    }
    if let Batching::Continuous { num_max_tokens_per_step: got, .. } = policy.batching {
        let limit = limits.num_max_tokens_per_step;
        if got <= num_slots || got > limit {
            return Err(PolicyError::Tokens { num_slots, limit, got });
        }
    }
    let needed = pages.num_filled_by(limits.num_max_context);
    if policy.reserve == Reserve::WholeContext && needed > pages.num_local() {
        return Err(PolicyError::ContextTooLarge { needed, limit: pages.num_local() });
    }
    Ok(())
}

/// Whose prompt goes first.
fn sort(jobs: &mut [&Job], order: Order, now_us: f64) {
    let class_and_time = |job: &Job| match order {
        Order::Arrival => (0, job.request.arrival_us),
        Order::FirstTokenDeadline { ttft_us, prompt_token_us } => {
            let arrival_us = job.request.arrival_us;
            let latest_start_us = arrival_us + ttft_us - job.num_left() as f64 * prompt_token_us;
            if now_us - arrival_us > MOST_PATIENCE * ttft_us {
                (0, arrival_us)
            } else if latest_start_us >= now_us {
                (1, latest_start_us)
            } else {
                (2, arrival_us)
            }
        }
    };
    jobs.sort_by(|a, b| {
        let (a_class, a_us) = class_and_time(a);
        let (b_class, b_us) = class_and_time(b);
        (b.request.priority.cmp(&a.request.priority))
            .then(a_class.cmp(&b_class))
            .then(a_us.total_cmp(&b_us))
            .then_with(|| a.seniority(b))
    });
}

fn unknown(id: RequestId) -> PoolError {
    PoolError::UnknownSequence(crate::kv::SequenceId(id.0))
}
