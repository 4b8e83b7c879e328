//! Collectives by copies between the memories of one process: every rank says where its data
//! lies, takes what it needs from the others, and lets them go on when all have taken.

use std::sync::Arc;

use super::communicator::Transfer;
use super::meeting::Meeting;
use super::{CommError, Message, Reduce, ReduceOp, Result};
use crate::device::{Extent, Stream};

pub(super) struct ThreadCommunicator {
    meeting: Arc<Meeting<Message>>,
    rank: usize,
    size: usize,
}

impl ThreadCommunicator {
    pub(super) fn new(meeting: Arc<Meeting<Message>>, rank: usize, size: usize) -> Self {
        Self { meeting, rank, size }
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn meeting(&self) -> &Meeting<Message> {
        &self.meeting
    }

    /// Sends and receives, all at once: they may be each other's counterparts.
    pub(super) fn transfer(&self, stream: &Stream, transfers: Vec<Transfer>) -> Result<()> {
        if transfers.is_empty() {
            // A rank alone may be in a capture, where nothing can be waited for.
            return Ok(());
        }
        stream.synchronize()?;
        let mut tickets = Vec::new();
        let mut receives = Vec::new();
        for transfer in transfers {
            match transfer {
                Transfer::Send { to, extent } => {
                    tickets.push(self.meeting.post(self.rank, to, extent));
                }
                Transfer::Recv { from, extent } => receives.push((from, extent)),
            }
        }
        for (from, destination) in receives {
            let source = self.meeting.take(self.rank, from)?;
            self.check_same("recv", from, "bytes", destination.num_bytes(), source.num_bytes())?;
            stream.copy(source.as_bytes(), destination.as_bytes())?;
            stream.synchronize()?;
            self.meeting.received(self.rank, from);
        }
        tickets.into_iter().try_for_each(|ticket| self.meeting.wait_received(self.rank, ticket))
    }

    /// Before an exchange of `all_to_all_v`: what each peer sends is what this rank expects.
    pub(super) fn check_counts(&self, send: &[usize], receive: &[usize]) -> Result<()> {
        const OPERATION: &str = "all_to_all_v";
        let sent = self.meeting.exchange(self.rank, OPERATION, send.to_vec())?;
        for (peer, (counts, &expected)) in sent.iter().zip(receive).enumerate() {
            self.check_same(OPERATION, peer, "elements", expected, counts[self.rank])?;
        }
        Ok(())
    }

    pub(super) fn all_gather(
        &self,
        stream: &Stream,
        source: Extent,
        destination: &Extent,
    ) -> Result<()> {
        const OPERATION: &str = "all_gather";
        let part_bytes = source.num_bytes();
        self.pull(stream, OPERATION, source, |peer, source| {
            self.check_same(OPERATION, peer, "bytes", part_bytes, source.num_bytes())?;
            copy(stream, source, &destination.part(peer * part_bytes, part_bytes))
        })
    }

    pub(super) fn broadcast(&self, stream: &Stream, extent: Extent, root: usize) -> Result<()> {
        const OPERATION: &str = "broadcast";
        let destination = extent.clone();
        self.pull(stream, OPERATION, extent, |peer, source| {
            if peer != root {
                return Ok(());
            }
            let (expected, got) = (destination.num_bytes(), source.num_bytes());
            self.check_same(OPERATION, root, "bytes", expected, got)?;
            copy(stream, source, &destination)
        })
    }

    pub(super) fn all_reduce<T: Reduce>(
        &self,
        stream: &Stream,
        source: Extent,
        destination: &Extent,
        op: ReduceOp,
    ) -> Result<()> {
        const OPERATION: &str = "all_reduce";
        let bytes = source.num_bytes();
        let len = bytes / size_of::<T>();
        let mut parts: Vec<Vec<T>> = Vec::with_capacity(self.size);
        self.pull(stream, OPERATION, source, |peer, source| {
            self.check_same(OPERATION, peer, "bytes", bytes, source.num_bytes())?;
            let mut part = vec![T::zeroed(); len];
            bytemuck::cast_slice_mut(&mut part)
                .copy_from_slice(&stream.download(source.as_bytes())?);
            parts.push(part);
            Ok(())
        })?;
        let reduced: Vec<T> =
            (0..len).map(|i| T::reduce(op, parts.iter().map(|part| part[i]))).collect();
        Ok(stream.upload(bytemuck::cast_slice::<T, u8>(&reduced), destination.as_bytes())?)
    }

    /// Hands every rank's `source` to `take`, by rank, and returns when all ranks have taken, so
    /// that each may write to its own again.
    fn pull(
        &self,
        stream: &Stream,
        operation: &'static str,
        source: Extent,
        mut take: impl FnMut(usize, &Extent) -> Result<()>,
    ) -> Result<()> {
        stream.synchronize()?;
        let sources = self.meeting.exchange(self.rank, operation, source)?;
        for (peer, source) in sources.iter().enumerate() {
            take(peer, source)?;
        }
        stream.synchronize()?;
        self.meeting.exchange(self.rank, operation, ()).map(drop)
    }

    fn check_same(
        &self,
        operation: &'static str,
        peer: usize,
        unit: &str,
        expected: usize,
        got: usize,
    ) -> Result<()> {
        if expected == got {
            return Ok(());
        }
        Err(CommError::Mismatch {
            rank: self.rank,
            operation,
            peer,
            expected: format!("{expected} {unit}"),
            got: got.to_string(),
        })
    }
}

/// Copies, unless both are the same memory: an operation in place.
fn copy(stream: &Stream, source: &Extent, destination: &Extent) -> Result<()> {
    if source.address() == destination.address() {
        return Ok(());
    }
    Ok(stream.copy(source.as_bytes(), destination.as_bytes())?)
}
