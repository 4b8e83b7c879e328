//! Requests to serve: drawn from a seed, or those of a trace.

use std::io::BufRead;

use fastrand::Rng;
use serde::Serialize;

use super::request::Request;
use crate::kv::trace::{PREFIX_BLOCK_TOKENS, TraceError, TraceReader, TraceRequest};

/// Lengths whose logarithms are normal: many short ones, a few long ones.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LogNormal {
    /// Half of them are below.
    pub median: f64,
    /// Of the natural logarithm; 0 for all the same.
    pub sigma: f64,
    /// None is longer.
    pub max: usize,
}

impl LogNormal {
    /// All of this length.
    pub const fn exactly(len: usize) -> Self {
        Self { median: len as f64, sigma: 0.0, max: len }
    }

    fn draw(&self, rng: &mut Rng) -> usize {
        // Box and Muller.
        let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * rng.f64()).cos();
        let len = (self.median * (self.sigma * normal).exp()).round() as usize;
        len.clamp(1, self.max.max(1))
    }
}

/// Requests that arrive independently of each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PoissonLoad {
    /// Equal seeds give equal requests.
    pub seed: u64,
    /// Requests.
    pub num_requests: usize,
    /// Requests a second, in the mean; without it all are there from the start.
    pub rate_per_s: Option<f64>,
    /// Tokens of a prompt.
    pub prompt: LogNormal,
    /// New tokens of a request.
    pub output: LogNormal,
    /// Prompts begin as one of so many others do, at least 1.
    pub num_families: usize,
    /// Tokens that prompts of a family begin with, as a system's prompt; counted in the prompt.
    pub num_shared_tokens: usize,
    /// Tokens are below it.
    pub vocab_size: u32,
}

impl PoissonLoad {
    /// Requests that are all there from the start, and have nothing in common; of seed 0.
    pub const fn at_once(
        num_requests: usize,
        prompt: LogNormal,
        output: LogNormal,
        vocab_size: u32,
    ) -> Self {
        Self {
            seed: 0,
            num_requests,
            rate_per_s: None,
            prompt,
            output,
            num_families: 1,
            num_shared_tokens: 0,
            vocab_size,
        }
    }

    /// The requests, in order of arrival. All of them are decoded greedily.
    pub fn requests(&self) -> Vec<Request> {
        let mut rng = Rng::with_seed(self.seed);
        let token = |rng: &mut Rng| rng.u32(..self.vocab_size);
        let shared: Vec<Vec<u32>> = (0..self.num_families.max(1))
            .map(|_| (0..self.num_shared_tokens).map(|_| token(&mut rng)).collect())
            .collect();
        let mut arrival_us = 0.0;
        let request = |id| {
            let shared = &shared[rng.usize(..shared.len())];
            let num_own = self.prompt.draw(&mut rng).saturating_sub(shared.len()).max(1);
            let own = (0..num_own).map(|_| token(&mut rng));
            let prompt = shared.iter().copied().chain(own).collect();
            let request =
                Request { arrival_us, ..Request::new(id, prompt, self.output.draw(&mut rng)) };
            if let Some(rate_per_s) = self.rate_per_s {
                arrival_us += -(1.0 - rng.f64()).ln() / rate_per_s * 1e6;
            }
            request
        };
        (0..self.num_requests as u64).map(request).collect()
    }
}

/// How a trace is served.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TraceLoad {
    /// Requests arrive this many times faster than the trace says.
    pub speed: f64,
    /// Lengths are divided by this, rounded up: to serve a trace of large machines on small ones.
    pub shrink: usize,
    /// No more than this many.
    pub num_max_requests: usize,
    /// Tokens are below it.
    pub vocab_size: u32,
}

impl TraceLoad {
    /// The requests of a trace in the [Mooncake format](crate::kv::trace). A trace says which
    /// prompts begin alike, not what stands in them: tokens are drawn from the ids of its prefix
    /// blocks, so that they begin alike just so far.
    ///
    /// # Errors
    /// The line that is no request, and why.
    pub fn requests(&self, trace: impl BufRead) -> Result<Vec<Request>, TraceError> {
        let requests = TraceReader::new(trace).take(self.num_max_requests).enumerate();
        requests.map(|(id, request)| Ok(self.request(id as u64, &request?))).collect()
    }

    /// One request of a trace.
    pub fn request(&self, id: u64, request: &TraceRequest) -> Request {
        let block_tokens = (PREFIX_BLOCK_TOKENS as usize).div_ceil(self.shrink);
        let num_tokens = (request.input_length as usize).div_ceil(self.shrink);
        let blocks = request.hash_ids.iter().flat_map(|&block| {
            let mut rng = Rng::with_seed(block);
            (0..block_tokens).map(move |_| rng.u32(..self.vocab_size))
        });
        let prompt = blocks.take(num_tokens).collect();
        let num_new_tokens = (request.output_length as usize).div_ceil(self.shrink);
        let arrival_us = request.timestamp_ms as f64 * 1e3 / self.speed;
        Request { arrival_us, ..Request::new(id, prompt, num_new_tokens) }
    }
}
