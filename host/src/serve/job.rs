//! A request under way.

use std::cmp::Ordering;

use super::pages::page_key;
use super::request::{Ending, Request, RequestId};
use crate::kv::PageKey;

/// A request, its tokens so far, and how many of them are computed.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub request: Request,
    /// The prompt, then what it was given.
    pub tokens: Vec<u32>,
    /// Of these, the ones whose KV is in its pages.
    pub num_computed: usize,
    /// Of its pages, the ones whose contents the pool knows.
    pub num_published: usize,
    /// It has run before, and was preempted.
    pub is_preempted: bool,
    /// Of its full pages.
    keys: Vec<PageKey>,
}

impl Job {
    pub fn new(request: Request) -> Self {
        Self {
            tokens: request.prompt.clone(),
            request,
            num_computed: 0,
            num_published: 0,
            is_preempted: false,
            keys: Vec::new(),
        }
    }

    pub fn id(&self) -> RequestId {
        self.request.id
    }

    /// Tokens that are to be computed before it is given the next one.
    pub fn num_left(&self) -> usize {
        self.tokens.len() - self.num_computed
    }

    /// It is given a token by every step.
    pub fn is_decoding(&self) -> bool {
        self.num_left() == 1 && self.tokens.len() > self.request.prompt.len()
    }

    /// The tokens that it was given.
    pub fn new_tokens(&self) -> &[u32] {
        &self.tokens[self.request.prompt.len()..]
    }

    /// What its first full pages contain, up to `num_tokens`.
    pub fn keys(&mut self, num_tokens: usize, page_size: usize) -> &[PageKey] {
        let num_pages = num_tokens / page_size;
        for page in self.keys.len()..num_pages {
            let tokens = &self.tokens[page * page_size..(page + 1) * page_size];
            self.keys.push(page_key(self.keys.last().copied(), tokens));
        }
        &self.keys[..num_pages]
    }

    /// Whether it has all that it asked for.
    pub fn ending(&self) -> Option<Ending> {
        let new = self.new_tokens();
        if !new.is_empty() && new.last().copied() == self.request.stop_token {
            return Some(Ending::StopToken);
        }
        (new.len() >= self.request.num_max_new_tokens).then_some(Ending::Length)
    }

    /// Who is preempted last comes first: the greatest priority, then who arrived first.
    pub fn seniority(&self, other: &Self) -> Ordering {
        let (ours, theirs) = (&self.request, &other.request);
        (theirs.priority.cmp(&ours.priority))
            .then(ours.arrival_us.total_cmp(&theirs.arrival_us))
            .then(ours.id.cmp(&theirs.id))
    }
}
