//! One block of a launch: its lanes, what they share, and who may run next.

use std::cell::{Cell, OnceCell, RefCell};
use std::ptr::NonNull;

use corosensei::Coroutine;

use super::bulk::Mbarriers;
use super::executor::Launch;
use super::fault::{BlockIdx, Fault, Violation, Waits, WaitsFor};
use super::lane::{self, Caller, Lane, Wait};
use super::named_barrier::NamedBarriers;
use super::order::Order;
use super::race::{self, Abroad, ClusterId, Timeline, Timelines};
use super::shared::SharedMemory;
use super::stack::{self, LaneStack};
use super::warp::Warp;
use super::wgmma::{self, Warpgroup};

/// What the lanes of a block share. One OS thread runs them all, so cells suffice.
pub(super) struct Block {
    launch: *const Launch,
    idx: Cell<[u32; 3]>,
    pub shared: SharedMemory,
    pub mbarriers: RefCell<Mbarriers>,
    pub named_barriers: RefCell<NamedBarriers>,
    pub warps: Vec<Warp>,
    /// Those with all their warps.
    pub warpgroups: Vec<Warpgroup>,
    pub lanes: Vec<Lane>,
    /// Warps that have a ready lane.
    ready_warps: Cell<u32>,
    num_returned: Cell<usize>,
    meeting: Meeting,
    /// The blocks of its cluster, by rank.
    cluster: OnceCell<Vec<NonNull<Block>>>,
    /// Where all lanes of those meet, if this is the first of them.
    cluster_meeting: Meeting,
    /// Those of the cluster, if this is the first of its blocks.
    timelines: Timelines,
    /// Whether they have met.
    has_met_cluster: Cell<bool>,
    fault: RefCell<Option<Fault>>,
    ending: Cell<bool>,
}

/// Where lanes wait until all are there.
#[derive(Default)]
struct Meeting {
    num_arrived: Cell<usize>,
    /// The call that the first of them made.
    arrived_at: Cell<Option<Caller>>,
    /// Whether others made another.
    diverged: Cell<bool>,
}

impl Meeting {
    /// One more lane is there. Whether all are, of `num_lanes`.
    fn come(&self, site: Caller, num_lanes: usize) -> bool {
        match self.arrived_at.get() {
            None => self.arrived_at.set(Some(site)),
            Some(first) => self.diverged.set(self.diverged.get() | (first != site)),
        }
        self.num_arrived.set(self.num_arrived.get() + 1);
        let all = self.num_arrived.get() == num_lanes && !self.diverged.get();
        if all {
            self.num_arrived.set(0);
            self.arrived_at.set(None);
        }
        all
    }
}

impl Block {
    pub fn launch(&self) -> &Launch {
        // SAFETY: a launch outlives its blocks.
        unsafe { &*self.launch }
    }

    #[inline(always)]
    pub fn idx(&self) -> BlockIdx {
        BlockIdx(self.idx.get())
    }

    /// Whether the block is being torn down.
    pub fn is_ending(&self) -> bool {
        self.ending.get()
    }

    /// Ends the block; the first reason stays.
    pub fn end(&self, fault: Fault) {
        self.ending.set(true);
        self.fault.borrow_mut().get_or_insert(fault);
    }

    /// Lets `lanes` of warp `warp` run.
    #[inline(always)]
    pub fn make_ready(&self, warp: usize, lanes: u32) {
        let ready = &self.warps[warp].ready;
        ready.set(ready.get() | lanes);
        self.ready_warps.set(self.ready_warps.get() | 1 << warp);
    }

    /// Waits in `lane` until all lanes are here.
    pub fn sync_threads(&self, lane: &Lane, site: Caller) {
        lane.wait.set(Wait::Block(site));
        if self.meeting.come(site, self.lanes.len()) {
            self.share_knowledge(self.lanes.iter());
            self.make_all_ready();
        }
        lane.suspend();
    }

