//! Tiers, and the physical address of a page.

use std::fmt;

use gpu_kernels::kv_layout::KvPagePlace;
use serde::Serialize;

use super::PoolError;

/// A kind of memory, as seen from the GPU that decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Tier {
    /// HBM of the GPU that decodes, rank 0.
    Local,
    /// HBM lent by the GPU of this rank, read over NVLink.
    Peer(u32),
    /// Pinned host memory, read over PCIe.
    Host,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => write!(f, "local"),
            Self::Peer(rank) => write!(f, "peer {rank}"),
            Self::Host => write!(f, "host"),
        }
    }
}

/// Where a page lies: entry `rank` of `peer_kv_ptrs`, page `slot` of that allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Location {
    /// 0..R-1 are the GPUs' HBM, R is pinned host memory.
    pub rank: u32,
    /// Page index inside the allocation of that rank.
    pub slot: u32,
}

impl From<Location> for KvPagePlace {
    fn from(Location { rank, slot }: Location) -> Self {
        Self { rank, index: slot }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} slot {}", self.rank, self.slot)
    }
}

/// How many pages each tier may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Budgets {
    /// GPUs, the one that decodes included.
    pub num_ranks: u32,
    /// Pages in the HBM of rank 0.
    pub local_pages: u32,
    /// Pages that each further rank lends; unused with one rank.
    pub peer_pages: u32,
    /// Pages in pinned host memory.
    pub host_pages: u32,
}

impl Budgets {
    /// Refuses a tier that exists but holds nothing, and one whose page indices do not fit `i32`.
    pub fn check(&self) -> Result<(), PoolError> {
        if self.num_ranks == 0 {
            return Err(PoolError::NoRanks);
        }
        for rank in 0..self.num_locations() {
            let tier = self.tier(rank);
            match self.capacity(rank) {
                0 => return Err(PoolError::ZeroBudget { tier }),
                pages if i32::try_from(pages).is_err() => {
                    return Err(PoolError::BudgetTooLarge { tier, pages });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Entries of `peer_kv_ptrs`: one per GPU, and one for pinned host memory.
    pub fn num_locations(&self) -> u32 {
        self.num_ranks + 1
    }

    /// The index of pinned host memory in `peer_kv_ptrs`.
    pub fn host_rank(&self) -> u32 {
        self.num_ranks
    }

    /// The tier that entry `rank` of `peer_kv_ptrs` belongs to.
    pub fn tier(&self, rank: u32) -> Tier {
        match rank {
            0 => Tier::Local,
            rank if rank < self.num_ranks => Tier::Peer(rank),
            _ => Tier::Host,
        }
    }

    /// Pages that entry `rank` of `peer_kv_ptrs` holds.
    pub fn capacity(&self, rank: u32) -> u32 {
        match self.tier(rank) {
            Tier::Local => self.local_pages,
            Tier::Peer(_) => self.peer_pages,
            Tier::Host => self.host_pages,
        }
    }

    /// Pages of all tiers together.
    pub fn total_pages(&self) -> u64 {
        (0..self.num_locations()).map(|rank| u64::from(self.capacity(rank))).sum()
    }
}
