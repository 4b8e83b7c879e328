//! The order of launches and copies.

use std::panic::Location;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::abroad::Abroad;
use super::clock::{Epoch, Timeline};
use super::device;
use crate::cpu::fault::{Access, Race};
use crate::cpu::memory::Allocation;

/// What the host has waited for: all its threads, as if they told each other at once.
static HOST: Mutex<Abroad> = Mutex::new(Abroad::nothing());

/// Numbers of queues that are not in use, with the last time of each; and how many were given out.
static UNUSED: Mutex<(Vec<Epoch>, Timeline)> = Mutex::new((Vec::new(), 0));

/// Launches and copies that are ordered as they come, as those of a GPU's stream are. What was given to
/// other queues is ordered only where something says so: a [mark](Self::mark) that this one
/// [waits](Self::wait) for, or the host, once it [has waited](Self::synchronize) for them.
///
/// The CPU does all work at once. A queue tells what a GPU might do in another order: two accesses to
/// device memory that no order holds apart are a [race](super::super::Race).
pub struct Queue {
    state: Mutex<State>,
}

struct State {
    /// When the last of its work was given to it.
    last: Epoch,
    known: Abroad,
}

/// All that a queue was given until then.
#[derive(Clone, Default)]
pub struct Mark(Abroad);

impl Queue {
    /// A queue without work.
    pub fn new() -> Self {
        let mut unused = lock(&UNUSED);
        let last = unused.0.pop().unwrap_or_else(|| {
            let timeline = unused.1;
            unused.1 = timeline.checked_add(1).expect("a process has thousands of queues");
            Epoch { timeline, time: 0 }
        });
        Self { state: Mutex::new(State { last, known: Abroad::default() }) }
    }

    /// Begins work: when it is, and what is known of other work.
    pub(in crate::cpu) fn begin(&self) -> (Epoch, Abroad) {
        let mut state = lock(&self.state);
        state.last.time += 1;
        state.known.join(&lock(&HOST));
        state.known.tidy();
        state.known.fence_proxy();
        (state.last, state.known.clone())
    }

    /// Ends the work that was begun at `work`, in which more was `learned` of that of others.
    pub(in crate::cpu) fn end(&self, work: Epoch, learned: &Abroad) {
        let mut state = lock(&self.state);
        state.known.join(learned);
        state.known.learn_all_of(work);
    }

    /// Notes work that accesses `bytes` bytes of each of these allocations, from a byte on.
    ///
    /// # Errors
    /// What it races with.
    #[track_caller]
    pub fn note(
        &self,
        accesses: &[(Access, &Allocation, usize)],
        bytes: usize,
    ) -> Result<(), Box<Race>> {
        let (work, known) = self.begin();
        let noted = accesses.iter().try_for_each(|&(access, allocation, first)| {
            // SAFETY: an address, of which only the history is looked up.
            let place = unsafe { allocation.view::<u8>().raw.offset_bytes(first) };
            device::note_work(work, &known, access, place, bytes, Location::caller())
        });
        self.end(work, &known);
        noted
    }

    /// All that the queue was given so far.
    pub fn mark(&self) -> Mark {
        Mark(lock(&self.state).known.clone())
    }

    /// What the queue is given from now on comes after `mark`.
    pub fn wait(&self, mark: &Mark) {
        lock(&self.state).known.join(&mark.0);
    }

    /// The host has waited for all that the queue was given: whatever is given to any queue from now on
    /// comes after that.
    pub fn synchronize(&self) {
        self.mark().synchronize();
    }
}

impl Mark {
    /// As [`Queue::synchronize`].
    pub fn synchronize(&self) {
        lock(&HOST).join(&self.0);
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Queue {
    /// As if the host waited.
    fn drop(&mut self) {
        self.synchronize();
        let last = lock(&self.state).last;
        lock(&UNUSED).0.push(last);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
