//! Plans, as data.

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use crate::paged_attention::contract::BatchMaxima;
use crate::paged_attention::plan::{
    Dealing, DecodePlan, ITEM_TILES, MAX_FIXED_PARTS, PlanMaxima, SplitPolicy,
};
use crate::paged_attention::{NUM_WARPS, TILE_TOKENS, WorkItem};

fn describe(plan: &DecodePlan) -> String {
    let mut text = String::new();
    for block in 0..plan.num_blocks {
        for item in plan.items_of(block) {
            let WorkItem { request, kv_head, tile_begin, tile_end, part_begin, .. } = *item;
            let result = match item.num_parts {
                1 => "out".into(),
                num_parts => format!("part {} of {num_parts}", item.part - part_begin),
            };
            text += &format!(
                "block {block}: request {request} head {kv_head} from entry {}, \
                 tiles {tile_begin}..{tile_end} -> {result}\n",
                item.first_entry,
            );
        }
    }
    text
}

#[test]
fn a_balanced_plan_is_as_reviewed() {
    insta::assert_snapshot!(describe(&DecodePlan::new(
        &[100, 0, 17],
        16,
        2,
        4,
        SplitPolicy::Balanced,
        Dealing::Planned
    )));
}

#[test]
fn a_batch_invariant_plan_is_as_reviewed() {
    let policy = SplitPolicy::BatchInvariant { part_tokens: 48 };
    insta::assert_snapshot!(describe(&DecodePlan::new(
        &[100, 0, 17],
        16,
        2,
        4,
        policy,
        Dealing::Planned
    )));
}

#[test]
fn a_list_to_be_claimed_is_as_reviewed() {
    let plan =
        DecodePlan::new(&[3000, 9000, 1300], 16, 2, 3, SplitPolicy::Balanced, Dealing::Claimed);
    let describe = |item: &WorkItem| {
        let WorkItem { request, kv_head, tile_begin, tile_end, num_parts, .. } = item;
        format!(
            "request {request} head {kv_head}, tiles {tile_begin}..{tile_end} of {num_parts} parts\n"
        )
    };
    let list: String = plan.items.iter().filter(|item| !item.is_idle()).map(describe).collect();
    insta::assert_snapshot!(list);
}

#[test]
fn few_pairs_and_short_ones_are_dealt_by_the_plan() {
    let is_claimed = |kv_lens: &[u32], num_blocks| {
        let policy = SplitPolicy::Balanced;
        let plan = DecodePlan::new(kv_lens, 16, 2, num_blocks, policy, Dealing::Claimed);
        plan.items.iter().any(|item| item.next == WorkItem::CLAIMED)
    };
    assert!(is_claimed(&[113, 500], 3));
    assert!(!is_claimed(&[113, 500], 4), "as many blocks as pairs");
    assert!(!is_claimed(&[112, 500], 3), "a warp without a tile");
    assert!(is_claimed(&[500; 5], 3));
    assert!(!is_claimed(&[500; 4], 3), "few pairs of one length");
}

#[test]
fn blocks_without_work_find_an_idle_item() {
    for policy in [SplitPolicy::Balanced, SplitPolicy::BatchInvariant { part_tokens: 16 }] {
        // Two tiles: a part for each, but where a pair of one tile a warp stays whole.
        let num_idle = if policy == SplitPolicy::Balanced { 4 } else { 3 };
        let plan = DecodePlan::new(&[20], 16, 1, 5, policy, Dealing::Planned);
        let idle = plan.items.iter().filter(|item| item.is_idle()).count();
        assert_eq!((plan.num_blocks, plan.items.len(), idle), (5, 5, num_idle), "{policy:?}");
    }
}

#[test]
fn requests_without_tokens_are_dealt_to_all_blocks() {
    let kv_lens = [vec![0; 60], vec![1024; 4]].concat();
    let plan = DecodePlan::new(&kv_lens, 16, 8, 132, SplitPolicy::Balanced, Dealing::Planned);
    let most = (0..132).map(|block| plan.items_of(block).count()).max();
    assert!(most <= Some(6), "480 empty pairs and 132 shares: {most:?} items");
}

