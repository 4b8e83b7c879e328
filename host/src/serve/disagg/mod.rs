//! Several ranks: each for itself, or half of them computing prompts for the other half.
//!
//! ```text
//!           request                 room?  ◀── granted
//!  router ──────────▶ prefill rank ────────────────────▶ decode rank ──▶ answer
//!                      step, layer 0 ── KV of layer 0 ──▶  its pages
//!                            layer 1 ── KV of layer 1 ──▶
//!                            …          first token   ──▶  goes on from there
//! ```
//! Prompts are held back, not decoding: a prompt starts when the rank that is to go on with it has
//! a slot and the pages for it. KV is on its way while later layers and chunks are computed, so
//! that decoding waits for little more than the last layer's; how long it waited is counted.
//!
//! A rank that stops takes no request with it: those that it had start again on the ranks that are
//! left, and give the same tokens. With none left for a part, they end with the reason.
//!
//! Ranks are those of a [`World`]: threads, on CPUs as on GPUs, on the wall's clock.

mod decode;
mod prefill;
mod router;
mod wire;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use serde::Serialize;

pub use self::wire::SimulatedNetwork;

use self::decode::Decode;
use self::prefill::Prefill;
use self::router::Router;
use self::wire::{Envelope, Inbox, Link, News};
use super::clock::Clock;
use super::policy::Policy;
use super::request::{Answer, Request};
use super::scheduler::Scheduler;
use super::server::{Served, Server};
use super::summary::Totals;
use super::timeline::Timeline;
use crate::comm::{Rank, World};
use crate::model::engine::Engine;

/// What ranks do for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Roles {
    /// Each rank serves its share of the requests from prompt to end.
    Monolithic,
    /// The first half computes prompts, the second half goes on with them.
    Disaggregated(HandOver),
}

/// When KV goes from one rank to the other, and how.
///
/// Engines that [show](crate::model::engine::KvPages::window) their pages are written to directly:
/// between GPUs by their copy engines, over NVLink where there is one. Others, and all on a
/// [simulated network](SimulatedNetwork), are sent bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HandOver {
    /// All of it when the prompt is computed, through pinned memory of the host.
    ThroughHost,
    /// All of it when the prompt is computed.
    AfterPrefill,
    /// Each layer's when it is written.
    ByLayer,
}

/// How ranks serve together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClusterOptions {
    /// What each does.
    pub roles: Roles,
    /// Of each rank that decodes.
    pub policy: Policy,
    /// Of each rank that computes prompts only.
    pub prefill_policy: Policy,
    /// Between ranks, where there is none.
    pub network: Option<SimulatedNetwork>,
    /// A fault to be tried.
    pub stop: Option<StopRank>,
}

/// A rank that fails after so many steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StopRank {
    /// Which.
    pub rank: usize,
    /// Steps before.
    pub num_steps: u64,
}

impl StopRank {
    fn check(stop: Option<Self>, rank: usize, num_steps: u64) -> Result<(), String> {
        match stop {
            Some(stop) if stop.rank == rank && num_steps >= stop.num_steps => {
                Err(format!("it was to stop after {num_steps} steps"))
            }
            _ => Ok(()),
        }
    }
}

/// What a rank had at its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankReport {
    /// What it counted.
    pub totals: Totals,
    /// Requests that still held pages: none, unless something leaks.
    pub num_held: usize,
}

impl RankReport {
    fn of(scheduler: &Scheduler, totals: Totals) -> Self {
        let totals = totals.with_pool(scheduler.pool_stats());
        Self { totals, num_held: scheduler.pool().num_sequences() }
    }
}

/// What ranks served together.
#[derive(Clone, Debug)]
pub struct ClusterServed {
    /// All requests, and all ranks' counts together.
    pub served: Served,
    /// Each rank's, or why it stopped.
    pub ranks: Vec<Result<RankReport, String>>,
}

/// Ranks that could not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// Halves need an even number.
    #[error(
        "world size: needs an even number of ranks, at least 2, for prefill and decode, got {0}"
    )]
    WorldSize(usize),
    /// A rank without an engine, or with a policy that does not suit it.
    #[error("{0}")]
    Rank(String),
}

