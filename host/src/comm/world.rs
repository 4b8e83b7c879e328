//! A world of ranks: the same program on every device, one thread for each.

use std::cell::OnceCell;
use std::fmt::{self, Display};
use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytemuck::Pod;
use cuda_std::cpu::ExecutorConfig;

use super::meeting::Meeting;
use super::nccl::NcclCommunicator;
use super::threads::ThreadCommunicator;
use super::{CommError, Communicator, Message, Result, SymmetricBuffer, timeout};
use crate::device::{Device, DeviceError, executor_config, num_gpus};

/// How long a rank waits for others at least, unless [`World::with_deadline`] says otherwise: as
/// long as kernels do, and as long as it may take a rank to make its inputs.
const DEADLINE: Duration = Duration::from_secs(60);

/// Some devices that work on one thing.
#[derive(Clone, Debug)]
pub struct World {
    devices: Vec<Device>,
    /// Ranks that each device stands for.
    num_mirrors: usize,
    deadline: Duration,
}

impl World {
    /// `size` ranks that share this machine's cores.
    ///
    /// # Panics
    /// With no rank.
    pub fn cpu(size: usize) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let num_workers = (cores / size.max(1)).max(1);
        Self::cpu_with(size, ExecutorConfig { num_workers, ..executor_config() })
    }

    /// `size` ranks, each with an executor like this.
    ///
    /// # Panics
    /// With no rank.
    pub fn cpu_with(size: usize, config: ExecutorConfig) -> Self {
        assert!(size > 0, "a world needs at least one rank");
        let device = |rank| Device::cpu_with(config, rank);
        Self::new((0..size).map(device).collect())
    }

    /// One rank that stands for `size`: what it writes to a peer it writes to itself. A kernel that
    /// waits for its peers' has all that it waits for from itself, and needs no other to run beside
    /// it. What peers would tell apart by the writer's rank falls together in its memory. There is no
    /// [`Rank::communicator`].
    ///
    /// # Panics
    /// With no rank.
    pub fn mirror(device: &Device, size: usize) -> Self {
        assert!(size > 0, "a world needs at least one rank");
        // What its ranks send to each other they all write to the same place.
        Self { num_mirrors: size, ..Self::new(vec![device.letting_races_be()]) }
    }

    fn new(devices: Vec<Device>) -> Self {
        Self { devices, num_mirrors: 1, deadline: DEADLINE.max(timeout()) }
    }

    /// GPUs `0..size`, each reaching every other one's memory where the hardware can.
    pub fn cuda(size: usize) -> Result<Self> {
        let found = num_gpus()?;
        if size == 0 || size > found {
            return Err(CommError::Argument {
                operation: "world of GPUs",
                argument: "number of GPUs",
                needed: format!("1 to {found}, which this machine shows"),
                got: size.to_string(),
            });
        }
        let devices = (0..size).map(Device::cuda).collect::<Result<Vec<_>, DeviceError>>()?;
        Self::of(&devices)
    }

    /// A rank for each of these devices, each reaching every other one's memory where the hardware
    /// can.
    ///
    /// # Panics
    /// Without devices.
    pub fn of(devices: &[Device]) -> Result<Self> {
        assert!(!devices.is_empty(), "a world needs at least one rank");
        for device in devices {
            for peer in devices {
                if device.can_access_peer(peer)? {
                    device.enable_peer_access(peer)?;
                }
            }
        }
        Ok(Self::new(devices.to_vec()))
    }

    /// The same world, in which no rank waits longer than this for another.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Number of ranks, those of a mirror included.
    pub fn size(&self) -> usize {
        self.devices.len() * self.num_mirrors
    }

    /// Each rank's device.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Runs `body` on every rank at once, a thread for each, and returns what they returned.
    ///
    /// When one fails, or panics, those that wait for it give up with an error that names it.
    pub fn run<T, E, F>(&self, body: F) -> Vec<Result<T, RankError<E>>>
    where
        T: Send,
        E: Display + Send,
        F: Fn(&Rank) -> Result<T, E> + Sync,
    {
        self.run_in(&self.meeting(), &body)
    }

    fn meeting(&self) -> Arc<Meeting<Message>> {
        Arc::new(Meeting::new(self.devices.len(), self.deadline))
    }

    /// As [`Self::run`]; of several failures the one that came first, which is the cause of those
    /// of the ranks that gave up.
    pub fn try_run<T, E, F>(&self, body: F) -> Result<Vec<T>, RankError<E>>
    where
        T: Send,
        E: Display + Send,
        F: Fn(&Rank) -> Result<T, E> + Sync,
    {
        let meeting = self.meeting();
        let mut results = self.run_in(&meeting, &body);
        if let Some(failure) = meeting.failure() {
            // The error of the first rank to fail, whatever the others returned.
            results.swap_remove(failure.rank)?;
        }
        results.into_iter().collect()
    }

    fn run_in<T, E, F>(
        &self,
        meeting: &Arc<Meeting<Message>>,
        body: &F,
    ) -> Vec<Result<T, RankError<E>>>
    where
        T: Send,
        E: Display + Send,
        F: Fn(&Rank) -> Result<T, E> + Sync,
    {
        let run_rank = |index: usize, device: &Device| {
            let rank = Rank {
                index,
                size: self.size(),
                num_mirrors: self.num_mirrors,
                device: device.clone(),
                meeting: meeting.clone(),
                communicator: OnceCell::new(),
            };
            let result = match catch_unwind(AssertUnwindSafe(|| body(&rank))) {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(error)) => Err(RankError { rank: index, cause: RankFailure::Error(error) }),
                Err(panic) => Err(RankError {
                    rank: index,
                    cause: RankFailure::Panic(panic_message(&*panic)),
                }),
            };
            // Before the rank's communicator goes: its peers may be waiting in theirs.
            match &result {
                Ok(_) => meeting.leave(index),
                Err(error) => meeting.fail(index, error.cause.to_string()),
            }
            result
        };
        thread::scope(|scope| {
            let ranks: Vec<_> = (0..)
                .zip(&self.devices)
                .map(|(index, device)| {
                    thread::Builder::new()
                        .name(format!("rank {index}"))
                        .spawn_scoped(scope, move || run_rank(index, device))
                        .expect("the system has threads for every rank")
                })
                .collect();
            ranks
                .into_iter()
                .map(|rank| rank.join().expect("a rank's panic is caught inside of it"))
                .collect()
        })
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}

