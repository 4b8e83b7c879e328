//! Work that was given to a stream once, to run any number of times.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

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
    Cpu(Vec<Step>),
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

/// One operation of a CPU stream, with all it needs.
pub(super) type Step = Box<dyn Fn() -> Result<()> + Send + Sync>;

/// A capture under way, shared by the streams that take part in it.
pub(super) struct Recorder(Mutex<Option<Captured>>);

/// What a capture has seen so far.
#[derive(Default)]
pub(super) struct Captured {
    /// On the CPU; a GPU's driver has its own list.
    pub(super) steps: Vec<Step>,
    pub(super) kernels: Vec<&'static str>,
    pub(super) kept: KeptOnce,
}

impl Recorder {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Captured::default()))))
    }

    pub(super) fn is_open(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// Notes something, unless the capture has ended.
    pub(super) fn note(&self, note: impl FnOnce(&mut Captured)) {
        if let Some(captured) = lock(&self.0).as_mut() {
            note(captured);
        }
    }

    /// Ends the capture.
    pub(super) fn finish(&self) -> Captured {
        lock(&self.0).take().unwrap_or_default()
    }
}
