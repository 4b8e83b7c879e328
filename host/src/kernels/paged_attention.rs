//! Launches of the room `paged_attention`.

use cuda_std::float::HalfFloat;
use gpu_kernels::contract::{ContractError, require, require_len};
use gpu_kernels::kv_layout::KvElement;
use gpu_kernels::paged_attention::contract::{BatchMaxima, DecodeShape, TileLoads};
use gpu_kernels::paged_attention::device as entries;
use gpu_kernels::paged_attention::plan::{DecodePlan, PlanMaxima, SplitPolicy};
use gpu_kernels::paged_attention::reference::StoredElement;
use gpu_kernels::paged_attention::{AttentionParams, MAX_TILE_LOCATIONS, WorkItem};
use half::{bf16, f16};

mod page_table;
mod staging;

pub use page_table::DevicePageTable;
use staging::Staging;

use super::KernelError;
use crate::device::{Buffer, DeviceError, Stream};
use crate::kv::memory::KvMemory;

/// Which decode kernel runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeVariant {
    /// A block for each (request, KV head), plain loads.
    Baseline,
    /// Equal shares of the batch for all SMs, on tensor cores.
    Split,
}

impl DecodeVariant {
    /// All of them, baseline first.
    pub const ALL: [Self; 2] = [Self::Baseline, Self::Split];
}

/// Decode attention for batches of one shape: plan and workspace, made once, run for every layer.
///
/// A plan is for one set of lengths. [`replan`](Self::replan) puts the plan for others into the same
/// device memory, so that a captured graph of runs goes on with them.
pub struct Decode {
    pub(super) shape: DecodeShape,
    policy: SplitPolicy,
    maxima: BatchMaxima,
    kv_lens: Vec<u32>,
    pub(super) plan: DecodePlan,
    loads: TileLoads,
    pub(super) items: Buffer<u32>,
    pub(super) partial_out: Buffer<f32>,
    pub(super) partial_lse: Buffer<f32>,
    pub(super) arrived: Buffer<u32>,
    /// Made by the first replan.
    staging: Option<Box<Staging<u32>>>,
}

/// What one run of [`Decode`] reads and writes.
pub struct DecodeArgs<'a, T> {
    /// Where the pages are.
    pub table: &'a DevicePageTable,
    /// The pages themselves.
    pub memory: &'a KvMemory,
    /// `[batch, num_qo_heads, head_dim]`
    pub q: &'a Buffer<T>,
    /// `[batch, num_qo_heads, head_dim]`
    pub out: &'a Buffer<T>,
    /// `[batch, num_qo_heads]`, base 2
    pub lse: &'a Buffer<f32>,
}

impl Decode {
    /// Plans decode for requests of `kv_lens` tokens on the device of `stream`, in equal shares for
    /// all its SMs.
    ///
    /// # Errors
    /// A shape the kernels do not take, in words; no memory for the workspace.
    pub fn plan(stream: &Stream, shape: DecodeShape, kv_lens: &[u32]) -> Result<Self, KernelError> {
        Self::plan_split(stream, shape, kv_lens, SplitPolicy::Balanced)
    }

    /// As [`plan`](Self::plan), the batch cut as `policy` says.
    ///
    /// # Errors
    /// As `plan`; a policy that does not check out.
    pub fn plan_split(
        stream: &Stream,
        shape: DecodeShape,
        kv_lens: &[u32],
        policy: SplitPolicy,
    ) -> Result<Self, KernelError> {
        require_len("kv_lens", shape.batch as usize, kv_lens.len())?;
        let maxima = BatchMaxima::of_lens(kv_lens, shape.page.page_size.max(1));
        Self::new(stream, shape, kv_lens, maxima, policy)
    }

    /// A plan without requests, with room for batches of at most `shape.batch` requests and
    /// `num_max_pages` pages: for a graph whose batch changes between replays.
    /// [`replan`](Self::replan) it before each.
    ///
    /// # Errors
    /// As [`plan_split`](Self::plan_split); maxima that kernels cannot count.
    pub fn for_replay(
        stream: &Stream,
        shape: DecodeShape,
        num_max_pages: u32,
        policy: SplitPolicy,
    ) -> Result<Self, KernelError> {
        let maxima = BatchMaxima { num_max_requests: shape.batch, num_max_pages };
        maxima.check()?;
        Self::new(stream, shape, &[], maxima, policy)
    }

