//! Vector clocks: who knows of what.

use std::cell::RefCell;
use std::sync::Arc;

use super::abroad::{Abroad, ClusterId};

/// What happens in an order of its own: a thread of a cluster, by its index there; what works beside
/// the threads, numbered after them; or a [queue](super::queue::Queue).
pub type Timeline = u16;

/// A time on a timeline, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch {
    pub timeline: Timeline,
    pub time: u32,
}

/// Of each timeline the last time that is known; 0 for nothing. Cheap to pass on as it is.
#[derive(Clone, Default)]
pub struct VectorClock(Option<Arc<Vec<u32>>>);

impl VectorClock {
    pub const fn nothing() -> Self {
        Self(None)
    }

    #[inline]
    fn times(&self) -> &[u32] {
        self.0.as_ref().map_or(&[], |times| times)
    }

    #[inline]
    fn time_of(&self, timeline: Timeline) -> u32 {
        self.times().get(usize::from(timeline)).copied().unwrap_or(0)
    }

    #[inline]
    pub fn has(&self, Epoch { timeline, time }: Epoch) -> bool {
        self.time_of(timeline) >= time
    }

    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(times), Some(others)) => Arc::ptr_eq(times, others),
            (None, None) => true,
            _ => false,
        }
    }

    pub fn includes(&self, other: &Self) -> bool {
        let (times, others) = (self.times(), other.times());
        let num_both = times.len().min(others.len());
        let (both, rest) = others.split_at(num_both);
        both.iter().zip(times).all(|(other, time)| other <= time)
            && rest.iter().all(|&other| other == 0)
    }

    fn at_least(&mut self, len: usize) -> &mut [u32] {
        let times = Arc::make_mut(self.0.get_or_insert_default());
        if times.len() < len {
            times.resize(len, 0);
        }
        times
    }

    pub fn join(&mut self, other: &Self) {
        if self.is_same(other) || self.includes(other) {
            return;
        }
        // So that those who know the same go on sharing it.
        if other.includes(self) {
            *self = other.clone();
            return;
        }
        let others = other.times();
        for (time, &other) in self.at_least(others.len()).iter_mut().zip(others) {
            *time = (*time).max(other);
        }
    }

    pub fn learn(&mut self, Epoch { timeline, time }: Epoch) {
        if self.time_of(timeline) < time {
            let idx = usize::from(timeline);
            self.at_least(idx + 1)[idx] = time;
        }
    }
}

/// What is known to have happened in a cluster.
#[derive(Clone, Default)]
pub struct Known {
    happened: VectorClock,
    /// What of it the async proxy sees, too, although it did not do it.
    fenced: VectorClock,
}

impl Known {
    #[inline]
    pub fn includes(&self, epoch: Epoch) -> bool {
        self.happened.has(epoch)
    }

    /// Whether the async proxy sees what was done then in the generic proxy.
    #[inline]
    pub fn includes_fenced(&self, epoch: Epoch) -> bool {
        self.fenced.has(epoch)
    }

    #[inline]
    fn is_same(&self, other: &Self) -> bool {
        self.happened.is_same(&other.happened) && self.fenced.is_same(&other.fenced)
    }

    pub fn join(&mut self, other: &Self) {
        self.happened.join(&other.happened);
        self.fenced.join(&other.fenced);
    }

    /// Makes all of it visible to the async proxy.
    pub fn fence_proxy(&mut self) {
        self.fenced = self.happened.clone();
    }
}

/// What is known to have happened: in a cluster by those who are of it, and elsewhere.
#[derive(Clone, Default)]
pub struct Knowledge {
    here: Known,
    abroad: Abroad,
}

impl Knowledge {
    #[inline]
    pub fn here(&self) -> &Known {
        &self.here
    }

    #[inline]
    pub fn abroad(&self) -> &Abroad {
        &self.abroad
    }

    pub fn learn(&mut self, epoch: Epoch) {
        self.here.happened.learn(epoch);
    }

