//! Schedules on the simulated engine, whose tokens tell whether its pages were right.

mod decisions;
mod disagg;
mod engine;
mod faults;
mod loads;
mod numbers;
mod random;

use super::*;
use crate::model::engine::{Engine, RequestId, Step, StepSequence};

/// A model whose steps cost nothing to compute and some µs of virtual time.
pub(super) const SMALL: SimulatedModel = SimulatedModel {
    num_layers: 2,
    vocab_size: 40,
    page_size: 4,
    layer_token_bytes: 8,
    num_max_context: 96,
    num_max_sequences: 8,
    num_max_tokens_per_step: 64,
    costs: SimulatedCosts {
        weight_bytes: 4.5e8,
        flops_per_token: 6e9,
        flops_per_pair: 0.0,
        tflops: 600.0,
        rates: crate::kv::Rates {
            hbm_gb_s: 4500.0,
            nvlink_gb_s: 375.0,
            pcie_gb_s: 50.0,
            launch_us: 10.0,
            prefill_tokens_s: 20_000.0,
            prefill_doubles_at_tokens: 32_768.0,
        },
    },
};

/// A prompt of so many tokens, the same for the same seed.
pub(super) fn prompt(seed: u64, num_tokens: usize) -> Vec<u32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..num_tokens).map(|_| rng.u32(..SMALL.vocab_size)).collect()
}

/// The tokens of a request that has an engine of its own, and no scheduler.
pub(super) fn alone(request: &Request) -> Vec<u32> {
    let num_pages = request.num_max_context().div_ceil(SMALL.page_size);
    let mut engine = SimulatedEngine::new(SMALL, &[num_pages, 1], Clock::simulated());
    super::alone(&mut engine, request).unwrap()
}

/// Serves requests with so many pages here and in the host's memory, and returns what each step's
/// plan said too. Nothing may be held when all have ended.
pub(super) fn serve(
    policy: Policy,
    num_pages: [usize; 2],
    requests: &[Request],
) -> (Served, String) {
    let clock = Clock::simulated();
    let mut engine = SimulatedEngine::new(SMALL, &num_pages, clock.clone());
    let mut server = Server::new(&mut engine, policy, clock).unwrap();
    let (mut said, mut num_steps) = (String::new(), 0);
    // Even one after the other, token by token, and each preempted by every other.
    let num_tokens: usize = requests.iter().map(Request::num_max_context).sum();
    let most_steps = (num_tokens + 1) * (requests.len() + 1);
    let served = server
        .serve_watched(requests.to_vec(), &mut |now_us, plan| {
            assert!(!plan.is_empty(), "a step of nobody");
            num_steps += 1;
            assert!(num_steps <= most_steps, "it does not come to an end");
            said += &format!("at {now_us:.0} µs\n{plan}");
        })
        .unwrap();
    assert_nothing_held(server.scheduler(), num_pages[0]);
    (served, said)
}

pub(super) fn assert_nothing_held(scheduler: &Scheduler, num_local: usize) {
    let pool = scheduler.pool();
    pool.check_invariants().unwrap();
    assert_eq!(pool.num_sequences(), 0);
    assert_eq!((pool.num_free(0) + pool.num_evictable(0)) as usize, num_local);
}

pub(super) fn tokens_of(served: &Served, id: u64) -> &[u32] {
    let answer = served.requests.iter().find(|(answer, _)| answer.id == id);
    &answer.expect("it has an answer").0.tokens
}

pub(super) fn ending_of(served: &Served, id: u64) -> &Ending {
    let answer = served.requests.iter().find(|(answer, _)| answer.id == id);
    &answer.expect("it has an answer").0.ending
}
