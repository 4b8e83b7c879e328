use super::*;
use crate::kv::policy::{Lru, PromotionCase};
use crate::kv::{InvariantError, Migration, Tier};

const PAGE_SIZE: u32 = 4;
const HOST: u32 = 2;

fn pool_with(policy: Box<dyn EvictionPolicy>, local: u32, peer: u32, host: u32) -> KvPool {
    let budgets = Budgets { num_ranks: 2, local_pages: local, peer_pages: peer, host_pages: host };
    KvPool::new(budgets, PAGE_SIZE, policy).unwrap()
}

fn pool(local: u32, peer: u32, host: u32) -> KvPool {
    pool_with(Box::<Lru>::default(), local, peer, host)
}

fn keys(prefix_block: u64, pages: std::ops::Range<u32>) -> Vec<PageKey> {
    pages.map(|page_idx| PageKey { prefix_block, page_idx }).collect()
}

/// Opens a sequence over `num_pages` keyed pages and fills what is not cached.
fn admit(pool: &mut KvPool, id: u64, prefix_block: u64, num_pages: u32) -> u64 {
    let keys = keys(prefix_block, 0..num_pages);
    let hits = pool.open(SequenceId(id), &keys).unwrap().total();
    pool.extend(SequenceId(id), &keys[hits as usize..]).unwrap();
    hits
}

fn pages_of(pool: &KvPool, id: u64) -> Vec<PageId> {
    pool.sequence(SequenceId(id)).unwrap().pages().to_vec()
}

fn ranks_of(pool: &KvPool, id: u64) -> Vec<u32> {
    let rank = |&page: &PageId| pool.location(page).unwrap().rank;
    pages_of(pool, id).iter().map(rank).collect()
}

fn complete(pool: &mut KvPool, migration: Option<Migration>) -> usize {
    migration.map_or(0, |migration| {
        pool.complete(migration.id).unwrap();
        migration.moves.len()
    })
}

#[test]
fn equal_prefixes_share_pages_until_they_differ() {
    let mut pool = pool(16, 4, 4);
    assert_eq!(admit(&mut pool, 0, 7, 4), 0);
    assert_eq!(admit(&mut pool, 1, 7, 6), 4);
    assert_eq!(pages_of(&pool, 0), pages_of(&pool, 1)[..4]);
    assert_eq!(admit(&mut pool, 2, 8, 4), 0, "other prefix, same positions");
    assert_eq!(pool.num_references(pages_of(&pool, 0)[0]), Ok(2));
    assert_eq!(pool.stats().hits, [4, 0, 0]);
    assert_eq!(pool.stats().misses, 10);
    pool.check_invariants().unwrap();
}

#[test]
fn a_released_prefix_stays_cached_and_is_found_again() {
    let mut pool = pool(8, 4, 4);
    admit(&mut pool, 0, 7, 4);
    pool.append(SequenceId(0), 5).unwrap();
    pool.release(SequenceId(0)).unwrap();
    assert_eq!(pool.num_evictable(0), 4, "the two private pages are gone");
    assert_eq!(pool.num_free(0), 4);
    assert_eq!(admit(&mut pool, 1, 7, 4), 4);
    pool.check_invariants().unwrap();
}

#[test]
fn a_hole_in_the_chain_ends_the_hits_but_pages_behind_it_are_shared() {
    let mut pool = pool(8, 4, 4);
    pool.open(SequenceId(0), &[]).unwrap();
    pool.extend(SequenceId(0), &keys(7, 2..3)).unwrap();
    pool.open(SequenceId(1), &keys(7, 0..4)).unwrap();
    assert_eq!(pages_of(&pool, 1), []);
    assert_eq!(pool.extend(SequenceId(1), &keys(7, 0..4)), Ok(vec![0, 1, 3]));
    assert_eq!(pages_of(&pool, 1)[2], pages_of(&pool, 0)[0]);
    pool.check_invariants().unwrap();
}

