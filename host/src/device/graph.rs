//! Work that was given to a stream once, to run any number of times.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use cuda_std::cpu::{Mark, Queue};

use super::cuda::GpuGraph;
use super::{Result, Stream, lock};

/// Captured work; see [`Stream::capture`].
///
/// It keeps the memory of its copies and fills alive. The memory that its kernels use must
/// outlive it: that is part of what their unsafe launch promised.
pub struct Graph {
    pub(super) work: Arc<GraphWork>,
}

pub(super) struct GraphWork {
    pub(super) replay: Replay,
    pub(super) kernels: Vec<&'static str>,
    /// Memory that the copies use; dropped after `replay`.
    pub(super) _kept: KeptOnce,
}

pub(super) enum Replay {
    Cuda(GpuGraph),
    Cpu(CpuGraph),
}

/// Steps in the order in which they were captured, and the queues of the streams that took part after
/// the first.
pub(super) struct CpuGraph {
    steps: Vec<(Branch, Step)>,
    branches: Vec<Queue>,
    num_marks: usize,
}

impl CpuGraph {
    /// Does all steps, those of the first stream as work of `queue`.
    pub(super) fn replay(&self, queue: &Queue) -> Result<()> {
        let mut marks: Vec<Mark> = vec![Mark::default(); self.num_marks];
        for (branch, step) in &self.steps {
            let queue = branch.0.checked_sub(1).map_or(queue, |idx| &self.branches[idx]);
            match step {
                Step::Work(work) => work(queue)?,
                Step::Record(mark) => marks[mark.0] = queue.mark(),
                Step::Wait(mark) => queue.wait(&marks[mark.0]),
            }
        }
        Ok(())
    }
}

impl Graph {
    /// Gives all the captured work to `stream`, in one call; it runs after what the stream has.
    pub fn launch(&self, stream: &Stream) -> Result<()> {
        stream.replay(self)
    }
}

/// Something that pending work uses.
pub(super) type Kept = Arc<dyn Send + Sync>;

/// What pending work uses, by its address: a model's launches all use the same few hundred allocations.
#[derive(Default)]
pub(super) struct KeptOnce(HashMap<usize, Kept>);

impl KeptOnce {
    pub(super) fn add(&mut self, new: Kept) {
        self.0.entry(Arc::as_ptr(&new).addr()).or_insert(new);
    }

    pub(super) fn add_all(&mut self, others: Self) {
        self.0.extend(others.0);
    }
}

/// One operation of a CPU stream, with all it needs but the queue whose work it is.
pub(super) type Work = Box<dyn Fn(&Queue) -> Result<()> + Send + Sync>;

enum Step {
    Work(Work),
    Record(MarkIdx),
    Wait(MarkIdx),
}

/// A stream that takes part in a capture: the one that began it is the first.
#[derive(Clone, Copy, Default)]
pub(super) struct Branch(usize);

/// An event that was recorded in a capture.
#[derive(Clone, Copy, Default)]
pub(super) struct MarkIdx(usize);

/// A capture under way, shared by the streams that take part in it.
pub(super) struct Recorder(Mutex<Option<Captured>>);

/// What a capture has seen so far.
#[derive(Default)]
pub(super) struct Captured {
    /// On the CPU; a GPU's driver has its own list.
    steps: Vec<(Branch, Step)>,
    num_more_branches: usize,
    num_marks: usize,
    pub(super) kernels: Vec<&'static str>,
    pub(super) kept: KeptOnce,
}

impl Captured {
    pub(super) fn work(&mut self, branch: Branch, work: Work) {
        self.steps.push((branch, Step::Work(work)));
    }

    pub(super) fn record(&mut self, branch: Branch) -> MarkIdx {
        let mark = MarkIdx(self.num_marks);
        self.num_marks += 1;
        self.steps.push((branch, Step::Record(mark)));
        mark
    }

    pub(super) fn wait(&mut self, branch: Branch, mark: MarkIdx) {
        self.steps.push((branch, Step::Wait(mark)));
    }

    /// One more stream takes part.
    pub(super) fn join(&mut self) -> Branch {
        self.num_more_branches += 1;
        Branch(self.num_more_branches)
    }

    /// What the CPU replays.
    pub(super) fn take_cpu_graph(&mut self) -> CpuGraph {
        CpuGraph {
            steps: std::mem::take(&mut self.steps),
            branches: (0..self.num_more_branches).map(|_| Queue::new()).collect(),
            num_marks: self.num_marks,
        }
    }
}

impl Recorder {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Captured::default()))))
    }

    pub(super) fn is_open(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// Notes something, unless the capture has ended.
    pub(super) fn note<R: Default>(&self, note: impl FnOnce(&mut Captured) -> R) -> R {
        lock(&self.0).as_mut().map(note).unwrap_or_default()
    }

    /// Ends the capture.
    pub(super) fn finish(&self) -> Captured {
        lock(&self.0).take().unwrap_or_default()
    }
}
