//! A cluster: blocks that one OS thread runs together, and what they do to each other.

use std::io;
use std::panic::Location;

use super::block::{Block, End, Runner};
use super::executor::Launch;
use super::fault::{Fault, Violation};
use super::lane;
use super::memory;
use super::order::Order;
use super::shared::RawShared;

/// How far a cluster came.
pub(super) enum Outcome {
    /// All lanes have returned.
    Finished,
    /// Lanes poll for another cluster or rank, and no lane can do anything else.
    Spinning {
        /// Whether some lane got further than its next poll.
        progress: bool,
    },
    /// It ends, and so does the launch.
    Ended(End),
}

/// The blocks of a cluster, by rank. It may serve one cluster of the grid after another.
pub(super) struct Cluster {
    blocks: Vec<Runner>,
    order: Order,
}

impl Cluster {
    pub fn new(launch: &Launch) -> Self {
        let blocks: Vec<Runner> = (0..launch.cluster_size).map(|_| Runner::new(launch)).collect();
        let addresses: Vec<_> = blocks.iter().map(Runner::address).collect();
        for runner in &blocks {
            runner.join(&addresses);
        }
        Self { blocks, order: Order::new(launch.order, 0, 0) }
    }

    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.blocks.iter().map(Runner::block)
    }

    /// Begins cluster `linear` of the grid, x fastest.
    pub fn start(&mut self, linear: u64) -> io::Result<()> {
        let first = linear * self.blocks.len() as u64;
        let launch = self.blocks[0].block().launch();
        self.order = Order::new(launch.order, launch.number, first);
        for (runner, block) in self.blocks.iter_mut().zip(first..) {
            runner.start(block)?;
        }
        Ok(())
    }

    /// Runs lanes until all have returned, or only polling is left.
    pub fn run(&mut self) -> Outcome {
        let returned_before = self.num_returned();
        let writes_before = memory::num_writes();
        while let Some(rank) = self.next_ready() {
            if let Err(end) = self.blocks[rank].run() {
                return Outcome::Ended(end);
            }
        }
        if let Some(fault) = self.fault() {
            return Outcome::Ended(End::Fault(Box::new(fault)));
        }
        if self.blocks().all(Block::has_returned) {
            return Outcome::Finished;
        }
        let progress =
            self.num_returned() > returned_before || memory::num_writes() != writes_before;
        Outcome::Spinning { progress }
    }

    /// What is wrong, where no lane can run: loads that nobody waited for, or nobody even polls.
    fn fault(&self) -> Option<Fault> {
        let of_returned = self.blocks().filter(|block| block.has_returned());
        if let Some(fault) = of_returned.filter_map(Block::left_in_flight).next() {
            return Some(fault);
        }
        // All of them look again, not only the first that has something to look for.
        let num_polling = self.blocks().filter(|block| block.wake_spinning()).count();
        let stuck = self.blocks().find(|block| !block.has_returned())?;
        (num_polling == 0).then(|| Fault::Stuck {
            kernel: stuck.launch().kernel,
            block: stuck.idx(),
            waits: stuck.waits(),
        })
    }

    /// The rank of a block with lanes that can run.
    fn next_ready(&mut self) -> Option<usize> {
        let ready = self.blocks().map(Block::is_ready).enumerate();
        let ready = ready.fold(0, |ready, (rank, is_ready)| ready | u32::from(is_ready) << rank);
        (ready != 0).then(|| self.order.warp(ready) as usize)
    }

    fn num_returned(&self) -> usize {
        self.blocks().map(Block::num_returned).sum()
    }
}

pub fn block_rank() -> u32 {
    lane::current().block().rank() as u32
}

#[track_caller]
pub fn sync() {
    let lane = lane::current();
    lane.block().sync_cluster(lane, Location::caller(), |block| {
        block.share_knowledge(block.lanes_of_cluster());
    });
}

#[track_caller]
pub fn meet() {
    let lane = lane::current();
    lane.block().sync_cluster(lane, Location::caller(), |_| {});
}

#[track_caller]
pub unsafe fn load_x4(place: RawShared, rank: u32) -> [u32; 4] {
    place.in_block(reach(rank)).load_x4(0)
}

/// Block `rank` of the running lane's cluster, which is there for sure, or a fault.
#[track_caller]
pub(super) fn reach<'block>(rank: u32) -> &'block Block {
    let block = lane::current().block();
    let refuse = |rule: &str| -> ! {
        lane::raise(Violation::Cluster(format!("block {rank} of the cluster {rule}")))
    };
    if rank as usize >= block.cluster_size() {
        refuse(&format!("does not exist: there are {}", block.cluster_size()));
    }
    if !block.has_met_cluster() {
        refuse("may not have started: the cluster has not met");
    }
    let other = block.of_cluster(rank as usize);
    if other.has_returned() {
        refuse("may have ended: its threads have returned");
    }
    other
}
