//! Pair `paged_attention`: one block for each (request, KV head), against equal shares for all SMs.

use anyhow::Result;

use super::{DecodeBench, DecodeWorkload};
use crate::device::{Device, Stream};

/// Requests as servers see them; on the CPU, small enough to check in seconds.
pub fn workloads(on_gpu: bool) -> Vec<DecodeWorkload> {
    if !on_gpu {
        return vec![
            DecodeWorkload::new("batch 3 x 100", 16, 2, vec![100; 3]),
            DecodeWorkload::new("ragged 1 + 300", 8, 1, vec![1, 300]),
        ];
    }
    let ragged = [vec![1024; 63], vec![131_072]].concat();
    vec![
        DecodeWorkload::new("batch 1 x 1024", 64, 8, vec![1024]),
        DecodeWorkload::new("batch 1 x 8192", 64, 8, vec![8192]),
        DecodeWorkload::new("batch 16 x 4096", 64, 8, vec![4096; 16]),
        DecodeWorkload::new("batch 64 x 8192", 64, 8, vec![8192; 64]),
        DecodeWorkload::new("ragged 63 x 1024 + 131072", 64, 8, ragged),
    ]
}

/// A workload with all its pages in the memory of the stream's device.
pub fn prepare(stream: &Stream, workload: &DecodeWorkload, seed: u64) -> Result<DecodeBench> {
    let device: Device = stream.device().clone();
    DecodeBench::new(stream, &[device], workload, seed, |_| 0)
}
