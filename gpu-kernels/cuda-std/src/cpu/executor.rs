//! Launches: the grid's blocks over worker threads, and what becomes of blocks that wait.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::Kernel;

use super::block::{Block, End};
use super::cluster::{Cluster, Outcome};
use super::fault::{BlockIdx, Fault, Refusal};
use super::lane::{self, Entry};
use super::order::LaneOrder;
use super::race::{Abroad, Epoch, Queue};

/// Shared memory that a block can have, as on an H200.
pub const MAX_SHARED_BYTES: u32 = 227 * 1024;

const MAX_THREADS: u32 = 1024;
const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];

/// Rounds of polling in a row after which a worker takes on another cluster even though its own
/// still get on.
const MAX_ROUNDS_BEFORE_NEXT_CLUSTER: u32 = 16;

/// Blocks that the report of a spin deadline names.
const NUM_BLOCKS_REPORTED: usize = 4;

/// The size of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchDims {
    /// Blocks of the grid.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// How an [`Executor`] runs kernels.
#[derive(Clone, Copy, Debug)]
pub struct ExecutorConfig {
    /// OS threads that blocks are spread over; 0 is one for each CPU core. With 1, blocks run on
    /// the thread that launches.
    pub num_workers: usize,
    /// In which order the threads of a block run.
    pub lane_order: LaneOrder,
    /// Whether reading device memory that nothing wrote is a fault, in allocations
    /// [that keep track](super::memory::Allocation::with_init_check). For shared memory it always is.
    pub check_init: bool,
    /// Whether accesses to shared or device memory that nothing orders are a fault.
    pub check_races: bool,
    /// How long a launch may do nothing but poll.
    pub deadline: Duration,
}

impl Default for ExecutorConfig {
    fn default() -> Self {
        Self {
            num_workers: 0,
            lane_order: LaneOrder::Ascending,
            check_init: true,
            check_races: true,
            deadline: Duration::from_secs(30),
        }
    }
}

/// Runs kernels on the CPU. Launches from several OS threads at once are fine: the thread that
/// launches works on its own launch, and the workers on one launch after another.
pub struct Executor {
    config: ExecutorConfig,
    pool: Option<rayon::ThreadPool>,
    num_launches: AtomicU64,
    /// Which of the process's it is: a GPU of its own.
    device: u16,
}

impl Executor {
    /// An executor, its worker threads started.
    ///
    /// # Panics
    /// When the system starts no more threads.
    pub fn new(config: ExecutorConfig) -> Self {
        lane::install_panic_hook();
        let pool = (config.num_workers != 1).then(|| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(config.num_workers)
                .thread_name(|worker| format!("simt-{worker}"))
                .build()
                .expect("the system starts worker threads")
        });
        static NUM_EXECUTORS: AtomicU16 = AtomicU16::new(0);
        let device = NUM_EXECUTORS.fetch_add(1, Ordering::Relaxed);
        Self { config, pool, num_launches: AtomicU64::new(0), device }
    }

    /// How it runs kernels.
    pub fn config(&self) -> &ExecutorConfig {
        &self.config
    }

    /// As [`launch_on`](Self::launch_on), on a queue of its own, and waits for it.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn launch<K: Kernel>(&self, dims: LaunchDims, kernel: K) -> Result<(), Fault> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_on(&Queue::new(), dims, kernel) }
    }

    /// Runs `kernel` to its end, as the next work of `queue`.
    ///
    /// # Errors
    /// A launch that no device would accept is refused before anything runs. A fault in any
    /// thread ends the launch; what was written until then stays.
    ///
    /// # Safety
    /// As the kernel says. Every access is checked, so a wrong argument is a fault; but nobody
    /// else may free or, unless both sides use atomics, touch the memory while the kernel runs.
    pub unsafe fn launch_on<K: Kernel>(
        &self,
        queue: &Queue,
        dims: LaunchDims,
        kernel: K,
    ) -> Result<(), Fault> {
        unsafe fn run<K: Kernel>(kernel: *const ()) {
            // SAFETY: `launch` passes its kernel, and is there until all lanes have ended.
            unsafe { (*kernel.cast::<K>()).run() }
        }
        check::<K>(dims).map_err(|reason| Fault::Refused { kernel: K::NAME, reason })?;

        let num_blocks = dims.grid.iter().map(|&n| u64::from(n)).product::<u64>();
        let num_clusters = num_blocks / u64::from(K::CLUSTER);
        let num_workers = match &self.pool {
            Some(pool) => num_clusters.min(pool.current_num_threads() as u64) as usize,
            None => 1,
        };
        let (work, mut known) = queue.begin();
        if !self.config.check_races {
            known = Abroad::nothing();
        }
        let launch = Launch {
            work,
            learned: Mutex::new(known.clone()),
            known,
            device: self.device,
            kernel: K::NAME,
            dims,
            entry: Entry { kernel: (&raw const kernel).cast(), run: run::<K> },
            cluster_size: K::CLUSTER,
            is_early: K::EARLY,
            number: self.num_launches.fetch_add(1, Ordering::Relaxed),
            order: self.config.lane_order,
            check_init: self.config.check_init,
            check_races: self.config.check_races,
            deadline: self.config.deadline,
            num_clusters,
            next_cluster: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            fault: Mutex::new(None),
            started: Instant::now(),
            idle_since: (0..num_workers).map(|_| AtomicU64::new(BUSY)).collect(),
        };
        match &self.pool {
            Some(pool) if num_workers > 1 => {
                pool.in_place_scope(|scope| {
                    for worker in 1..num_workers {
                        let launch = &launch;
                        scope.spawn(move |_| launch.work(worker));
                    }
                    launch.work(0);
                });
            }
            _ => launch.work(0),
        }
        queue.end(work, &launch.learned.into_inner().unwrap_or_else(PoisonError::into_inner));
        match launch.fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(fault) => Err(fault),
        }
    }
}

