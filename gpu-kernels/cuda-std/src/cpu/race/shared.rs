//! Shared memory: who does what to which bytes of a block's.

use std::cell::{Cell, Ref};
use std::panic::Location;

use super::clock::{Epoch, ThreadClock, Timeline};
use super::history::{self, Act, Event, Piece};
use super::{AsyncOperation, Timelines, watched};
use crate::cpu::fault::{Access, OrderedBy, Race, Violation};
use crate::cpu::lane::{self, Caller, Lane};
use crate::cpu::shared::RawShared;

/// Something done to shared memory by who is of the cluster.
#[derive(Clone, Copy)]
pub struct SharedEvent {
    time: u32,
    timeline: Timeline,
    act: Act,
    site: Caller,
}

impl SharedEvent {
    fn new(Epoch { timeline, time }: Epoch, act: Act, site: Caller) -> Self {
        Self { time, timeline, act, site }
    }

    #[inline]
    fn epoch(&self) -> Epoch {
        Epoch { timeline: self.timeline, time: self.time }
    }
}

impl Event for SharedEvent {
    type Key = (Timeline, Act);
    const MAX_APART: usize = usize::MAX;

    fn key(&self) -> Self::Key {
        (self.timeline, self.act)
    }

    #[inline]
    fn act(&self) -> Act {
        self.act
    }

    fn merged(self) -> Self {
        self
    }
}

type Quad = history::Quad<SharedEvent>;

/// The histories of a block's shared memory, as far up as it was used.
#[derive(Default)]
pub struct Histories(Vec<Quad>);

impl Histories {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds an event of `bytes` bytes from byte `first` on, unless it races: the error is what it is not
    /// ordered after, by `is_before`.
    pub fn add(
        &mut self,
        event: SharedEvent,
        first: u32,
        bytes: usize,
        is_before: impl Fn(&SharedEvent) -> bool,
    ) -> Result<(), SharedEvent> {
        let first = first as usize;
        let end = first + bytes;
        let quads = first / Quad::BYTES..end.div_ceil(Quad::BYTES);
        if self.0.len() < quads.end {
            self.0.resize_with(quads.end, Quad::default);
        }
        for idx in quads {
            let base = idx * Quad::BYTES;
            let within = first.max(base) - base..end.min(base + Quad::BYTES) - base;
            self.0[idx].add(within, event, &is_before)?;
        }
        Ok(())
    }

    /// Checks that the last store to byte `byte` is ordered, by `is_before`.
    pub fn check_store(
        &self,
        byte: u32,
        is_before: impl Fn(&SharedEvent) -> bool,
    ) -> Result<(), SharedEvent> {
        let byte = byte as usize;
        match self.0.get(byte / Quad::BYTES) {
            Some(quad) => quad.of_byte(byte % Quad::BYTES).check_store(&is_before),
            None => Ok(()),
        }
    }
}

/// Notes that the running thread does `act` to `bytes` bytes at `place`.
#[inline(always)]
#[track_caller]
pub fn note(act: Act, place: RawShared, bytes: usize) {
    if let Some(lane) = watched() {
        note_of(lane, act, place, bytes, Location::caller());
    }
}

#[inline(never)]
fn note_of(lane: &Lane, act: Act, place: RawShared, bytes: usize, site: Caller) {
    let clock = lane.clock.borrow();
    let event = SharedEvent::new(clock.now(), act, site);
    add(event, place, bytes, |other| clock.knows(other.epoch()));
}

/// Notes that the running thread starts a copy to `bytes` bytes at `place`; returns when it is done.
#[track_caller]
pub fn note_copy(place: RawShared, bytes: usize) -> Option<Epoch> {
    let lane = watched()?;
    let done = lane.copies_clock.next(lane.block().timelines(), AsyncOperation::Copy);
    let clock = lane.clock.borrow();
    let event = SharedEvent::new(done, Act::Store, Location::caller());
    add(event, place, bytes, |other| clock.knows(other.epoch()));
    Some(done)
}

