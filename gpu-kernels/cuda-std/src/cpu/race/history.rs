//! What each byte of memory remembers: its last store, and what was done to it since.

use std::ops::Range;

/// What is done to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    Load,
    Store,
    /// A load that others' updates may meet.
    AtomicLoad,
    /// A store, or a load and a store at once, that others' atomic acts may meet.
    Update,
}

impl Act {
    pub fn is_atomic(self) -> bool {
        matches!(self, Self::AtomicLoad | Self::Update)
    }

    pub fn stores(self) -> bool {
        matches!(self, Self::Store | Self::Update)
    }
}

/// Who did what, when, and where in a kernel.
pub trait Event: Copy {
    /// Of events with the same key only the last counts: who did it knows its past.
    type Key: Ord;
    /// Loads and updates since a store that are kept apart, at most.
    const MAX_APART: usize;

    fn key(&self) -> Self::Key;

    fn act(&self) -> Act;

    /// The event as one of those that are not kept apart.
    fn merged(self) -> Self;

    /// Whether the two must be ordered.
    fn conflicts_with(&self, other: &Self) -> bool {
        let (act, other) = (self.act(), other.act());
        (act.stores() || other.stores()) && !(act.is_atomic() && other.is_atomic())
    }
}

/// Loads and updates since the last store, the last of each key.
#[derive(Clone)]
enum Since<E> {
    Nothing,
    One(E),
    /// By key.
    Many(Vec<E>),
}

impl<E: Event> Since<E> {
    fn events(&self) -> &[E] {
        match self {
            Self::Nothing => &[],
            Self::One(event) => std::slice::from_ref(event),
            Self::Many(events) => events,
        }
    }

    /// Adds an event. What is ordered before it, by `is_before`, is of no more interest: who comes
    /// after it comes after that.
    #[inline]
    fn add(&mut self, event: E, is_before: &impl Fn(&E) -> bool) {
        match self {
            Self::Nothing => *self = Self::One(event),
            Self::One(other) if other.key() == event.key() || is_before(other) => *other = event,
            Self::One(other) => {
                let mut events = vec![*other, event];
                events.sort_by_key(E::key);
                *self = Self::Many(events);
            }
            Self::Many(events) => {
                let place_of =
                    |events: &[E], event: &E| events.binary_search_by_key(&event.key(), E::key);
                let mut event = event;
                let mut place = place_of(events, &event);
                // Now and then, so that it costs little.
                if place.is_err()
                    && (events.len().is_power_of_two() || events.len() >= E::MAX_APART)
                {
                    events.retain(|event| !is_before(event));
                    if events.len() >= E::MAX_APART {
                        event = event.merged();
                    }
                    place = place_of(events, &event);
                }
                match place {
                    Ok(idx) => events[idx] = event,
                    Err(idx) => events.insert(idx, event),
                }
            }
        }
    }
}

/// The history of bytes that were always accessed together.
#[derive(Clone)]
pub struct History<E> {
    stored: Option<E>,
    since: Since<E>,
    /// Whether any of `since` is an update.
    has_updates: bool,
}

impl<E> Default for History<E> {
    fn default() -> Self {
        Self { stored: None, since: Since::Nothing, has_updates: false }
    }
}

impl<E: Event> History<E> {
    /// Adds an event, unless it races: that with which it does is the error.
    #[inline]
    fn add_event(&mut self, event: E, is_before: &impl Fn(&E) -> bool) -> Result<(), E> {
        self.check_store(is_before)?;
        if event.act().stores() || self.has_updates {
            let races = |other: &&E| event.conflicts_with(other) && !is_before(other);
            if let Some(&other) = self.since.events().iter().find(races) {
                return Err(other);
            }
        }
        if event.act() == Act::Store {
            *self = Self::after(event);
        } else {
            self.has_updates |= event.act().stores();
            self.since.add(event, is_before);
        }
        Ok(())
    }

    /// After a store that everything was ordered before.
    fn after(store: E) -> Self {
        Self { stored: Some(store), ..Self::default() }
    }

    /// Checks that the last store is ordered, by `is_before`.
    #[inline]
    pub fn check_store(&self, is_before: &impl Fn(&E) -> bool) -> Result<(), E> {
        match self.stored {
            Some(event) if !is_before(&event) => Err(event),
            _ => Ok(()),
        }
    }
}

/// A piece of memory.
pub trait Piece {
    type Event: Event;
    const BYTES: usize;

    fn new(history: &History<Self::Event>) -> Self;

    /// Adds an event of the bytes `within` the piece, unless it races: the error is what it is not
    /// ordered after, by `is_before`.
    fn add(
        &mut self,
        within: Range<usize>,
        event: Self::Event,
        is_before: &impl Fn(&Self::Event) -> bool,
    ) -> Result<(), Self::Event>;

    /// The history of byte `byte`.
    fn of_byte(&self, byte: usize) -> &History<Self::Event>;
}

/// A byte.
impl<E: Event> Piece for History<E> {
    type Event = E;
    const BYTES: usize = 1;

    fn new(history: &Self) -> Self {
        history.clone()
    }

    fn add(
        &mut self,
        _within: Range<usize>,
        event: E,
        is_before: &impl Fn(&E) -> bool,
    ) -> Result<(), E> {
        self.add_event(event, is_before)
    }

    fn of_byte(&self, _byte: usize) -> &Self {
        self
    }
}

/// `N` pieces, which share a history until someone accesses only some of them.
pub enum Pieces<P: Piece, const N: usize> {
    Together(History<P::Event>),
    Apart(Box<[P; N]>),
}

impl<P: Piece, const N: usize> Default for Pieces<P, N> {
    fn default() -> Self {
        Self::Together(History::default())
    }
}

type Word<E> = Pieces<History<E>, 4>;
/// As much as an access of a thread has at most.
pub type Quad<E> = Pieces<Word<E>, 4>;

impl<P: Piece, const N: usize> Piece for Pieces<P, N> {
    type Event = P::Event;
    const BYTES: usize = N * P::BYTES;

    fn new(history: &History<P::Event>) -> Self {
        Self::Together(history.clone())
    }

    #[inline]
    fn add(
        &mut self,
        within: Range<usize>,
        event: P::Event,
        is_before: &impl Fn(&P::Event) -> bool,
    ) -> Result<(), P::Event> {
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
        if is_all && event.act() == Act::Store {
            *self = Self::Together(History::after(event));
        }
        Ok(())
    }

    fn of_byte(&self, byte: usize) -> &History<P::Event> {
        match self {
            Self::Together(history) => history,
            Self::Apart(pieces) => pieces[byte / P::BYTES].of_byte(byte % P::BYTES),
        }
    }
}
