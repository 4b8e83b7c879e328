//! Pages from the system, between two that trap.

use std::io;
use std::ptr;
use std::sync::{Mutex, PoisonError};

/// Zeroed pages, taken when touched, with a guard page at either end.
pub(super) struct Mapping {
    start: *mut u8,
    /// Without the guard pages.
    bytes: usize,
    page: usize,
}

// SAFETY: memory that any thread may own.
unsafe impl Send for Mapping {}

/// Small mappings that nobody has: the arguments of a launch take a few of them, and clearing one
/// is far cheaper than asking the system for another.
static KEPT: Mutex<Vec<Mapping>> = Mutex::new(Vec::new());
const KEPT_MAPPINGS: usize = 64;
const KEPT_BYTES: usize = 64 * 1024;

impl Mapping {
    /// At least `bytes` bytes.
    pub fn new(bytes: usize) -> io::Result<Self> {
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let bytes = bytes
            .checked_next_multiple_of(page)
            .filter(|bytes| bytes.checked_add(2 * page).is_some())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        if let Some(kept) = Self::take_kept(bytes) {
            return Ok(kept);
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, at an address that the system chooses.
        let whole =
            unsafe { libc::mmap(ptr::null_mut(), bytes + 2 * page, libc::PROT_NONE, flags, -1, 0) };
        if whole == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = whole.cast::<u8>().wrapping_add(page);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: pages of the mapping just made.
        if bytes > 0 && unsafe { libc::mprotect(start.cast(), bytes, access) } != 0 {
            let error = io::Error::last_os_error();
            // Not left to the drop, which would keep pages that trap for the next one.
            // SAFETY: what was mapped above, which nobody else has.
            unsafe { libc::munmap(whole, bytes + 2 * page) };
            return Err(error);
        }
        Ok(Self { start, bytes, page })
    }

    fn take_kept(bytes: usize) -> Option<Self> {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.iter().position(|mapping| mapping.bytes == bytes)?;
        let mapping = kept.swap_remove(found);
        // SAFETY: a mapping of that size, which nobody else has.
        unsafe { mapping.start.write_bytes(0, bytes) };
        Some(mapping)
    }

    pub fn start(&self) -> *mut u8 {
        self.start
    }

    pub fn end(&self) -> *mut u8 {
        self.start.wrapping_add(self.bytes)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let Self { start, bytes, page } = *self;
        if bytes <= KEPT_BYTES {
            let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < KEPT_MAPPINGS {
                kept.push(Self { start, bytes, page });
                return;
            }
        }
        let whole = start.wrapping_sub(page);
        // SAFETY: what `new` mapped; its owner has no pointers into it left.
        unsafe { libc::munmap(whole.cast(), bytes + 2 * page) };
    }
}
