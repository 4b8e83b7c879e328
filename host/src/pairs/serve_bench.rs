//! Two policies on one engine, under one load.

use std::cell::RefCell;

use anyhow::Result;
use gpu_kernels::contract::Work;
use serde::Serialize;

use super::serving_model::{ServingModel, change_prompts, check_tokens, oracle};
use crate::device::Device;
use crate::harness::results::Metric;
use crate::harness::{Batch, Demand, Prepared, Sampler, Variant};
use crate::model::DeviceEngine;
use crate::serve::load::PoissonLoad;
use crate::serve::summary::Percentiles;
use crate::serve::{Clock, Policy, Request, Served, Server, Slo, Summary};

/// What is served, by which policies.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ServeCase {
    /// The engine's.
    pub model: ServingModel,
    /// Requests; the seed is the run's.
    pub load: PoissonLoad,
    /// How the baseline makes batches.
    pub baseline: Policy,
    /// How the optimized side does.
    pub optimized: Policy,
}

/// A load and the tokens that its requests must get. A call serves all of them, and takes the time
/// from the first arrival to the last token.
pub struct ServeBench {
    case: ServeCase,
    engine: RefCell<DeviceEngine>,
    requests: Vec<Request>,
    oracle: Vec<Vec<u32>>,
    /// Of each side's last call.
    summaries: RefCell<[Option<Summary>; 2]>,
}

impl ServeBench {
    /// The load of a seed, and an engine on this device.
    ///
    /// # Errors
    /// A load that the engine does not serve; what the device says.
    pub fn new(case: ServeCase, device: &Device, seed: u64) -> Result<Self> {
        let requests = PoissonLoad { seed, ..case.load }.requests();
        let mut engine = case.model.engine(device, seed)?;
        let oracle = oracle(&mut engine, &requests)?;
        let (engine, summaries) = (RefCell::new(engine), RefCell::default());
        Ok(Self { case, engine, requests, oracle, summaries })
    }

    fn serve(&self, variant: Variant) -> Result<Served> {
        let policy = match variant {
            Variant::Baseline => self.case.baseline,
            Variant::Optimized => self.case.optimized,
        };
        let mut engine = self.engine.borrow_mut();
        let mut server = Server::new(&mut *engine, policy, Clock::wall())?;
        Ok(server.serve(self.requests.clone())?)
    }
}

impl Prepared for ServeBench {
    fn work(&self, _variant: Variant) -> Work {
        self.case.model.work(&self.requests)
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
        check_tokens(&self.serve(variant)?, &self.oracle)
    }

    fn corrupt(&mut self) -> Result<()> {
        change_prompts(&mut self.requests, self.case.model.vocab_size())
    }

    fn metrics(&self, variant: Variant) -> Vec<Metric> {
        let summaries = self.summaries.borrow();
        summaries[variant as usize].as_ref().map(serving_metrics).unwrap_or_default()
    }
}

pub(super) fn metric(name: &str, value: f64, unit: &str) -> Metric {
    Metric { name: name.to_owned(), value, unit: unit.to_owned() }
}

/// What a summary says, as a pair's numbers.
pub fn serving_metrics(summary: &Summary) -> Vec<Metric> {
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
