//! Planning and completing moves between tiers.

use super::{KvPool, Retiring};
use crate::kv::page::PageState;
use crate::kv::policy::PromotionCase;
use crate::kv::{Location, Migration, MigrationId, Move, PageId, PoolError, Tier};

/// A peer keeps one slot in this many free for what local memory evicts next; the surplus goes on
/// to the host.
const PEER_RESERVE: u32 = 16;

/// How a page could come nearer.
enum Way {
    /// To a free slot of this memory.
    FreeSlot(u32),
    /// To local memory, after this cached page has left it.
    Displacing(PageId),
}

impl KvPool {
    /// Plans evictions until `wanted` slots of local memory are free or about to be, and, as far
    /// as local memory is full of pages in use, of the peers'. The chain is local → peer (while it
    /// has room) → host → dropped; slots of dropped pages are free at once. Fewer come free when
    /// fewer pages are evictable.
    pub fn plan_room(&mut self, wanted: u32) -> Result<Option<Migration>, PoolError> {
        let mut moves = Vec::new();
        let mut outcome = self.evict_until(0, wanted, &mut moves);
        let mut missing = wanted.saturating_sub(self.num_coming(0));
        for rank in 1..self.budgets.num_ranks {
            let reserve = self.budgets.capacity(rank) / PEER_RESERVE;
            outcome = outcome.and_then(|()| self.evict_until(rank, reserve + missing, &mut moves));
            missing = missing.saturating_sub(self.num_coming(rank));
        }
        self.finish_plan(moves, outcome)
    }

    /// Plans to bring up to `limit` referenced pages home to local memory, where the policy finds
    /// that it pays. At least `spare` slots there stay free. Where a cached page has to leave
    /// first, its eviction is planned now, and the page comes home in a later plan. While local
    /// memory is full of pages in use, those in the host come as near as a peer.
    pub fn plan_promotions(
        &mut self,
        limit: u32,
        spare: u32,
    ) -> Result<Option<Migration>, PoolError> {
        let mut moves = Vec::new();
        let outcome = self.choose_promotions(limit, spare, &mut moves);
        self.finish_plan(moves, outcome)
    }

    /// Plans to move exactly these pages to `rank`: an explicit promotion or demotion. All of
    /// them have to be movable, elsewhere, and each named once; `rank` has to have free slots.
    pub fn plan_move(
        &mut self,
        pages: &[PageId],
        rank: u32,
    ) -> Result<Option<Migration>, PoolError> {
        let mut seen = std::collections::HashSet::new();
        for &page in pages {
            self.check_movable(page)?;
            let location = self.live(page)?.location;
            let reason = if location.rank == rank {
                "it lies in that memory already"
            } else if !seen.insert(page) {
                "it is named twice"
            } else {
                continue;
            };
            return Err(PoolError::NotMovable { page, location, reason });
        }
        if pages.len() as u64 > u64::from(self.num_free(rank)) {
            return Err(PoolError::OutOfPages {
                asked: pages.len() as u64,
                available: u64::from(self.num_free(rank)),
                usage: self.usage(),
            });
        }
        let moves = pages.iter().filter_map(|&page| self.plan_one(page, rank)).collect();
        self.finish_plan(moves, Ok(()))
    }

    /// Every move of the migration has been carried out: its pages are read at their destinations
    /// from now on, and its source slots are free once no kernel may read there.
    pub fn complete(&mut self, id: MigrationId) -> Result<(), PoolError> {
        let moves = self.migrations.remove(&id).ok_or(PoolError::UnknownMigration(id.0))?;
        for Move { page, from, to } in moves {
            let entry = &mut self.pages[page.index()];
            entry.location = to;
            entry.promotion_queued = false;
            entry.moving = None;
            let in_use = entry.refs > 0;
            let leased = self.is_leased(&self.pages[page.index()]);
            self.departing[from.rank as usize] -= 1;
            if leased {
                self.slots[from.rank as usize].retire(from.slot);
                let stamp = self.leases.stamp();
                self.retiring.push_back((stamp, Retiring::Slot(from)));
            } else {
                self.slots[from.rank as usize].give_back(from.slot);
            }
            self.count_move(from, to, in_use);
            if in_use {
                self.consider_promotion(page);
            } else {
                self.settle(page);
            }
        }
        Ok(())
    }

