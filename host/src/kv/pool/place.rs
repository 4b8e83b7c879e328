//! Giving pages out, sharing them, and taking them back.

use super::{KvPool, Retiring};
use crate::kv::page::{Page, PageState};
use crate::kv::slots::Owner;
use crate::kv::{Location, PageId, PoolError, Sequence, TierUsage};

impl KvPool {
    /// Pages that can be given out at once: free slots, and cached pages that could be dropped.
    pub fn num_available(&self) -> u64 {
        (0..self.budgets.num_locations())
            .map(|rank| u64::from(self.num_free(rank)) + u64::from(self.num_evictable(rank)))
            .sum()
    }

    /// How the slots of each memory are used, in order of `peer_kv_ptrs`. O(slots).
    pub fn usage(&self) -> Vec<TierUsage> {
        (0..self.budgets.num_locations())
            .map(|rank| {
                let slots = &self.slots[rank as usize];
                let mut usage = TierUsage {
                    tier: self.budgets.tier(rank),
                    capacity: slots.capacity(),
                    free: 0,
                    cached: 0,
                    bound: 0,
                    shared: 0,
                    private: 0,
                };
                for owner in slots.owners() {
                    let count = match owner {
                        Owner::Free => &mut usage.free,
                        Owner::Retiring => &mut usage.bound,
                        Owner::Page(page) => {
                            let page = &self.pages[page.index()];
                            match page.refs {
                                _ if page.moving.is_some() || self.is_leased(page) => {
                                    &mut usage.bound
                                }
                                0 => &mut usage.cached,
                                1 => &mut usage.private,
                                _ => &mut usage.shared,
                            }
                        }
                    };
                    *count += 1;
                }
                usage
            })
            .collect()
    }

    /// Refuses when fewer than `asked` pages can be had, of which `reserved` must not be dropped.
    pub(super) fn check_room(&self, asked: u64, reserved: u64) -> Result<(), PoolError> {
        let available = self.num_available() - reserved;
        if asked > available {
            return Err(PoolError::OutOfPages { asked, available, usage: self.usage() });
        }
        Ok(())
    }

    /// A new page for one sequence, in the nearest memory with a free slot; when every memory is
    /// full, in the farthest one that holds a page to drop.
    pub(super) fn place(&mut self, position: u32, state: PageState) -> Result<PageId, PoolError> {
        let ranks = 0..self.budgets.num_locations();
        let free = ranks.clone().find(|&rank| self.num_free(rank) > 0);
        let rank = match free {
            Some(rank) => rank,
            None => {
                let full = ranks.rev().find(|&rank| self.num_evictable(rank) > 0);
                let Some(rank) = full else {
                    self.check_room(1, 0)?;
                    unreachable!("a page is available, but no memory has it");
                };
                self.drop_coldest(rank)?;
                rank
            }
        };
        let page = self.vacant.pop().map_or_else(
            || {
                self.pages.push(Page::VACANT);
                PageId(self.pages.len() as u32 - 1)
            },
            PageId,
        );
        let slot =
            self.slots[rank as usize].take(page).expect("the memory was chosen for its free slot");
        self.tick += 1;
        self.pages[page.index()] = Page {
            state,
            location: Location { rank, slot },
            refs: 1,
            position,
            frequency: 1,
            last_use: self.tick,
            referenced_since: self.leases.stamp(),
            ..Page::VACANT
        };
        self.stats.placed[rank as usize] += 1;
        self.consider_promotion(page);
        Ok(page)
    }

    /// One more sequence holds the page. Returns the memory it lies in.
    pub(super) fn share(&mut self, page: PageId) -> usize {
        self.make_unevictable(page);
        self.tick += 1;
        let entry = &mut self.pages[page.index()];
        entry.refs += 1;
        entry.frequency = entry.frequency.saturating_add(1);
        entry.last_use = self.tick;
        // A page still under an old lease stays covered by it: the earlier stamp is kept.
        if entry.refs == 1 && entry.settles_after.take().is_none() {
            entry.referenced_since = self.leases.stamp();
        }
        let rank = entry.location.rank as usize;
        self.stats.hits[rank] += 1;
        self.consider_promotion(page);
        rank
    }