#[test]
fn parts_that_end_within_a_tile_are_refused() {
    let refusal = |part_tokens| SplitPolicy::BatchInvariant { part_tokens }.check().unwrap_err();
    insta::assert_snapshot!(refusal(0), @"`part_tokens` must be a multiple of 16, got 0");
    insta::assert_snapshot!(refusal(24), @"`part_tokens` must be a multiple of 16, got 24");
}

/// A policy, and whether it is the balanced one.
fn policies() -> impl Strategy<Value = SplitPolicy> {
    prop_oneof![
        Just(SplitPolicy::Balanced),
        (1u32..40)
            .prop_map(|tiles| SplitPolicy::BatchInvariant { part_tokens: TILE_TOKENS * tiles }),
    ]
}

#[test]
fn requests_of_one_length_take_blocks_that_cut_evenly() {
    let working = |kv_lens: &[u32], num_kv_heads| {
        let plan = DecodePlan::new(
            kv_lens,
            16,
            num_kv_heads,
            132,
            SplitPolicy::Balanced,
            Dealing::Planned,
        );
        (0..132).filter(|&block| plan.items_of(block).next().is_some()).count()
    };
    // Whole pairs: 4, 1 and 16 a block.
    assert_eq!(working(&[8192; 64], 8), 128);
    assert_eq!(working(&[4096; 16], 8), 128);
    assert_eq!(working(&[1024; 256], 8), 128);
    // Parts of a pair: one, 8, 8 and 16.
    assert_eq!(working(&[16], 8), 8);
    assert_eq!(working(&[1024], 8), 64);
    assert_eq!(working(&[4096], 8), 64);
    assert_eq!(working(&[8192], 8), 128);
    // Too few blocks would work, or lengths differ.
    assert_eq!(working(&[4096; 10], 8), 132);
    assert_eq!(working(&[4096, 4000], 8), 132);
}

