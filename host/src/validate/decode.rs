//! One decode step: every request in the batch writes a token and attends over its pages.

use super::TokenRun;
use super::latency::modelled_us;
use super::plane::{DecodeBatch, SequenceView};
use super::replay::{End, Replay};
use super::report::ViolationKind;
use crate::kv::{PoolError, SequenceId};

impl Replay<'_> {
    /// One decode step: every request whose prompt is computed writes one token and attends.
    pub(super) fn decode(&mut self) -> Result<(), End> {
        self.recount_moved_pages()?;
        let batch: Vec<usize> =
            (0..self.active.len()).filter(|&i| self.active[i].decodes_at(self.now_us)).collect();
        if batch.is_empty() {
            return Ok(());
        }
        let mut tokens = Vec::with_capacity(batch.len());
        let mut stalled_us = 0.0;
        for &i in &batch {
            let (token, token_stalled_us) = self.decode_token(i)?;
            tokens.push(token);
            stalled_us += token_stalled_us;
        }
        self.plane.append(&tokens)?;
        self.tally.tokens_decoded += tokens.len() as u64;
        self.tally.steps += 1;

        // Waiting for a page may have completed a migration.
        self.recount_moved_pages()?;
        let mut pages = vec![0; self.tally.pages_read.len()];
        for &i in &batch {
            for (sum, pages) in pages.iter_mut().zip(&self.active[i].pages_by_rank) {
                *sum += pages;
            }
        }
        for (sum, pages) in self.tally.pages_read.iter_mut().zip(&pages) {
            *sum += pages;
        }
        let measured_us = self.attend(&batch)?;
        self.tally.latencies.record(
            measured_us.unwrap_or_else(|| modelled_us(self.plan, &pages)),
            stalled_us,
            measured_us.is_some(),
        );
        Ok(())
    }

    /// Places the next token of a request. Returns also the µs spent waiting for a page.
    fn decode_token(&mut self, active_idx: usize) -> Result<(TokenRun, f64), End> {
        let number = self.active[active_idx].number;
        let id = SequenceId(number as u64);
        let mut stalled_us = 0.0;
        let opened = loop {
            match self.pool.append(id, 1) {
                Err(PoolError::OutOfPages { .. }) => stalled_us += self.wait_for_a_migration()?,
                appended => break appended?,
            }
        };
        let sequence = self.pool.sequence(id)?;
        let last = *sequence.pages().last().expect("it holds a token");
        let position = sequence.num_tokens() - 1;
        let at = self.pool.location(last)?;
        if !opened.is_empty() {
            self.origins.set(last, number, opened.start);
            self.active[active_idx].pages_by_rank[at.rank as usize] += 1;
        }
        self.active[active_idx].decoded += 1;
        let tokens = self.tokens(number);
        let token = TokenRun {
            at,
            first_token_idx: position % self.plan.options.page_size,
            num_tokens: 1,
            source: tokens.source(position),
        };
        Ok((token, stalled_us))
    }

    /// Attends the sampled requests of the batch, or all of it where that is measured.
    fn attend(&mut self, batch: &[usize]) -> Result<Option<f64>, End> {
        let mut attended = Vec::new();
        let mut checked = Vec::new();
        let whole = self.plane.attends_whole_batches();
        for &i in batch {
            let check = self.outputs_sampler.next();
            if check {
                checked.push(attended.len());
            }
            if check || whole {
                attended.push(self.active[i].number);
            }
        }
        if attended.is_empty() {
            return Ok(None);
        }
        let ids: Vec<SequenceId> = attended.iter().map(|&n| SequenceId(n as u64)).collect();
        let table = self.pool.page_lists(&ids)?;
        let lease = self.pool.lease_reads();
        let mut sequences = Vec::with_capacity(ids.len());
        for (&number, &id) in attended.iter().zip(&ids) {
            sequences.push(SequenceView {
                tokens: self.tokens(number),
                num_tokens: self.pool.sequence(id)?.num_tokens(),
            });
        }
        let outcome = self.plane.attend(&DecodeBatch {
            step: self.tally.steps,
            table: &table,
            sequences: &sequences,
            checked: &checked,
        })?;
        self.pool.retire(lease)?;
        self.tally.checks.attention_outputs += checked.len() as u64;
        for wrong in outcome.wrong {
            let number = attended[wrong.batch_idx];
            self.violate(ViolationKind::Attention, format!("request {number}: {}", wrong.detail));
        }
        Ok(outcome.latency_us)
    }

    pub(super) fn count_pages(&self, id: SequenceId) -> Result<Vec<u64>, End> {
        let mut pages_by_rank = vec![0; self.tally.pages_read.len()];
        for &page in self.pool.sequence(id)?.pages() {
            pages_by_rank[self.pool.location(page)?.rank as usize] += 1;
        }
        Ok(pages_by_rank)
    }

    /// Counts again where pages lie, if any page in use has moved since.
    fn recount_moved_pages(&mut self) -> Result<(), End> {
        let moves = self.pool.stats().moved_in_use;
        if self.counted_moves != moves {
            self.counted_moves = moves;
            for i in 0..self.active.len() {
                let id = SequenceId(self.active[i].number as u64);
                self.active[i].pages_by_rank = self.count_pages(id)?;
            }
        }
        Ok(())
    }
}