fn check<K: Kernel>(dims: LaunchDims) -> Result<(), Refusal> {
    for (what, dims, limit) in [("grid", dims.grid, MAX_GRID), ("block", dims.block, MAX_BLOCK)] {
        if dims.contains(&0) {
            return Err(Refusal::ZeroDimension { what, dims });
        }
        if dims.iter().zip(limit).any(|(&dim, limit)| dim > limit) {
            return Err(Refusal::DimensionTooLarge { what, dims, limit });
        }
    }
    let got = dims.block.iter().map(|&n| u64::from(n)).product();
    if got > u64::from(MAX_THREADS) {
        return Err(Refusal::TooManyThreads { got, limit: MAX_THREADS });
    }
    if let Some(needed) = K::THREADS.filter(|&needed| u64::from(needed) != got) {
        return Err(Refusal::WrongThreads { got, needed });
    }
    let [blocks, ..] = dims.grid;
    if !blocks.is_multiple_of(K::CLUSTER) {
        return Err(Refusal::PartOfCluster { got: blocks, cluster: K::CLUSTER });
    }
    if dims.shared_bytes > MAX_SHARED_BYTES {
        return Err(Refusal::TooMuchShared { got: dims.shared_bytes, limit: MAX_SHARED_BYTES });
    }
    Ok(())
}

/// Values of [`Launch::idle_since`] that are no time.
const BUSY: u64 = 0;
const DONE: u64 = u64::MAX;

/// One launch, as its workers share it.
pub(super) struct Launch {
    /// When it is, on its queue.
    pub work: Epoch,
    /// What its threads know when they start.
    pub known: Abroad,
    /// What those know that have ended.
    learned: Mutex<Abroad>,
    /// That of its executor.
    pub device: u16,
    pub kernel: &'static str,
    pub dims: LaunchDims,
    pub entry: Entry,
    /// Blocks of a cluster.
    pub cluster_size: u32,
    /// Whether the kernel would start early on a GPU.
    pub is_early: bool,
    /// Which launch of its executor it is.
    pub number: u64,
    pub order: LaneOrder,
    pub check_init: bool,
    pub check_races: bool,
    deadline: Duration,
    num_clusters: u64,
    next_cluster: AtomicU64,
    stopped: AtomicBool,
    fault: Mutex<Option<Fault>>,
    started: Instant,
    /// For each worker: nanoseconds from the start until its blocks only polled.
    idle_since: Vec<AtomicU64>,
}

// SAFETY: the entry points to a kernel, which is `Sync`.
unsafe impl Sync for Launch {}

impl Launch {
    /// Threads of a block.
    pub fn num_lanes(&self) -> usize {
        self.dims.block.iter().map(|&n| n as usize).product()
    }

