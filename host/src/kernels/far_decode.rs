//! Launches of the room `far_decode`.

use std::time::Duration;

use cuda_std::global::GlobalMut;
use gpu_kernels::contract::{ContractError, require, require_len};
use gpu_kernels::far_decode::WaitReport;
use gpu_kernels::far_decode::contract::FarDecodeShape;
use gpu_kernels::far_decode::device as entries;
use gpu_kernels::kv_layout::KvElement;
use gpu_kernels::paged_attention::contract::{DecodeShape, PageLists, TileLoads};
use half::{bf16, f16};

use super::KernelError;
use super::merge_states::{MergeArgs, MergeElement, merge_states};
use super::paged_attention::{Decode, DecodeElement, DevicePageTable};
use crate::device::{Buffer, Event, Stream};
use crate::kv::memory::KvMemory;

/// How an owner waits for a call, and home for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerWaits {
    /// On its SMs, with its first pages on their way: for an owner that has nothing else to do.
    OnAllSms,
    /// On one thread; its SMs are free until the call comes.
    AtAGate,
    /// Between kernels, for an event of the other device: no kernel waits.
    ForEvents,
}

impl OwnerWaits {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::OnAllSms, Self::AtAGate, Self::ForEvents];
}

/// The sides' page tables in their devices' memory, checked against the KV memory they point into.
#[derive(Debug)]
pub struct FarTables {
    sides: Vec<DevicePageTable>,
}

impl FarTables {
    /// Checks each side's table, then uploads it: side `r` is the device of `streams[r]`.
    ///
    /// # Errors
    /// A table that does not fit together or reaches outside the memory; not one for each stream.
    pub fn upload(
        streams: &[Stream],
        sides: &[PageLists],
        memory: &KvMemory,
    ) -> Result<Self, KernelError> {
        require_len("sides", streams.len(), sides.len())?;
        let upload = |(stream, side): (&Stream, &PageLists)| {
            DevicePageTable::upload(stream, &side.table(), memory)
        };
        Ok(Self { sides: streams.iter().zip(sides).map(upload).collect::<Result<_, _>>()? })
    }

    /// Tokens of each request on each side: `[sides][batch]`.
    pub fn kv_lens(&self) -> Vec<Vec<u32>> {
        self.sides.iter().map(|side| side.kv_lens().to_vec()).collect()
    }
}

/// Decode attention in which devices attend over their own pages for the first one: plans,
/// workspaces and states, made once for batches of one shape and one set of lengths.
pub struct FarDecode {
    shape: FarDecodeShape,
    home: Option<Decode>,
    owners: Vec<Owner>,
    calls: Buffer<u32>,
    asked_ptrs: Buffer<u64>,
    answered: Buffer<u32>,
    report: Buffer<u32>,
    states_out: Buffer<f32>,
    states_lse: Buffer<f32>,
    asked: Event,
    deadline: Duration,
}

/// A device that attends for home.
struct Owner {
    rank: usize,
    decode: Decode,
    asked: Buffer<u32>,
    served: Buffer<u32>,
    report: Buffer<u32>,
    answered: Event,
    /// Place of its first block's answer.
    first_answer: usize,
}

/// What one run of [`FarDecode`] reads and writes.
pub struct FarDecodeArgs<'a, T> {
    /// Where each side's pages are.
    pub tables: &'a FarTables,
    /// The pages themselves.
    pub memory: &'a KvMemory,
    /// `[batch, num_qo_heads, head_dim]`, at home.
    pub q: &'a Buffer<T>,
    /// `[batch, num_qo_heads, head_dim]`, at home.
    pub out: &'a Buffer<T>,
    /// `[batch, num_qo_heads]`, base 2, at home.
    pub lse: &'a Buffer<f32>,
}

