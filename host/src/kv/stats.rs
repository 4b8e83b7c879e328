//! What the pool has done so far.

use serde::Serialize;

/// Pages that a new sequence found in the cache, by the memory they lay in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PrefixHits {
    /// Pages found, per entry of `peer_kv_ptrs`.
    pub pages: Vec<u64>,
}

impl PrefixHits {
    /// Pages found in any memory.
    pub fn total(&self) -> u64 {
        self.pages.iter().sum()
    }
}

/// Counters since the pool was made. Vectors are indexed like `peer_kv_ptrs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PoolStats {
    /// Keyed pages that were found in the cache instead of filled again, by where they lay.
    pub hits: Vec<u64>,
    /// Keyed pages that had to be filled.
    pub misses: u64,
    /// Pages given out, by where they were placed.
    pub placed: Vec<u64>,
    /// Completed moves, `[from][to]`.
    pub moved: Vec<Vec<u64>>,
    /// Completed moves of pages that a sequence held at that moment.
    pub moved_in_use: u64,
    /// Completed moves to a farther tier.
    pub demotions: u64,
    /// Completed moves to a nearer tier.
    pub promotions: u64,
    /// Cached pages forgotten, by where they lay.
    pub dropped: Vec<u64>,
}

impl PoolStats {
    pub(super) fn new(num_locations: u32) -> Self {
        let zeros = vec![0; num_locations as usize];
        Self {
            hits: zeros.clone(),
            placed: zeros.clone(),
            moved: vec![zeros.clone(); num_locations as usize],
            dropped: zeros,
            ..Self::default()
        }
    }

    /// Pages that left the memory they lay in to make room there: demoted or dropped.
    pub fn evictions(&self) -> u64 {
        self.demotions + self.dropped.iter().sum::<u64>()
    }
}
