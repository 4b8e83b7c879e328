//! Decode attention whose query travels: pages in a peer's memory are attended where they lie.
//!
//! One query of a request is 16 KiB; the pages that it attends over are megabytes, and NVLink has a
//! twelfth of HBM's rate. So *home*, whose requests these are, asks the *owner* of far pages to
//! attend over them, and merges what comes back with what it has itself:
//!
//! ```text
//! home     ask ──┐  attend over near pages ──────────────┐ merge
//! owner          └─ attend over far pages ─ states ──────┘
//! ```
//!
//! Attention over some of a request's tokens is a *state* (output and log-sum-exp, in f32), and
//! states merge exactly: see [`merge_states`](crate::merge_states). Each side has the whole batch
//! and a page table of [its own pages](sides); a request without pages on a side has an empty
//! state there.
//!
//! # Shapes
//! As [`paged_attention`](crate::paged_attention); `states_out` `[num_states, batch, num_qo_heads,
//! head_dim]` and `states_lse` `[num_states, batch, num_qo_heads]`, in home's memory, f32. Queries
//! are read where home has them, and states are written to where home merges them: nothing is
//! copied.
//!
//! # Who does what
//! *ask*, at home: one warp, a lane for each owner, counts up and releases the count to the owner's
//! memory.
//!
//! *attend*: decode by equal shares as in `paged_attention`, in both ways to load pages (*split*,
//! and *tiles* on Hopper), writing a state. On an owner each block starts the copies
//! of its first pages, then waits for the count; when its results are written it releases the
//! count to a place of its own at home. At home there is nothing to wait for.
//!
//! *gate*, on an owner: one thread waits for the count. Before *attend* it keeps the owner's SMs
//! free until there is something to do.
//!
//! *merge*, at home: every block waits for all answers, then merges its rows.
//!
//! # Counts
//! Home numbers its calls in its memory, and so does each block of an owner: captured launches need
//! no argument that changes. Call `n + 1` is asked for when the merge of call `n` is done, so one
//! set of queries and states is enough.
//!
//! # No wait is endless
//! A wait ends at its deadline and leaves a [report](WaitReport). An owner that was not asked
//! answers nothing, so home's own wait ends, too, and its `out` is not to be used.
//!
//! # What bounds it
//! The slower of: near bytes over home's HBM rate, far bytes over the owner's. Around it: a signal
//! each way, 1.3 µs, the queries' first read over NVLink, 0.8 µs, and the merge.
//!
//! # Whose idea
//! Partial attention where the KV lies: Infinite-LLM's distributed attention, and ring attention;
//! there between kernels, here inside them.

#[cfg(feature = "host")]
pub mod contract;
pub mod device;
#[cfg(feature = "host")]
pub mod sides;
#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

/// Threads of the block that asks: a lane for each owner.
pub const NUM_MAX_OWNERS: u32 = 32;

/// What a wait that came to its deadline saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct WaitReport {
    /// 1 if there was such a wait.
    pub timed_out: u32,
    /// Which count it waited for: at home the place of an answer, on an owner 0.
    pub flag_idx: u32,
    /// What it waited for.
    pub expected: u32,
    /// What there was at the deadline.
    pub seen: u32,
}

impl WaitReport {
    /// Words of a report in device memory.
    pub const WORDS: usize = 4;
}
