//! Points in a stream's work: to wait for, and to take the time between.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use cuda_std::cpu::Mark;

use super::cuda::GpuEvent;
use super::graph::{MarkIdx, Recorder};
use super::{Device, DeviceError, DeviceId, Kind, Result, lock};

/// A point in the work of a stream, set by [`Stream::record`](super::Stream::record).
pub struct Event {
    pub(super) kind: EventKind,
    /// The capture that it was last recorded in, and where there: whoever waits for it joins that
    /// capture.
    captured: Mutex<Option<(Arc<Recorder>, MarkIdx)>>,
}

pub(super) enum EventKind {
    Cuda(GpuEvent),
    Cpu { device: DeviceId, recorded: Mutex<Recorded> },
}

/// What a CPU stream had been given when an event was recorded in it, and when that was, unless in a
/// capture.
#[derive(Default)]
pub(super) struct Recorded {
    pub(super) mark: Mark,
    pub(super) at: Option<Instant>,
}

impl Event {
    pub(super) fn new(device: &Device) -> Result<Self> {
        let kind = match &device.kind {
            Kind::Cuda(gpu) => EventKind::Cuda(GpuEvent::new(gpu)?),
            Kind::Cpu(_) => EventKind::Cpu { device: device.id(), recorded: Mutex::default() },
        };
        Ok(Self { kind, captured: Mutex::default() })
    }

    pub(super) fn set_captured(&self, captured: Option<(Arc<Recorder>, MarkIdx)>) {
        *lock(&self.captured) = captured;
    }

    pub(super) fn captured(&self) -> Option<(Arc<Recorder>, MarkIdx)> {
        lock(&self.captured).clone().filter(|(recorder, _)| recorder.is_open())
    }

    pub(super) fn device_id(&self) -> DeviceId {
        match &self.kind {
            EventKind::Cuda(event) => event.gpu().id(),
            EventKind::Cpu { device, .. } => *device,
        }
    }

    /// Waits until the work before the last record is done; returns at once if there was none.
    pub fn synchronize(&self) -> Result<()> {
        match &self.kind {
            EventKind::Cuda(event) => event.synchronize(),
            EventKind::Cpu { recorded, .. } => {
                lock(recorded).mark.synchronize();
                Ok(())
            }
        }
    }

    /// Whether the work before the last record is done.
    pub fn is_done(&self) -> Result<bool> {
        match &self.kind {
            EventKind::Cuda(event) => event.is_done(),
            EventKind::Cpu { .. } => self.synchronize().map(|()| true),
        }
    }

    /// Microseconds from this event to `end`, both recorded and done, on streams of one device.
    ///
    /// A GPU counts in steps of half a microsecond.
    pub fn elapsed_us(&self, end: &Self) -> Result<f64> {
        match (&self.kind, &end.kind) {
            (EventKind::Cuda(start), EventKind::Cuda(end)) => {
                Ok(f64::from(start.elapsed_ms(end)?) * 1e3)
            }
            (EventKind::Cpu { recorded: start, .. }, EventKind::Cpu { recorded: end, .. }) => {
                match (lock(start).at, lock(end).at) {
                    (Some(start), Some(end)) => {
                        Ok(end.saturating_duration_since(start).as_secs_f64() * 1e6)
                    }
                    _ => Err(DeviceError::NotRecorded),
                }
            }
            _ => Err(DeviceError::MixedDevices {
                operation: "elapsed time",
                first: self.device_id(),
                second: end.device_id(),
            }),
        }
    }
}
