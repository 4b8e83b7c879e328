//! The KV pool as a scheduler sees it: tokens of requests, and room in local memory.
//!
//! Running requests have their pages in local memory, or in a peer's, where they are read in place.
//! What a request leaves behind stays cached: in local memory while nobody needs the room, then in
//! the host's, from where it is copied back when a request wants it.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::kv::policy::Lru;
use crate::kv::{
    Budgets, KvPool, Location, Migration, PageId, PageKey, PoolError, PoolStats, SequenceId,
};
use crate::model::engine::{PageCopy, RequestId};

/// Copies in order: those of one list may run at the same time.
pub(super) type Copies = Vec<Vec<PageCopy>>;

/// Entry of local memory in the page table.
const LOCAL: u32 = 0;

pub(super) struct Pages {
    pool: KvPool,
}

/// What is cached of a prompt.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cached {
    pub num_pages: usize,
    /// Of these, in the host's memory.
    pub num_far: usize,
    /// Of these, in local memory and held by nobody: counted as room, but not room for this one.
    pub num_idle: usize,
}

impl Pages {
    /// Pages of each location, as an engine has them.
    pub fn new(num_pages: &[usize], page_size: usize) -> Result<Self, PoolError> {
        let count = |location: usize| num_pages.get(location).map_or(0, |&pages| pages as u32);
        let num_ranks = num_pages.len().saturating_sub(1);
        let budgets = Budgets {
            num_ranks: num_ranks as u32,
            local_pages: count(0),
            peer_pages: if num_ranks > 1 { count(1) } else { 0 },
            host_pages: count(num_ranks),
        };
        Ok(Self { pool: KvPool::new(budgets, page_size as u32, Box::<Lru>::default())? })
    }

    pub fn page_size(&self) -> usize {
        self.pool.page_size() as usize
    }

    /// Pages that so many tokens fill.
    pub fn num_filled_by(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.page_size())
    }

    /// Pages in local memory.
    pub fn num_local(&self) -> usize {
        self.pool.budgets().local_pages as usize
    }

    /// Pages of local memory that a request can have at once.
    pub fn num_available(&self) -> usize {
        (self.pool.num_free(LOCAL) + self.pool.num_evictable(LOCAL)) as usize
    }

    pub fn stats(&self) -> &PoolStats {
        self.pool.stats()
    }

    pub fn pool(&self) -> &KvPool {
        &self.pool
    }

    /// What is cached of a prompt. Nothing changes.
    pub fn cached(&self, keys: &[PageKey]) -> Result<Cached, PoolError> {
        let mut cached = Cached::default();
        for page in self.pool.cached_prefix(keys) {
            let rank = self.pool.location(page)?.rank;
            cached.num_pages += 1;
            cached.num_far += usize::from(self.is_far(rank));
            cached.num_idle += usize::from(rank == LOCAL && self.pool.num_references(page)? == 0);
        }
        Ok(cached)
    }

    /// Starts a request's sequence with what is cached of it, all of it near. Returns the pages
    /// that had to be copied back from the host's memory.
    pub fn open(
        &mut self,
        id: RequestId,
        keys: &[PageKey],
        copies: &mut Copies,
    ) -> Result<usize, PoolError> {
        let id = SequenceId(id.0);
        self.pool.open(id, keys)?;
        let mut far = Vec::new();
        for &page in self.pool.sequence(id)?.pages() {
            if self.is_far(self.pool.location(page)?.rank) {
                far.push(page);
            }
        }
        self.bring_near(&far, copies)?;
        Ok(far.len())
    }

    /// Pages that so many more tokens of a request need.
    pub fn num_new(&self, id: RequestId, num_tokens: usize) -> Result<usize, PoolError> {
        let sequence = self.pool.sequence(SequenceId(id.0))?;
        let after = sequence.num_tokens() as usize + num_tokens;
        Ok(self.num_filled_by(after) - sequence.pages().len())
    }

    /// Gives a request the pages for so many more tokens: no more than are available.
    pub fn grow(
        &mut self,
        id: RequestId,
        num_tokens: usize,
        copies: &mut Copies,
    ) -> Result<(), PoolError> {
        self.make_room(self.num_new(id, num_tokens)?, copies)?;
        self.pool.append(SequenceId(id.0), num_tokens as u32)?;
        Ok(())
    }

    /// The first pages of a request, as many as so many tokens fill.
    pub fn locations(&self, id: RequestId, num_tokens: usize) -> Result<Vec<Location>, PoolError> {
        let pages = self.pool.sequence(SequenceId(id.0))?.pages();
        let pages = pages.iter().take(self.num_filled_by(num_tokens));
        pages.map(|&page| self.pool.location(page)).collect()
    }

    /// Says what a written page contains.
    pub fn publish(&mut self, id: RequestId, page: usize, key: PageKey) -> Result<(), PoolError> {
        self.pool.publish(SequenceId(id.0), page, key).map(drop)
    }

    /// Takes a request's pages back; what was published stays cached. Returns how many there were.
    pub fn release(&mut self, id: RequestId) -> Result<usize, PoolError> {
        let num_pages = self.pool.sequence(SequenceId(id.0))?.pages().len();
        self.pool.release(SequenceId(id.0))?;
        Ok(num_pages)
    }

    fn is_far(&self, rank: u32) -> bool {
        rank == self.pool.budgets().host_rank()
    }

    fn bring_near(&mut self, far: &[PageId], copies: &mut Copies) -> Result<(), PoolError> {
        self.make_room(far.len(), copies)?;
        let migration = if far.is_empty() { None } else { self.pool.plan_move(far, LOCAL)? };
        self.carry_out(migration, copies)
    }

    /// Evicts until so many pages of local memory are free.
    fn make_room(&mut self, num_pages: usize, copies: &mut Copies) -> Result<(), PoolError> {
        let migration = self.pool.plan_room(num_pages as u32)?;
        self.carry_out(migration, copies)
    }

    /// Copies run before the step that needs them, in order, so the pool may take them for done.
    fn carry_out(
        &mut self,
        migration: Option<Migration>,
        copies: &mut Copies,
    ) -> Result<(), PoolError> {
        let Some(migration) = migration else {
            return Ok(());
        };
        let copy = |one: &crate::kv::Move| PageCopy { source: one.from, destination: one.to };
        copies.push(migration.moves.iter().map(copy).collect());
        self.pool.complete(migration.id)
    }
}

/// What the page of these tokens contains, after the page before it: a chain, so that equal keys
/// mean equal prefixes.
pub(super) fn page_key(before: Option<PageKey>, tokens: &[u32]) -> PageKey {
    let mut hasher = DefaultHasher::new();
    before.hash(&mut hasher);
    tokens.hash(&mut hasher);
    PageKey { prefix_block: hasher.finish(), page_idx: 0 }
}
