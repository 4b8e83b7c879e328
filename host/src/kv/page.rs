//! A logical page: what it contains, who holds it, where it lies.

use std::fmt;

use super::{Location, MigrationId};

/// Names a logical page while it exists, wherever it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub(super) u32);

impl PageId {
    /// A small dense index, for side tables kept per page.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {}", self.0)
    }
}

/// What a full page of a prompt contains, and therefore who may share it.
///
/// `prefix_block` is a *chain* hash: it stands for the tokens of its prefix block and of all
/// before it, as the hash ids of a trace do. Two pages with equal keys therefore hold the KV of
/// the same tokens at the same positions after the same prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageKey {
    /// Chain hash of the prefix block the page lies in.
    pub prefix_block: u64,
    /// Index of the page within that prefix block.
    pub page_idx: u32,
}

/// Keys of the full pages of a prompt of `num_tokens`, cut into prefix blocks of
/// `prefix_block_tokens`.
///
/// # Panics
/// When `page_size` does not divide `prefix_block_tokens`: a page would span two blocks.
pub fn prefix_page_keys(
    prefix_blocks: &[u64],
    num_tokens: u32,
    prefix_block_tokens: u32,
    page_size: u32,
) -> Vec<PageKey> {
    assert!(
        page_size > 0 && prefix_block_tokens.is_multiple_of(page_size),
        "page_size {page_size} does not divide prefix blocks of {prefix_block_tokens} tokens"
    );
    let pages_per_block = prefix_block_tokens / page_size;
    (0..num_tokens / page_size)
        .map(|page| PageKey {
            prefix_block: prefix_blocks[(page / pages_per_block) as usize],
            page_idx: page % pages_per_block,
        })
        .collect()
}

/// How much of its life a page slot of the page table has behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageState {
    /// The entry names no page.
    Vacant,
    /// The last page of a sequence, still being written.
    Filling,
    /// Never written again.
    Full,
}

/// One entry of the page table.
#[derive(Clone, Debug)]
pub(super) struct Page {
    pub state: PageState,
    pub location: Location,
    /// Set while a move is planned: the destination, which the page owns too.
    pub moving: Option<(MigrationId, Location)>,
    /// Sequences that hold it.
    pub refs: u32,
    pub key: Option<PageKey>,
    /// Index of the page in the sequence that filled it.
    pub position: u32,
    /// Times it was filled or shared.
    pub frequency: u32,
    /// Pool tick of its last use.
    pub last_use: u64,
    /// Leases taken after this one may read the page.
    pub referenced_since: u64,
    /// Released under an open lease: may be evicted once all leases up to this one have retired.
    pub settles_after: Option<u64>,
    /// The policy knows it as a possible victim.
    pub evictable: bool,
    /// Waits for a decision on promotion.
    pub promotion_queued: bool,
}

impl Page {
    /// Whether nobody holds it: no sequence, no planned move, no kernel that may still read.
    pub(super) fn is_idle(&self) -> bool {
        self.refs == 0 && self.moving.is_none() && self.settles_after.is_none()
    }

    pub(super) const VACANT: Self = Self {
        state: PageState::Vacant,
        location: Location { rank: 0, slot: 0 },
        moving: None,
        refs: 0,
        key: None,
        position: 0,
        frequency: 0,
        last_use: 0,
        referenced_since: 0,
        settles_after: None,
        evictable: false,
        promotion_queued: false,
    };
}
