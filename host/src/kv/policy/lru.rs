//! Least recently used.

use super::ranked::RankedPages;
use super::{EvictionPolicy, PageFacts, PromotionCase};
use crate::kv::PageId;

/// Evicts the page whose last use is longest ago, and promotes every page in use: it was just
/// used, so whatever it displaces is colder.
#[derive(Debug, Default)]
pub struct Lru {
    pages: RankedPages,
}

impl EvictionPolicy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn insert(&mut self, rank: u32, facts: &PageFacts) {
        self.pages.insert(rank, facts.page, 0, facts.last_use);
    }

    fn remove(&mut self, rank: u32, page: PageId) {
        self.pages.remove(rank, page);
    }

    fn coldest(&self, rank: u32) -> Option<PageId> {
        self.pages.coldest(rank).map(|(_, _, page)| page)
    }

    fn displaces(&self, rank: u32, incoming: &PageFacts) -> bool {
        self.pages.coldest(rank).is_some_and(|(_, last_use, _)| incoming.last_use > last_use)
    }

    fn promotes(&self, _case: &PromotionCase) -> bool {
        true
    }

    fn num_evictable(&self, rank: u32) -> usize {
        self.pages.len(rank)
    }
}
