//! Moves between tiers, as data.

use std::collections::BTreeMap;

use super::{Location, PageId};

/// Names a planned migration until it is completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MigrationId(pub(super) u64);

/// One page, from one slot to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The page that moves.
    pub page: PageId,
    /// Where it is read until the migration is completed.
    pub from: Location,
    /// Where it is read from then on.
    pub to: Location,
}

/// Moves that may run in any order and at the same time: no destination is another's source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// What [`super::KvPool::complete`] takes once every move has been carried out.
    pub id: MigrationId,
    /// The moves, never empty.
    pub moves: Vec<Move>,
}

/// All moves of a migration between one pair of memories: one launch of a copy kernel, or one
/// batch of copies, with slot `from_slots[i]` going to slot `to_slots[i]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyGroup {
    /// Source entry of `peer_kv_ptrs`.
    pub from_rank: u32,
    /// Destination entry of `peer_kv_ptrs`.
    pub to_rank: u32,
    /// Source pages.
    pub from_slots: Vec<u32>,
    /// Destination pages, as many.
    pub to_slots: Vec<u32>,
}

impl Migration {
    /// The moves by direction, in order of (source, destination).
    pub fn copy_groups(&self) -> Vec<CopyGroup> {
        let mut groups = BTreeMap::new();
        for Move { from, to, .. } in &self.moves {
            let group = groups.entry((from.rank, to.rank)).or_insert_with(|| CopyGroup {
                from_rank: from.rank,
                to_rank: to.rank,
                from_slots: Vec::new(),
                to_slots: Vec::new(),
            });
            group.from_slots.push(from.slot);
            group.to_slots.push(to.slot);
        }
        groups.into_values().collect()
    }
}
