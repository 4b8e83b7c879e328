//! Device memory of the CPU device.
//!
//! Each allocation is a mapping of its own between guard pages, as close to the upper one as its
//! alignment allows, so that even an unchecked access past the end traps. It is known by address:
//! a kernel that takes a pointer out of a table gets a checked view, as the host does.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::mem::size_of;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use bytemuck::AnyBitPattern;

use crate::global::{Global, GlobalMut};

use super::global::RawGlobal;
use super::mapping::Mapping;
use super::race::DeviceHistories;

/// Every byte of fresh memory: NaN in each float type.
pub(super) const POISON: u8 = 0xff;

/// Addresses are multiples of this, as the CUDA driver's are.
const ALIGNMENT: usize = 256;

const WRITTEN: u8 = 0xff;

/// Why memory could not be had or copied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The system has no memory left.
    #[error("no memory for an allocation of {bytes} bytes: {error}")]
    NoMemory {
        /// As asked for.
        bytes: usize,
        /// The system's error.
        error: String,
    },
    /// A range that the allocation does not have.
    #[error("bytes {first}..{first}+{bytes} of an allocation of {allocated} bytes")]
    OutOfRange {
        /// Where the range starts.
        first: usize,
        /// How long it is.
        bytes: usize,
        /// What the allocation has.
        allocated: usize,
    },
}

/// Where an allocation lies. Extents are never freed, but serve one allocation after another, so
/// that a view can always ask whether it is still good.
pub(super) struct Extent {
    /// Changes when the allocation is freed.
    pub(super) generation: AtomicU64,
    base: AtomicPtr<u8>,
    bytes: AtomicUsize,
    /// A mark for each byte, or null.
    marks: AtomicPtr<u8>,
    /// Whether a kernel has written here.
    pub(super) has_kernel_data: AtomicBool,
    /// Who accessed it, once someone did that is watched for races.
    histories: AtomicPtr<DeviceHistories>,
}

/// The extent of views that lie in no allocation. Its generation is none of theirs.
pub(super) static NOWHERE: Extent = Extent::new();

