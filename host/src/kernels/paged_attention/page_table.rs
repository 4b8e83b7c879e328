//! A batch's page table in device memory.

use gpu_kernels::contract::require;
use gpu_kernels::paged_attention::contract::{BatchMaxima, PageTable};

use super::staging::Staging;
use crate::device::{Buffer, Stream};
use crate::kernels::KernelError;
use crate::kv::memory::KvMemory;

/// A batch's page table in device memory, checked against the KV memory it points into.
///
/// A captured graph keeps reading the same device memory: [`update`](Self::update) puts another
/// batch's table there, up to the [maxima](Self::maxima) that the table was made for.
pub struct DevicePageTable {
    pub(in crate::kernels) kv_indptr: Buffer<i32>,
    pub(in crate::kernels) kv_indices: Buffer<i32>,
    pub(in crate::kernels) kv_page_rank: Buffer<i32>,
    pub(in crate::kernels) kv_last_page_len: Buffer<i32>,
    pub(in crate::kernels) pool_pages: Vec<usize>,
    maxima: BatchMaxima,
    kv_lens: Vec<u32>,
    /// Made by the first update.
    staging: Option<Box<Staging<i32>>>,
}

impl std::fmt::Debug for DevicePageTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { maxima, kv_lens, .. } = self;
        write!(f, "DevicePageTable of {kv_lens:?} tokens, {maxima:?}")
    }
}

impl DevicePageTable {
    /// Checks the table, then uploads it. Its maxima are this batch's.
    ///
    /// # Errors
    /// A table that does not fit together or reaches outside the memory, in words.
    pub fn upload(
        stream: &Stream,
        table: &PageTable<'_>,
        memory: &KvMemory,
    ) -> Result<Self, KernelError> {
        let page_size = memory.shape().page_size;
        let maxima = BatchMaxima::of(table);
        table.check(maxima.num_max_requests, page_size, memory.pool_pages())?;
        Ok(Self {
            kv_indptr: Buffer::from_slice(stream, table.kv_indptr)?,
            kv_indices: Buffer::from_slice(stream, table.kv_indices)?,
            kv_page_rank: Buffer::from_slice(stream, table.kv_page_rank)?,
            kv_last_page_len: Buffer::from_slice(stream, table.kv_last_page_len)?,
            pool_pages: memory.pool_pages().to_vec(),
            maxima,
            kv_lens: table.kv_lens(page_size),
            staging: None,
        })
    }

    /// A table without requests, with room for `maxima`: for a graph whose batch changes between
    /// replays.
    ///
    /// # Errors
    /// Maxima that kernels cannot count, in words; no memory.
    pub fn for_replay(
        stream: &Stream,
        maxima: BatchMaxima,
        memory: &KvMemory,
    ) -> Result<Self, KernelError> {
        maxima.check()?;
        let (rows, entries) = (maxima.num_max_requests as usize, maxima.num_max_pages as usize);
        let device = stream.device();
        // An entry that nothing was written to is a page too.
        let some_location = memory.pool_pages().iter().position(|&pages| pages > 0).unwrap_or(0);
        Ok(Self {
            kv_indptr: device.alloc_zeroed(rows + 1)?,
            kv_indices: device.alloc_zeroed(entries)?,
            kv_page_rank: Buffer::from_slice(stream, &vec![some_location as i32; entries])?,
            kv_last_page_len: device.alloc_zeroed(rows)?,
            pool_pages: memory.pool_pages().to_vec(),
            maxima,
            kv_lens: Vec::new(),
            staging: None,
        })
    }

    /// Puts another batch's table into the same device memory: after the work that `stream` has,
    /// and before what it is given from now on. Rows past the batch become requests without pages.
    /// Plans that run on it must be [replanned](super::Decode::replan).
    ///
    /// # Errors
    /// Before anything changes: more requests or pages than the maxima, other memory than the
    /// table was made for, a table that does not fit together or reaches outside of it; a capture.
    pub fn update(
        &mut self,
        stream: &Stream,
        table: &PageTable<'_>,
        memory: &KvMemory,
    ) -> Result<(), KernelError> {
        let batch = BatchMaxima::of(table);
        self.maxima.check_holds(batch)?;
        let fits = memory.pool_pages() == self.pool_pages;
        require(fits, "memory", "what the table was made for", "other")?;
        let page_size = memory.shape().page_size;
        table.check(batch.num_max_requests, page_size, memory.pool_pages())?;

        let rows = self.maxima.num_max_requests as usize;
        let padded = |values: &[i32], len: usize, with: i32| {
            let mut padded = values.to_vec();
            padded.resize(len, with);
            padded
        };
        let kv_indptr = padded(table.kv_indptr, rows + 1, batch.num_max_pages as i32);
        let kv_last_page_len = padded(table.kv_last_page_len, rows, 0);
        let num_max_elements = 2 * rows + 1 + 2 * self.maxima.num_max_pages as usize;
        let staging = Staging::in_place(&mut self.staging, stream, num_max_elements)?;
        staging.write(
            stream,
            &[
                (&kv_indptr, &self.kv_indptr),
                (&kv_last_page_len, &self.kv_last_page_len),
                (table.kv_indices, &self.kv_indices),
                (table.kv_page_rank, &self.kv_page_rank),
            ],
        )?;
        self.kv_lens = table.kv_lens(page_size);
        Ok(())
    }

    /// Keeps it until `stream` has been waited for; see [`Stream::keep`].
    pub(in crate::kernels) fn keep(&self, stream: &Stream) {
        for part in [&self.kv_indptr, &self.kv_indices, &self.kv_page_rank, &self.kv_last_page_len]
        {
            stream.keep(part);
        }
    }

    /// Tokens of each request.
    pub fn kv_lens(&self) -> &[u32] {
        &self.kv_lens
    }

    /// Most that it holds.
    pub fn maxima(&self) -> BatchMaxima {
        self.maxima
    }
}
