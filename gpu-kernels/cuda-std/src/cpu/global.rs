//! A view of device memory, whose every access is checked.

use std::mem::{align_of, size_of};
use std::sync::atomic::Ordering;

use super::fault::{Access, Violation};
use super::grid;
use super::lane;
use super::memory::{self, Extent, NOWHERE, all_written, count_write, mark_written};
use super::race::{self, Act, DeviceHistories};

/// Memory from an address on, in an allocation that was live when the view was made.
///
/// The CUDA driver reads the kernel parameter of 8 bytes from its start.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct RawGlobal {
    address: *mut u8,
    bytes: usize,
    extent: &'static Extent,
    generation: u64,
}

impl RawGlobal {
    #[inline(always)]
    pub unsafe fn from_address(address: u64, bytes: usize) -> Self {
        memory::view_at(address, bytes)
    }

    /// A view of `bytes` bytes of an allocation, all of which the allocation has.
    #[inline(always)]
    pub(super) fn in_extent(
        address: *mut u8,
        bytes: usize,
        extent: &'static Extent,
        generation: u64,
    ) -> Self {
        Self { address, bytes, extent, generation }
    }

    /// A view that can be passed on, but not accessed: every access is a fault.
    #[inline(always)]
    pub(super) fn inaccessible(address: u64, bytes: usize) -> Self {
        let address = std::ptr::with_exposed_provenance_mut(address as usize);
        Self { address, bytes, extent: &NOWHERE, generation: u64::MAX }
    }

    #[inline(always)]
    pub fn null() -> Self {
        Self::inaccessible(0, 0)
    }

    #[inline(always)]
    pub fn is_null(self) -> bool {
        self.address.is_null()
    }

    #[inline(always)]
    pub fn address(self) -> u64 {
        self.address as u64
    }

    /// Bytes from its address on.
    #[inline(always)]
    pub fn num_bytes(self) -> usize {
        self.bytes
    }

    #[inline(always)]
    pub unsafe fn offset_bytes(self, bytes: usize) -> Self {
        Self {
            address: self.address.wrapping_add(bytes),
            bytes: self.bytes.saturating_sub(bytes),
            ..self
        }
    }

    #[inline(always)]
    #[track_caller]
    pub unsafe fn load<T>(self, byte_idx: usize) -> T {
        self.read(byte_idx, align_of::<T>())
    }

    #[inline(always)]
    #[track_caller]
    pub unsafe fn store<T>(self, byte_idx: usize, value: T) {
        self.write(byte_idx, value, align_of::<T>());
    }

    #[inline(always)]
    #[track_caller]
    pub unsafe fn load_x2(self, byte_idx: usize) -> [u32; 2] {
        self.read(byte_idx, 8)
    }

    #[inline(always)]
    #[track_caller]
    pub unsafe fn load_x4(self, byte_idx: usize) -> [u32; 4] {
        self.read(byte_idx, 16)
    }

    #[inline(always)]
    #[track_caller]
    pub unsafe fn store_x2(self, byte_idx: usize, value: [u32; 2]) {
        self.write(byte_idx, value, 8);
    }

    #[inline(always)]
    #[track_caller]
    pub unsafe fn store_x4(self, byte_idx: usize, value: [u32; 4]) {
        self.write(byte_idx, value, 16);
    }

    /// The value at byte `byte_idx`.
    #[inline(always)]
    #[track_caller]
    unsafe fn read<T>(self, byte_idx: usize, alignment: usize) -> T {
        let place = self.check_load(byte_idx, size_of::<T>(), alignment);
        race::note_device(Act::Load, self.offset_bytes(byte_idx), size_of::<T>());
        place.cast::<T>().read()
    }

    #[inline(always)]
    #[track_caller]
    unsafe fn write<T>(self, byte_idx: usize, value: T, alignment: usize) {
        let place = self.check_store(byte_idx, size_of::<T>(), alignment);
        race::note_device(Act::Store, self.offset_bytes(byte_idx), size_of::<T>());
        place.cast::<T>().write(value);
    }

    /// Who accessed its allocation, and the byte of that at which it begins.
    pub(super) fn histories(&self) -> (&'static DeviceHistories, usize) {
        self.extent.histories(self.address)
    }