impl Extent {
    const fn new() -> Self {
        Self {
            generation: AtomicU64::new(0),
            base: AtomicPtr::new(ptr::null_mut()),
            bytes: AtomicUsize::new(0),
            marks: AtomicPtr::new(ptr::null_mut()),
            has_kernel_data: AtomicBool::new(false),
            histories: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Who accessed the live allocation, and the byte of it that `place` is.
    pub(super) fn histories(&self, place: *mut u8) -> (&DeviceHistories, usize) {
        let (first, bytes) = self.range();
        let mut histories = self.histories.load(Ordering::Acquire);
        if histories.is_null() {
            let new = Box::into_raw(Box::new(DeviceHistories::new(bytes)));
            let none = ptr::null_mut();
            let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
            histories = match self.histories.compare_exchange(none, new, success, failure) {
                Ok(_) => new,
                Err(theirs) => {
                    // SAFETY: made above, and nobody else knows it.
                    drop(unsafe { Box::from_raw(new) });
                    theirs
                }
            };
        }
        // SAFETY: they are freed with the allocation, which nobody frees who accesses it.
        (unsafe { &*histories }, place as usize - first as usize)
    }

    /// Frees them.
    fn forget_histories(&self) {
        let histories = self.histories.swap(ptr::null_mut(), Ordering::AcqRel);
        if !histories.is_null() {
            // SAFETY: made by `histories`, and no longer to be found.
            drop(unsafe { Box::from_raw(histories) });
        }
    }

    /// The marks of the bytes from `place` on, if the allocation keeps track.
    #[inline(always)]
    pub(super) fn marks(&self, place: *mut u8) -> Option<*mut u8> {
        let marks = self.marks.load(Ordering::Relaxed);
        if marks.is_null() {
            return None;
        }
        let idx = place as usize - self.base.load(Ordering::Relaxed) as usize;
        Some(marks.wrapping_add(idx))
    }

    fn range(&self) -> (u64, usize) {
        (self.base.load(Ordering::Relaxed) as u64, self.bytes.load(Ordering::Relaxed))
    }
}

/// Whether the `bytes` bytes that have these marks were written.
///
/// # Safety
/// There are as many marks.
#[inline(always)]
pub(super) unsafe fn all_written(marks: *const u8, bytes: usize) -> bool {
    // SAFETY: as the caller says.
    unsafe {
        match bytes {
            1 => *marks == WRITTEN,
            2 => marks.cast::<u16>().read_unaligned() == u16::MAX,
            4 => marks.cast::<u32>().read_unaligned() == u32::MAX,
            8 => marks.cast::<u64>().read_unaligned() == u64::MAX,
            16 => marks.cast::<u128>().read_unaligned() == u128::MAX,
            // Piece by piece, so that a bulk copy is not checked byte by byte.
            _ => std::slice::from_raw_parts(marks, bytes)
                .chunks(64)
                .all(|piece| piece.iter().fold(WRITTEN, |all, mark| all & mark) == WRITTEN),
        }
    }
}

/// Marks `bytes` bytes as written.
///
/// # Safety
/// There are as many marks.
#[inline(always)]
pub(super) unsafe fn mark_written(marks: *mut u8, bytes: usize) {
    // SAFETY: as the caller says.
    unsafe { marks.write_bytes(WRITTEN, bytes) };
}

thread_local! {
    static NUM_WRITES: Cell<u64> = const { Cell::new(0) };
    /// Extents that views from addresses were made in lately, by address bits, with their
    /// generations.
    static RECENT: [Cell<(&'static Extent, u64)>; 8] =
        const { [const { Cell::new((&NOWHERE, u64::MAX)) }; 8] };
}

/// Counts a write to device memory on this OS thread: the sign that a launch gets on.
#[inline(always)]
pub(super) fn count_write() {
    NUM_WRITES.set(NUM_WRITES.get().wrapping_add(1));
}

/// Writes to device memory on this OS thread so far.
pub(super) fn num_writes() -> u64 {
    NUM_WRITES.get()
}

struct Registry {
    live: BTreeMap<u64, &'static Extent>,
    unused: Vec<&'static Extent>,
}

static REGISTRY: RwLock<Registry> =
    RwLock::new(Registry { live: BTreeMap::new(), unused: Vec::new() });

/// A view of `bytes` bytes at `address`: as many of them as the allocation there has.
#[inline]
pub(super) fn view_at(address: u64, bytes: usize) -> RawGlobal {
    let slot = (address >> 21) as usize % 8;
    let (extent, generation) = RECENT.with(|recent| recent[slot].get());
    if extent.generation.load(Ordering::Relaxed) == generation
        && let Some(view) = view_in(extent, generation, address, bytes)
    {
        return view;
    }
    look_up(slot, address, bytes)
}

#[inline(always)]
fn view_in(
    extent: &'static Extent,
    generation: u64,
    address: u64,
    bytes: usize,
) -> Option<RawGlobal> {
    let (first, allocated) = extent.range();
    let idx = address.checked_sub(first)? as usize;
    let left = allocated.checked_sub(idx)?;
    let place = extent.base.load(Ordering::Relaxed).wrapping_add(idx);
    Some(RawGlobal::in_extent(place, bytes.min(left), extent, generation))
}

#[cold]
#[inline(never)]
fn look_up(slot: usize, address: u64, bytes: usize) -> RawGlobal {
    let registry = REGISTRY.read().unwrap_or_else(PoisonError::into_inner);
    let found = registry.live.range(..=address).next_back().and_then(|(_, &extent)| {
        let generation = extent.generation.load(Ordering::Relaxed);
        Some((extent, generation, view_in(extent, generation, address, bytes)?))
    });
    match found {
        Some((extent, generation, view)) => {
            RECENT.with(|recent| recent[slot].set((extent, generation)));
            view
        }
        None => RawGlobal::inaccessible(address, bytes),
    }
}

/// What lies at `address` or nearest to it, in words.
pub(super) fn describe(address: u64) -> String {
    let registry = REGISTRY.read().unwrap_or_else(PoisonError::into_inner);
    let below = registry.live.range(..=address).next_back();
    let above = registry.live.range(address..).next();
    let distance = |extent: &Extent| {
        let (first, bytes) = extent.range();
        first.saturating_sub(address).max(address.saturating_sub(first + bytes as u64))
    };
    let nearest =
        below.into_iter().chain(above).map(|(_, &extent)| extent).min_by_key(|e| distance(e));
    let Some(nearest) = nearest else {
        return "no memory is allocated".to_owned();
    };
    let (first, bytes) = nearest.range();
    let end = first + bytes as u64;
    match address {
        _ if (first..end).contains(&address) => {
            format!("it is byte {} of the {bytes} allocated at {first:#x}", address - first)
        }
        _ if address < first => {
            format!("it is {} bytes before the {bytes} allocated at {first:#x}", first - address)
        }
        _ => format!(
            "it is {} bytes past the end of the {bytes} allocated at {first:#x}",
            address - end
        ),
    }
}

/// Device memory of the CPU device. Freed when dropped: later accesses through views of it are
/// faults.
pub struct Allocation {
    extent: &'static Extent,
    generation: u64,
    base: *mut u8,
    bytes: usize,
    _data: Mapping,
    _marks: Option<Mapping>,
}

// SAFETY: memory that any OS thread may access; the functions that do are unsafe.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// `bytes` fresh bytes, all of them 0xff.
    pub fn new(bytes: usize) -> Result<Self, MemoryError> {
        Self::with_marks(bytes, None)
    }

    /// As [`new`](Self::new); and a kernel that reads bytes which nothing wrote faults, unless its
    /// executor's `check_init` is off. Takes as much memory again.
    pub fn with_init_check(bytes: usize) -> Result<Self, MemoryError> {
        let marks = Mapping::new(bytes).map_err(|error| no_memory(bytes, &error))?;
        Self::with_marks(bytes, Some(marks))
    }

    fn with_marks(bytes: usize, marks: Option<Mapping>) -> Result<Self, MemoryError> {
        let room = bytes
            .checked_next_multiple_of(ALIGNMENT)
            .ok_or_else(|| no_memory(bytes, &std::io::ErrorKind::OutOfMemory.into()))?;
        let data = Mapping::new(room).map_err(|error| no_memory(bytes, &error))?;
        let base = data.end().wrapping_sub(room);
        // SAFETY: the mapping has `room` bytes before its end.
        unsafe { base.write_bytes(POISON, room) };

        let mut registry = REGISTRY.write().unwrap_or_else(PoisonError::into_inner);
        let extent = registry.unused.pop().unwrap_or_else(|| Box::leak(Box::new(Extent::new())));
        let marks_start = marks.as_ref().map_or(ptr::null_mut(), Mapping::start);
        extent.base.store(base, Ordering::Relaxed);
        extent.bytes.store(bytes, Ordering::Relaxed);
        extent.marks.store(marks_start, Ordering::Relaxed);
        extent.has_kernel_data.store(false, Ordering::Relaxed);
        let generation = extent.generation.fetch_add(1, Ordering::Release) + 1;
        registry.live.insert(base.expose_provenance() as u64, extent);
        Ok(Self { extent, generation, base, bytes, _data: data, _marks: marks })
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of its first byte.
    pub fn address(&self) -> u64 {
        self.base as u64
    }

    /// All of it, as whole elements of `T`, for a kernel to read.
    pub fn view<T: AnyBitPattern>(&self) -> Global<T> {
        Global::from_raw(self.raw::<T>())
    }

    /// All of it, as whole elements of `T`, for a kernel to read and write.
    pub fn view_mut<T: AnyBitPattern>(&self) -> GlobalMut<T> {
        GlobalMut::from_raw(self.raw::<T>())
    }

    fn raw<T>(&self) -> RawGlobal {
        let bytes = self.bytes - self.bytes % size_of::<T>().max(1);
        RawGlobal::in_extent(self.base, bytes, self.extent, self.generation)
    }

    /// Copies `data` to the bytes from `first` on.
    ///
    /// # Safety
    /// No kernel or other copy touches them meanwhile.
    pub unsafe fn write(&self, first: usize, data: &[u8]) -> Result<(), MemoryError> {
        let place = self.range(first, data.len())?;
        // SAFETY: in range, and nobody else's for now.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), place, data.len()) };
        self.mark(place, data.len());
        Ok(())
    }

    /// Sets `bytes` bytes from `first` on to `value`.
    ///
    /// # Safety
    /// No kernel or other copy touches them meanwhile.
    pub unsafe fn fill(&self, first: usize, bytes: usize, value: u8) -> Result<(), MemoryError> {
        let place = self.range(first, bytes)?;
        // SAFETY: in range, and nobody else's for now.
        unsafe { place.write_bytes(value, bytes) };
        self.mark(place, bytes);
        Ok(())
    }

    /// Copies the bytes from `first` on to `data`.
    ///
    /// # Safety
    /// No kernel or other copy writes them meanwhile.
    pub unsafe fn read(&self, first: usize, data: &mut [u8]) -> Result<(), MemoryError> {
        let place = self.range(first, data.len())?;
        // SAFETY: in range, and nobody writes it for now.
        unsafe { ptr::copy_nonoverlapping(place, data.as_mut_ptr(), data.len()) };
        Ok(())
    }

    /// Copies `bytes` bytes of `source`, from `source_first` on, to those from `first` on. Bytes
    /// that nothing wrote stay so.
    ///
    /// # Safety
    /// No kernel or other copy touches them meanwhile.
    pub unsafe fn copy_from(
        &self,
        first: usize,
        source: &Self,
        source_first: usize,
        bytes: usize,
    ) -> Result<(), MemoryError> {
        let place = self.range(first, bytes)?;
        let source_place = source.range(source_first, bytes)?;
        // SAFETY: both in range, and nobody else's for now; they may overlap.
        unsafe { ptr::copy(source_place, place, bytes) };
        match (self.extent.marks(place), source.extent.marks(source_place)) {
            // SAFETY: an extent has a mark for each byte.
            (Some(marks), Some(source_marks)) => unsafe { ptr::copy(source_marks, marks, bytes) },
            _ => self.mark(place, bytes),
        }
        Ok(())
    }

    fn range(&self, first: usize, bytes: usize) -> Result<*mut u8, MemoryError> {
        match first.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(self.base.wrapping_add(first)),
            _ => Err(MemoryError::OutOfRange { first, bytes, allocated: self.bytes }),
        }
    }

    fn mark(&self, place: *mut u8, bytes: usize) {
        if let Some(marks) = self.extent.marks(place) {
            // SAFETY: an extent has a mark for each byte.
            unsafe { mark_written(marks, bytes) };
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let mut registry = REGISTRY.write().unwrap_or_else(PoisonError::into_inner);
        self.extent.generation.fetch_add(1, Ordering::Release);
        self.extent.forget_histories();
        registry.live.remove(&self.address());
        registry.unused.push(self.extent);
    }
}

fn no_memory(bytes: usize, error: &std::io::Error) -> MemoryError {
    MemoryError::NoMemory { bytes, error: error.to_string() }
}

impl<T: AnyBitPattern> Global<T> {
    /// `len` elements of CUDA device memory, to be passed to a launch on the GPU. The CPU cannot
    /// access them: in a kernel that runs here, every access through this view is a fault.
    pub fn for_cuda_launch(address: u64, len: usize) -> Self {
        Self::from_raw(RawGlobal::inaccessible(address, len * size_of::<T>()))
    }
}

impl<T: AnyBitPattern> GlobalMut<T> {
    /// As [`Global::for_cuda_launch`].
    pub fn for_cuda_launch(address: u64, len: usize) -> Self {
        Self::from_raw(RawGlobal::inaccessible(address, len * size_of::<T>()))
    }
}
