//! What the executor reports instead of what a GPU leaves undefined.

use std::fmt;
use std::panic::Location;
use std::time::Duration;

/// Why a launch did not end well. The memory it wrote to holds whatever had been written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The launch asks for what no device grants; nothing ran.
    #[error("kernel {kernel} was not launched: {reason}")]
    Refused {
        /// The kernel.
        kernel: &'static str,
        /// What is wrong with the launch.
        reason: Refusal,
    },
    /// One thread broke a rule.
    #[error("kernel {kernel}, block {block}, thread {thread} at {site}: {violation}")]
    Violation {
        /// The kernel.
        kernel: &'static str,
        /// The thread's block.
        block: BlockIdx,
        /// The thread's index in its block, x fastest.
        thread: u32,
        /// The line of the kernel.
        site: Site,
        /// The rule.
        violation: Violation,
    },
    /// Threads of a block wait for each other, and none can go on.
    #[error("{} in kernel {kernel}, block {block}: {waits}", waits.title())]
    Stuck {
        /// The kernel.
        kernel: &'static str,
        /// The block.
        block: BlockIdx,
        /// Who waits where.
        waits: Waits,
    },
    /// The machine gave no memory for the stacks of a block's threads.
    #[error("kernel {kernel}, block {block}: no memory for the stacks of its threads: {error}")]
    NoStacks {
        /// The kernel.
        kernel: &'static str,
        /// The block.
        block: BlockIdx,
        /// The system's error.
        error: String,
    },
    /// For the executor's deadline, no thread did anything but poll.
    #[error("kernel {kernel} only spun for {deadline:?}: {}", blocks_spin(blocks, *num_more))]
    SpinDeadline {
        /// The kernel.
        kernel: &'static str,
        /// The deadline that passed.
        deadline: Duration,
        /// Blocks that poll, and who waits where in them; the first few.
        blocks: Vec<(BlockIdx, Waits)>,
        /// How many more blocks poll.
        num_more: usize,
    },
}

fn blocks_spin(blocks: &[(BlockIdx, Waits)], num_more: usize) -> String {
    let mut text = blocks
        .iter()
        .map(|(block, waits)| format!("block {block}: {waits}"))
        .collect::<Vec<_>>()
        .join("; ");
    if num_more > 0 {
        text += &format!("; and {num_more} more blocks");
    }
    text
}

/// Why a launch is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A dimension of zero.
    #[error("{what} is {dims:?}, and no dimension may be zero")]
    ZeroDimension {
        /// `grid` or `block`.
        what: &'static str,
        /// As launched.
        dims: [u32; 3],
    },
    /// A dimension above the device's limit.
    #[error("{what} is {dims:?}, and the limit is {limit:?}")]
    DimensionTooLarge {
        /// `grid` or `block`.
        what: &'static str,
        /// As launched.
        dims: [u32; 3],
        /// Largest for each dimension.
        limit: [u32; 3],
    },
    /// More threads than a block can have.
    #[error("a block has {got} threads, and the limit is {limit}")]
    TooManyThreads {
        /// As launched.
        got: u64,
        /// Largest.
        limit: u32,
    },
    /// Not the block size that the kernel is written for.
    #[error("a block has {got} threads, and the kernel is written for {needed}")]
    WrongThreads {
        /// As launched.
        got: u64,
        /// As in `#[kernel(threads = …)]`.
        needed: u32,
    },
    /// Blocks that are left over when the grid is divided into clusters.
    #[error("the grid has {got} blocks in x, and the kernel runs in clusters of {cluster}")]
    PartOfCluster {
        /// As launched.
        got: u32,
        /// As in `#[kernel(cluster = …)]`.
        cluster: u32,
    },
    /// More shared memory than a block can have.
    #[error("a block has {got} bytes of shared memory, and the limit is {limit}")]
    TooMuchShared {
        /// As launched.
        got: u32,
        /// Largest.
        limit: u32,
    },
}

