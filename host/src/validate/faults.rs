//! Planes and policies that are wrong in one way, to see it caught.

use gpu_kernels::paged_attention::contract::PageLists;

use super::{Attended, DataPlane, DecodeBatch, Plan, PlaneError, TokenRun, TokenSource};
use crate::kv::policy::{EvictionPolicy, Lru, PageFacts, PromotionCase};
use crate::kv::{Budgets, Location, Migration, MigrationId, PageId};

/// What a [`FaultyPlane`] does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// One page of each migration of several is not copied.
    DroppedCopy,
    /// The first two copies of each migration go to each other's destinations.
    SwappedCopies,
    /// The last page index of each sequence is one too large.
    PageIndexOffByOne,
    /// The last page of each sequence counts one token too many or too few.
    LastPageLenOffByOne,
    /// A decoded token is written to the next place of its page.
    AppendOffByOne,
}

/// Another plane with a fault planted.
pub(super) struct FaultyPlane<P> {
    inner: P,
    fault: Fault,
    budgets: Budgets,
    page_size: u32,
}

impl<P> FaultyPlane<P> {
    pub fn new(inner: P, fault: Fault, plan: &Plan) -> Self {
        Self { inner, fault, budgets: plan.budgets, page_size: plan.options.page_size }
    }

    fn broken_table(&self, table: &PageLists) -> PageLists {
        let mut table = table.clone();
        for batch_idx in 0..table.kv_last_page_len.len() {
            let last = table.kv_indptr[batch_idx + 1] as usize - 1;
            match self.fault {
                Fault::PageIndexOffByOne => {
                    // It still has to lie inside.
                    let capacity = self.budgets.capacity(table.kv_page_rank[last] as u32) as i32;
                    table.kv_indices[last] = (table.kv_indices[last] + 1) % capacity;
                }
                Fault::LastPageLenOffByOne => {
                    let len = &mut table.kv_last_page_len[batch_idx];
                    *len += if *len == 1 { 1 } else { -1 };
                }
                _ => {}
            }
        }
        table
    }
}

impl<P: DataPlane> DataPlane for FaultyPlane<P> {
    fn fill(&mut self, runs: &[TokenRun]) -> Result<(), PlaneError> {
        self.inner.fill(runs)
    }

    fn append(&mut self, tokens: &[TokenRun]) -> Result<(), PlaneError> {
        let mut tokens = tokens.to_vec();
        if self.fault == Fault::AppendOffByOne {
            for token in &mut tokens {
                token.first_token_idx = (token.first_token_idx + 1) % self.page_size;
            }
        }
        self.inner.append(&tokens)
    }

    fn start_moves(&mut self, migration: &Migration) -> Result<(), PlaneError> {
        let mut migration = migration.clone();
        match (self.fault, &mut migration.moves[..]) {
            (Fault::DroppedCopy, [_, _, ..]) => drop(migration.moves.pop()),
            (Fault::SwappedCopies, [first, second, ..]) => {
                std::mem::swap(&mut first.to, &mut second.to);
            }
            _ => {}
        }
        self.inner.start_moves(&migration)
    }

    fn finish_moves(&mut self, migration: MigrationId) -> Result<Option<f64>, PlaneError> {
        self.inner.finish_moves(migration)
    }

    fn checksums(&mut self, pages: &[Location]) -> Result<Vec<u64>, PlaneError> {
        self.inner.checksums(pages)
    }

    fn expected_checksum(&self, tokens: &[TokenSource]) -> u64 {
        self.inner.expected_checksum(tokens)
    }

    fn attends_whole_batches(&self) -> bool {
        self.inner.attends_whole_batches()
    }

    fn attend(&mut self, batch: &DecodeBatch<'_>) -> Result<Attended, PlaneError> {
        let table = self.broken_table(batch.table);
        self.inner.attend(&DecodeBatch { table: &table, ..*batch })
    }
}

/// What a [`BrokenPolicy`] does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misrule {
    /// Evicts the page that was shared last.
    EvictsPagesInUse,
    /// Leaves every page where it is read.
    NeverPromotes,
}

/// LRU but for one misrule.
pub(super) struct BrokenPolicy {
    lru: Lru,
    misrule: Misrule,
    last_shared: Option<PageId>,
}

impl BrokenPolicy {
    pub fn new(misrule: Misrule) -> Box<Self> {
        Box::new(Self { lru: Lru::default(), misrule, last_shared: None })
    }
}

impl EvictionPolicy for BrokenPolicy {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn insert(&mut self, rank: u32, facts: &PageFacts) {
        self.lru.insert(rank, facts);
    }

    fn remove(&mut self, rank: u32, page: PageId) {
        self.last_shared = Some(page);
        self.lru.remove(rank, page);
    }

    fn coldest(&self, rank: u32) -> Option<PageId> {
        match self.misrule {
            Misrule::EvictsPagesInUse => self.last_shared.or(self.lru.coldest(rank)),
            Misrule::NeverPromotes => self.lru.coldest(rank),
        }
    }

    fn evicted(&mut self, rank: u32, page: PageId) {
        self.lru.evicted(rank, page);
    }

    fn displaces(&self, rank: u32, incoming: &PageFacts) -> bool {
        self.lru.displaces(rank, incoming)
    }

    fn promotes(&self, case: &PromotionCase) -> bool {
        self.misrule != Misrule::NeverPromotes && self.lru.promotes(case)
    }

    fn num_evictable(&self, rank: u32) -> usize {
        self.lru.num_evictable(rank)
    }
}
