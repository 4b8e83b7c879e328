//! Device memory: who does what to which bytes of an allocation.

use std::collections::HashMap;
use std::panic::Location;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::abroad::{Abroad, ClusterId};
use super::clock::{Epoch, ThreadClock, Timeline};
use super::history::{Act, Event, Piece, Pieces, Quad};
use super::told::{Identity, Scope, Told};
use super::{AsyncOperation, watched};
use crate::cpu::fault::{Access, OrderedBy, Race, Violation};
use crate::cpu::global::RawGlobal;
use crate::cpu::lane::{self, Caller, Lane};

/// Something done to device memory.
#[derive(Clone, Copy)]
pub struct DeviceEvent {
    cluster: ClusterId,
    time: u32,
    timeline: Timeline,
    device: u16,
    act: Act,
    /// Of an atomic act.
    scope: Scope,
    /// What did it, if no thread.
    operation: Option<AsyncOperation>,
    /// Whether it stands for all of its launch.
    is_merged: bool,
    site: Caller,
}

impl DeviceEvent {
    fn epoch(&self) -> Epoch {
        Epoch { timeline: self.timeline, time: self.time }
    }

    /// Whether the async proxy sees it only after a fence: a store as threads do it.
    fn needs_fence(&self) -> bool {
        self.act.stores() && self.operation.is_none_or(AsyncOperation::is_generic)
    }

    /// Whether who is at `clock`, a thread of `cluster`, knows that this was before.
    fn is_known(&self, clock: &ThreadClock, cluster: ClusterId, in_async_proxy: bool) -> bool {
        let fenced = in_async_proxy && self.needs_fence();
        if self.cluster.launch == cluster.launch && self.is_merged {
            return true;
        }
        if self.cluster == cluster {
            return match fenced {
                true => clock.knows_fenced(self.epoch()),
                false => clock.knows(self.epoch()),
            };
        }
        self.is_known_abroad(clock.knowledge().abroad(), fenced)
    }

    /// Whether who is not of its cluster, and knows what happened `abroad`, knows that it was before;
    /// and that the async proxy sees it, if it must be `fenced`.
    fn is_known_abroad(&self, abroad: &Abroad, fenced: bool) -> bool {
        if abroad.includes_all_of(self.cluster.launch) {
            return true;
        }
        let known = abroad.of(self.cluster).filter(|_| !self.is_merged);
        known.is_some_and(|known| match fenced {
            true => known.includes_fenced(self.epoch()),
            false => known.includes(self.epoch()),
        })
    }
}

impl Event for DeviceEvent {
    type Key = (Timeline, u32, Timeline, Act);
    const MAX_APART: usize = 8;

    /// Its launch is left out: a queue knows its past.
    fn key(&self) -> Self::Key {
        (self.cluster.launch.timeline, self.cluster.cluster, self.timeline, self.act)
    }

    #[inline]
    fn act(&self) -> Act {
        self.act
    }

    /// One for all of its launch.
    fn merged(self) -> Self {
        let cluster = ClusterId { cluster: u32::MAX, ..self.cluster };
        Self { cluster, timeline: Timeline::MAX, is_merged: true, ..self }
    }

    /// Atomic acts must be ordered, too, where the scope of one does not reach the other.
    fn conflicts_with(&self, other: &Self) -> bool {
        let stores = self.act.stores() || other.act.stores();
        let are_atomic = self.act.is_atomic() && other.act.is_atomic();
        stores && !(are_atomic && self.reaches(other))
    }
}

impl DeviceEvent {
    fn reaches(&self, other: &Self) -> bool {
        self.device == other.device || (self.scope == Scope::System && other.scope == Scope::System)
    }
}

/// Histories that share a lock.
const CHUNK_BYTES: usize = 1024;
/// Chunks that are made at once.
const REGION_CHUNKS: usize = 256;

#[derive(Default)]
struct Chunk {
    pieces: Pieces<Quad<DeviceEvent>, { CHUNK_BYTES / 16 }>,
    /// What words tell, by their byte.
    told: HashMap<u16, Told>,
}

type Region = Box<[Mutex<Chunk>]>;

/// The histories of an allocation, as far as it was accessed.
pub struct DeviceHistories(Box<[OnceLock<Region>]>);

impl DeviceHistories {
    /// Those of `bytes` bytes, to which nothing was done.
    pub fn new(bytes: usize) -> Self {
        let num_regions = bytes.div_ceil(CHUNK_BYTES * REGION_CHUNKS);
        Self((0..num_regions).map(|_| OnceLock::new()).collect())
    }