impl FarDecode {
    /// Plans decode for requests with `kv_lens[r]` tokens on side `r`, the device of `streams[r]`;
    /// the first is home. Devices without tokens are not asked. No wait takes longer than
    /// `deadline`.
    ///
    /// # Errors
    /// A shape the kernels do not take; no owner that has tokens; no memory.
    pub fn plan(
        streams: &[Stream],
        shape: DecodeShape,
        kv_lens: &[Vec<u32>],
        deadline: Duration,
    ) -> Result<Self, KernelError> {
        require_len("kv_lens", streams.len(), kv_lens.len())?;
        require(!streams.is_empty(), "streams", "at least one, home's", 0)?;
        let home = streams[0].device();
        let has_tokens = |rank: usize| kv_lens[rank].iter().any(|&kv_len| kv_len > 0);
        let (mut owners, mut num_answers) = (Vec::new(), 0);
        for (rank, stream) in
            streams.iter().enumerate().skip(1).filter(|&(rank, _)| has_tokens(rank))
        {
            let decode = Decode::plan(stream, shape, &kv_lens[rank])?;
            let num_blocks = decode.split_plan().num_blocks as usize;
            let device = stream.device();
            owners.push(Owner {
                rank,
                decode,
                asked: device.alloc_zeroed(1)?,
                served: device.alloc_zeroed(num_blocks)?,
                report: device.alloc_zeroed(WaitReport::WORDS)?,
                answered: device.new_event()?,
                first_answer: num_answers,
            });
            num_answers += num_blocks;
        }
        let num_owners = owners.len() as u32;
        let num_states = num_owners + u32::from(has_tokens(0));
        let shape = FarDecodeShape { decode: shape, num_states, num_owners };
        shape.check()?;
        let home_plan = || Decode::plan(&streams[0], shape.decode, &kv_lens[0]);
        let asked_ptrs: Vec<u64> = owners.iter().map(|owner| owner.asked.address()).collect();
        Ok(Self {
            home: has_tokens(0).then(home_plan).transpose()?,
            calls: home.alloc_zeroed(1)?,
            asked_ptrs: Buffer::from_slice(&streams[0], &asked_ptrs)?,
            answered: home.alloc_zeroed(num_answers)?,
            report: home.alloc_zeroed(WaitReport::WORDS)?,
            states_out: home.alloc(shape.merge().states_out_elements())?,
            states_lse: home.alloc(shape.merge().states_lse_elements())?,
            asked: home.new_event()?,
            owners,
            shape,
            deadline,
        })
    }

    /// The same plan, all sides' pages loaded otherwise.
    ///
    /// # Errors
    /// Boxes on a device, or of pages, that do not allow them.
    pub fn with_loads(mut self, streams: &[Stream], loads: TileLoads) -> Result<Self, KernelError> {
        let home = self.home.take().map(|home| home.with_loads(&streams[0], loads));
        self.home = home.transpose()?;
        let owners = self.owners.into_iter().map(|owner| {
            let decode = owner.decode.with_loads(&streams[owner.rank], loads)?;
            Ok(Owner { decode, ..owner })
        });
        self.owners = owners.collect::<Result<_, KernelError>>()?;
        Ok(self)
    }

    /// Attends: `out` and `lse` from `q` and the pages, which nobody may write meanwhile. Side `r`
    /// works on `streams[r]`, without events: the kernels wait for each other. Runs of one plan
    /// come one after the other on the same streams.
    ///
    /// # Errors
    /// Before any launch: arguments of the wrong length, tables for other lengths than planned or
    /// for other memory. That a wait ended at its deadline is said by
    /// [`synchronize`](Self::synchronize).
    pub fn run<T: FarDecodeElement>(
        &self,
        streams: &[Stream],
        waits: OwnerWaits,
        args: &FarDecodeArgs<'_, T>,
    ) -> Result<(), KernelError> {
        require_len("streams", args.tables.sides.len(), streams.len())?;
        self.check(args)?;
        if waits == OwnerWaits::ForEvents {
            return self.run_by_events(streams, args);
        }
        self.ask(&streams[0], args)?;
        // On the CPU a launch returns when it is done: owners answer before home waits for them.
        for rank in (0..streams.len()).rev() {
            self.attend(rank, &streams[rank], waits, args)?;
        }
        self.merge(&streams[0], args)
    }

    fn run_by_events<T: FarDecodeElement>(
        &self,
        streams: &[Stream],
        args: &FarDecodeArgs<'_, T>,
    ) -> Result<(), KernelError> {
        let home = &streams[0];
        home.record(&self.asked)?;
        for owner in &self.owners {
            streams[owner.rank].wait(&self.asked)?;
            self.attend(owner.rank, &streams[owner.rank], OwnerWaits::ForEvents, args)?;
            streams[owner.rank].record(&owner.answered)?;
        }
        self.attend(0, home, OwnerWaits::ForEvents, args)?;
        self.owners.iter().try_for_each(|owner| home.wait(&owner.answered))?;
        let (states_out, states_lse) = (&self.states_out, &self.states_lse);
        let merge = MergeArgs { states_out, states_lse, out: args.out, lse: args.lse };
        merge_states(home, self.shape.merge(), &merge)
    }

