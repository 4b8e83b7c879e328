//! Refusing steps that an engine cannot run, before anything is done.

use std::collections::{HashMap, HashSet};

use gpu_kernels::kv_layout::KvPagePlace;

use super::engine::{EngineError, EngineLimits, Step, StepSequence};

/// Refuses a step that exceeds the limits, names a token that is none, or pages that are not there,
/// are not as many as needed, or are written by two requests.
pub(super) fn check(
    step: &Step,
    limits: &EngineLimits,
    vocab_size: u32,
    pool_pages: &[usize],
) -> Result<(), EngineError> {
    let of_step = |argument, needed: usize, got: usize| EngineError::Step {
        argument,
        needed: format!("at most {needed}"),
        got: got.to_string(),
    };
    let num_sequences = step.sequences.len();
    if num_sequences > limits.num_max_sequences {
        return Err(of_step("sequences", limits.num_max_sequences, num_sequences));
    }
    let num_tokens = step.sequences.iter().map(|sequence| sequence.tokens.len()).sum();
    if num_tokens > limits.num_max_tokens_per_step {
        return Err(of_step("tokens", limits.num_max_tokens_per_step, num_tokens));
    }
    let mut requests = HashSet::new();
    let mut written_by = HashMap::new();
    for sequence in &step.sequences {
        check_sequence(sequence, limits, vocab_size, pool_pages)?;
        if !requests.insert(sequence.request) {
            return Err(refused(sequence, "request", "to be once in a step", "another"));
        }
        for &page in &sequence.pages[sequence.num_cached_tokens / limits.page_size..] {
            if let Some(other) = written_by.insert(page, sequence.request) {
                let got = format!("{page}, as {other}");
                return Err(refused(sequence, "pages", "pages of its own for new tokens", got));
            }
        }
    }
    Ok(())
}

fn check_sequence(
    sequence: &StepSequence,
    limits: &EngineLimits,
    vocab_size: u32,
    pool_pages: &[usize],
) -> Result<(), EngineError> {
    if sequence.tokens.is_empty() {
        return Err(refused(sequence, "tokens", "at least 1", 0));
    }
    if let Some(token) = sequence.tokens.iter().find(|&&token| token >= vocab_size) {
        return Err(refused(sequence, "tokens", format!("tokens below {vocab_size}"), token));
    }
    let num_after = sequence.num_tokens_after();
    if num_after > limits.num_max_context {
        let needed = format!("at most {} with those before", limits.num_max_context);
        return Err(refused(sequence, "tokens", needed, num_after));
    }
    let num_pages = num_after.div_ceil(limits.page_size);
    if sequence.pages.len() != num_pages {
        let needed = format!("{num_pages} for {num_after} tokens");
        return Err(refused(sequence, "pages", needed, sequence.pages.len()));
    }
    for &page in &sequence.pages {
        if !KvPagePlace::from(page).lies_in(pool_pages) {
            let needed = format!("slots of {pool_pages:?} pages, by rank");
            return Err(refused(sequence, "pages", needed, page));
        }
    }
    match sequence.sampling.as_ref().map_or(Ok(()), super::engine::Sampling::check) {
        Ok(()) => Ok(()),
        Err(problem) => Err(refused(sequence, "sampling", "values that choose a token", problem)),
    }
}

fn refused(
    sequence: &StepSequence,
    argument: &'static str,
    needed: impl ToString,
    got: impl ToString,
) -> EngineError {
    EngineError::Request {
        request: sequence.request,
        argument,
        needed: needed.to_string(),
        got: got.to_string(),
    }
}