    #[inline]
    pub fn is_same(&self, other: &Self) -> bool {
        self.here.is_same(&other.here) && self.abroad.is_same(&other.abroad)
    }

    fn join(&mut self, other: &Self) {
        self.here.join(&other.here);
        self.abroad.join(&other.abroad);
    }
}

/// Where a thread is, and what it knows.
#[derive(Clone)]
pub struct ThreadClock {
    now: Epoch,
    knowledge: Knowledge,
    /// Its last time that the async proxy sees.
    fenced_until: u32,
}

impl ThreadClock {
    /// That of a thread that starts with knowing what happened `abroad`.
    pub fn new(timeline: Timeline, abroad: Abroad) -> Self {
        let now = Epoch { timeline, time: 1 };
        Self { now, knowledge: Knowledge { here: Known::default(), abroad }, fenced_until: 0 }
    }

    #[inline]
    pub fn now(&self) -> Epoch {
        self.now
    }

    #[inline]
    pub fn knowledge(&self) -> &Knowledge {
        &self.knowledge
    }

    /// Whether what happened then in the thread's cluster is known.
    #[inline]
    pub fn knows(&self, epoch: Epoch) -> bool {
        epoch.timeline == self.now.timeline || self.knowledge.here.includes(epoch)
    }

    /// Whether the async proxy sees what was done then in the generic proxy, for all this thread knows.
    #[inline]
    pub fn knows_fenced(&self, epoch: Epoch) -> bool {
        let own = epoch.timeline == self.now.timeline && epoch.time <= self.fenced_until;
        own || self.knowledge.here.includes_fenced(epoch)
    }

    /// Makes all that the thread knows visible to the async proxy.
    pub fn fence_proxy(&mut self) {
        self.knowledge.here.fence_proxy();
        self.knowledge.abroad.fence_proxy();
        self.fenced_until = self.now.time;
        self.now.time += 1;
    }

    /// Tells `to`, for the thread's cluster, what the thread knows and did; what it does from now on is
    /// not told.
    pub fn release(&mut self, to: &mut Knowledge) {
        to.join(&self.knowledge);
        self.tell_own(&mut to.here);
    }

    /// As [`release`](Self::release), for those who are not of the thread's `cluster`, too.
    pub fn release_abroad(&mut self, cluster: ClusterId) -> Abroad {
        let mut here = self.knowledge.here.clone();
        self.tell_own(&mut here);
        self.knowledge.abroad.with(cluster, here)
    }

    fn tell_own(&mut self, to: &mut Known) {
        to.happened.learn(self.now);
        to.fenced.learn(Epoch { time: self.fenced_until, ..self.now });
        self.now.time += 1;
    }

    pub fn acquire(&mut self, from: &Knowledge) {
        self.knowledge.join(from);
    }

    /// As [`acquire`](Self::acquire), of what was told to all, by a thread of `cluster`.
    pub fn acquire_abroad(&mut self, from: &Abroad, cluster: ClusterId) {
        self.knowledge.abroad.join(from);
        if let Some(here) = from.of(cluster) {
            self.knowledge.here.join(here);
        }
    }

    /// Something that worked beside the thread is known to be done.
    pub fn learn(&mut self, epoch: Epoch) {
        self.knowledge.learn(epoch);
    }
}

/// Each of these threads learns what all of them know.
pub fn meet<'a>(clocks: impl Iterator<Item = &'a RefCell<ThreadClock>> + Clone) {
    let mut all = Knowledge::default();
    let mut last = Knowledge::default();
    for clock in clocks.clone() {
        let knowledge = &clock.borrow().knowledge;
        if !knowledge.is_same(&last) {
            all.join(knowledge);
            last = knowledge.clone();
        }
    }
    clocks.clone().for_each(|clock| clock.borrow_mut().tell_own(&mut all.here));
    clocks.for_each(|clock| clock.borrow_mut().knowledge = all.clone());
}
