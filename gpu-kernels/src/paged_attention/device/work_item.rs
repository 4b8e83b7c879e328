//! The blocks' lists of work, as they lie in device memory.

use cuda_std::prelude::*;
use cuda_std::warp::{FULL_MASK, WARP_SIZE};

use crate::paged_attention::{NUM_CLAIM_WORDS, WorkItem};

/// Reads an item.
#[inline(always)]
pub(super) unsafe fn load_item(items: Global<u32>, idx: u32) -> WorkItem {
    let item = items.offset(idx as usize * WorkItem::WORDS);
    let [request, kv_head, tile_begin, tile_end] = item.load_x4(0);
    let [kv_len, first_entry, next, part] = item.load_x4(4);
    let [part_begin, num_parts, meeting, merged] = item.load_x4(8);
    WorkItem {
        request,
        kv_head,
        tile_begin,
        tile_end,
        kv_len,
        first_entry,
        next,
        part,
        part_begin,
        num_parts,
        meeting,
        merged,
    }
}

/// The items, of which a block has some from the start, and claims others when it is about to be
/// free.
///
/// All warps of a block go through the same items, each at its own pace. Which one was claimed to come
/// after the block's item number `k`, counted from 0, is a word of shared memory: the low byte counts
/// who asked for it; whoever is first claims, and puts the item's place in the list above.
#[derive(Clone, Copy)]
pub(super) struct WorkList {
    pub(super) items: Global<u32>, // [items, WorkItem::WORDS]
    /// How many items were claimed: 0 between launches.
    pub(super) claimed: GlobalMut<u32>, // [1]
    /// The block's own claims, as a ring: `[NUM_CLAIM_WORDS]`.
    pub(super) claims: Shared<u32>,
}

/// Where an item's number starts in the word of a claim.
const ASKED_BITS: u32 = 8;

impl WorkList {
    /// Makes the ring empty. All threads call it, and meet before the first claim.
    #[inline(always)]
    pub(super) unsafe fn init(&self) {
        if thread::thread_idx_x() < NUM_CLAIM_WORDS {
            self.claims.store(thread::thread_idx_x() as usize, 0);
        }
    }

    #[inline(always)]
    unsafe fn claim(&self, number: u32) -> Shared<u32> {
        self.claims.offset((number % NUM_CLAIM_WORDS) as usize)
    }

    /// Claims what comes after the block's item of this number, unless a warp already has. One
    /// lane calls it.
    #[inline(always)]
    unsafe fn ask(&self, number: u32) {
        let claim = self.claim(number);
        if atomic::fetch_add_shared(claim, 0, 1) == 0 {
            // Warps are a few items apart at most: this one was used by all of them.
            self.claim(number + NUM_CLAIM_WORDS / 2).store(0, 0);
            let place = atomic::fetch_add_relaxed_gpu(self.claimed, 0, 1);
            let idx = thread::grid_dim_x() + place;
            atomic::fetch_add_shared(claim, 0, idx << ASKED_BITS);
        }
    }

    /// Starts what [`item_after`](Self::item_after) will wait for.
    #[inline(always)]
    pub(super) unsafe fn prepare_item_after(&self, item: &WorkItem, number: u32) {
        if item.next == WorkItem::CLAIMED && warp::lane_id() == 0 {
            self.ask(number);
        }
    }

    /// The item after the block's item number `number`, an idle one after the last. All lanes call
    /// it.
    #[inline(always)]
    pub(super) unsafe fn item_after(&self, item: &WorkItem, number: u32) -> WorkItem {
        match item.next {
            WorkItem::END => WorkItem::IDLE,
            WorkItem::CLAIMED => {
                let mut answer = 0;
                if warp::lane_id() == 0 {
                    self.ask(number);
                    while answer == 0 {
                        answer = atomic::fetch_add_shared(self.claim(number), 0, 0) >> ASKED_BITS;
                        if answer == 0 {
                            thread::spin_pause();
                        }
                    }
                }
                let (idx, _) = warp::warp_shuffle_idx(FULL_MASK, answer, 0, WARP_SIZE);
                let item = load_item(self.items, idx);
                if item.is_last_claim() && warp::lane_id() == 0 {
                    atomic::store_relaxed_gpu(self.claimed, 0, 0);
                }
                item
            }
            idx => load_item(self.items, idx),
        }
    }
}