/// Makes a rank's engine, which may be on this clock.
pub type MakeEngine<'a> = dyn Fn(&Rank, &Clock) -> Result<Box<dyn Engine>, String> + Sync + 'a;

/// Serves requests on all ranks of a world. Arrivals count from when all engines are there.
///
/// # Errors
/// Before the first request: a world of the wrong size, a rank that cannot begin.
pub fn serve_on(
    world: &World,
    options: &ClusterOptions,
    make_engine: &MakeEngine<'_>,
    requests: Vec<Request>,
) -> Result<ClusterServed, ClusterError> {
    match options.roles {
        Roles::Monolithic => monolithic(world, options, make_engine, &requests),
        Roles::Disaggregated(hand_over) => {
            disaggregated(world, options, hand_over, make_engine, requests)
        }
    }
}

fn monolithic(
    world: &World,
    options: &ClusterOptions,
    make_engine: &MakeEngine<'_>,
    requests: &[Request],
) -> Result<ClusterServed, ClusterError> {
    let clock = Clock::wall();
    let ranks = world.run(|rank| {
        let mut engine = make_engine(rank, &clock)?;
        let mut server =
            Server::new(&mut *engine, options.policy, clock.clone()).map_err(|e| e.to_string())?;
        rank.barrier().map_err(|error| error.to_string())?;
        let start_us = clock.now_us();
        let share = requests.iter().skip(rank.index()).step_by(rank.size());
        let share = share.map(|request| later(request, start_us)).collect();
        let served = server.serve(share).map_err(|error| error.to_string())?;
        let num_held = server.scheduler().pool().num_sequences();
        Ok((RankReport { totals: served.totals, num_held }, served.requests))
    });
    let (mut reports, mut all) = (Vec::new(), Vec::new());
    for rank in ranks {
        let (report, requests) = rank.map_err(|error: crate::comm::RankError<String>| {
            ClusterError::Rank(error.to_string())
        })?;
        reports.push(Ok(report));
        all.extend(requests);
    }
    all.sort_by_key(|(answer, _)| answer.id);
    Ok(together(all, reports))
}

fn disaggregated(
    world: &World,
    options: &ClusterOptions,
    hand_over: HandOver,
    make_engine: &MakeEngine<'_>,
    requests: Vec<Request>,
) -> Result<ClusterServed, ClusterError> {
    let size = world.size();
    if size < 2 || !size.is_multiple_of(2) {
        return Err(ClusterError::WorldSize(size));
    }
    let clock = Clock::wall();
    let (senders, inboxes): (Vec<Sender<Envelope>>, Vec<_>) =
        (0..size).map(|_| mpsc::channel()).unzip();
    let inboxes: Vec<_> = inboxes.into_iter().map(|inbox| Mutex::new(Some(inbox))).collect();
    let (news_sender, news) = mpsc::channel();
    let (started, start) = mpsc::channel();
    // Each rank takes its own out of a lock: senders are not shared between threads.
    let shared = Mutex::new(Some((senders.clone(), news_sender, started)));
    let place = |rank: &Rank| -> Result<RankReport, String> {
        let taken = shared.lock().expect("nobody panics with it").clone();
        let (senders, news, started) = taken.expect("ranks begin before they end");
        let mut engine = make_engine(rank, &clock)?;
        let seat = Seat { rank, options, hand_over, clock: &clock, senders, news };
        let inbox = inboxes[rank.index()].lock().expect("nobody panics with it").take();
        let inbox = inbox.expect("a rank takes its inbox once");
        let scheduler = seat.scheduler(&mut *engine)?;
        rank.barrier().map_err(|error| error.to_string())?;
        let _ = started.send(clock.now_us());
        drop(started);
        seat.serve(&mut *engine, scheduler, inbox)
    };
    let route = || -> Option<Vec<(Answer, Timeline)>> {
        let start_us = start.recv().ok()?;
        let links = senders.into_iter().map(|sender| Link::new(sender, None, clock.clone()));
        let router = Router {
            clock: clock.clone(),
            news,
            links: links.collect(),
            prefill: (0..size / 2).collect(),
            decode: (size / 2..size).collect(),
        };
        Some(router.run(requests.iter().map(|request| later(request, start_us)).collect()))
    };
    let (ranks, answers) = thread::scope(|scope| {
        let ranks = scope.spawn(|| {
            let ranks = world.run(place);
            // From here on nobody begins, and nobody has news.
            shared.lock().expect("nobody panics with it").take();
            ranks
        });
        let answers = route();
        (ranks.join().expect("ranks' panics are caught"), answers)
    });
    let reports = ranks.into_iter().map(|rank| rank.map_err(|error| error.to_string()));
    let reports: Vec<_> = reports.collect();
    match answers {
        Some(answers) => Ok(together(answers, reports)),
        None => {
            let first = reports.into_iter().find_map(Result::err);
            Err(ClusterError::Rank(first.unwrap_or_else(|| "no rank began".to_owned())))
        }
    }
}