    /// The first part of [`run`](Self::run), for whoever drives each rank from a thread of its own:
    /// home tells the owners that the queries are there.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn ask<T: FarDecodeElement>(
        &self,
        home: &Stream,
        args: &FarDecodeArgs<'_, T>,
    ) -> Result<(), KernelError> {
        self.check(args)?;
        let kernel = entries::far_decode_ask {
            calls: self.calls.view_mut(),
            asked_ptrs: self.asked_ptrs.view(),
            num_owners: self.owners.len() as u32,
        };
        // SAFETY: the counts have an element for every owner, and live as long as they are kept.
        unsafe { home.launch(self.shape.ask_dims(), kernel) }?;
        home.keep(&self.calls);
        home.keep(&self.asked_ptrs);
        self.owners.iter().for_each(|owner| home.keep(&owner.asked));
        Ok(())
    }

    /// The second part of [`run`](Self::run): rank `rank` attends over its pages, if it has any. An
    /// owner waits to be asked.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn attend<T: FarDecodeElement>(
        &self,
        rank: usize,
        stream: &Stream,
        waits: OwnerWaits,
        args: &FarDecodeArgs<'_, T>,
    ) -> Result<(), KernelError> {
        self.check(args)?;
        let owner = self.owners.iter().enumerate().find(|(_, owner)| owner.rank == rank);
        let (state, decode) = match (owner, &self.home) {
            (Some((state, owner)), _) => (state, &owner.decode),
            (None, Some(home)) if rank == 0 => (self.owners.len(), home),
            (None, _) => return Ok(()),
        };
        let owner = owner.map(|(_, owner)| owner);
        if let Some(owner) = owner.filter(|_| waits == OwnerWaits::AtAGate) {
            let kernel = entries::far_decode_gate {
                asked: owner.asked.view(),
                served: owner.served.view(),
                deadline_ns: self.deadline_ns(),
                report: owner.report.view_mut(),
            };
            // SAFETY: counts and report are this plan's, and are kept.
            unsafe { stream.launch(self.shape.gate_dims(), kernel) }?;
        }
        let asked_by_home = owner.filter(|_| waits != OwnerWaits::ForEvents);
        let views = AttendViews { far: self, args, rank, decode, owner: asked_by_home, state };
        // SAFETY: the arguments were checked; plan, workspace, state and counts are this shape's.
        unsafe { T::attend(stream, &views) }?;
        decode.keep_workspace(stream);
        args.tables.sides[rank].keep(stream);
        owner.into_iter().for_each(|owner| owner.keep(stream));
        stream.keep(args.q);
        self.keep_answers(stream);
        args.memory.keep(stream);
        Ok(())
    }

    /// The last part of [`run`](Self::run): home waits for all answers, and merges.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn merge<T: FarDecodeElement>(
        &self,
        home: &Stream,
        args: &FarDecodeArgs<'_, T>,
    ) -> Result<(), KernelError> {
        self.check(args)?;
        // SAFETY: the arguments were checked; states and counts are this shape's.
        unsafe { T::merge(home, self, args) }?;
        self.keep_answers(home);
        for buffer in [&self.calls, &self.report] {
            home.keep(buffer);
        }
        home.keep(args.out);
        home.keep(args.lse);
        Ok(())
    }

    /// Waits for all streams.
    ///
    /// # Errors
    /// What the devices say; the first wait for another rank that ended at its deadline: from then
    /// on no result is to be used, and the plan is of no more use.
    pub fn synchronize(&self, streams: &[Stream]) -> Result<(), KernelError> {
        streams.iter().try_for_each(Stream::synchronize)?;
        let owners = self.owners.iter().map(|owner| (owner.rank, &owner.report));
        // An owner that was not asked in time is the cause of home's wait, not the other way round.
        for (rank, report) in owners.chain([(0, &self.report)]) {
            let words = streams[rank].download(report)?;
            let report: WaitReport = bytemuck::pod_read_unaligned(bytemuck::cast_slice(&words));
            if report.timed_out != 0 {
                let WaitReport { flag_idx, expected, seen, .. } = report;
                let peer = if rank == 0 { self.owner_of(flag_idx as usize) } else { 0 };
                let deadline = self.deadline;
                return Err(KernelError::WaitTimedOut { rank, peer, expected, seen, deadline });
            }
        }
        Ok(())
    }

    /// Rank of the owner whose answer has this place.
    fn owner_of(&self, answer: usize) -> usize {
        let mut owners = self.owners.iter().rev();
        owners.find(|owner| owner.first_answer <= answer).map_or(0, |owner| owner.rank)
    }

    fn check<T: FarDecodeElement>(&self, args: &FarDecodeArgs<'_, T>) -> Result<(), ContractError> {
        let owners = self.owners.iter().map(|owner| (owner.rank, &owner.decode));
        for (rank, decode) in owners.chain(self.home.iter().map(|home| (0, home))) {
            let num_sides = args.tables.sides.len();
            require(rank < num_sides, "tables", format!("of more than {rank} sides"), num_sides)?;
            decode.check_pages(&args.tables.sides[rank], args.memory)?;
            decode.check_locations(args.memory)?;
        }
        let shape = self.shape.decode;
        require_len("q", shape.q_elements(), args.q.len())?;
        require_len("out", shape.q_elements(), args.out.len())?;
        require_len("lse", shape.lse_elements(), args.lse.len())
    }

    fn deadline_ns(&self) -> u64 {
        u64::try_from(self.deadline.as_nanos()).unwrap_or(u64::MAX)
    }

    fn keep_answers(&self, stream: &Stream) {
        stream.keep(&self.states_out);
        stream.keep(&self.states_lse);
        stream.keep(&self.answered);
    }
}