    /// One sequence less holds the page.
    pub(super) fn unreference(&mut self, page: PageId) {
        self.tick += 1;
        let entry = &mut self.pages[page.index()];
        entry.refs -= 1;
        entry.last_use = self.tick;
        if entry.refs == 0 {
            if self.leases.open_after(entry.referenced_since) {
                let stamp = self.leases.stamp();
                entry.settles_after = Some(stamp);
                self.retiring.push_back((stamp, Retiring::Page(page)));
            }
            self.settle(page);
        }
    }

    /// Takes back the pages of an extension that failed half way: `new` holds the positions of
    /// those that were placed for it, all others behind its old end were shared.
    pub(super) fn undo_growth(&mut self, sequence: &mut Sequence, new: &[usize]) {
        let old_pages = (sequence.num_tokens.div_ceil(self.page_size)) as usize;
        for position in (old_pages..sequence.pages.len()).rev() {
            let page = sequence.pages[position];
            if new.contains(&position) {
                // Never filled: it must not be found under its key.
                self.forget_key(page);
            }
            self.unreference(page);
        }
        sequence.pages.truncate(old_pages);
    }

    /// What becomes of a page that lost a holder: when none is left it is cached, or free.
    pub(super) fn settle(&mut self, page: PageId) {
        let entry = &self.pages[page.index()];
        if !entry.is_idle() || entry.evictable {
            return;
        }
        if entry.key.is_some() {
            let (rank, facts) = (entry.location.rank, self.facts(page));
            self.policy.insert(rank, &facts);
            self.pages[page.index()].evictable = true;
        } else {
            self.vacate(page);
        }
    }

    pub(super) fn make_unevictable(&mut self, page: PageId) {
        let entry = &mut self.pages[page.index()];
        if entry.evictable {
            entry.evictable = false;
            self.policy.remove(entry.location.rank, page);
        }
    }

    /// The policy's next victim at `rank`, once it is sure that it may go.
    pub(super) fn checked_victim(&self, rank: u32) -> Result<Option<PageId>, PoolError> {
        let Some(page) = self.policy.coldest(rank) else {
            return Ok(None);
        };
        let reason = match self.live(page) {
            Err(_) => "does not exist",
            Ok(entry) if entry.refs > 0 => "a sequence still holds",
            Ok(entry) if self.is_leased(entry) => "a kernel may still read",
            Ok(entry) if entry.moving.is_some() => "is moving",
            Ok(entry) if entry.location.rank != rank => "lies in another memory",
            Ok(_) => return Ok(Some(page)),
        };
        Err(PoolError::UnsafeVictim { policy: self.policy.name(), page, reason })
    }

    /// Forgets the coldest cached page at `rank`; its slot is free at once.
    pub(super) fn drop_coldest(&mut self, rank: u32) -> Result<bool, PoolError> {
        let Some(victim) = self.checked_victim(rank)? else {
            return Ok(false);
        };
        self.drop_page(victim);
        Ok(true)
    }

    pub(super) fn drop_page(&mut self, page: PageId) {
        let rank = self.pages[page.index()].location.rank;
        self.policy.evicted(rank, page);
        self.stats.dropped[rank as usize] += 1;
        self.vacate(page);
    }

    fn forget_key(&mut self, page: PageId) {
        if let Some(key) = self.pages[page.index()].key.take() {
            self.index.remove(&key);
        }
    }

    fn vacate(&mut self, page: PageId) {
        self.forget_key(page);
        let at = self.pages[page.index()].location;
        self.slots[at.rank as usize].give_back(at.slot);
        self.pages[page.index()] = Page::VACANT;
        self.vacant.push(page.0);
    }
}
