//! What a scheduler decides for a step: data, to be printed, compared and carried out.

use std::fmt;

use serde::Serialize;

use super::pages::Copies;
use super::request::RequestId;
use crate::model::engine::PageCopy;

/// One step, in the order in which it is carried out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepPlan {
    /// Who had to leave.
    pub preempted: Vec<Preemption>,
    /// Who joined.
    pub admitted: Vec<Admission>,
    /// Pages copied between memories before the step: one list after the other.
    pub copies: Vec<Vec<PageCopy>>,
    /// What the engine computes.
    pub feeds: Vec<Feed>,
    /// Who still waits.
    pub num_waiting: usize,
}

/// A request that left the batch, and starts again from what stays cached of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Preemption {
    /// Which.
    pub request: RequestNumber,
    /// Pages that it held.
    pub num_pages: usize,
}

/// A request that joined the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Admission {
    /// Which.
    pub request: RequestNumber,
    /// Tokens that it has: its prompt, and what it was given before it was preempted.
    pub num_tokens: usize,
    /// Of these, tokens that are not computed again: their pages were cached.
    pub num_cached_tokens: usize,
    /// Of those pages, the ones that had to be copied back from the host's memory.
    pub num_restored_pages: usize,
    /// It was preempted before.
    pub is_again: bool,
}

/// Tokens of a request that a step computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Feed {
    /// Whose.
    pub request: RequestNumber,
    /// Tokens before them.
    pub num_cached_tokens: usize,
    /// Tokens.
    pub num_tokens: usize,
    /// They are its last, so that it is given the next one.
    pub samples: bool,
}

/// A request's id, as data.
pub type RequestNumber = u64;

impl StepPlan {
    /// Nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.feeds.is_empty()
    }

    /// Tokens that the step computes.
    pub fn num_tokens(&self) -> usize {
        self.feeds.iter().map(|feed| feed.num_tokens).sum()
    }

    /// Whether a prompt, or a part of one, is in it.
    pub fn has_prompts(&self) -> bool {
        self.feeds.iter().any(|feed| feed.num_tokens > 1 || !feed.samples)
    }

    /// Takes a request's part out of the step. Returns the tokens of that part.
    pub(super) fn withdraw(&mut self, request: RequestId) -> usize {
        let part = self.feeds.iter().position(|feed| feed.request == request.0);
        part.map_or(0, |part| self.feeds.remove(part).num_tokens)
    }

    pub(super) fn copies(&mut self) -> &mut Copies {
        &mut self.copies
    }
}

impl fmt::Display for StepPlan {
    /// A line for each decision.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Preemption { request, num_pages } in &self.preempted {
            writeln!(f, "preempt {request}: {num_pages} pages")?;
        }
        for admission in &self.admitted {
            let Admission { request, num_tokens, num_cached_tokens, .. } = admission;
            let again = if admission.is_again { " again" } else { "" };
            write!(f, "admit {request}{again}: {num_cached_tokens} of {num_tokens} tokens cached")?;
            match admission.num_restored_pages {
                0 => writeln!(f)?,
                restored => writeln!(f, ", {restored} pages restored")?,
            }
        }
        for copies in &self.copies {
            let pages = copies
                .iter()
                .map(|PageCopy { source, destination }| format!("{source} to {destination}"));
            writeln!(f, "copy {}", pages.collect::<Vec<_>>().join(", "))?;
        }
        for Feed { request, num_cached_tokens, num_tokens, samples } in &self.feeds {
            let samples = if *samples { ", samples" } else { "" };
            writeln!(f, "feed {request}: {num_tokens} after {num_cached_tokens}{samples}")?;
        }
        match self.num_waiting {
            0 => Ok(()),
            waiting => writeln!(f, "waiting: {waiting}"),
        }
    }
}
