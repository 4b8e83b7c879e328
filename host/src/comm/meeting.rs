//! Where the threads of a world meet: exchange of values, lanes for messages, and the news that a
//! rank has failed. Every wait here ends: with what it waited for, with a peer's failure, or at
//! the deadline.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{CommError, Result};

pub(super) struct Meeting<P> {
    state: Mutex<State<P>>,
    changed: Condvar,
    deadline: Duration,
}

struct State<P> {
    failure: Option<Failure>,
    /// Ranks whose work has ended.
    left: Vec<bool>,
    /// Exchanges completed so far.
    round: u64,
    arrived: Vec<Option<Arrival>>,
    /// The values of the last completed round. The next one completes only when every rank has
    /// come to it, so has read these.
    completed: Vec<Arc<dyn Any + Send + Sync>>,
    /// Messages from rank `i / size` to rank `i % size`.
    lanes: Vec<Lane<P>>,
}

struct Arrival {
    operation: &'static str,
    value: Arc<dyn Any + Send + Sync>,
}

/// The first rank that failed, and with what.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) rank: usize,
    pub(super) reason: String,
}

struct Lane<P> {
    posted: VecDeque<P>,
    num_posted: u64,
    num_received: u64,
}

/// A message under way, for its sender to wait for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    to: usize,
    number: u64,
}

impl<P> Meeting<P> {
    pub(super) fn new(size: usize, deadline: Duration) -> Self {
        let lane = || Lane { posted: VecDeque::new(), num_posted: 0, num_received: 0 };
        let state = State {
            failure: None,
            left: vec![false; size],
            round: 0,
            arrived: (0..size).map(|_| None).collect(),
            completed: Vec::new(),
            lanes: (0..size * size).map(|_| lane()).collect(),
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), deadline }
    }

    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Tells everybody that `rank` failed. The first failure is the one that counts.
    pub(super) fn fail(&self, rank: usize, reason: String) {
        self.lock().failure.get_or_insert(Failure { rank, reason });
        self.changed.notify_all();
    }

    /// Tells everybody that `rank` is done, and will not come any more.
    pub(super) fn leave(&self, rank: usize) {
        self.lock().left[rank] = true;
        self.changed.notify_all();
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        self.lock().failure.clone()
    }

    /// An error if another rank has failed.
    pub(super) fn check(&self, rank: usize, operation: &'static str) -> Result<()> {
        self.lock().check(rank, operation)
    }

    /// Every rank's value, by rank. All ranks call this, for the same operation.
    pub(super) fn exchange<V: Clone + Send + Sync + 'static>(
        &self,
        rank: usize,
        operation: &'static str,
        value: V,
    ) -> Result<Vec<V>> {
        let mut state = self.lock();
        let round = state.round;
        state.arrived[rank] = Some(Arrival { operation, value: Arc::new(value) });
        state.check_same_operation(rank, operation)?;
        if state.arrived.iter().all(Option::is_some) {
            let arrived = state.arrived.iter_mut();
            state.completed = arrived.filter_map(|arrival| Some(arrival.take()?.value)).collect();
            state.round += 1;
            self.changed.notify_all();
        }
        let missing = |state: &State<P>| {
            (0..state.arrived.len()).filter(|&peer| state.arrived[peer].is_none()).collect()
        };
        let values = self.wait(state, rank, operation, missing, |state| {
            (state.round > round).then(|| state.completed.clone())
        })?;
        let typed = values.iter().enumerate().map(|(peer, value)| {
            value.downcast_ref::<V>().cloned().ok_or_else(|| CommError::Mismatch {
                rank,
                operation,
                peer,
                expected: format!("elements of {}", std::any::type_name::<V>()),
                got: "elements of another type".to_owned(),
            })
        });
        typed.collect()
    }

    /// Leaves a message for `to`; does not wait.
    pub(super) fn post(&self, rank: usize, to: usize, message: P) -> Ticket {
        let mut state = self.lock();
        let lane = state.lane(rank, to);
        lane.posted.push_back(message);
        lane.num_posted += 1;
        let number = lane.num_posted;
        self.changed.notify_all();
        Ticket { to, number }
    }

    /// The next message of `from`. [`Self::received`] tells the sender that it has been used.
    pub(super) fn take(&self, rank: usize, from: usize) -> Result<P> {
        self.wait(
            self.lock(),
            rank,
            "recv",
            |_| vec![from],
            |state| state.lane(from, rank).posted.pop_front(),
        )
    }

    /// Lets the sender of the message taken last from `from` go on.
    pub(super) fn received(&self, rank: usize, from: usize) {
        self.lock().lane(from, rank).num_received += 1;
        self.changed.notify_all();
    }

    /// Waits until a message has been received.
    pub(super) fn wait_received(&self, rank: usize, ticket: Ticket) -> Result<()> {
        self.wait(
            self.lock(),
            rank,
            "send",
            |_| vec![ticket.to],
            |state| (state.lane(rank, ticket.to).num_received >= ticket.number).then_some(()),
        )
    }

    /// Waits until `ready` yields something; `missing` names who has yet to come.
    fn wait<R>(
        &self,
        mut state: MutexGuard<'_, State<P>>,
        rank: usize,
        operation: &'static str,
        missing: impl Fn(&State<P>) -> Vec<usize>,
        mut ready: impl FnMut(&mut State<P>) -> Option<R>,
    ) -> Result<R> {
        let start = Instant::now();
        loop {
            if let Some(result) = ready(&mut state) {
                return Ok(result);
            }
            state.check(rank, operation)?;
            let peers = missing(&state);
            if let Some(&peer) = peers.iter().find(|&&peer| state.left[peer]) {
                return Err(CommError::PeerLeft { rank, operation, peer });
            }
            let Some(remaining) = self.deadline.checked_sub(start.elapsed()) else {
                return Err(CommError::Deadline {
                    rank,
                    operation,
                    peers,
                    deadline: self.deadline,
                });
            };
            state = match self.changed.wait_timeout(state, remaining) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<P>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P> State<P> {
    fn lane(&mut self, from: usize, to: usize) -> &mut Lane<P> {
        let size = self.left.len();
        &mut self.lanes[from * size + to]
    }

    fn check(&self, rank: usize, operation: &'static str) -> Result<()> {
        match &self.failure {
            Some(Failure { rank: peer, reason }) if *peer != rank => {
                Err(CommError::PeerFailed { rank, operation, peer: *peer, reason: reason.clone() })
            }
            _ => Ok(()),
        }
    }

    fn check_same_operation(&self, rank: usize, operation: &'static str) -> Result<()> {
        for (peer, arrival) in self.arrived.iter().enumerate() {
            if let Some(Arrival { operation: other, .. }) = arrival
                && *other != operation
            {
                return Err(CommError::Mismatch {
                    rank,
                    operation,
                    peer,
                    expected: format!("all ranks in {operation}"),
                    got: format!("come to {other}"),
                });
            }
        }
        Ok(())
    }
}
