//! What each byte of shared memory remembers: its last store, and what was done to it since.

use std::ops::Range;

use crate::cpu::lane::Caller;

use super::clock::{Epoch, Timeline};

/// What is done to shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    Load,
    Store,
    /// Load and store at once, as others' updates may.
    Update,
}

/// Who did what, when, and where in a kernel.
#[derive(Clone, Copy)]
pub struct Event {
    time: u32,
    timeline: Timeline,
    pub act: Act,
    pub site: Caller,
}

impl Event {
    pub fn new(Epoch { timeline, time }: Epoch, act: Act, site: Caller) -> Self {
        Self { time, timeline, act, site }
    }

    #[inline]
    pub fn epoch(&self) -> Epoch {
        Epoch { timeline: self.timeline, time: self.time }
    }

    /// Of events with the same key only the last counts: a timeline knows its past.
    fn key(&self) -> (Timeline, Act) {
        (self.timeline, self.act)
    }

    fn conflicts_with(&self, other: &Self) -> bool {
        self.act != other.act || self.act == Act::Store
    }
}

/// Loads and updates since the last store, the last of each key.
#[derive(Clone, Default)]
enum Since {
    #[default]
    Nothing,
    One(Event),
    /// By key.
    Many(Vec<Event>),
}

impl Since {
    fn events(&self) -> &[Event] {
        match self {
            Self::Nothing => &[],
            Self::One(event) => std::slice::from_ref(event),
            Self::Many(events) => events,
        }
    }

    /// Adds an event. What is ordered before it, by `is_before`, is of no more interest: who comes
    /// after it comes after that.
    #[inline]
    fn add(&mut self, event: Event, is_before: &impl Fn(&Event) -> bool) {
        match self {
            Self::Nothing => *self = Self::One(event),
            Self::One(other) if other.key() == event.key() || is_before(other) => *other = event,
            Self::One(other) => {
                let mut events = vec![*other, event];
                events.sort_by_key(Event::key);
                *self = Self::Many(events);
            }
            Self::Many(events) => {
                match events.binary_search_by_key(&event.key(), Event::key) {
                    Ok(idx) => events[idx] = event,
                    // Now and then, so that it costs little.
                    Err(_) if events.len().is_power_of_two() => {
                        events.retain(|event| !is_before(event));
                        let idx = events.partition_point(|other| other.key() < event.key());
                        events.insert(idx, event);
                    }
                    Err(idx) => events.insert(idx, event),
                }
            }
        }
    }
}

/// The history of bytes that were always accessed together.
#[derive(Clone, Default)]
struct History {
    stored: Option<Event>,
    since: Since,
    /// Whether any of `since` is an update.
    has_updates: bool,
}

impl History {
    /// Adds an event, unless it races: that with which it does is the error.
    #[inline]
    fn add_event(
        &mut self,
        event: Event,
        is_before: &impl Fn(&Event) -> bool,
    ) -> Result<(), Event> {
        self.check_store(is_before)?;
        if event.act != Act::Load || self.has_updates {
            let races = |other: &&Event| event.conflicts_with(other) && !is_before(other);
            if let Some(&other) = self.since.events().iter().find(races) {
                return Err(other);
            }
        }
        match event.act {
            Act::Store => *self = Self::after(event),
            Act::Load | Act::Update => {
                self.has_updates |= event.act == Act::Update;
                self.since.add(event, is_before);
            }
        }
        Ok(())
    }

    /// After a store that everything was ordered before.
    fn after(store: Event) -> Self {
        Self { stored: Some(store), ..Self::default() }
    }

    #[inline]
    fn check_store(&self, is_before: &impl Fn(&Event) -> bool) -> Result<(), Event> {
        match self.stored {
            Some(event) if !is_before(&event) => Err(event),
            _ => Ok(()),
        }
    }
}

/// A piece of shared memory.
trait Piece {
    const BYTES: usize;

    fn new(history: &History) -> Self;

    /// Adds an event of the bytes `within` the piece.
    fn add(
        &mut self,
        within: Range<usize>,
        event: Event,
        is_before: &impl Fn(&Event) -> bool,
    ) -> Result<(), Event>;

    /// The history of byte `byte`.
    fn of_byte(&self, byte: usize) -> &History;
}

/// A byte.
impl Piece for History {
    const BYTES: usize = 1;

    fn new(history: &History) -> Self {
        history.clone()
    }

    fn add(
        &mut self,
        _within: Range<usize>,
        event: Event,
        is_before: &impl Fn(&Event) -> bool,
    ) -> Result<(), Event> {
        self.add_event(event, is_before)
    }

    fn of_byte(&self, _byte: usize) -> &History {
        self
    }
}

/// `N` pieces, which share a history until someone accesses only some of them.
#[derive(Clone)]
enum Pieces<P, const N: usize> {
    Together(History),
    Apart(Box<[P; N]>),
}

type Word = Pieces<History, 4>;
/// As much as an access of a thread has at most.
type Quad = Pieces<Word, 4>;

impl<P: Piece, const N: usize> Piece for Pieces<P, N> {
    const BYTES: usize = N * P::BYTES;

    fn new(history: &History) -> Self {
        Self::Together(history.clone())
    }

    #[inline]
    fn add(
        &mut self,
        within: Range<usize>,
        event: Event,
        is_before: &impl Fn(&Event) -> bool,
    ) -> Result<(), Event> {
        let is_all = within.len() == Self::BYTES;
        match self {
            Self::Together(history) if is_all => return history.add_event(event, is_before),
            Self::Together(history) => {
                *self = Self::Apart(Box::new(std::array::from_fn(|_| P::new(history))));
            }
            Self::Apart(_) => {}
        }
        if let Self::Apart(pieces) = self {
            for (i, piece) in pieces.iter_mut().enumerate() {
                let bytes = i * P::BYTES..(i + 1) * P::BYTES;
                let both = within.start.max(bytes.start)..within.end.min(bytes.end);
                if !both.is_empty() {
                    let within = both.start - bytes.start..both.end - bytes.start;
                    piece.add(within, event, is_before)?;
                }
            }
        }
        if is_all && event.act == Act::Store {
            *self = Self::Together(History::after(event));
        }
        Ok(())
    }

    fn of_byte(&self, byte: usize) -> &History {
        match self {
            Self::Together(history) => history,
            Self::Apart(pieces) => pieces[byte / P::BYTES].of_byte(byte % P::BYTES),
        }
    }
}

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
        event: Event,
        first: u32,
        bytes: usize,
        is_before: impl Fn(&Event) -> bool,
    ) -> Result<(), Event> {
        let first = first as usize;
        let end = first + bytes;
        let quads = first / Quad::BYTES..end.div_ceil(Quad::BYTES);
        if self.0.len() < quads.end {
            self.0.resize(quads.end, Quad::new(&History::default()));
        }
        for idx in quads {
            let base = idx * Quad::BYTES;
            let within = first.max(base) - base..end.min(base + Quad::BYTES) - base;
            self.0[idx].add(within, event, &is_before)?;
        }
        Ok(())
    }

    /// Checks that the last store to byte `byte` is ordered, by `is_before`.
    pub fn check_store(&self, byte: u32, is_before: impl Fn(&Event) -> bool) -> Result<(), Event> {
        let byte = byte as usize;
        match self.0.get(byte / Quad::BYTES) {
            Some(quad) => quad.of_byte(byte % Quad::BYTES).check_store(&is_before),
            None => Ok(()),
        }
    }
}
