//! A block's shared memory, with a mark for each byte that was written.

use std::alloc::{self, Layout};
use std::cell::{RefCell, RefMut};
use std::mem::size_of;
use std::ptr::{self, NonNull};

use super::block::Block;
use super::fault::{Access, Violation};
use super::lane;
use super::memory::{POISON, all_written, mark_written};
use super::race::{self, Act, Histories};

/// As on the GPU, for the widest swizzle of the copy engine.
const ALIGNMENT: usize = 1024;

/// The shared memory of a block: `bytes` of data, then at a multiple of the alignment as many
/// marks.
pub(super) struct SharedMemory {
    base: NonNull<u8>,
    bytes: usize,
    histories: RefCell<Histories>,
}

impl SharedMemory {
    pub fn new(bytes: u32) -> Self {
        let bytes = bytes as usize;
        let layout = Self::layout(bytes);
        // SAFETY: the layout's size is not zero.
        let base = unsafe { alloc::alloc(layout) };
        let base = NonNull::new(base).unwrap_or_else(|| alloc::handle_alloc_error(layout));
        Self { base, bytes, histories: RefCell::default() }
    }

    fn layout(bytes: usize) -> Layout {
        let size = (2 * marks_offset(bytes)).max(ALIGNMENT);
        Layout::from_size_align(size, ALIGNMENT).expect("shared memory is at most 227 KiB")
    }

    /// Makes it fresh for a block.
    pub fn poison(&self) {
        // SAFETY: the layout has room for the data and for the marks.
        unsafe {
            self.base.write_bytes(POISON, self.bytes);
            self.base.add(marks_offset(self.bytes)).write_bytes(0, self.bytes);
        }
        self.histories.borrow_mut().clear();
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { alloc::dealloc(self.base.as_ptr(), Self::layout(self.bytes)) };
    }
}