    /// Queues a page that is read in a far tier for [`KvPool::plan_promotions`].
    pub(super) fn consider_promotion(&mut self, page: PageId) {
        let entry = &mut self.pages[page.index()];
        let rank = entry.location.rank;
        if rank != 0 && !entry.promotion_queued {
            entry.promotion_queued = true;
            self.promotion_queues[rank as usize].push_back(page);
        }
    }

    fn evict_until(
        &mut self,
        rank: u32,
        wanted: u32,
        moves: &mut Vec<Move>,
    ) -> Result<(), PoolError> {
        while self.num_coming(rank) < wanted {
            if !self.evict_one(rank, moves)? {
                break;
            }
        }
        Ok(())
    }

    /// Slots of `rank` that are free or about to be.
    fn num_coming(&self, rank: u32) -> u32 {
        self.num_free(rank) + self.num_departing(rank)
    }

    /// False when nothing is evictable at `rank`.
    fn evict_one(&mut self, rank: u32, moves: &mut Vec<Move>) -> Result<bool, PoolError> {
        let Some(victim) = self.checked_victim(rank)? else {
            return Ok(false);
        };
        match self.retreat(rank, victim)? {
            Some(to) => {
                self.policy.evicted(rank, victim);
                self.pages[victim.index()].evictable = false;
                moves.extend(self.plan_one(victim, to));
            }
            None => self.drop_page(victim),
        }
        Ok(true)
    }

    /// The memory with a free slot that a victim from `rank` goes to, if any.
    fn retreat(&mut self, rank: u32, victim: PageId) -> Result<Option<u32>, PoolError> {
        let host = self.budgets.host_rank();
        if rank == host {
            return Ok(None);
        }
        if rank == 0 {
            let roomiest = (1..host).max_by_key(|&peer| self.num_free(peer));
            if let Some(peer) = roomiest.filter(|&peer| self.num_free(peer) > 0) {
                return Ok(Some(peer));
            }
        }
        let has_room = self.num_free(host) > 0
            || (self.policy.displaces(host, &self.facts(victim)) && self.drop_coldest(host)?);
        Ok(has_room.then_some(host))
    }

    fn choose_promotions(
        &mut self,
        limit: u32,
        spare: u32,
        moves: &mut Vec<Move>,
    ) -> Result<(), PoolError> {
        let mut waiting_for_slots = 0;
        // The farthest first: their reads cost most.
        for from_rank in (1..self.budgets.num_locations()).rev() {
            // Pages that cannot move for now go to the back of the queue, and are not looked at
            // again in this plan.
            let mut looks = self.promotion_queues[from_rank as usize].len();
            while looks > 0 && moves.len() < limit as usize && waiting_for_slots < limit {
                looks -= 1;
                let Some(way) = self.way_nearer(from_rank, spare)? else {
                    break;
                };
                let Some(page) = self.next_candidate(from_rank) else {
                    continue;
                };
                let (to, displaced) = match way {
                    Way::FreeSlot(rank) => (self.budgets.tier(rank), None),
                    Way::Displacing(victim) => (Tier::Local, Some(self.facts(victim))),
                };
                let case = PromotionCase {
                    facts: self.facts(page),
                    from: self.budgets.tier(from_rank),
                    to,
                    displaced,
                };
                let pays = self.check_movable(page).is_ok() && self.policy.promotes(&case);
                match way {
                    Way::FreeSlot(rank) if pays => {
                        moves.extend(self.plan_one(page, rank));
                        continue;
                    }
                    Way::Displacing(_) if pays => {
                        waiting_for_slots += 1;
                        if waiting_for_slots > self.num_departing(0) {
                            self.evict_one(0, moves)?;
                        }
                    }
                    _ => {}
                }
                self.consider_promotion(page);
            }
        }
        Ok(())
    }

