//! The rules that hold between any two calls.

use std::collections::HashSet;

use super::{KvPool, Retiring};
use crate::kv::page::PageState;
use crate::kv::slots::Owner;
use crate::kv::{InvariantError, Location, PageId};

impl KvPool {
    /// Checks that no page is lost, leaked or owned twice, and that every count is what it counts.
    /// O(slots + pages held by sequences).
    pub fn check_invariants(&self) -> Result<(), InvariantError> {
        self.check_slots()?;
        self.check_pages()?;
        self.check_references()?;
        self.check_counts()
    }

    /// Every slot is free, retiring, or owned by a page that lies or is about to lie there.
    fn check_slots(&self) -> Result<(), InvariantError> {
        for rank in 0..self.budgets.num_locations() {
            let slots = &self.slots[rank as usize];
            let (mut owned, mut retiring) = (0, 0);
            for (slot, owner) in (0..).zip(slots.owners()) {
                let location = Location { rank, slot };
                match *owner {
                    Owner::Free => {}
                    Owner::Retiring => retiring += 1,
                    Owner::Page(page) => {
                        owned += 1;
                        let lies_there = self.live(page).is_ok_and(|entry| {
                            entry.location == location
                                || entry.moving.is_some_and(|(_, to)| to == location)
                        });
                        if !lies_there {
                            return Err(InvariantError::LeakedSlot { location, page });
                        }
                    }
                }
            }
            let free: HashSet<u32> = slots
                .free_list()
                .iter()
                .copied()
                .filter(|&slot| slots.owners()[slot as usize] == Owner::Free)
                .collect();
            let free_once = free.len() == slots.free_list().len();
            if !free_once || free.len() as u32 + owned + retiring != slots.capacity() {
                return Err(InvariantError::SlotSum {
                    tier: self.budgets.tier(rank),
                    free: free.len() as u32,
                    owned,
                    retiring,
                    capacity: slots.capacity(),
                });
            }
        }
        Ok(())
    }

    /// Every page owns the slots it lies in, and is found under its key.
    fn check_pages(&self) -> Result<(), InvariantError> {
        let mut keyed = 0;
        for page in self.pages() {
            let entry = &self.pages[page.index()];
            let claims = [Some(entry.location), entry.moving.map(|(_, to)| to)];
            for location in claims.into_iter().flatten() {
                let slots = &self.slots[location.rank as usize];
                if slots.owners()[location.slot as usize] != Owner::Page(page) {
                    return Err(InvariantError::ForeignSlot { page, location });
                }
            }
            if let Some(key) = entry.key {
                keyed += 1;
                if self.index.get(&key) != Some(&page) {
                    return other(format!("{page} is not found under its key {key:?}"));
                }
            }
            if entry.is_idle() != entry.evictable {
                return other(format!(
                    "{page}: evictable is {}, but it has {} references and moves: {}",
                    entry.evictable,
                    entry.refs,
                    entry.moving.is_some()
                ));
            }
            if entry.state == PageState::Filling && (entry.key.is_some() || entry.refs > 1) {
                return other(format!("{page} is shared while it is still being filled"));
            }
        }
        if keyed != self.index.len() {
            return other(format!(
                "{} keys are indexed, but {keyed} pages have one",
                self.index.len()
            ));
        }
        Ok(())
    }

    /// Every reference is a sequence's, and every sequence is as long as its pages say.
    fn check_references(&self) -> Result<(), InvariantError> {
        let mut held = vec![0; self.pages.len()];
        for (id, sequence) in &self.sequences {
            let full_pages = (sequence.num_tokens / self.page_size) as usize;
            if sequence.pages.len() != sequence.num_tokens.div_ceil(self.page_size) as usize {
                return other(format!(
                    "{id} holds {} tokens in {} pages of {}",
                    sequence.num_tokens,
                    sequence.pages.len(),
                    self.page_size
                ));
            }
            for (position, page) in sequence.pages.iter().enumerate() {
                held[page.index()] += 1;
                let full = self.pages[page.index()].state == PageState::Full;
                if full != (position < full_pages) {
                    return other(format!("{id}: fullness of its page {position} is wrong"));
                }
            }
        }
        for (page, (entry, held)) in self.pages.iter().zip(held).enumerate() {
            if entry.refs != held {
                return Err(InvariantError::References {
                    page: PageId(page as u32),
                    counted: entry.refs,
                    held,
                });
            }
        }
        Ok(())
    }

    /// Counts kept beside the page table agree with it.
    fn check_counts(&self) -> Result<(), InvariantError> {
        let num_locations = self.slots.len();
        let (mut evictable, mut departing) = (vec![0; num_locations], vec![0; num_locations]);
        let mut moving = 0;
        for entry in &self.pages {
            let rank = entry.location.rank as usize;
            evictable[rank] += usize::from(entry.evictable);
            if let Some((id, _)) = entry.moving {
                moving += 1;
                departing[rank] += 1;
                if !self.migrations.contains_key(&id) {
                    return other(format!("a page moves in migration {} unnoticed", id.0));
                }
            }
        }
        let planned: usize = self.migrations.values().map(Vec::len).sum();
        if planned != moving {
            return other(format!("{planned} moves are planned, but {moving} pages move"));
        }
        if departing != self.departing {
            return other(format!(
                "{:?} slots are said to come free, but {departing:?} will",
                self.departing
            ));
        }
        for (rank, &evictable) in (0..).zip(&evictable) {
            let known = self.policy.num_evictable(rank);
            if known != evictable {
                return other(format!(
                    "{}: the policy knows {known} evictable pages, but there are {evictable}",
                    self.budgets.tier(rank)
                ));
            }
        }
        let retiring_slots =
            self.retiring.iter().filter(|(_, item)| matches!(item, Retiring::Slot(_))).count();
        let marked = |slots: &super::Slots| {
            let retiring = slots.owners().iter().filter(|&&o| o == Owner::Retiring);
            retiring.count()
        };
        let marked: usize = self.slots.iter().map(marked).sum();
        if retiring_slots != marked {
            return other(format!(
                "{retiring_slots} slots wait for leases, but {marked} are marked so"
            ));
        }
        if self.leases.num_open() == 0 && !self.retiring.is_empty() {
            return other("pages or slots wait for leases, but none is open".to_string());
        }
        Ok(())
    }
}

fn other<T>(what: String) -> Result<T, InvariantError> {
    Err(InvariantError::Other(what))
}
