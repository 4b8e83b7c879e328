//! Reads memory as fast as it goes: the ceiling that memory-bound kernels are held against.
//!
//! ```text
//! out[t] = xor of all 32-bit words that thread t read
//! ```
//!
//! `source` `[16-byte pieces]`, in this GPU's memory, a peer's, or pinned host memory; `out`
//! `[threads of the grid]`. The xor of `out` is the xor of all words of `source`, whatever the
//! grid, so that a run is checkable and no read can be left out.
//!
//! A thread reads every `num_threads`-th piece, eight of them in flight, so that a warp reads
//! 512 bytes at once and an SM keeps some 64 KiB on their way. What bounds it is the memory
//! alone; what it reaches is the ceiling.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

/// Threads of a block.
pub const NUM_THREADS: u32 = 512;