    /// Where it begins.
    #[inline(always)]
    pub(super) fn place(self) -> *mut u8 {
        self.address
    }

    /// Where to read `bytes` bytes that were written, or a fault.
    #[inline(always)]
    #[track_caller]
    pub(super) fn check_load(self, byte_idx: usize, bytes: usize, alignment: usize) -> *const u8 {
        let place = self.check(byte_idx, bytes, alignment, Access::GlobalLoad);
        if let Some(marks) = self.extent.marks(place) {
            // SAFETY: an extent has a mark for each byte, and these are in bounds.
            if !unsafe { all_written(marks, bytes) } && checks_init() {
                let address = place as u64;
                lane::raise(Violation::Uninitialized {
                    access: Access::GlobalLoad,
                    address,
                    bytes,
                });
            }
        }
        place
    }

    /// Whether something wrote all of `bytes` bytes of a tile; a fault if it may not be read.
    #[track_caller]
    pub(super) fn check_tile_load(self, bytes: usize, alignment: usize) -> bool {
        let place = self.check(0, bytes, alignment, Access::GlobalLoad);
        let marks = self.extent.marks(place).filter(|_| checks_init());
        // SAFETY: an extent has a mark for each byte, and these are in bounds.
        marks.is_none_or(|marks| unsafe { all_written(marks, bytes) })
    }

    /// Where to write `bytes` bytes, which count as written from now on, or a fault.
    #[inline(always)]
    #[track_caller]
    pub(super) fn check_store(self, byte_idx: usize, bytes: usize, alignment: usize) -> *mut u8 {
        let place = self.check(byte_idx, bytes, alignment, Access::GlobalStore);
        self.note_store(place, bytes);
        place
    }

    /// Marks bytes in bounds as written.
    #[inline(always)]
    #[track_caller]
    pub(super) fn note_store(self, place: *mut u8, bytes: usize) {
        if lane::is_early() {
            grid::raise_early("a store");
        }
        count_write();
        if !self.extent.has_kernel_data.load(Ordering::Relaxed) {
            self.extent.has_kernel_data.store(true, Ordering::Relaxed);
        }
        if let Some(marks) = self.extent.marks(place) {
            // SAFETY: an extent has a mark for each byte, and these are in bounds.
            unsafe { mark_written(marks, bytes) };
        }
    }

    /// Where an access of `bytes` bytes may take place, or a fault.
    #[inline(always)]
    #[track_caller]
    fn check(self, byte_idx: usize, bytes: usize, alignment: usize, access: Access) -> *mut u8 {
        let place = self.address.wrapping_add(byte_idx);
        let in_bounds = self.bytes.checked_sub(bytes).is_some_and(|last| byte_idx <= last);
        let live = self.extent.generation.load(Ordering::Relaxed) == self.generation;
        if !in_bounds || !live || !(place as usize).is_multiple_of(alignment) {
            self.refuse(place, in_bounds, bytes, alignment, access);
        }
        if lane::is_early() && self.extent.has_kernel_data.load(Ordering::Relaxed) {
            grid::raise_early("an access to what a kernel wrote");
        }
        place
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn refuse(
        self,
        place: *mut u8,
        in_bounds: bool,
        bytes: usize,
        alignment: usize,
        access: Access,
    ) -> ! {
        let address = place as u64;
        let in_no_allocation = std::ptr::eq(self.extent, &NOWHERE);
        let live = self.extent.generation.load(Ordering::Relaxed) == self.generation;
        lane::raise(if !in_no_allocation && !live {
            Violation::UseAfterFree { access, address, bytes }
        } else if in_bounds && !in_no_allocation {
            Violation::Misaligned { access, address, bytes, alignment }
        } else {
            let view = if self.is_null() {
                "the view is null".to_owned()
            } else {
                format!("the view has {} bytes from {:#x}", self.bytes, self.address())
            };
            let bounds = format!("{view}; {}", memory::describe(address));
            Violation::OutOfBounds { access, address, bytes, bounds }
        })
    }
}

#[cold]
fn checks_init() -> bool {
    lane::try_current().is_none_or(|lane| lane.block().launch().check_init)
}
