//! Two policies on the simulated engine, under one load.

use std::cell::RefCell;

use anyhow::{Context, Result, ensure};
use gpu_kernels::contract::Work;
use serde::Serialize;

use crate::harness::results::Metric;
use crate::harness::{Batch, Demand, Prepared, Sampler, Variant};
use crate::serve::load::PoissonLoad;
use crate::serve::summary::Percentiles;
use crate::serve::{
    Clock, Policy, Request, SIMULATED, Served, Server, SimulatedEngine, SimulatedModel, Slo,
    Summary, alone,
};

/// What is served, by which policies.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ServeCase {
    /// The engine that is no model.
    pub model: SimulatedModel,
    /// Its pages in local memory, and in the host's.
    pub num_pages: [usize; 2],
    /// Requests; the seed is the run's.
    pub load: PoissonLoad,
    /// How the baseline makes batches.
    pub baseline: Policy,
    /// How the optimized side does.
    pub optimized: Policy,
}

/// A load and the tokens that each of its requests gets alone. A call serves all of them, and takes
/// the time from the first arrival to the last token: virtual time, by the engine's stated costs.
pub struct ServeBench {
    case: ServeCase,
    requests: Vec<Request>,
    oracle: Vec<Vec<u32>>,
    /// Of each side's last call.
    summaries: RefCell<[Option<Summary>; 2]>,
}

impl ServeBench {
    /// The load of a seed.
    ///
    /// # Errors
    /// A load that even an engine of its own does not serve.
    pub fn new(case: ServeCase, seed: u64) -> Result<Self> {
        let requests = PoissonLoad { seed, ..case.load }.requests();
        let oracle = tokens_alone(case.model, &requests)?;
        Ok(Self { case, requests, oracle, summaries: RefCell::default() })
    }

    fn policy(&self, variant: Variant) -> Policy {
        match variant {
            Variant::Baseline => self.case.baseline,
            Variant::Optimized => self.case.optimized,
        }
    }

    fn serve(&self, variant: Variant) -> Result<Served> {
        let (clock, case) = (Clock::simulated(), &self.case);
        let mut engine = SimulatedEngine::new(case.model, &case.num_pages, clock.clone());
        let mut server = Server::new(&mut engine, self.policy(variant), clock)?;
        Ok(server.serve(self.requests.clone())?)
    }
}

impl Prepared for ServeBench {
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
                us += summary.duration_us;
                self.summaries.borrow_mut()[variant as usize] = Some(summary);
            }
            Ok(us / batch.num_calls as f64)
        }))
    }

    fn verify(&self, variant: Variant) -> Result<String> {
        let served = self.serve(variant)?;
        check_tokens(&served, &self.oracle)
    }

    fn corrupt(&mut self) -> Result<()> {
        change_a_prompt(&mut self.requests, self.case.model.vocab_size)
    }

    fn metrics(&self, variant: Variant) -> Vec<Metric> {
        let summaries = self.summaries.borrow();
        summaries[variant as usize].as_ref().map(serving_metrics).unwrap_or_default()
    }
}

/// What each of these requests gets alone.
pub fn tokens_alone(model: SimulatedModel, requests: &[Request]) -> Result<Vec<Vec<u32>>> {
    let num_pages = model.num_max_context.div_ceil(model.page_size);
    let mut engine = SimulatedEngine::new(model, &[num_pages, 1], Clock::simulated());
    let tokens = requests.iter().map(|request| alone(&mut engine, request));
    tokens.collect::<Result<_, _>>().context("serving a request alone")
}

/// Whether each request was served, and got what it gets alone.
pub fn check_tokens(served: &Served, oracle: &[Vec<u32>]) -> Result<String> {
    ensure!(served.requests.len() == oracle.len(), "requests without an answer");
    for ((answer, _), want) in served.requests.iter().zip(oracle) {
        let id = answer.id;
        ensure!(answer.ending.is_served(), "request {id} ended otherwise: {:?}", answer.ending);
        ensure!(answer.tokens == *want, "request {id} got {:?}, and alone {want:?}", answer.tokens);
    }
    let num_tokens: usize = oracle.iter().map(Vec::len).sum();
    Ok(format!(
        "{SIMULATED}: {num_tokens} tokens of {} requests are those that each gets alone",
        oracle.len()
    ))
}

/// Changes a token of the last request's prompt.
pub fn change_a_prompt(requests: &mut [Request], vocab_size: u32) -> Result<()> {
    let first = requests.last_mut().and_then(|request| request.prompt.first_mut());
    let first = first.context("a load of at least one token")?;
    *first = (*first + 1) % vocab_size;
    Ok(())
}

/// What the engine of a load must do, counted from its tokens.
pub fn serving_work(model: &SimulatedModel, requests: &[Request]) -> Work {
    let num_tokens: u64 = requests.iter().map(|request| request.num_max_context() as u64).sum();
    let SimulatedModel { num_layers, layer_token_bytes, costs, .. } = *model;
    Work {
        read_bytes: costs.weight_bytes as u64,
        written_bytes: num_tokens * (num_layers * layer_token_bytes) as u64,
        flops: num_tokens * costs.flops_per_token as u64,
    }
}

/// What a summary says, as a pair's numbers.
pub fn serving_metrics(summary: &Summary) -> Vec<Metric> {
    let metric = |name: &str, value, unit: &str| Metric {
        name: name.to_owned(),
        value,
        unit: unit.to_owned(),
    };
    let percentiles = |name: &str, of: Option<Percentiles>| {
        let Percentiles { p50, p90: _, p99 } =
            of.unwrap_or(Percentiles { p50: 0.0, p90: 0.0, p99: 0.0 });
        [("p50", p50), ("p99", p99)].map(|(p, us)| metric(&format!("{name} {p}"), us / 1e3, "ms"))
    };
    let mut metrics = vec![metric("tokens/s", summary.tokens_per_s, "")];
    metrics.extend(percentiles("TTFT", summary.ttft_us));
    metrics.extend(percentiles("TPOT", summary.tpot_us));
    metrics.extend(percentiles("end to end", summary.end_to_end_us));
    metrics.extend([
        metric("goodput", summary.goodput_per_s, "requests/s"),
        metric("batch fill", 100.0 * summary.batch_fill, "%"),
        metric("waiting", summary.mean_waiting, "requests"),
        metric("prompt tokens cached", 100.0 * summary.cached_token_share, "%"),
        metric("pages evicted", summary.totals.num_evicted_pages as f64, ""),
        metric("pages restored", summary.num_restored_pages as f64, ""),
        metric("preemptions", summary.num_preemptions as f64, ""),
        metric("tokens computed again", summary.num_recomputed_tokens as f64, ""),
        metric("fabric stalls", summary.totals.fabric_stall_us / 1e3, "ms"),
    ]);
    metrics
}
