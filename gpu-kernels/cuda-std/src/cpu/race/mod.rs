//! Data races in shared memory, by vector clocks.
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
//! | bulk stores | thread | its `wait_group`, or `wait_group_read` |
//! | multiplications | warpgroup | a thread's `wait_group` |
//!
//! Each byte of shared memory [remembers](history::Histories) its last store and who accessed it since.
//! An access races with one that its thread does not know of, where one of the two is a store. What
//! the async proxy (bulk copies, multiplications) reads or overwrites of the threads' stores must,
//! moreover, have been fenced by [`fence_proxy_async`](crate::bulk::fence_proxy_async) since.
//!
//! The clocks are those of FastTrack (Flanagan and Freund, 2009).

mod clock;
mod history;

use std::cell::{Cell, Ref, RefCell};
use std::panic::Location;

pub(super) use clock::{Epoch, Knowledge, ThreadClock, Timeline, meet};
pub(super) use history::{Act, Histories};

use super::fault::{Access, OrderedBy, Race, Violation};
use super::lane::{self, Caller, Lane};
use super::shared::RawShared;
use history::Event;

/// What works beside the threads, on timelines of its own.
#[derive(Clone, Copy)]
pub(super) enum AsyncOperation {
    Copy,
    BulkLoad,
    BulkStore,
    Multiplication,
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
            Self::BulkStore => "a bulk store",
            Self::Multiplication => "a multiplication of a warpgroup",
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

    /// Whether the async proxy sees an event only after a fence: a store as threads do it.
    fn needs_fence(&self, event: &Event) -> bool {
        event.act != Act::Load
            && self.operation(event.epoch()).is_none_or(AsyncOperation::is_generic)
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
#[track_caller]
pub(super) fn watched<'lane>() -> Option<&'lane Lane> {
    let lane = lane::current();
    lane.block().launch().check_races.then_some(lane)
}

/// Notes that the running thread does `act` to `bytes` bytes at `place`.
#[inline(always)]
#[track_caller]
pub(super) fn note(act: Act, place: RawShared, bytes: usize) {
    if let Some(lane) = watched() {
        note_of(lane, act, place, bytes, Location::caller());
    }
}

#[inline(never)]
fn note_of(lane: &Lane, act: Act, place: RawShared, bytes: usize, site: Caller) {
    let clock = lane.clock.borrow();
    let event = Event::new(clock.now(), act, site);
    add(event, place, bytes, |other| clock.knows(other.epoch()));
}

/// Notes that the running thread starts a copy to `bytes` bytes at `place`; returns when it is done.
#[track_caller]
pub(super) fn note_copy(place: RawShared, bytes: usize) -> Option<Epoch> {
    let lane = watched()?;
    let done = lane.copies_clock.next(lane.block().timelines(), AsyncOperation::Copy);
    let clock = lane.clock.borrow();
    let event = Event::new(done, Act::Store, Location::caller());
    add(event, place, bytes, |other| clock.knows(other.epoch()));
    Some(done)
}

/// Notes that the running thread starts a bulk store of `bytes` bytes at `place`; returns when it has
/// read them.
#[track_caller]
pub(super) fn note_bulk_store(place: RawShared, bytes: usize) -> Option<Epoch> {
    let lane = watched()?;
    let done = lane.stores_clock.next(lane.block().timelines(), AsyncOperation::BulkStore);
    note_bulk(lane, Event::new(done, Act::Load, Location::caller()), place, bytes);
    Some(done)
}

/// Notes that the running thread starts a bulk load of `bytes` bytes to `place`, which is done at
/// `done`; whether races are looked for.
#[track_caller]
pub(super) fn note_bulk_load(place: RawShared, bytes: usize, done: Epoch) -> bool {
    let lane = watched();
    if let Some(lane) = lane {
        note_bulk(lane, Event::new(done, Act::Store, Location::caller()), place, bytes);
    }
    lane.is_some()
}

fn note_bulk(lane: &Lane, event: Event, place: RawShared, bytes: usize) {
    let timelines = lane.block().timelines();
    let clock = lane.clock.borrow();
    add(event, place, bytes, |other| match timelines.needs_fence(other) {
        true => clock.knows_fenced(other.epoch()),
        false => clock.knows(other.epoch()),
    });
}

/// Notes that the threads of a warpgroup, `lanes`, start a multiplication that reads `pieces`, places
/// with their bytes, and is done at `done`.
pub(super) fn note_multiplication(
    lanes: &[Lane],
    pieces: impl Iterator<Item = (RawShared, usize)>,
    done: Epoch,
    site: Caller,
) {
    let timelines = lanes[0].block().timelines();
    let event = Event::new(done, Act::Load, site);
    let mut clocks: Vec<Ref<ThreadClock>> = lanes.iter().map(|lane| lane.clock.borrow()).collect();
    clocks.dedup_by(|clock, last| clock.knowledge().is_same(last.knowledge()));
    // By what they were told: of what one of them did, the others must know.
    let all_know = |other: &Event| match timelines.needs_fence(other) {
        true => clocks.iter().all(|clock| clock.knowledge().includes_fenced(other.epoch())),
        false => clocks.iter().all(|clock| clock.knowledge().includes(other.epoch())),
    };
    // Most of a tile was written at once.
    let last_known = Cell::new(None);
    for (place, bytes) in pieces {
        add(event, place, bytes, |other| {
            let known = last_known.get() == Some(other.epoch()) || all_know(other);
            if known {
                last_known.set(Some(other.epoch()));
            }
            known
        });
    }
}

/// Refuses the running thread the use of the barrier at `place`, if its set-up may be still to come.
#[track_caller]
pub(super) fn check_set_up(place: RawShared) {
    if let Some(lane) = watched() {
        let clock = lane.clock.borrow();
        let set_up =
            place.histories().check_store(place.address(), |event| clock.knows(event.epoch()));
        if let Err(set_up) = set_up {
            let event = Event::new(clock.now(), Act::Load, Location::caller());
            raise(event, place, size_of::<u64>(), set_up);
        }
    }
}

fn add(event: Event, place: RawShared, bytes: usize, is_before: impl Fn(&Event) -> bool) {
    let added = place.histories().add(event, place.address(), bytes, is_before);
    if let Err(other) = added {
        raise(event, place, bytes, other);
    }
}

#[cold]
#[inline(never)]
fn raise(event: Event, place: RawShared, bytes: usize, other: Event) -> ! {
    let lane = lane::current();
    let (block, timelines) = (lane.block(), lane.block().timelines());
    let who = |event: &Event| match timelines.operation(event.epoch()) {
        Some(operation) => operation.name().to_owned(),
        None => block.name_of_thread(event.epoch().timeline),
    };
    let missing = if timelines.operation(other.epoch()).is_some() {
        OrderedBy::Wait
    } else if lane.clock.borrow().knows(other.epoch())
        && timelines.operation(event.epoch()).is_some()
    {
        OrderedBy::ProxyFence
    } else {
        OrderedBy::Barrier
    };
    let race = Race {
        who: who(&event),
        access: access_of(&event),
        address: place.address().into(),
        bytes,
        other: who(&other),
        other_access: access_of(&other),
        other_site: other.site.into(),
        missing,
    };
    lane::raise_at(Violation::Race(Box::new(race)), event.site)
}

fn access_of(event: &Event) -> Access {
    match event.act {
        Act::Load => Access::SharedLoad,
        Act::Store | Act::Update => Access::SharedStore,
    }
}
