//! Typed memory of a device, and host memory that devices reach.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytemuck::Pod;
use cuda_std::cpu::Queue;
use cuda_std::global::{Global, GlobalMut};

use super::cpu::CpuMemory;
use super::cuda::GpuMemory;
use super::graph::Kept;
use super::{Device, DeviceError, DeviceId, Kind, Result, Stream};

/// One allocation, shared by its buffer and the work that uses it.
#[derive(Clone)]
pub(super) enum Memory {
    Cuda(Arc<GpuMemory>),
    Cpu(Arc<CpuMemory>),
}

impl Memory {
    fn address(&self) -> u64 {
        match self {
            Self::Cuda(memory) => memory.address(),
            Self::Cpu(memory) => memory.address(),
        }
    }

    pub(super) fn device_id(&self) -> DeviceId {
        match self {
            Self::Cuda(memory) => memory.gpu().id(),
            Self::Cpu(memory) => memory.device_id(),
        }
    }

    pub(super) fn kept(&self) -> Kept {
        match self {
            Self::Cuda(memory) => memory.clone(),
            Self::Cpu(memory) => memory.clone(),
        }
    }
}

macro_rules! buffer {
    ($Buffer:ident) => {
        impl<T: Pod> $Buffer<T> {
            /// Number of elements.
            pub fn len(&self) -> usize {
                self.len
            }

            /// Whether there are none.
            pub fn is_empty(&self) -> bool {
                self.len == 0
            }

            /// Size in bytes.
            pub fn num_bytes(&self) -> usize {
                self.len * size_of::<T>()
            }

            /// The device address of the first element: what tables of pointers hold.
            pub fn address(&self) -> u64 {
                self.memory.address()
            }

            /// The whole buffer, as a kernel reads it.
            pub fn view(&self) -> Global<T> {
                self.view_mut().as_const()
            }

            /// The whole buffer, as a kernel reads and writes it. Kernels run beside the host and
            /// each other, so this takes no `&mut`: what they do is the launch's promise.
            pub fn view_mut(&self) -> GlobalMut<T> {
                match &self.memory {
                    Memory::Cuda(memory) => GlobalMut::for_cuda_launch(memory.address(), self.len),
                    Memory::Cpu(memory) => memory.view(),
                }
            }

            /// Some of the elements, for a copy or a fill, which check the range.
            pub fn slice(&self, range: impl RangeBounds<usize>) -> Slice<'_, T> {
                let start = match range.start_bound() {
                    Bound::Included(&start) => start,
                    Bound::Excluded(&start) => start.saturating_add(1),
                    Bound::Unbounded => 0,
                };
                let end = match range.end_bound() {
                    Bound::Included(&end) => end.saturating_add(1),
                    Bound::Excluded(&end) => end,
                    Bound::Unbounded => self.len,
                };
                Slice {
                    memory: &self.memory,
                    buffer_len: self.len,
                    start,
                    end,
                    element: PhantomData,
                }
            }

            /// Copies everything to the host, after the work that `stream` has; waits.
            pub fn to_vec(&self, stream: &Stream) -> Result<Vec<T>> {
                stream.download(self)
            }
        }

        impl<'a, T: Pod> From<&'a $Buffer<T>> for Slice<'a, T> {
            fn from(buffer: &'a $Buffer<T>) -> Self {
                buffer.slice(..)
            }
        }

        impl<T> fmt::Debug for $Buffer<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let element = std::any::type_name::<T>();
                let (len, on) = (self.len, self.memory.device_id());
                write!(f, "{}<{element}>[{len}] on {on}", stringify!($Buffer))
            }
        }
    };
}

buffer!(Buffer);
buffer!(PinnedBuffer);

/// Memory of one device: `len` elements of plain data.
///
/// Other devices reach it by its address, once peer access is enabled.
pub struct Buffer<T> {
    memory: Memory,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    pub(super) fn new(device: &Device, len: usize) -> Result<Self> {
        let bytes = len * size_of::<T>();
        let memory = match &device.kind {
            Kind::Cuda(gpu) => Memory::Cuda(Arc::new(GpuMemory::device(gpu, bytes)?)),
            Kind::Cpu(cpu) => Memory::Cpu(Arc::new(CpuMemory::poisoned(cpu, bytes)?)),
        };
        Ok(Self { memory, len, element: PhantomData })
    }

    /// Device memory that holds a copy of `data`; waits for the copy.
    pub fn from_slice(stream: &Stream, data: &[T]) -> Result<Self> {
        let buffer = stream.device().alloc(data.len())?;
        stream.upload(data, &buffer)?;
        Ok(buffer)
    }
}

