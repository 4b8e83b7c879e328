//! Barriers for some threads of a block.

use super::fault::Violation;
use super::lane::{self, Lane};
use super::race::Knowledge;

/// Barriers of a block; number 0 is that of all threads.
const NUM_BARRIERS: usize = 16;
const WARP_SIZE: u32 = 32;

/// The named barriers of a block.
#[derive(Default)]
pub(super) struct NamedBarriers([NamedBarrier; NUM_BARRIERS]);

/// A barrier at which nobody is, or some of `num_threads`.
#[derive(Default)]
struct NamedBarrier {
    num_threads: u32,
    num_arrived: u32,
    /// Threads that wait for the others.
    waiting: Vec<u32>,
    /// What those know who came.
    knowledge: Knowledge,
}

impl NamedBarriers {
    /// Readies them for the next block.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Refuses what no thread can come to.
    fn check(&self, id: u32, num_threads: u32) -> Result<(), String> {
        let Some(barrier) = self.0.get(id as usize).filter(|_| id > 0) else {
            return Err(format!("a barrier for some threads has a number from 1 to 15, not {id}"));
        };
        if num_threads == 0 || !num_threads.is_multiple_of(WARP_SIZE) {
            return Err(format!("a barrier is for whole warps, and not for {num_threads} threads"));
        }
        if barrier.num_arrived > 0 && barrier.num_threads != num_threads {
            let others = barrier.num_threads;
            return Err(format!(
                "barrier {id} for {num_threads} threads; others came for {others}"
            ));
        }
        Ok(())
    }

    /// The state of a barrier, in words.
    pub fn describe(&self, id: u32) -> String {
        let NamedBarrier { num_threads, num_arrived, .. } = self.0[id as usize];
        format!("{num_arrived} of {num_threads} threads came")
    }
}

/// `lane` comes to a barrier, to wait there or not; whether it was the last.
#[track_caller]
pub(super) fn come(lane: &Lane, id: u32, num_threads: u32, waits: bool) -> bool {
    let mut barriers = lane.block().named_barriers.borrow_mut();
    if let Err(rule) = barriers.check(id, num_threads) {
        drop(barriers);
        lane::raise(Violation::Barrier(rule));
    }
    let barrier = &mut barriers.0[id as usize];
    barrier.num_threads = num_threads;
    barrier.num_arrived += 1;
    lane.release(&mut barrier.knowledge);
    if waits {
        barrier.waiting.push(lane.linear);
    }
    let is_last = barrier.num_arrived == num_threads;
    if is_last {
        barrier.num_arrived = 0;
        let knowledge = std::mem::take(&mut barrier.knowledge);
        for thread in barrier.waiting.drain(..) {
            let block = lane.block();
            block.lanes[thread as usize].acquire(&knowledge);
            if thread != lane.linear {
                block.make_ready(thread as usize / 32, 1 << (thread % 32));
            }
        }
    }
    is_last
}