/// A rule that a thread broke.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Outside of the view or the allocation.
    #[error("{access} of {bytes} bytes at {address:#x} is out of bounds: {bounds}")]
    OutOfBounds {
        /// Load or store, global or shared.
        access: Access,
        /// Where.
        address: u64,
        /// How many.
        bytes: usize,
        /// What lies there, in words.
        bounds: String,
    },
    /// In an allocation that has been freed.
    #[error("{access} of {bytes} bytes at {address:#x} uses memory that was freed")]
    UseAfterFree {
        /// Load or store.
        access: Access,
        /// Where.
        address: u64,
        /// How many.
        bytes: usize,
    },
    /// Not a multiple of the access's alignment.
    #[error("{access} of {bytes} bytes at {address:#x} is not aligned to {alignment}")]
    Misaligned {
        /// Load or store, global or shared.
        access: Access,
        /// Where.
        address: u64,
        /// How many.
        bytes: usize,
        /// What the address must be a multiple of.
        alignment: usize,
    },
    /// Two accesses of shared or of device memory, not both loads, in no order.
    #[error("data race: {0}")]
    Race(Box<Race>),
    /// Of bytes that nothing wrote.
    #[error("{access} of {bytes} bytes at {address:#x} reads memory nothing wrote")]
    Uninitialized {
        /// Load, global or shared.
        access: Access,
        /// Where.
        address: u64,
        /// How many.
        bytes: usize,
    },
    /// A warp operation that its lanes cannot do together.
    #[error("{operation} with mask {mask:#010x}: {problem}")]
    Warp {
        /// The operation.
        operation: &'static str,
        /// The lanes it names.
        mask: u32,
        /// What is wrong.
        problem: String,
    },
    /// A warpgroup operation, used against the rules.
    #[error("{operation}: {problem}")]
    Warpgroup {
        /// The operation.
        operation: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A barrier for some threads, used against the rules.
    #[error("{0}")]
    Barrier(String),
    /// What an early kernel may not do, or not yet.
    #[error("{0}")]
    Early(String),
    /// What a block of a cluster does to another, against the rules.
    #[error("{0}")]
    Cluster(String),
    /// A bulk copy or its barrier, used against the rules.
    #[error("{0}")]
    Bulk(String),
    /// The kernel panicked.
    #[error("panicked: {0}")]
    Panic(String),
}

/// What a thread did to which memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A read of device memory.
    GlobalLoad,
    /// A write to device memory.
    GlobalStore,
    /// A read of the block's shared memory.
    SharedLoad,
    /// A write to the block's shared memory.
    SharedStore,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GlobalLoad => "load",
            Self::GlobalStore => "store",
            Self::SharedLoad => "shared load",
            Self::SharedStore => "shared store",
        })
    }
}

impl Access {
    fn verb(self) -> &'static str {
        match self {
            Self::GlobalLoad | Self::SharedLoad => "reads",
            Self::GlobalStore | Self::SharedStore => "writes",
        }
    }

    fn memory(self) -> &'static str {
        match self {
            Self::GlobalLoad | Self::GlobalStore => "device",
            Self::SharedLoad | Self::SharedStore => "shared",
        }
    }
}

/// An access of memory, and the one before that it is not ordered after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Race {
    /// What accesses it, in words.
    pub who: String,
    /// Load or store.
    pub access: Access,
    /// Where.
    pub address: u64,
    /// How many bytes.
    pub bytes: usize,
    /// What has accessed it before, in words.
    pub other: String,
    /// How that has.
    pub other_access: Access,
    /// The line of the kernel that did that.
    pub other_site: Site,
    /// What would order the two.
    pub missing: OrderedBy,
}

impl std::error::Error for Race {}

impl fmt::Display for Race {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { who, access, address, bytes, other, other_access, other_site, missing } = self;
        let (verb, other_verb) = (access.verb(), other_access.verb());
        let memory = access.memory();
        write!(f, "{who} {verb} {bytes} bytes at {address:#x} of {memory} memory, ")?;
        write!(f, "which {other} {other_verb} at {other_site}, and {missing}")
    }
}

/// What orders two accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderedBy {
    /// A barrier between two threads.
    Barrier,
    /// A wait for what works beside the threads.
    Wait,
    /// A fence between what threads store and what the async proxy sees.
    ProxyFence,
    /// A release by one cluster that the other acquires.
    Release,
    /// The order of two launches or copies; or, as between clusters, a release.
    Queue,
    /// A scope that reaches from one atomic act to the other.
    Scope,
}

impl fmt::Display for OrderedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Barrier => "no barrier orders the two",
            Self::Wait => "nothing has waited for that",
            Self::ProxyFence => "no fence_proxy_async lies between",
            Self::Release => "no release and acquire orders the two",
            Self::Queue => "no queue, event or wait of the host orders the two",
            Self::Scope => "the scope of one atomic operation does not reach the other",
        })
    }
}

/// A block's index in the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockIdx(pub [u32; 3]);

impl fmt::Display for BlockIdx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.0;
        write!(f, "({x},{y},{z})")
    }
}

