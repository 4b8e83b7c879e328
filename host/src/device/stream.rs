//! Work in order: kernels, copies, fills.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytemuck::Pod;
use cuda_std::Kernel;
use cuda_std::cpu::Queue;

use super::cpu::CpuDevice;
use super::cuda::{FillPattern, GpuStream, StreamFailure};
use super::event::{EventKind, Recorded};
use super::graph::{Branch, Captured, GraphWork, KeptOnce, MarkIdx, Recorder, Replay};
use super::memory::{Extent, Memory};
use super::{Device, DeviceError, Event, Graph, Kind, LaunchDims, Result, Slice, lock};

/// Whose blocks a GPU starts first, when several streams have some waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamPriority {
    /// The usual.
    #[default]
    Low,
    /// Before those of low priority.
    High,
}

/// How many kernels an error names.
const KERNELS_NAMED: usize = 8;

/// Most threads of a block, on any GPU.
const MAX_BLOCK_THREADS: u64 = 1024;

/// A queue of work that runs in the order in which it was issued.
///
/// Calls return before the work is done, except where they say that they wait; on the CPU it is
/// always done. Streams of one device, and of different ones, are ordered by events only.
pub struct Stream {
    device: Device,
    kind: StreamKind,
    /// The capture that this stream takes part in, and as which of its streams.
    capture: Mutex<Option<(Arc<Recorder>, Branch)>>,
}

enum StreamKind {
    // The stream's drop waits for its work, and is first: only then may the memory go.
    Cuda { stream: GpuStream, pending: Mutex<Pending> },
    Cpu { cpu: Arc<CpuDevice>, queue: Queue },
}

/// What a GPU has been given since the host last saw it idle.
#[derive(Default)]
struct Pending {
    kernels: Vec<&'static str>,
    kept: KeptOnce,
}

impl Pending {
    fn launched(&mut self, kernel: &'static str) {
        if self.kernels.last() != Some(&kernel) {
            self.kernels.push(kernel);
        }
        if self.kernels.len() > KERNELS_NAMED {
            self.kernels.remove(0);
        }
    }
}

impl Stream {
    pub(super) fn new(device: &Device, priority: StreamPriority) -> Result<Self> {
        let kind = match &device.kind {
            Kind::Cuda(gpu) => StreamKind::Cuda {
                stream: GpuStream::new(gpu, priority)?,
                pending: Mutex::default(),
            },
            Kind::Cpu(cpu) => StreamKind::Cpu { cpu: cpu.clone(), queue: Queue::new() },
        };
        Ok(Self { device: device.clone(), kind, capture: Mutex::default() })
    }

    /// The device whose work this is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Launches a kernel.
    ///
    /// # Errors
    /// A size that no device can run, PTX that is missing or refused; on the CPU also what the
    /// executor caught. What goes wrong on a GPU shows when somebody waits for the stream.
    ///
    /// # Safety
    /// - The kernel's own contract holds for this size and these arguments: no thread leaves the
    ///   memory that its views name.
    /// - That memory stays allocated until the stream has passed the launch; of a captured
    ///   launch, until the graph is gone and every replay is done.
    /// - What runs beside it does not write what it reads or writes, except through atomics.
    pub unsafe fn launch<K: Kernel>(&self, config: LaunchDims, kernel: K) -> Result<()> {
        check_launch::<K>(config)?;
        lock(&self.device.launched).insert(K::NAME);
        match &self.kind {
            StreamKind::Cuda { stream, pending } => {
                // SAFETY: the caller's promise.
                unsafe { stream.launch(config, &kernel) }?;
                match self.open_capture() {
                    Some((recorder, _)) => recorder.note(|captured| captured.kernels.push(K::NAME)),
                    None => lock(pending).launched(K::NAME),
                }
                Ok(())
            }
            StreamKind::Cpu { cpu, queue } => {
                let cpu = cpu.clone();
                // SAFETY: the caller's promise, which covers replays.
                self.run(queue, move |queue| unsafe { cpu.launch(queue, config, kernel) })
            }
        }
    }

