//! Stacks of lanes, kept by each OS thread for the next block.

use std::cell::RefCell;
use std::io;

use corosensei::stack::{DefaultStack, Stack, StackPointer};

/// Room for a kernel's locals and calls. Pages are taken when touched; below lies a guard page.
const STACK_BYTES: usize = 256 * 1024;

/// Stacks that an OS thread keeps; more only while blocks wait for each other.
const MAX_KEPT: usize = 2048;

thread_local! {
    static KEPT: RefCell<Vec<LaneStack>> = const { RefCell::new(Vec::new()) };
}

/// The stack of one lane.
///
/// Stacks lie at multiples of the page size, and lanes of a warp use the same depth of theirs at
/// the same time. Bases are staggered, so that those lines do not share a few sets of the cache.
pub(super) struct LaneStack {
    mapping: DefaultStack,
    base: StackPointer,
}

impl LaneStack {
    fn new(idx: usize) -> io::Result<Self> {
        const STAGGER_BYTES: usize = 17 * 64;
        let mapping = DefaultStack::new(STACK_BYTES)?;
        let base = mapping.base().get() - idx * STAGGER_BYTES % (STACK_BYTES / 4);
        Ok(Self { mapping, base: StackPointer::new(base).expect("no mapping is at 0") })
    }
}

// SAFETY: the upper part of a stack with a guard page below; three quarters of it remain, and the
// stagger is a multiple of the stack alignment.
unsafe impl Stack for LaneStack {
    #[inline]
    fn base(&self) -> StackPointer {
        self.base
    }

    #[inline]
    fn limit(&self) -> StackPointer {
        self.mapping.limit()
    }
}

/// A stack for lane `idx`.
pub(super) fn take(idx: usize) -> io::Result<LaneStack> {
    match KEPT.with_borrow_mut(Vec::pop) {
        Some(stack) => Ok(stack),
        None => LaneStack::new(idx),
    }
}

/// Keeps `stack` for a later lane.
pub(super) fn give_back(stack: LaneStack) {
    KEPT.with_borrow_mut(|kept| {
        if kept.len() < MAX_KEPT {
            kept.push(stack);
        }
    });
}
