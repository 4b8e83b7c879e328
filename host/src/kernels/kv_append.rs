//! Launches of the room `kv_append`.

use cuda_std::global::Global;
use gpu_kernels::contract::{require, require_len};
use gpu_kernels::kv_append::contract::{AppendLists, AppendShape};
use gpu_kernels::kv_append::device as entries;
use gpu_kernels::kv_layout::KvElement;
use half::{bf16, f16};

use super::KernelError;
use super::paged_attention::DevicePageTable;
use crate::device::{Buffer, Stream};
use crate::kv::memory::KvMemory;

/// New tokens of a batch, checked against the pages that they go to.
#[derive(Debug)]
pub struct Append {
    shape: AppendShape,
    append_indptr: Buffer<i32>,
    table: DevicePageTable,
}

/// What one run of [`Append`] reads and writes.
pub struct AppendArgs<'a, T> {
    /// The pages themselves.
    pub memory: &'a KvMemory,
    /// `[num_tokens, num_kv_heads, head_dim]`
    pub k: &'a Buffer<T>,
    /// `[num_tokens, num_kv_heads, head_dim]`
    pub v: &'a Buffer<T>,
    /// `[num_max_positions, head_dim]`, if K is rotated
    pub cos_sin_cache: Option<&'a Buffer<f32>>,
}

/// What one rotation of the queries of new tokens reads and writes.
pub struct RotateQArgs<'a, T> {
    /// `[num_tokens, num_qo_heads, head_dim]`
    pub q: &'a Buffer<T>,
    /// `[num_tokens, num_qo_heads, head_dim]`; may be `q`
    pub q_out: &'a Buffer<T>,
    /// `[num_max_positions, head_dim]`
    pub cos_sin_cache: &'a Buffer<f32>,
}

impl Append {
    fn keep(&self, stream: &Stream, cos_sin_cache: Option<&Buffer<f32>>) {
        stream.keep(&self.append_indptr);
        self.table.keep(stream);
        if let Some(cache) = cos_sin_cache {
            stream.keep(cache);
        }
    }

    /// Checks which tokens go where, then uploads the lists; waits for `stream`.
    ///
    /// # Errors
    /// Sizes that the kernels do not take, lists that do not fit together, places outside of the
    /// memory, a page that two requests append to: all in words.
    pub fn upload(
        stream: &Stream,
        shape: AppendShape,
        lists: &AppendLists<'_>,
        memory: &KvMemory,
    ) -> Result<Self, KernelError> {
        shape.check()?;
        require(memory.shape() == shape.page, "memory", "of pages of the shape", "of others")?;
        shape.check_lists(lists, memory.pool_pages())?;
        Ok(Self {
            shape,
            append_indptr: Buffer::from_slice(stream, lists.append_indptr)?,
            table: DevicePageTable::upload(stream, &lists.table, memory)?,
        })
    }

    /// The uploaded page table, which holds the new tokens: decode takes it too.
    pub fn table(&self) -> &DevicePageTable {
        &self.table
    }

    /// Writes K, rotated if the shape says so, and V of the new tokens into their pages. Nobody
    /// else may touch those tokens meanwhile.
    ///
    /// # Errors
    /// Before any launch: arguments of the wrong length, other memory than the lists were checked
    /// against.
    pub fn run<T: AppendElement>(
        &self,
        stream: &Stream,
        args: &AppendArgs<'_, T>,
    ) -> Result<(), KernelError> {
        let fits = args.memory.shape() == self.shape.page
            && args.memory.pool_pages() == self.table.pool_pages;
        require(fits, "memory", "what the lists were checked against", "other")?;
        require_len("k", self.shape.kv_elements(), args.k.len())?;
        require_len("v", self.shape.kv_elements(), args.v.len())?;
        let cache_len = args.cos_sin_cache.map_or(0, Buffer::len);
        require_len("cos_sin_cache", self.shape.cache_elements(), cache_len)?;
        // SAFETY: shape, lists and lengths were checked, the lists against memory like this.
        unsafe { T::append(self, stream, args) }
    }

