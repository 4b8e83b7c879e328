//! Memory of the same size on every rank, whose addresses all ranks know.

use std::iter;

use bytemuck::Pod;

use super::meeting::Meeting;
use super::{CommError, Message, Result};
use crate::device::{Buffer, Device, DeviceError, Extent, Stream};

const OPERATION: &str = "symmetric allocation";

/// This rank's part of a symmetric allocation, and where the other parts lie.
///
/// It keeps every rank's part alive, so a kernel may use the addresses as long as any rank holds
/// its part.
pub struct SymmetricBuffer<T> {
    local: Buffer<T>,
    addresses: Vec<u64>,
    peer_ptrs: Buffer<u64>,
    parts: Vec<Extent>,
}

/// What the ranks tell each other.
#[derive(Clone)]
struct Part {
    device: Device,
    len: usize,
    extent: Extent,
}

impl<T: Pod> SymmetricBuffer<T> {
    pub(super) fn new(
        meeting: &Meeting<Message>,
        rank: usize,
        device: &Device,
        num_mirrors: usize,
        len: usize,
    ) -> Result<Self> {
        let local = device.alloc::<T>(len)?;
        let extent = local.slice(..).extent(OPERATION)?;
        let part = Part { device: device.clone(), len, extent };
        let parts = meeting.exchange(rank, OPERATION, part)?;
        let parts: Vec<_> = iter::repeat_n(parts, num_mirrors).flatten().collect();
        for (peer, part) in parts.iter().enumerate() {
            if part.len != len {
                return Err(CommError::Mismatch {
                    rank,
                    operation: OPERATION,
                    peer,
                    expected: format!("{len} elements"),
                    got: format!("{}", part.len),
                });
            }
            if !device.can_access_peer(&part.device)? {
                let (device, peer) = (device.id(), part.device.id());
                return Err(DeviceError::NoPeerAccess { device, peer }.into());
            }
        }
        let addresses: Vec<u64> = parts.iter().map(|part| part.extent.address()).collect();
        let peer_ptrs = Buffer::from_slice(&device.new_stream()?, &addresses)?;
        let parts = parts.into_iter().map(|part| part.extent).collect();
        Ok(Self { local, addresses, peer_ptrs, parts })
    }

    /// This rank's part.
    pub fn local(&self) -> &Buffer<T> {
        &self.local
    }

    /// The address of each rank's part, by rank. // [ranks]
    pub fn addresses(&self) -> &[u64] {
        &self.addresses
    }

    /// The same addresses in this device's memory, for kernels. // [ranks]
    pub fn peer_ptrs(&self) -> &Buffer<u64> {
        &self.peer_ptrs
    }

    /// Keeps every rank's part, and the table of their addresses, until the work that `stream` has
    /// is done; see [`Stream::keep`].
    pub fn keep(&self, stream: &Stream) {
        self.parts.iter().for_each(|part| stream.keep_extent(part));
        stream.keep(&self.peer_ptrs);
    }
}
