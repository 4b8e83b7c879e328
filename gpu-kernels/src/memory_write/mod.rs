//! Writes memory as fast as it goes: the ceiling of pushing to HBM, or to a peer over NVLink.
//!
//! ```text
//! target[p] = content(seed, p)         for every 16-byte piece p
//! ```
//!
//! `target` `[16-byte pieces]`, in this GPU's memory, a peer's, or pinned host memory. Every piece
//! of a seed is another, so that a piece which is lost, stale or in a wrong place is found by
//! [`memory_write_check_16`](device::memory_write_check_16), on the device, whatever the size.
//!
//! A block takes 128 KiB at a time; each of its threads has eight stores of 16 bytes on their way,
//! and a warp stores 512 bytes at once. The content takes some 28 instructions a piece, a third of
//! what an SM has time for at full bandwidth, so what bounds it is the memory or the link alone.
//! One block for each SM fills either; how few blocks fill NVLink is what fewer of them show.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

use crate::kv_page_pattern::pattern::mix;

/// Threads of a block.
pub const NUM_THREADS: u32 = 1024;

/// What piece `piece_idx` holds after a write of this seed.
#[inline(always)]
pub const fn content(seed: u64, piece_idx: u64) -> [u32; 4] {
    let bits = mix(mix(seed) ^ piece_idx);
    let [low, high] = [bits as u32, (bits >> 32) as u32];
    [low, high, !low, !high]
}
