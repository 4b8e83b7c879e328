//! Evictable pages in order of worth, per memory.

use std::collections::BTreeSet;

use crate::kv::PageId;

/// Worth first, then recency: the smallest goes first.
type Rank = (u64, u64, PageId);

#[derive(Debug, Default)]
pub(super) struct RankedPages {
    by_memory: Vec<BTreeSet<Rank>>,
    /// By page index: worth and recency under which the page stands in its memory's set.
    keys: Vec<Option<(u64, u64)>>,
}

impl RankedPages {
    pub fn insert(&mut self, rank: u32, page: PageId, worth: u64, last_use: u64) {
        let memory = rank as usize;
        if self.by_memory.len() <= memory {
            self.by_memory.resize_with(memory + 1, BTreeSet::new);
        }
        if self.keys.len() <= page.index() {
            self.keys.resize(page.index() + 1, None);
        }
        self.keys[page.index()] = Some((worth, last_use));
        self.by_memory[memory].insert((worth, last_use, page));
    }

    /// The worth it stood under.
    pub fn remove(&mut self, rank: u32, page: PageId) -> Option<u64> {
        let (worth, last_use) = self.keys.get_mut(page.index())?.take()?;
        self.by_memory[rank as usize].remove(&(worth, last_use, page));
        Some(worth)
    }

    /// Worth, recency and page of the coldest.
    pub fn coldest(&self, rank: u32) -> Option<Rank> {
        self.by_memory.get(rank as usize)?.first().copied()
    }

    pub fn len(&self, rank: u32) -> usize {
        self.by_memory.get(rank as usize).map_or(0, BTreeSet::len)
    }
}