#[test]
fn a_page_is_shared_once_it_is_published() {
    let mut pool = pool(8, 1, 1);
    let [first, second] = [SequenceId(0), SequenceId(1)];
    let keys = keys(7, 0..2);
    for id in [first, second] {
        pool.open(id, &[]).unwrap();
        pool.append(id, PAGE_SIZE + 1).unwrap();
    }
    assert_eq!(pool.cached_prefix(&keys), []);
    assert_eq!(pool.publish(first, 0, keys[0]), Ok(true));
    assert_eq!(pool.publish(first, 0, keys[0]), Ok(true), "said again");
    assert_eq!(pool.publish(second, 0, keys[0]), Ok(false), "it is cached in another page");
    assert_eq!(pool.publish(first, 0, keys[1]), Err(PoolError::OtherKey(pages_of(&pool, 0)[0])));
    assert_eq!(
        pool.publish(first, 1, keys[1]).unwrap_err().to_string(),
        "page 1 of sequence 0 is not full: its first 1 pages are"
    );
    assert_eq!(pool.cached_prefix(&keys), pages_of(&pool, 0)[..1]);
    pool.release(first).unwrap();
    pool.release(second).unwrap();
    assert_eq!((pool.num_free(0), pool.num_evictable(0)), (7, 1));
    assert_eq!(pool.open(first, &keys).unwrap().total(), 1);
    pool.check_invariants().unwrap();
}

