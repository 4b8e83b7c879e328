//! Read leases: which kernels may still be reading.

use std::collections::BTreeSet;

/// The right of one launched kernel to read every page that was referenced when it was taken.
///
/// It is not `Clone`: [`super::KvPool::retire`] takes it back once the kernel's event has fired.
#[derive(Debug, PartialEq, Eq, Hash)]
#[must_use = "a lease that is never retired keeps its pages from being evicted"]
pub struct ReadLease(pub(super) u64);

/// Leases are numbered 1, 2, …; a *stamp* is the number of the last one taken.
#[derive(Debug, Default)]
pub(super) struct Leases {
    last: u64,
    open: BTreeSet<u64>,
}

impl Leases {
    pub fn take(&mut self) -> ReadLease {
        self.last += 1;
        self.open.insert(self.last);
        ReadLease(self.last)
    }

    /// False when the lease is not open here.
    pub fn retire(&mut self, lease: &ReadLease) -> bool {
        self.open.remove(&lease.0)
    }

    /// The stamp of an event that happens now.
    pub fn stamp(&self) -> u64 {
        self.last
    }

    pub fn num_open(&self) -> usize {
        self.open.len()
    }

    /// Whether every lease up to `stamp` has retired.
    pub fn settled(&self, stamp: u64) -> bool {
        self.open.first().is_none_or(|&oldest| oldest > stamp)
    }

    /// Whether an open lease was taken after `stamp`.
    pub fn open_after(&self, stamp: u64) -> bool {
        self.open.last().is_some_and(|&newest| newest > stamp)
    }
}