    /// Takes a page off the queue of `rank`; `None` when it is no candidate any more.
    fn next_candidate(&mut self, rank: u32) -> Option<PageId> {
        let page = self.promotion_queues[rank as usize].pop_front()?;
        let entry = &mut self.pages[page.index()];
        // The queue may hold a page twice, or one that has moved, or that is another page by now.
        let waits_here = entry.location.rank == rank && std::mem::take(&mut entry.promotion_queued);
        (waits_here && entry.moving.is_none() && entry.refs > 0).then_some(page)
    }

    /// How a page could come nearer from `rank`: to local memory while it has more than `spare`
    /// free slots, or in place of a cached page there; else, from the host, to a peer.
    fn way_nearer(&self, rank: u32, spare: u32) -> Result<Option<Way>, PoolError> {
        if self.num_free(0) > spare {
            return Ok(Some(Way::FreeSlot(0)));
        }
        if let Some(victim) = self.checked_victim(0)? {
            return Ok(Some(Way::Displacing(victim)));
        }
        let peers = 1..self.budgets.num_ranks;
        let roomiest = peers
            .filter(|&peer| rank == self.budgets.host_rank() && self.num_free(peer) > 0)
            .max_by_key(|&peer| self.num_free(peer));
        Ok(roomiest.map(Way::FreeSlot))
    }

    fn check_movable(&self, page: PageId) -> Result<(), PoolError> {
        let entry = self.live(page)?;
        let reason = if entry.moving.is_some() {
            "it is moving already"
        } else if entry.state == PageState::Filling {
            "it is still being filled"
        } else if self.is_leased(entry) {
            "a kernel may still read it"
        } else {
            return Ok(());
        };
        Err(PoolError::NotMovable { page, location: entry.location, reason })
    }

    /// Binds a free slot of `rank` to a movable page; `None` without one.
    fn plan_one(&mut self, page: PageId, rank: u32) -> Option<Move> {
        let slot = self.slots[rank as usize].take(page)?;
        self.make_unevictable(page);
        let to = Location { rank, slot };
        let entry = &mut self.pages[page.index()];
        // `finish_plan` gives every move of one plan this number.
        entry.moving = Some((MigrationId(self.last_migration + 1), to));
        let from = entry.location;
        self.departing[from.rank as usize] += 1;
        Some(Move { page, from, to })
    }

    /// Registers a plan, or takes its moves back when planning failed half way.
    fn finish_plan(
        &mut self,
        moves: Vec<Move>,
        outcome: Result<(), PoolError>,
    ) -> Result<Option<Migration>, PoolError> {
        if let Err(error) = outcome {
            for Move { page, from, to } in moves {
                let entry = &mut self.pages[page.index()];
                entry.moving = None;
                self.departing[from.rank as usize] -= 1;
                self.slots[to.rank as usize].give_back(to.slot);
                self.settle(page);
            }
            return Err(error);
        }
        if moves.is_empty() {
            return Ok(None);
        }
        self.last_migration += 1;
        let id = MigrationId(self.last_migration);
        self.migrations.insert(id, moves.clone());
        Ok(Some(Migration { id, moves }))
    }

    fn count_move(&mut self, from: Location, to: Location, in_use: bool) {
        self.stats.moved[from.rank as usize][to.rank as usize] += 1;
        self.stats.moved_in_use += u64::from(in_use);
        let (left, reached) = (self.budgets.tier(from.rank), self.budgets.tier(to.rank));
        if reached < left {
            self.stats.promotions += 1;
        } else if reached > left {
            self.stats.demotions += 1;
        }
    }
}
