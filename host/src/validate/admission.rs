//! From the queue to the batch: sharing, making room, filling.

use super::replay::{Active, End, Replay};
use super::{RequestTokens, TokenRun};
use crate::kv::trace::PREFIX_BLOCK_TOKENS;
use crate::kv::{PageKey, PoolError, SequenceId, prefix_page_keys};

/// Decode steps that a request waits for its pages to come home.
const PATIENCE_STEPS: f64 = 16.0;

/// The request at the head of the queue, once it holds the cached pages of its prefix.
#[derive(Debug)]
pub(super) struct Head {
    keys: Vec<PageKey>,
    /// Leading pages it shares already.
    num_hits: usize,
    /// Pages of the prompt that have to be filled, when last counted.
    num_missing: usize,
}

impl Replay<'_> {
    /// Admits waiting requests in order, as long as pages can be had.
    pub(super) fn admit_waiting(&mut self) -> Result<(), End> {
        while let Some(&number) = self.queue.front() {
            if !self.open_head(number)? || !self.make_room_for_head()? {
                break;
            }
            if !self.admit_head(number)? {
                break;
            }
            self.queue.pop_front();
        }
        Ok(())
    }

    /// Pages that local memory still needs for the head of the queue.
    pub(super) fn pages_wanted_by_head(&self) -> u32 {
        self.head.as_ref().map_or(0, |head| head.num_missing as u32)
    }

    /// Lets the head of the queue share what is cached of its prefix, so that making room for
    /// the rest cannot evict it. False when it has to wait for other requests to end first.
    fn open_head(&mut self, number: usize) -> Result<bool, End> {
        if self.head.is_some() {
            return Ok(true);
        }
        let request = &self.plan.requests[number];
        let pages = self.plan.pages(request.total_tokens());
        // Without counting on shared pages: once admitted, a request never runs out.
        if self.committed_pages + pages > self.plan.budgets.total_pages() {
            return Ok(false);
        }
        let page_size = self.plan.options.page_size;
        let keys = prefix_page_keys(
            &request.hash_ids,
            request.input_length,
            PREFIX_BLOCK_TOKENS,
            page_size,
        );
        let hits = self.pool.open(SequenceId(number as u64), &keys)?;
        self.committed_pages += pages;
        let num_hits = hits.total() as usize;
        let num_missing = self.count_missing(number, &keys[num_hits..]);
        self.head = Some(Head { keys, num_hits, num_missing });
        Ok(true)
    }

    /// Pages of a prompt that have to be filled: those of `keys` that are cached nowhere, and its
    /// last one, if partial.
    fn count_missing(&self, number: usize, keys: &[PageKey]) -> usize {
        let input_length = self.plan.requests[number].input_length;
        let partial = !input_length.is_multiple_of(self.plan.options.page_size);
        self.pool.num_missing(keys) + usize::from(partial)
    }

    /// Evicts cached pages for the head of the queue. False while it should wait: for pages on
    /// their way out, or for another request to end. What local memory cannot take goes to peers,
    /// but to the host only when nobody else is left to wait for: its pages would be read from
    /// there in every step.
    fn make_room_for_head(&mut self) -> Result<bool, End> {
        let missing = self.pages_wanted_by_head();
        let wanted = missing + self.decode_reserve();
        if self.pool.num_free(0) >= wanted {
            return Ok(true);
        }
        self.plan_room(wanted)?;
        if self.pool.num_free(0) >= wanted {
            return Ok(true);
        }
        if self.pool.num_departing(0) > 0 {
            return Ok(false);
        }
        let num_ranks = self.plan.budgets.num_ranks;
        let free: u32 = (0..num_ranks).map(|rank| self.pool.num_free(rank)).sum();
        if free >= missing {
            return Ok(true);
        }
        let departing = (1..num_ranks).any(|rank| self.pool.num_departing(rank) > 0);
        let others_will_end = departing || !self.active.is_empty();
        Ok(!others_will_end && self.pool.num_available() >= u64::from(missing))
    }

    /// Gives the head of the queue its pages and fills them. False when that fails for want of
    /// pages after all: cached pages of its own were counted as room.
    fn admit_head(&mut self, number: usize) -> Result<bool, End> {
        let mut head = self.head.take().expect("opened before");
        let id = SequenceId(number as u64);
        let page_size = self.plan.options.page_size;
        let request = &self.plan.requests[number];
        let tail = request.input_length % page_size;
        let mut filled = match self.pool.extend(id, &head.keys[head.num_hits..]) {
            Ok(filled) => filled,
            Err(PoolError::OutOfPages { .. }) => {
                head.num_missing = self.count_missing(number, &head.keys[head.num_hits..]);
                self.head = Some(head);
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        };
        let tail_pages = loop {
            match self.pool.append(id, tail) {
                Err(PoolError::OutOfPages { .. }) => self.wait_for_a_migration()?,
                appended => break appended?,
            };
        };
        filled.extend(tail_pages);

        let tokens = RequestTokens { request, number: number as u64 };
        let pages = self.pool.sequence(id)?.pages();
        let mut runs = Vec::with_capacity(filled.len());
        let mut prefill_us = 0.0;
        for position in filled {
            let first = position as u32 * page_size;
            runs.push(TokenRun {
                at: self.pool.location(pages[position])?,
                first_token_idx: 0,
                num_tokens: page_size.min(request.input_length - first),
                source: tokens.source(first),
            });
            prefill_us += self.plan.costs.recompute_us(position as u32);
            self.origins.set(pages[position], number, position);
        }
        self.plane.fill(&runs)?;
        self.record_wait(number);
        self.active.push(Active {
            number,
            decoded: 0,
            ready_us: self.now_us + prefill_us,
            patient_until_us: self.now_us
                + prefill_us
                + PATIENCE_STEPS * self.plan.options.cadence_ms * 1e3,
            pages_by_rank: self.count_pages(id)?,
        });
        Ok(true)
    }

    fn record_wait(&mut self, number: usize) {
        // Requests are seen at the first step after they arrive: that is no wait.
        let waited_ms = (self.now_us - self.seen_us[number]) / 1e3;
        if waited_ms > 0.0 {
            self.tally.waits.requests += 1;
            self.tally.waits.mean_ms += waited_ms;
            self.tally.waits.max_ms = self.tally.waits.max_ms.max(waited_ms);
        }
    }
}
