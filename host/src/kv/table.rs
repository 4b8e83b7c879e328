//! The page table of a batch, in the CSR form the kernels take.

use super::{KvPool, PoolError, SequenceId};

/// Page table of a batch; all entries are `i32`, as on the device.
///
/// Sequence `b` has the pages `kv_indptr[b]..kv_indptr[b + 1]`; page `i` of those lies at
/// `peer_kv_ptrs[kv_page_rank[i]] + kv_indices[i] * page_bytes`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageTable {
    /// `[batch + 1]`, from 0, never falling.
    pub kv_indptr: Vec<i32>,
    /// `[pages]`: slot of each page.
    pub kv_indices: Vec<i32>,
    /// `[pages]`: entry of `peer_kv_ptrs` of each page.
    pub kv_page_rank: Vec<i32>,
    /// `[batch]`: tokens in the last page; 0 only for a sequence without pages.
    pub kv_last_page_len: Vec<i32>,
}

/// A batch without a page table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A sequence that is not open.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// More pages than `i32` counts.
    #[error("a page table holds at most {} pages, the batch has {num_pages}", i32::MAX)]
    TooManyPages {
        /// Pages of the batch, a page counted as often as sequences hold it.
        num_pages: u64,
    },
}

impl PageTable {
    /// The table of these sequences, in this order. It holds until the next call that completes a
    /// migration or changes one of the sequences: take a lease first, launch, then go on.
    pub fn build(pool: &KvPool, batch: &[SequenceId]) -> Result<Self, TableError> {
        let mut table = Self {
            kv_indptr: Vec::with_capacity(batch.len() + 1),
            kv_last_page_len: Vec::with_capacity(batch.len()),
            ..Self::default()
        };
        let mut num_pages = 0;
        for &id in batch {
            num_pages += pool.sequence(id)?.pages().len();
        }
        if i32::try_from(num_pages).is_err() {
            return Err(TableError::TooManyPages { num_pages: num_pages as u64 });
        }
        table.kv_indices.reserve_exact(num_pages);
        table.kv_page_rank.reserve_exact(num_pages);
        table.kv_indptr.push(0);
        for &id in batch {
            let sequence = pool.sequence(id)?;
            for &page in sequence.pages() {
                let at = pool.location(page)?;
                table.kv_indices.push(at.slot as i32);
                table.kv_page_rank.push(at.rank as i32);
            }
            table.kv_indptr.push(table.kv_indices.len() as i32);
            let last_page_len = sequence.last_page_len(pool.page_size());
            table.kv_last_page_len.push(last_page_len as i32);
        }
        Ok(table)
    }

    /// Sequences in the batch.
    pub fn batch(&self) -> usize {
        self.kv_last_page_len.len()
    }
}