/// A rank's place among the others.
struct Seat<'a> {
    rank: &'a Rank,
    options: &'a ClusterOptions,
    hand_over: HandOver,
    clock: &'a Clock,
    senders: Vec<Sender<Envelope>>,
    news: Sender<News>,
}

impl Seat<'_> {
    fn prefills(&self) -> bool {
        self.rank.index() < self.rank.size() / 2
    }

    fn scheduler(&self, engine: &mut dyn Engine) -> Result<Scheduler, String> {
        let policy =
            if self.prefills() { self.options.prefill_policy } else { self.options.policy };
        let num_pages = engine.pages().num_pages().to_vec();
        Scheduler::new(policy, engine.limits(), &num_pages).map_err(|error| error.to_string())
    }

    fn serve(
        self,
        engine: &mut dyn Engine,
        scheduler: Scheduler,
        inbox: Receiver<Envelope>,
    ) -> Result<RankReport, String> {
        let (rank, clock, stop) = (self.rank.index(), self.clock.clone(), self.options.stop);
        let half = self.rank.size() / 2;
        let others = if self.prefills() { half..2 * half } else { 0..half };
        let link = |other: usize| {
            let sender = self.senders[other].clone();
            (other, Link::new(sender, self.options.network, clock.clone()))
        };
        let links: BTreeMap<usize, Link> = others.map(link).collect();
        let inbox = Inbox::new(inbox, clock.clone());
        let mut obituary = Obituary { rank, news: self.news.clone(), reason: None };
        let (news, totals) = (self.news, Totals::default());
        let result = if rank < half {
            let (hand_over, parcels) = (self.hand_over, BTreeMap::new());
            Prefill {
                engine,
                scheduler,
                clock,
                rank,
                inbox,
                links,
                news,
                hand_over,
                stop,
                parcels,
                totals,
            }
            .run()
        } else {
            Decode {
                engine,
                scheduler,
                clock,
                rank,
                inbox,
                links,
                news,
                stop,
                wanting: VecDeque::new(),
                coming: BTreeMap::new(),
                timelines: BTreeMap::new(),
                stopped: BTreeSet::new(),
                shows_pages: self.options.network.is_none(),
                idle_since_us: 0.0,
                totals,
            }
            .run()
        };
        obituary.reason = Some(result.as_ref().err().cloned());
        result
    }
}

/// Tells the router that a rank has stopped, also when it panics.
struct Obituary {
    rank: usize,
    news: Sender<News>,
    /// Why, or that it is well; nothing, if it never came to that.
    reason: Option<Option<String>>,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        let reason = match self.reason.take() {
            Some(None) => return,
            Some(Some(reason)) => reason,
            None => "it panicked".to_owned(),
        };
        let _ = self.news.send(News::Down { rank: self.rank, reason });
    }
}

fn later(request: &Request, us: f64) -> Request {
    Request { arrival_us: request.arrival_us + us, ..request.clone() }
}

fn together(
    requests: Vec<(Answer, Timeline)>,
    ranks: Vec<Result<RankReport, String>>,
) -> ClusterServed {
    let totals = ranks.iter().flatten().fold(Totals::default(), |sum, rank| sum.plus(rank.totals));
    ClusterServed { served: Served { requests, totals }, ranks }
}
