//! The choice where nothing is known of it: lanes sort their experts, and the best head is taken, `top_k`
//! times.

use cuda_std::prelude::*;
use cuda_std::warp::FULL_MASK;

use super::candidates::Chosen;
use super::memory::WarpMemory;
use super::score::{NO_KEY, mask};

impl WarpMemory {
    /// The lane of a slot's number has its expert: in each round the best of all lanes' heads is chosen.
    #[inline(always)]
    pub(super) unsafe fn choose_in_rounds<const V: usize>(
        &self,
        keys: &[u32; V],
        first_expert: u32,
        top_k: u32,
    ) -> Chosen {
        let lane = warp::lane_id();
        let mut sorted = Sorted::new(keys);
        let lower_lanes = (1 << lane) - 1;
        for slot in 0..top_k {
            let head = sorted.keys[0];
            let has_best = head == warp::warp_reduce_max(FULL_MASK, head);
            let holders = warp::warp_vote_ballot(FULL_MASK, has_best);
            let is_chosen = has_best & (holders & lower_lanes == 0);
            if is_chosen {
                self.ids.store(slot as usize, first_expert + sorted.place());
            }
            sorted.go_on_if(is_chosen);
        }
        warp::sync_warp(FULL_MASK);
        Chosen { slot: lane, id: if lane < top_k { self.ids.load(lane as usize) } else { 0 } }
    }
}

/// The choices of a lane, best first.
struct Sorted<const V: usize> {
    keys: [u32; V],
    /// Where each of them was: 4 bits, the best one's lowest.
    places: u64,
}

impl<const V: usize> Sorted<V> {
    #[inline(always)]
    fn new(lane_keys: &[u32; V]) -> Self {
        let mut entries = [0; V];
        for i in 0..V {
            entries[i] = entry(lane_keys[i], i, V);
        }
        sort_descending(&mut entries);
        let (mut keys, mut places) = ([NO_KEY; V], 0);
        for i in 0..V {
            keys[i] = (entries[i] >> 32) as u32;
            places |= u64::from(V as u32 - 1 - entries[i] as u32) << (4 * i);
        }
        Self { keys, places }
    }

    /// Where the best one was.
    #[inline(always)]
    fn place(&self) -> u32 {
        self.places as u32 & 15
    }

    /// Takes the best one away if `is_chosen`.
    #[inline(always)]
    fn go_on_if(&mut self, is_chosen: bool) {
        let mask = mask(is_chosen);
        for i in 1..V {
            self.keys[i - 1] = self.keys[i - 1] & !mask | self.keys[i] & mask;
        }
        self.keys[V - 1] &= !mask;
        self.places >>= 4 & mask;
    }
}

/// A choice and its place among `num` as one number, of which the greater is the better one.
#[inline(always)]
fn entry(key: u32, place: usize, num: usize) -> u64 {
    u64::from(key) << 32 | (num - 1 - place) as u64
}

/// Most comparisons of a sorting network here: of 16 entries.
const MAX_COMPARISONS: usize = 63;

/// Batcher's odd-even merge sort: which places are compared, and how often.
const fn network(num_entries: usize) -> ([[usize; 2]; MAX_COMPARISONS], usize) {
    let (mut pairs, mut len) = ([[0; 2]; MAX_COMPARISONS], 0);
    let mut run = 1;
    while run < num_entries {
        let mut distance = run;
        while distance > 0 {
            let mut begin = distance % run;
            while begin + distance < num_entries {
                let mut i = 0;
                while i < distance && begin + i + distance < num_entries {
                    let (low, high) = (begin + i, begin + i + distance);
                    if low / (2 * run) == high / (2 * run) {
                        pairs[len] = [low, high];
                        len += 1;
                    }
                    i += 1;
                }
                begin += 2 * distance;
            }
            distance /= 2;
        }
        run *= 2;
    }
    (pairs, len)
}

struct Network<const V: usize>;

impl<const V: usize> Network<V> {
    const PAIRS: [[usize; 2]; MAX_COMPARISONS] = network(V).0;
    const LEN: usize = network(V).1;
}

#[inline(always)]
fn sort_descending<const V: usize>(entries: &mut [u64; V]) {
    for i in 0..Network::<V>::LEN {
        let [low, high] = Network::<V>::PAIRS[i];
        let (a, b) = (entries[low], entries[high]);
        entries[low] = a.max(b);
        entries[high] = a.min(b);
    }
}
