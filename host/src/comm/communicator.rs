//! Moving data between ranks, the same on GPUs and on the CPU.

use std::thread;
use std::time::Instant;

use bytemuck::Pod;

use super::nccl::NcclCommunicator;
use super::threads::ThreadCommunicator;
use super::{CommError, Reduce, ReduceOp, Result};
use crate::device::{Extent, Slice, Stream};

/// Moves data between ranks. Every rank has one of its own, and calls the same operations in the
/// same order, with a stream of its own device.
///
/// Operations take their place in the stream's order, and on a GPU may return before they are
/// done: wait with [`Self::synchronize`], which ends also when a peer never comes. Memory that
/// they use is kept until then.
pub struct Communicator {
    transport: Transport,
}

enum Transport {
    Threads(ThreadCommunicator),
    Nccl(NcclCommunicator),
}

/// One side of a message.
pub(super) enum Transfer {
    Send { to: usize, extent: Extent },
    Recv { from: usize, extent: Extent },
}

/// Messages that start together; see [`Communicator::group`].
pub struct Group<'a> {
    communicator: &'a Communicator,
    transfers: Vec<Transfer>,
}

impl Group<'_> {
    /// Sends a slice to rank `to`.
    pub fn send<'a, T: Pod>(&mut self, source: impl Into<Slice<'a, T>>, to: usize) -> Result<()> {
        self.communicator.check_rank("send", "to", to)?;
        let extent = source.into().extent("send")?;
        self.transfers.push(Transfer::Send { to, extent });
        Ok(())
    }

    /// Receives a slice from rank `from`, which sends exactly as many elements.
    pub fn recv<'a, T: Pod>(
        &mut self,
        destination: impl Into<Slice<'a, T>>,
        from: usize,
    ) -> Result<()> {
        self.communicator.check_rank("recv", "from", from)?;
        let extent = destination.into().extent("recv")?;
        self.transfers.push(Transfer::Recv { from, extent });
        Ok(())
    }
}

impl Communicator {
    pub(super) fn threads(communicator: ThreadCommunicator) -> Self {
        Self { transport: Transport::Threads(communicator) }
    }

    pub(super) fn nccl(communicator: NcclCommunicator) -> Self {
        Self { transport: Transport::Nccl(communicator) }
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        match &self.transport {
            Transport::Threads(threads) => threads.rank(),
            Transport::Nccl(nccl) => nccl.rank(),
        }
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        match &self.transport {
            Transport::Threads(threads) => threads.size(),
            Transport::Nccl(nccl) => nccl.size(),
        }
    }