#[test]
fn appended_tokens_fill_the_last_page_before_they_open_one() {
    let mut pool = pool(8, 4, 4);
    pool.open(SequenceId(0), &[]).unwrap();
    assert_eq!(pool.append(SequenceId(0), 0), Ok(0..0));
    assert_eq!(pool.append(SequenceId(0), 3), Ok(0..1));
    assert_eq!(pool.append(SequenceId(0), 1), Ok(1..1));
    assert_eq!(pool.append(SequenceId(0), 9), Ok(1..4));
    let sequence = pool.sequence(SequenceId(0)).unwrap();
    assert_eq!(sequence.num_tokens(), 13);
    assert_eq!(sequence.last_page_len(PAGE_SIZE), 1);
    pool.check_invariants().unwrap();
    let error = pool.extend(SequenceId(0), &keys(7, 0..1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "sequence 0 holds 13 tokens, which is no whole number of pages of 4: \
         keyed pages cannot follow"
    );
}

#[test]
fn eviction_goes_to_the_peer_then_to_the_host_then_nowhere() {
    let mut pool = pool(4, 2, 3);
    for id in 0..4 {
        admit(&mut pool, id, id, 1);
        pool.release(SequenceId(id)).unwrap();
    }
    let migration = pool.plan_room(4).unwrap().unwrap();
    let to: Vec<Tier> = migration.moves.iter().map(|m| pool.budgets().tier(m.to.rank)).collect();
    assert_eq!(to, [Tier::Peer(1), Tier::Peer(1), Tier::Host, Tier::Host]);
    complete(&mut pool, Some(migration));
    assert_eq!(pool.num_free(0), 4);

    for id in 4..8 {
        admit(&mut pool, id, id, 1);
        pool.release(SequenceId(id)).unwrap();
    }
    let migration = pool.plan_room(4).unwrap();
    complete(&mut pool, migration);
    assert_eq!(
        pool.stats().dropped,
        [1, 0, 2],
        "two in the host made way; the last found only pages in flight there"
    );
    assert_eq!(pool.stats().evictions(), 4 + 3 + 3);
    assert_eq!(pool.num_free(0), 4);
    pool.check_invariants().unwrap();
}

#[test]
fn a_peer_sends_its_surplus_on_to_the_host() {
    let mut pool = pool(32, 32, 32);
    admit(&mut pool, 0, 0, 32);
    pool.release(SequenceId(0)).unwrap();
    let migration = pool.plan_room(32).unwrap();
    assert_eq!(complete(&mut pool, migration), 32);
    assert_eq!(pool.num_free(1), 0);
    let migration = pool.plan_room(0).unwrap();
    assert_eq!(complete(&mut pool, migration), 2);
    assert_eq!((pool.num_free(1), pool.num_free(HOST)), (2, 30));
}

#[test]
fn referenced_pages_are_not_evicted_and_new_ones_spill() {
    let mut pool = pool(2, 2, 2);
    admit(&mut pool, 0, 0, 2);
    assert_eq!(pool.plan_room(1), Ok(None));
    admit(&mut pool, 1, 1, 3);
    assert_eq!(ranks_of(&pool, 1), [1, 1, 2]);
    pool.check_invariants().unwrap();
}

#[test]
fn out_of_pages_says_what_holds_them_and_changes_nothing() {
    let mut pool = pool(4, 1, 1);
    admit(&mut pool, 0, 7, 2);
    admit(&mut pool, 1, 7, 2);
    pool.append(SequenceId(1), 1).unwrap();
    admit(&mut pool, 2, 8, 1);
    pool.release(SequenceId(2)).unwrap();
    let lease = pool.lease_reads();
    admit(&mut pool, 3, 9, 1);
    pool.open(SequenceId(4), &[]).unwrap();
    let error = pool.append(SequenceId(4), 3 * PAGE_SIZE).unwrap_err();
    insta::assert_snapshot!(error, @"out of pages: 3 asked for, 2 can be had at once (local: 0 of 4 free, 1 cached, 3 bound, 0 shared, 0 private; peer 1: 0 of 1 free, 0 cached, 0 bound, 0 shared, 1 private; host: 1 of 1 free, 0 cached, 0 bound, 0 shared, 0 private)");
    assert_eq!(pages_of(&pool, 4), []);
    pool.retire(lease).unwrap();
    let error = pool.append(SequenceId(4), 3 * PAGE_SIZE).unwrap_err();
    insta::assert_snapshot!(error, @"out of pages: 3 asked for, 2 can be had at once (local: 0 of 4 free, 1 cached, 0 bound, 2 shared, 1 private; peer 1: 0 of 1 free, 0 cached, 0 bound, 0 shared, 1 private; host: 1 of 1 free, 0 cached, 0 bound, 0 shared, 0 private)");
    // The two that can be had: the free one, and the cached one by dropping it.
    pool.append(SequenceId(4), 2 * PAGE_SIZE).unwrap();
    assert_eq!(pool.stats().dropped, [1, 0, 0]);
    pool.check_invariants().unwrap();
}

#[test]
fn a_move_owns_both_slots_until_it_is_completed() {
    let mut pool = pool(2, 2, 2);
    admit(&mut pool, 0, 0, 2);
    let page = pages_of(&pool, 0)[0];
    let migration = pool.plan_move(&[page], HOST).unwrap().unwrap();
    assert_eq!(pool.location(page).unwrap().rank, 0, "still read at its source");
    assert_eq!((pool.num_free(0), pool.num_free(HOST)), (0, 1));
    assert!(matches!(
        pool.plan_move(&[page], 1),
        Err(PoolError::NotMovable { reason: "it is moving already", .. })
    ));
    pool.check_invariants().unwrap();
    pool.complete(migration.id).unwrap();
    assert_eq!(pool.location(page), Ok(migration.moves[0].to));
    assert_eq!((pool.num_free(0), pool.num_free(HOST)), (1, 1));
    assert_eq!(pool.complete(migration.id), Err(PoolError::UnknownMigration(1)));
    pool.check_invariants().unwrap();
}

#[test]
fn leased_pages_stay_and_left_slots_wait_for_their_readers() {
    let mut pool = pool(2, 2, 2);
    admit(&mut pool, 0, 0, 2);
    let [first, second] = pages_of(&pool, 0)[..] else { panic!("two pages") };
    let migration = pool.plan_move(&[first], HOST).unwrap().unwrap();
    let lease = pool.lease_reads();
    assert!(matches!(
        pool.plan_move(&[second], HOST),
        Err(PoolError::NotMovable { reason: "a kernel may still read it", .. })
    ));
    // The copy was planned before the kernel: it may end, but the kernel still reads the source.
    pool.complete(migration.id).unwrap();
    assert_eq!(pool.num_free(0), 0);
    pool.release(SequenceId(0)).unwrap();
    assert_eq!(pool.num_evictable(0), 0, "released under the lease");
    assert_eq!(pool.plan_room(1), Ok(None));
    pool.check_invariants().unwrap();
    pool.retire(lease).unwrap();
    assert_eq!((pool.num_free(0), pool.num_evictable(0)), (1, 1));
    pool.check_invariants().unwrap();
}

#[test]
fn a_page_shared_again_stays_under_its_old_lease() {
    let mut pool = pool(2, 2, 2);
    admit(&mut pool, 0, 0, 1);
    let lease = pool.lease_reads();
    pool.release(SequenceId(0)).unwrap();
    admit(&mut pool, 1, 0, 1);
    let page = pages_of(&pool, 1)[0];
    assert!(pool.plan_move(&[page], HOST).is_err());
    pool.release(SequenceId(1)).unwrap();
    assert_eq!(pool.num_evictable(0), 0);
    let younger = pool.lease_reads();
    pool.retire(lease).unwrap();
    assert_eq!(pool.num_evictable(0), 1, "the younger lease does not cover it");
    pool.retire(younger).unwrap();
    pool.check_invariants().unwrap();
}

#[test]
fn promotions_bring_pages_in_use_home() {
    let mut pool = pool(3, 4, 4);
    admit(&mut pool, 0, 0, 2);
    admit(&mut pool, 1, 1, 3);
    assert_eq!(ranks_of(&pool, 1), [0, 1, 1]);
    assert_eq!(pool.plan_promotions(8, 0), Ok(None), "no slot, and none to be had");
    pool.release(SequenceId(0)).unwrap();
    let evictions = pool.plan_promotions(8, 0).unwrap();
    assert_eq!(complete(&mut pool, evictions), 2);
    let promotions = pool.plan_promotions(1, 0).unwrap();
    assert_eq!(complete(&mut pool, promotions), 1);
    let promotions = pool.plan_promotions(8, 0).unwrap();
    assert_eq!(complete(&mut pool, promotions), 1);
    assert_eq!(ranks_of(&pool, 1), [0, 0, 0]);
    assert_eq!(pool.stats().promotions, 2);
    assert_eq!(pool.stats().moved_in_use, 2);
    pool.check_invariants().unwrap();
}

#[test]
fn promotions_leave_the_spare_slots_free() {
    let mut pool = pool(2, 4, 4);
    admit(&mut pool, 0, 0, 2);
    admit(&mut pool, 1, 1, 1);
    pool.append(SequenceId(0), 1).unwrap();
    pool.release(SequenceId(0)).unwrap();
    let room = pool.plan_room(2).unwrap();
    complete(&mut pool, room);
    assert_eq!(pool.num_free(0), 2);
    assert_eq!(pool.plan_promotions(8, 2), Ok(None));
    let migration = pool.plan_promotions(8, 1).unwrap();
    assert_eq!(complete(&mut pool, migration), 1);
}

#[test]
fn unknown_ids_and_double_frees_are_refused() {
    let mut pool = pool(2, 2, 2);
    let id = SequenceId(5);
    let unknown = Err(PoolError::UnknownSequence(id));
    assert_eq!(pool.release(id), unknown);
    assert_eq!(pool.append(id, 1).map(|_| ()), unknown);
    assert_eq!(pool.extend(id, &[]).map(|_| ()), unknown);
    pool.open(id, &[]).unwrap();
    assert_eq!(pool.open(id, &[]), Err(PoolError::SequenceExists(id)));
    pool.append(id, 1).unwrap();
    let page = pages_of(&pool, 5)[0];
    pool.release(id).unwrap();
    assert_eq!(pool.release(id), unknown);
    assert_eq!(pool.location(page), Err(PoolError::UnknownPage(page)));
    assert_eq!(pool.plan_move(&[page], 1), Err(PoolError::UnknownPage(page)));
    let foreign = ReadLease(3);
    assert_eq!(pool.retire(foreign), Err(PoolError::UnknownLease(3)));
    let error = pool.page_lists(&[id]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "sequence 5 is not open: it was never opened, or is released already"
    );
}

#[test]
fn budgets_and_sizes_of_zero_are_refused() {
    let refused = |num_ranks, local_pages, peer_pages, host_pages, page_size| {
        let budgets = Budgets { num_ranks, local_pages, peer_pages, host_pages };
        match KvPool::new(budgets, page_size, Box::<Lru>::default()) {
            Ok(_) => "accepted".to_string(),
            Err(error) => error.to_string(),
        }
    };
    let needs = |tier| format!("the {tier} tier needs a budget of at least 1 page, got 0");
    assert_eq!(refused(1, 0, 1, 1, 4), needs("local"));
    assert_eq!(refused(2, 1, 0, 1, 4), needs("peer 1"));
    assert_eq!(refused(2, 1, 1, 0, 4), needs("host"));
    assert_eq!(refused(1, 1, 0, 1, 4), "accepted");
    assert_eq!(refused(0, 1, 1, 1, 4), "the pool needs at least one GPU, got 0");
    assert_eq!(refused(1, 1, 1, 1, 0), "page_size needs to be at least 1 token, got 0");
    assert_eq!(
        refused(1, 1 << 31, 1, 1, 4),
        "the local tier holds at most 2147483647 pages, got 2147483648"
    );
}

#[test]
fn migrations_are_grouped_by_direction() {
    let mut pool = pool(4, 4, 4);
    admit(&mut pool, 0, 0, 3);
    let pages = pages_of(&pool, 0);
    let there = pool.plan_move(&pages[..1], 1).unwrap();
    complete(&mut pool, there);
    let mut migration = pool.plan_move(&pages, HOST).unwrap().unwrap();
    migration.moves.rotate_left(1);
    let groups = migration.copy_groups();
    let shape: Vec<_> = groups
        .iter()
        .map(|g| (g.from_rank, g.to_rank, g.from_slots.len(), g.to_slots.len()))
        .collect();
    assert_eq!(shape, [(0, 2, 2, 2), (1, 2, 1, 1)]);
    assert!(pool.plan_move(&[pages[0], pages[0]], 1).is_err());
}

#[test]
fn the_page_table_says_where_each_page_lies() {
    let mut pool = pool(2, 4, 4);
    admit(&mut pool, 0, 0, 2);
    pool.open(SequenceId(1), &[]).unwrap();
    admit(&mut pool, 2, 0, 2);
    pool.append(SequenceId(2), 5).unwrap();
    let batch = [SequenceId(2), SequenceId(1), SequenceId(0)];
    let table = pool.page_lists(&batch).unwrap();
    assert_eq!(table.kv_indptr, [0, 4, 4, 6]);
    assert_eq!(table.kv_indices, [0, 1, 0, 1, 0, 1]);
    assert_eq!(table.kv_page_rank, [0, 0, 1, 1, 0, 0]);
    assert_eq!(table.kv_last_page_len, [1, 0, 4]);
}

/// Names the page of its choice as victim, whatever the pool told it.
struct Names(PageId);

impl EvictionPolicy for Names {
    fn name(&self) -> &'static str {
        "names"
    }
    fn insert(&mut self, _rank: u32, _facts: &PageFacts) {}
    fn remove(&mut self, _rank: u32, _page: PageId) {}
    fn coldest(&self, _rank: u32) -> Option<PageId> {
        Some(self.0)
    }
    fn displaces(&self, _rank: u32, _incoming: &PageFacts) -> bool {
        true
    }
    fn promotes(&self, _case: &PromotionCase) -> bool {
        true
    }
    fn num_evictable(&self, _rank: u32) -> usize {
        0
    }
}

