//! How batches are made: plain data.

use serde::Serialize;

/// What a scheduler goes by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Policy {
    /// When requests join and leave.
    pub batching: Batching,
    /// Requests that run at the same time.
    pub num_slots: usize,
    /// What a request holds of the pool.
    pub reserve: Reserve,
    /// Whether requests with the same first tokens share their pages, also with ended ones.
    pub shares_prefixes: bool,
}

/// When requests join a batch and leave it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Batching {
    /// A batch is filled, its prompts are computed, it decodes until its last request ends, and
    /// only then comes the next one. Nobody is preempted: a batch is as large as fits to its end.
    Static,
    /// Requests join and leave at every step. Those that decode go first, and prompts fill what
    /// is left of the step's tokens, in chunks.
    Continuous {
        /// Tokens of a step: what bounds the time between two tokens of a request.
        num_max_tokens_per_step: usize,
        /// Whose prompt goes first.
        order: Order,
    },
}

/// Whose prompt goes first, among those of one priority.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Who came first.
    Arrival,
    /// Who must start first to see its first token in time. After these come those that are late
    /// anyway, in order of arrival; but who has waited for [`MOST_PATIENCE`] times the limit goes
    /// before all.
    FirstTokenDeadline {
        /// The limit, from arrival to first token.
        ttft_us: f64,
        /// What a prompt's token takes, about.
        prompt_token_us: f64,
    },
}

/// After so many times the limit of the first token, a late request is late enough.
pub const MOST_PATIENCE: f64 = 8.0;

/// What a request holds of the pool while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reserve {
    /// The pages that its tokens fill; when none is left, the youngest request is preempted.
    Pages,
    /// As many pages as the longest context has, from the start: what contiguous memory for each
    /// request comes to, whose length is not known.
    WholeContext,
}

/// A policy that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Nobody can run.
    #[error("num_slots: needs at least 1, got 0")]
    NoSlots,
    /// The engine takes fewer.
    #[error("num_slots: needs at most {limit}, which the engine takes, got {got}")]
    TooManySlots {
        /// Sequences of a step.
        limit: usize,
        /// Asked for.
        got: usize,
    },
    /// With all slots decoding, no prompt would ever be computed.
    #[error(
        "num_max_tokens_per_step: needs more than the {num_slots} slots, and at most the engine's {limit}, got {got}"
    )]
    Tokens {
        /// Slots of the policy.
        num_slots: usize,
        /// Tokens of a step of the engine.
        limit: usize,
        /// Asked for.
        got: usize,
    },
    /// Not one context fits.
    #[error("whole contexts: one needs {needed} pages, the pool has {limit}")]
    ContextTooLarge {
        /// Pages of a context.
        needed: usize,
        /// Pages for running requests.
        limit: usize,
    },
}

impl Policy {
    /// Batches that are filled, drained and refilled.
    pub const fn static_batches(num_slots: usize) -> Self {
        Self {
            batching: Batching::Static,
            num_slots,
            reserve: Reserve::Pages,
            shares_prefixes: false,
        }
    }

    /// Requests that join and leave at every step, in order of arrival, with shared prefixes.
    pub const fn continuous(num_slots: usize, num_max_tokens_per_step: usize) -> Self {
        Self {
            batching: Batching::Continuous { num_max_tokens_per_step, order: Order::Arrival },
            num_slots,
            reserve: Reserve::Pages,
            shares_prefixes: true,
        }
    }

    /// The same, with prompts in this order.
    #[must_use]
    pub const fn ordered(self, order: Order) -> Self {
        match self.batching {
            Batching::Static => self,
            Batching::Continuous { num_max_tokens_per_step, .. } => {
                Self { batching: Batching::Continuous { num_max_tokens_per_step, order }, ..self }
            }
        }
    }
}