    /// Rotates the queries of the new tokens, `num_qo_heads` for each.
    ///
    /// # Errors
    /// Before any launch: arguments of the wrong length, a shape without a rotation.
    pub fn rotate_q<T: AppendElement>(
        &self,
        stream: &Stream,
        num_qo_heads: u32,
        args: &RotateQArgs<'_, T>,
    ) -> Result<(), KernelError> {
        self.shape.check_q(num_qo_heads)?;
        require_len("q", self.shape.q_elements(num_qo_heads), args.q.len())?;
        require_len("q_out", self.shape.q_elements(num_qo_heads), args.q_out.len())?;
        require_len("cos_sin_cache", self.shape.cache_elements(), args.cos_sin_cache.len())?;
        // SAFETY: shape, lists and lengths were checked.
        unsafe { T::rotate_q(self, stream, num_qo_heads, args) }
    }
}

/// An element type that there are kernels for: bf16 and f16.
pub trait AppendElement: bytemuck::Pod {
    #[doc(hidden)]
    unsafe fn append(
        append: &Append,
        stream: &Stream,
        args: &AppendArgs<'_, Self>,
    ) -> Result<(), KernelError>;

    #[doc(hidden)]
    unsafe fn rotate_q(
        append: &Append,
        stream: &Stream,
        num_qo_heads: u32,
        args: &RotateQArgs<'_, Self>,
    ) -> Result<(), KernelError>;
}

macro_rules! append_element {
    ($T:ty: $append:ident, $append_e4m3:ident, $rotate_q:ident) => {
        impl AppendElement for $T {
            unsafe fn append(
                append: &Append,
                stream: &Stream,
                args: &AppendArgs<'_, Self>,
            ) -> Result<(), KernelError> {
                match append.shape.page.element {
                    KvElement::Half => {
                        let kernel = entries::$append {
                            k: args.k.view(),
                            v: args.v.view(),
                            cos_sin_cache: args.cos_sin_cache.map_or(Global::null(), Buffer::view),
                            append_indptr: append.append_indptr.view(),
                            kv_indptr: append.table.kv_indptr.view(),
                            kv_indices: append.table.kv_indices.view(),
                            kv_page_rank: append.table.kv_page_rank.view(),
                            kv_last_page_len: append.table.kv_last_page_len.view(),
                            peer_kv_ptrs: args.memory.peer_kv_ptrs().view(),
                            params: append.shape.params(),
                        };
                        // SAFETY: as the caller says.
                        unsafe { stream.launch(append.shape.dims(), kernel) }?;
                    }
                    KvElement::E4m3 => {
                        let kernel = entries::$append_e4m3 {
                            k: args.k.view(),
                            v: args.v.view(),
                            k_scale: args.memory.k_scale().view(),
                            v_scale: args.memory.v_scale().view(),
                            cos_sin_cache: args.cos_sin_cache.map_or(Global::null(), Buffer::view),
                            append_indptr: append.append_indptr.view(),
                            kv_indptr: append.table.kv_indptr.view(),
                            kv_indices: append.table.kv_indices.view(),
                            kv_page_rank: append.table.kv_page_rank.view(),
                            kv_last_page_len: append.table.kv_last_page_len.view(),
                            peer_kv_ptrs: args.memory.peer_kv_ptrs().view(),
                            params: append.shape.params(),
                        };
                        // SAFETY: as the caller says.
                        unsafe { stream.launch(append.shape.dims(), kernel) }?;
                    }
                }
                stream.keep(args.k);
                stream.keep(args.v);
                append.keep(stream, args.cos_sin_cache);
                args.memory.keep(stream);
                Ok(())
            }

            unsafe fn rotate_q(
                append: &Append,
                stream: &Stream,
                num_qo_heads: u32,
                args: &RotateQArgs<'_, Self>,
            ) -> Result<(), KernelError> {
                let kernel = entries::$rotate_q {
                    q: args.q.view(),
                    q_out: args.q_out.view_mut(),
                    cos_sin_cache: args.cos_sin_cache.view(),
                    append_indptr: append.append_indptr.view(),
                    kv_indptr: append.table.kv_indptr.view(),
                    kv_last_page_len: append.table.kv_last_page_len.view(),
                    params: append.shape.q_params(num_qo_heads),
                };
                // SAFETY: as the caller says.
                unsafe { stream.launch(append.shape.rotate_q_dims(num_qo_heads), kernel) }?;
                stream.keep(args.q);
                stream.keep(args.q_out);
                append.keep(stream, Some(args.cos_sin_cache));
                Ok(())
            }
        }
    };
}

append_element!(bf16: kv_append_tokens_bf16, kv_append_tokens_bf16_e4m3, kv_append_rotate_q_bf16);
append_element!(f16: kv_append_tokens_f16, kv_append_tokens_f16_e4m3, kv_append_rotate_q_f16);