#[test]
fn a_policy_that_chooses_a_page_in_use_is_refused() {
    let mut pool = pool_with(Box::new(Names(PageId(0))), 2, 2, 2);
    let unsafe_victim =
        |reason| Err(PoolError::UnsafeVictim { policy: "names", page: PageId(0), reason });
    assert_eq!(pool.plan_room(2), Ok(None), "nothing needs to go");
    admit(&mut pool, 0, 0, 2);
    assert_eq!(pool.plan_room(1), unsafe_victim("a sequence still holds"));
    let lease = pool.lease_reads();
    pool.release(SequenceId(0)).unwrap();
    assert_eq!(pool.plan_room(1), unsafe_victim("a kernel may still read"));
    pool.retire(lease).unwrap();
    // The first eviction is planned; naming the same page again undoes the plan.
    assert_eq!(pool.plan_room(2), unsafe_victim("is moving"));
    assert!(pool.migrations.is_empty());
    assert_eq!((pool.num_free(0), pool.num_free(1)), (0, 2));
}

#[test]
fn invariants_notice_each_kind_of_damage() {
    let damaged = |damage: fn(&mut KvPool)| {
        let mut pool = pool(4, 2, 2);
        admit(&mut pool, 0, 0, 3);
        admit(&mut pool, 1, 0, 1);
        pool.release(SequenceId(0)).unwrap();
        pool.check_invariants().unwrap();
        damage(&mut pool);
        pool.check_invariants().unwrap_err()
    };
    assert!(matches!(
        damaged(|pool| pool.pages[0].refs += 1),
        InvariantError::References { counted: 2, held: 1, .. }
    ));
    assert!(matches!(
        damaged(|pool| pool.pages[1].location.slot = 0),
        InvariantError::LeakedSlot { .. }
    ));
    assert!(matches!(
        damaged(|pool| assert!(pool.slots[0].take(PageId(9)).is_some())),
        InvariantError::LeakedSlot { .. }
    ));
    assert!(matches!(
        damaged(|pool| pool.slots[0].give_back(0)),
        InvariantError::ForeignSlot { .. }
    ));
    assert!(matches!(damaged(|pool| pool.slots[0].give_back(3)), InvariantError::SlotSum { .. }));
    assert!(matches!(damaged(|pool| pool.slots[2].retire(1)), InvariantError::SlotSum { .. }));
    let damages: [fn(&mut KvPool); 6] = [
        |pool| drop(pool.index.drain()),
        |pool| pool.pages[1].key = None,
        |pool| pool.pages[2].evictable = false,
        |pool| pool.departing[1] = 1,
        |pool| pool.policy.remove(0, PageId(1)),
        |pool| pool.retiring.push_back((0, Retiring::Page(PageId(0)))),
    ];
    for damage in damages {
        assert!(matches!(damaged(damage), InvariantError::Other(_)));
    }
}
