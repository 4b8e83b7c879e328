//! One load, served in two ways: what all pairs that serve have in common.

use std::cell::RefCell;

use anyhow::{Context, Result};
use gpu_kernels::contract::Work;

use super::serving_model::{Oracle, ServingModel, change_prompts};
use crate::harness::results::{Metric, Phase};
use crate::harness::{Batch, Demand, Prepared, Sampler, Variant};
use crate::serve::summary::Percentiles;
use crate::serve::{Request, Served, Slo, Summary};

/// Two ways to serve on the same engines.
pub(super) trait TwoWays {
    /// What a way tells beside answers and times.
    type Told;

    /// Each engine.
    fn model(&self) -> &ServingModel;

    /// Serves all requests.
    fn serve(&self, variant: Variant, requests: Vec<Request>) -> Result<(Served, Self::Told)>;

    /// What is taken for the time of a call.
    fn us(&self, call: &Call<Self::Told>) -> Result<f64>;

    /// Numbers beside those that [all serving has](serving_metrics).
    fn metrics(&self, _call: &Call<Self::Told>) -> Vec<Metric> {
        Vec::new()
    }

    /// Named parts of a call's time.
    fn phases(&self, _call: &Call<Self::Told>) -> Vec<Phase> {
        Vec::new()
    }
}

/// A load that was served.
pub(super) struct Call<T> {
    served: Served,
    pub summary: Summary,
    pub told: T,
}

impl<T> Call<T> {
    fn new((served, told): (Served, T)) -> Self {
        Self { summary: served.summary(Slo::default()), served, told }
    }
}

/// A load and the tokens that its requests must get. A call serves all of them.
pub(super) struct ServingBench<W: TwoWays> {
    ways: W,
    requests: Vec<Request>,
    oracle: Oracle,
    /// Each side's last one.
    calls: RefCell<[Option<Call<W::Told>>; 2]>,
}

impl<W: TwoWays> ServingBench<W> {
    /// Requests, of which `oracle` knows what the first ones get alone. The baseline serves them once.
    ///
    /// # Errors
    /// First ones that get something else in a batch; what the devices say.
    pub fn new(ways: W, requests: Vec<Request>, oracle: Oracle) -> Result<Self> {
        let mut bench = Self { ways, requests, oracle, calls: RefCell::default() };
        let first = bench.serve(Variant::Baseline)?;
        bench.oracle.learn(&first.served)?;
        bench.keep(Variant::Baseline, first);
        Ok(bench)
    }

    fn serve(&self, variant: Variant) -> Result<Call<W::Told>> {
        Ok(Call::new(self.ways.serve(variant, self.requests.clone())?))
    }

    fn keep(&self, variant: Variant, call: Call<W::Told>) {
        self.calls.borrow_mut()[variant as usize] = Some(call);
    }

    /// What a side's last call says, if there was one.
    fn of_last<R>(&self, variant: Variant, say: impl FnOnce(&Call<W::Told>) -> R) -> Option<R> {
        self.calls.borrow()[variant as usize].as_ref().map(say)
    }
}

impl<W: TwoWays> Prepared for ServingBench<W> {
    fn work(&self, _variant: Variant) -> Work {
        self.ways.model().work(&self.requests)
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
                us += self.ways.us(&call)?;
                self.keep(variant, call);
            }
            Ok(us / batch.num_calls as f64)
        }))
    }

    /// Looks at the side's last call, if there is one.
    fn verify(&self, variant: Variant) -> Result<String> {
        if self.of_last(variant, |_| ()).is_none() {
            self.keep(variant, self.serve(variant)?);
        }
        self.of_last(variant, |call| self.oracle.check(&call.served)).context("it was served")?
    }

    fn corrupt(&mut self) -> Result<()> {
        self.calls = RefCell::default();
        change_prompts(&mut self.requests, self.ways.model().vocab_size())
    }

    fn phases(&self) -> Result<Vec<Phase>> {
        let phases = self.of_last(Variant::Optimized, |call| self.ways.phases(call));
        Ok(phases.unwrap_or_default())
    }

    fn metrics(&self, variant: Variant) -> Vec<Metric> {
        let metrics = self.of_last(variant, |call| {
            [serving_metrics(&call.summary), self.ways.metrics(call)].concat()
        });
        metrics.unwrap_or_default()
    }
}

/// What a summary says, as a pair's numbers.
fn serving_metrics(summary: &Summary) -> Vec<Metric> {
    let percentiles = |name: &str, of: Option<Percentiles>| {
        let Percentiles { p50, p90: _, p99 } =
            of.unwrap_or(Percentiles { p50: 0.0, p90: 0.0, p99: 0.0 });
        [("p50", p50), ("p99", p99)]
            .map(|(p, us)| Metric::new(&format!("{name} {p}"), us / 1e3, "ms"))
    };
    let mut metrics = vec![Metric::new("tokens/s", summary.tokens_per_s, "")];
    metrics.extend(percentiles("TTFT", summary.ttft_us));
    metrics.extend(percentiles("TPOT", summary.tpot_us));
    metrics.extend(percentiles("end to end", summary.end_to_end_us));
    let totals = &summary.totals;
    metrics.extend([
        Metric::new("goodput", summary.goodput_per_s, "requests/s"),
        Metric::new("batch fill", 100.0 * summary.batch_fill, "%"),
        Metric::new("a step of decoding", totals.decode_step_us() / 1e3, "ms"),
        Metric::new("a step with prompts", totals.mean_prompt_step_us() / 1e3, "ms"),
        Metric::new("waiting", summary.mean_waiting, "requests"),
        Metric::new("prompt tokens cached", 100.0 * summary.cached_token_share, "%"),
        Metric::new("pages evicted", totals.num_evicted_pages as f64, ""),
        Metric::new("pages restored", summary.num_restored_pages as f64, ""),
        Metric::new("preemptions", summary.num_preemptions as f64, ""),
        Metric::new("tokens computed again", summary.num_recomputed_tokens as f64, ""),
        Metric::new("fabric stalls", totals.fabric_stall_us / 1e3, "ms"),
    ]);
    metrics
}