    /// Waits in `lane` until all lanes of the cluster are here, which `then` may tell each other
    /// something.
    pub fn sync_cluster(&self, lane: &Lane, site: Caller, then: impl FnOnce(&Self)) {
        lane.wait.set(Wait::Cluster(site));
        let num_lanes = self.cluster_size() * self.lanes.len();
        if self.of_cluster(0).cluster_meeting.come(site, num_lanes) {
            then(self);
            for rank in 0..self.cluster_size() {
                let block = self.of_cluster(rank);
                block.has_met_cluster.set(true);
                block.make_all_ready();
            }
        }
        lane.suspend();
    }

    /// Lets these lanes know what all of them know and did, where races are looked for.
    pub fn share_knowledge<'a>(&self, lanes: impl Iterator<Item = &'a Lane> + Clone) {
        if self.launch().check_races {
            race::meet(lanes.map(|lane| &lane.clock));
        }
    }

    /// Tells `to` what its lanes know of other clusters.
    pub fn tell_learned(&self, to: &mut Abroad) {
        self.lanes.iter().for_each(|lane| to.join(lane.clock.borrow().knowledge().abroad()));
    }

    /// The lanes of its cluster.
    pub fn lanes_of_cluster(&self) -> impl Iterator<Item = &Lane> + Clone {
        (0..self.cluster_size()).flat_map(|rank| &self.of_cluster(rank).lanes)
    }

    /// Its cluster, among all that ever ran.
    pub fn cluster_id(&self) -> ClusterId {
        let launch = self.launch();
        let ([x, y, z], [width, height, _]) = (self.idx.get(), launch.dims.grid);
        let linear = x + width * (y + height * z);
        ClusterId { launch: launch.work, cluster: linear / launch.cluster_size }
    }

    /// The timelines of its cluster.
    pub fn timelines(&self) -> &Timelines {
        &self.of_cluster(0).timelines
    }

    /// That of lane `linear`.
    pub fn timeline_of(&self, linear: u32) -> Timeline {
        (self.rank() * self.lanes.len()) as Timeline + linear as Timeline
    }

    /// Whose timeline it is, in words.
    pub fn name_of_thread(&self, timeline: Timeline) -> String {
        let timeline = usize::from(timeline);
        let (rank, thread) = (timeline / self.lanes.len(), timeline % self.lanes.len());
        match rank == self.rank() {
            true => format!("thread {thread}"),
            false => format!("thread {thread} of block {rank} of the cluster"),
        }
    }

    /// Blocks of its cluster.
    pub fn cluster_size(&self) -> usize {
        self.cluster.get().expect("a block is of a cluster").len()
    }

    /// Block `rank` of its cluster.
    pub fn of_cluster(&self, rank: usize) -> &Block {
        let blocks = self.cluster.get().expect("a block is of a cluster");
        // SAFETY: the blocks of a cluster end together.
        unsafe { blocks[rank].as_ref() }
    }

    /// Its place in its cluster.
    pub fn rank(&self) -> usize {
        self.idx.get()[0] as usize % self.cluster_size()
    }

    pub fn has_met_cluster(&self) -> bool {
        self.has_met_cluster.get()
    }

    fn make_all_ready(&self) {
        for (idx, warp) in self.warps.iter().enumerate() {
            self.make_ready(idx, warp.lanes);
        }
    }

    /// Whether some lane can run.
    pub fn is_ready(&self) -> bool {
        self.ready_warps.get() != 0
    }

    pub fn num_returned(&self) -> usize {
        self.num_returned.get()
    }

    /// Whether all lanes have.
    pub fn has_returned(&self) -> bool {
        self.num_returned.get() == self.lanes.len()
    }

    /// What is wrong with a block whose lanes have returned.
    pub fn left_in_flight(&self) -> Option<Fault> {
        let barriers = self.mbarriers.borrow();
        let load = barriers.load_in_flight()?;
        Some(Fault::Violation {
            kernel: self.launch().kernel,
            block: load.block,
            thread: load.thread,
            site: load.site.into(),
            violation: Violation::Bulk(
                "the block ends while this load into its shared memory is on its way".into(),
            ),
        })
    }

    /// Who waits where, for a report.
    pub fn waits(&self) -> Waits {
        Waits::group(self.lanes.iter().map(|lane| match lane.wait.get() {
            Wait::Start | Wait::Returned => (None, WaitsFor::Returned),
            Wait::Block(site) => (Some(site.into()), WaitsFor::Block),
            Wait::Cluster(site) => (Some(site.into()), WaitsFor::Cluster),
            Wait::NamedBarrier(id, site) => {
                let state = self.named_barriers.borrow().describe(id);
                (Some(site.into()), WaitsFor::NamedBarrier { id, state })
            }
            Wait::Others(site) => (Some(site.into()), WaitsFor::Others),
            Wait::Warp(operation, mask, site) => {
                (Some(site.into()), WaitsFor::Warp { operation: operation.name(), mask })
            }
            Wait::Warpgroup(operation, site) => {
                (Some(site.into()), WaitsFor::Warpgroup { operation })
            }
            Wait::Mbarrier { address, parity, site } => {
                let state = self.mbarriers.borrow().describe(address);
                (Some(site.into()), WaitsFor::Mbarrier { address, parity, state })
            }
        }))
    }

    fn start(&self, idx: [u32; 3]) {
        self.idx.set(idx);
        self.timelines.start(self.cluster_size() * self.lanes.len());
        self.shared.poison();
        self.mbarriers.borrow_mut().clear();
        self.named_barriers.borrow_mut().clear();
        self.warpgroups.iter().for_each(Warpgroup::clear);
        self.num_returned.set(0);
        self.has_met_cluster.set(false);
        for lane in &self.lanes {
            lane.reset();
        }
        for (idx, warp) in self.warps.iter().enumerate() {
            warp.reset();
            self.make_ready(idx, warp.lanes);
        }
    }

    fn lane_returned(&self, lane: &Lane) {
        self.num_returned.set(self.num_returned.get() + 1);
        let warp = &self.warps[lane.linear as usize / 32];
        warp.returned.set(warp.returned.get() | lane.bit());
    }

    /// Lets the lanes that poll look again; whether there are any.
    pub fn wake_spinning(&self) -> bool {
        for (idx, warp) in self.warps.iter().enumerate() {
            let spinning = warp.spinning.take();
            if spinning != 0 {
                self.make_ready(idx, spinning);
            }
        }
        self.is_ready()
    }
}