    fn new(
        stream: &Stream,
        shape: DecodeShape,
        kv_lens: &[u32],
        maxima: BatchMaxima,
        policy: SplitPolicy,
    ) -> Result<Self, KernelError> {
        shape.check()?;
        policy.check()?;
        let device = stream.device();
        let num_sms = device.num_multiprocessors()?;
        let (page_size, num_kv_heads) = (shape.page.page_size, shape.page.num_kv_heads);
        let loads = if device.has_hopper_kernels() { shape.loads() } else { TileLoads::Pieces };
        let dealing = loads.dealing();
        let plan = DecodePlan::new(kv_lens, page_size, num_kv_heads, num_sms, policy, dealing);
        let most = PlanMaxima::new(maxima, page_size, num_kv_heads, num_sms, policy)?;
        let items = device.alloc(most.num_max_items as usize * WorkItem::WORDS)?;
        upload_items(stream, &plan, &items)?;
        Ok(Self {
            items,
            partial_out: absent(stream, shape.partial_elements(most.num_max_parts))?,
            partial_lse: absent(stream, shape.partial_lse_elements(most.num_max_parts))?,
            arrived: device.alloc_zeroed(shape.arrived_elements(most.num_max_meetings))?,
            shape,
            policy,
            maxima,
            kv_lens: kv_lens.to_vec(),
            plan,
            loads,
            staging: None,
        })
    }

    /// Plans for the batch that `table` now holds, in the same device memory: after the work that
    /// `stream` has, and before what it is given from now on. A graph captured with this plan and
    /// this table then attends over that batch; rows of `q`, `out` and `lse` past it are not used.
    ///
    /// ```text
    /// table.update(&stream, &batch, &memory)?;
    /// decode.replan(&stream, &table)?;
    /// graph.launch(&stream)?;
    /// ```
    ///
    /// # Errors
    /// Before anything changes: a table for other maxima, a capture.
    pub fn replan(&mut self, stream: &Stream, table: &DevicePageTable) -> Result<(), KernelError> {
        self.check_maxima(table)?;
        let plan = self.plan_for(table.kv_lens(), self.loads);
        let staging = Staging::in_place(&mut self.staging, stream, self.items.len())?;
        staging.write(stream, &[(bytemuck::cast_slice(&plan.items), &self.items)])?;
        self.plan = plan;
        self.kv_lens = table.kv_lens().to_vec();
        Ok(())
    }

    fn plan_for(&self, kv_lens: &[u32], loads: TileLoads) -> DecodePlan {
        let (page_size, num_kv_heads) = (self.shape.page.page_size, self.shape.page.num_kv_heads);
        let (num_blocks, dealing) = (self.plan.num_blocks, loads.dealing());
        DecodePlan::new(kv_lens, page_size, num_kv_heads, num_blocks, self.policy, dealing)
    }

    fn check_maxima(&self, table: &DevicePageTable) -> Result<(), ContractError> {
        let BatchMaxima { num_max_requests, num_max_pages } = self.maxima;
        let got = table.maxima();
        require(
            got == self.maxima,
            "table",
            format!("made for {num_max_requests} requests and {num_max_pages} pages, as planned"),
            format!("one for {} and {}", got.num_max_requests, got.num_max_pages),
        )
    }

    /// The sizes this was planned for; of a plan for replays, the most requests.
    pub fn shape(&self) -> DecodeShape {
        self.shape
    }

    /// How the split kernel loads the pages: boxes where the device and the page size allow it, which
    /// is faster.
    pub fn loads(&self) -> TileLoads {
        self.loads
    }

    /// The same plan, its pages loaded otherwise.
    ///
    /// # Errors
    /// Boxes on a device, or of pages, that do not allow them.
    pub fn with_loads(mut self, stream: &Stream, loads: TileLoads) -> Result<Self, KernelError> {
        let can = loads == TileLoads::Pieces
            || self.shape.loads() == loads && stream.device().has_hopper_kernels();
        require(can, "loads", "pages of a multiple of 8 tokens, on Hopper, for boxes", "others")?;
        self.plan = self.plan_for(&self.kv_lens, loads);
        self.loads = loads;
        upload_items(stream, &self.plan, &self.items)?;
        make_absent(stream, &self.partial_out)?;
        make_absent(stream, &self.partial_lse)?;
        Ok(self)
    }

