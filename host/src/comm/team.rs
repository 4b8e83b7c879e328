//! Ranks that stay: each on its thread, with a state of its own, until their team is dropped.

use std::fmt::{self, Display};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::{Rank, RankError, World};

/// A world at work: ranks with a state each, which are given the same work. Threads that give work at
/// the same time take turns.
///
/// The state is made on the rank's thread and never leaves it. Work that fails on one rank ends
/// the team, for its state is unknown then.
pub struct Team<S, E> {
    /// Empty once the team has ended: ranks go on until nobody can give them work.
    orders: Mutex<Vec<Sender<Order<S, E>>>>,
    world: Mutex<Option<Running<E>>>,
}

/// The thread that all ranks' threads end in.
type Running<E> = JoinHandle<Result<(), RankError<E>>>;

type Order<S, E> = Box<dyn FnOnce(&Rank, &mut S) -> Result<(), E> + Send>;

/// Why a team did not do its work.
#[derive(Debug)]
pub enum TeamError<E> {
    /// A rank failed, the first of them.
    Rank(RankError<E>),
    /// The team has ended, by an earlier failure.
    Ended,
}

impl<E: Display> Display for TeamError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rank(error) => error.fmt(f),
            Self::Ended => f.write_str("an earlier failure ended this team of ranks"),
        }
    }
}

impl<E: fmt::Debug + Display> std::error::Error for TeamError<E> {}

impl<S: 'static, E: Display + Send + 'static> Team<S, E> {
    /// Starts the ranks of a world, and waits until each has made its state.
    ///
    /// # Errors
    /// The first failure to make one.
    pub fn start(
        world: World,
        make_state: impl Fn(&Rank) -> Result<S, E> + Send + Sync + 'static,
    ) -> Result<Self, TeamError<E>> {
        let (orders, inboxes): (Vec<_>, Vec<_>) =
            (0..world.devices().len()).map(|_| mpsc::channel::<Order<S, E>>()).unzip();
        let (started, num_started) = mpsc::channel();
        let with_sender = |inbox| Mutex::new(Some((inbox, started.clone())));
        let inboxes: Vec<_> = inboxes.into_iter().map(with_sender).collect();
        // From here on only ranks hold it: when all have started or failed, nobody does.
        drop(started);
        let size = world.devices().len();
        let world = thread::spawn(move || {
            world.try_run(|rank| {
                let (inbox, started) = take(&inboxes[rank.index()]);
                let mut state = make_state(rank)?;
                let _ = started.send(());
                drop(started);
                for order in inbox {
                    order(rank, &mut state)?;
                }
                Ok(())
            })?;
            Ok(())
        });
        let team = Self { orders: Mutex::new(orders), world: Mutex::new(Some(world)) };
        match num_started.iter().take(size).count() == size {
            true => Ok(team),
            false => Err(team.end()),
        }
    }

    /// Gives all ranks the same work, and returns what each made of it, by rank.
    ///
    /// # Errors
    /// The first rank's failure, which ends the team.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl Fn(&Rank, &mut S) -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Vec<T>, TeamError<E>> {
        let work = Arc::new(work);
        let (done, results) = mpsc::channel();
        let give = |rank: &Sender<Order<S, E>>| {
            let (work, done) = (work.clone(), done.clone());
            let order: Order<S, E> = Box::new(move |rank, state| {
                let result = work(rank, state)?;
                // The caller waits for all results, unless a rank has failed.
                let _ = done.send((rank.index(), result));
                Ok(())
            });
            rank.send(order).is_ok()
        };
        let (size, all_alive) = {
            // Until all ranks have it: two threads' work comes to every rank in one order.
            let orders = lock(&self.orders);
            (orders.len(), orders.iter().all(give))
        };
        if size == 0 {
            return Err(TeamError::Ended);
        }
        if !all_alive {
            return Err(self.end());
        }
        // When all ranks have done the work or failed, nobody holds it.
        drop(done);
        let mut by_rank: Vec<Option<T>> = (0..size).map(|_| None).collect();
        for (rank, result) in results {
            by_rank[rank] = Some(result);
        }
        by_rank.into_iter().collect::<Option<_>>().ok_or_else(|| self.end())
    }

    /// Lets the ranks go, and says what ended the world to the first who asks.
    fn end(&self) -> TeamError<E> {
        lock(&self.orders).clear();
        match lock(&self.world).take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => TeamError::Rank(error),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            Some(Ok(Ok(()))) | None => TeamError::Ended,
        }
    }
}

impl<S, E> Drop for Team<S, E> {
    fn drop(&mut self) {
        lock(&self.orders).clear();
        if let Some(world) = lock(&self.world).take() {
            let _ = world.join();
        }
    }
}

fn take<T>(own: &Mutex<Option<T>>) -> T {
    lock(own).take().expect("each rank takes its own once")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::CommError;

    #[test]
    fn ranks_keep_their_state_from_work_to_work() {
        let team: Team<usize, CommError> =
            Team::start(World::cpu(3), |rank| Ok(10 * rank.index())).unwrap();
        for call in 1..=3 {
            let sums = team.run(|rank, state| {
                *state += 1;
                Ok(rank.exchange(*state)?.into_iter().sum::<usize>())
            });
            assert_eq!(sums.unwrap(), [30 + 3 * call; 3]);
        }
    }

    #[test]
    fn what_threads_give_at_once_comes_to_all_ranks_in_one_order() {
        let team: Team<(), CommError> = Team::start(World::cpu(2), |_| Ok(())).unwrap();
        thread::scope(|scope| {
            for giver in 0..4 {
                let team = &team;
                scope.spawn(move || {
                    for _ in 0..200 {
                        let met = team.run(move |rank, ()| rank.exchange(giver)).unwrap();
                        assert_eq!(met, [[giver; 2]; 2]);
                    }
                });
            }
        });
    }

    #[test]
    fn a_failure_names_the_rank_and_ends_the_team() {
        let team: Team<(), CommError> = Team::start(World::cpu(2), |_| Ok(())).unwrap();
        let failed = team.run(|rank, ()| match rank.index() {
            1 => Err(CommError::Device(crate::device::DeviceError::NoPtx)),
            _ => rank.barrier(),
        });
        let said = failed.unwrap_err().to_string();
        assert!(said.starts_with("rank 1: this build holds no GPU kernels"), "{said}");
        assert!(matches!(team.run(|_, ()| Ok(())), Err(TeamError::Ended)));
    }

    #[test]
    fn ranks_that_did_their_part_do_not_wait_for_one_that_failed() {
        let team: Team<(), CommError> = Team::start(World::cpu(3), |_| Ok(())).unwrap();
        let failed = team.run(|rank, ()| {
            assert!(rank.index() != 2, "planted");
            Ok(())
        });
        assert_eq!(failed.unwrap_err().to_string(), "rank 2: panicked: planted");
    }

    #[test]
    fn a_state_that_cannot_be_made_is_an_error() {
        let team = Team::<(), CommError>::start(World::cpu(2), |rank| {
            assert!(rank.index() != 1, "planted");
            Ok(())
        });
        assert_eq!(team.err().unwrap().to_string(), "rank 1: panicked: planted");
    }
}
