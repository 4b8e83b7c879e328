//! What filling and summing pages must be like, and what it does.

use std::collections::HashSet;
use std::format;

use super::pattern::ElementFormat;
use super::{KvTokenPlace, NUM_THREADS, PatternParams, TOKENS_PER_BLOCK, WORD_ELEMENTS};
use crate::contract::{ContractError, LaunchDims, require, require_len};
use crate::kv_layout::{KvPagePlace, KvPageShape};

/// The pages that are filled and summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatternShape {
    /// Shape of a page.
    pub page: KvPageShape,
    /// Type of its elements.
    pub format: ElementFormat,
}

impl PatternShape {
    /// Refuses pages that the kernels do not take.
    ///
    /// With lists that [check](Self::check_fill) [out](Self::check_checksum), and pools as large
    /// as stated there, no thread of a launch with [these](Self::fill_dims)
    /// [dims](Self::checksum_dims) then reaches out of bounds.
    pub fn check(&self) -> Result<(), ContractError> {
        self.page.check()?;
        require(
            self.format.element() == self.page.element,
            "format",
            format!("one of {:?} elements, as the pages", self.page.element),
            format!("{:?}", self.format.element()),
        )
    }

    /// Refuses places outside the pools of `pool_pages` pages (one pool a location) or outside
    /// their page, a place named twice, and lists of unequal length.
    pub fn check_fill(
        &self,
        identities: &[u64],
        places: &[KvTokenPlace],
        pool_pages: &[usize],
    ) -> Result<(), ContractError> {
        require_len("places", identities.len(), places.len())?;
        require_count("identities", identities.len())?;
        // Lists are long, and messages are made only for what is wrong.
        for (i, place) in places.iter().enumerate() {
            if !place.page.lies_in(pool_pages) {
                place.page.check(&format!("places[{i}].page"), pool_pages)?;
            }
            if place.token_idx >= self.page.page_size {
                return Err(ContractError::new(
                    &format!("places[{i}].token_idx"),
                    format!("below page_size = {}", self.page.page_size),
                    place.token_idx,
                ));
            }
        }
        if let Some(i) = first_repeated(places) {
            return Err(ContractError::new(
                &format!("places[{i}]"),
                "a place that is named once",
                format!("token {} of {} again", places[i].token_idx, places[i].page),
            ));
        }
        Ok(())
    }

    /// Refuses pages outside the pools of `pool_pages` pages (one pool a location), more valid
    /// tokens than a page has, and lists of unequal length.
    pub fn check_checksum(
        &self,
        pages: &[KvPagePlace],
        num_valid_tokens: &[u32],
        pool_pages: &[usize],
    ) -> Result<(), ContractError> {
        require_len("num_valid_tokens", pages.len(), num_valid_tokens.len())?;
        require_count("pages", pages.len())?;
        for (i, (page, &num_valid)) in pages.iter().zip(num_valid_tokens).enumerate() {
            if !page.lies_in(pool_pages) {
                page.check(&format!("pages[{i}]"), pool_pages)?;
            }
            if num_valid > self.page.page_size {
                return Err(ContractError::new(
                    &format!("num_valid_tokens[{i}]"),
                    format!("at most page_size = {}", self.page.page_size),
                    num_valid,
                ));
            }
        }
        Ok(())
    }

    /// The sizes that the kernels take.
    pub fn params(&self) -> PatternParams {
        let page = self.page.as_halves();
        PatternParams {
            num_kv_heads: self.page.num_kv_heads,
            words_per_head: page.head_dim / WORD_ELEMENTS,
            format: self.format,
            strides: page.strides(),
        }
    }

    /// Launch that fills `num_tokens` tokens.
    pub fn fill_dims(&self, num_tokens: u32) -> LaunchDims {
        LaunchDims {
            grid: [num_tokens.div_ceil(TOKENS_PER_BLOCK), 1, 1],
            block: [NUM_THREADS, 1, 1],
            shared_bytes: 0,
        }
    }

    /// Launch that sums up `num_pages` pages.
    pub fn checksum_dims(&self, num_pages: u32) -> LaunchDims {
        LaunchDims {
            grid: [num_pages, 1, 1],
            block: [NUM_THREADS, 1, 1],
            shared_bytes: NUM_THREADS * size_of::<u64>() as u32,
        }
    }
}

/// Index of the first place that stands in the list before.
fn first_repeated(places: &[KvTokenPlace]) -> Option<usize> {
    // Neighbours of a run are in order, which makes the sort cheap.
    let mut sorted = places.to_vec();
    sorted.sort_unstable();
    if sorted.windows(2).all(|pair| pair[0] != pair[1]) {
        return None;
    }
    let mut named = HashSet::with_capacity(places.len());
    places.iter().position(|place| !named.insert(place))
}

fn require_count(argument: &str, got: usize) -> Result<(), ContractError> {
    require(
        got > 0 && i32::try_from(got).is_ok(),
        argument,
        format!("1 to {} elements long", i32::MAX),
        got,
    )
}
