//! Two ways for several ranks to serve one load, each rank with an engine on its own device.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow};
use gpu_kernels::contract::Work;
use serde::Serialize;

use super::serve_bench::{metric, serving_metrics};
use super::serving_model::{Home, Lent, Oracle, ServingModel, change_prompts};
use crate::comm::{Rank, World};
use crate::device::Device;
use crate::harness::results::Metric;
use crate::harness::{Batch, Demand, Prepared, Sampler, Variant};
use crate::model::engine::Engine;
use crate::serve::disagg::{ClusterOptions, ClusterServed, HandOver, Roles, serve_on};
use crate::serve::load::PoissonLoad;
use crate::serve::{Clock, Request, Served, Slo, Summary};

/// What is served, by how many ranks, in which ways.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ClusterCase {
    /// Each rank's engine.
    pub model: ServingModel,
    /// Ranks.
    pub num_ranks: usize,
    /// Requests; the seed is the run's.
    pub load: PoissonLoad,
    /// How the baseline serves them.
    pub baseline: ClusterOptions,
    /// How the optimized side does.
    pub optimized: ClusterOptions,
    /// What is taken for a call's time.
    pub timed: Timed,
}

/// What a call's time is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Timed {
    /// From a prompt's first token to when another rank can go on from it, the mean of all requests.
    HandOver,
    /// Time per output token that 99 of 100 requests stay below.
    TpotP99,
}

/// A load, the tokens that its requests must get, and ranks that serve it on the wall's clock.
pub struct ClusterBench {
    case: ClusterCase,
    world: World,
    /// By rank.
    engines: Vec<Home>,
    requests: Vec<Request>,
    oracle: Oracle,
    /// Each side's last one.
    calls: RefCell<[Option<Call>; 2]>,
    /// What the hand-over takes when nothing hides it.
    bare_us: f64,
}

/// What a call came to.
struct Call {
    served: Served,
    summary: Summary,
    /// Time of ranks that decode in their steps, and waiting for KV with nothing else to do.
    decode_us: f64,
}

impl Call {
    fn new(cluster: ClusterServed, options: &ClusterOptions) -> Self {
        let half = match options.roles {
            Roles::Monolithic => 0,
            Roles::Disaggregated(_) => cluster.ranks.len() / 2,
        };
        let decode = cluster.ranks[half..].iter().flatten();
        let decode_us = decode.map(|rank| rank.totals.step_us + rank.totals.fabric_stall_us).sum();
        let summary = cluster.served.summary(Slo::default());
        Self { served: cluster.served, summary, decode_us }
    }

    fn hand_over_us(&self) -> f64 {
        self.summary.request_stall_us / self.summary.num_requests.max(1) as f64
    }
}

impl ClusterBench {
    /// The load of a seed, and an engine on each device.
    ///
    /// # Errors
    /// A load that an engine does not serve; what the devices say.
    pub fn new(case: ClusterCase, devices: &[Device], seed: u64) -> Result<Self> {
        let requests = PoissonLoad { seed, ..case.load }.requests();
        let world = World::of(devices)?;
        let loaded = world.try_run(|rank| case.model.engine(rank.device(), seed));
        let mut engines = loaded.map_err(|error| anyhow!("{error}"))?;
        let oracle = Oracle::new(&mut engines[0], &requests)?;
        let home = |engine| Arc::new(Mutex::new(Some(engine)));
        let engines = engines.into_iter().map(home).collect();
        let calls = RefCell::default();
        let mut bench = Self { case, world, engines, requests, oracle, calls, bare_us: 0.0 };
        let first = bench.serve(&case.baseline)?;
        bench.oracle.learn(&first.served)?;
        bench.keep(Variant::Baseline, first);
        if case.timed == Timed::HandOver {
            let roles = Roles::Disaggregated(HandOver::AfterPrefill);
            let options = ClusterOptions { roles, ..case.optimized };
            // The first one between these ranks finds the way.
            bench.serve(&options)?;
            bench.bare_us = bench.serve(&options)?.hand_over_us();
        }
        Ok(bench)
    }

    fn options(&self, variant: Variant) -> &ClusterOptions {
        match variant {
            Variant::Baseline => &self.case.baseline,
            Variant::Optimized => &self.case.optimized,
        }
    }

    fn serve(&self, options: &ClusterOptions) -> Result<Call> {
        let engines = &self.engines;
        let make_engine = |rank: &Rank, _: &Clock| -> Result<Box<dyn Engine>, String> {
            Ok(Box::new(Lent::from(&engines[rank.index()])?))
        };
        let cluster = serve_on(&self.world, options, &make_engine, self.requests.clone())?;
        Ok(Call::new(cluster, options))
    }

    fn keep(&self, variant: Variant, call: Call) {
        self.calls.borrow_mut()[variant as usize] = Some(call);
    }
}

impl Prepared for ClusterBench {
    fn work(&self, _variant: Variant) -> Work {
        self.case.model.work(&self.requests)
    }

    fn demands(&self) -> Vec<Demand> {
        Vec::new()
    }

    fn num_inputs(&self) -> usize {
        1
    }

    fn is_long(&self) -> bool {
        true
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        Ok(Box::new(move || {
            let mut us = 0.0;
            for _ in 0..batch.num_calls {
                let call = self.serve(self.options(variant))?;
                us += match self.case.timed {
                    Timed::HandOver => call.hand_over_us(),
                    Timed::TpotP99 => {
                        call.summary.tpot_us.context("requests of several tokens")?.p99
                    }
                };
                self.keep(variant, call);
            }
            Ok(us / batch.num_calls as f64)
        }))
    }

    /// Looks at the side's last call, if there is one.
    fn verify(&self, variant: Variant) -> Result<String> {
        if self.calls.borrow()[variant as usize].is_none() {
            self.keep(variant, self.serve(self.options(variant))?);
        }
        let calls = self.calls.borrow();
        self.oracle.check(&calls[variant as usize].as_ref().expect("it was served").served)
    }

    fn corrupt(&mut self) -> Result<()> {
        self.calls = RefCell::default();
        change_prompts(&mut self.requests, self.case.model.vocab_size())
    }

    fn metrics(&self, variant: Variant) -> Vec<Metric> {
        let calls = self.calls.borrow();
        let Some(call) = &calls[variant as usize] else { return Vec::new() };
        let stall_us = call.summary.totals.fabric_stall_us;
        let mut metrics = serving_metrics(&call.summary);
        let stalls = 100.0 * stall_us / call.decode_us.max(1.0);
        metrics.push(metric("fabric stalls, of decoding ranks' time", stalls, "%"));
        if self.case.timed == Timed::HandOver {
            let hidden = 100.0 * (1.0 - call.hand_over_us() / self.bare_us.max(1.0)).max(0.0);
            metrics.push(metric("hand-over with nothing to hide it", self.bare_us / 1e3, "ms"));
            metrics.push(metric("hand-over hidden", hidden, "%"));
        }
        metrics
    }
}
