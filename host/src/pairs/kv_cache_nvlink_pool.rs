//! Pair `kv_cache_nvlink_pool`: KV that does not fit this GPU lies in pinned host memory, against
//! in a peer's memory. Decode reads it in place either way: over PCIe, or over NVLink.

use anyhow::Result;

use super::{DecodeBench, DecodeWorkload};
use crate::device::{Device, Stream};

/// Where pages lie that do not fit the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FarPages {
    /// In pinned host memory.
    Host,
    /// In the memory of the second device.
    Peer,
}

impl FarPages {
    /// Baseline, then optimized.
    pub const ALL: [Self; 2] = [Self::Host, Self::Peer];
}

/// Shares of the batch's pages that lie far, in percent.
pub const FAR_PERCENT: [usize; 5] = [0, 25, 50, 75, 100];

/// The batch; on the CPU, small enough to check in seconds.
pub fn workload(on_gpu: bool) -> DecodeWorkload {
    match on_gpu {
        true => DecodeWorkload::new("batch 16 x 4096", 64, 8, vec![4096; 16]),
        false => DecodeWorkload::new("batch 2 x 150", 8, 1, vec![150; 2]),
    }
}

/// The workload with `far_percent` of its pages, evenly spread, where `far` says. `devices` are
/// the one that decodes, whose stream this is, and its peer.
pub fn prepare(
    stream: &Stream,
    devices: &[Device; 2],
    workload: &DecodeWorkload,
    seed: u64,
    far: FarPages,
    far_percent: usize,
) -> Result<DecodeBench> {
    let far_location = match far {
        FarPages::Peer => 1,
        FarPages::Host => devices.len(),
    };
    // Of each hundred pages, the first `far_percent` in steps that spread them.
    let is_far = |entry: usize| entry * 37 % 100 < far_percent;
    DecodeBench::new(stream, devices, workload, seed, |entry| match is_far(entry) {
        true => far_location,
        false => 0,
    })
}