impl Owner {
    fn keep(&self, stream: &Stream) {
        for buffer in [&self.asked, &self.served, &self.report] {
            stream.keep(buffer);
        }
    }
}

/// One side's attention in a run whose arguments were checked.
#[doc(hidden)]
pub struct AttendViews<'a, T> {
    far: &'a FarDecode,
    args: &'a FarDecodeArgs<'a, T>,
    rank: usize,
    decode: &'a Decode,
    /// Whose kernel waits for home; none at home.
    owner: Option<&'a Owner>,
    /// Which state it writes.
    state: usize,
}

/// An element type of queries that decode has kernels for: bf16 and f16.
pub trait FarDecodeElement: DecodeElement + MergeElement {
    #[doc(hidden)]
    unsafe fn attend(stream: &Stream, views: &AttendViews<'_, Self>) -> Result<(), KernelError>;

    #[doc(hidden)]
    unsafe fn merge(
        stream: &Stream,
        far: &FarDecode,
        args: &FarDecodeArgs<'_, Self>,
    ) -> Result<(), KernelError>;
}

/// Launches an entry with the arguments that all share, and those that tell how it finds the pages.
macro_rules! attend {
    ($stream:ident, $views:ident, $dims:ident, $kernel:ident { $($argument:ident: $value:expr),* }) => {{
        let AttendViews { far, args, rank, decode, owner, state } = *$views;
        let (shape, table) = (far.shape.decode, &args.tables.sides[rank]);
        // SAFETY: the states have room for one of every side.
        let (state_out, state_lse) = unsafe {
            (
                far.states_out.view_mut().offset(state * shape.q_elements()),
                far.states_lse.view_mut().offset(state * shape.lse_elements()),
            )
        };
        let null = GlobalMut::null();
        let answered = match owner {
            // SAFETY: home has a place for the answer of each block of each owner.
            Some(owner) => unsafe { far.answered.view_mut().offset(owner.first_answer) },
            None => null,
        };
        let kernel = entries::$kernel {
            $($argument: $value,)*
            kv_indices: table.kv_indices.view(),
            kv_page_rank: table.kv_page_rank.view(),
            params: shape.params(args.memory.pool_pages().len()),
            items: decode.items.view(),
            q: args.q.view(),
            state_out,
            state_lse,
            partial_out: decode.partial_out.view_mut(),
            partial_lse: decode.partial_lse.view_mut(),
            arrived: decode.arrived.view_mut(),
            asked: owner.map_or(null, |owner| owner.asked.view_mut()).as_const(),
            served: owner.map_or(null, |owner| owner.served.view_mut()),
            answered,
            deadline_ns: far.deadline_ns(),
            report: owner.map_or(null, |owner| owner.report.view_mut()),
        };
        // SAFETY: the caller vouches for a checked run.
        unsafe { $stream.launch(shape.$dims(&decode.plan), kernel) }?
    }};
}

macro_rules! far_decode_element {
    ($T:ty:
        $split64:ident, $split64_wide:ident, $split128:ident, $split128_wide:ident,
        $tiles64:ident, $tiles64_wide:ident, $tiles128:ident, $tiles128_wide:ident;
        $e4m3_64:ident, $e4m3_64_wide:ident, $e4m3_128:ident, $e4m3_128_wide:ident;
        $merge:ident
    ) => {
        impl FarDecodeElement for $T {
            unsafe fn attend(
                stream: &Stream,
                views: &AttendViews<'_, Self>,
            ) -> Result<(), KernelError> {
                let (shape, memory) = (views.far.shape.decode, views.args.memory);
                macro_rules! split {
                    ($kernel:ident) => {
                        attend!(
                            stream,
                            views,
                            split_dims,
                            $kernel { peer_kv_ptrs: memory.peer_kv_ptrs_on(views.rank).view() }
                        )
                    };
                }
                macro_rules! split_e4m3 {
                    ($kernel:ident) => {
                        attend!(
                            stream,
                            views,
                            split_dims,
                            $kernel {
                                peer_kv_ptrs: memory.peer_kv_ptrs_on(views.rank).view(),
                                k_scale: memory.k_scale().view(),
                                v_scale: memory.v_scale().view()
                            }
                        )
                    };
                }
                macro_rules! tiles {
                    ($kernel:ident) => {
                        attend!(
                            stream,
                            views,
                            tiles_dims,
                            $kernel {
                                pools: memory.tile_maps(|num_pages| shape.pool_tiling(num_pages))?
                            }
                        )
                    };
                }
                use KvElement::{E4m3, Half};
                use TileLoads::{Boxes, Pieces};
                let (head_dim, head_tiles) = (shape.page.head_dim, shape.head_tiles());
                match (shape.page.element, views.decode.loads(), head_dim, head_tiles) {
                    (Half, Pieces, 64, 1) => split!($split64),
                    (Half, Pieces, 64, _) => split!($split64_wide),
                    (Half, Pieces, _, 1) => split!($split128),
                    (Half, Pieces, _, _) => split!($split128_wide),
                    (Half, Boxes, 64, 1) => tiles!($tiles64),
                    (Half, Boxes, 64, _) => tiles!($tiles64_wide),
                    (Half, Boxes, _, 1) => tiles!($tiles128),
                    (Half, Boxes, _, _) => tiles!($tiles128_wide),
                    (E4m3, _, 64, 1) => split_e4m3!($e4m3_64),
                    (E4m3, _, 64, _) => split_e4m3!($e4m3_64_wide),
                    (E4m3, _, _, 1) => split_e4m3!($e4m3_128),
                    (E4m3, _, _, _) => split_e4m3!($e4m3_128_wide),
                }
                Ok(())
            }

            unsafe fn merge(
                stream: &Stream,
                far: &FarDecode,
                args: &FarDecodeArgs<'_, Self>,
            ) -> Result<(), KernelError> {
                let merge = far.shape.merge();
                let kernel = entries::$merge {
                    params: merge.params(),
                    states_out: far.states_out.view(),
                    states_lse: far.states_lse.view(),
                    out: args.out.view_mut(),
                    lse: args.lse.view_mut(),
                    calls: far.calls.view(),
                    answered: far.answered.view(),
                    num_answers: far.answered.len() as u32,
                    deadline_ns: far.deadline_ns(),
                    report: far.report.view_mut(),
                };
                // SAFETY: the caller vouches for a checked run.
                Ok(unsafe { stream.launch(merge.dims(), kernel) }?)
            }
        }
    };
}

far_decode_element! {
    bf16:
    far_decode_attend_split_bf16_d64_g8,
    far_decode_attend_split_bf16_d64_g16,
    far_decode_attend_split_bf16_d128_g8,
    far_decode_attend_split_bf16_d128_g16,
    far_decode_attend_tiles_bf16_d64_g8,
    far_decode_attend_tiles_bf16_d64_g16,
    far_decode_attend_tiles_bf16_d128_g8,
    far_decode_attend_tiles_bf16_d128_g16;
    far_decode_attend_split_bf16_e4m3_d64_g8,
    far_decode_attend_split_bf16_e4m3_d64_g16,
    far_decode_attend_split_bf16_e4m3_d128_g8,
    far_decode_attend_split_bf16_e4m3_d128_g16;
    far_decode_merge_bf16
}

far_decode_element! {
    f16:
    far_decode_attend_split_f16_d64_g8,
    far_decode_attend_split_f16_d64_g16,
    far_decode_attend_split_f16_d128_g8,
    far_decode_attend_split_f16_d128_g16,
    far_decode_attend_tiles_f16_d64_g8,
    far_decode_attend_tiles_f16_d64_g16,
    far_decode_attend_tiles_f16_d128_g8,
    far_decode_attend_tiles_f16_d128_g16;
    far_decode_attend_split_f16_e4m3_d64_g8,
    far_decode_attend_split_f16_e4m3_d64_g16,
    far_decode_attend_split_f16_e4m3_d128_g8,
    far_decode_attend_split_f16_e4m3_d128_g16;
    far_decode_merge_f16
}