    /// Copies between any two of: this device's memory, a peer's, pinned host memory.
    ///
    /// Between GPUs without peer access the driver goes through the host. The two sides have
    /// equally many elements, and must not overlap.
    pub fn copy<'a, 'b, T: Pod>(
        &self,
        source: impl Into<Slice<'a, T>>,
        destination: impl Into<Slice<'b, T>>,
    ) -> Result<()> {
        const OPERATION: &str = "copy";
        let (source, destination) = (source.into(), destination.into());
        let (source_len, destination_len) = (source.len(), destination.len());
        let (source, destination) = (source.extent(OPERATION)?, destination.extent(OPERATION)?);
        check_lengths(OPERATION, source_len, destination_len)?;
        if source.bytes == 0 {
            return Ok(());
        }
        match (&self.kind, &source.memory, &destination.memory) {
            (StreamKind::Cuda { stream, .. }, Memory::Cuda(from), Memory::Cuda(to)) => {
                let (from, to) = ((&**from, source.offset), (&**to, destination.offset));
                // SAFETY: the ranges were checked; the allocations are borrowed here, and kept
                // alive from the next lines on.
                unsafe { stream.copy(from, to, source.bytes) }?;
                self.keep_extent(&source);
                self.keep_extent(&destination);
                Ok(())
            }
            (StreamKind::Cpu { queue, .. }, Memory::Cpu(from), Memory::Cpu(to)) => {
                let (from, to) = (from.clone(), to.clone());
                let (from_offset, to_offset) = (source.offset, destination.offset);
                let bytes = source.bytes;
                self.run(queue, move |queue| {
                    to.copy_from(queue, to_offset, (&from, from_offset), bytes)
                })
            }
            _ => Err(self.mixed(OPERATION, &[&source, &destination])),
        }
    }

