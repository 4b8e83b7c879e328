use super::*;
use crate::kv::{Budgets, CostModel, Rates};

const LOCAL: u32 = 0;
const HOST: u32 = 2;

fn facts(page: u32, frequency: u32, last_use: u64, position: u32) -> PageFacts {
    PageFacts { page: PageId(page), frequency, last_use, refs: 0, position }
}

fn cost_aware() -> CostAware {
    let budgets = Budgets { num_ranks: 2, local_pages: 8, peer_pages: 8, host_pages: 8 };
    let costs = CostModel { rates: Rates::default(), page_bytes: 65536, page_size: 16 };
    CostAware::new(budgets, costs)
}

fn coldest(policy: &dyn EvictionPolicy, rank: u32) -> Option<usize> {
    policy.coldest(rank).map(PageId::index)
}

#[test]
fn lru_evicts_in_order_of_last_use_per_memory() {
    let mut lru = Lru::default();
    for (page, last_use) in [(0, 30), (1, 10), (2, 20)] {
        lru.insert(LOCAL, &facts(page, 1, last_use, 0));
    }
    lru.insert(HOST, &facts(3, 1, 1, 0));
    assert_eq!(coldest(&lru, LOCAL), Some(1));
    lru.evicted(LOCAL, PageId(1));
    assert_eq!(coldest(&lru, LOCAL), Some(2));
    lru.remove(LOCAL, PageId(2));
    assert_eq!(coldest(&lru, LOCAL), Some(0));
    assert_eq!(coldest(&lru, HOST), Some(3));
    assert_eq!(lru.num_evictable(LOCAL), 1);
}

#[test]
fn cost_aware_keeps_the_frequent_page_over_the_recent_one() {
    let mut policy = cost_aware();
    policy.insert(LOCAL, &facts(0, 9, 1, 0));
    policy.insert(LOCAL, &facts(1, 1, 2, 0));
    assert_eq!(coldest(&policy, LOCAL), Some(1));
}

#[test]
fn cost_aware_lets_old_fame_fade() {
    let mut policy = cost_aware();
    policy.insert(LOCAL, &facts(0, 3, 0, 0));
    for page in 1..20 {
        policy.insert(LOCAL, &facts(page, 1, u64::from(page), 0));
        let victim = policy.coldest(LOCAL).unwrap();
        policy.evicted(LOCAL, victim);
        if victim.index() == 0 {
            return;
        }
    }
    panic!("the page used three times long ago outlived 19 newer ones");
}

#[test]
fn cost_aware_drops_the_page_that_is_cheap_to_recompute() {
    let mut policy = cost_aware();
    policy.insert(HOST, &facts(0, 1, 2, 4000));
    policy.insert(HOST, &facts(1, 1, 1, 0));
    assert_eq!(coldest(&policy, HOST), Some(1));
    assert!(!policy.displaces(HOST, &facts(2, 1, 0, 0)));
    assert!(policy.displaces(HOST, &facts(3, 2, 3, 0)));
}

#[test]
fn cost_aware_promotes_when_reads_pay_for_the_copies() {
    let policy = cost_aware();
    let mut case = PromotionCase {
        facts: facts(0, 1, 0, 0),
        from: Tier::Host,
        to: Tier::Local,
        displaced: None,
    };
    assert!(!policy.promotes(&case), "nobody reads it");
    case.facts.refs = 1;
    assert!(policy.promotes(&case));
    case.displaced = Some(facts(1, 4, 0, 0));
    assert!(policy.promotes(&case));
    case.from = Tier::Local;
    assert!(!policy.promotes(&case), "it is there already");
}