/// A line of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// Its source file.
    pub file: &'static str,
    /// From 1.
    pub line: u32,
    /// From 1.
    pub column: u32,
}

impl From<&'static Location<'static>> for Site {
    fn from(location: &'static Location<'static>) -> Self {
        Self { file: location.file(), line: location.line(), column: location.column() }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What a thread waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// All threads of the block, in `sync_threads`.
    Block,
    /// All threads of the cluster.
    Cluster,
    /// Some threads of the block, in `sync_some`.
    NamedBarrier {
        /// The barrier.
        id: u32,
        /// Who came there, in words.
        state: String,
    },
    /// The lanes of a mask, in a warp operation.
    Warp {
        /// The operation.
        operation: &'static str,
        /// The lanes it names.
        mask: u32,
    },
    /// All threads of the warpgroup.
    Warpgroup {
        /// The operation.
        operation: &'static str,
    },
    /// The phase of an mbarrier.
    Mbarrier {
        /// Its byte in shared memory.
        address: u32,
        /// The parity waited for.
        parity: u32,
        /// What the barrier has and lacks, in words.
        state: String,
    },
    /// Another block or rank, polling.
    Others,
    /// Nothing: it has returned.
    Returned,
}

/// Which threads of a block wait, where and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waits(pub Vec<ThreadsWait>);

/// Threads that wait at one place for one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadsWait {
    /// Ranges of threads, first and last, ascending.
    pub threads: Vec<(u32, u32)>,
    /// The line they wait at, unless they have returned.
    pub site: Option<Site>,
    /// What for.
    pub waits_for: WaitsFor,
}

impl Waits {
    /// Groups the threads of a block, given in order.
    pub(super) fn group(threads: impl Iterator<Item = (Option<Site>, WaitsFor)>) -> Self {
        let mut groups: Vec<ThreadsWait> = Vec::new();
        for (thread, (site, waits_for)) in (0..).zip(threads) {
            let same =
                |group: &&mut ThreadsWait| group.site == site && group.waits_for == waits_for;
            match groups.iter_mut().find(same) {
                Some(group) => match group.threads.last_mut() {
                    Some((_, last)) if *last + 1 == thread => *last = thread,
                    _ => group.threads.push((thread, thread)),
                },
                None => {
                    groups.push(ThreadsWait { threads: vec![(thread, thread)], site, waits_for })
                }
            }
        }
        Self(groups)
    }

    fn title(&self) -> &'static str {
        let at_mbarrier =
            |group: &ThreadsWait| matches!(group.waits_for, WaitsFor::Mbarrier { .. });
        if self.0.iter().any(at_mbarrier) { "stuck mbarrier" } else { "divergent barrier" }
    }
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, group) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{group}")?;
        }
        Ok(())
    }
}

/// Ranges of threads that a report spells out.
const MAX_RANGES: usize = 6;

fn num_threads(ranges: &[(u32, u32)]) -> u32 {
    ranges.iter().map(|(first, last)| last - first + 1).sum()
}

impl fmt::Display for ThreadsWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = matches!(self.threads[..], [(first, last)] if first == last);
        f.write_str(if one { "thread " } else { "threads " })?;
        for (i, (first, last)) in self.threads.iter().take(MAX_RANGES).enumerate() {
            let separator = if i > 0 { ", " } else { "" };
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
        }
        if self.threads.len() > MAX_RANGES {
            write!(f, " and {} more", num_threads(&self.threads[MAX_RANGES..]))?;
        }
        let Some(site) = self.site else {
            return f.write_str(" returned");
        };
        let verb = match (&self.waits_for, one) {
            (WaitsFor::Others, true) => "spins",
            (WaitsFor::Others, false) => "spin",
            (_, true) => "waits",
            (_, false) => "wait",
        };
        write!(f, " {verb} at {site}")?;
        match &self.waits_for {
            WaitsFor::Warp { operation, mask } => write!(f, " in {operation} of mask {mask:#010x}"),
            WaitsFor::Warpgroup { operation } => write!(f, " in {operation} of their warpgroup"),
            WaitsFor::Mbarrier { address, parity, state } => {
                write!(f, " for parity {parity} of the mbarrier at shared byte {address} ({state})")
            }
            WaitsFor::NamedBarrier { id, state } => write!(f, " at barrier {id} ({state})"),
            WaitsFor::Cluster => f.write_str(" for the cluster"),
            WaitsFor::Block | WaitsFor::Others | WaitsFor::Returned => Ok(()),
        }
    }
}