    /// Sets every element to `value`: on a GPU, one whose bytes repeat every 1, 2 or 4.
    pub fn fill<'a, T: Pod>(&self, destination: impl Into<Slice<'a, T>>, value: T) -> Result<()> {
        let value = bytemuck::bytes_of(&value);
        let pattern =
            FillPattern::of(value).ok_or(DeviceError::FillPattern { value_bytes: value.len() })?;
        self.fill_pattern(destination.into().extent("fill")?, pattern)
    }

    /// Sets every byte to `value`.
    pub fn fill_bytes<'a, T: Pod>(
        &self,
        destination: impl Into<Slice<'a, T>>,
        value: u8,
    ) -> Result<()> {
        self.fill_pattern(destination.into().extent("fill")?, FillPattern::Byte(value))
    }

    fn fill_pattern(&self, destination: Extent, pattern: FillPattern) -> Result<()> {
        if destination.bytes == 0 {
            return Ok(());
        }
        match (&self.kind, &destination.memory) {
            (StreamKind::Cuda { stream, .. }, Memory::Cuda(to)) => {
                // SAFETY: the range was checked, and is made of whole elements, so of whole
                // patterns; the allocation is borrowed here, and kept alive from the next line on.
                unsafe { stream.fill((to, destination.offset), pattern, destination.bytes) }?;
                self.keep_extent(&destination);
                Ok(())
            }
            (StreamKind::Cpu { queue, .. }, Memory::Cpu(to)) => {
                let to = to.clone();
                self.run(queue, move |queue| {
                    to.fill(queue, destination.offset, pattern, destination.bytes)
                })
            }
            _ => Err(self.mixed("fill", &[&destination])),
        }
    }

    /// Copies from ordinary host memory; waits.
    pub fn upload<'a, T: Pod>(
        &self,
        source: &[T],
        destination: impl Into<Slice<'a, T>>,
    ) -> Result<()> {
        const OPERATION: &str = "copy from the host";
        let destination = destination.into();
        let destination_len = destination.len();
        let destination = destination.extent(OPERATION)?;
        check_lengths(OPERATION, source.len(), destination_len)?;
        self.check_may_wait(OPERATION)?;
        let source = bytemuck::cast_slice(source);
        match (&self.kind, &destination.memory) {
            (StreamKind::Cuda { stream, pending }, Memory::Cuda(to)) => {
                let to = (&**to, destination.offset);
                self.waited(pending, || stream.upload(source, to).map(|()| true))?;
                Ok(())
            }
            (StreamKind::Cpu { queue, .. }, Memory::Cpu(to)) => {
                to.write(queue, destination.offset, source)?;
                queue.synchronize();
                Ok(())
            }
            _ => Err(self.mixed(OPERATION, &[&destination])),
        }
    }

    /// Copies to ordinary host memory, after the work that the stream has; waits.
    pub fn download<'a, T: Pod>(&self, source: impl Into<Slice<'a, T>>) -> Result<Vec<T>> {
        const OPERATION: &str = "copy to the host";
        let source = source.into();
        let mut destination = vec![T::zeroed(); source.len()];
        let source = source.extent(OPERATION)?;
        self.check_may_wait(OPERATION)?;
        let bytes = bytemuck::cast_slice_mut(&mut destination);
        match (&self.kind, &source.memory) {
            (StreamKind::Cuda { stream, pending }, Memory::Cuda(from)) => {
                let from = (&**from, source.offset);
                self.waited(pending, || stream.download(from, bytes).map(|()| true))?;
            }
            (StreamKind::Cpu { queue, .. }, Memory::Cpu(from)) => {
                from.read(queue, source.offset, bytes)?;
                queue.synchronize();
            }
            _ => return Err(self.mixed(OPERATION, &[&source])),
        }
        Ok(destination)
    }

    /// Puts `event` after the work issued so far.
    pub fn record(&self, event: &Event) -> Result<()> {
        let capture = self.open_capture();
        match (&self.kind, &event.kind) {
            (StreamKind::Cuda { stream, .. }, EventKind::Cuda(event)) => stream.record(event)?,
            (StreamKind::Cpu { queue, .. }, EventKind::Cpu { recorded, .. }) => {
                let at = capture.is_none().then(Instant::now);
                *lock(recorded) = Recorded { mark: queue.mark(), at };
            }
            _ => return Err(self.mixed_event("record of an event", event)),
        }
        event.set_captured(capture.map(|(recorder, branch)| {
            let mark = recorder.note(|captured| captured.record(branch));
            (recorder, mark)
        }));
        Ok(())
    }

    /// Holds back the work issued from now on until `event`, as last recorded, has come. The host
    /// does not wait. An event recorded in a capture takes this stream into that capture.
    pub fn wait(&self, event: &Event) -> Result<()> {
        match (&self.kind, &event.kind) {
            (StreamKind::Cuda { stream, .. }, EventKind::Cuda(event)) => stream.wait(event)?,
            (StreamKind::Cpu { queue, .. }, EventKind::Cpu { recorded, .. }) => {
                queue.wait(&lock(recorded).mark);
            }
            _ => return Err(self.mixed_event("wait for an event", event)),
        }
        if let Some((recorder, mark)) = event.captured() {
            self.join(recorder, mark);
        }
        Ok(())
    }

    /// Takes part in a capture from an event of it on.
    fn join(&self, recorder: Arc<Recorder>, mark: MarkIdx) {
        let mut capture = lock(&self.capture);
        let branch = match capture.as_ref() {
            Some((own, branch)) if Arc::ptr_eq(own, &recorder) => *branch,
            _ => recorder.note(Captured::join),
        };
        recorder.note(|captured| captured.wait(branch, mark));
        *capture = Some((recorder, branch));
    }

    /// Waits until all issued work is done.
    pub fn synchronize(&self) -> Result<()> {
        self.check_may_wait("synchronize")?;
        match &self.kind {
            StreamKind::Cuda { stream, pending } => {
                self.waited(pending, || stream.synchronize().map(|()| true))?;
                Ok(())
            }
            StreamKind::Cpu { queue, .. } => {
                queue.synchronize();
                Ok(())
            }
        }
    }

    /// Whether all issued work is done.
    pub fn is_idle(&self) -> Result<bool> {
        self.check_may_wait("query")?;
        match &self.kind {
            StreamKind::Cuda { stream, pending } => self.waited(pending, || stream.is_idle()),
            StreamKind::Cpu { queue, .. } => {
                queue.synchronize();
                Ok(true)
            }
        }
    }

    /// Runs `work`, and records what it issues to this stream instead of doing it. Streams that
    /// wait for an event recorded in there take part, and must be waited for by this one in the
    /// end. Nothing in `work` may wait for the device.
    pub fn capture<E: From<DeviceError>>(
        &self,
        work: impl FnOnce(&Self) -> Result<(), E>,
    ) -> Result<Graph, E> {
        self.check_may_wait("capture")?;
        if let StreamKind::Cuda { stream, .. } = &self.kind {
            stream.begin_capture()?;
        }
        let recorder = Recorder::new();
        *lock(&self.capture) = Some((recorder.clone(), Branch::default()));
        let worked = work(self);
        let mut captured = recorder.finish();
        let replay = match &self.kind {
            StreamKind::Cuda { stream, .. } => stream.end_capture().map(Replay::Cuda),
            StreamKind::Cpu { .. } => Ok(Replay::Cpu(captured.take_cpu_graph())),
        };
        let Captured { kernels, kept, .. } = captured;
        worked?;
        Ok(Graph { work: Arc::new(GraphWork { replay: replay?, kernels, _kept: kept }) })
    }

    pub(super) fn replay(&self, graph: &Graph) -> Result<()> {
        const OPERATION: &str = "launch of a graph";
        self.check_may_wait(OPERATION)?;
        match (&self.kind, &graph.work.replay) {
            (StreamKind::Cuda { stream, pending }, Replay::Cuda(captured)) => {
                stream.replay(captured)?;
                let mut pending = lock(pending);
                graph.work.kernels.iter().for_each(|kernel| pending.launched(kernel));
                pending.kept.add(graph.work.clone());
                Ok(())
            }
            (StreamKind::Cpu { queue, .. }, Replay::Cpu(captured)) => captured.replay(queue),
            _ => Err(DeviceError::ForeignGraph { device: self.device.id() }),
        }
    }

    /// The driver's handle, for libraries that issue work to it; none on the CPU.
    pub(crate) fn cuda_handle(&self) -> Option<cudarc::driver::sys::CUstream> {
        match &self.kind {
            StreamKind::Cuda { stream, .. } => Some(stream.handle()),
            StreamKind::Cpu { .. } => None,
        }
    }

    /// Keeps a buffer's memory until the host has waited for the work that the stream has, or, of
    /// a capture, as long as its graph. Copies and fills do so by themselves; launchers do it for
    /// what their kernels use, so that a buffer may be dropped while a kernel is at work on it.
    pub fn keep<'a, T: Pod>(&self, buffer: impl Into<Slice<'a, T>>) {
        self.keep_memory(buffer.into().memory());
    }

    /// As [`Self::keep`].
    pub(crate) fn keep_extent(&self, extent: &Extent) {
        self.keep_memory(&extent.memory);
    }

    fn keep_memory(&self, memory: &Memory) {
        let new = memory.kept();
        match (self.open_capture(), &self.kind) {
            (Some((recorder, _)), _) => recorder.note(|captured| captured.kept.add(new)),
            (None, StreamKind::Cuda { pending, .. }) => lock(pending).kept.add(new),
            (None, StreamKind::Cpu { .. }) => {}
        }
    }

    /// On the CPU: does a step now, or leaves it to the capture.
    fn run(
        &self,
        queue: &Queue,
        work: impl Fn(&Queue) -> Result<()> + Send + Sync + 'static,
    ) -> Result<()> {
        match self.open_capture() {
            Some((recorder, branch)) => {
                recorder.note(|captured| captured.work(branch, Box::new(work)));
                Ok(())
            }
            None => work(queue),
        }
    }

    fn open_capture(&self) -> Option<(Arc<Recorder>, Branch)> {
        let mut capture = lock(&self.capture);
        if capture.as_ref().is_some_and(|(recorder, _)| !recorder.is_open()) {
            *capture = None;
        }
        capture.clone()
    }

    /// Refuses `operation`, which waits or must not be repeated, during a capture.
    pub(crate) fn check_may_wait(&self, operation: &'static str) -> Result<()> {
        match self.open_capture() {
            Some(_) => Err(DeviceError::DuringCapture { operation }),
            None => Ok(()),
        }
    }

    /// Runs a wait, whose result says whether all that was pending is done. What is issued
    /// meanwhile by other threads stays pending.
    fn waited(
        &self,
        pending: &Mutex<Pending>,
        wait: impl FnOnce() -> Result<bool, StreamFailure>,
    ) -> Result<bool> {
        let before = std::mem::take(&mut *lock(pending));
        let not_done = match wait() {
            Ok(true) => return Ok(true),
            Ok(false) => Ok(false),
            Err(StreamFailure::Call(error)) => Err(error),
            Err(StreamFailure::Work(source)) => {
                let kernels = match before.kernels.as_slice() {
                    [] => "no kernel".to_owned(),
                    kernels => kernels.join(", "),
                };
                return Err(DeviceError::WorkFailed { device: self.device.id(), kernels, source });
            }
        };
        let mut pending = lock(pending);
        pending.kernels.splice(0..0, before.kernels);
        pending.kept.add_all(before.kept);
        not_done
    }

    fn mixed(&self, operation: &'static str, extents: &[&Extent]) -> DeviceError {
        let first = self.device.id();
        let mut others = extents.iter().map(|extent| extent.memory.device_id());
        let second = others.find(|id| id.is_gpu() != first.is_gpu()).unwrap_or(first);
        DeviceError::MixedDevices { operation, first, second }
    }

    fn mixed_event(&self, operation: &'static str, event: &Event) -> DeviceError {
        let (first, second) = (self.device.id(), event.device_id());
        DeviceError::MixedDevices { operation, first, second }
    }
}

