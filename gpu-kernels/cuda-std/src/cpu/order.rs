//! In which order the lanes of a block run.

/// In which order ready threads run between two places where they wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneOrder {
    /// By index, one warp as far as it goes, then the next.
    Ascending,
    /// Random, and the same for the same seed: warps overtake each other, and the lanes of a warp
    /// run in another order each time. A missing barrier shows.
    Seeded(u64),
}

/// The order of one block.
pub(super) struct Order {
    /// State of a xorshift generator; 0 stands for ascending order.
    random: u64,
    /// A warp is left, while it could go on, once in `2^patience` times.
    patience: u32,
    warp: u32,
}

impl Order {
    /// The order of block `block` in launch number `launch` of the executor.
    pub fn new(order: LaneOrder, launch: u64, block: u64) -> Self {
        let LaneOrder::Seeded(seed) = order else {
            return Self { random: 0, patience: 0, warp: 0 };
        };
        let random = mix(seed ^ mix(launch ^ mix(block))) | 1;
        // Blocks differ in how far their warps drift apart.
        Self { random, patience: [0, 2, 5][(random >> 40) as usize % 3], warp: 0 }
    }

    /// The warp to run, of those in `ready`, which is not empty.
    pub fn warp(&mut self, ready: u32) -> u32 {
        if self.random == 0 {
            return ready.trailing_zeros();
        }
        let draw = self.draw();
        let stays = ready >> self.warp & 1 == 1 && draw & ((1 << self.patience) - 1) != 0;
        if !stays {
            let mut rest = ready;
            for _ in 0..(draw >> 32) % u64::from(ready.count_ones()) {
                rest &= rest - 1;
            }
            self.warp = rest.trailing_zeros();
        }
        self.warp
    }

    /// The lanes of `ready`, one after another.
    pub fn lanes(&mut self, ready: u32) -> Lanes {
        if self.random == 0 {
            return Lanes { ready, position: 0, factor: 0, offset: 0 };
        }
        let draw = self.draw();
        Lanes { ready, position: 0, factor: (draw >> 32) as u32 | 1, offset: (draw >> 8) as u32 }
    }

    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// A permutation of a set of lanes: position `i` is lane `factor * i + offset` modulo 32, which
/// is a permutation as `factor` is odd.
pub(super) struct Lanes {
    ready: u32,
    position: u32,
    /// 0: ascending.
    factor: u32,
    offset: u32,
}

impl Iterator for Lanes {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.ready == 0 {
            return None;
        }
        if self.factor == 0 {
            let lane = self.ready.trailing_zeros();
            self.ready &= self.ready - 1;
            return Some(lane);
        }
        loop {
            let lane = self.factor.wrapping_mul(self.position).wrapping_add(self.offset) & 31;
            self.position += 1;
            if self.ready >> lane & 1 == 1 {
                self.ready &= !(1 << lane);
                return Some(lane);
            }
        }
    }
}

/// The finalizer of splitmix64.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ready_lane_comes_once() {
        for order in [LaneOrder::Ascending, LaneOrder::Seeded(7)] {
            let mut order = Order::new(order, 0, 3);
            for ready in [1, 0x8000_0000, 0xffff_ffff, 0x0f0f_1234] {
                let lanes: Vec<u32> = order.lanes(ready).collect();
                assert_eq!(lanes.len() as u32, ready.count_ones());
                assert_eq!(lanes.iter().fold(0, |mask, lane| mask | 1 << lane), ready);
            }
        }
    }

    #[test]
    fn seeds_and_blocks_order_differently_and_repeat() {
        let lanes = |seed, block| -> Vec<u32> {
            Order::new(LaneOrder::Seeded(seed), 0, block).lanes(u32::MAX).collect()
        };
        assert_eq!(lanes(1, 1), lanes(1, 1));
        assert_ne!(lanes(1, 1), lanes(2, 1));
        assert_ne!(lanes(1, 1), lanes(1, 2));
    }

    #[test]
    fn seeded_warps_all_get_their_turn() {
        let mut order = Order::new(LaneOrder::Seeded(5), 0, 0);
        let ready = 0x8000_0011;
        let seen = (0..2000).fold(0, |seen, _| seen | 1 << order.warp(ready));
        assert_eq!(seen, ready);
    }
}