/// Notes that the running thread starts a bulk store of `bytes` bytes at `place`; returns when it has
/// read them.
#[track_caller]
pub fn note_bulk_store(place: RawShared, bytes: usize) -> Option<Epoch> {
    let lane = watched()?;
    let done = lane.stores_clock.next(lane.block().timelines(), AsyncOperation::BulkStore);
    note_bulk(lane, SharedEvent::new(done, Act::Load, Location::caller()), place, bytes);
    Some(done)
}

/// Notes that the running thread starts, at `site`, a bulk load of `bytes` bytes to `place`, which is done
/// at `done`; whether races are looked for.
pub fn note_bulk_load(place: RawShared, bytes: usize, done: Epoch, site: Caller) -> bool {
    let lane = watched();
    if let Some(lane) = lane {
        note_bulk(lane, SharedEvent::new(done, Act::Store, site), place, bytes);
    }
    lane.is_some()
}

fn note_bulk(lane: &Lane, event: SharedEvent, place: RawShared, bytes: usize) {
    let timelines = lane.block().timelines();
    let clock = lane.clock.borrow();
    add(event, place, bytes, |other| match needs_fence(timelines, other) {
        true => clock.knows_fenced(other.epoch()),
        false => clock.knows(other.epoch()),
    });
}

/// Notes that the threads of a warpgroup, `lanes`, start a multiplication that reads `pieces`, places
/// with their bytes, and is done at `done`.
pub fn note_multiplication(
    lanes: &[Lane],
    pieces: impl Iterator<Item = (RawShared, usize)>,
    done: Epoch,
    site: Caller,
) {
    let timelines = lanes[0].block().timelines();
    let event = SharedEvent::new(done, Act::Load, site);
    let mut clocks: Vec<Ref<ThreadClock>> = lanes.iter().map(|lane| lane.clock.borrow()).collect();
    clocks.dedup_by(|clock, last| clock.knowledge().is_same(last.knowledge()));
    // By what they were told: of what one of them did, the others must know.
    let all_know = |other: &SharedEvent| match needs_fence(timelines, other) {
        true => clocks.iter().all(|clock| clock.knowledge().here().includes_fenced(other.epoch())),
        false => clocks.iter().all(|clock| clock.knowledge().here().includes(other.epoch())),
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
pub fn check_set_up(place: RawShared) {
    if let Some(lane) = watched() {
        let clock = lane.clock.borrow();
        let set_up =
            place.histories().check_store(place.address(), |event| clock.knows(event.epoch()));
        if let Err(set_up) = set_up {
            let event = SharedEvent::new(clock.now(), Act::Load, Location::caller());
            raise(event, place, size_of::<u64>(), set_up);
        }
    }
}

/// Whether the async proxy sees an event only after a fence: a store as threads do it.
fn needs_fence(timelines: &Timelines, event: &SharedEvent) -> bool {
    event.act != Act::Load
        && timelines.operation(event.epoch()).is_none_or(AsyncOperation::is_generic)
}

fn add(
    event: SharedEvent,
    place: RawShared,
    bytes: usize,
    is_before: impl Fn(&SharedEvent) -> bool,
) {
    let added = place.histories().add(event, place.address(), bytes, is_before);
    if let Err(other) = added {
        raise(event, place, bytes, other);
    }
}

#[cold]
#[inline(never)]
fn raise(event: SharedEvent, place: RawShared, bytes: usize, other: SharedEvent) -> ! {
    let lane = lane::current();
    let (block, timelines) = (lane.block(), lane.block().timelines());
    let who = |event: &SharedEvent| match timelines.operation(event.epoch()) {
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

fn access_of(event: &SharedEvent) -> Access {
    match event.act.stores() {
        true => Access::SharedStore,
        false => Access::SharedLoad,
    }
}
