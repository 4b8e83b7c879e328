//! Rewriting device memory while a stream is at work.

use bytemuck::Pod;

use crate::device::{Buffer, DeviceError, Event, PinnedBuffer, Stream};

/// Pinned memory on the way to device memory: two slots in turn, so that the host fills one while
/// the stream still reads the other.
pub(super) struct Staging<T> {
    slots: [Slot<T>; 2],
    next: usize,
}

struct Slot<T> {
    pinned: PinnedBuffer<T>,
    /// After the copies that read it last.
    copied: Event,
}

impl<T: Pod> Staging<T> {
    /// What stands in `place`, made for writes of at most `num_max_elements` if nothing does.
    ///
    /// # Errors
    /// During a capture: a graph would copy from here again, what stands here then.
    pub(super) fn in_place<'a>(
        place: &'a mut Option<Box<Self>>,
        stream: &Stream,
        num_max_elements: usize,
    ) -> Result<&'a mut Self, DeviceError> {
        stream.check_may_wait("update of a plan or a table")?;
        match place {
            Some(staging) => Ok(staging),
            none => Ok(none.insert(Box::new(Self::new(stream, num_max_elements)?))),
        }
    }

    fn new(stream: &Stream, num_max_elements: usize) -> Result<Self, DeviceError> {
        let device = stream.device();
        let slot = || -> Result<_, DeviceError> {
            Ok(Slot { pinned: device.alloc_pinned(num_max_elements)?, copied: device.new_event()? })
        };
        Ok(Self { slots: [slot()?, slot()?], next: 0 })
    }

    /// Copies each source to the start of its destination: after the work that `stream` has, and
    /// before what it is given from now on. Waits for the last write but one.
    ///
    /// # Errors
    /// More elements than this was made for, or than a destination has.
    pub(super) fn write(
        &mut self,
        stream: &Stream,
        contents: &[(&[T], &Buffer<T>)],
    ) -> Result<(), DeviceError> {
        let Slot { pinned, copied } = &self.slots[self.next];
        copied.synchronize()?;
        let mut start = 0;
        for (source, _) in contents {
            pinned.write(start, source)?;
            start += source.len();
        }
        let mut start = 0;
        for (source, destination) in contents {
            let staged = pinned.slice(start..start + source.len());
            stream.copy(staged, destination.slice(..source.len()))?;
            start += source.len();
        }
        stream.record(copied)?;
        self.next = 1 - self.next;
        Ok(())
    }
}