/// Page-locked host memory that every device reaches by its device address, over PCIe on a GPU.
///
/// The host reads and writes it in place. A device may be at work on it meanwhile: wait for the
/// stream first, or see some of each. Where the CPU looks for races, the host is refused until then.
pub struct PinnedBuffer<T> {
    memory: Memory,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Pod> PinnedBuffer<T> {
    pub(super) fn new(device: &Device, len: usize) -> Result<Self> {
        let bytes = len * size_of::<T>();
        let memory = match &device.kind {
            Kind::Cuda(gpu) => Memory::Cuda(Arc::new(GpuMemory::pinned(gpu, bytes)?)),
            Kind::Cpu(cpu) => Memory::Cpu(Arc::new(CpuMemory::zeroed(cpu, bytes)?)),
        };
        Ok(Self { memory, len, element: PhantomData })
    }

    /// Copies elements `start..start + destination.len()` to `destination`, without any stream.
    pub fn read(&self, start: usize, destination: &mut [T]) -> Result<()> {
        let range = start..start.saturating_add(destination.len());
        let extent = self.slice(range).extent("read of pinned memory")?;
        let destination = bytemuck::cast_slice_mut(destination);
        match &self.memory {
            Memory::Cuda(memory) => {
                memory.read_pinned(extent.offset, destination);
                Ok(())
            }
            Memory::Cpu(memory) => memory.read(&Queue::new(), extent.offset, destination),
        }
    }

    /// Copies `source` to the elements from `start` on, without any stream.
    pub fn write(&self, start: usize, source: &[T]) -> Result<()> {
        let range = start..start.saturating_add(source.len());
        let extent = self.slice(range).extent("write to pinned memory")?;
        let source = bytemuck::cast_slice(source);
        match &self.memory {
            Memory::Cuda(memory) => {
                memory.write_pinned(extent.offset, source);
                Ok(())
            }
            Memory::Cpu(memory) => memory.write(&Queue::new(), extent.offset, source),
        }
    }

    /// The elements, in place.
    ///
    /// # Safety
    /// Nothing writes to them while the slice lives: no copy, no kernel, no other thread.
    pub unsafe fn as_slice(&self) -> &[T] {
        // SAFETY: the allocation has that many elements, all of them written at its birth; the
        // rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.host(), self.len) }
    }

    fn host(&self) -> *mut T {
        match &self.memory {
            Memory::Cuda(memory) => memory.host().expect("pinned memory is the host's").cast(),
            Memory::Cpu(memory) => memory.host().cast(),
        }
    }
}

/// Some elements of a buffer, as copies and fills take them.
pub struct Slice<'a, T> {
    memory: &'a Memory,
    buffer_len: usize,
    start: usize,
    end: usize,
    element: PhantomData<T>,
}

impl<T> Clone for Slice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slice<'_, T> {}

impl<T: Pod> Slice<'_, T> {
    pub(super) fn len(&self) -> usize {
        self.end.saturating_sub(self.start)
    }

    pub(super) fn memory(&self) -> &Memory {
        self.memory
    }

    /// The elements, as a kernel reads them, or why there are none.
    pub(super) fn view(&self, operation: &'static str) -> Result<Global<T>> {
        let extent = self.extent(operation)?;
        Ok(match self.memory {
            Memory::Cuda(_) => Global::for_cuda_launch(extent.address(), self.len()),
            Memory::Cpu(memory) => memory.view_of(extent.offset, self.len()),
        })
    }

    /// The bytes it names, or why there are none.
    pub(crate) fn extent(&self, operation: &'static str) -> Result<Extent> {
        if self.start > self.end || self.end > self.buffer_len {
            let (start, end, len) = (self.start, self.end, self.buffer_len);
            return Err(DeviceError::OutOfRange { operation, start, end, len });
        }
        Ok(Extent {
            memory: self.memory.clone(),
            offset: self.start * size_of::<T>(),
            bytes: self.len() * size_of::<T>(),
        })
    }
}

/// A slice that was checked: bytes of an allocation, which it keeps alive.
#[derive(Clone)]
pub(crate) struct Extent {
    pub(super) memory: Memory,
    pub(super) offset: usize,
    pub(super) bytes: usize,
}

impl Extent {
    pub(crate) fn address(&self) -> u64 {
        self.memory.address() + self.offset as u64
    }

    pub(crate) fn num_bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn as_bytes(&self) -> Slice<'_, u8> {
        Slice {
            memory: &self.memory,
            buffer_len: self.offset + self.bytes,
            start: self.offset,
            end: self.offset + self.bytes,
            element: PhantomData,
        }
    }

    /// `bytes` of its bytes, from `start` on.
    ///
    /// # Panics
    /// If it has fewer.
    pub(crate) fn part(&self, start: usize, bytes: usize) -> Self {
        assert!(start + bytes <= self.bytes, "part of an extent");
        Self { memory: self.memory.clone(), offset: self.offset + start, bytes }
    }
}