/// Why the lanes of a block cannot go on, although some are ready.
pub(super) enum End {
    /// A fault: the launch ends.
    Fault(Box<Fault>),
    /// Another block ended the launch.
    Stopped,
}

/// A block with its coroutines. It stays on the OS thread that made it, and may serve one block
/// of the grid after another.
pub(super) struct Runner {
    block: NonNull<Block>,
    coroutines: Vec<Option<Coroutine<(), (), (), LaneStack>>>,
    order: Order,
}

impl Runner {
    pub fn new(launch: &Launch) -> Self {
        let [x, y, _] = launch.dims.block;
        let num_lanes = launch.num_lanes();
        let block = Box::into_raw(Box::new(Block {
            launch,
            idx: Cell::default(),
            shared: SharedMemory::new(launch.dims.shared_bytes),
            mbarriers: RefCell::default(),
            named_barriers: RefCell::default(),
            warps: (0..num_lanes.div_ceil(32))
                .map(|warp| Warp::new(num_lanes - 32 * warp))
                .collect(),
            warpgroups: wgmma::warpgroups(num_lanes),
            lanes: Vec::with_capacity(num_lanes),
            ready_warps: Cell::new(0),
            num_returned: Cell::new(0),
            meeting: Meeting::default(),
            cluster: OnceCell::new(),
            cluster_meeting: Meeting::default(),
            timelines: Timelines::default(),
            has_met_cluster: Cell::new(false),
            fault: RefCell::new(None),
            ending: Cell::new(false),
        }));
        let lanes = (0..num_lanes as u32)
            .map(|linear| Lane::new(block, linear, [linear % x, linear / x % y, linear / x / y]));
        // SAFETY: just made, and nothing else refers to it yet.
        let block = unsafe {
            (*block).lanes.extend(lanes);
            NonNull::new_unchecked(block)
        };
        let coroutines = (0..num_lanes).map(|_| None).collect();
        Self { block, coroutines, order: Order::new(launch.order, 0, 0) }
    }

