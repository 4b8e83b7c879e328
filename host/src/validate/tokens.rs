//! What the KV of each token derives from.

use crate::kv::Location;
use crate::kv::trace::{PREFIX_BLOCK_TOKENS, TraceRequest};

/// Tells requests from prefix blocks among owners.
const DECODED: u64 = 1 << 63;

/// Where the contents of one token's K and V come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenSource {
    /// A prefix block's hash, or a request, told apart by the highest bit.
    pub owner: u64,
    /// The token's place in that prefix block, or among the tokens the request decoded.
    pub token_idx: u64,
}

/// Neighbouring tokens of one page and one owner, to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRun {
    /// The page.
    pub at: Location,
    /// Place of the first token in the page.
    pub first_token_idx: u32,
    /// Tokens.
    pub num_tokens: u32,
    /// Source of the first; the others follow.
    pub source: TokenSource,
}

/// The tokens of one request: its prompt, then what it decodes.
#[derive(Clone, Copy, Debug)]
pub struct RequestTokens<'a> {
    /// The request.
    pub request: &'a TraceRequest,
    /// Its number in the trace.
    pub number: u64,
}

impl RequestTokens<'_> {
    /// The source of token `position` of the request.
    pub fn source(&self, position: u32) -> TokenSource {
        if position < self.request.input_length {
            TokenSource {
                owner: self.request.hash_ids[(position / PREFIX_BLOCK_TOKENS) as usize],
                token_idx: u64::from(position % PREFIX_BLOCK_TOKENS),
            }
        } else {
            TokenSource {
                owner: DECODED | self.number,
                token_idx: u64::from(position - self.request.input_length),
            }
        }
    }

    /// The sources of a full page: `page_size` tokens from `page_idx * page_size` on.
    pub fn page_sources(&self, page_idx: u32, page_size: u32) -> Vec<TokenSource> {
        let first = page_idx * page_size;
        (first..first + page_size).map(|position| self.source(position)).collect()
    }
}
