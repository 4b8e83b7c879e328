//! The page table of a batch, in the CSR form the kernels take.

use gpu_kernels::paged_attention::contract::PageLists;

use super::{KvPool, PoolError, SequenceId};

impl KvPool {
    /// Where the pages of these sequences lie, in this order. It holds until the next call that
    /// completes a migration or changes one of the sequences: take a lease first, launch, then go on.
    ///
    /// # Errors
    /// A sequence that is not open; more pages than `i32` counts.
    pub fn page_lists(&self, batch: &[SequenceId]) -> Result<PageLists, PoolError> {
        let mut num_pages = 0;
        for &id in batch {
            num_pages += self.sequence(id)?.pages().len();
        }
        if i32::try_from(num_pages).is_err() {
            return Err(PoolError::TooManyPages { num_pages: num_pages as u64 });
        }
        let mut lists = PageLists::default();
        for &id in batch {
            let sequence = self.sequence(id)?;
            let mut pages = Vec::with_capacity(sequence.pages().len());
            for &page in sequence.pages() {
                pages.push(self.location(page)?.into());
            }
            lists.push(pages, sequence.last_page_len(self.page_size()));
        }
        Ok(lists)
    }
}
