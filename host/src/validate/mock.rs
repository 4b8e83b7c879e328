//! A plane of one number per token, for tests of the replay.

use std::collections::HashMap;

use super::{Attended, DataPlane, DecodeBatch, PlaneError, TokenRun, TokenSource, WrongOutput};
use crate::kv::{Budgets, Location, Migration, MigrationId, Move};

/// Memory of one word per token slot. Copies run when they are finished, the last moment allowed.
pub(super) struct MockPlane {
    page_size: usize,
    memory: Vec<Vec<u64>>,
    moving: HashMap<MigrationId, Vec<Move>>,
    whole_batches: bool,
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn content(source: TokenSource) -> u64 {
    mix(mix(source.owner).wrapping_add(source.token_idx))
}

fn checksum(tokens: impl Iterator<Item = u64>) -> u64 {
    (1..).zip(tokens).fold(0, |sum: u64, (place, token)| sum.wrapping_add(mix(token ^ mix(place))))
}

impl MockPlane {
    pub fn new(budgets: &Budgets, page_size: u32) -> Self {
        let tokens = |rank| budgets.capacity(rank) as usize * page_size as usize;
        Self {
            page_size: page_size as usize,
            memory: (0..budgets.num_locations()).map(|rank| vec![0; tokens(rank)]).collect(),
            moving: HashMap::new(),
            whole_batches: false,
        }
    }

    /// Attends whole batches, as a plane does that measures.
    pub fn whole_batches(mut self) -> Self {
        self.whole_batches = true;
        self
    }

    fn page(&mut self, rank: usize, slot: usize) -> &mut [u64] {
        let first = slot * self.page_size;
        &mut self.memory[rank][first..first + self.page_size]
    }

    fn at(&mut self, at: Location) -> &mut [u64] {
        self.page(at.rank as usize, at.slot as usize)
    }
}

impl DataPlane for MockPlane {
    fn fill(&mut self, runs: &[TokenRun]) -> Result<(), PlaneError> {
        for run in runs {
            let first = run.first_token_idx as usize;
            let tokens = &mut self.at(run.at)[first..first + run.num_tokens as usize];
            for (token_idx, token) in (run.source.token_idx..).zip(tokens) {
                *token = content(TokenSource { token_idx, ..run.source });
            }
        }
        Ok(())
    }

    fn append(&mut self, tokens: &[TokenRun]) -> Result<(), PlaneError> {
        self.fill(tokens)
    }

    fn start_moves(&mut self, migration: &Migration) -> Result<(), PlaneError> {
        self.moving.insert(migration.id, migration.moves.clone());
        Ok(())
    }

    fn finish_moves(&mut self, migration: MigrationId) -> Result<Option<f64>, PlaneError> {
        for Move { from, to, .. } in self.moving.remove(&migration).ok_or("unknown migration")? {
            let page = self.at(from).to_vec();
            self.at(to).copy_from_slice(&page);
        }
        Ok(None)
    }

    fn checksums(&mut self, pages: &[Location]) -> Result<Vec<u64>, PlaneError> {
        let sum = |&at: &Location| checksum(self.at(at).iter().copied());
        Ok(pages.iter().map(sum).collect())
    }

    fn expected_checksum(&self, tokens: &[TokenSource]) -> u64 {
        checksum(tokens.iter().map(|&source| content(source)))
    }

    fn attends_whole_batches(&self) -> bool {
        self.whole_batches
    }

    fn attend(&mut self, batch: &DecodeBatch<'_>) -> Result<Attended, PlaneError> {
        let table = batch.table;
        let mut attended = Attended::default();
        for &batch_idx in batch.checked {
            let sequence = &batch.sequences[batch_idx];
            let query = mix(batch.step ^ mix(sequence.tokens.number));
            // A sum over tokens in any order, as attention is.
            let score = |token: u64| mix(token ^ query);
            let (first, end) = (table.kv_indptr[batch_idx], table.kv_indptr[batch_idx + 1]);
            let mut sum = 0u64;
            for entry in first..end {
                let (rank, slot) =
                    (table.kv_page_rank[entry as usize], table.kv_indices[entry as usize]);
                let len = if entry + 1 == end {
                    table.kv_last_page_len[batch_idx] as usize
                } else {
                    self.page_size
                };
                for &token in &self.page(rank as usize, slot as usize)[..len] {
                    sum = sum.wrapping_add(score(token));
                }
            }
            let expected = (0..sequence.num_tokens)
                .map(|position| score(content(sequence.tokens.source(position))))
                .fold(0, u64::wrapping_add);
            if sum != expected {
                attended.wrong.push(WrongOutput {
                    batch_idx,
                    detail: format!("{sum:#x} instead of {expected:#x}"),
                });
            }
        }
        Ok(attended)
    }
}
