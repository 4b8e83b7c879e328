//! The pool: sequences and the pages they hold.

mod invariants;
mod migrate;
mod place;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use super::lease::Leases;
use super::page::{Page, PageState};
use super::policy::{EvictionPolicy, PageFacts};
use super::slots::Slots;
use super::{
    Budgets, Location, MigrationId, Move, PageId, PageKey, PoolError, PoolStats, PrefixHits,
    ReadLease, Sequence, SequenceId,
};

/// What waits for leases to retire.
#[derive(Clone, Copy, Debug)]
enum Retiring {
    /// A page released while a kernel may still read it.
    Page(PageId),
    /// A slot whose page has moved away while a kernel may still read it there.
    Slot(Location),
}

/// Pages over local HBM, peers' HBM and pinned host memory. See the [module](super).
pub struct KvPool {
    budgets: Budgets,
    page_size: u32,
    policy: Box<dyn EvictionPolicy>,
    /// Per entry of `peer_kv_ptrs`.
    slots: Vec<Slots>,
    pages: Vec<Page>,
    /// Indices of vacant entries of `pages`.
    vacant: Vec<u32>,
    index: HashMap<PageKey, PageId>,
    sequences: HashMap<SequenceId, Sequence>,
    leases: Leases,
    /// In order of their stamps.
    retiring: VecDeque<(u64, Retiring)>,
    migrations: HashMap<MigrationId, Vec<Move>>,
    /// Per memory: slots that planned moves will leave.
    departing: Vec<u32>,
    /// Per memory: pages in use there that might come nearer.
    promotion_queues: Vec<VecDeque<PageId>>,
    last_migration: u64,
    tick: u64,
    stats: PoolStats,
}

impl KvPool {
    /// An empty pool of pages of `page_size` tokens.
    pub fn new(
        budgets: Budgets,
        page_size: u32,
        policy: Box<dyn EvictionPolicy>,
    ) -> Result<Self, PoolError> {
        budgets.check()?;
        if page_size == 0 {
            return Err(PoolError::ZeroPageSize);
        }
        let ranks = 0..budgets.num_locations();
        Ok(Self {
            budgets,
            page_size,
            policy,
            slots: ranks.map(|rank| Slots::new(budgets.capacity(rank))).collect(),
            pages: Vec::new(),
            vacant: Vec::new(),
            index: HashMap::new(),
            sequences: HashMap::new(),
            leases: Leases::default(),
            retiring: VecDeque::new(),
            migrations: HashMap::new(),
            departing: vec![0; budgets.num_locations() as usize],
            promotion_queues: vec![VecDeque::new(); budgets.num_locations() as usize],
            last_migration: 0,
            tick: 0,
            stats: PoolStats::new(budgets.num_locations()),
        })
    }

    /// Tokens of a page.
    pub fn page_size(&self) -> u32 {
        self.page_size
    }

    /// The budgets it was made with.
    pub fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// Counters since it was made.
    pub fn stats(&self) -> &PoolStats {
        &self.stats
    }

