//! A request that has an engine to itself: what all schedules are compared with.

use super::request::Request;
use crate::kv::Location;
use crate::model::engine::{Engine, EngineError, Step, StepSequence};

/// The tokens that a request gets alone: its prompt at once, or in parts as long as a step takes,
/// and then token by token, in pages in order from the first on. No scheduler, no pool.
///
/// # Errors
/// What the engine says: also that the request does not fit.
pub fn alone(engine: &mut dyn Engine, request: &Request) -> Result<Vec<u32>, EngineError> {
    let limits = engine.limits();
    let (mut tokens, mut num_cached) = (request.prompt.clone(), 0);
    loop {
        let num_new = (tokens.len() - num_cached).min(limits.num_max_tokens_per_step);
        let after = num_cached + num_new;
        let slots = 0..after.div_ceil(limits.page_size) as u32;
        let sequence = StepSequence {
            request: request.id,
            tokens: tokens[num_cached..after].to_vec(),
            num_cached_tokens: num_cached,
            pages: slots.map(|slot| Location { rank: 0, slot }).collect(),
            sampling: (after == tokens.len()).then_some(request.sampling),
        };
        let sampled = engine.step(&Step { sequences: vec![sequence] })?;
        num_cached = after;
        tokens.extend(sampled.iter().map(|sampled| sampled.token));
        let answer = &tokens[request.prompt.len()..];
        let is_stopped = !answer.is_empty() && answer.last().copied() == request.stop_token;
        if is_stopped || answer.len() >= request.num_max_new_tokens {
            return Ok(answer.to_vec());
        }
    }
}