proptest! {
    #[test]
    fn a_plan_covers_every_tile_once_in_order(
        kv_lens in proptest::collection::vec(0u32..3000, 1..20),
        page_size in 1u32..=64,
        num_kv_heads in 1u32..9,
        num_blocks in 1u32..200,
        policy in policies(),
    ) {
        let plan = DecodePlan::new(&kv_lens, page_size, num_kv_heads, num_blocks, policy, Dealing::Planned);
        prop_assert_eq!(plan.num_blocks, num_blocks);
        let mut items: Vec<WorkItem> =
            (0..plan.num_blocks).flat_map(|block| plan.items_of(block)).copied().collect();
        items.sort_by_key(|item| (item.kv_head, item.request, item.tile_begin));
        let mut items = items.into_iter().peekable();
        let (mut part, mut meetings) = (0, 0);
        for kv_head in 0..num_kv_heads {
            let mut first_entry = 0;
            for (request, &kv_len) in kv_lens.iter().enumerate() {
                let mut of_pair = Vec::new();
                while let Some(item) =
                    items.next_if(|i| (i.request, i.kv_head) == (request as u32, kv_head))
                {
                    of_pair.push(item);
                }
                prop_assert_eq!(of_pair[0].tile_begin, 0);
                prop_assert_eq!(of_pair[of_pair.len() - 1].tile_end, kv_len.div_ceil(TILE_TOKENS));
                prop_assert!(of_pair.windows(2).all(|two| two[0].tile_end == two[1].tile_begin));
                for (i, item) in of_pair.iter().enumerate() {
                    prop_assert_eq!((item.kv_len, item.first_entry), (kv_len, first_entry));
                    prop_assert_eq!(item.num_parts as usize, of_pair.len());
                    if of_pair.len() > 1 {
                        prop_assert_eq!((item.part, item.part_begin), (part + i as u32, part));
                        prop_assert_eq!(item.meeting, meetings);
                    }
                }
                if of_pair.len() > 1 {
                    part += of_pair.len() as u32;
                    meetings += 1;
                }
                first_entry += kv_len.div_ceil(page_size);
            }
        }
        prop_assert!(items.next().is_none());
        prop_assert_eq!((plan.num_parts, plan.num_meetings), (part, meetings));
    }

    #[test]
    fn every_block_claims_until_an_idle_item_tells_it_to_stop(
        kv_lens in proptest::collection::vec(113u32..6000, 1..20),
        num_kv_heads in 1u32..9,
        num_blocks in 1u32..40,
    ) {
        prop_assume!(kv_lens.len() as u32 * num_kv_heads > 3 * num_blocks);
        let policy = SplitPolicy::Balanced;
        let plan =
            DecodePlan::new(&kv_lens, 16, num_kv_heads, num_blocks, policy, Dealing::Claimed);
        let (work, ends) = plan.items.split_at(plan.items.len() - num_blocks as usize);
        prop_assert!(work.len() >= num_blocks as usize);
        prop_assert!(work.iter().all(|item| item.next == WorkItem::CLAIMED));
        prop_assert!(work.iter().all(|item| !item.is_idle() && item.num_tiles() >= NUM_WARPS));
        prop_assert!(ends.iter().all(WorkItem::is_idle));
        let last: Vec<bool> = ends.iter().map(WorkItem::is_last_claim).collect();
        prop_assert!(last.iter().position(|&is_last| is_last) == Some(last.len() - 1));

        let mut items = work.to_vec();
        items.sort_by_key(|item| (item.request, item.kv_head, item.tile_begin));
        let mut items = items.into_iter().peekable();
        for (request, &kv_len) in kv_lens.iter().enumerate() {
            for kv_head in 0..num_kv_heads {
                let mut tiles = 0;
                while let Some(item) =
                    items.next_if(|i| (i.request, i.kv_head) == (request as u32, kv_head))
                {
                    prop_assert_eq!(item.tile_begin, tiles);
                    tiles = item.tile_end;
                }
                prop_assert_eq!(tiles, kv_len.div_ceil(TILE_TOKENS));
            }
        }
        prop_assert!(items.next().is_none());
    }

    #[test]
    fn a_plan_is_within_its_maxima(
        kv_lens in prop_oneof![
            proptest::collection::vec(0u32..3000, 0..20),
            proptest::collection::vec(113u32..3000, 20..40),
        ],
        page_size in 1u32..=64,
        num_kv_heads in 1u32..9,
        num_blocks in 1u32..200,
        policy in policies(),
    ) {
        let batch = BatchMaxima::of_lens(&kv_lens, page_size);
        let maxima = PlanMaxima::new(batch, page_size, num_kv_heads, num_blocks, policy).unwrap();
        for dealing in [Dealing::Planned, Dealing::Claimed] {
            let plan =
                DecodePlan::new(&kv_lens, page_size, num_kv_heads, num_blocks, policy, dealing);
            prop_assert!(plan.items.len() <= maxima.num_max_items as usize);
            prop_assert!(plan.num_parts <= maxima.num_max_parts);
            prop_assert!(plan.num_meetings <= maxima.num_max_meetings);
        }
    }

    #[test]
    fn balanced_shares_differ_by_a_tile(
        kv_len in 0u32..3000,
        num_requests in 1usize..20,
        num_kv_heads in 1u32..9,
        num_blocks in 1u32..200,
    ) {
        let kv_lens = vec![kv_len; num_requests];
        let plan = DecodePlan::new(&kv_lens, 16, num_kv_heads, num_blocks, SplitPolicy::Balanced, Dealing::Planned);
        let shares = (0..num_blocks).map(|block| plan.items_of(block).map(WorkItem::num_tiles).sum());
        let shares: Vec<u32> = shares.collect();
        let least = shares.iter().filter(|&&tiles| tiles > 0).min().copied().unwrap_or(0);
        prop_assert!(shares.iter().max().unwrap() - least <= 1);
    }

    #[test]
    fn where_lengths_differ_ends_of_items_count_as_tiles(
        kv_lens in proptest::collection::vec(1u32..3000, 2..20),
        num_kv_heads in 1u32..9,
        num_blocks in 1u32..200,
    ) {
        let tiles = |kv_len: &u32| kv_len.div_ceil(TILE_TOKENS);
        prop_assume!(kv_lens.iter().any(|kv_len| tiles(kv_len) != tiles(&kv_lens[0])));
        let plan = DecodePlan::new(&kv_lens, 16, num_kv_heads, num_blocks, SplitPolicy::Balanced, Dealing::Planned);
        let cost = |item: &WorkItem| {
            item.num_tiles() + if item.tile_begin == 0 { ITEM_TILES as u32 } else { 0 }
        };
        let shares = (0..num_blocks).map(|block| plan.items_of(block).map(cost).sum());
        let shares: Vec<u32> = shares.collect();
        // The end of an item is not cut.
        let share = shares.iter().sum::<u32>().div_ceil(num_blocks);
        prop_assert!(*shares.iter().max().unwrap() <= share + ITEM_TILES as u32);
    }

    #[test]
    fn parts_before_the_last_are_with_lower_blocks(
        kv_lens in proptest::collection::vec(0u32..3000, 1..20),
        num_blocks in 1u32..200,
        policy in policies(),
    ) {
        let plan = DecodePlan::new(&kv_lens, 16, 2, num_blocks, policy, Dealing::Planned);
        let mut block_of_part = vec![0; plan.num_parts as usize];
        for block in 0..num_blocks {
            for item in plan.items_of(block).filter(|item| item.num_parts > 1) {
                block_of_part[item.part as usize] = block;
            }
        }
        prop_assert!(block_of_part.is_sorted());
    }

    #[test]
    fn batch_invariant_parts_follow_from_the_length_alone(
        kv_len in 0u32..200_000,
        others in proptest::collection::vec(0u32..3000, 0..5),
        part_tiles in 1u32..40,
        (blocks_alone, blocks_in_batch) in (1u32..200, 1u32..200),
    ) {
        let policy = SplitPolicy::BatchInvariant { part_tokens: TILE_TOKENS * part_tiles };
        let parts = |kv_lens: &[u32], num_blocks| {
            let plan = DecodePlan::new(kv_lens, 16, 1, num_blocks, policy, Dealing::Planned);
            let mut items: Vec<WorkItem> =
                plan.items.iter().filter(|item| !item.is_idle() && item.request == 0).copied().collect();
            items.sort_by_key(|item| item.tile_begin);
            items.iter().map(|item| (item.tile_begin, item.tile_end, item.part - item.part_begin)).collect()
        };
        let alone: Vec<(u32, u32, u32)> = parts(&[kv_len], blocks_alone);
        prop_assert!(alone.len() as u32 <= MAX_FIXED_PARTS);
        let in_batch = parts(&[&[kv_len][..], &others].concat(), blocks_in_batch);
        prop_assert_eq!(alone, in_batch);
    }

    #[test]
    fn batch_invariant_loads_exceed_equal_shares_by_a_part_at_most(
        kv_lens in proptest::collection::vec(1u32..3000, 1..20),
        part_tiles in 1u32..40,
        num_blocks in 1u32..200,
    ) {
        let policy = SplitPolicy::BatchInvariant { part_tokens: TILE_TOKENS * part_tiles };
        let plan = DecodePlan::new(&kv_lens, 16, 2, num_blocks, policy, Dealing::Planned);
        let longest = plan.items.iter().map(WorkItem::num_tiles).max().unwrap();
        let loads = (0..num_blocks).map(|block| plan.items_of(block).map(WorkItem::num_tiles).sum());
        let loads: Vec<u32> = loads.collect();
        let share = loads.iter().sum::<u32>().div_ceil(num_blocks);
        prop_assert!(*loads.iter().max().unwrap() < share + longest);
    }
}
