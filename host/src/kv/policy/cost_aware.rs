//! Greedy-dual: recency, frequency, and the cost of getting the page back.

use super::ranked::RankedPages;
use super::{EvictionPolicy, PageFacts, PromotionCase};
use crate::kv::{Budgets, CostModel, PageId, Tier};

/// Greedy-Dual-Size-Frequency (Cherkasova, 1998) per memory, for pages of one size.
///
/// A page is worth `age + frequency * cost`, where `cost` is the time to get it back from where
/// eviction would send it: a copy from the next tier, or, from the last one, computing it again,
/// which is dearer the deeper it lies in its prompt. `age` rises to the worth of each evicted
/// page, so that pages once popular fade.
///
/// A promotion pays when the reads it makes cheaper save more than the copies it takes.
#[derive(Debug)]
pub struct CostAware {
    pages: RankedPages,
    ages: Vec<u64>,
    costs: CostModel,
    budgets: Budgets,
}

/// Decode steps that a page in use is expected to be read in, per sequence that holds it. The
/// conversations of the Mooncake trace decode 343 tokens on average; a page met half way through
/// has about this many left.
const EXPECTED_READS: f64 = 128.0;

/// Worth is kept in units of 1/1024 ns, so that it can be ordered exactly.
const UNITS_PER_US: f64 = 1024.0 * 1e3;

impl CostAware {
    /// A policy for a pool with these budgets.
    pub fn new(budgets: Budgets, costs: CostModel) -> Self {
        Self {
            pages: RankedPages::default(),
            ages: vec![0; budgets.num_locations() as usize],
            costs,
            budgets,
        }
    }

    /// Where an eviction from `tier` sends a page; `None` when it is dropped.
    fn next_tier(&self, tier: Tier) -> Option<Tier> {
        match tier {
            Tier::Local if self.budgets.num_ranks > 1 => Some(Tier::Peer(1)),
            Tier::Local | Tier::Peer(_) => Some(Tier::Host),
            Tier::Host => None,
        }
    }

    /// µs to get the page back to rank 0 after an eviction from `tier`.
    fn return_us(&self, tier: Tier, position: u32) -> f64 {
        match self.next_tier(tier) {
            Some(next) => self.costs.move_us(next, Tier::Local),
            None => self.costs.recompute_us(position),
        }
    }

    fn worth(&self, rank: u32, facts: &PageFacts) -> u64 {
        let cost = self.return_us(self.budgets.tier(rank), facts.position);
        let units = f64::from(facts.frequency) * cost * UNITS_PER_US;
        self.ages[rank as usize].saturating_add(units as u64)
    }
}

impl EvictionPolicy for CostAware {
    fn name(&self) -> &'static str {
        "cost-aware"
    }

    fn insert(&mut self, rank: u32, facts: &PageFacts) {
        let worth = self.worth(rank, facts);
        self.pages.insert(rank, facts.page, worth, facts.last_use);
    }

    fn remove(&mut self, rank: u32, page: PageId) {
        self.pages.remove(rank, page);
    }

    fn coldest(&self, rank: u32) -> Option<PageId> {
        self.pages.coldest(rank).map(|(_, _, page)| page)
    }

    fn evicted(&mut self, rank: u32, page: PageId) {
        if let Some(worth) = self.pages.remove(rank, page) {
            let age = &mut self.ages[rank as usize];
            *age = worth.max(*age);
        }
    }

    fn displaces(&self, rank: u32, incoming: &PageFacts) -> bool {
        self.pages.coldest(rank).is_some_and(|(worth, last_use, _)| {
            (self.worth(rank, incoming), incoming.last_use) > (worth, last_use)
        })
    }

    fn promotes(&self, case: &PromotionCase) -> bool {
        let nearer = self.costs.read_us(case.from) - self.costs.read_us(case.to);
        let saved = f64::from(case.facts.refs) * EXPECTED_READS * nearer;
        let copied = self.costs.move_us(case.from, case.to);
        let displaced = case.displaced.map_or(0.0, |victim| {
            let away = self
                .next_tier(Tier::Local)
                .map_or(0.0, |next| self.costs.move_us(Tier::Local, next));
            // A page used n times is taken to be wanted back with odds n : 1.
            let comes_back = f64::from(victim.frequency) / f64::from(victim.frequency + 1);
            away + comes_back * self.return_us(Tier::Local, victim.position)
        });
        saved > copied + displaced
    }

    fn num_evictable(&self, rank: u32) -> usize {
        self.pages.len(rank)
    }
}
