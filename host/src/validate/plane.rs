//! Who holds the bytes: the seam between the replay and a device.

use std::error::Error;

use gpu_kernels::paged_attention::contract::PageLists;

use super::{RequestTokens, TokenRun, TokenSource};
use crate::kv::{Location, Migration, MigrationId};

/// A device's error: it ends the replay.
pub type PlaneError = Box<dyn Error + Send + Sync>;

/// One sequence of a batch, as the oracle needs it.
#[derive(Clone, Copy, Debug)]
pub struct SequenceView<'a> {
    /// What its tokens contain.
    pub tokens: RequestTokens<'a>,
    /// How many of them it holds.
    pub num_tokens: u32,
}

/// One decode step's attention: one query token for each sequence, over all its pages.
#[derive(Debug)]
pub struct DecodeBatch<'a> {
    /// Number of the step; queries derive from it and the request's number.
    pub step: u64,
    /// Where the pages lie.
    pub table: &'a PageLists,
    /// The sequences, in order of the table.
    pub sequences: &'a [SequenceView<'a>],
    /// Indices into `sequences` of those whose outputs are to be checked.
    pub checked: &'a [usize],
}

/// An output that differs from the oracle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongOutput {
    /// Index into the batch.
    pub batch_idx: usize,
    /// Head, element, value, expected value.
    pub detail: String,
}

/// What came of a decode step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attended {
    /// µs from event to event on the device; `None` where time means nothing.
    pub latency_us: Option<f64>,
    /// Checked outputs that are wrong.
    pub wrong: Vec<WrongOutput>,
}

/// The bytes of all pages, and the kernels that work on them.
///
/// Calls come in an order that makes sense one after the other; a plane may run them at the same
/// time as long as nobody can tell. It is told before a page is read from its new place, and
/// destinations of moves are never read or written otherwise until then.
pub trait DataPlane {
    /// Writes KV of prompt tokens.
    fn fill(&mut self, runs: &[TokenRun]) -> Result<(), PlaneError>;

    /// Writes KV of one decoded token per sequence of a step.
    fn append(&mut self, tokens: &[TokenRun]) -> Result<(), PlaneError>;

    /// Starts the copies of a migration, beside whatever else runs.
    fn start_moves(&mut self, migration: &Migration) -> Result<(), PlaneError>;

    /// Returns when the copies of that migration are done, and how long that took in µs where
    /// time means something.
    fn finish_moves(&mut self, migration: MigrationId) -> Result<Option<f64>, PlaneError>;

    /// Checksums of full pages, recomputed from the bytes that lie there now.
    fn checksums(&mut self, pages: &[Location]) -> Result<Vec<u64>, PlaneError>;

    /// The checksum of a full page with these tokens, computed without looking at any page.
    fn expected_checksum(&self, tokens: &[TokenSource]) -> u64;

    /// Whether every step of every sequence is to be attended, because that is what is measured.
    /// If not, the replay asks for the checked sequences only.
    fn attends_whole_batches(&self) -> bool;

    /// Attention of one decode step, done when this returns.
    fn attend(&mut self, batch: &DecodeBatch<'_>) -> Result<Attended, PlaneError>;
}