    /// Who reads what.
    pub fn split_plan(&self) -> &DecodePlan {
        &self.plan
    }

    /// Attends: `out` and `lse` from `q` and the pages, which nobody may write meanwhile. Runs of
    /// one plan share its workspace: one after the other, on one stream.
    ///
    /// # Errors
    /// Before any launch: arguments of the wrong length, a table for other lengths than planned or
    /// for other memory.
    pub fn run<T: DecodeElement>(
        &self,
        stream: &Stream,
        variant: DecodeVariant,
        args: &DecodeArgs<'_, T>,
    ) -> Result<(), KernelError> {
        self.check(args)?;
        let views =
            Views { decode: self, args, params: self.shape.params(args.memory.pool_pages().len()) };
        // SAFETY: `check` passed; the plan and the workspace are this shape's.
        unsafe { T::launch(stream, variant, &views)? };
        self.keep(stream, args);
        Ok(())
    }

    /// Keeps plan and workspace until `stream` has been waited for; see [`Stream::keep`].
    pub(super) fn keep_workspace(&self, stream: &Stream) {
        for part in [&self.items, &self.arrived] {
            stream.keep(part);
        }
        for part in [&self.partial_out, &self.partial_lse] {
            stream.keep(part);
        }
    }

    fn keep<T: DecodeElement>(&self, stream: &Stream, args: &DecodeArgs<'_, T>) {
        self.keep_workspace(stream);
        stream.keep(args.lse);
        stream.keep(args.q);
        stream.keep(args.out);
        args.table.keep(stream);
        args.memory.keep(stream);
    }

    fn check<T: DecodeElement>(&self, args: &DecodeArgs<'_, T>) -> Result<(), ContractError> {
        self.check_pages(args.table, args.memory)?;
        self.check_locations(args.memory)?;
        require_len("q", self.shape.q_elements(), args.q.len())?;
        require_len("out", self.shape.q_elements(), args.out.len())?;
        require_len("lse", self.shape.lse_elements(), args.lse.len())
    }

    /// Refuses memory of more locations than the kernel loads from.
    pub(super) fn check_locations(&self, memory: &KvMemory) -> Result<(), ContractError> {
        let num_locations = memory.pool_pages().len();
        require(
            self.loads == TileLoads::Pieces || num_locations <= MAX_TILE_LOCATIONS as usize,
            "memory",
            format!("at most {MAX_TILE_LOCATIONS} locations, for pages loaded as boxes"),
            num_locations,
        )
    }

    /// Refuses a table for other lengths than planned, or for other memory.
    pub(super) fn check_pages(
        &self,
        table: &DevicePageTable,
        memory: &KvMemory,
    ) -> Result<(), ContractError> {
        require(table.kv_lens() == self.kv_lens, "table", "of the lengths planned for", "others")?;
        self.check_maxima(table)?;
        let fits = memory.shape() == self.shape.page && memory.pool_pages() == table.pool_pages;
        require(fits, "memory", "what the table was checked against, of the planned shape", "other")
    }
}

/// Puts a plan into device memory.
fn upload_items(
    stream: &Stream,
    plan: &DecodePlan,
    items: &Buffer<u32>,
) -> Result<(), DeviceError> {
    let planned = bytemuck::cast_slice(&plan.items);
    stream.upload(planned, items.slice(..planned.len()))
}

/// Rows of parts that are not there yet.
fn absent(stream: &Stream, len: usize) -> Result<Buffer<f32>, DeviceError> {
    let rows = stream.device().alloc(len)?;
    make_absent(stream, &rows)?;
    Ok(rows)
}

/// Sets every bit, and waits.
fn make_absent(stream: &Stream, rows: &Buffer<f32>) -> Result<(), DeviceError> {
    stream.fill_bytes(rows, 0xff)?;
    stream.synchronize()
}