    /// The name of its policy.
    pub fn policy_name(&self) -> &'static str {
        self.policy.name()
    }

    /// An open sequence.
    pub fn sequence(&self, id: SequenceId) -> Result<&Sequence, PoolError> {
        self.sequences.get(&id).ok_or(PoolError::UnknownSequence(id))
    }

    /// Open sequences.
    pub fn num_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Where a page is read now.
    pub fn location(&self, page: PageId) -> Result<Location, PoolError> {
        self.live(page).map(|page| page.location)
    }

    /// Sequences that hold a page.
    pub fn num_references(&self, page: PageId) -> Result<u32, PoolError> {
        self.live(page).map(|page| page.refs)
    }

    /// All cached and referenced pages, in order of their ids.
    pub fn pages(&self) -> impl Iterator<Item = PageId> {
        (0..self.pages.len() as u32).map(PageId).filter(|&page| self.live(page).is_ok())
    }

    /// Slots of `rank` that nobody has.
    pub fn num_free(&self, rank: u32) -> u32 {
        self.slots[rank as usize].num_free()
    }

    /// Cached pages at `rank` that may be evicted now.
    pub fn num_evictable(&self, rank: u32) -> u32 {
        self.policy.num_evictable(rank) as u32
    }

    /// Slots of `rank` that planned moves will leave.
    pub fn num_departing(&self, rank: u32) -> u32 {
        self.departing[rank as usize]
    }

    /// How many of these pages are cached nowhere.
    pub fn num_missing(&self, keys: &[PageKey]) -> usize {
        keys.iter().filter(|key| !self.index.contains_key(key)).count()
    }

    /// The pages that [`open`](Self::open) would share for these keys. Nothing changes.
    pub fn cached_prefix(&self, keys: &[PageKey]) -> Vec<PageId> {
        keys.iter().map_while(|key| self.index.get(key).copied()).collect()
    }

    /// Starts a sequence and lets it share the cached pages of its prompt, from the first on,
    /// up to the first one that is not cached.
    pub fn open(&mut self, id: SequenceId, keys: &[PageKey]) -> Result<PrefixHits, PoolError> {
        if self.sequences.contains_key(&id) {
            return Err(PoolError::SequenceExists(id));
        }
        let mut hits = PrefixHits { pages: vec![0; self.slots.len()] };
        let mut sequence = Sequence::default();
        for key in keys {
            let Some(&page) = self.index.get(key) else {
                break;
            };
            hits.pages[self.share(page)] += 1;
            sequence.pages.push(page);
            sequence.num_tokens += self.page_size;
        }
        self.sequences.insert(id, sequence);
        Ok(hits)
    }

    /// Adds full prompt pages to a sequence that ends on a page boundary. Returns the positions
    /// (in the sequence) of pages that are new and have to be filled; the others were cached
    /// behind a hole in the chain, and are shared: their key stands for the whole prefix.
    pub fn extend(&mut self, id: SequenceId, keys: &[PageKey]) -> Result<Vec<usize>, PoolError> {
        let sequence = self.sequence(id)?;
        if !sequence.num_tokens.is_multiple_of(self.page_size) {
            return Err(PoolError::UnalignedExtend {
                sequence: id,
                num_tokens: sequence.num_tokens,
                page_size: self.page_size,
            });
        }
        let more = keys.len() as u64 * u64::from(self.page_size);
        self.check_length(id, sequence, more)?;
        let cached = || keys.iter().filter_map(|key| self.index.get(key));
        let shared_evictable = cached().filter(|page| self.pages[page.index()].evictable);
        self.check_room((keys.len() - cached().count()) as u64, shared_evictable.count() as u64)?;

        // Taken out, so that the pool's other parts can be changed beside it.
        let mut sequence = self.sequences.remove(&id).expect("looked up above");
        let mut new = Vec::new();
        let mut outcome = Ok(());
        for key in keys {
            let page = match self.index.get(key) {
                Some(&page) => {
                    self.share(page);
                    page
                }
                None => match self.place(sequence.pages.len() as u32, PageState::Full) {
                    Ok(page) => {
                        self.pages[page.index()].key = Some(*key);
                        self.index.insert(*key, page);
                        self.stats.misses += 1;
                        new.push(sequence.pages.len());
                        page
                    }
                    Err(error) => {
                        outcome = Err(error);
                        break;
                    }
                },
            };
            sequence.pages.push(page);
        }
        if outcome.is_err() {
            self.undo_growth(&mut sequence, &new);
            new.clear();
        }
        sequence.num_tokens = sequence.pages.len() as u32 * self.page_size;
        self.sequences.insert(id, sequence);
        outcome.map(|()| new)
    }

    /// Adds `num_tokens` tokens that nobody will share: the rest of a prompt behind its full
    /// pages, or decoded tokens. Returns the positions (in the sequence) of the pages this opened.
    pub fn append(&mut self, id: SequenceId, num_tokens: u32) -> Result<Range<usize>, PoolError> {
        let sequence = self.sequence(id)?;
        self.check_length(id, sequence, u64::from(num_tokens))?;
        let old_pages = sequence.pages.len();
        let total = sequence.num_tokens + num_tokens;
        let new_pages = total.div_ceil(self.page_size) as usize - old_pages;
        if new_pages > 0 {
            self.check_room(new_pages as u64, 0)?;
        }

        let mut sequence = self.sequences.remove(&id).expect("looked up above");
        let mut outcome = Ok(());
        for _ in 0..new_pages {
            match self.place(sequence.pages.len() as u32, PageState::Filling) {
                Ok(page) => sequence.pages.push(page),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        if outcome.is_ok() {
            sequence.num_tokens = total;
            let full_pages = (total / self.page_size) as usize;
            let first_touched = old_pages.saturating_sub(1);
            for page in sequence.pages.iter().take(full_pages).skip(first_touched) {
                self.pages[page.index()].state = PageState::Full;
            }
        } else {
            let new: Vec<usize> = (old_pages..sequence.pages.len()).collect();
            self.undo_growth(&mut sequence, &new);
        }
        self.sequences.insert(id, sequence);
        outcome.map(|()| old_pages..old_pages + new_pages)
    }

    /// Says what a full page of a sequence contains, now that it is written: from now on it is
    /// shared by that key, and stays cached when the sequence ends. For pages that came by
    /// [`append`](Self::append), which are filled after they are given out.
    ///
    /// False when the same is cached in another page: this one stays its sequence's alone.
    pub fn publish(
        &mut self,
        id: SequenceId,
        position: usize,
        key: PageKey,
    ) -> Result<bool, PoolError> {
        let sequence = self.sequence(id)?;
        let num_full = (sequence.num_tokens / self.page_size) as usize;
        let Some(&page) = sequence.pages.get(position).filter(|_| position < num_full) else {
            return Err(PoolError::NotFull { sequence: id, position, num_full });
        };
        if let Some(&cached) = self.index.get(&key) {
            return Ok(cached == page);
        }
        if self.pages[page.index()].key.is_some() {
            return Err(PoolError::OtherKey(page));
        }
        self.pages[page.index()].key = Some(key);
        self.index.insert(key, page);
        self.stats.misses += 1;
        Ok(true)
    }

    /// Ends a sequence. Its keyed pages stay cached when nobody else holds them; the others are
    /// free once no kernel may read them any more.
    pub fn release(&mut self, id: SequenceId) -> Result<(), PoolError> {
        let sequence = self.sequences.remove(&id).ok_or(PoolError::UnknownSequence(id))?;
        // The last page first, so that of one prompt the deepest page is the coldest: dropping
        // it leaves no hole in the chain.
        for &page in sequence.pages.iter().rev() {
            self.unreference(page);
        }
        Ok(())
    }

    /// Announces a kernel that reads pages of open sequences. Call it when the kernel's page
    /// table is built, before anything else changes the pool.
    pub fn lease_reads(&mut self) -> ReadLease {
        self.leases.take()
    }

    /// Takes a lease back: its kernel's event has fired.
    #[expect(clippy::needless_pass_by_value, reason = "a lease is retired once, so it is taken")]
    pub fn retire(&mut self, lease: ReadLease) -> Result<(), PoolError> {
        if !self.leases.retire(&lease) {
            return Err(PoolError::UnknownLease(lease.0));
        }
        while let Some(&(stamp, item)) = self.retiring.front() {
            if !self.leases.settled(stamp) {
                break;
            }
            self.retiring.pop_front();
            match item {
                Retiring::Slot(at) => self.slots[at.rank as usize].give_back(at.slot),
                Retiring::Page(page) => {
                    let entry = &mut self.pages[page.index()];
                    // Otherwise it was shared again, or is another page by now.
                    if entry.settles_after == Some(stamp) {
                        entry.settles_after = None;
                        self.settle(page);
                    }
                }
            }
        }
        Ok(())
    }

    fn live(&self, page: PageId) -> Result<&Page, PoolError> {
        self.pages
            .get(page.index())
            .filter(|entry| entry.state != PageState::Vacant)
            .ok_or(PoolError::UnknownPage(page))
    }

    fn check_length(
        &self,
        id: SequenceId,
        sequence: &Sequence,
        more: u64,
    ) -> Result<(), PoolError> {
        if u64::from(sequence.num_tokens) + more > i32::MAX as u64 {
            return Err(PoolError::SequenceTooLong {
                sequence: id,
                num_tokens: sequence.num_tokens,
                more,
            });
        }
        Ok(())
    }

    fn facts(&self, page: PageId) -> PageFacts {
        let entry = &self.pages[page.index()];
        PageFacts {
            page,
            frequency: entry.frequency,
            last_use: entry.last_use,
            refs: entry.refs,
            position: entry.position,
        }
    }

    /// Whether a kernel may still read the page.
    fn is_leased(&self, page: &Page) -> bool {
        page.settles_after.is_some()
            || (page.refs > 0 && self.leases.open_after(page.referenced_since))
    }
}
