//! A request's pages, in order.

use std::fmt;

use super::PageId;

/// Names a sequence; the caller chooses it (a request number).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}", self.0)
    }
}

/// The tokens of one request so far, and the pages that hold them.
///
/// All pages but the last are full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    pub(super) pages: Vec<PageId>,
    pub(super) num_tokens: u32,
}

impl Sequence {
    /// Its pages, first token first.
    pub fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// Tokens it holds.
    pub fn num_tokens(&self) -> u32 {
        self.num_tokens
    }

    /// Tokens in its last page: 0 only when it has none.
    pub fn last_page_len(&self, page_size: u32) -> u32 {
        match self.num_tokens % page_size {
            0 if self.num_tokens > 0 => page_size,
            rest => rest,
        }
    }
}