    /// Sends a slice to rank `to`, which must receive it: a send waits for its counterpart.
    pub fn send<'a, T: Pod>(
        &self,
        stream: &Stream,
        source: impl Into<Slice<'a, T>>,
        to: usize,
    ) -> Result<()> {
        self.group(stream, |group| group.send(source, to))
    }

    /// Receives a slice from rank `from`.
    pub fn recv<'a, T: Pod>(
        &self,
        stream: &Stream,
        destination: impl Into<Slice<'a, T>>,
        from: usize,
    ) -> Result<()> {
        self.group(stream, |group| group.recv(destination, from))
    }

    /// Sends and receives that start together, so that ranks may send to each other. Empty
    /// messages are left out, on both sides.
    pub fn group(
        &self,
        stream: &Stream,
        messages: impl FnOnce(&mut Group<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut group = Group { communicator: self, transfers: Vec::new() };
        messages(&mut group)?;
        let mut transfers = group.transfers;
        transfers.retain(|transfer| transfer.extent().num_bytes() > 0);
        match &self.transport {
            Transport::Threads(threads) => threads.transfer(stream, transfers),
            Transport::Nccl(nccl) => nccl.transfer(stream, transfers),
        }
    }

    /// Sends `send_counts[r]` elements to every rank r, and receives `recv_counts[r]` from it:
    /// in `source` and `destination`, which do not overlap, they lie one after another, by rank.
    pub fn all_to_all_v<'a, 'b, T: Pod>(
        &self,
        stream: &Stream,
        source: impl Into<Slice<'a, T>>,
        send_counts: &[usize], // [ranks]
        destination: impl Into<Slice<'b, T>>,
        recv_counts: &[usize], // [ranks]
    ) -> Result<()> {
        const OPERATION: &str = "all_to_all_v";
        let sends = self.parts(
            source.into().extent(OPERATION)?,
            "send_counts",
            send_counts,
            size_of::<T>(),
        )?;
        let receives = self.parts(
            destination.into().extent(OPERATION)?,
            "recv_counts",
            recv_counts,
            size_of::<T>(),
        )?;
        let own = self.rank();
        if let Transport::Threads(threads) = &self.transport {
            threads.check_counts(send_counts, recv_counts)?;
        }
        if send_counts[own] != recv_counts[own] {
            return Err(CommError::Argument {
                operation: OPERATION,
                argument: "recv_counts",
                needed: format!("{} for this rank itself, as it sends", send_counts[own]),
                got: recv_counts[own].to_string(),
            });
        }
        stream.copy(sends[own].as_bytes(), receives[own].as_bytes())?;
        self.group(stream, |group| {
            for (rank, (source, destination)) in sends.iter().zip(&receives).enumerate() {
                if rank != own {
                    group.send(source.as_bytes(), rank)?;
                    group.recv(destination.as_bytes(), rank)?;
                }
            }
            Ok(())
        })
    }

    /// Combines the ranks' `source`s, element by element, into every rank's `destination`, which
    /// may be the same memory. All ranks get the same bits.
    pub fn all_reduce<'a, 'b, T: Reduce>(
        &self,
        stream: &Stream,
        source: impl Into<Slice<'a, T>>,
        destination: impl Into<Slice<'b, T>>,
        op: ReduceOp,
    ) -> Result<()> {
        const OPERATION: &str = "all_reduce";
        let source = source.into().extent(OPERATION)?;
        let destination = destination.into().extent(OPERATION)?;
        check_destination(OPERATION, source.num_bytes(), destination.num_bytes())?;
        match &self.transport {
            Transport::Threads(threads) => {
                threads.all_reduce::<T>(stream, source, &destination, op)
            }
            Transport::Nccl(nccl) => nccl.all_reduce::<T>(stream, &source, &destination, op),
        }
    }

    /// Collects every rank's `source`, by rank, in every rank's `destination`, which is `size`
    /// times as long. `source` may be this rank's part of it.
    pub fn all_gather<'a, 'b, T: Pod>(
        &self,
        stream: &Stream,
        source: impl Into<Slice<'a, T>>,
        destination: impl Into<Slice<'b, T>>,
    ) -> Result<()> {
        const OPERATION: &str = "all_gather";
        let source = source.into().extent(OPERATION)?;
        let destination = destination.into().extent(OPERATION)?;
        check_destination(OPERATION, source.num_bytes() * self.size(), destination.num_bytes())?;
        match &self.transport {
            Transport::Threads(threads) => threads.all_gather(stream, source, &destination),
            Transport::Nccl(nccl) => nccl.all_gather(stream, &source, &destination),
        }
    }

    /// Copies rank `root`'s slice to every other rank's.
    pub fn broadcast<'a, T: Pod>(
        &self,
        stream: &Stream,
        slice: impl Into<Slice<'a, T>>,
        root: usize,
    ) -> Result<()> {
        const OPERATION: &str = "broadcast";
        self.check_rank(OPERATION, "root", root)?;
        let extent = slice.into().extent(OPERATION)?;
        match &self.transport {
            Transport::Threads(threads) => threads.broadcast(stream, extent, root),
            Transport::Nccl(nccl) => nccl.broadcast(stream, &extent, root),
        }
    }

    /// Waits until every rank's stream has done what it was given before.
    pub fn barrier(&self, stream: &Stream) -> Result<()> {
        self.synchronize(stream)?;
        let (meeting, rank) = match &self.transport {
            Transport::Threads(threads) => (threads.meeting(), threads.rank()),
            Transport::Nccl(nccl) => (nccl.meeting(), nccl.rank()),
        };
        meeting.exchange(rank, "barrier", ()).map(drop)
    }

    /// Waits until the stream is idle; ends also when a peer has failed, or at the deadline.
    pub fn synchronize(&self, stream: &Stream) -> Result<()> {
        match &self.transport {
            // Nothing that is on the stream waits for anybody.
            Transport::Threads(_) => Ok(stream.synchronize()?),
            Transport::Nccl(nccl) => {
                let start = Instant::now();
                while !stream.is_idle()? {
                    nccl.check_progress("synchronize", start)?;
                    thread::yield_now();
                }
                Ok(())
            }
        }
    }

    fn check_rank(
        &self,
        operation: &'static str,
        argument: &'static str,
        rank: usize,
    ) -> Result<()> {
        if rank < self.size() {
            return Ok(());
        }
        Err(CommError::Argument {
            operation,
            argument,
            needed: format!("a rank below {}", self.size()),
            got: rank.to_string(),
        })
    }

    /// Cuts what lies one after another.
    fn parts(
        &self,
        whole: Extent,
        argument: &'static str,
        counts: &[usize],
        element_bytes: usize,
    ) -> Result<Vec<Extent>> {
        let len = whole.num_bytes() / element_bytes;
        let total = counts.iter().try_fold(0usize, |sum, &count| sum.checked_add(count));
        if counts.len() != self.size() || total.is_none_or(|total| total > len) {
            return Err(CommError::Argument {
                operation: "all_to_all_v",
                argument,
                needed: format!("{} counts, at most {len} elements in all", self.size()),
                got: format!("{counts:?}"),
            });
        }
        let mut start = 0;
        let parts = counts.iter().map(|count| {
            let part = whole.part(start * element_bytes, count * element_bytes);
            start += count;
            part
        });
        Ok(parts.collect())
    }
}

impl Transfer {
    fn extent(&self) -> &Extent {
        match self {
            Self::Send { extent, .. } | Self::Recv { extent, .. } => extent,
        }
    }
}

fn check_destination(operation: &'static str, needed: usize, got: usize) -> Result<()> {
    if needed == got {
        return Ok(());
    }
    Err(CommError::Argument {
        operation,
        argument: "destination",
        needed: format!("{needed} bytes"),
        got: got.to_string(),
    })
}