/// A run whose arguments were checked.
#[doc(hidden)]
pub struct Views<'a, T> {
    decode: &'a Decode,
    args: &'a DecodeArgs<'a, T>,
    params: AttentionParams,
}

/// An element type of queries that decode has kernels for: bf16 and f16.
pub trait DecodeElement: HalfFloat + StoredElement {
    #[doc(hidden)]
    unsafe fn launch(
        stream: &Stream,
        variant: DecodeVariant,
        views: &Views<'_, Self>,
    ) -> Result<(), KernelError>;
}

macro_rules! launch_baseline {
    ($stream:ident, $views:ident, $kernel:ident { $($scale:ident: $value:expr),* }) => {{
        let Views { decode, args, params } = *$views;
        let (table, memory) = (args.table, args.memory);
        let kernel = entries::$kernel {
            kv_indptr: table.kv_indptr.view(),
            kv_indices: table.kv_indices.view(),
            kv_page_rank: table.kv_page_rank.view(),
            kv_last_page_len: table.kv_last_page_len.view(),
            peer_kv_ptrs: memory.peer_kv_ptrs().view(),
            params,
            $($scale: $value,)*
            q: args.q.view(),
            out: args.out.view_mut(),
            lse: args.lse.view_mut(),
        };
        // SAFETY: the caller vouches for a checked run.
        unsafe { $stream.launch(decode.shape.baseline_dims(), kernel) }?
    }};
}

macro_rules! launch_split {
    ($stream:ident, $views:ident, $dims:ident, $kernel:ident { $($argument:ident: $value:expr),* }) => {{
        let Views { decode, args, params } = *$views;
        let kernel = entries::$kernel {
            $($argument: $value,)*
            kv_indices: args.table.kv_indices.view(),
            kv_page_rank: args.table.kv_page_rank.view(),
            params,
            items: decode.items.view(),
            q: args.q.view(),
            out: args.out.view_mut(),
            lse: args.lse.view_mut(),
            partial_out: decode.partial_out.view_mut(),
            partial_lse: decode.partial_lse.view_mut(),
            arrived: decode.arrived.view_mut(),
        };
        // SAFETY: the caller vouches for a checked run.
        unsafe { $stream.launch(decode.shape.$dims(&decode.plan), kernel) }?
    }};
}

