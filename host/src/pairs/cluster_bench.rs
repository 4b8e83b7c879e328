//! Two ways for several ranks to serve one load, each rank with an engine on its own device.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

use super::serving_bench::{Call, ServingBench, TwoWays};
use super::serving_model::{Home, Lent, Oracle, ServingModel};
use crate::comm::{Rank, World};
use crate::device::Device;
use crate::harness::results::Metric;
use crate::harness::{Shape, Variant};
use crate::model::engine::Engine;
use crate::serve::disagg::{ClusterOptions, ClusterServed, HandOver, Roles, serve_on};
use crate::serve::load::PoissonLoad;
use crate::serve::{Clock, Request, Served, Slo, Summary};

/// What is served, by how many ranks, in which ways.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct ClusterCase {
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
pub(super) enum Timed {
    /// From a prompt's first token to when another rank can go on from it, the mean of all requests.
    HandOver,
    /// Time per output token that 99 of 100 requests stay below.
    TpotP99,
}

impl ClusterCase {
    /// A shape of as many GPUs as ranks.
    pub fn shape(self, name: String) -> Shape {
        Shape::new(name, self.num_ranks, move |devices, seed| self.prepare(devices, seed))
            .sizes(&self)
    }

    fn prepare(self, devices: &[Device], seed: u64) -> Result<ServingBench<Cluster>> {
        let requests = PoissonLoad { seed, ..self.load }.requests();
        let world = World::of(devices)?;
        let loaded = world.try_run(|rank| self.model.engine(rank.device(), seed));
        let mut engines = loaded.map_err(|error| anyhow!("{error}"))?;
        let oracle = Oracle::new(&mut engines[0], &requests)?;
        let home = |engine| Arc::new(Mutex::new(Some(engine)));
        let engines = engines.into_iter().map(home).collect();
        let mut cluster = Cluster { case: self, world, engines, bare_us: 0.0 };
        if self.timed == Timed::HandOver {
            cluster.bare_us = cluster.measure_bare_us(&requests)?;
        }
        ServingBench::new(cluster, requests, oracle)
    }
}

/// Ranks that serve on the wall's clock.
struct Cluster {
    case: ClusterCase,
    world: World,
    /// By rank.
    engines: Vec<Home>,
    /// What the hand-over takes when nothing hides it.
    bare_us: f64,
}

impl Cluster {
    fn serve_so(&self, options: &ClusterOptions, requests: Vec<Request>) -> Result<ClusterServed> {
        let make_engine = |rank: &Rank, _: &Clock| -> Result<Box<dyn Engine>, String> {
            Ok(Box::new(Lent::from(&self.engines[rank.index()])?))
        };
        Ok(serve_on(&self.world, options, &make_engine, requests)?)
    }

    fn measure_bare_us(&self, requests: &[Request]) -> Result<f64> {
        let roles = Roles::Disaggregated(HandOver::AfterPrefill);
        let options = ClusterOptions { roles, ..self.case.optimized };
        // The first one between these ranks finds the way.
        self.serve_so(&options, requests.to_vec())?;
        let cluster = self.serve_so(&options, requests.to_vec())?;
        Ok(hand_over_us(&cluster.served.summary(Slo::default())))
    }
}

impl TwoWays for Cluster {
    /// Time of ranks that decode in their steps, and waiting for KV with nothing else to do, µs.
    type Told = f64;

    fn model(&self) -> &ServingModel {
        &self.case.model
    }

    fn serve(&self, variant: Variant, requests: Vec<Request>) -> Result<(Served, f64)> {
        let options = match variant {
            Variant::Baseline => &self.case.baseline,
            Variant::Optimized => &self.case.optimized,
        };
        let ClusterServed { served, ranks } = self.serve_so(options, requests)?;
        let first_decoding = match options.roles {
            Roles::Monolithic => 0,
            Roles::Disaggregated(_) => ranks.len() / 2,
        };
        let decoding = ranks[first_decoding..].iter().flatten();
        let of_rank = decoding.map(|rank| rank.totals.step_us + rank.totals.fabric_stall_us);
        Ok((served, of_rank.sum()))
    }

    fn us(&self, call: &Call<f64>) -> Result<f64> {
        Ok(match self.case.timed {
            Timed::HandOver => hand_over_us(&call.summary),
            Timed::TpotP99 => call.summary.tpot_us.context("requests of several tokens")?.p99,
        })
    }

    fn metrics(&self, call: &Call<f64>) -> Vec<Metric> {
        let (summary, decode_us) = (&call.summary, call.told);
        let stalls = 100.0 * summary.totals.fabric_stall_us / decode_us.max(1.0);
        let mut metrics = vec![Metric::new("fabric stalls, of decoding ranks' time", stalls, "%")];
        if self.case.timed == Timed::HandOver {
            let shown = hand_over_us(summary) / self.bare_us.max(1.0);
            let hidden = 100.0 * (1.0 - shown).max(0.0);
            metrics.extend([
                Metric::new("hand-over with nothing to hide it", self.bare_us / 1e3, "ms"),
                Metric::new("hand-over hidden", hidden, "%"),
            ]);
        }
        metrics
    }
}

fn hand_over_us(summary: &Summary) -> f64 {
    summary.request_stall_us / summary.num_requests.max(1) as f64
}
