//! Launches of the room `kv_append`.

use cuda_std::global::Global;
use gpu_kernels::contract::{require, require_len};
use gpu_kernels::kv_append::contract::{AppendLists, AppendShape, QkvShape, Rope};
use gpu_kernels::kv_append::device as entries;
use gpu_kernels::kv_layout::KvElement;
use gpu_kernels::paged_attention::contract::{BatchMaxima, PageTable};
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

/// What one append from joint rows reads and writes.
#[derive(Clone, Copy)]
pub struct QkvArgs<'a> {
    /// The pages themselves.
    pub memory: &'a KvMemory,
    /// `[num_tokens, (num_qo_heads + 2 num_kv_heads) * head_dim]`: of each token the heads of q, of
    /// K, of V
    pub qkv: &'a Buffer<bf16>,
    /// A row of that, added to each
    pub qkv_bias: Option<&'a Buffer<bf16>>,
    /// How heads of q and of K are normalised, if they are
    pub norms: Option<QkNorms<'a>>,
    /// `[num_max_positions, head_dim]`, if q and K are rotated
    pub cos_sin_cache: Option<&'a Buffer<f32>>,
    /// `[num_tokens, num_qo_heads, head_dim]`
    pub q_out: &'a Buffer<bf16>,
}

/// How heads are divided by their root mean square.
#[derive(Clone, Copy)]
pub struct QkNorms<'a> {
    /// `[head_dim]`
    pub q: &'a Buffer<bf16>,
    /// `[head_dim]`
    pub k: &'a Buffer<bf16>,
    /// Added to the mean square.
    pub eps: f32,
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

    /// An append of one token for each request of a decode batch, with room for `maxima`: for a graph
    /// whose batch changes between replays. Rows of its tensors past the batch append nothing, and
    /// before the first [`update`](Self::update) all are.
    ///
    /// # Errors
    /// Sizes that the kernels do not take, in words; no memory.
    pub fn for_replay(
        stream: &Stream,
        rope: Option<Rope>,
        maxima: BatchMaxima,
        memory: &KvMemory,
    ) -> Result<Self, KernelError> {
        let batch = maxima.num_max_requests;
        let shape = AppendShape { batch, num_tokens: batch, page: memory.shape(), rope };
        shape.check()?;
        let append_indptr: Vec<i32> = (0..=batch as i32).collect();
        Ok(Self {
            shape,
            append_indptr: Buffer::from_slice(stream, &append_indptr)?,
            table: DevicePageTable::for_replay(stream, maxima, memory)?,
        })
    }

    /// Puts another decode batch's table, its new tokens included, into the same device memory:
    /// after the work that `stream` has, and before what it is given from now on.
    ///
    /// # Errors
    /// Before anything changes: what [`upload`](Self::upload) refuses of a batch with one new token
    /// each, and what [`DevicePageTable::update`] refuses.
    pub fn update(
        &mut self,
        stream: &Stream,
        table: &PageTable<'_>,
        memory: &KvMemory,
    ) -> Result<(), KernelError> {
        let batch = table.kv_last_page_len.len() as u32;
        require(
            self.shape.num_tokens == self.shape.batch,
            "append",
            "of one token for each request",
            format!("{} tokens for {} requests", self.shape.num_tokens, self.shape.batch),
        )?;
        if batch > 0 {
            let shape = AppendShape { batch, num_tokens: batch, ..self.shape };
            let append_indptr: Vec<i32> = (0..=batch as i32).collect();
            let lists = AppendLists { append_indptr: &append_indptr, table: *table };
            shape.check_lists(&lists, memory.pool_pages())?;
        }
        self.table.update(stream, table, memory)
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
        self.check_memory(args.memory)?;
        require_len("k", self.shape.kv_elements(), args.k.len())?;
        require_len("v", self.shape.kv_elements(), args.v.len())?;
        let cache_len = args.cos_sin_cache.map_or(0, Buffer::len);
        require_len("cos_sin_cache", self.shape.cache_elements(), cache_len)?;
        // SAFETY: shape, lists and lengths were checked, the lists against memory like this.
        unsafe { T::append(self, stream, args) }
    }

    /// From joint rows, in one launch: adds the bias, normalises heads of q and of K, rotates both,
    /// writes q to `q_out`, and K and V into their pages.
    ///
    /// # Errors
    /// Before the launch: sizes that the kernels do not take, arguments of the wrong length, other
    /// memory than the lists were checked against.
    pub fn run_qkv(
        &self,
        stream: &Stream,
        num_qo_heads: u32,
        args: QkvArgs<'_>,
    ) -> Result<(), KernelError> {
        let shape = QkvShape {
            append: self.shape,
            num_qo_heads,
            has_bias: args.qkv_bias.is_some(),
            norm_eps: args.norms.map(|norms| norms.eps),
        };
        shape.check()?;
        self.check_memory(args.memory)?;
        require_len("qkv", shape.qkv_elements(), args.qkv.len())?;
        let bias_len = args.qkv_bias.map_or(0, Buffer::len);
        require_len("qkv_bias", shape.bias_elements(), bias_len)?;
        if let Some(norms) = args.norms {
            require_len("norms.q", shape.norm_elements(), norms.q.len())?;
            require_len("norms.k", shape.norm_elements(), norms.k.len())?;
        }
        let cache_len = args.cos_sin_cache.map_or(0, Buffer::len);
        require_len("cos_sin_cache", self.shape.cache_elements(), cache_len)?;
        require_len("q_out", self.shape.q_elements(num_qo_heads), args.q_out.len())?;

        macro_rules! launch {
            ($entry:ident { $($scale:ident),* }) => {{
                let kernel = entries::$entry {
                    qkv: args.qkv.view(),
                    qkv_bias: args.qkv_bias.map_or(Global::null(), Buffer::view),
                    q_norm: args.norms.map_or(Global::null(), |norms| norms.q.view()),
                    k_norm: args.norms.map_or(Global::null(), |norms| norms.k.view()),
                    $($scale: args.memory.$scale().view(),)*
                    cos_sin_cache: args.cos_sin_cache.map_or(Global::null(), Buffer::view),
                    append_indptr: self.append_indptr.view(),
                    kv_indptr: self.table.kv_indptr.view(),
                    kv_indices: self.table.kv_indices.view(),
                    kv_page_rank: self.table.kv_page_rank.view(),
                    kv_last_page_len: self.table.kv_last_page_len.view(),
                    peer_kv_ptrs: args.memory.peer_kv_ptrs().view(),
                    params: shape.params(),
                    q_out: args.q_out.view_mut(),
                };
                // SAFETY: shape, lists and lengths were checked, the lists against memory like this.
                unsafe { stream.launch(shape.dims(), kernel) }?;
            }};
        }
        match self.shape.page.element {
            KvElement::Half => launch!(kv_append_qkv_bf16 {}),
            KvElement::E4m3 => launch!(kv_append_qkv_bf16_e4m3 { k_scale, v_scale }),
        }
        let weights = args.norms.map(|norms| [norms.q, norms.k]).into_iter().flatten();
        for buffer in [args.qkv, args.q_out].into_iter().chain(args.qkv_bias).chain(weights) {
            stream.keep(buffer);
        }
        self.keep(stream, args.cos_sin_cache);
        args.memory.keep(stream);
        Ok(())
    }

    fn check_memory(&self, memory: &KvMemory) -> Result<(), KernelError> {
        let fits =
            memory.shape() == self.shape.page && memory.pool_pages() == self.table.pool_pages;
        Ok(require(fits, "memory", "what the lists were checked against", "other")?)
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

macro_rules! launch_tokens {
    ($append:ident, $stream:ident, $args:ident, $entry:ident { $($scale:ident),* }) => {{
        let kernel = entries::$entry {
            k: $args.k.view(),
            v: $args.v.view(),
            $($scale: $args.memory.$scale().view(),)*
            cos_sin_cache: $args.cos_sin_cache.map_or(Global::null(), Buffer::view),
            append_indptr: $append.append_indptr.view(),
            kv_indptr: $append.table.kv_indptr.view(),
            kv_indices: $append.table.kv_indices.view(),
            kv_page_rank: $append.table.kv_page_rank.view(),
            kv_last_page_len: $append.table.kv_last_page_len.view(),
            peer_kv_ptrs: $args.memory.peer_kv_ptrs().view(),
            params: $append.shape.params(),
        };
        // SAFETY: as the caller says.
        unsafe { $stream.launch($append.shape.dims(), kernel) }?;
    }};
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
                    KvElement::Half => launch_tokens!(append, stream, args, $append {}),
                    KvElement::E4m3 => {
                        launch_tokens!(append, stream, args, $append_e4m3 { k_scale, v_scale });
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
