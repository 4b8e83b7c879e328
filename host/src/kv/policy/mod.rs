//! Which page goes, which page comes back: decisions behind one trait.
//!
//! A policy only ranks. Whether a page *may* be touched is the pool's business: it tells the
//! policy which pages are evictable, and checks each choice again before it acts on it.

mod cost_aware;
mod lru;
mod ranked;

#[cfg(test)]
mod tests;

pub use cost_aware::CostAware;
pub use lru::Lru;

use super::{PageId, Tier};

/// What a policy may know of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFacts {
    /// The page.
    pub page: PageId,
    /// Times it was filled or shared.
    pub frequency: u32,
    /// Pool tick of its last use; larger is later.
    pub last_use: u64,
    /// Sequences that hold it.
    pub refs: u32,
    /// Index of the page in its prompt.
    pub position: u32,
}

/// A referenced page that is read where it lies, and could lie nearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromotionCase {
    /// The page.
    pub facts: PageFacts,
    /// Where it lies.
    pub from: Tier,
    /// Where it would go: local memory, or a peer while that is full of pages in use.
    pub to: Tier,
    /// The cached page that has to leave for it; `None` when a slot is free.
    pub displaced: Option<PageFacts>,
}

/// Ranks evictable pages per memory (an entry `rank` of `peer_kv_ptrs`), in O(log pages) per call.
pub trait EvictionPolicy: Send {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// The page became evictable at `rank`.
    fn insert(&mut self, rank: u32, facts: &PageFacts);

    /// The page is evictable at `rank` no more: it was shared, moved or dropped.
    fn remove(&mut self, rank: u32, page: PageId);

    /// The page to evict from `rank` next. It stays known until [`EvictionPolicy::remove`].
    fn coldest(&self, rank: u32) -> Option<PageId>;

    /// The page named by [`EvictionPolicy::coldest`] is now being evicted from `rank`.
    fn evicted(&mut self, rank: u32, page: PageId) {
        self.remove(rank, page);
    }

    /// Whether a page evicted from a nearer memory is worth more at `rank`, which is full, than
    /// the coldest page there. If not, it is dropped instead.
    fn displaces(&self, rank: u32, incoming: &PageFacts) -> bool;

    /// Whether moving the page nearer pays.
    fn promotes(&self, case: &PromotionCase) -> bool;

    /// Pages known at `rank`, for [`super::KvPool::check_invariants`].
    fn num_evictable(&self, rank: u32) -> usize;
}
