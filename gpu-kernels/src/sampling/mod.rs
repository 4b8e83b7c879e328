//! The next token of each request, from its logits.
//!
//! *argmax* takes the most likely token, the lowest id among equals, and its logarithm of
//! probability:
//!
//! ```text
//! token_ids[b] = argmax over i of logits[b, i]
//! logprobs[b]  = logits[b, token_ids[b]] - ln(sum over i of exp(logits[b, i]))
//! ```
//!
//! NaN counts as minus infinity, infinity as the largest finite number. A row in which nothing is
//! left has the token -1 and the logarithm minus infinity: a request whose logits broke is told so,
//! and the others of its batch are not concerned.
//!
//! *choose* draws, by a rule of each request's own. With `d[i]` how many times less likely than the most
//! likely token `i` is, in octaves, at its temperature (0 takes the most likely token):
//!
//! ```text
//! d[i]  = (maximum - logits[i]) / temperature * log2(e)
//! kept  = the top_k most likely, of these the most likely that together have top_p of their probability
//! token = argmax over kept i of -log2(noise[i]) - d[i]      noise: exponential, of Philox4x32-10
//! ```
//!
//! which is `i` with its probability among those kept (Gumbel's trick). The noise is a function of the
//! rule's seed, the token's position and `i`, so that a choice depends on neither the batch nor the
//! past. Limits are found among steps of `2^-17` octaves (5e-6 of a logit at temperature 1): tokens
//! within one step are kept together, as ties are, and under a limit tokens `2^-32` times as likely as
//! the likeliest are never drawn. The logarithm of the probability is that of the logits as they are,
//! before temperature and limits.
//!
//! The sum is taken in fixed point, of `exp(x - maximum)` in units of `2^-31`: integers add up to the
//! same in any order, so that a request's logarithm does not depend on how its row is divided.
//!
//! # Shapes
//! `logits` `[batch, vocab_size]` in bf16 or f32, `vocab_size` a multiple of 8; `token_ids` `[batch]`
//! in i32, `logprobs` `[batch]` in f32, natural; `rules` `[batch]`.
//!
//! # Who does what
//! *row*: a block per request, which reads its row for the maximum, once for each bisection of the
//! steps that a limit takes (22), for the draw, and for the sum.
//!
//! *split*: up to 8 blocks per request, so that all multiprocessors have a part, each with a slice of
//! the row in shared memory, which is read from memory once. A limit takes two histograms, of 2048
//! bins and of the steps of one bin, counted by atomics in shared memory; the blocks of a request meet
//! at a counter to exchange maxima, histograms and sums, all of which are the same however the row is
//! cut. All blocks of a launch must be resident at once.
//!
//! # What bounds it
//! Reads of the logits, which the product before has left in the L2 cache if they fit.
//!
//! # Whose idea
//! Philox: Random123; thresholds by bisection instead of a sort: FlashInfer's `sampling.cuh`, and
//! FairSeq before; the argmax of exponential noise: gpt-fast, vLLM.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
pub mod philox;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

/// Threads of a block that has a row.
pub const ROW_THREADS: u32 = 512;
/// Logits that a thread reads at once.
pub const PIECE: u32 = 8;
/// Threads of a block that has a slice.
pub const SPLIT_THREADS: u32 = 512;
/// Most slices of a row.
pub const MAX_SLICES: u32 = 8;
/// Bins of a histogram.
pub const NUM_BINS: u32 = 2048;
/// The token of a row in which there is none.
pub const NO_TOKEN: i32 = -1;
/// Steps of likelihood by which limits are found, in a factor of two.
pub const STEPS_PER_OCTAVE: u32 = 1 << 17;
/// Steps below the most likely token beyond which limits keep nothing.
pub const NUM_STEPS: u32 = 32 * STEPS_PER_OCTAVE;

/// How the next token of a request is chosen, as kernels read it.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct SamplingRule {
    /// Of the random numbers.
    pub seed: u64,
    /// Of the token in its sequence: each position has random numbers of its own.
    pub position: u32,
    /// Only so many of the most likely tokens; 0 for all.
    pub top_k: u32,
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f32,
    /// Only the most likely tokens that together reach this probability; 1 for all.
    pub top_p: f32,
}

impl SamplingRule {
    /// The most likely token.
    pub const GREEDY: Self = Self { seed: 0, position: 0, top_k: 0, temperature: 0.0, top_p: 1.0 };
}

/// How rows are cut into slices, as kernels read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SplitParams {
    /// Requests.
    pub batch: u32,
    /// Logits of each.
    pub vocab_size: u32,
    /// Slices of a row.
    pub num_slices: u32,
    /// Logits of a slice; of the last one fewer.
    pub slice_len: u32,
}
