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
//! The sum is taken in fixed point, of `exp(x - maximum)` in units of `2^-31`: integers add up to the
//! same in any order, so that a request's logarithm does not depend on how its row is divided.
//!
//! # Shapes
//! `logits` `[batch, vocab_size]` in bf16 or f32, `vocab_size` a multiple of 8; `token_ids` `[batch]`
//! in i32, `logprobs` `[batch]` in f32, natural.
//!
//! # Who does what
//! A block per request, which reads its row twice: for the maximum, and for the sum.
//!
//! # What bounds it
//! Reads of the logits, which the product before has left in the L2 cache if they fit.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod reference;
#[cfg(test)]
mod tests;

/// Threads of a block that has a row.
pub const ROW_THREADS: u32 = 512;
/// Logits that a thread reads at once.
pub const PIECE: u32 = 8;
/// The token of a row in which there is none.
pub const NO_TOKEN: i32 = -1;
