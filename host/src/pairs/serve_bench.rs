//! Two policies on one engine, under one load.

use std::cell::RefCell;

use anyhow::Result;
use serde::Serialize;

use super::serving_bench::{Call, ServingBench, TwoWays};
use super::serving_model::{Oracle, ServingModel};
use crate::device::Device;
use crate::harness::results::Phase;
use crate::harness::{Shape, Variant};
use crate::model::{DeviceEngine, EngineTimes};
use crate::serve::load::PoissonLoad;
use crate::serve::{Clock, Policy, Request, Served, Server};

/// What is served, by which policies.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct ServeCase {
    /// The engine's.
    pub model: ServingModel,
    /// Requests; the seed is the run's.
    pub load: PoissonLoad,
    /// How the baseline makes batches.
    pub baseline: Policy,
    /// How the optimized side does.
    pub optimized: Policy,
}

impl ServeCase {
    /// A shape of one GPU.
    pub fn shape(self, name: String) -> Shape {
        Shape::new(name, 1, move |devices, seed| self.prepare(&devices[0], seed)).sizes(&self)
    }

    fn prepare(self, device: &Device, seed: u64) -> Result<ServingBench<Policies>> {
        let requests = PoissonLoad { seed, ..self.load }.requests();
        let mut engine = self.model.engine(device, seed)?;
        let oracle = Oracle::new(&mut engine, &requests)?;
        ServingBench::new(Policies { case: self, engine: engine.into() }, requests, oracle)
    }
}

/// A call takes the time from the first arrival to the last token.
struct Policies {
    case: ServeCase,
    engine: RefCell<DeviceEngine>,
}

impl TwoWays for Policies {
    /// Where the time of the steps went.
    type Told = EngineTimes;

    fn model(&self) -> &ServingModel {
        &self.case.model
    }

    fn serve(&self, variant: Variant, requests: Vec<Request>) -> Result<(Served, EngineTimes)> {
        let policy = match variant {
            Variant::Baseline => self.case.baseline,
            Variant::Optimized => self.case.optimized,
        };
        let mut engine = self.engine.borrow_mut();
        engine.take_times();
        let served = Server::new(&mut *engine, policy, Clock::wall())?.serve(requests)?;
        Ok((served, engine.take_times()))
    }

    fn us(&self, call: &Call<EngineTimes>) -> Result<f64> {
        Ok(call.summary.duration_us)
    }

    /// Steps by their kinds, on the device and around it, and no step.
    fn phases(&self, call: &Call<EngineTimes>) -> Vec<Phase> {
        let EngineTimes { decode, prompts } = call.told;
        let parts = [
            ("decode steps, on the device", decode.device_us),
            ("decode steps, around that", decode.us - decode.device_us),
            ("steps with prompts, on the device", prompts.device_us),
            ("steps with prompts, around that", prompts.us - prompts.device_us),
            ("between steps", call.summary.duration_us - decode.us - prompts.us),
        ];
        parts.map(|(name, us)| Phase { name: name.to_owned(), us }).into()
    }
}