    fn chunk(&self, idx: usize) -> MutexGuard<'_, Chunk> {
        let region = self.0[idx / REGION_CHUNKS]
            .get_or_init(|| (0..REGION_CHUNKS).map(|_| Mutex::default()).collect());
        region[idx % REGION_CHUNKS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event of `bytes` bytes from byte `first` on, unless it races: the error is what it is not
    /// ordered after, by `is_before`.
    fn add(
        &self,
        event: DeviceEvent,
        first: usize,
        bytes: usize,
        is_before: impl Fn(&DeviceEvent) -> bool,
    ) -> Result<(), DeviceEvent> {
        let end = first + bytes;
        for idx in first / CHUNK_BYTES..end.div_ceil(CHUNK_BYTES) {
            let base = idx * CHUNK_BYTES;
            let within = first.max(base) - base..end.min(base + CHUNK_BYTES) - base;
            self.chunk(idx).pieces.add(within, event, &is_before)?;
        }
        Ok(())
    }
}

/// An operation of a thread on a word of device memory that others' may meet.
#[derive(Clone, Copy)]
pub struct Atomic {
    pub loads: bool,
    pub stores: bool,
    /// Whether it acquires (a load) and releases (a store).
    pub orders: bool,
    pub scope: Scope,
}

/// Notes that the running thread does `act` to `bytes` bytes from `place` on.
#[inline(always)]
#[track_caller]
pub fn note_device(act: Act, place: RawGlobal, bytes: usize) {
    if let Some(lane) = watched() {
        note_of(lane, act, place, bytes, Location::caller());
    }
}

#[inline(never)]
fn note_of(lane: &Lane, act: Act, place: RawGlobal, bytes: usize, site: Caller) {
    let clock = lane.clock.borrow();
    let event = event_of(lane, clock.now(), act, None, site);
    add(event, place, bytes, &clock, false);
}

/// Notes that `operation`, which the running thread started at `site` and which is done at `done`, does
/// `act` to `bytes` bytes from `place` on. Without `done`, races are not looked for.
pub fn note_device_async(
    operation: AsyncOperation,
    done: Option<Epoch>,
    act: Act,
    place: RawGlobal,
    bytes: usize,
    site: Caller,
) {
    let (Some(lane), Some(done)) = (watched(), done) else { return };
    let event = event_of(lane, done, act, Some(operation), site);
    add(event, place, bytes, &lane.clock.borrow(), !operation.is_generic());
}

/// Does `act`, which is `atomic` on the word at `place`, for the running thread.
#[inline(always)]
#[track_caller]
pub fn note_atomic<R>(place: RawGlobal, atomic: Atomic, act: impl FnOnce() -> R) -> R {
    match watched() {
        Some(lane) => do_atomic(lane, place, atomic, act, Location::caller()),
        None => act(),
    }
}

#[inline(never)]
fn do_atomic<R>(
    lane: &Lane,
    place: RawGlobal,
    atomic: Atomic,
    act: impl FnOnce() -> R,
    site: Caller,
) -> R {
    let (clock, fences) = (&mut *lane.clock.borrow_mut(), &mut *lane.fences.borrow_mut());
    let me = identity_of(lane);
    let kind = if atomic.stores { Act::Update } else { Act::AtomicLoad };
    let event =
        DeviceEvent { scope: atomic.scope, ..event_of(lane, clock.now(), kind, None, site) };

    let (histories, first) = place.histories();
    let (idx, byte) = (first / CHUNK_BYTES, first % CHUNK_BYTES);
    // What the word says and what it tells change together.
    let mut chunk = histories.chunk(idx);
    let is_before = |other: &DeviceEvent| other.is_known(clock, me.cluster, false);
    if let Err(other) = chunk.pieces.add(byte..byte + size_of::<u32>(), event, &is_before) {
        drop(chunk);
        raise(event, place, size_of::<u32>(), other, clock);
    }
    let before = chunk.told.get(&(byte as u16)).filter(|_| atomic.loads);
    if let Some(told) = before {
        fences.load(clock, me, atomic.orders, told);
    }
    if atomic.stores {
        let release = atomic.orders.then_some(atomic.scope);
        match fences.store(clock, me, release, before) {
            Some(told) => chunk.told.insert(byte as u16, told),
            None => chunk.told.remove(&(byte as u16)),
        };
    }
    act()
}

/// Notes that a copy or a fill at `work` of a queue, which `known` was before, accesses `bytes` bytes from
/// `place` on. The error is what it races with.
pub fn note_work(
    work: Epoch,
    known: &Abroad,
    access: Access,
    place: RawGlobal,
    bytes: usize,
    site: Caller,
) -> Result<(), Box<Race>> {
    let act = match access {
        Access::GlobalLoad | Access::SharedLoad => Act::Load,
        Access::GlobalStore | Access::SharedStore => Act::Store,
    };
    let event = DeviceEvent {
        cluster: ClusterId { launch: work, cluster: 0 },
        time: 1,
        timeline: 0,
        device: 0,
        act,
        scope: Scope::System,
        operation: Some(AsyncOperation::Transfer),
        is_merged: false,
        site,
    };
    let (histories, first) = place.histories();
    let is_before = |other: &DeviceEvent| other.is_known_abroad(known, false);
    histories.add(event, first, bytes, is_before).map_err(|other| {
        let who = |event: &DeviceEvent| match event.operation {
            Some(operation) => operation.name().to_owned(),
            None => "a thread of a launch".to_owned(),
        };
        Box::new(race_of(&event, &other, who, place, bytes, OrderedBy::Queue))
    })
}

/// Who the running thread is, for those of other clusters.
pub fn identity_of(lane: &Lane) -> Identity {
    let block = lane.block();
    Identity { cluster: block.cluster_id(), device: block.launch().device }
}

fn event_of(
    lane: &Lane,
    Epoch { timeline, time }: Epoch,
    act: Act,
    operation: Option<AsyncOperation>,
    site: Caller,
) -> DeviceEvent {
    let Identity { cluster, device } = identity_of(lane);
    let scope = Scope::System;
    DeviceEvent { cluster, time, timeline, device, act, scope, operation, is_merged: false, site }
}

fn add(
    event: DeviceEvent,
    place: RawGlobal,
    bytes: usize,
    clock: &ThreadClock,
    in_async_proxy: bool,
) {
    let (histories, first) = place.histories();
    let is_before = |other: &DeviceEvent| other.is_known(clock, event.cluster, in_async_proxy);
    if let Err(other) = histories.add(event, first, bytes, is_before) {
        raise(event, place, bytes, other, clock);
    }
}

#[cold]
#[inline(never)]
fn raise(
    event: DeviceEvent,
    place: RawGlobal,
    bytes: usize,
    other: DeviceEvent,
    clock: &ThreadClock,
) -> ! {
    let block = lane::current().block();
    let who = |event: &DeviceEvent| {
        let place = if event.cluster == block.cluster_id() {
            String::new()
        } else if event.cluster.launch == block.launch().work {
            format!(" of cluster {}", event.cluster.cluster)
        } else {
            " of another launch".to_owned()
        };
        match event.operation {
            Some(operation) => operation.name().to_owned() + &place,
            None if event.cluster == block.cluster_id() => block.name_of_thread(event.timeline),
            None => "a thread".to_owned() + &place,
        }
    };
    let are_atomic = event.act.is_atomic() && other.act.is_atomic();
    let missing = if are_atomic {
        OrderedBy::Scope
    } else if other.is_known(clock, event.cluster, false) {
        OrderedBy::ProxyFence
    } else if other.cluster.launch != event.cluster.launch {
        OrderedBy::Queue
    } else if other.cluster != event.cluster {
        OrderedBy::Release
    } else if other.operation.is_some() {
        OrderedBy::Wait
    } else {
        OrderedBy::Barrier
    };
    let race = race_of(&event, &other, who, place, bytes, missing);
    lane::raise_at(Violation::Race(Box::new(race)), event.site)
}

fn race_of(
    event: &DeviceEvent,
    other: &DeviceEvent,
    who: impl Fn(&DeviceEvent) -> String,
    place: RawGlobal,
    bytes: usize,
    missing: OrderedBy,
) -> Race {
    Race {
        who: who(event),
        access: access_of(event),
        address: place.address(),
        bytes,
        other: who(other),
        other_access: access_of(other),
        other_site: other.site.into(),
        missing,
    }
}

fn access_of(event: &DeviceEvent) -> Access {
    match event.act.stores() {
        true => Access::GlobalStore,
        false => Access::GlobalLoad,
    }
}
