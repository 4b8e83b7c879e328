//! Two ways for several ranks to serve one load, each rank with a simulated engine.

use std::cell::RefCell;

use anyhow::{Context, Result};
use gpu_kernels::contract::Work;
use serde::Serialize;

use super::serve_bench::{
    change_a_prompt, check_tokens, serving_metrics, serving_work, tokens_alone,
};
use crate::comm::World;
use crate::harness::results::Metric;
use crate::harness::{Batch, Demand, Prepared, Sampler, Variant};
use crate::serve::disagg::{ClusterOptions, serve_on};
use crate::serve::load::PoissonLoad;
use crate::serve::{
    Request, Served, SimulatedCosts, SimulatedEngine, SimulatedModel, Slo, Summary,
};

/// What is served, by how many ranks, in which ways.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ClusterCase {
    /// Each rank's engine, which is no model.
    pub model: SimulatedModel,
    /// Ranks.
    pub num_ranks: usize,
    /// Each one's pages.
    pub num_pages: usize,
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
    /// From the first arrival to the last token.
    Duration,
    /// Time per output token that 99 of 100 requests stay below.
    TpotP99,
}

/// A small model on the wall's clock: steps of about half a millisecond, 16 KiB of KV a token.
pub fn paced_model() -> SimulatedModel {
    let costs = SimulatedCosts {
        weight_bytes: 2e9,
        flops_per_token: 4e9,
        flops_per_pair: 0.0,
        ..SimulatedCosts::dense_8b()
    };
    SimulatedModel {
        num_layers: 8,
        layer_token_bytes: 2048,
        num_max_context: 2048,
        num_max_tokens_per_step: 2048,
        costs,
        ..SimulatedModel::dense_8b()
    }
}

/// A load, the tokens that each of its requests gets alone, and a world that serves it on the
/// wall's clock.
pub struct ClusterBench {
    case: ClusterCase,
    requests: Vec<Request>,
    oracle: Vec<Vec<u32>>,
    /// Of each side's last call.
    summaries: RefCell<[Option<Summary>; 2]>,
}

impl ClusterBench {
    /// The load of a seed.
    ///
    /// # Errors
    /// A load that even an engine of its own does not serve.
    pub fn new(case: ClusterCase, seed: u64) -> Result<Self> {
        let requests = PoissonLoad { seed, ..case.load }.requests();
        let oracle = tokens_alone(case.model, &requests)?;
        Ok(Self { case, requests, oracle, summaries: RefCell::default() })
    }

    fn serve(&self, variant: Variant) -> Result<Served> {
        let ClusterCase { model, num_ranks, num_pages, baseline, optimized, .. } = self.case;
        let options = match variant {
            Variant::Baseline => baseline,
            Variant::Optimized => optimized,
        };
        let make_engine = |_: &crate::comm::Rank, clock: &crate::serve::Clock| {
            let engine = SimulatedEngine::new(model, &[num_pages, 1], clock.clone());
            Ok(Box::new(engine) as Box<dyn crate::model::engine::Engine>)
        };
        let world = World::cpu(num_ranks);
        Ok(serve_on(&world, &options, &make_engine, self.requests.clone())?.served)
    }
}

impl Prepared for ClusterBench {
    fn work(&self, _variant: Variant) -> Work {
        serving_work(&self.case.model, &self.requests)
    }

    fn demands(&self) -> Vec<Demand> {
        Vec::new()
    }

    fn num_inputs(&self) -> usize {
        1
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        Ok(Box::new(move || {
            let mut us = 0.0;
            for _ in 0..batch.num_calls {
                let summary = self.serve(variant)?.summary(Slo::default());
                us += match self.case.timed {
                    Timed::Duration => summary.duration_us,
                    Timed::TpotP99 => summary.tpot_us.context("requests of several tokens")?.p99,
                };
                self.summaries.borrow_mut()[variant as usize] = Some(summary);
            }
            Ok(us / batch.num_calls as f64)
        }))
    }

    fn verify(&self, variant: Variant) -> Result<String> {
        check_tokens(&self.serve(variant)?, &self.oracle)
    }

    fn corrupt(&mut self) -> Result<()> {
        change_a_prompt(&mut self.requests, self.case.model.vocab_size)
    }

    fn metrics(&self, variant: Variant) -> Vec<Metric> {
        let summaries = self.summaries.borrow();
        summaries[variant as usize].as_ref().map(serving_metrics).unwrap_or_default()
    }
}