    pub fn block(&self) -> &Block {
        // SAFETY: made by `new`, freed by `drop`.
        unsafe { self.block.as_ref() }
    }

    /// Makes this block one of `cluster`.
    pub fn join(&self, cluster: &[NonNull<Block>]) {
        let joined = self.block().cluster.set(cluster.to_vec());
        assert!(joined.is_ok(), "a block joins once");
    }

    /// The block, for the other blocks of its cluster.
    pub fn address(&self) -> NonNull<Block> {
        self.block
    }

    /// Begins block `linear` of the grid, x fastest.
    pub fn start(&mut self, linear: u64) -> Result<(), std::io::Error> {
        let launch = self.block().launch();
        let [x, y, _] = launch.dims.grid.map(u64::from);
        let idx = [linear % x, linear / x % y, linear / x / y].map(|idx| idx as u32);
        let entry = launch.entry;
        let order = Order::new(launch.order, launch.number, linear);
        self.block().start(idx);
        self.order = order;
        for idx in 0..self.coroutines.len() {
            let stack = stack::take(idx)?;
            let lane: *const Lane = &self.block().lanes[idx];
            self.coroutines[idx] = Some(Coroutine::with_stack(stack, move |yielder, ()| {
                // SAFETY: the runner that owns this coroutine owns the block with its lanes.
                unsafe { &*lane }.main(yielder, entry);
            }));
        }
        Ok(())
    }

    /// Runs lanes until none is ready.
    pub fn run(&mut self) -> Result<(), End> {
        // SAFETY: as in `block`; borrowed apart from the coroutines.
        let block = unsafe { self.block.as_ref() };
        while block.ready_warps.get() != 0 {
            let idx = self.order.warp(block.ready_warps.get());
            block.ready_warps.set(block.ready_warps.get() & !(1 << idx));
            for lane in self.order.lanes(block.warps[idx as usize].ready.take()) {
                self.resume(block, (32 * idx + lane) as usize);
                if block.is_ending() {
                    let fault = block.fault.take().expect("what ends a block says why");
                    return Err(End::Fault(Box::new(fault)));
                }
            }
            if block.launch().is_stopped() {
                return Err(End::Stopped);
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn resume(&mut self, block: &Block, idx: usize) {
        let slot = &mut self.coroutines[idx];
        let coroutine = slot.as_mut().expect("a ready lane has not returned");
        lane::set_current(&block.lanes[idx]);
        let returned = coroutine.resume(()).as_return().is_some();
        lane::set_current(std::ptr::null());
        if returned {
            stack::give_back(slot.take().expect("just resumed").into_stack());
            block.lane_returned(&block.lanes[idx]);
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.block().ending.set(true);
        for coroutine in &mut self.coroutines {
            if let Some(mut coroutine) = coroutine.take() {
                coroutine.force_unwind();
                stack::give_back(coroutine.into_stack());
            }
        }
        // SAFETY: made by `Box::into_raw` in `new`; the coroutines that pointed to it are gone.
        drop(unsafe { Box::from_raw(self.block.as_ptr()) });
    }
}