fn check_lengths(operation: &'static str, source_len: usize, destination_len: usize) -> Result<()> {
    if source_len == destination_len {
        return Ok(());
    }
    Err(DeviceError::LengthMismatch { operation, source_len, destination_len })
}

fn check_launch<K: Kernel>(config: LaunchDims) -> Result<()> {
    let refused = |argument, needed: String, got: String| {
        Err(DeviceError::Launch { kernel: K::NAME, argument, needed, got })
    };
    let threads: u64 = config.block.iter().map(|&extent| u64::from(extent)).product();
    if config.grid.contains(&0) {
        return refused("grid", "at least one block".to_owned(), format!("{:?}", config.grid));
    }
    if !(1..=MAX_BLOCK_THREADS).contains(&threads) {
        return refused(
            "block",
            format!("1 to {MAX_BLOCK_THREADS} threads"),
            format!("{:?}", config.block),
        );
    }
    if !config.grid[0].is_multiple_of(K::CLUSTER) {
        let needed = format!("whole clusters of {} blocks in x", K::CLUSTER);
        return refused("grid", needed, format!("{:?}", config.grid));
    }
    match K::THREADS {
        Some(fixed) if threads != u64::from(fixed) => {
            refused("block", format!("the kernel's {fixed} threads"), format!("{:?}", config.block))
        }
        _ => Ok(()),
    }
}
