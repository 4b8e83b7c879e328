//! When what happened to a request, and the numbers that follow.

use serde::Serialize;

use super::request::{Answer, Ending};

/// One request's times, on the server's clock.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// It came.
    pub arrival_us: f64,
    /// Tokens of its prompt.
    pub num_prompt_tokens: usize,
    /// It joined a batch for the first time.
    pub started_us: Option<f64>,
    /// Each of its tokens.
    pub token_us: Vec<f64>,
    /// It ended.
    pub ended_us: f64,
    /// Prompt tokens that it found cached when it first started.
    pub num_cached_tokens: usize,
    /// Times it was preempted.
    pub num_preemptions: usize,
    /// Tokens that were computed again after it was preempted.
    pub num_recomputed_tokens: usize,
    /// Pages that came back from the host's memory for it.
    pub num_restored_pages: usize,
    /// Its next token waited for KV from another rank.
    pub stall_us: f64,
}

/// One request's numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RequestMetrics {
    /// Which request.
    pub id: u64,
    /// Tokens of its prompt.
    pub num_prompt_tokens: usize,
    /// Of these, tokens that it found cached.
    pub num_cached_tokens: usize,
    /// Tokens that it was given.
    pub num_new_tokens: usize,
    /// From arrival to its first batch.
    pub wait_us: Option<f64>,
    /// Time to first token: from arrival.
    pub ttft_us: Option<f64>,
    /// Time per output token: the mean over those after the first.
    pub tpot_us: Option<f64>,
    /// From arrival to its end.
    pub end_to_end_us: f64,
    /// Times it was preempted.
    pub num_preemptions: usize,
    /// Its next token waited for KV from another rank.
    pub stall_us: f64,
    /// How it ended.
    #[serde(flatten)]
    pub ending: Ending,
}

impl Timeline {
    /// From arrival to first token.
    pub fn ttft_us(&self) -> Option<f64> {
        self.token_us.first().map(|first_us| first_us - self.arrival_us)
    }

    /// Mean time of a token after the first.
    pub fn tpot_us(&self) -> Option<f64> {
        match self.token_us.as_slice() {
            [first_us, .., last_us] => {
                Some((last_us - first_us) / (self.token_us.len() - 1) as f64)
            }
            _ => None,
        }
    }

    /// Times between two tokens.
    pub fn gaps_us(&self) -> impl Iterator<Item = f64> {
        self.token_us.windows(2).map(|pair| pair[1] - pair[0])
    }

    /// Its numbers.
    pub fn metrics(&self, answer: &Answer) -> RequestMetrics {
        RequestMetrics {
            id: answer.id,
            num_prompt_tokens: self.num_prompt_tokens,
            num_cached_tokens: self.num_cached_tokens,
            num_new_tokens: answer.tokens.len(),
            wait_us: self.started_us.map(|started_us| started_us - self.arrival_us),
            ttft_us: self.ttft_us(),
            tpot_us: self.tpot_us(),
            end_to_end_us: self.ended_us - self.arrival_us,
            num_preemptions: self.num_preemptions,
            stall_us: self.stall_us,
            ending: answer.ending.clone(),
        }
    }
}