#[inline(always)]
fn marks_offset(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// A place in the block's shared memory.
#[derive(Clone, Copy)]
pub struct RawShared {
    memory: *const SharedMemory,
    offset: usize,
}

impl RawShared {
    #[inline(always)]
    #[track_caller]
    pub fn dynamic() -> Self {
        Self { memory: &raw const lane::current().block().shared, offset: 0 }
    }

    /// The same place in the shared memory of `block`, which is of the same launch.
    pub(super) fn in_block(self, block: &Block) -> Self {
        Self { memory: &raw const block.shared, ..self }
    }

    #[inline(always)]
    fn memory(&self) -> &SharedMemory {
        // SAFETY: a block with its memory outlives its lanes, whose places these are.
        unsafe { &*self.memory }
    }

    /// What was done to the block's memory.
    pub(super) fn histories(&self) -> RefMut<'_, Histories> {
        self.memory().histories.borrow_mut()
    }

    /// The byte of shared memory, from 0.
    #[inline(always)]
    pub fn address(self) -> u32 {
        self.offset as u32
    }

    #[inline(always)]
    pub unsafe fn opaque(self) -> Self {
        self
    }

    #[inline(always)]
    pub unsafe fn offset_bytes(self, bytes: usize) -> Self {
        Self { offset: self.offset.wrapping_add(bytes), ..self }
    }

    #[inline(always)]
    #[track_caller]
    pub unsafe fn load<T: Copy>(self, byte_idx: usize) -> T {
        const { assert_element::<T>() };
        self.offset_bytes(byte_idx).read()
    }

    #[inline(always)]
    #[track_caller]
    pub unsafe fn store<T: Copy>(self, byte_idx: usize, value: T) {
        const { assert_element::<T>() };
        self.offset_bytes(byte_idx).write(value);
    }

    #[inline(always)]
    #[track_caller]
    pub unsafe fn load_x2(self, byte_idx: usize) -> [u32; 2] {
        self.offset_bytes(byte_idx).read()
    }

    #[inline(always)]
    #[track_caller]
    pub unsafe fn load_x4(self, byte_idx: usize) -> [u32; 4] {
        self.offset_bytes(byte_idx).read()
    }

    #[inline(always)]
    #[track_caller]
    pub unsafe fn store_x2(self, byte_idx: usize, value: [u32; 2]) {
        self.offset_bytes(byte_idx).write(value);
    }

    #[inline(always)]
    #[track_caller]
    pub unsafe fn store_x4(self, byte_idx: usize, value: [u32; 4]) {
        self.offset_bytes(byte_idx).write(value);
    }

    /// The value at this place, aligned to its size.
    #[inline(always)]
    #[track_caller]
    unsafe fn read<T: Copy>(self) -> T {
        let value = self.peek();
        race::note(Act::Load, self, size_of::<T>());
        value
    }

    /// As `read`, for what is noted elsewhere.
    #[inline(always)]
    #[track_caller]
    pub(super) unsafe fn peek<T: Copy>(self) -> T {
        self.check_load(size_of::<T>(), size_of::<T>()).cast::<T>().read()
    }

    /// Writes a value at this place, aligned to its size.
    #[inline(always)]
    #[track_caller]
    unsafe fn write<T: Copy>(self, value: T) {
        race::note(Act::Store, self, size_of::<T>());
        self.poke(value);
    }

    /// As `write`, for what is noted elsewhere.
    #[inline(always)]
    #[track_caller]
    pub(super) unsafe fn poke<T: Copy>(self, value: T) {
        let place = self.check_store(size_of::<T>(), size_of::<T>());
        mark_written(self.marks(), size_of::<T>());
        place.cast::<T>().write(value);
    }

    /// Writes bytes for which `check_store` was called when their copy was issued.
    pub(super) fn land(self, bytes: &[u8]) {
        // SAFETY: checked when issued; the block's memory outlives its lanes.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.place(), bytes.len());
            mark_written(self.marks(), bytes.len());
        }
    }

    /// Makes bytes for which `check_store` was called as if nothing had written them.
    pub(super) fn forget(self, bytes: usize) {
        // SAFETY: checked when the copy to them was issued.
        unsafe {
            self.place().write_bytes(POISON, bytes);
            self.marks().write_bytes(0, bytes);
        }
    }

    /// Where to read `bytes` bytes that were written, or a fault.
    #[inline(always)]
    #[track_caller]
    pub(super) fn check_load(self, bytes: usize, alignment: usize) -> *const u8 {
        self.check(bytes, alignment, Access::SharedLoad);
        // SAFETY: the marks are as many as the bytes, and those are in bounds.
        if !unsafe { all_written(self.marks(), bytes) } {
            let address = self.offset as u64;
            lane::raise(Violation::Uninitialized { access: Access::SharedLoad, address, bytes });
        }
        self.place()
    }

    /// Where to write `bytes` bytes, or a fault.
    #[inline(always)]
    #[track_caller]
    pub(super) fn check_store(self, bytes: usize, alignment: usize) -> *mut u8 {
        self.check(bytes, alignment, Access::SharedStore);
        self.place()
    }

    /// Refuses `bytes` bytes that the block does not have, or not with this alignment.
    #[inline(always)]
    #[track_caller]
    pub(super) fn check(self, bytes: usize, alignment: usize, access: Access) {
        let in_bounds =
            self.memory().bytes.checked_sub(bytes).is_some_and(|last| self.offset <= last);
        if !in_bounds || !self.offset.is_multiple_of(alignment) {
            self.refuse(in_bounds, bytes, alignment, access);
        }
    }

    #[cold]
    #[inline(never)]
    #[track_caller]
    fn refuse(self, in_bounds: bool, bytes: usize, alignment: usize, access: Access) -> ! {
        let address = self.offset as u64;
        if in_bounds {
            lane::raise(Violation::Misaligned { access, address, bytes, alignment });
        }
        let bounds = format!("the block has {} bytes of shared memory", self.memory().bytes);
        lane::raise(Violation::OutOfBounds { access, address, bytes, bounds })
    }

    #[inline(always)]
    pub(super) fn place(self) -> *mut u8 {
        self.memory().base.as_ptr().wrapping_add(self.offset)
    }

    #[inline(always)]
    fn marks(self) -> *mut u8 {
        let SharedMemory { base, bytes, .. } = self.memory();
        base.as_ptr().wrapping_add(marks_offset(*bytes) + self.offset)
    }
}

const fn assert_element<T>() {
    assert!(
        matches!(size_of::<T>(), 1 | 2 | 4 | 8),
        "an element of shared memory has 1, 2, 4 or 8 bytes"
    );
}
