//! Two policies on one engine, under one load.

use std::cell::RefCell;

use anyhow::Result;
use gpu_kernels::contract::Work;
use serde::Serialize;

use super::serving_model::{Oracle, ServingModel, change_prompts};
use crate::device::Device;
use crate::harness::results::{Metric, Phase};
use crate::harness::{Batch, Demand, Prepared, Sampler, Variant};
use crate::model::{DeviceEngine, EngineTimes};
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
    oracle: Oracle,
    /// Each side's last one.
    calls: RefCell<[Option<Call>; 2]>,
}

/// A load that was served.
struct Call {
    served: Served,
    summary: Summary,
    times: EngineTimes,
}

impl ServeBench {
    /// The load of a seed, and an engine on this device.
    ///
    /// # Errors
    /// A load that the engine does not serve; what the device says.
    pub fn new(case: ServeCase, device: &Device, seed: u64) -> Result<Self> {
        let requests = PoissonLoad { seed, ..case.load }.requests();
        let mut engine = case.model.engine(device, seed)?;
        let oracle = Oracle::new(&mut engine, &requests)?;
        let (engine, calls) = (RefCell::new(engine), RefCell::default());
        let mut bench = Self { case, engine, requests, oracle, calls };
        let first = bench.serve(Variant::Baseline)?;
        bench.oracle.learn(&first.served)?;
        bench.keep(Variant::Baseline, first);
        Ok(bench)
    }

    fn serve(&self, variant: Variant) -> Result<Call> {
        let policy = match variant {
            Variant::Baseline => self.case.baseline,
            Variant::Optimized => self.case.optimized,
        };
        let mut engine = self.engine.borrow_mut();
        engine.take_times();
        let mut server = Server::new(&mut *engine, policy, Clock::wall())?;
        let served = server.serve(self.requests.clone())?;
        let summary = served.summary(Slo::default());
        Ok(Call { served, summary, times: engine.take_times() })
    }

    fn keep(&self, variant: Variant, call: Call) {
        self.calls.borrow_mut()[variant as usize] = Some(call);
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

    fn is_long(&self) -> bool {
        true
    }

    fn sampler(&self, variant: Variant, batch: Batch) -> Result<Sampler<'_>> {
        Ok(Box::new(move || {
            let mut us = 0.0;
            for _ in 0..batch.num_calls {
                let call = self.serve(variant)?;
                us += call.summary.duration_us;
                self.keep(variant, call);
            }
            Ok(us / batch.num_calls as f64)
        }))
    }

    /// Looks at the side's last call, if there is one.
    fn verify(&self, variant: Variant) -> Result<String> {
        if self.calls.borrow()[variant as usize].is_none() {
            self.keep(variant, self.serve(variant)?);
        }
        let calls = self.calls.borrow();
        self.oracle.check(&calls[variant as usize].as_ref().expect("it was served").served)
    }

    fn corrupt(&mut self) -> Result<()> {
        self.calls = RefCell::default();
        change_prompts(&mut self.requests, self.case.model.vocab_size())
    }

    fn phases(&self) -> Result<Vec<Phase>> {
        let calls = self.calls.borrow();
        Ok(calls[Variant::Optimized as usize].as_ref().map(phases).unwrap_or_default())
    }

    fn metrics(&self, variant: Variant) -> Vec<Metric> {
        let calls = self.calls.borrow();
        let call = calls[variant as usize].as_ref();
        call.map(|call| serving_metrics(&call.summary)).unwrap_or_default()
    }
}

/// Where the time of a call went: steps by their kinds, on the device and around it, and no step.
fn phases(Call { summary, times, .. }: &Call) -> Vec<Phase> {
    let EngineTimes { decode, prompts } = times;
    let parts = [
        ("decode steps, on the device", decode.device_us),
        ("decode steps, around that", decode.us - decode.device_us),
        ("steps with prompts, on the device", prompts.device_us),
        ("steps with prompts, around that", prompts.us - prompts.device_us),
        ("between steps", summary.duration_us - decode.us - prompts.us),
    ];
    parts.map(|(name, us)| Phase { name: name.to_owned(), us }).into()
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
        metric("a step of decoding", summary.totals.decode_step_us() / 1e3, "ms"),
        metric("a step with prompts", summary.totals.mean_prompt_step_us() / 1e3, "ms"),
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
