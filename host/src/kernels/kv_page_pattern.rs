//! Launches of the room `kv_page_pattern`.

use gpu_kernels::contract::require_len;
use gpu_kernels::kv_layout::KvPagePlace;
use gpu_kernels::kv_page_pattern::KvTokenPlace;
use gpu_kernels::kv_page_pattern::contract::PatternShape;
use gpu_kernels::kv_page_pattern::device::{kv_page_pattern_checksum, kv_page_pattern_fill};

use super::KernelError;
use crate::device::{Buffer, Stream};

/// Tokens to fill, in device memory, checked against the pools that they lie in.
pub struct PatternFill {
    shape: PatternShape,
    identities: Buffer<u64>,
    places: Buffer<KvTokenPlace>,
    num_locations: usize,
}

impl PatternFill {
    /// Checks the tokens, then uploads them; waits for `stream`. `pool_pages` says how many pages
    /// each location has.
    ///
    /// # Errors
    /// Lists that are empty or of unequal length, places outside of the pools or named twice.
    pub fn upload(
        stream: &Stream,
        shape: PatternShape,
        identities: &[u64],
        places: &[KvTokenPlace],
        pool_pages: &[usize],
    ) -> Result<Self, KernelError> {
        shape.check()?;
        shape.check_fill(identities, places, pool_pages)?;
        Ok(Self {
            shape,
            identities: Buffer::from_slice(stream, identities)?,
            places: Buffer::from_slice(stream, places)?,
            num_locations: pool_pages.len(),
        })
    }

    /// Writes K and V of every token.
    ///
    /// # Safety
    /// Each of `peer_kv_ptrs` is the base of a pool of as many pages of this shape as the places
    /// were checked against, writable from the stream's device. Until the stream has passed this
    /// call, `self`, the table and the pools stay allocated, and nobody else touches the tokens.
    pub unsafe fn run(
        &self,
        stream: &Stream,
        peer_kv_ptrs: &Buffer<u64>, // [num_locations]
    ) -> Result<(), KernelError> {
        require_len("peer_kv_ptrs", self.num_locations, peer_kv_ptrs.len())?;
        let num_tokens = self.identities.len() as u32;
        let kernel = kv_page_pattern_fill {
            identities: self.identities.view(),
            places: self.places.view(),
            peer_kv_ptrs: peer_kv_ptrs.view(),
            num_tokens,
            params: self.shape.params(),
        };
        // SAFETY: `upload` has checked shape and lists; the pools are the caller's promise.
        unsafe { stream.launch(self.shape.fill_dims(num_tokens), kernel) }?;
        Ok(())
    }
}

/// Pages to sum up, in device memory, checked against the pools that they lie in.
pub struct PatternChecksum {
    shape: PatternShape,
    pages: Buffer<KvPagePlace>,
    num_valid_tokens: Buffer<u32>,
    checksums: Buffer<u64>,
    num_locations: usize,
}

impl PatternChecksum {
    /// Checks the pages, then uploads them; waits for `stream`. Of page `i` the first
    /// `num_valid_tokens[i]` tokens count. `pool_pages` says how many pages each location has.
    ///
    /// # Errors
    /// Lists that are empty or of unequal length, pages outside of the pools, more tokens than a
    /// page has.
    pub fn upload(
        stream: &Stream,
        shape: PatternShape,
        pages: &[KvPagePlace],
        num_valid_tokens: &[u32],
        pool_pages: &[usize],
    ) -> Result<Self, KernelError> {
        shape.check()?;
        shape.check_checksum(pages, num_valid_tokens, pool_pages)?;
        Ok(Self {
            shape,
            pages: Buffer::from_slice(stream, pages)?,
            num_valid_tokens: Buffer::from_slice(stream, num_valid_tokens)?,
            checksums: stream.device().alloc(pages.len())?,
            num_locations: pool_pages.len(),
        })
    }

    /// The checksum of every page; waits for them.
    ///
    /// # Safety
    /// Each of `peer_kv_ptrs` is the base of a pool of as many pages of this shape as the pages
    /// were checked against, readable from the stream's device, and nobody writes the pages
    /// meanwhile.
    pub unsafe fn run(
        &self,
        stream: &Stream,
        peer_kv_ptrs: &Buffer<u64>, // [num_locations]
    ) -> Result<Vec<u64>, KernelError> {
        require_len("peer_kv_ptrs", self.num_locations, peer_kv_ptrs.len())?;
        let kernel = kv_page_pattern_checksum {
            pages: self.pages.view(),
            num_valid_tokens: self.num_valid_tokens.view(),
            peer_kv_ptrs: peer_kv_ptrs.view(),
            checksums: self.checksums.view_mut(),
            params: self.shape.params(),
        };
        let dims = self.shape.checksum_dims(self.pages.len() as u32);
        // SAFETY: `upload` has checked shape and lists, and made room for the sums; the pools are
        // the caller's promise.
        unsafe { stream.launch(dims, kernel) }?;
        Ok(stream.download(&self.checksums)?)
    }
}