macro_rules! decode_element {
    ($T:ty:
        $base64:ident, $base128:ident,
        $split64:ident, $split64_wide:ident, $split128:ident, $split128_wide:ident,
        $tiles64:ident, $tiles64_wide:ident, $tiles128:ident, $tiles128_wide:ident;
        $base64_e4m3:ident, $base128_e4m3:ident,
        $split64_e4m3:ident, $split64_wide_e4m3:ident,
        $split128_e4m3:ident, $split128_wide_e4m3:ident
    ) => {
        impl DecodeElement for $T {
            unsafe fn launch(
                stream: &Stream,
                variant: DecodeVariant,
                views: &Views<'_, Self>,
            ) -> Result<(), KernelError> {
                let (shape, loads) = (views.decode.shape, views.decode.loads);
                let memory = views.args.memory;
                macro_rules! baseline {
                    ($kernel:ident) => {
                        launch_baseline!(stream, views, $kernel {})
                    };
                }
                macro_rules! baseline_e4m3 {
                    ($kernel:ident) => {
                        launch_baseline!(
                            stream,
                            views,
                            $kernel {
                                k_scale: memory.k_scale().view(),
                                v_scale: memory.v_scale().view()
                            }
                        )
                    };
                }
                macro_rules! split {
                    ($kernel:ident) => {
                        launch_split!(
                            stream,
                            views,
                            split_dims,
                            $kernel { peer_kv_ptrs: memory.peer_kv_ptrs().view() }
                        )
                    };
                }
                macro_rules! split_e4m3 {
                    ($kernel:ident) => {
                        launch_split!(
                            stream,
                            views,
                            split_dims,
                            $kernel {
                                peer_kv_ptrs: memory.peer_kv_ptrs().view(),
                                k_scale: memory.k_scale().view(),
                                v_scale: memory.v_scale().view()
                            }
                        )
                    };
                }
                macro_rules! tiles {
                    ($kernel:ident) => {
                        launch_split!(
                            stream,
                            views,
                            tiles_dims,
                            $kernel {
                                pools: memory.tile_maps(|num_pages| shape.pool_tiling(num_pages))?
                            }
                        )
                    };
                }
                use DecodeVariant::{Baseline, Split};
                use TileLoads::{Boxes, Pieces};
                let (head_dim, head_tiles) = (shape.page.head_dim, shape.head_tiles());
                match (shape.page.element, variant, loads, head_dim, head_tiles) {
                    (KvElement::Half, Baseline, _, 64, _) => baseline!($base64),
                    (KvElement::Half, Baseline, _, _, _) => baseline!($base128),
                    (KvElement::Half, Split, Pieces, 64, 1) => split!($split64),
                    (KvElement::Half, Split, Pieces, 64, _) => split!($split64_wide),
                    (KvElement::Half, Split, Pieces, _, 1) => split!($split128),
                    (KvElement::Half, Split, Pieces, _, _) => split!($split128_wide),
                    (KvElement::Half, Split, Boxes, 64, 1) => tiles!($tiles64),
                    (KvElement::Half, Split, Boxes, 64, _) => tiles!($tiles64_wide),
                    (KvElement::Half, Split, Boxes, _, 1) => tiles!($tiles128),
                    (KvElement::Half, Split, Boxes, _, _) => tiles!($tiles128_wide),
                    (KvElement::E4m3, Baseline, _, 64, _) => baseline_e4m3!($base64_e4m3),
                    (KvElement::E4m3, Baseline, _, _, _) => baseline_e4m3!($base128_e4m3),
                    (KvElement::E4m3, Split, _, 64, 1) => split_e4m3!($split64_e4m3),
                    (KvElement::E4m3, Split, _, 64, _) => split_e4m3!($split64_wide_e4m3),
                    (KvElement::E4m3, Split, _, _, 1) => split_e4m3!($split128_e4m3),
                    (KvElement::E4m3, Split, _, _, _) => split_e4m3!($split128_wide_e4m3),
                }
                Ok(())
            }
        }
    };
}

decode_element! {
    bf16:
    paged_attention_decode_baseline_bf16_d64,
    paged_attention_decode_baseline_bf16_d128,
    paged_attention_decode_split_bf16_d64_g8,
    paged_attention_decode_split_bf16_d64_g16,
    paged_attention_decode_split_bf16_d128_g8,
    paged_attention_decode_split_bf16_d128_g16,
    paged_attention_decode_tiles_bf16_d64_g8,
    paged_attention_decode_tiles_bf16_d64_g16,
    paged_attention_decode_tiles_bf16_d128_g8,
    paged_attention_decode_tiles_bf16_d128_g16;
    paged_attention_decode_baseline_bf16_e4m3_d64,
    paged_attention_decode_baseline_bf16_e4m3_d128,
    paged_attention_decode_split_bf16_e4m3_d64_g8,
    paged_attention_decode_split_bf16_e4m3_d64_g16,
    paged_attention_decode_split_bf16_e4m3_d128_g8,
    paged_attention_decode_split_bf16_e4m3_d128_g16
}

decode_element! {
    f16:
    paged_attention_decode_baseline_f16_d64,
    paged_attention_decode_baseline_f16_d128,
    paged_attention_decode_split_f16_d64_g8,
    paged_attention_decode_split_f16_d64_g16,
    paged_attention_decode_split_f16_d128_g8,
    paged_attention_decode_split_f16_d128_g16,
    paged_attention_decode_tiles_f16_d64_g8,
    paged_attention_decode_tiles_f16_d64_g16,
    paged_attention_decode_tiles_f16_d128_g8,
    paged_attention_decode_tiles_f16_d128_g16;
    paged_attention_decode_baseline_f16_e4m3_d64,
    paged_attention_decode_baseline_f16_e4m3_d128,
    paged_attention_decode_split_f16_e4m3_d64_g8,
    paged_attention_decode_split_f16_e4m3_d64_g16,
    paged_attention_decode_split_f16_e4m3_d128_g8,
    paged_attention_decode_split_f16_e4m3_d128_g16
}
