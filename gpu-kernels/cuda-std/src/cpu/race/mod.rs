//! Data races, by vector clocks.
//!
//! Each thread carries a clock, and what it [knows](clock::Knowledge) of the others' clocks. Barriers
//! pass knowledge on; shuffles and votes do not, as on the GPU. What works beside the threads has
//! [timelines](clock::Timeline) of its own, so that what it did becomes known by waiting for it and by
//! nothing else:
//!
//! | what | a timeline for each | known after |
//! |---|---|---|
//! | `cp.async` copies | thread | its `wait_group`, or the phase of the mbarrier that they arrive at |
//! | bulk loads | mbarrier | a wait for the phase |
//! | bulk stores' reads | thread | its `wait_group`, or `wait_group_read` |
//! | bulk stores' writes | thread | its `wait_group` |
//! | multiplications | warpgroup | a thread's `wait_group` |
//!
//! Each byte [remembers](history) its last store and who accessed it since. An access races with one
//! that its thread does not know of, where one of the two is a store, and not both are atomic. What the
//! async proxy (bulk copies, multiplications) reads or overwrites of the threads' stores must, moreover,
//! have been fenced by [`fence_proxy_async`](crate::bulk::fence_proxy_async) since.
//!
//! # Between clusters
//! What threads of different clusters know of each other, they know through words of device memory:
//! who releases writes what he knows [beside the word](told), and who acquires reads it there, each as far
//! as the scope of the operation reaches. Fences do the same for the relaxed operations around them, as in
//! C++. A launch begins with what its [queue](queue::Queue) knows, which is what launches before it
//! learned, and in turn tells the queue what its threads learned. All that is known when a launch begins
//! is done: it counts as fenced, for the async proxy and for what relaxed stores tell.
//!
//! The clocks are those of FastTrack (Flanagan and Freund, 2009).

mod abroad;
mod clock;
mod device;
mod history;
mod queue;
mod shared;
mod told;

use std::cell::{Cell, RefCell};

pub(super) use abroad::{Abroad, ClusterId};
pub(super) use clock::{Epoch, Knowledge, ThreadClock, Timeline, meet};
pub(super) use device::{
    Atomic, DeviceHistories, identity_of, note_atomic, note_device, note_device_async,
};
pub(super) use history::Act;
pub use queue::{Mark, Queue};
pub(super) use shared::{
    Histories, check_set_up, note, note_bulk_load, note_bulk_store, note_copy, note_multiplication,
};
pub(super) use told::{Fences, Scope};

use super::lane::{self, Lane};

/// What works beside the threads, on timelines of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AsyncOperation {
    Copy,
    BulkLoad,
    /// The part of a bulk store that reads shared memory.
    BulkStore,
    /// The part that writes device memory.
    BulkWrite,
    Multiplication,
    /// A copy or a fill that a queue was given; on no timeline of a cluster.
    Transfer,
}

impl AsyncOperation {
    /// Whether it accesses shared memory as threads do.
    fn is_generic(self) -> bool {
        matches!(self, Self::Copy)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Copy => "an asynchronous copy",
            Self::BulkLoad => "a bulk load",
            Self::BulkStore | Self::BulkWrite => "a bulk store",
            Self::Multiplication => "a multiplication of a warpgroup",
            Self::Transfer => "a copy or a fill of a queue",
        }
    }
}

/// The timelines of a cluster.
#[derive(Default)]
pub(super) struct Timelines {
    num_threads: Cell<usize>,
    operations: RefCell<Vec<AsyncOperation>>,
}

impl Timelines {
    pub fn start(&self, num_threads: usize) {
        self.num_threads.set(num_threads);
        self.operations.borrow_mut().clear();
    }

    /// Before the first time of a new timeline.
    pub fn begin(&self, operation: AsyncOperation) -> Epoch {
        let mut operations = self.operations.borrow_mut();
        operations.push(operation);
        let timeline = self.num_threads.get() + operations.len() - 1;
        let timeline = Timeline::try_from(timeline).expect("a cluster has thousands of timelines");
        Epoch { timeline, time: 0 }
    }

    fn operation(&self, epoch: Epoch) -> Option<AsyncOperation> {
        let idx = usize::from(epoch.timeline).checked_sub(self.num_threads.get())?;
        Some(self.operations.borrow()[idx])
    }
}

/// The time of asynchronous operations of a kind, whose timeline begins with the first of them.
#[derive(Default)]
pub(super) struct AsyncClock(Cell<Option<Epoch>>);

impl AsyncClock {
    pub fn clear(&self) {
        self.0.set(None);
    }

    /// The time of the next of them.
    pub fn next(&self, timelines: &Timelines, operation: AsyncOperation) -> Epoch {
        let last = self.0.get().unwrap_or_else(|| timelines.begin(operation));
        let next = Epoch { time: last.time + 1, ..last };
        self.0.set(Some(next));
        next
    }
}

/// The running lane, where races are looked for.
#[inline(always)]
pub(super) fn watched<'lane>() -> Option<&'lane Lane> {
    lane::try_current().filter(|lane| lane.block().launch().check_races)
}