/// How a rank failed.
#[derive(Debug)]
pub struct RankError<E> {
    /// The rank.
    pub rank: usize,
    /// With what.
    pub cause: RankFailure<E>,
}

/// What a rank failed with.
#[derive(Debug)]
pub enum RankFailure<E> {
    /// Its program returned an error.
    Error(E),
    /// Its program panicked, with this message.
    Panic(String),
}

impl<E: Display> Display for RankFailure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(error) => error.fmt(f),
            Self::Panic(message) => write!(f, "panicked: {message}"),
        }
    }
}

impl<E: Display> Display for RankError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}: {}", self.rank, self.cause)
    }
}

impl<E: fmt::Debug + Display> std::error::Error for RankError<E> {}

/// One of a world's programs: which one it is, its device, and its way to the others.
pub struct Rank {
    index: usize,
    size: usize,
    num_mirrors: usize,
    device: Device,
    meeting: Arc<Meeting<Message>>,
    communicator: OnceCell<Rc<Communicator>>,
}

impl Rank {
    /// Which rank, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// This rank's device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Every rank's value, by rank. All ranks call this; the host waits.
    pub fn exchange<V: Clone + Send + Sync + 'static>(&self, value: V) -> Result<Vec<V>> {
        let values = self.meeting.exchange(self.index, "exchange", value)?;
        Ok(iter::repeat_n(values, self.num_mirrors).flatten().collect())
    }

    /// Waits until every rank has come here. Work on streams is not waited for.
    pub fn barrier(&self) -> Result<()> {
        self.meeting.exchange(self.index, "barrier", ()).map(drop)
    }

    /// The way to move data between ranks: NCCL between GPUs, copies on the CPU.
    ///
    /// The first call sets it up: all ranks make it together.
    pub fn communicator(&self) -> Result<&Rc<Communicator>> {
        if let Some(communicator) = self.communicator.get() {
            return Ok(communicator);
        }
        if self.num_mirrors > 1 {
            return Err(CommError::Argument {
                operation: "communicator",
                argument: "world",
                needed: "ranks of their own".to_owned(),
                got: format!("a mirror of {} ranks", self.size),
            });
        }
        let (meeting, index, size) = (self.meeting.clone(), self.index, self.size);
        let communicator = if self.device.is_cuda() && size > 1 {
            Communicator::nccl(NcclCommunicator::new(meeting, index, size, &self.device)?)
        } else {
            Communicator::threads(ThreadCommunicator::new(meeting, index, size))
        };
        Ok(self.communicator.get_or_init(|| Rc::new(communicator)))
    }

    /// Memory of `len` elements on every rank, which all ranks' kernels reach. All ranks call
    /// this together, with the same length; contents are as in [`Device::alloc`].
    pub fn symmetric_alloc<T: Pod>(&self, len: usize) -> Result<SymmetricBuffer<T>> {
        SymmetricBuffer::new(&self.meeting, self.index, &self.device, self.num_mirrors, len)
    }
}
