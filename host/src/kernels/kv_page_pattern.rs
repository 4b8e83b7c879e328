//! Launches of the room `kv_page_pattern`.

use gpu_kernels::contract::{ContractError, require};
use gpu_kernels::kv_layout::KvPagePlace;
use gpu_kernels::kv_page_pattern::KvTokenPlace;
use gpu_kernels::kv_page_pattern::contract::PatternShape;
use gpu_kernels::kv_page_pattern::device::{kv_page_pattern_checksum, kv_page_pattern_fill};
use gpu_kernels::kv_page_pattern::pattern::ElementFormat;

use super::KernelError;
use crate::device::{Buffer, Stream};
use crate::kv::memory::KvMemory;

/// What lists were checked against.
#[derive(Debug)]
struct Checked {
    shape: PatternShape,
    pool_pages: Vec<usize>,
}

impl Checked {
    fn new(memory: &KvMemory, format: ElementFormat) -> Result<Self, ContractError> {
        let shape = PatternShape { page: memory.shape(), format };
        shape.check()?;
        Ok(Self { shape, pool_pages: memory.pool_pages().to_vec() })
    }

    fn require(&self, memory: &KvMemory) -> Result<(), ContractError> {
        let fits = memory.shape() == self.shape.page && memory.pool_pages() == self.pool_pages;
        require(fits, "memory", "what the lists were checked against", "other")
    }
}

/// Tokens to fill, in device memory, checked against the KV memory that they lie in.
#[derive(Debug)]
pub struct PatternFill {
    checked: Checked,
    identities: Buffer<u64>,
    places: Buffer<KvTokenPlace>,
}

impl PatternFill {
    /// Checks the tokens, then uploads them; waits for `stream`.
    ///
    /// # Errors
    /// Lists that are empty or of unequal length, places outside of the memory or named twice.
    pub fn upload(
        stream: &Stream,
        format: ElementFormat,
        identities: &[u64],
        places: &[KvTokenPlace],
        memory: &KvMemory,
    ) -> Result<Self, KernelError> {
        let checked = Checked::new(memory, format)?;
        checked.shape.check_fill(identities, places, &checked.pool_pages)?;
        let identities = Buffer::from_slice(stream, identities)?;
        let places = Buffer::from_slice(stream, places)?;
        Ok(Self { checked, identities, places })
    }

    /// Writes K and V of every token, which nobody else may touch meanwhile.
    ///
    /// # Errors
    /// Before any launch: other memory than the places were checked against.
    pub fn run(&self, stream: &Stream, memory: &KvMemory) -> Result<(), KernelError> {
        self.checked.require(memory)?;
        let num_tokens = self.identities.len() as u32;
        let kernel = kv_page_pattern_fill {
            identities: self.identities.view(),
            places: self.places.view(),
            peer_kv_ptrs: memory.peer_kv_ptrs().view(),
            num_tokens,
            params: self.checked.shape.params(),
        };
        // SAFETY: shape and lists were checked against memory like this.
        unsafe { stream.launch(self.checked.shape.fill_dims(num_tokens), kernel) }?;
        stream.keep(&self.identities);
        stream.keep(&self.places);
        memory.keep(stream);
        Ok(())
    }
}

/// Pages to sum up, in device memory, checked against the KV memory that they lie in.
#[derive(Debug)]
pub struct PatternChecksum {
    checked: Checked,
    pages: Buffer<KvPagePlace>,
    num_valid_tokens: Buffer<u32>,
    checksums: Buffer<u64>,
}

impl PatternChecksum {
    /// Checks the pages, then uploads them; waits for `stream`. Of page `i` the first
    /// `num_valid_tokens[i]` tokens count.
    ///
    /// # Errors
    /// Lists that are empty or of unequal length, pages outside of the memory, more tokens than a
    /// page has.
    pub fn upload(
        stream: &Stream,
        format: ElementFormat,
        pages: &[KvPagePlace],
        num_valid_tokens: &[u32],
        memory: &KvMemory,
    ) -> Result<Self, KernelError> {
        let checked = Checked::new(memory, format)?;
        checked.shape.check_checksum(pages, num_valid_tokens, &checked.pool_pages)?;
        Ok(Self {
            checked,
            pages: Buffer::from_slice(stream, pages)?,
            num_valid_tokens: Buffer::from_slice(stream, num_valid_tokens)?,
            checksums: stream.device().alloc(pages.len())?,
        })
    }

    /// The checksum of every page, which nobody may write meanwhile; waits for them.
    ///
    /// # Errors
    /// Before any launch: other memory than the pages were checked against.
    pub fn run(&self, stream: &Stream, memory: &KvMemory) -> Result<Vec<u64>, KernelError> {
        self.checked.require(memory)?;
        let kernel = kv_page_pattern_checksum {
            pages: self.pages.view(),
            num_valid_tokens: self.num_valid_tokens.view(),
            peer_kv_ptrs: memory.peer_kv_ptrs().view(),
            checksums: self.checksums.view_mut(),
            params: self.checked.shape.params(),
        };
        let dims = self.checked.shape.checksum_dims(self.pages.len() as u32);
        // SAFETY: shape and lists were checked against memory like this, and there is a sum for
        // each page.
        unsafe { stream.launch(dims, kernel) }?;
        Ok(stream.download(&self.checksums)?)
    }
}
