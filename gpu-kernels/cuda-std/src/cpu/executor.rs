//! Launches: the grid's blocks over worker threads, and what becomes of blocks that wait.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::Kernel;

use super::block::{Outcome, Runner};
use super::fault::{BlockIdx, Fault, Refusal};
use super::lane::{self, Entry};
use super::order::LaneOrder;

/// Shared memory that a block can have, as on an H200.
pub const MAX_SHARED_BYTES: u32 = 227 * 1024;

const MAX_THREADS: u32 = 1024;
const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];

/// Rounds of polling in a row after which a worker takes on another block even though its own
/// still get on.
const MAX_ROUNDS_BEFORE_NEXT_BLOCK: u32 = 16;

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
    /// How long a launch may do nothing but poll.
    pub deadline: Duration,
}

impl Default for ExecutorConfig {
    fn default() -> Self {
        Self {
            num_workers: 0,
            lane_order: LaneOrder::Ascending,
            check_init: true,
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
        Self { config, pool, num_launches: AtomicU64::new(0) }
    }

    /// How it runs kernels.
    pub fn config(&self) -> &ExecutorConfig {
        &self.config
    }

    /// Runs `kernel` to its end.
    ///
    /// # Errors
    /// A launch that no device would accept is refused before anything runs. A fault in any
    /// thread ends the launch; what was written until then stays.
    ///
    /// # Safety
    /// As the kernel says. Every access is checked, so a wrong argument is a fault; but nobody
    /// else may free or, unless both sides use atomics, touch the memory while the kernel runs.
    pub unsafe fn launch<K: Kernel>(&self, dims: LaunchDims, kernel: K) -> Result<(), Fault> {
        unsafe fn run<K: Kernel>(kernel: *const ()) {
            // SAFETY: `launch` passes its kernel, and is there until all lanes have ended.
            unsafe { (*kernel.cast::<K>()).run() }
        }
        check(dims, K::THREADS).map_err(|reason| Fault::Refused { kernel: K::NAME, reason })?;

        let num_blocks = dims.grid.iter().map(|&n| u64::from(n)).product::<u64>();
        let num_workers = match &self.pool {
            Some(pool) => num_blocks.min(pool.current_num_threads() as u64) as usize,
            None => 1,
        };
        let launch = Launch {
            kernel: K::NAME,
            dims,
            entry: Entry { kernel: (&raw const kernel).cast(), run: run::<K> },
            is_early: K::EARLY,
            number: self.num_launches.fetch_add(1, Ordering::Relaxed),
            order: self.config.lane_order,
            check_init: self.config.check_init,
            deadline: self.config.deadline,
            num_blocks,
            next_block: AtomicU64::new(0),
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
        match launch.fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(fault) => Err(fault),
        }
    }
}

fn check(dims: LaunchDims, needed_threads: Option<u32>) -> Result<(), Refusal> {
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
    if let Some(needed) = needed_threads.filter(|&needed| u64::from(needed) != got) {
        return Err(Refusal::WrongThreads { got, needed });
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
    pub kernel: &'static str,
    pub dims: LaunchDims,
    pub entry: Entry,
    /// Whether the kernel would start early on a GPU.
    pub is_early: bool,
    /// Which launch of its executor it is.
    pub number: u64,
    pub order: LaneOrder,
    pub check_init: bool,
    deadline: Duration,
    num_blocks: u64,
    next_block: AtomicU64,
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

    fn take_block(&self) -> Option<u64> {
        let block = self.next_block.fetch_add(1, Ordering::Relaxed);
        (block < self.num_blocks).then_some(block)
    }

    /// Runs blocks until the grid is done. Blocks that only poll are put aside and looked at again,
    /// and meanwhile others begin, as many as the grid has: all blocks of a grid can wait for each
    /// other.
    fn work(&self, worker: usize) {
        let mut polling: Vec<Runner> = Vec::new();
        let mut spare: Vec<Runner> = Vec::new();
        let mut num_rounds = 0;
        let mut num_idle_rounds = 0;
        let mut blocks_left = true;
        while !self.is_stopped() {
            let mut progress = false;
            for runner in std::mem::take(&mut polling) {
                progress |= self.advance(runner, &mut polling, &mut spare);
            }
            num_rounds += 1;
            if blocks_left && (!progress || num_rounds == MAX_ROUNDS_BEFORE_NEXT_BLOCK) {
                num_rounds = 0;
                match self.take_block() {
                    Some(block) => {
                        let mut runner = spare.pop().unwrap_or_else(|| Runner::new(self));
                        match runner.start(block) {
                            Ok(()) => self.advance(runner, &mut polling, &mut spare),
                            Err(error) => return self.stop_without_stacks(&runner, &error),
                        };
                        progress = true;
                    }
                    None => blocks_left = false,
                }
            }
            if polling.is_empty() && !blocks_left {
                break;
            }
            if progress {
                num_idle_rounds = 0;
                self.idle_since[worker].store(BUSY, Ordering::Relaxed);
            } else if !blocks_left {
                num_idle_rounds += 1;
                self.idle(worker, num_idle_rounds, &polling);
            }
        }
        self.idle_since[worker].store(DONE, Ordering::Relaxed);
    }

    /// Runs a block as far as it goes; whether it got on.
    fn advance(
        &self,
        mut runner: Runner,
        polling: &mut Vec<Runner>,
        spare: &mut Vec<Runner>,
    ) -> bool {
        match runner.run() {
            Outcome::Finished => spare.push(runner),
            Outcome::Spinning { progress } => {
                polling.push(runner);
                return progress;
            }
            Outcome::Fault(fault) => self.stop(*fault),
            Outcome::Stopped => {}
        }
        true
    }

    /// Nothing of this worker's got on: lets other OS threads run, and watches the deadline.
    fn idle(&self, worker: usize, num_rounds: u32, polling: &[Runner]) {
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
            let blocks = polling
                .iter()
                .take(NUM_BLOCKS_REPORTED)
                .map(|runner| (runner.block().idx(), runner.block().waits()))
                .collect();
            return self.stop(Fault::SpinDeadline {
                kernel: self.kernel,
                deadline: self.deadline,
                blocks,
                num_more: polling.len().saturating_sub(NUM_BLOCKS_REPORTED),
            });
        }
        // Another rank's answer comes within microseconds, or takes a while.
        if num_rounds < 1000 {
            thread::yield_now();
        } else {
            thread::sleep(Duration::from_micros(50));
        }
    }

    fn stop_without_stacks(&self, runner: &Runner, error: &std::io::Error) {
        let block: BlockIdx = runner.block().idx();
        self.stop(Fault::NoStacks { kernel: self.kernel, block, error: error.to_string() });
    }
}