    /// Whether a block has ended the launch.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    fn stop(&self, fault: Fault) {
        let mut first = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(fault);
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn take_cluster(&self) -> Option<u64> {
        let cluster = self.next_cluster.fetch_add(1, Ordering::Relaxed);
        (cluster < self.num_clusters).then_some(cluster)
    }

    /// Runs clusters until the grid is done. Those that only poll are put aside and looked at again,
    /// and meanwhile others begin, as many as the grid has: all blocks of a grid can wait for each
    /// other.
    fn work(&self, worker: usize) {
        let mut polling: Vec<Cluster> = Vec::new();
        let mut spare: Vec<Cluster> = Vec::new();
        let mut num_rounds = 0;
        let mut num_idle_rounds = 0;
        let mut clusters_left = true;
        while !self.is_stopped() {
            let mut progress = false;
            for cluster in std::mem::take(&mut polling) {
                progress |= self.advance(cluster, &mut polling, &mut spare);
            }
            num_rounds += 1;
            if clusters_left && (!progress || num_rounds == MAX_ROUNDS_BEFORE_NEXT_CLUSTER) {
                num_rounds = 0;
                match self.take_cluster() {
                    Some(linear) => {
                        let mut cluster = spare.pop().unwrap_or_else(|| Cluster::new(self));
                        match cluster.start(linear) {
                            Ok(()) => self.advance(cluster, &mut polling, &mut spare),
                            Err(error) => return self.stop_without_stacks(&cluster, &error),
                        };
                        progress = true;
                    }
                    None => clusters_left = false,
                }
            }
            if polling.is_empty() && !clusters_left {
                break;
            }
            if progress {
                num_idle_rounds = 0;
                self.idle_since[worker].store(BUSY, Ordering::Relaxed);
            } else if !clusters_left {
                num_idle_rounds += 1;
                self.idle(worker, num_idle_rounds, &polling);
            }
        }
        self.idle_since[worker].store(DONE, Ordering::Relaxed);
    }

    /// Runs a cluster as far as it goes; whether it got on.
    fn advance(
        &self,
        mut cluster: Cluster,
        polling: &mut Vec<Cluster>,
        spare: &mut Vec<Cluster>,
    ) -> bool {
        match cluster.run() {
            Outcome::Finished => {
                if self.check_races {
                    let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
                    cluster.blocks().for_each(|block| block.tell_learned(&mut learned));
                }
                spare.push(cluster);
            }
            Outcome::Spinning { progress } => {
                polling.push(cluster);
                return progress;
            }
            Outcome::Ended(End::Fault(fault)) => self.stop(*fault),
            Outcome::Ended(End::Stopped) => {}
        }
        true
    }

    /// Nothing of this worker's got on: lets other OS threads run, and watches the deadline.
    fn idle(&self, worker: usize, num_rounds: u32, polling: &[Cluster]) {
        let now = (self.started.elapsed().as_nanos() as u64).max(1);
        let since = &self.idle_since[worker];
        if since.load(Ordering::Relaxed) == BUSY {
            since.store(now, Ordering::Relaxed);
        }
        let deadline = self.deadline.as_nanos() as u64;
        let overdue = |since: &AtomicU64| match since.load(Ordering::Relaxed) {
            BUSY => false,
            DONE => true,
            since => now.saturating_sub(since) > deadline,
        };
        if self.idle_since.iter().all(overdue) {
            let of_clusters = || polling.iter().flat_map(Cluster::blocks);
            let num_more = of_clusters().count().saturating_sub(NUM_BLOCKS_REPORTED);
            let blocks = of_clusters().take(NUM_BLOCKS_REPORTED);
            let blocks = blocks.map(|block| (block.idx(), block.waits())).collect();
            return self.stop(Fault::SpinDeadline {
                kernel: self.kernel,
                deadline: self.deadline,
                blocks,
                num_more,
            });
        }
        // Another rank's answer comes within microseconds, or takes a while.
        if num_rounds < 1000 {
            thread::yield_now();
        } else {
            thread::sleep(Duration::from_micros(50));
        }
    }

    fn stop_without_stacks(&self, cluster: &Cluster, error: &std::io::Error) {
        let first = cluster.blocks().map(Block::idx).next();
        let block = first.unwrap_or(BlockIdx([0; 3]));
        self.stop(Fault::NoStacks { kernel: self.kernel, block, error: error.to_string() });
    }
}
